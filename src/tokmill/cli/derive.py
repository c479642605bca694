"""The commands that make an output of others."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tokmill.cli.check import BARE_DTYPE, BARE_EOT_ID
from tokmill.cli.command import OUT, REPORTING, Argument, command, named, root
from tokmill.core.options import INPUT, OUTPUT, STORES, VALIDATION, Option

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.cli.console import Console
    from tokmill.core.errors import TokmillError
    from tokmill.core.outcome import Outcome

_FORMAT = named("format")[0]
_STATED = ("from_format", "from_dtype", "from_eot", "from_eot_id", "from_tokenizer", "val_input")
"""Options of convert that say what is in bare files."""


_OTHER_SPLIT = Option(
    name="allow_other_split",
    kind=bool,
    default=False,
    group=VALIDATION,
    help="Also take runs of another --seed or --val-fraction: a document may then be on both sides.",
)


@command(
    root,
    "merge",
    Argument("directories", "DIR|URL...", "Complete outputs of tokmill, in the order wanted.", nargs=-1, required=True),
    OUT,
    *named("offsets"),
    _OTHER_SPLIT,
    *named("stage", "stage_size", "fresh", "force"),
    *REPORTING,
    short_help="Join complete outputs into one, without tokenizing again.",
)
def merge(
    console: Console,
    *,
    directories: tuple[str, ...],
    out: str,
    **options: Any,
) -> None:
    """Join the outputs DIR... in this order, as if all had been tokenized in one run. The same command again continues.

    They must agree in tokenizer, dtype, end-of-text id and its placement, and format. Every byte is checked while it is copied.
    """
    from tokmill.cli.event_log import carry_out
    from tokmill.derive import merge as merge_outputs

    carry_out(
        console, "merging", _made(console, out, partial(merge_outputs, [*directories], out)), options, outputs=[out, *directories]
    )


def _made(console: Console, out: str, make: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Return what calls `make` and says which options did nothing. out: as typed."""
    from msgspec.structs import replace

    from tokmill.core.records import is_url

    def call(**given: Any) -> Outcome:
        made = make(**given)
        unused = [(name, not is_url(out), "without an s3:// output") for name in ("--stage", "--stage-size")]
        return replace(made, notices=[*made.notices, *console.unused(unused)])

    return call


def _missing(option: str) -> TokmillError:
    """Return the error for an option that is needed unless `--recipe` is given."""
    from tokmill.core.errors import UsageError

    return UsageError(
        f"{option} is missing",
        option=option,
        allowed="an output directory and a seed, or --recipe",
        next_step="tokmill mix A=0.7 B=0.3 --seed 1 --out mixed",
    )


def _together(first: str, second: str, why: str) -> TokmillError:
    from tokmill.core.errors import UsageError

    return UsageError(f"{first} with {second}, {why}", option=second, allowed="one of them", next_step=f"leave {second} out")


_SEED = Option(
    name="seed",
    kind=int,
    group=OUTPUT,
    metavar="N",
    is_required=True,
    help="Decides the order: the same seed gives the same bytes.",
)
_RAY = Option(
    name="ray",
    group=STORES,
    metavar="[ADDRESS]",
    help="Do it on a Ray cluster whose nodes share --out (or --stage): HOST:PORT, auto, local; without ADDRESS, the one that "
    "is running here. --memory is that of a task.",
)
_SHARD_TOKENS = replace(
    named("shard_tokens")[0], usual="those of a single DIR; else one file a side; llmc 100M, litdata and mds 33554432"
)
_SHAPE = (
    Option(
        name="format", group=OUTPUT, choices=_FORMAT.choices, usual="that of DIR", help="The trainer that will read the new files."
    ),
    _SHARD_TOKENS,
    *named("shard_documents"),
)
_MEMORY = replace(named("memory")[0], usual="1GiB")


@command(
    root,
    "shuffle",
    Argument("directories", "DIR|URL...", "Complete outputs of tokmill, shuffled together.", nargs=-1, required=True),
    OUT,
    _SEED,
    *_SHAPE,
    *named("offsets"),
    _MEMORY,
    _OTHER_SPLIT,
    _RAY,
    *named("stage", "stage_size", "fresh", "force"),
    *REPORTING,
    short_help="Put the documents of complete outputs into random order, in bounded memory.",
)
def shuffle(
    console: Console,
    *,
    directories: tuple[str, ...],
    out: str,
    **options: Any,
) -> None:
    """Write the documents of the training sides of DIR... in random order, without tokenizing again. The same command continues.

    Each document may come to any place, to one as likely as to another; the bytes depend on the seed and the documents alone, not
    on memory or machine. The validation sides keep their order. While it works the disk needs room for the output, and at most for
    --memory and 256 MiB more. tokmill verify proves that no document is lost, doubled, changed or misplaced.
    """
    from tokmill.cli.event_log import carry_out
    from tokmill.derive import shuffle as shuffle_outputs

    carry_out(
        console,
        "shuffling",
        _made(console, out, partial(shuffle_outputs, [*directories], out)),
        options,
        outputs=[out, *directories],
    )


@command(
    root,
    "dedup",
    Argument(
        "directories",
        "DIR|URL...",
        "Complete outputs of tokmill, in order: of several copies the first stays.",
        nargs=-1,
        required=True,
    ),
    OUT,
    Option(
        name="near",
        kind=float,
        group=INPUT,
        metavar="SIMILARITY",
        has_variable=False,
        help="Also remove near copies: documents as similar as this (0.8) to one that stays.",
    ),
    Option(
        name="measure",
        group=INPUT,
        choices=("jaccard", "containment"),
        usual="jaccard",
        has_variable=False,
        help="With --near: n-grams of both documents by those of either, or by those of the one that goes.",
    ),
    Option(name="ngram", kind=int, group=INPUT, metavar="N", usual="5", has_variable=False, help="With --near: ids of an n-gram."),
    Option(
        name="bands", kind=int, group=INPUT, metavar="N", usual="14", has_variable=False, help="With --near: bands of a signature."
    ),
    Option(name="rows", kind=int, group=INPUT, metavar="N", usual="8", has_variable=False, help="With --near: numbers in a band."),
    Option(
        name="shortest",
        kind=int,
        group=INPUT,
        metavar="N",
        usual="50",
        has_variable=False,
        help="With --near: leave documents of fewer ids alone.",
    ),
    Option(
        name="against",
        group=INPUT,
        metavar="DIR",
        is_many=True,
        help="A complete output, such as an evaluation set, whose documents are removed from DIR...; may be repeated.",
    ),
    Option(
        name="compare",
        kind=bool,
        default=False,
        group=INPUT,
        help="Read both copies and compare their ids before one is removed; otherwise a hash of 128 bits decides.",
    ),
    Option(
        name="dry_run",
        kind=bool,
        default=False,
        group=OUTPUT,
        has_variable=False,
        help="Say what would be removed; make no output.",
    ),
    Option(
        name="audit",
        group=OUTPUT,
        metavar="FILE",
        has_variable=False,
        help="With --dry-run: write a line about each document that would be removed, as removed.jsonl of an output has them.",
    ),
    *_SHAPE,
    *named("offsets"),
    _MEMORY,
    _OTHER_SPLIT,
    _RAY,
    *named("stage", "stage_size", "fresh", "force"),
    *REPORTING,
    short_help="Remove copies among the documents of complete outputs, in bounded memory.",
)
def dedup(
    console: Console,
    *,
    directories: tuple[str, ...],
    out: str,
    **options: Any,
) -> None:
    """Write the documents of DIR... in their order, of those with the same ids the first alone. The same command continues.

    Documents of the validation sides always stay; those of the training sides that equal one of them are removed. With --near, so
    are documents that are nearly the same; each is compared with one that stays before it goes. The output has a line about each
    removed document, in removed.jsonl. Do this before mix and shuffle.
    """
    from tokmill.cli.event_log import carry_out
    from tokmill.derive import dedup as dedup_outputs

    outputs = [out, *directories, *options["against"]]
    carry_out(
        console, "removing copies", _made(console, out, partial(dedup_outputs, [*directories], out)), options, outputs=outputs
    )


@command(
    root,
    "mix",
    Argument("weighted", "DIR=WEIGHT...", "Complete outputs of tokmill and their shares of the tokens.", nargs=-1, required=True),
    replace(OUT, is_required=False, metavar="DIR|URL"),
    replace(_SEED, is_required=False),
    Option(
        name="recipe",
        group=OUTPUT,
        choices=("megatron", "olmo", "streaming", "nanotron"),
        has_variable=False,
        help="Write nothing; print the lines with which this trainer mixes the outputs itself.",
    ),
    Option(
        name="tokens",
        group=OUTPUT,
        metavar="N",
        usual="as many as the scarcest source allows",
        help="Tokens of the training side (10B).",
    ),
    Option(
        name="max_epochs",
        kind=float,
        default=4.0,
        group=OUTPUT,
        metavar="X",
        help="How often the documents of a source may be taken, on average.",
    ),
    *_SHAPE,
    *named("offsets"),
    _MEMORY,
    _OTHER_SPLIT,
    _RAY,
    *named("stage", "stage_size", "fresh", "force"),
    *REPORTING,
    short_help="Mix complete outputs by weight into one, in random order.",
)
def mix(
    console: Console,
    *,
    weighted: tuple[str, ...],
    out: str | None,
    recipe: str | None,
    **options: Any,
) -> None:
    """Write the documents of several outputs in random order, each source with its share of the tokens (A=0.7 B=0.3).

    Weights are divided by their sum. Each document of a source is taken as often as the others, or once more; on the validation
    side each is there once, source by source. The same command continues. tokmill verify proves all of it.
    """
    from tokmill.cli.event_log import carry_out
    from tokmill.derive import mix as mix_outputs

    pairs = [weighted_directory(each) for each in weighted]
    if recipe is not None:
        if out is not None:
            raise _together("--recipe", "--out", "which it does not write")
        _print_recipe(console, pairs, recipe, options)
        return
    missing = "--out" if out is None else "--seed" if options["seed"] is None else ""
    if out is None or missing:
        raise _missing(missing)
    directories = [directory for directory, _ in pairs]
    make = _made(console, out, partial(mix_outputs, pairs, out))
    carry_out(console, "mixing", make, options, outputs=[out, *directories])


_OF_RECIPE = {"tokens", "max_epochs", "allow_other_split", "json", "quiet", "verbose"}


def _print_recipe(console: Console, pairs: list[tuple[str, str]], trainer: str, options: dict[str, Any]) -> None:
    """Print the lines of a recipe, and say which options did nothing."""
    from tokmill.cli import render
    from tokmill.derive import mix_recipe

    lines = mix_recipe(pairs, trainer, **{name: options[name] for name in ("tokens", "max_epochs", "allow_other_split")})
    console.print_result(render.json_line({"trainer": trainer, "lines": lines.splitlines()}) if options["json"] else lines)
    unused = [(f"--{name.replace('_', '-')}", name not in _OF_RECIPE, "with --recipe") for name in options]
    for notice in () if options["quiet"] else console.unused(unused):
        console.say(f"note: {notice}")


@command(
    root,
    "pack",
    Argument("directories", "DIR...", "Complete outputs of tokmill, packed together.", nargs=-1, required=True),
    OUT,
    Option(
        name="sequence",
        kind=int,
        group=OUTPUT,
        metavar="N",
        is_required=True,
        help="Tokens of each sequence, end-of-text ids included: what the trainer takes as sequence length.",
    ),
    Option(
        name="seed",
        kind=int,
        group=OUTPUT,
        metavar="N",
        is_required=True,
        help="Decides what lies together, and the order: the same seed gives the same bytes.",
    ),
    Option(
        name="drop",
        group=OUTPUT,
        choices=("nothing", "rests", "long"),
        default="nothing",
        help="What to leave out. rests: of each document longer than N, what is left after its last full sequence; long: documents "
        "longer than N.",
    ),
    Option(
        name="pad_id",
        kind=int,
        group=OUTPUT,
        metavar="ID",
        usual="an id of the tokenizer that no text becomes",
        help="Fills sequences up; must be in no document.",
    ),
    _SHAPE[0],
    *named("shard_tokens"),
    _MEMORY,
    _OTHER_SPLIT,
    *named("stage", "stage_size", "fresh", "force"),
    *REPORTING,
    short_help="Put whole documents into sequences of one length, in bounded memory.",
)
def pack(
    console: Console,
    *,
    directories: tuple[str, ...],
    out: str,
    **options: Any,
) -> None:
    """Write the documents of both sides of DIR... as sequences of N tokens, in random order. The same command continues.

    A document that fits into a sequence is never cut; longer ones become full sequences and a rest. What lies together is chosen so
    that nearly nothing is padding. Beside each file, NAME.starts.npy says where documents begin, so that attention can stay inside
    them. tokmill verify proves that each document is there once.
    """
    from tokmill.cli.event_log import carry_out
    from tokmill.derive import pack as pack_outputs

    carry_out(
        console, "packing", _made(console, out, partial(pack_outputs, [*directories], out)), options, outputs=[out, *directories]
    )


def weighted_directory(text: str) -> tuple[str, str]:
    """Return directory and weight of `DIR=WEIGHT`. Raises UsageError."""
    from tokmill.core.errors import UsageError

    directory, sign, weight = text.rpartition("=")
    if not sign or not directory:
        raise UsageError(
            f"{text!r} has no weight", where="DIR=WEIGHT", allowed="a directory, = and a number", next_step=f"{text}=1"
        )
    return directory, weight


@command(
    root,
    "convert",
    Argument("sources", "DIR|URL|FILE...", "A complete output, or bare files of ids, in order.", nargs=-1, required=True),
    OUT,
    Option(
        name="format", group=OUTPUT, choices=_FORMAT.choices, is_required=True, help="The trainer that will read the new files."
    ),
    *named("shard_tokens", "shard_documents", "offsets"),
    Option(name="to_eot", group=OUTPUT, choices=("before", "after"), usual="the trainer's", help="Where the end-of-text id goes."),
    Option(name="to_dtype", group=OUTPUT, choices=("uint16", "uint32"), help="Integer type of the new files' ids."),
    Option(
        name="from_format",
        group=INPUT,
        metavar="NAME",
        examples=("raw", "llmc", "megatron", "datatrove", "olmo"),
        help="Format of bare files: raw, llmc, megatron, datatrove, olmo.",
    ),
    replace(BARE_DTYPE, name="from_dtype", help="Integer type of the ids in bare files."),
    Option(name="from_eot", group=INPUT, choices=("after", "before", "none"), help="Where the end-of-text id is in bare files."),
    replace(BARE_EOT_ID, name="from_eot_id"),
    Option(name="from_tokenizer", group=INPUT, metavar="NAME|FILE", help="Tokenizer of bare files."),
    Option(
        name="val_input",
        group=INPUT,
        metavar="FILE...",
        is_many=True,
        has_variable=False,
        help="Bare files for the validation side. May be repeated.",
    ),
    *named("stage", "stage_size", "fresh", "force"),
    *REPORTING,
    short_help="Write a complete output, or bare files of ids, in another trainer's format.",
)
def convert(
    console: Console,
    *,
    sources: tuple[str, ...],
    out: str,
    **options: Any,
) -> None:
    """Write DIR in another format, without tokenizing again: the bytes are those of tokenizing directly into it.

    Of a bare file nothing is known but what is stated: --from-format, --from-dtype, --from-eot, and --from-eot-id or
    --from-tokenizer. It becomes the training side, that of --val-input the validation side.
    """
    from tokmill.cli.event_log import carry_out
    from tokmill.core.records import is_url
    from tokmill.derive import convert as convert_output

    read = [*sources, *options["val_input"]]
    has_manifest = any(os.path.isdir(each) or is_url(each) for each in sources)
    # What is said of bare files may come from the environment, meant for others: a directory's manifest knows better.
    for name in _STATED:
        is_meant = not has_manifest or console.is_typed(f"--{name.replace('_', '-')}")
        if not is_meant or options[name] == "auto":
            options[name] = () if name == "val_input" else None
    carry_out(
        console,
        "converting",
        _made(console, out, partial(convert_output, [*sources], out)),
        options,
        outputs=[out, *sources],
        inputs=read,
    )


@command(
    root,
    "reshard",
    Argument("directory", "DIR|URL", "Complete output of tokmill.", required=True),
    OUT,
    *named("shard_tokens", "shard_documents", "offsets", "stage", "stage_size", "fresh", "force"),
    *REPORTING,
    short_help="Write a complete output with shards of another size.",
)
def reshard(
    console: Console,
    *,
    directory: str,
    out: str,
    **options: Any,
) -> None:
    """Write DIR with shards of another size; without --shard-tokens, of the format's usual size."""
    from tokmill.cli.event_log import carry_out
    from tokmill.derive import reshard as reshard_output

    carry_out(
        console, "resharding", _made(console, out, partial(reshard_output, directory, out)), options, outputs=[out, directory]
    )


@command(
    root,
    "finalize",
    Argument("directory", "DIR|URL", "The directory or URL given as --out to tokenize --part.", required=True),
    Option(
        name="stage",
        group=STORES,
        metavar="DIR",
        usual="~/.cache/tokmill/stage",
        help="With s3://..., local directory for the manifests of the parts meanwhile.",
    ),
    *REPORTING,
    short_help="Join the parts of tokenize --part into one complete output.",
)
def finalize(console: Console, *, directory: str, **options: Any) -> None:
    """Join the parts in DIR: their files are renamed, and the manifest is written last. Names the parts that are missing.

    At s3://bucket/prefix they are copied inside the store.
    """
    from msgspec.structs import replace

    from tokmill import api
    from tokmill.cli.event_log import carry_out
    from tokmill.core.records import is_url

    def make(**given: Any) -> Outcome:
        made = api.finalize(directory, **given)
        return replace(
            made, notices=[*made.notices, *console.unused([("--stage", not is_url(directory), "without an s3:// output")])]
        )

    carry_out(console, "joining", make, options, outputs=[directory], made_of="part")
