"""The commands that make an output of others: merge, convert, reshard, finalize. Registered by `cli/app.py`, which prints."""

# ruff: noqa: FBT002  a flag of typer is a parameter whose default is False

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from tokmill.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.core.outcome import Outcome

Directories = Annotated[list[str], typer.Argument(metavar="DIR", help="Complete outputs of tokmill, in the order wanted.")]
Sources = Annotated[list[str], typer.Argument(metavar="DIR|FILE", help="A complete output, or bare files of ids, in order.")]
OutputFormat = Annotated[
    str,
    typer.Option(
        "--format",
        envvar="TOKMILL_FORMAT",
        metavar="raw|llmc|megatron|datatrove|olmo|litdata|mds",
        autocompletion=options.values_of("raw|llmc|megatron|datatrove|olmo|litdata|mds"),
        help="Of the output.",
    ),
]
ToEot = Annotated[
    str | None,
    typer.Option(
        "--to-eot",
        envvar="TOKMILL_TO_EOT",
        metavar="before|after",
        autocompletion=options.values_of("before|after"),
        help="Of the output.  [default: the trainer's]",
    ),
]
ToDtype = Annotated[
    str | None,
    typer.Option(
        "--to-dtype",
        envvar="TOKMILL_TO_DTYPE",
        metavar="uint16|uint32",
        autocompletion=options.values_of("uint16|uint32"),
        help="Of the output's ids.",
    ),
]
FromFormat = Annotated[
    str | None,
    typer.Option(
        "--from-format",
        envvar="TOKMILL_FROM_FORMAT",
        metavar="NAME",
        autocompletion=options.values_of("raw|llmc|megatron|datatrove|olmo"),
        help="Of bare files: raw, llmc, megatron, datatrove, olmo.",
    ),
]
BareDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        envvar="TOKMILL_DTYPE",
        metavar="uint16|uint32",
        autocompletion=options.values_of("uint16|uint32"),
        help="Of bare files.",
    ),
]
BareEot = Annotated[
    str | None,
    typer.Option(
        "--eot",
        envvar="TOKMILL_EOT",
        metavar="after|before|none",
        autocompletion=options.values_of("after|before|none"),
        help="Of bare files.",
    ),
]
BareEotId = Annotated[int | None, typer.Option("--eot-id", envvar="TOKMILL_EOT_ID", metavar="N", help="Of bare files.")]
BareTokenizer = Annotated[
    str | None, typer.Option("--tokenizer", envvar="TOKMILL_TOKENIZER", metavar="NAME|FILE", help="Of bare files.")
]
Val = Annotated[
    list[str] | None,
    typer.Option("--val", envvar="TOKMILL_VAL", metavar="FILE", help="A bare file for the validation side; may be repeated."),
]

PartsStage = Annotated[
    str | None,
    typer.Option(
        "--stage",
        envvar="TOKMILL_STAGE",
        metavar="DIR",
        help="Of s3://..., where the manifests of the parts are kept meanwhile.  [default: ~/.cache/tokmill/stage]",
    ),
]
AllowOtherSplit = Annotated[
    bool,
    typer.Option(
        "--allow-other-split",
        envvar="TOKMILL_ALLOW_OTHER_SPLIT",
        help="Also merge runs of another --seed or --val-fraction: a document may then stand on both sides.",
    ),
]


def register(app: typer.Typer, show: Callable[[str], None], is_typed: Callable[..., bool]) -> None:
    """Add the commands to the command line.

    show: prints a result on standard output. is_typed: whether one of these options was.
    """
    _register_merge(app, show)
    _register_convert(app, show, is_typed)
    _register_reshard(app, show)
    _register_finalize(app, show)


def _register_merge(app: typer.Typer, show: Callable[[str], None]) -> None:
    @app.command(short_help="Several complete outputs into one, without tokenizing again.")
    def merge(
        directories: Directories,
        out: options.Out,
        allow_other_split: AllowOtherSplit = False,
        fresh: options.Fresh = False,
        events: options.Events = None,
        force: options.Force = False,
        json: options.Json = False,
        quiet: options.Quiet = False,
        verbose: options.Verbose = False,
    ) -> None:
        """Put the outputs DIR... one behind the other, as if all had been tokenized in one run. The same command again resumes.

        They must agree in tokenizer, dtype, end-of-text id and its placement, and format. Every byte is checked while it is copied.
        """
        from tokmill.cli.event_log import observing
        from tokmill.derive import merge as merge_outputs

        with observing(verb="merging", quiet=quiet, verbose=verbose, events=events, outputs=[out, *directories]) as observers:
            outcome = merge_outputs(
                directories, out, allow_other_split=allow_other_split, fresh=fresh, force=force, observers=observers
            )
        show(_rendered(outcome, observers, json=json, quiet=quiet))


def _register_convert(app: typer.Typer, show: Callable[[str], None], is_typed: Callable[..., bool]) -> None:
    @app.command(short_help="A complete output, or bare files of ids, in another trainer's format.")
    def convert(
        sources: Sources,
        out: options.Out,
        format: OutputFormat,  # noqa: A002  the name of the option
        shard_tokens: options.ShardTokens = None,
        shard_documents: options.ShardDocuments = False,
        to_eot: ToEot = None,
        to_dtype: ToDtype = None,
        from_format: FromFormat = None,
        dtype: BareDtype = None,
        eot: BareEot = None,
        eot_id: BareEotId = None,
        tokenizer: BareTokenizer = None,
        val: Val = None,
        fresh: options.Fresh = False,
        events: options.Events = None,
        force: options.Force = False,
        json: options.Json = False,
        quiet: options.Quiet = False,
        verbose: options.Verbose = False,
    ) -> None:
        """Write DIR in another format, without tokenizing again: the bytes are those of tokenizing directly into it.

        Of a bare file nothing is known but what is stated: --from-format, --dtype, --eot, and --eot-id or --tokenizer. It becomes
        the training side, that of --val the validation side.
        """
        from tokmill.cli.event_log import observing
        from tokmill.derive import convert as convert_output

        # What is said of bare files may come from the environment, meant for tokenize: a directory's manifest knows better.
        stated = {
            "from_format": from_format,
            "dtype": None if dtype == "auto" else dtype,
            "eot": None if eot == "auto" else eot,
            "eot_id": eot_id,
            "tokenizer": tokenizer,
            "val": val or (),
        }
        if any(map(os.path.isdir, sources)):
            stated = {name: value for name, value in stated.items() if is_typed(f"--{name.replace('_', '-')}")}
        with observing(
            verb="converting", quiet=quiet, verbose=verbose, events=events, outputs=[out, *sources], inputs=[*sources, *(val or ())]
        ) as observers:
            outcome = convert_output(
                sources,
                out,
                format=format,
                shard_tokens=shard_tokens,
                shard_documents=shard_documents,
                to_eot=to_eot,
                to_dtype=to_dtype,
                fresh=fresh,
                force=force,
                observers=observers,
                **stated,  # type: ignore[arg-type]
            )
        show(_rendered(outcome, observers, json=json, quiet=quiet))


def _register_reshard(app: typer.Typer, show: Callable[[str], None]) -> None:
    @app.command(short_help="A complete output with shards of another size.")
    def reshard(
        directory: Annotated[str, typer.Argument(metavar="DIR", help="Complete output of tokmill.")],
        out: options.Out,
        shard_tokens: options.ShardTokens = None,
        shard_documents: options.ShardDocuments = False,
        fresh: options.Fresh = False,
        events: options.Events = None,
        force: options.Force = False,
        json: options.Json = False,
        quiet: options.Quiet = False,
        verbose: options.Verbose = False,
    ) -> None:
        """Write DIR with shards of another size; without --shard-tokens, of the format's own."""
        from tokmill.cli.event_log import observing
        from tokmill.derive import reshard as reshard_output

        with observing(verb="resharding", quiet=quiet, verbose=verbose, events=events, outputs=[out, directory]) as observers:
            outcome = reshard_output(
                directory,
                out,
                shard_tokens=shard_tokens,
                shard_documents=shard_documents,
                fresh=fresh,
                force=force,
                observers=observers,
            )
        show(_rendered(outcome, observers, json=json, quiet=quiet))


def _register_finalize(app: typer.Typer, show: Callable[[str], None]) -> None:
    @app.command(short_help="Parts made with tokenize --part into one complete output.")
    def finalize(
        directory: Annotated[str, typer.Argument(metavar="DIR|URL", help="What was --out of tokenize --part.")],
        stage: PartsStage = None,
        json: options.Json = False,
        quiet: options.Quiet = False,
        verbose: options.Verbose = False,
        events: options.Events = None,
    ) -> None:
        """Put the parts in DIR together: their files are renamed, the manifest comes last. Names the parts that are missing.

        At s3://bucket/prefix they are copied inside the store.
        """
        from tokmill import api
        from tokmill.cli.event_log import observing

        with observing(verb="putting together", quiet=quiet, verbose=verbose, events=events, outputs=[directory]) as observers:
            outcome = api.finalize(directory, stage=stage, observers=observers)
        show(_rendered(outcome, observers, json=json, quiet=quiet, made_of="part"))


def _rendered(outcome: Outcome, observers: Sequence[object], *, json: bool, quiet: bool, made_of: str = "output") -> str:
    from msgspec.structs import replace

    from tokmill.cli import render
    from tokmill.cli.progress import not_yet_told

    if json or quiet:
        return render.json_line(outcome) if json else ""
    return render.outcome_lines(replace(outcome, notices=not_yet_told(outcome.notices, observers)), made_of)
