"""The commands `tokmill vocab list` and `tokmill vocab fetch`; `cli/app.py` prints what they return and renders their errors."""

# ruff: noqa: FBT002  a flag of typer is a parameter whose default is False

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tokmill.cli import options  # noqa: TC001  typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable


def _published(incomplete: str) -> list[str]:
    """For the completion of a shell."""
    from tokmill.encode import ENCODINGS

    return [name for name in ENCODINGS if name.startswith(incomplete)]


def vocab_commands(print_result: Callable[[str], None]) -> typer.Typer:
    """The group of commands. print_result: writes to standard output."""
    group = typer.Typer(
        help="The published encodings of tiktoken: which are here, and how to fetch one.",
        short_help="tiktoken's encodings: which are here; fetch one.",
    )

    @group.command("list", short_help="The published encodings, and where their files are.")
    def list_(json: options.Json = False) -> None:
        """Name the published encodings, their ids, and where their files are on this machine."""
        from tokmill.cli import render
        from tokmill.encode import list_vocabularies

        found = list_vocabularies()
        print_result(render.json_line(found) if json else "\n".join(map(render.vocabulary_line, found)))

    @group.command(short_help="Put the file of a published encoding into a directory.")
    def fetch(
        name: Annotated[
            str, typer.Argument(metavar="NAME", help="Of the encoding, or of a model that has it.", autocompletion=_published)
        ],
        to: Annotated[str, typer.Option("--to", envvar="TOKMILL_TO", metavar="DIR", help="Where to; made if need be.")],
        base_url: Annotated[
            str | None,
            typer.Option("--base-url", envvar="TOKMILL_BASE_URL", metavar="URL", help="Another place that has the files."),
        ] = None,
        json: options.Json = False,
    ) -> None:
        """Fetch the file of NAME, check its SHA-256, and put it into DIR. For --tokenizer DIR/NAME.tiktoken, also elsewhere."""
        from tokmill.cli import render
        from tokmill.encode import fetch_vocabulary

        fetched = fetch_vocabulary(name, to, base_url)
        print_result(render.json_line(fetched) if json else render.fetched_line(fetched))

    return group
