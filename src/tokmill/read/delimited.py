"""Tables as text (CSV, TSV) with a header, parsed by Python's csv module; the text is what stands in one column.

Quoted fields may hold newlines and delimiters; a quote inside is doubled (RFC 4180), in TSV too. The hard ones are memory and
places: a quote that is never closed makes one record of all the rest, so a record is only followed as far as the budget allows, and
named by where it begins. A row with more or fewer fields than the header is refused: it is what is left of a broken quote. Empty
lines are no rows. A parser that reads blocks in parallel (pyarrow.csv) was refused: it cannot say at which byte a row begins.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tokmill.errors import DamagedInputError
from tokmill.memory import piece_too_long
from tokmill.read.record import NotARecordError
from tokmill.read.rows import Rows
from tokmill.read.utf8 import foreign

if TYPE_CHECKING:
    from tokmill.protocols import ByteStream
    from tokmill.read.position import Position, Settings
    from tokmill.types import Batch, Cursor

_READ_BYTES = 256 << 10
_MOST_HEADER_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_MOST_NAMES = 8
"""Columns named in a message."""


def read_csv(stream: ByteStream, position: Position, settings: Settings, start: Cursor) -> Iterator[Batch]:
    """Batches of one file, from `start` on. `index` is not set.

    Raises DamagedInputError, BadRecordError, MemoryBudgetError, ChangedError.
    """
    return _TableReader(stream, position, settings, ",").batches(start)


def read_tsv(stream: ByteStream, position: Position, settings: Settings, start: Cursor) -> Iterator[Batch]:
    """The same, with tabs between the fields."""
    return _TableReader(stream, position, settings, "\t").batches(start)


class _TableReader:
    """Reads one file."""

    def __init__(self, stream: ByteStream, position: Position, settings: Settings, delimiter: str) -> None:
        self._stream = stream
        self._position = position
        self._settings = settings
        self._delimiter = delimiter
        key = settings.content.text_key
        allowed = f'rows with as many fields as the header, one of them "{key}"'
        self._rows = Rows(position, settings, stream.raw_position, allowed=allowed, records="rows")

    def batches(self, start: Cursor) -> Iterator[Batch]:
        header = _Lines(self._stream, _MOST_HEADER_BYTES, self._header_too_long)
        columns = self._columns(header)
        stream = _Rewound(self._stream, header.taken)
        self._position.seek(stream, start)
        lines = _Lines(stream, max(self._settings.max_piece_bytes, self._settings.batch_bytes), self._row_too_long)
        if not start.offset:
            # The header again, consumed this time.
            for _ in self._parsed(lines):
                self._consume(lines, 0)
                break
        if columns is not None:
            yield from self._data(lines, columns)
        yield from self._rows.take(self._position.end())

    def _data(self, lines: _Lines, columns: list[str]) -> Iterator[Batch]:
        at = columns.index(self._settings.content.text_key)
        for fields in self._parsed(lines):
            self._row(fields, lines, at, len(columns))
            self._consume(lines, 1)
            if self._rows.is_full or self._rows.holds_long:
                yield from self._rows.take(self._position.cursor())
        # Empty lines behind the last row.
        self._consume(lines, 0)

    def _columns(self, header: _Lines) -> list[str] | None:
        """The names in the header; None of an empty file. Raises BadRecordError."""
        key = self._settings.content.text_key
        fields = next(self._parsed(header), None)
        found = foreign(header.taken)
        if found is not None:
            what, next_step = found
            raise self._refused(NotARecordError("invalid_csv", f"this is not a table: it begins like {what}", next_step))
        if isinstance(fields, csv.Error):
            raise self._refused(NotARecordError("invalid_csv", f"the header cannot be read: {fields}", "mend the file"))
        if fields is not None and fields.count(key) != 1:
            names = ", ".join(_shown(name) for name in fields[:_MOST_NAMES])
            more = f" and {len(fields) - _MOST_NAMES} more" if len(fields) > _MOST_NAMES else ""
            how = "no column" if key not in fields else "more than one column"
            what = f"the header has {how} {_shown(key)}; columns there: {names}{more}"
            raise self._refused(NotARecordError("missing_text", what, "pass --text-key COLUMN"))
        return fields

    def _refused(self, bad: NotARecordError) -> Exception:
        """A fault of the whole file, which no policy skips."""
        error = bad.error(self._position.location(0, 0), "a header with one column of that name", "rows")
        error.next_step = bad.next_step
        return error

    def _parsed(self, lines: _Lines) -> Iterator[list[str] | csv.Error]:
        """The fields of each row; or what is wrong with it, after which the next line begins a row."""
        if csv.field_size_limit() < sys.maxsize:
            # Of the whole process; records are bounded by `_Lines`.
            csv.field_size_limit(sys.maxsize)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield error
            else:
                if fields:
                    yield fields

    def _row(self, fields: list[str] | csv.Error, lines: _Lines, at: int, n_columns: int) -> None:
        record, offset = self._position.record, self._position.offset + lines.n_blank
        if isinstance(fields, csv.Error):
            what = f"the row is not {self._name()}: {fields}"
            bad = NotARecordError("invalid_csv", what, "mend the row (a quote inside a quoted field is doubled)")
            self._rows.refuse(bad, record, offset)
        elif len(fields) != n_columns:
            what = f"the row has {len(fields)} fields, the header {n_columns}"
            bad = NotARecordError("invalid_csv", what, "mend the row (a field with a delimiter or a newline is quoted)")
            self._rows.refuse(bad, record, offset)
        else:
            text = fields[at].encode("utf-8", "surrogateescape")
            self._rows.add(text, record, offset, is_valid=lines.is_valid)

    def _name(self) -> str:
        return "CSV" if self._delimiter == "," else "TSV"

    def _consume(self, lines: _Lines, n_rows: int) -> None:
        consumed = lines.take()
        self._position.advance(consumed, n_rows)
        self._rows.count(len(consumed))

    def _row_too_long(self, most: int) -> Exception:
        where = self._position.location()
        return piece_too_long("a row (perhaps a quote is never closed)", str(where), most, self._settings.budget_bytes, None)

    def _header_too_long(self, most: int) -> Exception:
        return DamagedInputError(
            f"the header is longer than {most:,} bytes",
            where=str(self._position.location(0, 0)),
            allowed="a first row with the names of the columns",
            next_step="mend the file, or pass --input-format text if it is none of the kind",
        )


class _Lines(Iterator[str]):
    """The lines of a stream, and the bytes of those that were given out since they were last taken."""

    def __init__(self, stream: ByteStream, most: int, too_long: object) -> None:
        """most: bytes between two calls of `take`; too_long(most) makes the error for more."""
        self._stream = stream
        self._most = most
        self._too_long = too_long
        self._buffer = b""
        self._at = 0
        self._out: list[bytes] = []
        self._n_out = 0
        self._is_first = stream.offset == 0
        self.n_blank = 0
        """Bytes of empty lines before the row."""
        self.is_valid = True
        """All that was given out is UTF-8; else, bytes that are not are surrogates."""

    def __next__(self) -> str:
        line = self._line()
        if not line:
            raise StopIteration
        self._out.append(line)
        self._n_out += len(line)
        if self.n_blank + len(line) == self._n_out and line in (b"\n", b"\r\n"):
            self.n_blank = self._n_out
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(_BOM)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.is_valid = False
            return line.decode("utf-8", "surrogateescape")

    @property
    def taken(self) -> bytes:
        """All that was read of the stream, given out or not."""
        return b"".join(self._out) + self._buffer[self._at :]

    def take(self) -> bytes:
        """The bytes that were given out; what comes next is another row."""
        out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out, self._n_out, self.n_blank, self.is_valid = [], 0, 0, True
        return out

    def _line(self) -> bytes:
        end = self._buffer.find(b"\n", self._at) + 1
        if not end:
            return self._read_line()
        line = self._buffer[self._at : end]
        self._at = end
        self._check(len(line))
        return line

    def _read_line(self) -> bytes:
        parts = [self._buffer[self._at :]]
        n_bytes = len(parts[0])
        self._buffer, self._at = b"", 0
        while data := self._stream.read(_READ_BYTES):
            end = data.find(b"\n") + 1
            if end:
                parts.append(data[:end])
                self._buffer, self._at = data, end
                break
            parts.append(data)
            n_bytes += len(data)
            self._check(n_bytes)
        return b"".join(parts)

    def _check(self, n_bytes: int) -> None:
        if self._n_out + n_bytes > self._most:
            raise self._too_long(self._most)  # type: ignore[operator]


class _Rewound:
    """A stream of which some bytes were read already, from its beginning again. Implements `protocols.ByteStream`."""

    def __init__(self, stream: ByteStream, head: bytes) -> None:
        self.offset = 0
        self._stream = stream
        self._head = head

    def read(self, n_bytes: int) -> bytes:
        """See ByteStream."""
        if self._head:
            data, self._head = self._head[:n_bytes], self._head[n_bytes:]
        else:
            data = self._stream.read(n_bytes)
        self.offset += len(data)
        return data

    def skip(self, n_bytes: int) -> None:
        """See ByteStream."""
        n_held = min(n_bytes, len(self._head))
        self._head = self._head[n_held:]
        if n_bytes > n_held:
            self._stream.skip(n_bytes - n_held)
        self.offset += n_bytes

    def raw_position(self) -> int:
        """See ByteStream."""
        return self._stream.raw_position()

    def close(self) -> None:
        """See ByteStream."""
        self._stream.close()


def _shown(name: str) -> str:
    return f'"{name[:40]}"'.encode("utf-8", "replace").decode()
