"""Splitting a stream at a separator, exactly as `bytes.split` would split all of it.

A window of bytes moves over the stream. What follows its last separator is put before the next read, so a separator that two reads
share is found, and the leftmost one. There are two ways out: `split` returns all whole records of a window; where the window is
full and holds no separator, `open_long` gives access to the one long record by a buffer that grows and shrinks.

How records are returned is a question of speed alone. A list of bytes suits any separator. A `DocumentBuffer` needs no Python
object for a document: the window as it is, with the places of the records beside it, so empty records go at the speed of reading.
"""

from __future__ import annotations

import time
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tokmill.core.documents import DocumentBuffer, overlaps_itself
from tokmill.core.local_struct import LocalStruct
from tokmill.read.long_documents import LongDocument
from tokmill.read.utf8 import HEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tokmill.core.protocols import ByteStream

_LONGEST_SEPARATOR = 16
"""Bytes of a separator that is looked for byte by byte; for longer ones `bytes.split` is faster."""
_RARE = 1400
"""A byte that is rarer than one in so many is looked for by itself."""
_PATIENCE_S = 0.5
"""A window that takes longer to fill is returned as it is."""


def most_documents(batch_bytes: int) -> int:
    """Return how many documents a batch of so many bytes may have."""
    return max(1024, batch_bytes // 32)


class Records(LocalStruct, frozen=True):
    """What lay between separators."""

    records: Any
    """`bytes`, as a list or a `DocumentBuffer`."""
    raw: memoryview
    """The bytes that were consumed, separators included."""
    at_end: bool
    """The last record ends with the stream and not with a separator."""


class RecordSplitter:
    """The records of one stream."""

    def __init__(
        self,
        stream: ByteStream,
        separator: bytes | None,
        window_bytes: int,
        max_records: int,
        *,
        prefer: Literal["lists", "buffers"] = "lists",
        may_gather: Callable[[int, int], bool] | None = None,
    ) -> None:
        """Begin where the stream is.

        separator: None makes the stream one record. prefer: the form of records, where possible. may_gather: see ReadSettings.
        """
        self._stream = stream
        self._separator = separator
        self._finder = _Finder(separator) if separator and prefer == "buffers" and _is_fit(separator) else None
        self._window_bytes = window_bytes
        self._max_records = max_records
        self._may_gather = may_gather
        self._ready: deque[Records] = deque()
        """What was found in the window and is to be returned before it moves on."""
        self._tail = b""
        """What was read and is not returned, up to its last separator where one was found."""
        self._rest = b""
        """What was read after that."""
        self._holds_more = False
        self._ended = False

    def split(self) -> Records | None:
        """Return the next records; None if the next one is longer than the window. Must not be called after `at_end`."""
        if self._ready:
            return self._ready.popleft()
        if self._holds_more and (found := self._split()):
            return found
        self._fill()
        return self._split()

    def head(self) -> bytes:
        """Return the first bytes that are to come, without consuming them."""
        self._fill()
        self._holds_more = True
        return (self._tail + self._rest)[:HEAD_BYTES] if len(self._tail) < HEAD_BYTES else self._tail[:HEAD_BYTES]

    def open_long(self) -> LongRecord:
        """Open the next record, to be read piece by piece. Once it is complete, `close_long` goes on after it."""
        record = LongRecord(self._stream, self._separator, self._tail + self._rest, self._window_bytes, ended=self._ended)
        self._tail = self._rest = b""
        return record

    def close_long(self, record: LongRecord) -> bool:
        """Go on after a complete record; return whether the stream goes on after it too."""
        self._tail = record.following
        self._ended = record.ended
        self._holds_more = True
        return record.has_separator

    def _most(self, n_bytes: int, n_records: int) -> int:
        """Return how many records may be returned together, of so many in a window."""
        if self._may_gather is None or not self._may_gather(n_bytes, n_records):
            return self._max_records
        return max(self._max_records, most_documents(self._window_bytes))

    def _split(self) -> Records | None:
        return self._split_list() if self._finder is None else self._split_buffer(self._finder)

    def _split_list(self) -> Records | None:
        data = self._tail
        most = self._most(len(data), len(data) + 1)
        records = [data] if self._separator is None else data.split(self._separator, most)
        self._tail = records.pop()
        self._holds_more = len(records) == most
        at_end = self._ended and not self._holds_more
        if at_end:
            records.append(self._tail)
            self._tail = b""
        if not records:
            return None
        return Records(records, memoryview(data)[: len(data) - len(self._tail)], at_end)

    def _split_buffer(self, finder: _Finder) -> Records | None:
        data, separator = self._tail, finder.separator
        ends = finder.find(data)
        starts = np.empty(len(ends) + 1, np.int64)
        starts[0] = 0
        np.add(ends, len(separator), out=starts[1:])
        n_consumed = int(starts[-1])
        self._holds_more = False
        if self._ended:
            ends, n_consumed = np.append(ends, len(data)), len(data)
        elif not n_consumed:
            return None
        self._tail, self._rest = data[n_consumed:] + self._rest, b""
        starts = starts[: len(ends)]
        begin, byte, most = 0, 0, self._most(n_consumed, len(ends))
        for end in [*range(most, len(ends), most), len(ends)]:
            after = int(starts[end]) if end < len(starts) else n_consumed
            # Without a copy where the window is one portion and nothing is left over, as after `_fill`.
            part = data[byte:after]
            records = DocumentBuffer(part, starts[begin:end] - byte, ends[begin:end] - byte, separator)
            self._ready.append(Records(records, memoryview(part), at_end=self._ended and end == len(ends)))
            begin, byte = end, after
        return self._ready.popleft()

    def _fill(self) -> None:
        parts: list[bytes | memoryview] = [self._tail, self._rest]
        began_s = time.monotonic()
        n_missing = self._window_bytes - len(self._tail) - len(self._rest)
        while n_missing > 0 and not self._ended:
            data = self._stream.read(n_missing)
            parts.append(data)
            n_missing -= len(data)
            self._ended = not data
            if time.monotonic() - began_s > _PATIENCE_S and self._separator and self._separator in b"".join(parts):
                # A slow pipe: what it has brought is returned, so that it can be committed.
                break
        self._rest = b""
        last = parts[-1]
        if self._finder is not None and isinstance(last, bytes):
            n = last.rfind(self._finder.separator) + len(self._finder.separator)
            if n >= len(self._finder.separator):
                # The window is made to end with a separator, so that it can be returned without a copy.
                parts[-1], self._rest = memoryview(last)[:n], last[n:]
        self._tail = b"".join(parts)


_COUNTS: dict[bytes, list[int]] = {}
"""How often each byte of a separator stands in some text."""


class _Finder:
    """The search for a separator that cannot overlap itself, or is one byte again and again.

    It looks for the separator's rarest byte. Where that is rare, `memchr` finds one after the other (20 GB/s and 0.1 us for each);
    elsewhere numpy compares all bytes with it at once: 1.0 ms for 2 MB, where `bytes.find` takes 4.2 for the whole separator.
    """

    def __init__(self, separator: bytes) -> None:
        self.separator = separator
        self._order: list[int] = []
        """Places within the separator, the byte that is rarest in the text first."""
        self._is_rare = True
        self._mask = np.zeros(0, np.bool_)
        """Kept between searches: a new array of 2 MB would have to be mapped each time."""

    def find(self, data: bytes) -> NDArray[np.int64]:
        """Return where the separator begins: int64, shape (n_separators,), ascending."""
        text, separator = np.frombuffer(data, np.uint8), self.separator
        if len(text) < len(separator):
            return np.zeros(0, np.int64)
        if not self._order:
            # Of the first text that this process reads: for each range again, it would take a tenth of the time.
            counts = _COUNTS.setdefault(separator, [data.count(byte) for byte in separator] if separator not in _COUNTS else [])
            self._order = sorted(range(len(counts)), key=counts.__getitem__)
        first, *others = self._order
        places = self._rare(data, first) if self._is_rare else None
        if places is None:
            text_of_first = text[first : len(text) - (len(separator) - 1 - first)]
            if len(self._mask) < len(text):
                self._mask = np.zeros(len(text), np.bool_)
            places = np.flatnonzero(np.equal(text_of_first, separator[first], out=self._mask[: len(text_of_first)]))
        for i in others:
            places = places[text[places + i] == separator[i]]
            if not len(places):
                break
        if len(separator) > 1 and len(set(separator)) == 1 and len(places):
            # In a run of that byte, every n-th place from its beginning.
            is_first = np.diff(places, prepend=-2) != 1
            begins = places[is_first][np.cumsum(is_first) - 1]
            places = places[(places - begins) % len(separator) == 0]
        return places.astype(np.int64, copy=False)

    def _rare(self, data: bytes, first: int) -> NDArray[np.int64] | None:
        """Return where the separator may begin, by its byte number `first`; None if that is too common to look for one by one."""
        byte, end = self.separator[first], len(data) - (len(self.separator) - 1 - first)
        found, most = [], len(data) // _RARE
        at = data.find(byte, first, end)
        while at >= 0:
            found.append(at - first)
            if len(found) > most:
                self._is_rare = False
                return None
            at = data.find(byte, at + 1, end)
        return np.array(found, np.int64)


@cache
def _is_fit(separator: bytes) -> bool:
    """Return whether `_Finder` can look for a separator."""
    return len(separator) <= _LONGEST_SEPARATOR and (len(set(separator)) == 1 or not overlaps_itself(separator))


class LongRecord(LongDocument):
    """A record that does not fit into a window."""

    def __init__(self, stream: ByteStream, separator: bytes | None, head: bytes, step_bytes: int, *, ended: bool) -> None:
        super().__init__(bytearray(head))
        self.following = b""
        """What was read after the record."""
        self.ended = ended
        """The stream has been read to its end."""
        self.has_separator = False
        """The record is complete and a separator follows it."""
        self._stream = stream
        self._separator = separator
        self._step_bytes = step_bytes
        self._find(0)

    @property
    def complete(self) -> bool:
        """See LongDocument."""
        return self.has_separator or self.ended

    @property
    def n_known(self) -> int:
        """See LongDocument: the end of the buffer may be the beginning of a separator."""
        if self.complete or self._separator is None:
            return len(self.buffer)
        return max(0, len(self.buffer) - len(self._separator) + 1)

    def grow(self) -> None:
        """See LongDocument."""
        n_before = len(self.buffer)
        data = self._stream.read(self._step_bytes)
        self.buffer += data
        self.ended = not data
        self._find(n_before)

    def _find(self, n_searched: int) -> None:
        separator = self._separator
        if separator is None:
            return
        at = self.buffer.find(separator, max(0, n_searched - len(separator) + 1))
        if at >= 0:
            self.has_separator = True
            self.following = bytes(memoryview(self.buffer)[at + len(separator) :])
            del self.buffer[at:]
