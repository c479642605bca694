"""How a corpus is cut into ranges, each read by one worker: some megabytes of a file, or some files."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.partition import Part, counts_records_from_part, divisible_inputs
from tokmill.core.records import Cursor
from tokmill.run.worker import Range

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokmill.core.config import Content

_MOST_INPUTS = 1024


class Ranges:
    """The ranges of a job's inputs, or of those that a part has of them, from a cursor on."""

    def __init__(
        self,
        content: Content,
        start: Cursor,
        wanted_bytes: int,
        first_number: int = 0,
        *,
        one_by_one: bool = False,
        n_left: int | None = None,
    ) -> None:
        """wanted_bytes: of each, where the input can be cut there; larger where it cannot. first_number: of the first range; 0: the
        run begins with it. one_by_one, n_left: see Range; n_left where the first begins.
        """
        self._one_by_one, self._n_left = one_by_one, n_left
        self.wanted_bytes = wanted_bytes
        self._first_number = first_number
        self._inputs = content.inputs
        self._start = start
        self._whole = content.part if isinstance(content.part, Part) else None
        self._is_divisible = divisible_inputs(self._inputs, content.separator)
        sizes = [source.size_bytes or 0 for source in self._inputs]
        self._befores = [0, *accumulate(sizes)]

    def position(self, wanted: Range, position_bytes: int) -> int:
        """Return the bytes on disk before a place in the corpus, or in the part, from those within a range."""
        before = self._whole.begin if self._whole else 0
        return self._befores[wanted.first] + wanted.part.begin - before + position_bytes

    def __iter__(self) -> Iterator[Range]:
        """Yield the ranges in the order of the corpus.

        Where a cursor counts the records of the whole input, the byte is not known: each range of it begins there or later.
        """
        start = msgspec.structs.replace(self._start, input_index=0)
        for number, (first, stop, begin, end) in enumerate(self._places(), self._first_number):
            part = Part(index=0, count=1, plan="", begin=begin, end=end)
            if first > self._start.input_index or (number > self._first_number and counts_records_from_part(self._inputs[first])):
                start = Cursor()
            n_left = self._n_left if number == self._first_number else None
            yield Range(number, first, self._inputs[first:stop], part, start, number == 0, self._one_by_one, n_left)

    def _places(self) -> Iterator[tuple[int, int, int, int | None]]:
        """Yield the inputs from `first` to `stop`, the byte at which the first begins, and the byte at which the last ends."""
        i, n = self._start.input_index, len(self._inputs)
        begin = self._whole.begin if self._whole and not (i or self._start.offset) else 0
        at = begin or (self._start.offset if i < n and self._may_cut(i) else 0)
        while i < n:
            stop, n_bytes = i, -at
            while stop < n and stop - i < _MOST_INPUTS and n_bytes < self.wanted_bytes and (stop == i or not self._may_cut(stop)):
                n_bytes += self._inputs[stop].size_bytes or 0
                stop += 1
            last_end = self._whole.end if self._whole and stop == n else None
            if stop > i + 1 or not self._may_cut(i):
                yield i, stop, begin, last_end
            else:
                end = last_end or self._inputs[i].size_bytes or 0
                while at + 2 * self.wanted_bytes <= end:
                    at += self.wanted_bytes
                    yield i, stop, begin, at
                    begin = at
                yield i, stop, begin, last_end
            i, begin, at = stop, 0, 0

    def _may_cut(self, i: int) -> bool:
        """Return whether an input is worth cutting and can be."""
        return (self._inputs[i].size_bytes or 0) >= 2 * self.wanted_bytes and self._is_divisible(i)
