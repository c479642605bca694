"""The commands that look at what was made: verify, inspect, report."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any, Literal

from tokmill.cli.command import JSON, QUIET, VERBOSE, Argument, Parameter, command, named, root
from tokmill.core.options import AUDIT, INPUT, OUTPUT, Option

if TYPE_CHECKING:
    from tokmill.cli.console import Console

AS_RECORDED = "as recorded"
"""What `--source` alone stands for: the inputs that the manifest names."""
BARE_DTYPE = Option(name="dtype", group=INPUT, choices=("uint16", "uint32"), help="Integer type of the ids in a bare file.")
MOVED_TOKENIZER = Option(
    name="tokenizer",
    group=INPUT,
    metavar="NAME|FILE",
    usual="as the manifest says, without a network",
    has_variable=False,
    help="Where the tokenizer of the output is now.",
)
BARE_EOT_ID = Option(
    name="eot_id",
    kind=int,
    group=INPUT,
    metavar="N",
    least=0,
    below=1 << 32,
    allowed="0 to 2**32 - 1",
    help="End-of-text id in bare files.",
)
_PAGE = Parameter(
    Option(
        name="out",
        short="-o",
        group=OUTPUT,
        metavar="FILE",
        usual="DIR/report.html, or comparison.html here",
        help="The page.",
        has_variable=False,
    )
)
_PAGE.envvar = "TOKMILL_REPORT"


@command(
    root,
    "verify",
    Argument("directory", "DIR|URL", "Output directory, or s3://bucket/prefix.", required=True),
    Option(
        name="source",
        group=INPUT,
        metavar="[INPUT...]",
        is_many=True,
        has_variable=False,
        help="Decode everything and compare it with the corpus: with the inputs that the manifest names, or, where they have "
        "moved, with INPUT..., in the order they were given.",
    ),
    Option(
        name="repair",
        kind=bool,
        default=False,
        group=INPUT,
        has_variable=False,
        help="Make what is damaged again from the corpus; --source then says where it is now.",
    ),
    MOVED_TOKENIZER,
    AUDIT,
    Argument("more", "INPUT", nargs=-1, required=False, hidden=True),
    *named("glob", "input_format", "memory", "threads"),
    JSON,
    QUIET,
    VERBOSE,
    short_help="Check every byte of an output; with --source, compare it with the corpus.",
)
def verify(
    console: Console,
    *,
    directory: str,
    source: tuple[str, ...],
    repair: bool,
    more: tuple[str, ...],
    json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Check sizes, digests, id range and document counts of DIR. Exit code 10 when anything is damaged.

    --memory is for reading the corpus again (--source, --repair) and for the order of a shuffled output,
    where more of it saves time from a billion documents on; --threads is for --repair alone.
    """
    from tokmill.cli import render
    from tokmill.cli.progress import make_progress
    from tokmill.core.errors import DamageError

    sources = _all_sources(directory, [*source], [*more])
    rules = [
        ("--tokenizer", not (sources or repair), "without --source or --repair"),
        *((option, repair, "with --repair") for option in ("--audit", "--input-format")),
        *((option, not (sources or repair), "without --source") for option in ("--audit", "--input-format")),
        ("--glob", not sources, "without --source"),
        *((option, sources is True, "without INPUT after --source") for option in ("--glob", "--input-format")),
        ("--threads", not repair, "without --repair"),
    ]
    notices = console.unused(rules)
    with make_progress(verb="reading" if repair else "verifying", quiet=quiet, verbose=verbose) as progress:
        if repair:
            from tokmill.check import repair as repair_output

            del options["input_format"], options["audit"]
            report = repair_output(directory, sources=sources, observers=[progress], **options)
        else:
            from tokmill.check import verify as verify_output

            del options["threads"]
            report = verify_output(directory, sources=sources, observers=[progress], **options)
    if json:
        console.print_result(render.json_line(report))
    elif report.ok and not quiet:
        console.print_result(render.report_lines(report, notices))
    try:
        report.raise_for_damage()
    except DamageError as error:
        console.print_error(error)
        return error.exit_code
    return 0


def _all_sources(directory: str, source: list[str], more: list[str]) -> list[str] | Literal[True] | None:
    """Return the inputs of `--source a b c`: b and c arrive as arguments; with several --source their order would not be known.

    True for `--source` alone, None without it.
    """
    from tokmill.core.errors import UsageError

    given = [each for each in source + more if each != AS_RECORDED]
    if source and not given:
        return True
    if more and (len(source) != 1 or AS_RECORDED in source):
        raise UsageError(
            "inputs without --source" if not source else "the order of the sources is not clear",
            where=more[0],
            allowed="one DIR, then --source INPUT...",
            next_step=shlex.join(["tokmill", "verify", directory, "--source", *given]),
        )
    return given or None


@command(
    root,
    "inspect",
    Argument("path", "FILE|DIR|URL", "Output directory, s3://bucket/prefix, or a bare file of ids.", required=True),
    Option(
        name="document",
        kind=int,
        group=OUTPUT,
        metavar="N",
        is_many=True,
        usual="the first",
        has_variable=False,
        help="Show this document, counted from 0 as in Python; may be repeated.",
    ),
    Option(name="side", group=OUTPUT, default="train", choices=("train", "val"), help="Which side the documents are on."),
    Option(
        name="tokens",
        kind=int,
        group=OUTPUT,
        default=100,
        metavar="N",
        least=0,
        allowed="0 or more",
        help="How many tokens of each document to show.",
    ),
    BARE_DTYPE,
    Option(
        name="tokenizer",
        group=INPUT,
        metavar="NAME|FILE",
        help="Tokenizer of a bare file, or of an output converted without one, or whose own is elsewhere now.",
    ),
    BARE_EOT_ID,
    JSON,
    VERBOSE,
    short_help="Counts, sizes, and a decoded preview of documents.",
)
def inspect(
    console: Console,
    *,
    path: str,
    document: tuple[int, ...],
    side: str,
    tokens: int,
    dtype: Any,
    tokenizer: str | None,
    eot_id: int | None,
    json: bool,
    verbose: bool,
) -> None:
    """Show what is in an output directory or a file of ids."""
    from tokmill.check import inspect as inspect_output
    from tokmill.cli import render
    from tokmill.core.records import is_url

    del verbose  # read where errors are printed
    # The options of a bare file may come from the environment, meant for tokenize: a directory's manifest knows better.
    is_bare = not (os.path.isdir(path) or is_url(path))
    dtype = dtype if dtype != "auto" and (is_bare or console.is_typed("--dtype")) else None
    tokenizer = tokenizer if is_bare or console.is_typed("--tokenizer") else None
    eot_id = eot_id if is_bare or console.is_typed("--eot-id") else None
    found = inspect_output(
        path, dtype=dtype, tokenizer=tokenizer, eot_id=eot_id, documents=[*document] or None, side=side, n_tokens=tokens
    )
    console.print_result(render.json_line(found) if json else render.inspection_lines(found))


@command(
    root,
    "report",
    Argument("directory", "DIR", "Output directory, complete or interrupted.", required=True),
    Argument("other", "OTHER", "Another one, to compare the two; both complete.", required=False),
    _PAGE,
    Option(
        name="force",
        kind=bool,
        default=False,
        group=OUTPUT,
        has_variable=False,
        help="Replace a file that is no report; never one of an output or of the corpus.",
    ),
    MOVED_TOKENIZER,
    JSON,
    QUIET,
    VERBOSE,
    short_help="A page about an output, or about two that it compares: one HTML file that needs nothing else.",
)
def report(
    console: Console,
    *,
    directory: str,
    other: str | None,
    out: str | None,
    force: bool,
    tokenizer: str | None,
    json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write a page about DIR: counts, speed and memory, lengths of documents, frequent tokens, inputs, what was skipped.

    With OTHER, compare the two: numbers, lengths, documents that both have, token frequencies, settings.
    It reads the ids once, in little memory, and needs matplotlib and jinja2 (the extra `report`).
    """
    from tokmill.cli import render
    from tokmill.cli.progress import make_progress
    from tokmill.reports import check_extra, report as make_report

    check_extra()
    with make_progress(verb="reading", quiet=quiet, verbose=verbose) as progress:
        made = make_report(directory, out, other=other, force=force, tokenizer=tokenizer, observers=[progress])
    console.print_result(render.json_line(made) if json else "" if quiet else render.page_lines(made))
