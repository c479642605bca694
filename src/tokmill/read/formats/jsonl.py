"""JSON lines: one object a line, its text under one key. Blank lines are no records.

A window of lines is decoded in one go by msgspec, which builds only the one string. Where that fails, each line is looked at by
itself, and what msgspec rejects is parsed by the standard library, which says why. Both ways must agree on every line, or the
result would depend on where a window ends: so each line is decoded alone. Decoding a window as a stream of values would accept two
objects on a line, or one object on two lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.documents import DocumentBuffer
from tokmill.core.records import Batch, Counts
from tokmill.read.json_record import NOT_PLAIN, NotARecordError, RecordParser
from tokmill.read.position import FormatReader, Places
from tokmill.read.row_batcher import RowBatcher
from tokmill.read.splitter import RecordSplitter
from tokmill.read.utf8 import first_invalid, foreign, json_array

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Cursor, Location
    from tokmill.read.position import Position, ReadSettings
    from tokmill.read.splitter import LongRecord

_IS_SPACE = np.isin(np.arange(256), list(b"\t\n\x0b\x0c\r "))
_LONG_BYTES = 1 << 10
"""Views are made of lines of at least so many bytes on average, which saves a copy of each (2 kB: 10 % of the time of reading)."""

_MOST_LINES = 4
"""Lines for each that is not blank, up to which splitting all is faster than slicing."""


class JsonLinesReader(FormatReader["ByteStream"]):
    """The reader of one file."""

    def __init__(self, stream: ByteStream, position: Position, settings: ReadSettings) -> None:
        """See FormatReader."""
        super().__init__(stream, position, settings)
        self._splitter = RecordSplitter(
            stream,
            b"\n",
            settings.batch_bytes,
            settings.max_documents,
            prefer="buffers",
            may_gather=settings.may_gather,
        )
        self._parser = RecordParser(settings.content.text_key)
        self._allowed = f'one JSON object a line, with a string under the key "{settings.content.text_key}"'
        self._batcher = RowBatcher(position, settings, stream.raw_position, allowed=self._allowed, records="lines")

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """See FormatReader."""
        self._position.seek(self._stream, start)
        if not self._position.offset:
            self._check_kind()
        goes_on = True
        while goes_on:
            lines = self._splitter.split()
            if lines is None:
                goes_on = yield from self._long_line()
                continue
            filled, numbers = _filled(lines.records)
            texts = self._fast(filled, lines.raw)
            if texts is None:
                self._add(filled, numbers, lines.records.starts)
            where = self._position.location()
            offsets = lines.records.starts + self._position.offset
            # The end of the file ends a line only if something stands before it.
            n_lines = len(lines.records) - (lines.at_end and int(lines.records.ends[-1]) == int(lines.records.starts[-1]))
            after = self._consume(lines.raw, n_lines, at_end=lines.at_end)
            if texts is None:
                yield from self._batcher.take(after)
            else:
                yield self._batch(texts, Places(where, numbers, offsets[numbers]), after)
            goes_on = not lines.at_end

    def _fast(self, lines: Sequence[bytes | memoryview], raw: memoryview) -> list[bytes] | None:
        """Return the texts of all lines, decoded in one go; None if one of them is no plain record."""
        try:
            return self._parser.texts(lines) if first_invalid(raw) is None else None
        except NOT_PLAIN:
            return None

    def _add(
        self, lines: Sequence[bytes | memoryview], numbers: Sequence[int] | NDArray[np.intp], starts: NDArray[np.int64]
    ) -> None:
        """Add lines to the batcher one by one. numbers: of each among all lines of the window, of which `starts` has the places.

        Raises BadRecordError.
        """
        position, policy = self._position, self._settings.content.encoding_errors
        for number, line in zip(map(int, numbers), map(bytes, lines), strict=True):
            record, offset = position.record + number, position.offset + int(starts[number])
            try:
                text, n_invalid = self._parser.parse(
                    line, policy, at_start=offset == 0, is_long=len(line) > self._settings.most_bytes
                )
            except NotARecordError as bad:
                self._batcher.reject(bad, record, offset)
            else:
                self._batcher.add(text, record, offset, is_valid=True, n_invalid=n_invalid)

    def _long_line(self) -> Generator[Batch, None, bool]:
        """Yield the batches of a line that does not fit the window; return whether the file goes on after it."""
        held = self._splitter.open_long()
        most, position = self._settings.most_record_bytes, self._position
        skips = self._settings.skips_long(position, position.record, is_longer=False)
        while not skips and not held.complete and held.n_known <= most:
            self._settings.hold(None)
            held.grow()
        if skips or len(held.buffer) > most:
            return (yield from self._too_long_line(held))
        line = held.take(len(held.buffer))
        self._add([] if line.isspace() else [line], [] if line.isspace() else [0], np.zeros(1, np.int64))
        goes_on = self._splitter.close_long(held)
        self._consume(line, 1, at_end=not goes_on)
        del line
        after = self._consume(b"\n" if goes_on else b"", 0, at_end=not goes_on)
        yield from self._batcher.take(after)
        return goes_on

    def _too_long_line(self, held: LongRecord) -> Generator[Batch, None, bool]:
        """Read past a line that is too long, and skip it. Raises MemoryBudgetError if that is not the policy."""
        where, settings = self._position.location(), self._settings
        if settings.skips_long(self._position, self._position.record, is_longer=True) is None:
            raise settings.too_long("a line", where, len(held.buffer) if held.complete else None, is_record=True)
        while True:
            with memoryview(held.buffer) as view:
                self._consume(view, 0, at_end=False)
            held.buffer.clear()
            if held.complete:
                break
            held.grow()
        bad = NotARecordError("too_long", f"the line is longer than {settings.most_record_bytes:,} bytes", "raise --memory")
        self._batcher.reject(bad, self._position.record, where.offset)
        goes_on = self._splitter.close_long(held)
        after = self._consume(b"\n" if goes_on else b"", 1, at_end=not goes_on)
        yield from self._batcher.take(after)
        return goes_on

    def _consume(self, raw: bytes | memoryview, n_lines: int, *, at_end: bool) -> Cursor:
        """Consume bytes of the file; return the cursor after them."""
        self._position.advance(raw, n_lines)
        self._batcher.count(len(raw))
        return self._position.end() if at_end else self._position.cursor()

    def _batch(self, texts: list[bytes], locate: Callable[[int], Location], after: Cursor) -> Batch:
        return Batch(
            documents=texts,
            after=after,
            locate=locate,
            counts=Counts(documents=len(texts), bytes_in=self._batcher.uncount()),
            position_bytes=self._stream.raw_position(),
        )

    def _check_kind(self) -> None:
        """Raise BadRecordError for a file that begins like something else: a fault of all of it, which no policy skips."""
        head = self._splitter.head()
        for reason, found in (
            (
                "invalid_utf8",
                foreign(head, compression=self._position.source.compression, is_piped=self._position.source.size_bytes is None),
            ),
            ("invalid_json", json_array(head, self._position.source.compression)),
        ):
            if found is None:
                continue
            what, next_step = found
            bad = NotARecordError(reason, f"this is not JSON lines: it begins like {what}", next_step)
            raise bad.file_error(self._position.location(), self._allowed)


def _filled(lines: DocumentBuffer) -> tuple[Sequence[bytes | memoryview], Sequence[int] | NDArray[np.intp]]:
    """Return the lines that are not blank, as views where they are long or few, and the number of each among all."""
    filled, numbers = lines.without_empty()
    text = np.frombuffer(filled.data, np.uint8)
    if len(filled) and (_IS_SPACE[text[filled.starts]]).any():
        n_before = np.zeros(len(text) + 1, np.int32)
        np.cumsum(~_IS_SPACE[text], out=n_before[1:])
        kept = np.flatnonzero(n_before[filled.ends] > n_before[filled.starts])
        numbers = kept if isinstance(numbers, range) else np.asarray(numbers)[kept]
        filled = DocumentBuffer(filled.data, filled.starts[kept], filled.ends[kept], b"")
    is_dense = len(filled) * _MOST_LINES >= len(lines)
    if is_dense and len(filled.data) < _LONG_BYTES * len(filled):
        return list(filled), numbers
    view = memoryview(filled.data)
    return [view[begin:end] for begin, end in zip(filled.starts.tolist(), filled.ends.tolist(), strict=True)], numbers
