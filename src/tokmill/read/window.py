"""A window that moves over a stream and cuts it at a separator, exactly as `bytes.split` would cut the whole stream.

What lies behind the last separator is kept and put before the next read, so a separator that two reads share is found, and
found leftmost. Two ways out: `split` hands over all that is whole in one read, with no Python for each document; when the
window is full and holds no separator, `open_large` gives access to the one long document by a buffer that grows and shrinks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokmill.protocols import ByteStream


_PATIENCE_S = 0.5
"""A window that takes longer to fill is handed on as it is."""


@dataclass(frozen=True, slots=True)
class Split:
    """What lay between separators."""

    records: list[bytes]
    raw: memoryview
    """The bytes that were consumed, separators included."""
    at_end: bool
    """The last record ends with the stream and not with a separator."""


class Window:
    """Splits one stream."""

    def __init__(self, stream: ByteStream, separator: bytes | None, window_bytes: int, max_records: int) -> None:
        """Separator None: the stream is one record."""
        self._stream = stream
        self._separator = separator
        self._splitter = None if separator is None else _Splitter(separator)
        self._window_bytes = window_bytes
        self._max_records = max_records
        self._tail = b""
        self._holds_more = False
        self._ended = False

    def split(self) -> Split | None:
        """The next records; None when the next one is longer than the window. Not to be called behind `at_end`."""
        if self._holds_more and (split := self._split()):
            return split
        self._fill()
        return self._split()

    def head(self) -> bytes:
        """The first bytes that are to come, without consuming them."""
        self._fill()
        self._holds_more = True
        return self._tail[:16]

    def open_large(self) -> LargeRecord:
        """The next record, piece by piece. When it is complete, `close_large` goes on behind it."""
        record = LargeRecord(self._stream, self._separator, self._tail, self._window_bytes, ended=self._ended)
        self._tail = b""
        return record

    def close_large(self, record: LargeRecord) -> bool:
        """Go on behind a complete record; whether the stream goes on behind it too."""
        self._tail = record.behind
        self._ended = record.ended
        self._holds_more = True
        return record.has_separator

    def _split(self) -> Split | None:
        data = self._tail
        records = [data] if self._splitter is None else self._splitter.split(data, self._max_records)
        self._tail = records.pop()
        self._holds_more = len(records) == self._max_records
        at_end = self._ended and not self._holds_more
        if at_end:
            records.append(self._tail)
            self._tail = b""
        if not records:
            return None
        return Split(records, memoryview(data)[: len(data) - len(self._tail)], at_end)

    def _fill(self) -> None:
        parts = [self._tail]
        began_s = time.monotonic()
        n_missing = self._window_bytes - len(self._tail)
        while n_missing > 0 and not self._ended:
            parts.append(self._stream.read(n_missing))
            n_missing -= len(parts[-1])
            self._ended = not parts[-1]
            if time.monotonic() - began_s > _PATIENCE_S and self._separator and self._separator in parts[-1]:
                # A slow pipe: what it has brought is handed on, so that it can be committed.
                break
        self._tail = b"".join(parts)


class _Splitter:
    """`bytes.split`, three times as fast where one byte of the separator is rare in the text.

    CPython looks for `<|endoftext|>` at 2.4 GB/s, because most of its letters are common, and for a single byte at 15.
    """

    _SPARSE = 256
    """Bytes of text for each occurrence of the rare byte below which looking at each takes longer than `bytes.split`."""

    def __init__(self, separator: bytes) -> None:
        self._separator = separator
        self._rare = b""
        self._rare_at = 0

    def split(self, data: bytes, most: int) -> list[bytes]:
        """`data.split(separator, most)`."""
        if len(self._separator) == 1:
            return data.split(self._separator, most)
        if not self._rare:
            self._choose(data)
        return self._split_sparse(data, most) or data.split(self._separator, most)

    def _choose(self, data: bytes) -> None:
        counts = [data.count(byte) for byte in self._separator]
        self._rare_at = counts.index(min(counts))
        self._rare = self._separator[self._rare_at : self._rare_at + 1]

    def _split_sparse(self, data: bytes, most: int) -> list[bytes] | None:
        """None where the rare byte is not rare."""
        separator, rare, rare_at = self._separator, self._rare, self._rare_at
        budget = len(data) // self._SPARSE + 16
        records: list[bytes] = []
        begin = 0
        at = data.find(rare, rare_at)
        while at >= 0 and len(records) < most:
            if data.startswith(separator, at - rare_at):
                records.append(data[begin : at - rare_at])
                begin = at - rare_at + len(separator)
                at = data.find(rare, begin + rare_at)
            else:
                at = data.find(rare, at + 1)
            budget -= 1
            if not budget:
                return None
        records.append(data[begin:])
        return records


class LargeRecord:
    """One record that does not fit into a window. `buffer` is what was read of it and not taken yet."""

    def __init__(self, stream: ByteStream, separator: bytes | None, head: bytes, step_bytes: int, *, ended: bool) -> None:
        self.buffer = bytearray(head)
        self.behind = b""
        """What was read behind the record."""
        self.ended = ended
        """The stream has been read to its end."""
        self.has_separator = False
        """The record is complete and a separator stands behind it."""
        self._stream = stream
        self._separator = separator
        self._step_bytes = step_bytes
        self._find(0)

    @property
    def complete(self) -> bool:
        """The buffer holds the record's last byte."""
        return self.has_separator or self.ended

    @property
    def n_known(self) -> int:
        """Bytes of the buffer that certainly belong to the record: its end may be the beginning of a separator."""
        if self.complete or self._separator is None:
            return len(self.buffer)
        return max(0, len(self.buffer) - len(self._separator) + 1)

    def grow(self) -> None:
        """Read on; the buffer never holds anything that lies behind the record."""
        n_before = len(self.buffer)
        data = self._stream.read(self._step_bytes)
        self.buffer += data
        self.ended = not data
        self._find(n_before)

    def take(self, n_bytes: int) -> bytes:
        """Take bytes from the front."""
        taken = bytes(memoryview(self.buffer)[:n_bytes])
        del self.buffer[:n_bytes]
        return taken

    def _find(self, n_searched: int) -> None:
        separator = self._separator
        if separator is None:
            return
        at = self.buffer.find(separator, max(0, n_searched - len(separator) + 1))
        if at >= 0:
            self.has_separator = True
            self.behind = bytes(memoryview(self.buffer)[at + len(separator) :])
            del self.buffer[at:]
