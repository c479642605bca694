"""Tables as text (CSV, TSV) with a header, parsed by Python's csv module; the text is what stands in one column.

Quoted fields may hold newlines and delimiters; a quote inside is doubled (RFC 4180), in TSV too. The hard ones are memory and
places: a quote that is never closed makes one row of all the rest, so a row is only followed as far as the budget allows, named by
where it begins, and left out alone (`table_lines`). A row with more or fewer fields than the header is refused: it is what is left
of a broken quote. Empty lines are no rows. A parser that reads blocks in parallel (pyarrow.csv) was refused: it cannot say at which
byte a row begins.

Lines end with a newline, with or without a carriage return before it. Where that is so of the header, any other carriage return is
a part of its field, as it was for the program that wrote the row; in the header it is refused.
"""

from __future__ import annotations

import csv
from itertools import chain
from typing import TYPE_CHECKING

from tokmill.core.errors import DamagedInputError
from tokmill.core.records import Batch, Counts
from tokmill.core.system.budget import piece_too_long
from tokmill.core.text import counted
from tokmill.read.json_record import NotARecordError
from tokmill.read.row_batcher import RowBatcher
from tokmill.read.table_lines import Block, TableLines, TableTexts, TooLongError, WrongFieldsError
from tokmill.read.utf8 import foreign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Cursor, Location
    from tokmill.read.position import Position, ReadSettings

_MOST_HEADER_BYTES = 1 << 20
_DELIMITERS = ",;\t|"
_FORMATS = {",": ("comma", "csv"), "\t": ("tab", "tsv")}
_MOST_NAMES = 8
"""Columns named in a message."""


def read_csv(stream: ByteStream, position: Position, settings: ReadSettings, start: Cursor) -> Iterator[Batch]:
    """Batches of one file, from `start` on. `index` is not set.

    Raises DamagedInputError, BadRecordError, MemoryBudgetError, ChangedError.
    """
    return _TableReader(stream, position, settings, ",").batches(start)


def read_tsv(stream: ByteStream, position: Position, settings: ReadSettings, start: Cursor) -> Iterator[Batch]:
    """The same, with tabs between the fields."""
    return _TableReader(stream, position, settings, "\t").batches(start)


class _TableReader:
    """Reads one file."""

    def __init__(self, stream: ByteStream, position: Position, settings: ReadSettings, delimiter: str) -> None:
        self._stream = stream
        self._position = position
        self._settings = settings
        self._delimiter = delimiter
        key = settings.content.text_key
        allowed = f'rows with as many fields as the header, one of them "{key}"'
        self._rows = RowBatcher(position, settings, stream.raw_position, allowed=allowed, records="rows")

    def batches(self, start: Cursor) -> Iterator[Batch]:
        stream = _Rewindable(self._stream)
        columns, n_bytes = self._columns(stream)
        stream.rewind()
        self._position.seek(stream, start)
        if not start.offset:
            self._consume(stream.read(n_bytes), 0)
        if columns is not None:
            yield from self._data(self._texts(stream, columns), len(columns))
        yield from self._rows.take(self._position.end())

    @property
    def _most(self) -> int:
        """Bytes of a row."""
        return max(self._settings.max_piece_bytes, self._settings.batch_bytes)

    def _texts(self, stream: ByteStream, columns: list[str]) -> TableTexts:
        column = columns.index(self._settings.content.text_key)
        return TableTexts(
            stream,
            self._delimiter,
            self._most,
            column=column,
            n_columns=len(columns),
            block_bytes=self._settings.batch_bytes,
            block_rows=self._settings.max_documents,
        )

    def _data(self, texts: TableTexts, n_columns: int) -> Iterator[Batch]:
        rows, position = self._rows, self._position
        while not texts.at_end:
            for text in chain(texts.regular(), texts.careful()):
                if isinstance(text, Block):
                    yield from self._block(text, texts.consume())
                    continue
                if isinstance(text, bytes):
                    rows.add(text, position.record, position.offset, is_valid=texts.is_valid)
                elif text is not None:
                    rows.refuse(self._bad_row(text, n_columns), position.record, position.offset)
                self._consume(texts.consume(), int(text is not None))
                if rows.is_full or rows.holds_long:
                    yield from rows.take(position.cursor())

    def _block(self, block: Block, consumed: memoryview) -> Iterator[Batch]:
        """Rows that were found together as a batch, behind a batch of what came one by one."""
        position, documents = self._position, block.documents
        if self._rows.holds_any:
            yield from self._rows.take(position.cursor())
        locate, n_in = _locator(position, block), len(consumed) + self._rows.uncount()
        position.advance(consumed, len(documents))
        yield Batch(
            index=0,
            documents=documents,
            raw=None,
            is_val=None,
            after=position.cursor(),
            locate=locate,
            counts=Counts(documents=len(documents), bytes_in=n_in),
            position_bytes=self._stream.raw_position(),
        )

    def _columns(self, stream: _Rewindable) -> tuple[list[str] | None, int]:
        """The names in the header, None of an empty file, and where it ends. Raises BadRecordError, DamagedInputError."""
        key = self._settings.content.text_key
        lines = TableLines(stream, self._delimiter, _MOST_HEADER_BYTES, keeps_returns=False)
        while (fields := lines.next_row()) == []:
            lines.consume()
        found = foreign(stream.head)
        if found is not None:
            what, next_step = found
            raise self._refused(NotARecordError("invalid_csv", f"this is not a table: it begins like {what}", next_step))
        if isinstance(fields, csv.Error):
            raise self._bad_header(fields, bytes(lines.consume()))
        if fields is not None and fields.count(key) != 1:
            names = ", ".join(_shown(name) for name in fields[:_MOST_NAMES])
            more = f" and {len(fields) - _MOST_NAMES} more" if len(fields) > _MOST_NAMES else ""
            how = "no column" if key not in fields else "more than one column"
            what = f"the header has {how} {_shown(key)}; columns there: {names}{more}"
            other = self._other_delimiter(fields[0]) if len(fields) == 1 else None
            looks, next_step = other or ("", "pass --text-key COLUMN")
            raise self._refused(NotARecordError("missing_text", what + looks, next_step))
        return fields, lines.end

    def _bad_header(self, fault: csv.Error, line: bytes) -> Exception:
        if line.count(b"\r") != line.count(b"\r\n"):
            what = "a carriage return stands in a field without quotes"
            next_step = "give the lines of the file newlines as ends: tr '\\r' '\\n' < FILE"
        elif isinstance(fault, TooLongError):
            return self._header_too_long()
        else:
            other = self._other_delimiter(line.decode("utf-8", "replace"))
            looks, next_step = other or ("", "mend the file")
            what = f"{fault}{looks}"
        return self._refused(NotARecordError("invalid_csv", f"the header cannot be read: {what}", next_step))

    def _other_delimiter(self, header: str) -> tuple[str, str] | None:
        """What a header says of another delimiter, and what to do; None if it does not look as if there were one."""
        found = max(_DELIMITERS, key=header.count)
        if found == self._delimiter or found not in header:
            return None
        if found in _FORMATS:
            return f"; the delimiter looks like a {_FORMATS[found][0]}", f"pass --input-format {_FORMATS[found][1]}"
        rows = f"csv.reader(open(0, newline=''), delimiter='{found}')"
        command = f"python3 -c \"import csv; csv.writer(open(1, 'w', newline='')).writerows({rows})\" < FILE > NEW.csv"
        return f"; the delimiter looks like `{found}`", f"write it with commas: {command}"

    def _refused(self, bad: NotARecordError) -> Exception:
        """A fault of the whole file, which no policy skips."""
        error = bad.error(self._position.location(0, 0), "a header with one column of that name", "rows")
        error.next_step = bad.next_step
        return error

    def _bad_row(self, fault: csv.Error, n_columns: int) -> NotARecordError:
        """What is wrong with a row. Raises MemoryBudgetError for a long one: it may be sound, and then its lines are no rows."""
        if isinstance(fault, TooLongError):
            where, budget = str(self._position.location()), self._settings.budget_bytes
            error = piece_too_long("a row (perhaps a quote is never closed)", where, self._most, budget, None)
            error.next_step = "raise --memory, or mend the quote that is opened there"
            raise error
        if isinstance(fault, WrongFieldsError):
            what = f"the row has {counted(fault.n_fields, 'field')}, the header {n_columns}"
            return NotARecordError("invalid_csv", what, "mend the row (a field with a delimiter or a newline is quoted)")
        name = "CSV" if self._delimiter == "," else "TSV"
        next_step = "mend the row (a quote inside a quoted field is doubled)"
        return NotARecordError("invalid_csv", f"the row is not {name}: {fault}", next_step)

    def _consume(self, consumed: bytes | memoryview, n_rows: int) -> None:
        self._position.advance(consumed, n_rows)
        self._rows.count(len(consumed))

    def _header_too_long(self) -> Exception:
        return DamagedInputError(
            f"the header is longer than {_MOST_HEADER_BYTES:,} bytes",
            where=str(self._position.location(0, 0)),
            allowed="a first row with the names of the columns",
            next_step="mend the file, or pass --input-format text if it is none of the kind",
        )


class _Rewindable:
    """A stream that can be read from its beginning again, once. Implements `protocols.ByteStream`."""

    def __init__(self, stream: ByteStream) -> None:
        self.offset = 0
        self.head = b""
        """What was read before it is rewound, and behind that, is still to be read."""
        self._is_rewound = False
        self._stream = stream

    def rewind(self) -> None:
        """Begin again."""
        self.offset, self._is_rewound = 0, True

    def read(self, n_bytes: int) -> bytes:
        """See ByteStream."""
        if not self._is_rewound:
            data = self._stream.read(n_bytes)
            self.head += data
        elif self.head:
            data, self.head = self.head[:n_bytes], self.head[n_bytes:]
        else:
            data = self._stream.read(n_bytes)
        self.offset += len(data)
        return data

    def skip(self, n_bytes: int) -> None:
        """See ByteStream."""
        n_held = min(n_bytes, len(self.head))
        self.head = self.head[n_held:]
        if n_bytes > n_held:
            self._stream.skip(n_bytes - n_held)
        self.offset += n_bytes

    def raw_position(self) -> int:
        """See ByteStream."""
        return self._stream.raw_position()

    def close(self) -> None:
        """See ByteStream."""
        self._stream.close()


def _locator(position: Position, block: Block) -> Callable[[int], Location]:
    first, offset, begins, location = position.record, position.offset, block.begins, position.location

    def locate(i: int) -> Location:
        return location(offset + int(begins[i]), first + i)

    return locate


def _shown(name: str) -> str:
    return f'"{name[:40]}"'.encode("utf-8", "replace").decode()
