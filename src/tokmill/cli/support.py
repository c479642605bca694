"""The commands that help: `doctor`, `completion` for a shell, and `vocab list` and `vocab fetch`."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING

from tokmill.cli import settings
from tokmill.cli.command import JSON, VERBOSE, Argument, command, make_group, root
from tokmill.core.options import INPUT, OUTPUT, Option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokmill.cli.console import Console
    from tokmill.cli.doctor import Diagnosis

SHELLS = ("bash", "zsh", "fish")
_MARKS = {"ok": "", "note": "note", "bad": "BAD"}


@command(
    root,
    "doctor",
    Argument("directory", "[DIR]", "Where an output would be made.", default=".", required=False),
    JSON,
    VERBOSE,
    short_help="Check machine, packages, engine and vocabularies.",
    needs_settings=False,
)
def doctor(console: Console, *, directory: str, json: bool, verbose: bool) -> None:
    """Check everything that tokmill needs. Exit code 1 only when it would not work. Needs no network, changes nothing."""
    from tokmill.cli.doctor import diagnose
    from tokmill.core.errors import UsageError

    del verbose  # read where errors are printed
    try:
        wrong = None
        settings.load(root)
    except UsageError as error:
        wrong = error
    found = diagnose(directory, wrong, {knob.variable for knob in settings.knobs(root) if knob.variable})
    console.print_result(json_module.dumps(found.to_object()) if json else _lines(found))
    found.raise_for_faults()


def _lines(found: Diagnosis) -> str:
    from tokmill.core.text import printable_line

    wide = max(len(check.name) for check in found.checks)
    where = f": no output can be made in {found.unwritable}" if found.unwritable else ""
    lines = ["tokmill: " + ("it works here" if found.works else f"IT WOULD NOT WORK HERE{where}")]
    group = ""
    for check in found.checks:
        if check.group != group:
            group = check.group
            lines.append(f"  {group}")
        hint = f"  ({check.next_step})" if check.next_step else ""
        mark = f"{_MARKS[check.status]}: " if check.status != "ok" else ""
        lines.append(printable_line(f"    {check.name:<{wide}}  {mark}{check.value + hint}"))
    return "\n".join(lines)


@command(
    root,
    "completion",
    Argument("shell", "bash|zsh|fish", "Which shell.", values=lambda: SHELLS, required=True),
    short_help="Print the script that completes tokmill's commands and options in a shell.",
    needs_settings=False,
)
def completion(console: Console, *, shell: str) -> None:
    """Print the script. bash, zsh: eval "$(tokmill completion bash)"; fish: tokmill completion fish | source."""
    from click.shell_completion import get_completion_class

    from tokmill.core.errors import UsageError

    found = get_completion_class(shell) if shell in SHELLS else None
    if found is None:
        raise UsageError(
            f"there is no completion for {shell!r}",
            where="tokmill completion",
            allowed=", ".join(SHELLS),
            next_step="tokmill completion bash",
        )
    made = found(root, {}, "tokmill", "_TOKMILL_COMPLETE")
    console.print_result(made.source_template % made.source_vars())


_vocab = make_group(
    "vocab",
    help="The published encodings of tiktoken: which are here, and how to fetch one.",
    short_help="List or fetch the published encodings of tiktoken.",
)
root.add_command(_vocab)


def _published() -> Iterable[str]:
    from tokmill.encode import ENCODINGS

    return ENCODINGS


@command(_vocab, "list", JSON, short_help="List the published encodings, and where their files are.")
def list_vocabularies(console: Console, *, json: bool) -> None:
    """List the published encodings, their ids, and where their files are on this machine."""
    from tokmill.cli import render
    from tokmill.encode import list_vocabularies as all_vocabularies

    found = all_vocabularies()
    console.print_result(render.json_line(found) if json else "\n".join(map(render.vocabulary_line, found)))


@command(
    _vocab,
    "fetch",
    Argument("name", "NAME", "An encoding, or a model that uses it.", values=_published, required=True),
    Option(name="to", group=OUTPUT, metavar="DIR", is_required=True, help="Directory for the file; created if needed."),
    Option(name="base_url", group=INPUT, metavar="URL", help="Another place that has the files."),
    JSON,
    short_help="Download the file of a published encoding into a directory.",
)
def fetch(console: Console, *, name: str, to: str, base_url: str | None, json: bool) -> None:
    """Download the file of NAME, check its SHA-256, and write it to DIR: for --tokenizer DIR/NAME.tiktoken, also elsewhere."""
    from tokmill.cli import render
    from tokmill.encode import fetch_vocabulary

    fetched = fetch_vocabulary(name, to, base_url)
    console.print_result(render.json_line(fetched) if json else render.fetched_line(fetched))
