"""The commands that help: `doctor`, and `completion` for a shell. Registered by `cli/app.py`, which prints."""

# ruff: noqa: FBT002  a flag of typer is a parameter whose default is False

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from tokmill.cli import configured, options

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.cli.doctor import Diagnosis
    from tokmill.core.errors import UsageError

SHELLS = ("bash", "zsh", "fish")
_MARKS = {"ok": "", "note": "note", "bad": "BAD"}


def register(app: typer.Typer, show: Callable[[str], None]) -> None:
    """Add the commands to the command line. show: prints a result on standard output."""
    _register_doctor(app, show)
    _register_completion(app, show)


def _register_doctor(app: typer.Typer, show: Callable[[str], None]) -> None:
    @app.command(short_help="What is here and what is missing: machine, packages, engine, vocabularies.")
    def doctor(
        directory: Annotated[str, typer.Argument(metavar="[DIR]", help="Where an output would be made.")] = ".",
        json: options.Json = False,
        verbose: options.Verbose = False,  # noqa: ARG001  read by `run`, which shows tracebacks
    ) -> None:
        """Look at everything that tokmill stands on. Exit code 1 only when it would not work. Needs no network, changes nothing."""
        from tokmill.cli.doctor import diagnose

        found = diagnose(directory, _refused(app), {knob.variable for knob in configured.knobs(app) if knob.variable})
        show(json_module.dumps(found.to_object()) if json else _lines(found))
        found.raise_for_faults()


def _refused(app: typer.Typer) -> UsageError | None:
    """What the settings of files are refused for, if they are."""
    from tokmill.core.errors import UsageError

    try:
        configured.load(app)
    except UsageError as error:
        return error
    return None


def _lines(found: Diagnosis) -> str:
    from tokmill.core.text import printable_line

    wide = max(len(check.name) for check in found.checks)
    where = f": no output can be made in {found.unwritable}" if found.unwritable else ""
    lines = ["tokmill: " + ("it works here" if found.works else f"IT WOULD NOT WORK HERE{printable_line(where)}")]
    group = ""
    for check in found.checks:
        if check.group != group:
            group = check.group
            lines.append(f"  {group}")
        hint = f"  ({check.next_step})" if check.next_step else ""
        mark = f"{_MARKS[check.status]}: " if check.status != "ok" else ""
        lines.append(f"    {check.name:<{wide}}  {mark}{printable_line(check.value + hint)}")
    return "\n".join(lines)


def _register_completion(app: typer.Typer, show: Callable[[str], None]) -> None:
    @app.command(short_help="The script that completes tokmill's commands and options in a shell.")
    def completion(
        shell: Annotated[
            str, typer.Argument(metavar="bash|zsh|fish", help="Which shell.", autocompletion=options.values_of("|".join(SHELLS)))
        ],
    ) -> None:
        """Print the script. bash, zsh: eval "$(tokmill completion bash)"; fish: tokmill completion fish | source."""
        from typer.completion import get_completion_script  # type: ignore[attr-defined]

        from tokmill.core.errors import UsageError

        if shell not in SHELLS:
            raise UsageError(
                f"there is no completion for {shell!r}",
                where="tokmill completion",
                allowed=", ".join(SHELLS),
                next_step="tokmill completion bash",
            )
        show(get_completion_script(prog_name="tokmill", complete_var="_TOKMILL_COMPLETE", shell=shell))
