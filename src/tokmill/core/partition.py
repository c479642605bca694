"""Where a corpus is cut into parts that are tokenized alone: a pure function of the inputs' sizes and of the number of parts.

Cuts are places that nobody looked at: bytes of files, evenly spread over all inputs laid one behind the other. A part owns the
documents that begin between two of them; where those are, whoever reads the part finds out (`read/input_range.py`). Looking while
planning was refused: a plan of 100 TB would take hours, and every task would have to be told of it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.records import Input

MOST_PARTS = 99_999
"""Files of the output are numbered with five digits."""
_LINES = ("text", "jsonl")


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a corpus."""

    index: int
    """From 0."""
    count: int
    plan: str
    """Fingerprint of the whole."""
    begin: int = 0
    """Byte of the first input, as it is stored: documents (row groups of Parquet) that begin before it are not the part's."""
    end: int | None = None
    """Byte of the last input, as it is stored: documents that begin at it or behind are not, either; None: all are."""

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A cut: a byte of an input."""

    input_index: int
    offset: int = 0
    """0: before the input, none of which belongs to what lies before."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a part has of the inputs: `first` to `behind` (exclusive), of the first from `begin` on, of the last up to `end`."""

    first: int
    behind: int
    begin: int
    end: int | None


def parse_part(text: str) -> tuple[int, int]:
    """Index and count of `3/8`. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    if match and int(match[1]) < int(match[2]) <= MOST_PARTS:
        return int(match[1]), int(match[2])
    raise UsageError(
        f"{text!r} is not a part of a corpus",
        option="--part",
        allowed=f"I/N with I from 0 to N - 1, and N up to {MOST_PARTS:,}",
        next_step="--part 0/8 is the first of eight, --part 7/8 the last",
    )


def count_parts(inputs: Sequence[Input], part_bytes: int) -> int:
    """How many parts of about `part_bytes` bytes, as they are stored, there are in the inputs. Raises UsageError."""
    count = max(1, -(-sum(_sizes(inputs)) // part_bytes))
    if count > MOST_PARTS:
        raise UsageError(
            f"that makes {count:,} parts",
            option="--part-bytes",
            allowed=f"{MOST_PARTS:,} parts",
            suggested=f"{-(-sum(_sizes(inputs)) // MOST_PARTS >> 30) + 1}GiB",
        )
    return count


def shares(inputs: Sequence[Input], separator: str | None, count: int) -> list[Share]:
    """What each of `count` parts has of the inputs, in the order of the corpus; some may have nothing. Raises UsageError."""
    begins = cuts(inputs, separator, count)
    return [_share(begin, end) for begin, end in zip(begins, [*begins[1:], Place(len(inputs))], strict=True)]


def cuts(inputs: Sequence[Input], separator: str | None, count: int) -> list[Place]:
    """Where each of `count` parts begins: ascending, the first at the beginning. Raises UsageError for an input without a size."""
    sizes = _sizes(inputs)
    befores = [0, *accumulate(sizes)]
    times = Counter(source.path for source in inputs)
    places, i = [Place(0)], 0
    for part in range(1, count):
        at = befores[-1] * part // count
        while i < len(inputs) and befores[i + 1] <= at:
            i += 1
        offset = at - befores[i]
        # The same file twice: whose documents are meant could not be told by its path.
        if offset and not (is_divisible(inputs[i], separator) and times[inputs[i].path] == 1):
            is_nearer_end = 2 * offset >= sizes[i]
            places.append(Place(i + is_nearer_end))
        else:
            places.append(Place(i, offset))
    return places


def part_sizes(inputs: Sequence[Input], separator: str | None, count: int) -> list[int]:
    """Bytes of the inputs, as they are stored, between the cuts."""
    befores = [0, *accumulate(source.size_bytes or 0 for source in inputs)]
    places = cuts(inputs, separator, count)
    return [end - begin for begin, end in pairwise([*(befores[p.input_index] + p.offset for p in places), befores[-1]])]


def is_divisible(source: Input, separator: str | None) -> bool:
    """Whether documents can be found from the middle of an input on."""
    if source.compression != "none" or source.size_bytes is None:
        return False
    return source.format in ("jsonl", "parquet") or (source.format == "text" and separator is not None)


def outside_bytes(part: Part | msgspec.UnsetType, inputs: Sequence[Input]) -> tuple[int, int]:
    """Bytes, as they are stored, of the first input that lie before the part, and of the last that lie behind it."""
    if not isinstance(part, Part):
        return 0, 0
    behind = 0 if part.end is None else max(0, (inputs[-1].size_bytes or 0) - part.end)
    return part.begin, behind


def counts_records_from_part(source: Input) -> bool:
    """Whether the numbers of its records count from the beginning of a part that begins in its middle."""
    return source.format in _LINES


def _share(begin: Place, end: Place) -> Share:
    if begin == end:
        return Share(begin.input_index, begin.input_index, 0, None)
    if end.offset:
        return Share(begin.input_index, end.input_index + 1, begin.offset, end.offset)
    return Share(begin.input_index, end.input_index, begin.offset, None)


def _sizes(inputs: Sequence[Input]) -> list[int]:
    for source in inputs:
        if source.size_bytes is None:
            raise UsageError(
                "what comes through a pipe cannot be divided: its size is not known, and it is read once",
                where="standard input" if source.path == "-" else source.path,
                allowed="files, and objects whose store says how long they are",
                next_step="save it as a file, or tokenize it in one run",
            )
    return [source.size_bytes or 0 for source in inputs]
