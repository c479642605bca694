"""Where a corpus is cut into parts that are tokenized alone: a pure function of the inputs' sizes and of the number of parts.

A part is an output of its own, made by a run that may be anywhere; a range (`run/ranges.py`) is what one worker of a run reads.
Both are some inputs from a byte of the first to a byte of the last, read in the same way. Cuts are bytes of files, evenly
spaced over all inputs, whatever stands there. A part owns the documents that begin between two cuts; its reader finds them
(`read/input_range.py`). Finding them while planning would take hours for 100 TB.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.bounded import Natural
from tokmill.core.errors import UsageError
from tokmill.core.local_struct import LocalStruct

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.core.records import Cursor, Input, Skip

MOST_PARTS = 50_000
"""The manifest of an output of more would be larger than any tokmill reads; files of the output are numbered with five digits."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a corpus."""

    index: Natural
    """From 0."""
    count: Natural
    plan: str
    """Fingerprint of the whole."""
    begin: Natural = 0
    """Byte of the first input as stored. Documents (row groups of Parquet) that begin before it are not the part's."""
    end: Natural | None = None
    """Byte of the last input as stored. Documents that begin there or later are not the part's; None: all are."""

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class Cut(LocalStruct, frozen=True, order=True):
    """A byte of an input where one part ends and the next begins."""

    input_index: int
    offset: int = 0
    """Offset in the stored input; 0: before all of it."""


class PartInputs(LocalStruct, frozen=True):
    """The inputs of a part: those from `first` to `stop` (exclusive), the first from byte `begin` on, the last up to byte `end`."""

    first: int
    stop: int
    begin: int
    end: int | None


def parse_part(text: str) -> tuple[int, int]:
    """Return index and count of `3/8`. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    if match and int(match[1]) < int(match[2]) <= MOST_PARTS:
        return int(match[1]), int(match[2])
    is_counted_from_1 = match and int(match[1]) == int(match[2]) <= MOST_PARTS and int(match[2])
    raise UsageError(
        f"{text!r} is not a part of a corpus",
        option="--part",
        allowed=f"I/N with I from 0 to N - 1, and N up to {MOST_PARTS:,}: 0/8 is the first of eight, 7/8 the last",
        suggested=f"{int(match[2]) - 1}/{int(match[2])}" if match and is_counted_from_1 else "0/8",
    )


def count_parts(inputs: Sequence[Input], part_bytes: int) -> int:
    """Return how many parts of about `part_bytes` stored bytes there are in the inputs. Raises UsageError."""
    count = max(1, -(-sum(_sizes(inputs)) // part_bytes))
    if count > MOST_PARTS:
        raise UsageError(
            f"that makes {count:,} parts",
            option="--part-bytes",
            allowed=f"{MOST_PARTS:,} parts",
            suggested=f"{-(-sum(_sizes(inputs)) // MOST_PARTS >> 30) + 1}GiB",
        )
    return count


def inputs_of_parts(inputs: Sequence[Input], separator: str | None, count: int) -> list[PartInputs]:
    """Return the inputs of each of `count` parts, in the order of the corpus; some may have none. Raises UsageError."""
    begins = cuts(inputs, separator, count)
    return [_between(begin, end) for begin, end in zip(begins, [*begins[1:], Cut(len(inputs))], strict=True)]


def cuts(inputs: Sequence[Input], separator: str | None, count: int) -> list[Cut]:
    """Return where each of `count` parts begins, in ascending order. Raises UsageError for an input without a size."""
    sizes = _sizes(inputs)
    befores = [0, *accumulate(sizes)]
    may_cut = divisible_inputs(inputs, separator)
    places, i = [Cut(0)], 0
    for part in range(1, count):
        at = befores[-1] * part // count
        while i < len(inputs) and befores[i + 1] <= at:
            i += 1
        offset = at - befores[i]
        if offset and not may_cut(i):
            is_nearer_end = 2 * offset >= sizes[i]
            places.append(Cut(i + is_nearer_end))
        else:
            places.append(Cut(i, offset))
    return places


def part_sizes(inputs: Sequence[Input], separator: str | None, count: int) -> list[int]:
    """Return the stored bytes of each part."""
    befores = [0, *accumulate(source.size_bytes or 0 for source in inputs)]
    places = cuts(inputs, separator, count)
    return [end - begin for begin, end in pairwise([*(befores[p.input_index] + p.offset for p in places), befores[-1]])]


def divisible_inputs(inputs: Sequence[Input], separator: str | None) -> Callable[[int], bool]:
    """Return what tells, by its index, whether an input may be cut: whether documents can be found from its middle on.

    A file that is given twice is not cut: its path would not say which of the two is meant.
    """
    times = Counter(source.path for source in inputs)

    def may_cut(i: int) -> bool:
        source = inputs[i]
        if source.compression != "none" or source.encoding or source.size_bytes is None or times[source.path] > 1:
            return False
        return source.format in ("jsonl", "parquet") or (source.format == "text" and separator is not None)

    return may_cut


def outside_bytes(part: Part | msgspec.UnsetType, inputs: Sequence[Input]) -> tuple[int, int]:
    """Return the stored bytes of the first input before the part, and of the last input after it."""
    if not isinstance(part, Part):
        return 0, 0
    return part.begin, 0 if part.end is None else max(0, (inputs[-1].size_bytes or 0) - part.end)


def counts_records_from_part(source: Input) -> bool:
    """Return whether the records of a part that begins in the middle of the input are numbered from there."""
    return source.format in ("text", "jsonl")


class Numbering(LocalStruct, frozen=True):
    """How the inputs and records of a part, or of a range, are numbered in the whole corpus."""

    first: int
    """Index of its first input."""
    path: str
    """Of that input."""
    n_records: int
    """Records of it before the part, which the part does not count."""

    @classmethod
    def of(cls, part: Part | msgspec.UnsetType, inputs: Sequence[Input], first: int, reached: Cursor) -> Numbering:
        """Return it. reached: in the corpus, where the part begins, which is where the one before it ends."""
        counts = isinstance(part, Part) and part.begin > 0 and counts_records_from_part(inputs[0])
        path = inputs[0].path if inputs else ""
        return cls(first, path, reached.record if counts and reached.input_index == first else 0)

    def cursor(self, cursor: Cursor) -> Cursor:
        """Return a cursor of the part as one of the corpus."""
        record = cursor.record + (self.n_records if cursor.input_index == 0 and cursor.offset else 0)
        return msgspec.structs.replace(cursor, input_index=cursor.input_index + self.first, record=record)

    def skip(self, skip: Skip) -> Skip:
        """Return a skipped record of the part as one of the corpus."""
        if not self.n_records or skip.path != self.path or skip.record is None:
            return skip
        return msgspec.structs.replace(skip, record=skip.record + self.n_records)


def _between(begin: Cut, end: Cut) -> PartInputs:
    if begin == end:
        return PartInputs(begin.input_index, begin.input_index, 0, None)
    if end.offset:
        return PartInputs(begin.input_index, end.input_index + 1, begin.offset, end.offset)
    return PartInputs(begin.input_index, end.input_index, begin.offset, None)


def _sizes(inputs: Sequence[Input]) -> list[int]:
    for source in inputs:
        if source.size_bytes is None:
            raise UsageError(
                "a pipe cannot be divided into parts: its size is not known, and it is read once",
                where="standard input" if source.path == "-" else source.path,
                allowed="files, and objects whose store says how long they are",
                next_step="save it as a file, or tokenize it in one run",
            )
    return [source.size_bytes or 0 for source in inputs]
