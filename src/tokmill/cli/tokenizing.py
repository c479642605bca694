"""The commands `plan` and `tokenize`. Values are checked where Python callers are checked too (`core/options.py`, `run/job.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokmill.cli.command import JSON, QUIET, REPORTING, VERBOSE, Argument, command, named, root
from tokmill.core.options import OUTPUT, Option, PlanOptions, TokenizeOptions, options_of

if TYPE_CHECKING:
    from tokmill.cli.console import Console
    from tokmill.run import Summary

INPUTS = Argument(
    "inputs",
    "INPUT...",
    "Files, directories, quoted glob patterns, URLs (s3, https, hf, gs), or - for standard input.",
    nargs=-1,
    required=True,
)
OUT = Option(
    name="out", short="-o", group=OUTPUT, metavar="DIR|URL", is_required=True, help="Output directory, or s3://bucket/prefix."
)
PLANNED_OUT = Option(
    name="out", short="-o", group=OUTPUT, metavar="DIR|URL", help="Also say whether the output fits on the disk of DIR."
)


@command(
    root,
    "plan",
    INPUTS,
    PLANNED_OUT,
    *options_of(PlanOptions).values(),
    *named("force"),
    JSON,
    QUIET,
    VERBOSE,
    short_help="Estimate tokens, disk, memory and time; write nothing.",
)
def plan(
    console: Console, *, inputs: list[str], out: str | None, force: bool, json: bool, quiet: bool, verbose: bool, **options: Any
) -> int:
    """Estimate what tokenize with these options will do.

    Exit code 13: the memory budget is too small; 14: the disk is, unless --force is given.
    """
    from msgspec.structs import replace

    from tokmill import api
    from tokmill.cli import render
    from tokmill.core.errors import DiskFullError

    del verbose  # read where errors are printed
    made = api.plan(list(inputs), out, **options)
    made = replace(made, notices=[*made.notices, *unused_option_notices(console, out, options)])
    console.print_result(render.json_line(made) if json else "" if quiet else render.plan_lines(made))
    try:
        made.raise_for_disk()
    except DiskFullError as error:
        if not force:
            console.print_error(error)
            return error.exit_code
    return 0


@command(
    root,
    "tokenize",
    INPUTS,
    OUT,
    *options_of(TokenizeOptions).values(),
    *REPORTING,
    short_help="Turn text into train.bin and val.bin; run again to continue.",
)
def tokenize(
    console: Console,
    *,
    inputs: list[str],
    out: str,
    **options: Any,
) -> None:
    """Turn text into DIR/train.bin and DIR/val.bin. The same command again continues an interrupted run.

    With --out s3://bucket/prefix the output is made in --stage and uploaded: shards one by one, a side of one file when it is
    complete.

    Of a text file every byte counts, a byte order mark too; JSON lines lose theirs.
    """
    from msgspec.structs import replace

    from tokmill import api
    from tokmill.cli.event_log import carry_out

    def make(**given: Any) -> Summary:
        summary = api.tokenize(list(inputs), out, **given)
        return replace(summary, notices=[*summary.notices, *unused_option_notices(console, out, given)])

    carry_out(console, "tokenizing", make, options, outputs=[out], inputs=[*inputs, *options["val_input"]])


def unused_option_notices(console: Console, out: str | None, options: dict[str, Any]) -> list[str]:
    """Return a notice for each option of these commands that was typed and does nothing."""
    from tokmill.core.records import is_url

    is_local = not (out and is_url(out))
    rules = [
        ("--stage", is_local, "without an s3:// output"),
        ("--stage-size", is_local, "without an s3:// output"),
        ("--max-skipped", options["on_error"] != "skip", "without --on-error skip"),
        *(
            rule
            for name, is_given in (("--val-input", bool(options["val_input"])), ("--val-tail", options["val_tail"] is not None))
            for rule in (
                ("--val-fraction", is_given, f"with {name}"),
                ("--seed", is_given and options["sample"] is None, f"with {name}"),
            )
        ),
        ("--part-bytes", options.get("ray") is None, "without --ray"),
    ]
    return console.unused(rules)
