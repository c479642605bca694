"""Ranges of inputs: where the documents of a part of an input begin and end, so that nothing else is read.

A part is cut at bytes that nobody looked at. It owns the documents that begin between two of them: from the first place at or after
its begin where a document begins, up to the first such place at or after its end, which is where the next part begins. The reader
of the format is given a stream that ends there, so it need not know.

A separator that overlaps itself, such as two newlines, makes that place hard to find: in a run of three, which two are the
separator depends on what was found before, all the way back to the beginning of the run. Separators are found from left to right,
so the first of a chain of overlapping occurrences is always one, and a place that no occurrence reaches across is a place to begin
from. It is looked for backwards, a block at a time, however long the run is.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tokmill.core.local_struct import LocalStruct
from tokmill.core.partition import counts_records_from_part
from tokmill.core.records import Batch, Counts, Cursor
from tokmill.read.position import OnePlace, Position
from tokmill.read.stream import BoundedStream, open_stream, read_fully

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokmill.core.partition import Part
    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Input
    from tokmill.read.position import ReadSettings

BLOCK_BYTES = 1 << 18
"""Looked at at a time: in a run of separators some fifty bytes of memory for each."""
FAR = -1
"""A place that was not looked for any further."""
_FEW = 64
"""Overlapping occurrences that are looked at one by one before a whole block is."""


class InputRange(LocalStruct, frozen=True):
    """The documents of one input from `begin` to `end`: all that a reader reads at a time."""

    source: Input
    begin: Cursor
    """Where the first of its documents begins."""
    end: Cursor
    """Where the first document after them begins (`offset` of text, `record` of tables), or the next input."""
    separator_bytes: int = 0
    """Length of the separator before `end`; 0 for lines, which include theirs, and at the end of the input."""
    begin_byte: int = 0
    """Offset in the stored input where reading begins, roughly."""
    until_byte: int | None = None
    """Reading ends after the document that reaches this byte, which is a long one; `end` is then the next input."""

    def first(self, cursor: Cursor) -> Cursor:
        """Return where to begin in this input for reading from `cursor` on, which may lie before the range."""
        return self.begin if (cursor.offset, cursor.record) == (0, 0) or cursor.record < self.begin.record else cursor

    def is_over(self, cursor: Cursor) -> bool:
        """Return whether nothing of the range follows a cursor."""
        if self.is_reached(cursor):
            return True
        here, end = (cursor.input_index, cursor.offset, cursor.record), (self.end.input_index, self.end.offset, self.end.record)
        return here >= end if not self.end.offset else here[:2] >= end[:2]

    def position(self, start: Cursor) -> Position:
        """Return a position in the range."""
        return Position(self.source, start, self.end)

    def bounded(self, stream: ByteStream) -> ByteStream:
        """Return the stream, ended where the last document ends."""
        return BoundedStream(stream, self.end.offset - self.separator_bytes, self.source) if self.end.offset else stream

    def is_reached(self, cursor: Cursor | None) -> bool:
        """Return whether reading that came to a cursor is over, before the end of the input."""
        if self.until_byte is None or cursor is None or cursor.document_offset is not None:
            return False
        return cursor.offset >= self.until_byte

    def counts(self, batch: Batch) -> Counts:
        """Return the counts of a batch, with the separator after the last document."""
        is_last = self.separator_bytes and batch.after is not None and batch.after.offset == self.end.offset
        return batch.counts + Counts(bytes_in=self.separator_bytes) if is_last else batch.counts

    def nothing(self, start: Cursor) -> Batch:
        """Return the batch that says that there is nothing, or nothing more."""
        after = self.end
        if after.offset and not after.record:
            after = msgspec.structs.replace(after, record=start.record)
        where = self.position(start).location()
        return Batch(
            documents=[],
            after=after,
            locate=OnePlace(where),
            counts=Counts(),
            position_bytes=self.begin_byte,
        )


def find_range(settings: ReadSettings, part: Part | None, input_index: int) -> InputRange:
    """Return the range that a part has of an input; None has all of it.

    Raises DamagedInputError, ChangedError, BadRecordError, MemoryBudgetError.
    """
    content = settings.content
    source = content.inputs[input_index]
    next_input = Cursor(input_index=input_index + 1)
    begin_byte = part.begin if part and input_index == 0 else 0
    end_byte = part.end if part and input_index == len(content.inputs) - 1 else None
    if not begin_byte and end_byte is None:
        return InputRange(source, Cursor(input_index=input_index), next_input)
    if not counts_records_from_part(source):
        begin, end = _first_rows(source, settings, [begin_byte, end_byte])
        first, stop = (Cursor(input_index=input_index, record=row) if row is not None else next_input for row in (begin, end))
        return InputRange(source, first, stop, begin_byte=begin_byte)
    is_text = source.format == "text"
    separator = (content.separator or "").encode() if is_text else b"\n"
    # A document that reaches over so many bytes is read piece by piece, alone.
    reach = 2 * settings.batch_bytes + BLOCK_BYTES
    begin = first_start(source, separator, begin_byte, None if end_byte is None else end_byte + reach)
    end, until_byte = None, None
    if begin == FAR:
        return InputRange(source, Cursor(input_index=input_index), Cursor(input_index=input_index), begin_byte=begin_byte)
    if end_byte is not None and begin is not None:
        end = begin if begin >= end_byte else first_start(source, separator, end_byte, end_byte + reach)
        if end == FAR:
            end, until_byte = None, end_byte
    first, stop = (Cursor(input_index=input_index, offset=at) if at is not None else next_input for at in (begin, end))
    n_between = len(separator) if is_text and end is not None else 0
    return InputRange(source, first, stop, n_between, begin_byte, until_byte)


def first_start(source: Input, separator: bytes, at: int, until: int | None = None) -> int | None:
    """Return the first place at or after byte `at` where a document begins; None if there is none.

    until: no more is read than up to this byte, about; `FAR` is returned where the place may be behind it.
    """
    if at <= 0:
        return 0
    n = len(separator)
    offset = _clear_place(source, separator, max(0, at - n))
    with closing(open_stream(source)) as stream:
        stream.skip(offset)
        tail = b""
        """What was read after the last separator, as far as one may begin in it; `offset` is where it begins."""
        while data := stream.read(BLOCK_BYTES):
            text = tail + data
            found = first = text.find(separator)
            if offset + len(text) >= at:
                while 0 <= found < at - n - offset:
                    found = text.find(separator, found + n)
                if found >= 0:
                    return offset + found + n
            rest = len(text) if first < 0 else len(text.split(separator)[-1])
            tail = text[len(text) - min(rest, n - 1) :]
            offset += len(text) - len(tail)
            if until is not None and offset >= until:
                return FAR
    return None


def _clear_place(source: Input, separator: bytes, at: int) -> int:
    """Return the last place at or before byte `at` that no occurrence of the separator reaches across."""
    high, n = at, len(separator)
    while high > 0 and n > 1:
        low = max(0, high - BLOCK_BYTES)
        begin = max(0, low - n + 1)
        text = _read(source, begin, high - 1 + n - begin)
        place = last_clear(text, separator, low - begin, high - begin)
        if place is not None:
            return begin + place
        high = low
    return high


def last_clear(text: bytes, separator: bytes, low: int, high: int) -> int | None:
    """Return the last x with low < x <= high that no occurrence of the separator reaches across; None if there is none."""
    n, x = len(separator), high
    for _ in range(_FEW):
        if x <= low:
            return None
        found = text.rfind(separator, max(0, x - n + 1), x - 1 + n)
        if found < 0:
            return x
        x = found
    sums = np.concatenate([[0], np.cumsum(_occurrences(text, separator), dtype=np.int32)])
    places = np.arange(low + 1, x + 1)
    ends = np.minimum(places, len(sums) - 1)
    clear = np.flatnonzero(sums[ends] == sums[np.minimum(np.maximum(0, places - n + 1), ends)])
    return int(places[clear[-1]]) if len(clear) else None


def _occurrences(text: bytes, separator: bytes) -> NDArray[np.bool_]:
    """Return whether the separator stands at each place: shape (len(text) - len(separator) + 1,)."""
    data = np.frombuffer(text, np.uint8)
    n_places = max(0, len(data) - len(separator) + 1)
    found = np.ones(n_places, np.bool_)
    for i, byte in enumerate(separator):
        found &= data[i : i + n_places] == byte
    return found


def _read(source: Input, begin: int, n_bytes: int) -> bytes:
    """Return bytes of an input from `begin` on, fewer only at its end."""
    with closing(open_stream(source)) as stream:
        stream.skip(begin)
        return read_fully(stream, n_bytes)


def _first_rows(source: Input, settings: ReadSettings, places: list[int | None]) -> list[int | None]:
    """Return for each byte of a Parquet file the first row of the first row group that begins there or later; None if none does."""
    from tokmill.read.formats.parquet import stored_groups

    groups = stored_groups(source, settings)
    return [
        None if at is None else 0 if not at else next((group.first for group in groups if group.begin_byte >= at), None)
        for at in places
    ]
