"""The commands that look at what was made: verify, inspect, report. Registered by `cli/app.py`, which prints."""

# ruff: noqa: FBT002  a flag of typer is a parameter whose default is False

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from tokmill.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.core.errors import TokmillError
    from tokmill.core.records import IdType


_Side = Annotated[
    str,
    typer.Option(
        "--side", envvar="TOKMILL_SIDE", metavar="train|val", autocompletion=options.values_of("train|val"), help="Of which side."
    ),
]
_BareDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        envvar="TOKMILL_DTYPE",
        metavar="uint16|uint32",
        autocompletion=options.values_of("uint16|uint32"),
        help="Of a bare file.",
    ),
]


def register(
    app: typer.Typer,
    show: Callable[[str], None],
    complain: Callable[[TokmillError], None],
    is_typed: Callable[..., bool],
) -> None:
    """Add the commands to the command line.

    show: prints a result on standard output; complain: an error on standard error. is_typed: whether one of these options was.
    """
    _register_verify(app, show, complain)
    _register_inspect(app, show, is_typed)
    _register_report(app, show)


def _register_verify(app: typer.Typer, show: Callable[[str], None], complain: Callable[[TokmillError], None]) -> None:
    @app.command(short_help="Check every byte of an output; with --source, compare it with the corpus.")
    def verify(
        directory: Annotated[str, typer.Argument(metavar="DIR|URL", help="Output directory, or s3://bucket/prefix.")],
        source: Annotated[
            list[str] | None,
            typer.Option(
                "--source", metavar="INPUT...", help="The corpus, in the order it was given: decode everything and compare."
            ),
        ] = None,
        repair: Annotated[
            bool,
            typer.Option("--repair", help="Make what is damaged again from the corpus; --source then says where it is now."),
        ] = False,
        more: Annotated[list[str] | None, typer.Argument(metavar="INPUT", hidden=True)] = None,
        glob: options.Glob = None,
        input_format: options.InputFormat = None,
        memory: options.Memory = None,
        threads: options.Threads = None,
        json: options.Json = False,
        quiet: options.Quiet = False,
        verbose: options.Verbose = False,
    ) -> None:
        """Check sizes, digests, id range and document counts of DIR. Exit code 10 when anything is damaged.

        --memory is for what reads the corpus again, --source and --repair; --threads is for --repair alone.
        """
        from tokmill.cli import render
        from tokmill.cli.progress import make_progress

        sources = options.all_sources(source or [], more or []) or None
        with make_progress(verb="reading" if repair else "verifying", quiet=quiet, verbose=verbose) as progress:
            if repair:
                from tokmill.check import repair as repair_output

                report = repair_output(directory, sources=sources, glob=glob, memory=memory, threads=threads, observers=[progress])
            else:
                from tokmill.check import verify as verify_output

                report = verify_output(
                    directory, sources=sources, glob=glob, input_format=input_format, memory=memory, observers=[progress]
                )
        if json:
            show(render.json_line(report))
        elif report.ok and not quiet:
            show(render.report_lines(report))
        if not report.ok:
            error = _damage(report)
            complain(error)
            raise typer.Exit(error.exit_code)


def _register_inspect(app: typer.Typer, show: Callable[[str], None], is_typed: Callable[..., bool]) -> None:
    @app.command(short_help="Counts, sizes, and a decoded preview of documents.")
    def inspect(
        path: Annotated[
            str, typer.Argument(metavar="FILE|DIR|URL", help="Output directory, s3://bucket/prefix, or a bare file of ids.")
        ],
        document: Annotated[
            list[int] | None,
            typer.Option(
                "--document", metavar="N", help="Show this document, counted from 1; may be repeated.  [default: the first]"
            ),
        ] = None,
        side: _Side = "train",
        tokens: Annotated[
            int, typer.Option("--tokens", envvar="TOKMILL_TOKENS", metavar="N", help="Of each document, at most.")
        ] = 100,
        dtype: _BareDtype = None,
        tokenizer: Annotated[
            str | None,
            typer.Option(
                "--tokenizer", envvar="TOKMILL_TOKENIZER", metavar="NAME|FILE", help="Of a bare file, or of one converted without."
            ),
        ] = None,
        eot_id: Annotated[
            int | None, typer.Option("--eot-id", envvar="TOKMILL_EOT_ID", metavar="N", help="Of a bare file.")
        ] = None,
        json: options.Json = False,
        verbose: options.Verbose = False,  # noqa: ARG001  read by `run`, which shows tracebacks
    ) -> None:
        """Show what is in an output directory or a file of ids."""
        from typing import cast

        from tokmill.check import inspect as inspect_output
        from tokmill.cli import render
        from tokmill.core.records import is_url

        # The options of a bare file may come from the environment, meant for tokenize: a directory's manifest knows better.
        is_bare = not (os.path.isdir(path) or is_url(path))
        dtype = dtype if is_bare or is_typed("--dtype") else None
        tokenizer = tokenizer if is_bare or is_typed("--tokenizer") else None
        eot_id = eot_id if is_bare or is_typed("--eot-id") else None
        found = inspect_output(
            path,
            dtype=cast("IdType | None", None if dtype == "auto" else dtype),
            tokenizer=tokenizer,
            eot_id=eot_id,
            documents=document or None,
            side=side,
            n_tokens=tokens,
        )
        show(render.json_line(found) if json else render.inspection_lines(found))


def _register_report(app: typer.Typer, show: Callable[[str], None]) -> None:
    @app.command(short_help="A page about an output: one file of HTML that needs nothing else.")
    def report(
        directory: Annotated[str, typer.Argument(metavar="DIR", help="Output directory, complete or interrupted.")],
        out: Annotated[
            str | None,
            typer.Option("--out", "-o", envvar="TOKMILL_REPORT", metavar="FILE", help="The page.  [default: DIR/report.html]"),
        ] = None,
        force: Annotated[
            bool, typer.Option("--force", help="Replace a file that is no report; never one of an output or of the corpus.")
        ] = False,
        json: options.Json = False,
        quiet: options.Quiet = False,
        verbose: options.Verbose = False,
    ) -> None:
        """Write a page about DIR: counts, speed and memory, lengths of documents, frequent tokens, inputs, what was skipped.

        It reads the ids once, in little memory, and needs matplotlib and jinja2 (the extra `report`).
        """
        from tokmill.cli import render
        from tokmill.cli.progress import make_progress
        from tokmill.reports import check_extra, report as make_report

        check_extra()
        with make_progress(verb="reading", quiet=quiet, verbose=verbose) as progress:
            made = make_report(directory, out, force=force, observers=[progress])
        show(render.json_line(made) if json else "" if quiet else render.page_lines(made))


def _damage(report: object) -> TokmillError:
    from tokmill.core.errors import DamageError

    try:
        report.raise_for_damage()  # type: ignore[attr-defined]
    except DamageError as error:
        return error
    raise AssertionError("called for a sound report")
