"""JSON lines: one object a line, its text under one key. Lines of white space are no records.

A window of lines is decoded in one go by msgspec, which builds only the one string; when that fails, line after line is
looked at, and what msgspec refuses is asked of the standard library, which says why. The hard one is that both ways must
agree on every line, or the result would depend on where a window ends: a line counts by itself, never by its neighbours.
Decoding the whole window as a stream of values is refused, since it takes two objects on a line, or one object on two lines,
without complaint.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.records import Batch, Counts
from tokmill.core.system.budget import piece_too_long
from tokmill.read.json_record import NOT_PLAIN, NotARecordError, RecordParser, skip_of
from tokmill.read.line_window import LineSplitter
from tokmill.read.long_documents import long_batches
from tokmill.read.utf8 import damage_hint, first_invalid, foreign

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.errors import BadRecordError
    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Cursor, Location, Skip
    from tokmill.read.line_window import Lines
    from tokmill.read.position import Position, ReadSettings


def read_jsonl(stream: ByteStream, position: Position, settings: ReadSettings, start: Cursor) -> Iterator[Batch]:
    """Batches of one file, from `start` on. `index` is not set.

    Raises DamagedInputError, BadRecordError, MemoryBudgetError, ChangedError.
    """
    position.seek(stream, start)
    return _LinesReader(stream, position, settings).batches()


@dataclass(slots=True)
class _Records:
    """What the lines of a window were."""

    documents: list[bytes] = field(default_factory=list)
    lines: array[int] | range = field(default_factory=lambda: array("Q"))
    """For each document, the index of its line."""
    skips: list[Skip] = field(default_factory=list)
    n_changed: int = 0
    n_invalid: int = 0

    def counts(self, n_bytes: int) -> Counts:
        skipped: dict[str, int] = {}
        for skip in self.skips:
            skipped[skip.reason] = skipped.get(skip.reason, 0) + 1
        return Counts(
            documents=len(self.documents) + len(self.skips),
            bytes_in=n_bytes,
            skipped=skipped,
            invalid_utf8_documents=self.n_changed,
            invalid_utf8_bytes=self.n_invalid,
        )


class _LinesReader:
    """Reads one file."""

    def __init__(self, stream: ByteStream, position: Position, settings: ReadSettings) -> None:
        self._stream = stream
        self._position = position
        self._settings = settings
        self._window = LineSplitter(stream, settings.batch_bytes, settings.max_documents)
        self._parse = RecordParser(settings.content.text_key)

    def batches(self) -> Iterator[Batch]:
        if not self._position.offset:
            self._refuse_foreign()
        goes_on = True
        while goes_on:
            lines = self._window.lines()
            if lines is None:
                goes_on = yield from self._long_line()
                continue
            is_valid = all(first_invalid(part) is None for part in lines.raw)
            records = self._fast(lines.records) if is_valid else None
            if records is None:
                records = self._one_by_one(lines.records)
            yield self._batch(records, lines)
            goes_on = not lines.at_end

    def _fast(self, lines: Sequence[bytes | memoryview]) -> _Records | None:
        """All lines in one go; None when one of them is no plain record."""
        # The file's last line is empty where it ends with a newline, as it should.
        filled = lines if lines[-1] else lines[:-1]
        try:
            texts = self._parse.texts(filled)
        except NOT_PLAIN:
            return None
        return _Records(texts, range(len(texts)))

    def _one_by_one(self, lines: Sequence[bytes | memoryview]) -> _Records:
        records, offset = _Records(lines=array("Q")), self._position.offset
        for i, line in enumerate(map(bytes, lines)):
            if line and not line.isspace():
                self._add(records, line, i, offset)
            offset += len(line) + 1
        return records

    def _add(self, records: _Records, line: bytes, i: int, offset: int) -> None:
        """Parse one line into `records`. Raises BadRecordError if it is none and is not to be skipped."""
        content = self._settings.content
        try:
            text, n_invalid = self._parse.parse(line, content.encoding_errors, at_start=offset == 0)
        except NotARecordError as bad:
            where = self._position.location(offset, self._position.record + i)
            if content.on_error == "stop":
                raise self._bad_record(bad, where) from None
            records.skips.append(skip_of(bad, where, offset, content.text_key))
            return
        records.documents.append(text)
        records.lines.append(i)  # type: ignore[union-attr]
        records.n_changed += n_invalid > 0
        records.n_invalid += n_invalid

    def _batch(self, records: _Records, lines: Lines) -> Batch:
        position, at_end = self._position, lines.at_end
        locate = _locator(position, records.lines, array("Q", map(len, lines.records)))
        # The end of the file ends a line only if something stands before it.
        position.advance(b"", len(lines.records) - (at_end and not lines.records[-1]))
        for part in lines.raw:
            position.advance(part, 0)
        return Batch(
            index=0,
            documents=records.documents,
            raw=None,
            is_val=None,
            after=position.end() if at_end else position.cursor(),
            locate=locate,
            counts=records.counts(lines.n_bytes),
            skips=records.skips,
            position_bytes=self._stream.raw_position(),
        )

    def _long_line(self) -> Generator[Batch, None, bool]:
        """A line that does not fit the window, as batches; whether the file goes on behind it."""
        settings, position = self._settings, self._position
        where = position.location()
        held = self._window.open_long()
        most = max(settings.max_piece_bytes, settings.batch_bytes)
        while not held.complete and held.n_known <= most:
            held.grow()
        if len(held.buffer) > most:
            raise piece_too_long("a line", str(where), most, settings.budget_bytes, len(held.buffer) if held.complete else None)
        line = held.take(len(held.buffer))
        records = self._one_by_one([line])
        after_line = line + b"\n" if held.has_separator else line
        del line
        goes_on = self._window.close_long(held)
        position.advance(after_line, 1)
        counts, after = records.counts(len(after_line)), position.cursor() if goes_on else position.end()
        del after_line
        if records.documents and len(records.documents[0]) > settings.batch_bytes:
            n_read = self._stream.raw_position()
            # Not by a name here, which would hold the text a second time.
            yield from long_batches(records.documents.pop(), settings, where, counts=counts, after=after, position_bytes=n_read)
        else:
            yield Batch(
                index=0,
                documents=records.documents,
                raw=None,
                is_val=None,
                after=after,
                locate=lambda _i: where,
                counts=counts,
                skips=records.skips,
                position_bytes=self._stream.raw_position(),
            )
        return goes_on

    def _refuse_foreign(self) -> None:
        """Raises BadRecordError for a file that begins like something else: a fault of all of it, which no policy skips."""
        found = foreign(self._window.head())
        if found is not None:
            what, next_step = found
            bad = NotARecordError("invalid_utf8", f"this is not JSON lines: it begins like {what}", next_step)
            error = self._bad_record(bad, self._position.location())
            error.next_step = next_step
            raise error

    def _bad_record(self, bad: NotARecordError, where: Location) -> BadRecordError:
        allowed = f'one JSON object a line, with a string under the key "{self._settings.content.text_key}"'
        error = bad.error(where, allowed, "lines")
        if bad.reason == "invalid_utf8":
            error.next_step = f"{error.next_step}{damage_hint(self._position.source.compression)}"
        return error


def _locator(position: Position, lines: array[int] | range, lengths: array[int]) -> Callable[[int], Location]:
    first, offset, location = position.record, position.offset, position.location

    @cache
    def ends() -> NDArray[np.uint64]:
        # Worked out when a place is asked for, as the audit does a few times a batch.
        return np.cumsum(np.frombuffer(lengths, np.uint64))

    def locate(i: int) -> Location:
        line = lines[i]
        before = int(ends()[line - 1]) + line if line else 0
        return location(offset + before, first + line)

    return locate
