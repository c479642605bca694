"""JSON lines: one object a line, its text under one key. Blank lines are no records.

A window of lines is decoded in one go by msgspec, which builds only the one string. Where that fails, each line is looked at by
itself, and what msgspec rejects is parsed by the standard library, which says why. Both ways must agree on every line, or the
result would depend on where a window ends: so each line is decoded alone. Decoding a window as a stream of values would accept two
objects on a line, or one object on two lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.records import Batch, Counts
from tokmill.read.json_record import NOT_PLAIN, NotARecordError, RecordParser
from tokmill.read.position import FormatReader
from tokmill.read.row_batcher import RowBatcher
from tokmill.read.splitter import RecordSplitter
from tokmill.read.utf8 import first_invalid, foreign, json_array

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Cursor, Location
    from tokmill.read.position import Position, ReadSettings
    from tokmill.read.splitter import Records


class JsonLinesReader(FormatReader["ByteStream"]):
    """The reader of one file."""

    def __init__(self, stream: ByteStream, position: Position, settings: ReadSettings) -> None:
        """See FormatReader."""
        super().__init__(stream, position, settings)
        self._splitter = RecordSplitter(stream, b"\n", settings.batch_bytes, settings.max_documents, prefer="views")
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
            texts = self._fast(lines)
            if texts is None:
                self._add(lines.records)
            locate = self._position.locator(lines.records, 1)
            # The end of the file ends a line only if something stands before it.
            n_lines = len(lines.records) - (lines.at_end and not lines.records[-1])
            after = self._consume(lines.raw, n_lines, at_end=lines.at_end)
            if texts is None:
                yield from self._batcher.take(after)
            else:
                yield self._batch(texts, locate, after)
            goes_on = not lines.at_end

    def _fast(self, lines: Records) -> list[bytes] | None:
        """Return the texts of all lines, decoded in one go; None if one of them is no plain record."""
        # The file's last line is empty where the file ends with a newline, as it should.
        filled = lines.records if lines.records[-1] else lines.records[:-1]
        try:
            return self._parser.texts(filled) if first_invalid(lines.raw) is None else None
        except NOT_PLAIN:
            return None

    def _add(self, lines: Sequence[bytes | memoryview]) -> None:
        """Add lines to the batcher one by one. Raises BadRecordError."""
        offset, policy = self._position.offset, self._settings.content.encoding_errors
        for record, line in enumerate(map(bytes, lines), self._position.record):
            if line and not line.isspace():
                try:
                    text, n_invalid = self._parser.parse(line, policy, at_start=offset == 0)
                except NotARecordError as bad:
                    self._batcher.reject(bad, record, offset)
                else:
                    self._batcher.add(text, record, offset, is_valid=True, n_invalid=n_invalid)
            offset += len(line) + 1

    def _long_line(self) -> Generator[Batch, None, bool]:
        """Yield the batches of a line that does not fit the window; return whether the file goes on after it."""
        held = self._splitter.open_long()
        while not held.complete and held.n_known <= self._settings.most_bytes:
            held.grow()
        if len(held.buffer) > self._settings.most_bytes:
            raise self._settings.too_long("a line", self._position.location(), len(held.buffer) if held.complete else None)
        line = held.take(len(held.buffer))
        self._add([line])
        goes_on = self._splitter.close_long(held)
        self._consume(line, 1, at_end=not goes_on)
        del line
        after = self._consume(b"\n" if goes_on else b"", 0, at_end=not goes_on)
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
        found = foreign(head) or json_array(head)
        if found is not None:
            what, next_step = found
            bad = NotARecordError("invalid_utf8", f"this is not JSON lines: it begins like {what}", next_step)
            raise bad.file_error(self._position.location(), self._allowed)
