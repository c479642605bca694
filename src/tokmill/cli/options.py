"""The options of the command line, one by one: name, variable of the environment, and what `--help` says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def values_of(metavar: str) -> Callable[[str], list[str]]:
    """For the completion of a shell: the values that `a|b|c` names."""

    def matching(incomplete: str) -> list[str]:
        return [value for value in metavar.split("|") if value.startswith(incomplete)]

    return matching


Part = Annotated[
    str | None,
    typer.Option(
        "--part",
        envvar="TOKMILL_PART",
        metavar="I/N",
        help="Make part I (from 0) of N alone, here or elsewhere with the same --out; tokmill finalize puts them together.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        envvar="TOKMILL_RAY",
        metavar="[ADDRESS]",
        help="In parts on a Ray cluster: HOST:PORT, auto, local (a new one here); without one, what is here. One thread a task, "
        "or --threads.",
    ),
]
PartBytes = Annotated[
    str,
    typer.Option("--part-bytes", envvar="TOKMILL_PART_BYTES", metavar="SIZE", help="Of the inputs, for one task of --ray."),
]
_ADDRESS = re.compile(r"auto|local|here|ray://.+|[\w.\-]+:\d+|\[[0-9a-fA-F:]+\]:\d+")


def with_address(arguments: Sequence[str]) -> list[str]:
    """What was typed, with the address that `--ray` alone stands for."""
    filled = list(arguments)
    for i, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument == "--ray" and not (i + 1 < len(arguments) and _ADDRESS.fullmatch(arguments[i + 1])):
            filled[i] = "--ray=here"
    return filled


Json = Annotated[bool, typer.Option("--json", envvar="TOKMILL_JSON", help="One JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", envvar="TOKMILL_QUIET", help="No progress, no summary.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", envvar="TOKMILL_VERBOSE", help="More messages, tracebacks.")]
Events = Annotated[
    str | None,
    typer.Option("--events", envvar="TOKMILL_EVENTS", metavar="FILE", help="Append what happens to FILE, as JSON lines."),
]
Glob = Annotated[
    str | None,
    typer.Option("--glob", envvar="TOKMILL_GLOB", metavar="PATTERN", help="Of a directory, take the files that match this."),
]
InputFormat = Annotated[
    str | None,
    typer.Option(
        "--input-format",
        envvar="TOKMILL_INPUT_FORMAT",
        metavar="FORMAT",
        autocompletion=values_of("text|jsonl|csv|tsv|tar|parquet|arrow"),
        help="text, jsonl, csv, tsv, tar (also with .gz .zst .xz .bz2 .lz4), parquet or arrow, instead of going by suffix; without "
        "a known one, and on standard input: text.",
    ),
]
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT", help="Files, directories, quoted glob patterns, URLs (s3, https, hf, gs), or - for standard input."
    ),
]
Out = Annotated[str, typer.Option("--out", "-o", envvar="TOKMILL_OUT", metavar="DIR", help="Output directory.")]
OutOrUrl = Annotated[
    str, typer.Option("--out", "-o", envvar="TOKMILL_OUT", metavar="DIR|URL", help="Output directory, or s3://bucket/prefix.")
]
StageSize = Annotated[
    str | None,
    typer.Option(
        "--stage-size",
        envvar="TOKMILL_STAGE_SIZE",
        metavar="SIZE",
        help="What shards may take there before they are sent; the run waits for the store.  [default: 4GiB]",
    ),
]
Stage = Annotated[
    str | None,
    typer.Option(
        "--stage",
        envvar="TOKMILL_STAGE",
        metavar="DIR",
        help="With --out s3://..., where the output is made before it is sent.  [default: ~/.cache/tokmill/stage]",
    ),
]
PlannedOut = Annotated[
    str | None, typer.Option("--out", "-o", envvar="TOKMILL_OUT", metavar="DIR|URL", help="To see whether the output fits there.")
]
Tokenizer = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        envvar="TOKMILL_TOKENIZER",
        metavar="NAME|FILE",
        help="gpt2 (built in), cl100k_base and the like, a .tiktoken file, a tokenizer.json, a Hugging Face owner/name@revision.",
    ),
]
EotToken = Annotated[
    str | None,
    typer.Option(
        "--eot-token",
        envvar="TOKMILL_EOT_TOKEN",
        metavar="TEXT|ID",
        help="The special token that ends documents.  [default: the tokenizer's, where it is clear]",
    ),
]
Separator = Annotated[
    str,
    typer.Option(
        "--separator",
        envvar="TOKMILL_SEPARATOR",
        metavar="TEXT",
        help=r"Stands between documents of a text file; escapes such as \n\n; none: a file is one document.",
    ),
]
TextKey = Annotated[
    str,
    typer.Option(
        "--text-key",
        envvar="TOKMILL_TEXT_KEY",
        metavar="KEY",
        help="Of JSON lines and tables, the key or column of the text; a.b: inside a.",
    ),
]
Eot = Annotated[
    str,
    typer.Option(
        "--eot",
        envvar="TOKMILL_EOT",
        metavar="auto|after|before|none",
        autocompletion=values_of("auto|after|before|none"),
        help="Where the end-of-text id goes; auto: where the format's trainer expects it, after but for llmc.",
    ),
]
ValFraction = Annotated[
    float,
    typer.Option("--val-fraction", envvar="TOKMILL_VAL_FRACTION", metavar="FRACTION", help="Of the documents, for val.bin."),
]
Seed = Annotated[int, typer.Option("--seed", envvar="TOKMILL_SEED", metavar="N", help="Of the choice for val.bin.")]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        envvar="TOKMILL_DTYPE",
        metavar="auto|uint16|uint32",
        autocompletion=values_of("auto|uint16|uint32"),
        help="Of the ids.",
    ),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        envvar="TOKMILL_FORMAT",
        metavar="raw|llmc|megatron|datatrove|olmo|litdata|mds",
        autocompletion=values_of("raw|llmc|megatron|datatrove|olmo|litdata|mds"),
        help="Whose trainer reads it.",
    ),
]
ShardTokens = Annotated[
    str | None,
    typer.Option(
        "--shard-tokens",
        envvar="TOKMILL_SHARD_TOKENS",
        metavar="N",
        help="Several files a side, of so many tokens (100M) each but the last.  [default: llmc 100M, litdata and mds 33554432]",
    ),
]
ShardDocuments = Annotated[
    bool,
    typer.Option(
        "--shard-documents",
        envvar="TOKMILL_SHARD_DOCUMENTS",
        help="Cut no document: a shard ends at the first end of one behind N tokens (always so: megatron, datatrove, olmo).",
    ),
]
DropTail = Annotated[
    bool, typer.Option("--drop-tail", envvar="TOKMILL_DROP_TAIL", help="Leave out the last shard when it has less than N tokens.")
]
KeepEmpty = Annotated[
    bool, typer.Option("--keep-empty", envvar="TOKMILL_KEEP_EMPTY", help="Write the end-of-text id of empty documents too.")
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        envvar="TOKMILL_MEMORY",
        metavar="SIZE",
        help="Of all processes together, at most.  [default: 1GiB, more with many threads, at most a quarter of all]",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", envvar="TOKMILL_THREADS", metavar="N", help="Encoder threads.  [default: one a core]"),
]
Nice = Annotated[
    bool,
    typer.Option("--nice", envvar="TOKMILL_NICE", help="Give way to other programs: only what they leave of processor and disk."),
]
OnError = Annotated[
    str,
    typer.Option(
        "--on-error",
        envvar="TOKMILL_ON_ERROR",
        metavar="stop|skip",
        autocompletion=values_of("stop|skip"),
        help="What a bad record does.",
    ),
]
MaxSkipped = Annotated[
    int | None,
    typer.Option("--max-skipped", envvar="TOKMILL_MAX_SKIPPED", metavar="N", help="Stop when more bad records were skipped."),
]
EncodingErrors = Annotated[
    str,
    typer.Option(
        "--encoding-errors",
        envvar="TOKMILL_ENCODING_ERRORS",
        metavar="strict|replace|ignore",
        autocompletion=values_of("strict|replace|ignore"),
        help="What bytes that are not UTF-8 do.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        envvar="TOKMILL_ENGINE",
        metavar="gigatoken|tiktoken|tokenizers",
        autocompletion=values_of("gigatoken|tiktoken|tokenizers"),
        help="The ids are the same.",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh", envvar="TOKMILL_FRESH", help="Start over: discard what an earlier run left there; with --part, of that part."
    ),
]
Force = Annotated[bool, typer.Option("--force", envvar="TOKMILL_FORCE", help="Go on though the output will not fit on the disk.")]
Append = Annotated[bool, typer.Option("--append", envvar="TOKMILL_APPEND", help="Add the inputs to the complete output in DIR.")]


def all_sources(source: list[str], more: list[str]) -> list[str]:
    """`--source a b c`: b and c arrive as arguments of their own; their place among several --source cannot be known."""
    from tokmill.core.errors import UsageError

    if more and len(source) != 1:
        raise UsageError(
            "inputs without --source" if not source else "the order of the sources is not clear",
            where=f"{more[0]}",
            allowed="one DIR, then --source INPUT...",
            next_step="tokmill verify DIR --source " + " ".join([*source, *more]),
        )
    return source + more
