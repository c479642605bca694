"""Where the documents of a part of an input begin and end, and the reading of nothing else.

A part is cut at bytes that nobody looked at. It owns the documents that begin between two of them: from the first place at or
behind its begin where a document begins, up to the first such place at or behind its end, which is where the next part begins.
The reader of the format is given a stream that ends there, so it need not know.

The hard one is a separator that overlaps itself, such as two newlines: in a row of three, which two are the separator depends
on what was found before, all the way back to the beginning of the row. Separators are found from left to right, so the first of
a chain of overlapping occurrences is always one, and a place that no occurrence reaches across is a place to begin from. It is
looked for backwards, a block at a time, however long the row is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tokmill.core.partition import counts_records_from_part
from tokmill.core.records import Batch, Counts, Cursor
from tokmill.read.position import Position
from tokmill.read.stream import open_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokmill.core.config import Content
    from tokmill.core.partition import Part
    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Input

BLOCK_BYTES = 1 << 18
"""Looked at at a time: in a row of separators some fifty bytes of memory for each."""
_FEW = 64
"""Overlapping occurrences that are looked at one by one before a whole block is."""


@dataclass(frozen=True, slots=True)
class InputRange:
    """What a part has of one input, as cursors in it."""

    source: Input
    begin: Cursor
    """Where the first of its documents begins."""
    end: Cursor
    """Where the first document behind them begins: `offset` of text, `record` of tables; behind the input: to its end."""
    separator_bytes: int
    """Of the separator between the last document and `end`; 0 of lines, which have theirs, and at the end of the input."""
    begin_byte: int
    """Of the input as it is stored: reading begins about there."""

    def starts(self, cursor: Cursor) -> Cursor:
        """Where to begin in this input for reading from `cursor` on."""
        return self.begin if (cursor.offset, cursor.record) == (0, 0) else cursor

    def is_over(self, cursor: Cursor) -> bool:
        """Whether nothing of it lies behind a cursor."""
        here, end = (cursor.input_index, cursor.offset, cursor.record), (self.end.input_index, self.end.offset, self.end.record)
        return here >= end if not self.end.offset else here[:2] >= end[:2]

    def stream(self, stream: ByteStream) -> ByteStream:
        """A stream that ends where the last document does."""
        return _Bounded(stream, self.end.offset - self.separator_bytes, self.source) if self.end.offset else stream

    def position(self, start: Cursor) -> Position:
        """How far it was read, with the end of the stretch for the end of the input."""
        return _Within(self, start)

    def nothing(self, start: Cursor) -> Batch:
        """The batch that says that there is nothing, or nothing more."""
        after = self.end
        if after.offset and not after.record:
            after = msgspec.structs.replace(after, record=start.record)
        where = Position(self.source, start.input_index, start).location()
        return Batch(
            index=0,
            documents=[],
            raw=None,
            is_val=None,
            after=after,
            locate=lambda _i: where,
            counts=Counts(),
            position_bytes=self.begin_byte,
        )

    def counted(self, batch: Batch) -> Counts:
        """The counts of a batch, with the separator behind the last document."""
        is_last = batch.after is not None and self.end.offset and batch.after.offset == self.end.offset
        return batch.counts + Counts(bytes_in=self.separator_bytes) if is_last and self.separator_bytes else batch.counts


def find_range(content: Content, part: Part, input_index: int) -> InputRange | None:
    """What a part has of an input; None: all of it. Raises DamagedInputError, ChangedError, BadRecordError."""
    source = content.inputs[input_index]
    begin_byte = part.begin if input_index == 0 else 0
    end_byte = part.end if input_index == len(content.inputs) - 1 else None
    if not begin_byte and end_byte is None:
        return None
    behind = Cursor(input_index=input_index + 1)
    if not counts_records_from_part(source):
        begin, end = _rows(source, content.text_key, [begin_byte, end_byte])
        cursors = [Cursor(input_index=input_index, record=row) if row is not None else behind for row in (begin, end)]
        return InputRange(source, cursors[0], cursors[1], 0, begin_byte)
    is_text = source.format == "text"
    separator = (content.separator or "").encode() if is_text else b"\n"
    begin = first_start(source, separator, begin_byte)
    end = None
    if end_byte is not None and begin is not None:
        end = begin if begin >= end_byte else first_start(source, separator, end_byte)
    cursors = [Cursor(input_index=input_index, offset=place) if place is not None else behind for place in (begin, end)]
    return InputRange(source, cursors[0], cursors[1], len(separator) if is_text and end is not None else 0, begin_byte)


def first_start(source: Input, separator: bytes, at: int) -> int | None:
    """The first place at or behind byte `at` where a document begins; None: there is none."""
    if at <= 0:
        return 0
    n = len(separator)
    offset = _clear_place(source, separator, max(0, at - n))
    stream = open_stream(source)
    try:
        stream.skip(offset)
        tail = b""
        """What was read behind the last separator, as far as one may begin in it; `offset` is where it begins."""
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
    finally:
        stream.close()
    return None


def _clear_place(source: Input, separator: bytes, at: int) -> int:
    """The last place at or before byte `at` that no occurrence of the separator reaches across."""
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
    """The last place x with low < x <= high so that no occurrence of the separator begins before x and ends behind it."""
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
    """Whether the separator stands at each place: shape (len(text) - len(separator) + 1,)."""
    data = np.frombuffer(text, np.uint8)
    n_places = max(0, len(data) - len(separator) + 1)
    found = np.ones(n_places, np.bool_)
    for i, byte in enumerate(separator):
        found &= data[i : i + n_places] == byte
    return found


def _read(source: Input, begin: int, n_bytes: int) -> bytes:
    """Bytes of an input from `begin` on; fewer only at its end."""
    stream = open_stream(source)
    try:
        stream.skip(begin)
        parts = []
        while n_bytes and (data := stream.read(n_bytes)):
            parts.append(data)
            n_bytes -= len(data)
        return b"".join(parts)
    finally:
        stream.close()


def _rows(source: Input, key: str, places: list[int | None]) -> list[int | None]:
    """For each byte of a Parquet file, the rows before the first row group that begins at or behind it; None: none does."""
    from tokmill.read.formats.parquet import stored_groups

    groups = stored_groups(source, key)
    return [
        None if at is None else 0 if not at else next((group.first for group in groups if group.begin_byte >= at), None)
        for at in places
    ]


class _Bounded:
    """A stream that ends before its file does. Implements `protocols.ByteStream`."""

    def __init__(self, stream: ByteStream, end: int, source: Input) -> None:
        self._stream = stream
        self._end = end
        self._source = source
        self.offset = stream.offset

    def read(self, n_bytes: int) -> bytes:
        """See ByteStream."""
        left = self._end - self.offset
        if left > 0:
            data = self._stream.read(min(n_bytes, left))
            self.offset += len(data)
            return data
        # Opening compares size and time, as reading to the end would have done.
        open_stream(self._source).close()
        return b""

    def skip(self, n_bytes: int) -> None:
        """See ByteStream."""
        self._stream.skip(n_bytes)
        self.offset += n_bytes

    def raw_position(self) -> int:
        """See ByteStream."""
        return self._stream.raw_position()

    def close(self) -> None:
        """See ByteStream."""
        self._stream.close()


class _Within(Position):
    """How far a stretch was read."""

    def __init__(self, stretch: InputRange, start: Cursor) -> None:
        super().__init__(stretch.source, start.input_index, start)
        self._stretch_end = stretch.end
        if stretch.end.record:
            self.stop_record = stretch.end.record

    def end(self) -> Cursor:
        """The cursor behind the stretch."""
        end = self._stretch_end
        return msgspec.structs.replace(end, record=self.record) if end.offset else end
