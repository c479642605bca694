"""Bounds of what is read from files that anyone may have written: numbers that can be, and as many values as memory can hold.

JSON of a few bytes a value becomes objects of ten times that size. So values are counted before any of them is decoded.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tokmill.core.errors import DamageError

Natural = Annotated[int, Meta(ge=0, le=1 << 60)]
"""A count, a size or an offset."""
Positive = Annotated[int, Meta(ge=1, le=1 << 60)]
Whole = Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]

MOST_BYTES = 1 << 28
"""Size limit of a file in which tokmill keeps its state: a manifest with more than a million inputs has less."""
MOST_VALUES = 4_000_000
"""Most values in one, beside those of the inputs: 200,000 shards have fewer. Decoded, one takes up to 80 bytes."""


class _OfContent(msgspec.Struct):
    inputs: msgspec.Raw = msgspec.Raw(b"")


class _InputsOnly(msgspec.Struct):
    content: _OfContent | None = None


def count_values(data: bytes | memoryview) -> int:
    """Return how many values JSON holds, at most, those of `content.inputs` left out: they become no larger than they are."""
    data = bytes(data)
    n_values = _count(data)
    try:
        content = msgspec.json.decode(data, type=_InputsOnly).content if n_values > MOST_VALUES else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        content = None
    return n_values - (_count(bytes(content.inputs)) if content else 0)


def check_amount(data: bytes | memoryview, what: str, where: str, n_before: int = 0) -> int:
    """Raise DamageError for JSON of more values than any run of tokmill writes; return how many there are.

    what: names the file. n_before: values that were counted before.
    """
    n_values = count_values(data)
    if n_before + n_values > MOST_VALUES:
        raise DamageError(
            f"{what} holds {n_before + n_values:,} values",
            where=where,
            allowed=f"{MOST_VALUES:,} beside those of the inputs; no run of tokmill writes more",
            next_step="make that output again; with larger shards (--shard-tokens), if it had so many",
        )
    return n_values


def _count(data: bytes) -> int:
    return data.count(b",") + data.count(b":")
