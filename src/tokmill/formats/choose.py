"""The settings of an output from the options and from what its trainer expects: end-of-text ids, dtype, shards.

What the trainer expects is the default. What it cannot read is an error; what it would read wrongly is a notice.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

import msgspec

from tokmill.core.errors import UsageError
from tokmill.core.output_spec import NAME, SIDES, Shards
from tokmill.core.records import ITEM_BYTES, EotPlacement, IdType
from tokmill.core.text import counted
from tokmill.formats.base import UINT16_IDS
from tokmill.formats.registry import FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokmill.core.config import Content
    from tokmill.core.records import Counts, FileEntry, Tokenizer

_EXPONENTS = {"": 0, "k": 3, "m": 6, "g": 9, "b": 9, "t": 12}
_TAIL_ADVICE = {
    "tokenize": "--drop-tail leaves it out, another --shard-tokens makes it larger",
    "convert": "another --shard-tokens makes it larger",
    "reshard": "another --shard-tokens makes it larger",
    "merge": "tokmill reshard with another --shard-tokens makes it larger",
    "shuffle": "tokmill reshard with another --shard-tokens makes it larger",
    "mix": "tokmill reshard with another --shard-tokens makes it larger",
    "pack": "another --shard-tokens makes it larger",
    "dedup": "tokmill reshard with another --shard-tokens makes it larger",
}


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What an output will be."""

    eot: EotPlacement
    dtype: IdType
    shards: Shards | None
    notices: list[str]


def choose_output(
    format: str,  # noqa: A002  the name of the option
    tokenizer: Tokenizer,
    *,
    eot: str,
    dtype: str,
    shard_tokens: str | int | None = None,
    shard_documents: bool = False,
    drop_tail: bool = False,
    prefix: str = "--",
    sequence: int | None = None,
) -> Choice:
    """Return the settings that these options, some of them `auto` or None, come to. Raises UsageError if the format cannot.

    prefix: what stands before `eot` and `dtype` in the names of the options: `--to-` for convert. sequence: ids of a sequence, for
    packed documents.
    """
    trainer = FORMATS[format]
    if sequence and trainer.not_packed:
        raise UsageError(
            f"a packed output in the format {format}: {trainer.not_packed}",
            where=f"--format {format}",
            option="--format",
            allowed=", ".join(name for name, spec in FORMATS.items() if not spec.not_packed),
            suggested="raw",
        )
    placed = trainer.eot if eot == "auto" else cast("EotPlacement", eot)
    notices = []
    if placed != trainer.eot and trainer.is_eot_needed:
        raise UsageError(
            f"the format {format} needs the end-of-text id after each document: its loader finds documents by it",
            where=f"{prefix}eot {eot}",
            option=f"{prefix}eot",
            allowed=trainer.eot,
            next_step=f"leave {prefix}eot out, or choose another --format than {format}",
        )
    if placed != trainer.eot and trainer.other_eot:
        notices.append(f"{prefix}eot {placed} with --format {format}: {trainer.other_eot}; leave {prefix}eot out for that")
    chosen = _choose_dtype(format, dtype, tokenizer, notices, prefix)
    shards = _choose_shards(format, chosen, shard_tokens, whole=shard_documents, drop_tail=drop_tail, sequence=sequence)
    return Choice(eot=placed, dtype=chosen, shards=shards, notices=notices)


def check_name(name: str | None, format_name: str) -> None:
    """Raise UsageError for a name that the files of a format cannot begin with."""
    if name is None:
        return
    if not FORMATS[format_name].takes_name:
        raise UsageError(
            f"the files of the format {format_name} have names of their own",
            where=f"--name {name} with --format {format_name}",
            option="--name",
            allowed=f"with the formats {', '.join(each for each, spec in FORMATS.items() if spec.takes_name)}",
            next_step="leave it out",
        )
    if not re.fullmatch(NAME, name) or name.startswith(SIDES):
        raise UsageError(
            f"{name!r} cannot be what names of files begin with",
            option="--name",
            allowed="up to 64 letters, digits, dots, dashes and underscores, a letter or digit first; not train or val",
            suggested="fineweb",
        )


def parse_tokens(text: str | int, option: str = "--shard-tokens") -> int:
    """Return a number of tokens, given as `100M`, `1e8`, `100_000_000` or `33554432`; K, M, G, B and T are powers of 1000.

    option: for which it was given. Raises UsageError.
    """
    # Here, as it loads `decimal` and more.
    from fractions import Fraction

    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:([kmgbt])|e(\d\d?))?", str(text).strip().replace("_", ""), re.IGNORECASE)
    n = Fraction(match[1]) * 10 ** (_EXPONENTS[(match[2] or "").lower()] + int(match[3] or 0)) if match else Fraction(0)
    if not n or n.denominator > 1:
        raise UsageError(
            f"{text!r} is not a number of tokens",
            option=option,
            allowed="a whole number above 0, also with K, M, G (thousands, millions, billions) or as 1e8",
            suggested="100M",
        )
    return int(n)


def _choose_dtype(name: str, dtype: str, tokenizer: Tokenizer, notices: list[str], prefix: str) -> IdType:
    if dtype == "uint16" and tokenizer.n_ids > UINT16_IDS:
        raise UsageError(
            f"ids of {tokenizer.name} go up to {tokenizer.n_ids - 1:,} and do not fit into uint16",
            option=f"{prefix}dtype",
            allowed=f"uint16 holds ids up to {UINT16_IDS - 1:,}",
            suggested="uint32",
            next_step=f"or leave {prefix}dtype out",
        )
    if tokenizer.n_ids > FORMATS[name].most_ids:
        raise UsageError(
            f"ids go up to {tokenizer.n_ids - 1:,}; the format {name} has no type for them: they would be read as negative",
            where=f"--format {name}",
            option="--format",
            allowed=f"int32 holds ids up to {FORMATS[name].most_ids - 1:,}",
            next_step="choose another --format",
        )
    usual: IdType = "uint16" if tokenizer.n_ids <= FORMATS[name].uint16_ids else "uint32"
    if dtype == "auto":
        return usual
    if dtype != usual and FORMATS[name].expects_dtype:
        notices.append(f"{prefix}dtype {dtype} with --format {name}: for {tokenizer.n_ids:,} ids its readers expect {usual}")
    return cast("IdType", dtype)


def _choose_shards(
    name: str, dtype: IdType, tokens: str | int | None, *, whole: bool, drop_tail: bool, sequence: int | None
) -> Shards | None:
    trainer = FORMATS[name]
    n, unit = trainer.shard_tokens if tokens is None else parse_tokens(tokens), sequence or trainer.unit_tokens
    if n is not None and tokens is None and sequence:
        n = max(1, n // unit) * unit
    if n is None:
        if whole or drop_tail:
            raise UsageError(
                "without a size there are no shards",
                where="--shard-documents" if whole else "--drop-tail",
                option="--shard-tokens",
                allowed="together with --shard-tokens",
                suggested="100M",
            )
        return None
    most = trainer.most_tokens(ITEM_BYTES[dtype])
    if sequence:
        # A format may note each sequence in four bytes.
        most = most * ITEM_BYTES[dtype] // (ITEM_BYTES[dtype] * unit + 4) * unit
    if not unit <= n <= most or n % unit:
        step = f"a multiple of {unit:,}, " if unit > 1 else ""
        fitting = max(unit, min(n, most) // unit * unit)
        raise UsageError(
            f"a shard of {counted(n, 'token')} is not possible in the format {name}",
            option="--shard-tokens",
            allowed=f"{step}{unit:,} to {most:,}",
            suggested=str(fitting),
        )
    if whole and trainer.unit_tokens > 1:
        raise UsageError(
            f"the format {name} cuts every document into samples of {trainer.unit_tokens:,} tokens",
            option="--shard-documents",
            allowed="shards of so many samples",
            next_step="leave --shard-documents out, or choose another --format",
        )
    return Shards(tokens=n, whole_documents=whole or trainer.keeps_whole, drop_tail=drop_tail)


def dropped_tokens(content: Content, files: Mapping[str, FileEntry], counts: Counts) -> dict[str, int]:
    """Return how many tokens of each side are in no file because its last shard was left out."""
    if not isinstance(content.shards, Shards) or not content.shards.drop_tail:
        return dict.fromkeys(SIDES, 0)
    kept = {side: sum(entry.tokens for entry in files.values() if entry.side == side) for side in SIDES}
    return {side: getattr(counts, f"tokens_{side}") - kept[side] for side in SIDES}


def dropped_notices(content: Content, files: Mapping[str, FileEntry], counts: Counts, again: str) -> list[str]:
    """Return notices of the shards that were left out. again: how to make the output with another setting, up to its name."""
    names = {"train": "training", "val": "validation"}
    dropped = dropped_tokens(content, files, counts)
    return [
        f"--drop-tail left out {counted(n, 'token')} of {names[side]}"
        + (
            f": all of them, so there is no file for {names[side]}; {again} a smaller --shard-tokens"
            if n == getattr(counts, f"tokens_{side}")
            else f"; its files hold {getattr(counts, f'tokens_{side}') - n:,}"
        )
        for side, n in dropped.items()
        if n
    ]


def short_notices(content: Content, files: Mapping[str, FileEntry], made_by: str = "tokenize", for_val: str = "") -> list[str]:
    """Return notices of a validation side, and of last shards, that are too short for the trainer at its usual settings.

    Args:
        content: Of the output.
        files: Of the output.
        made_by: The command whose options are named.
        for_val: What to do to have enough for validation.
    """
    trainer = FORMATS[content.format]
    notices = []
    for side in SIDES:
        shards = [(name, entry.tokens) for name, entry in files.items() if entry.side == side]
        total = sum(n for _, n in shards)
        name, n = (
            shards[-1] if trainer.is_least_of_shard and shards else (shards[0][0] if len(shards) == 1 else f"side {side}", total)
        )
        is_val = side == "val" and any(entry.side == "train" and entry.tokens for entry in files.values())
        reasons = [trainer.too_short] * (n < trainer.least_tokens and (is_val or trainer.is_least_of_shard))
        reasons += [trainer.few_for_val] * (is_val and total < trainer.val_tokens)
        if not n or not reasons:
            continue
        alone = f"it is all that this side has: {for_val or 'a smaller batch or sequence, or more text'}"
        advice = _TAIL_ADVICE[made_by] if len(shards) > 1 and n < trainer.least_tokens and trainer.is_least_of_shard else alone
        notices.append(f"{name} has only {counted(n, 'token')}: {', '.join(reasons)}; {advice}")
    return notices
