"""The commands that make an output of other outputs: merge, convert, reshard. Registered by `cli.py`, which prints and renders."""

# ruff: noqa: FBT002  a flag of typer is a parameter whose default is False

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tokmill import options  # noqa: TC001  typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.replay import Outcome

Directories = Annotated[list[str], typer.Argument(metavar="DIR", help="Complete outputs of tokmill, in the order wanted.")]


def register(app: typer.Typer, show: Callable[[str], None]) -> None:
    """Add the commands to the command line. show: prints a result on standard output."""

    @app.command(short_help="Several complete outputs into one, without tokenizing again.")
    def merge(
        directories: Directories,
        out: options.Out,
        fresh: options.Fresh = False,
        json: options.Json = False,
        quiet: options.Quiet = False,
        verbose: options.Verbose = False,
    ) -> None:
        """Put the outputs DIR... one behind the other, as if all had been tokenized in one run. The same command again resumes.

        They must agree in tokenizer, dtype, end-of-text id and its placement, and format. Every byte is checked while it is copied.
        """
        from tokmill import merging
        from tokmill.progress import make_progress

        with make_progress(verb="merging", quiet=quiet, verbose=verbose) as progress:
            outcome = merging.merge(directories, out, fresh=fresh, observers=[progress])
        show(_rendered(outcome, json=json, quiet=quiet))


def _rendered(outcome: Outcome, *, json: bool, quiet: bool) -> str:
    from tokmill import render

    return render.json_line(outcome) if json else "" if quiet else render.outcome_lines(outcome)
