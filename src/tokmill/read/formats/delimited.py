"""Tables as text (CSV, TSV) with a header; the text is what stands in one column.

Quoted fields may hold newlines and delimiters; a quote inside is doubled (RFC 4180), in TSV too, as pandas and polars have it. But
many a TSV knows no quoting: a text that begins with a quote would swallow the rows up to one that ends with a quote. Where several
lines are one row by their quotes, and each is a whole row without, only a person can say which it is.

A row with more or fewer fields than the header is an error: it is what is left of a broken quote. Empty lines are no rows. A line
ends with a newline, with or without a carriage return before it; any other carriage return is a part of its field, as Python's own
writer leaves it, except in the header.

Rows are found in three ways. Where lines have no quotes, numpy finds the rows of a window at once (`plain_rows`). One regular
expression (`_row_pattern`) matches a regular row: every quote that opens stands at the beginning of a field, every one that closes
at its end, and the row has as many fields as the header. Python's csv module reads all others, line after line. For all rows the
module is too slow: 33 MB in rows of 2 kB of text and eight columns took it 0.54 s, the pattern takes 0.12 (1.8 microseconds against
0.5 for a row of 40 bytes). pyarrow.csv cannot say at which byte a row begins, which resuming needs.

A quote that is never closed must cost one row, not the rest of the file. So a row that the csv module rejects is given up at its
first line alone, and the next line begins a row. Lines that were followed in vain are not followed again: at the beginning of each
the module was inside of a quote, so a row that reaches one of them inside of a quote goes on where the first one failed. No row is
followed beyond what the memory budget allows.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import BadRecordError, DamagedInputError
from tokmill.core.records import Batch, Counts
from tokmill.core.text import counted, shortened
from tokmill.read.json_record import NotARecordError
from tokmill.read.plain_rows import plain_rows
from tokmill.read.position import FormatReader, Places
from tokmill.read.row_batcher import RowBatcher
from tokmill.read.stream import PeekedStream
from tokmill.read.utf8 import first_invalid, foreign, with_file

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from tokmill.core.documents import DocumentBuffer
    from tokmill.core.errors import MemoryBudgetError
    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Compression, Cursor
    from tokmill.read.position import Position, ReadSettings

_READ_BYTES = 1 << 20
_MOST_HEADER_BYTES = 1 << 20
_DELIMITERS = ",;\t|"
_FORMATS = {",": ("comma", "csv"), "\t": ("tab", "tsv")}
_MOST_NAMES = 8
"""Columns named in a message."""
_LONGEST_NAME = 64
"""What is longer, or a number, is hardly the name of a column."""
_USUAL = ("text", "content", "body", "document")
"""What a column of texts is called."""
_BOM = b"\xef\xbb\xbf"
_BARE_RETURN = re.compile("\r(?=[^\n])")
_HIDDEN = "\ud800"
"""In place of a bare carriage return, at which the csv module would end a line: half of a surrogate pair, which no text has, and
none of those that stand for a byte that is not UTF-8."""


class TableReader(FormatReader["ByteStream"]):
    """The reader of one file."""

    def __init__(self, stream: ByteStream, position: Position, settings: ReadSettings) -> None:
        """See FormatReader."""
        super().__init__(stream, position, settings)
        is_csv = position.source.format == "csv"
        self._delimiter = settings.content.delimiter or ("," if is_csv else "\t")
        self._key = settings.content.text_key
        self._quoting = settings.content.quoting or ("double" if is_csv else "in doubt")
        allowed = f'rows with as many fields as the header, one of them "{self._key}"'
        self._batcher = RowBatcher(position, settings, stream.raw_position, allowed=allowed, records="rows")

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """See FormatReader."""
        stream = PeekedStream(self._stream)
        has_quotes = self._quoting != "none"
        header = TableRows(
            stream.peek, stream.offset, self._delimiter, _MOST_HEADER_BYTES, keeps_returns=False, has_quotes=has_quotes
        )
        names = self._header(header, stream)
        self._position.seek(stream, start)
        if not start.offset:
            self._consume(stream.read(header.end), 0)
        if names is not None:
            rows = TableRows(stream.read, stream.offset, self._delimiter, self._settings.most_bytes, has_quotes=has_quotes)
            yield from self._rows(rows, names.index(self._key), len(names))
        yield from self._batcher.take(self._position.end())

    def _rows(self, rows: TableRows, column: int, n_columns: int) -> Iterator[Batch]:
        pattern = _row_pattern(self._delimiter, column, n_columns, self._quoting)
        while not rows.at_end:
            found = self._plain(rows, column, n_columns)
            if found is not None:
                if not self._batcher.is_empty:
                    yield from self._batcher.take(self._position.cursor())
                yield self._plain_batch(rows, *found)
                continue
            self._take_regular(rows, pattern, is_last=column == n_columns - 1)
            if not self._batcher.is_full:
                self._take_one(rows, pattern, column, n_columns)
            if self._batcher.is_full:
                yield from self._batcher.take(self._position.cursor())

    def _plain(self, rows: TableRows, column: int, n_columns: int) -> tuple[DocumentBuffer, NDArray[np.int64], int] | None:
        """Return what `plain_rows` finds in the lines that come next; None if they are to be looked at otherwise."""
        window = rows.plain_lines(self._settings.batch_bytes)
        if not window or first_invalid(window) is not None:
            return None
        return plain_rows(window, ord(self._delimiter), column, n_columns, self._settings.max_documents)

    def _plain_batch(self, rows: TableRows, texts: DocumentBuffer, begins: NDArray[np.int64], n_bytes: int) -> Batch:
        """Consume the rows that `_plain` found; return their batch."""
        position = self._position
        locate = Places(position.location(), offsets=begins + position.offset)
        self._consume(rows.consume_plain(n_bytes), len(texts))
        return Batch(
            documents=texts,
            after=position.cursor(),
            locate=locate,
            counts=Counts(documents=len(texts), bytes_in=self._batcher.uncount()),
            position_bytes=self._stream.raw_position(),
        )

    def _take_regular(self, rows: TableRows, pattern: re.Pattern[bytes], *, is_last: bool) -> None:
        """Take the regular rows that come next and were read already, as many as fit the batch. Raises BadRecordError."""
        batcher, record = self._batcher, self._position.record
        texts, places = rows.regular(pattern, batcher.room_bytes, batcher.room_rows, is_last=is_last)
        if rows.is_valid:
            batcher.add_all(texts, record, places)
        else:
            for i, text in enumerate(texts):
                batcher.add(text, record + i, places[i])
        self._consume(rows.consume(), len(texts))

    def _take_one(self, rows: TableRows, pattern: re.Pattern[bytes], column: int, n_columns: int) -> None:
        """Take the next row by the csv module, or a long one by the pattern. Raises BadRecordError, MemoryBudgetError."""
        fields, position = rows.next_row(), self._position
        if fields is None:
            return
        if isinstance(fields, TooLongError):
            # The module takes four bytes for each character, and as many again when it is done.
            self._settings.hold(None)
            text = rows.long_row(pattern, self._settings.most_record_bytes, is_last=column == n_columns - 1)
            if text is None:
                self._skip_row(rows, n_columns)
                return
            self._batcher.add(text, position.record, position.offset)
            self._consume(rows.consume(), 1)
            return
        if self._quoting == "in doubt" and isinstance(fields, list):
            self._check_lines(bytes(rows.at_hand()), n_columns)
        if isinstance(fields, csv.Error) or len(fields) not in (0, n_columns):
            self._batcher.reject(self._bad_row(fields, n_columns), position.record, position.offset)
        elif fields:
            text = fields[column].replace(_HIDDEN, "\r").encode("utf-8", "surrogateescape")
            self._batcher.add(text, position.record, position.offset, is_valid=rows.is_valid)
        self._consume(rows.consume(), int(fields != []))

    def _skip_row(self, rows: TableRows, n_columns: int) -> None:
        """Read past a row that is too long, and skip it, if that is the policy and its end is sure. Raises MemoryBudgetError."""
        settings, record, offset, error = self._settings, self._position.record, self._position.offset, self._too_long()
        if not settings.skips_long(self._position, record, is_longer=True):
            raise error
        for part in rows.parts_of_long_row(self._delimiter.encode(), n_columns, in_doubt=self._quoting == "in doubt"):
            if part is None:
                raise error
            self._consume(part, 0)
        self._position.advance(b"", 1)
        bad = NotARecordError("too_long", f"the row is longer than {settings.most_record_bytes:,} bytes", "raise --memory")
        self._batcher.reject(bad, record, offset)

    def _check_lines(self, row: bytes, n_columns: int) -> None:
        """Raise BadRecordError, for the whole file, if each line of a row is a row where quotes are characters like others."""
        lines = [line for line in row.split(b"\n") if line.strip(b"\r")]
        if len(lines) < 2 or any(line.count(self._delimiter.encode()) != n_columns - 1 for line in lines):
            return
        raise BadRecordError(
            f"by their quotes these {len(lines):,} lines are one row; if quotes are characters, each is a row (invalid_csv)",
            where=str(self._position.location()),
            allowed="a TSV of which it is clear, or said, what its quotes are",
            option="--quoting",
            suggested="none",
            next_step="or --quoting double if quotes enclose fields; with --fresh where a run was begun",
        )

    def _header(self, rows: TableRows, stream: PeekedStream) -> list[str] | None:
        """Return the names in the header, None for an empty file. Raises BadRecordError, DamagedInputError."""
        while (fields := rows.next_row()) == []:
            rows.consume()
        found = foreign(
            stream.peeked, compression=self._position.source.compression, is_piped=self._position.source.size_bytes is None
        )
        if found is not None:
            what, next_step = found
            raise self._rejected(NotARecordError("invalid_csv", f"this is not a table: it begins like {what}", next_step))
        if isinstance(fields, csv.Error):
            raise self._bad_header(fields, bytes(rows.consume()))
        if fields is not None and fields.count(self._key) != 1:
            names = ", ".join(shortened([_shown(name) for name in fields], _MOST_NAMES))
            how = "no column" if self._key not in fields else "more than one column"
            what = f"the header has {how} {_shown(self._key)}; columns there: {names}"
            other = self._other_delimiter(fields[0]) if len(fields) == 1 else None
            looks, next_step = other or ("", _other_column(self._key, fields, self._delimiter, self._position.source.compression))
            raise self._rejected(NotARecordError("missing_text", what + looks, next_step))
        return fields

    def _bad_header(self, fault: csv.Error, line: bytes) -> Exception:
        if line.count(b"\r") != line.count(b"\r\n"):
            what = "a carriage return stands in a field without quotes"
            next_step = "end the lines of the file with newlines: tr '\\r' '\\n' < FILE"
        elif isinstance(fault, TooLongError):
            return DamagedInputError(
                f"the header is longer than {_MOST_HEADER_BYTES:,} bytes",
                where=str(self._position.location(0, 0)),
                allowed="a first row with the names of the columns",
                next_step="fix the file; if it is no table, leave it out of its directory (--glob '!NAME'), or name it alone with "
                "--input-format text",
            )
        else:
            other = self._other_delimiter(line.decode("utf-8", "replace"))
            looks, next_step = other or ("", "fix the file")
            what = f"{fault}{looks}"
        return self._rejected(NotARecordError("invalid_csv", f"the header cannot be read: {what}", next_step))

    def _other_delimiter(self, header: str) -> tuple[str, str] | None:
        """Return what a header says of another delimiter, and what to do; None if it does not look as if there were one."""
        found = max(_DELIMITERS, key=header.count)
        if found == self._delimiter or found not in header:
            return None
        if found in _FORMATS and not self._settings.content.delimiter:
            return f"; the delimiter looks like a {_FORMATS[found][0]}", f"pass --input-format {_FORMATS[found][1]}"
        return f"; the delimiter looks like `{found}`", f"pass --delimiter '{found}'"

    def _rejected(self, bad: NotARecordError) -> Exception:
        """Return the error for a fault of the whole file, which no policy skips."""
        return bad.file_error(self._position.location(0, 0), "a header with one column of that name")

    def _too_long(self) -> MemoryBudgetError:
        """Return the error for a long row. Unless it is seen where it ends, no policy skips it: its lines are no rows."""
        error = self._settings.too_long("a row (perhaps a quote is never closed)", self._position.location(), is_record=True)
        error.next_step = "raise --memory, or fix the quote that is opened there"
        return error

    def _bad_row(self, fields: list[str] | csv.Error, n_columns: int) -> NotARecordError:
        """Return what is wrong with a row."""
        if isinstance(fields, list):
            what = f"the row has {counted(len(fields), 'field')}, the header {n_columns}"
            return NotARecordError("invalid_csv", what, "fix the row (a field with a delimiter or a newline is quoted)")
        name = self._position.source.format.upper()
        next_step = (
            "fix the row (a quote inside a quoted field is doubled); or pass --quoting none if quotes are characters of the text"
        )
        return NotARecordError("invalid_csv", f"the row is not {name}: {fields}", next_step)

    def _consume(self, consumed: bytes | memoryview, n_rows: int) -> None:
        self._position.advance(consumed, n_rows)
        self._batcher.count(len(consumed))


class TooLongError(csv.Error):
    """A row is longer than is allowed."""

    def __init__(self) -> None:
        super().__init__("the row is too long; perhaps a quote is never closed")


class TableRows:
    """The rows of one stream. Each row (or run of regular rows) is consumed before the next is asked for. Places are its bytes."""

    def __init__(
        self,
        read: Callable[[int], bytes],
        begin: int,
        delimiter: str,
        most_bytes: int,
        *,
        keeps_returns: bool = True,
        has_quotes: bool = True,
    ) -> None:
        """Begin before the first row.

        read: as `ByteStream.read`; begin: the place of its first byte; most_bytes: of a row; keeps_returns: a bare carriage return
        is a character and no fault; has_quotes: quotes enclose fields.
        """
        if csv.field_size_limit() < sys.maxsize:
            # The limit is the process's; rows are bounded here.
            csv.field_size_limit(sys.maxsize)
        self.begin = self.end = begin
        """Range of the current row; once it is consumed, `begin` is that of the next row."""
        self.is_valid = True
        """Whether the row at hand is UTF-8; if not, `next_row` gives its bad bytes as surrogates."""
        self._read = read
        self._most_bytes = most_bytes
        self._keeps_returns = keeps_returns
        self._data = b""
        self._base = begin
        """Where `_data` begins."""
        self._ended = False
        self._first_end = self._last_begin = begin
        """In the current row: the end of its first line, and where its last line begins."""
        self._quoted_to = 0
        """A row was followed in vain up to the line that begins here: all its lines but the first begin inside of its quote."""
        self._has_jumped = False
        self._has_quotes = has_quotes
        self._looked_to = begin
        """How far `plain_lines` has looked."""
        how: Any = csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE
        self._reader = csv.reader(_Lines(self), delimiter=delimiter, strict=True, quoting=how)

    @property
    def at_end(self) -> bool:
        """Whether nothing follows, as far as is known."""
        return self._ended and self.begin == self._base + len(self._data)

    def plain_lines(self, most_bytes: int) -> bytes:
        """Return whole lines that come next, none with a quote that encloses a field; nothing if the next lines have quotes.

        What was looked at once is not looked at again, unless it is consumed by `consume_plain`.
        """
        if self.begin < self._looked_to:
            return b""
        if self._data.find(b"\n", self.begin - self._base) < 0 and not self._ended:
            self._fill()
        begin = self.begin - self._base
        end = self._data.rfind(b"\n", begin, begin + most_bytes) + 1
        self._looked_to = self._base + end
        has_quotes = self._has_quotes and self._data.find(b'"', begin, end) >= 0
        return b"" if has_quotes else self._data[begin:end]

    def consume_plain(self, n_bytes: int) -> memoryview:
        """Return so many bytes of what `plain_lines` gave, and go on after them."""
        self.end = self._looked_to = self.begin + n_bytes
        return self.consume()

    def at_hand(self) -> memoryview:
        """Return the bytes of the row at hand."""
        return memoryview(self._data)[self.begin - self._base : self.end - self._base]

    def consume(self) -> memoryview:
        """Return the bytes of the row at hand and go on to the next."""
        taken = self.at_hand()
        self.begin = self.end
        return taken

    def regular(
        self, pattern: re.Pattern[bytes], most_bytes: int, most_rows: int, *, is_last: bool
    ) -> tuple[list[bytes], list[int]]:
        """Return the texts of the next rows that match and where each begins, as far as they were read. They are then at hand.

        most_bytes, most_rows: of all of them; is_last: the text is in the last column.
        """
        texts: list[bytes] = []
        places: list[int] = []
        data, base = self._data, self._base
        first = at = self.begin - base
        for row in islice(pattern.finditer(data, first, first + most_bytes), most_rows):
            group = row.lastindex
            if group == _NO_ROW:
                break
            if group == _QUOTED:
                texts.append(row[_QUOTED].replace(b'""', b'"'))
                places.append(base + at)
            elif group == _PLAIN:
                texts.append(row[_PLAIN].removesuffix(b"\r") if is_last else row[_PLAIN])
                places.append(base + at)
            at = row.end()
        self.end = base + at
        self.is_valid = first_invalid(memoryview(data)[first:at]) is None
        return texts, places

    def next_row(self) -> list[str] | csv.Error | None:
        """Return the fields of the next row as the csv module sees them, none where the line is empty; None at the end.

        Where the module finds a fault, that is returned and the row's first line is at hand.
        """
        try:
            fields = self._followed()
            if self._has_jumped:
                # The row is whole after all, and what was passed over belongs to it.
                self._quoted_to = 0
                fields = self._followed()
        except StopIteration:
            return None
        except csv.Error as error:
            is_open = self._ended and self._last_begin == self.end == self._base + len(self._data)
            self._quoted_to = max(self._quoted_to, self._last_begin)
            self.end = self._first_end
            return csv.Error("a quote is opened and never closed") if is_open else error
        return fields

    def long_row(self, pattern: re.Pattern[bytes], most_bytes: int, *, is_last: bool) -> bytes | None:
        """Return the text of the next row, which is then at hand, if it matches and has at most so many bytes."""
        begin = self.begin - self._base
        while True:
            # The end of the file ends a row, too.
            row = pattern.match(self._data + b"\n" if self._ended else self._data, begin)
            if row is not None and row.lastindex in (_QUOTED, _PLAIN) and row.end() - begin <= most_bytes:
                self.end = self._base + min(row.end(), len(self._data))
                if row.lastindex == _QUOTED:
                    return row[_QUOTED].replace(b'""', b'"')
                return row[_PLAIN].removesuffix(b"\r") if is_last else row[_PLAIN]
            n_held = len(self._data) - begin
            if self._ended or n_held > most_bytes:
                return None
            # Each look is at twice as much as the one before.
            while not self._ended and len(self._data) - begin < 2 * n_held:
                self._fill()
                begin = self.begin - self._base

    def parts_of_long_row(self, delimiter: bytes, n_columns: int, *, in_doubt: bool) -> Iterator[memoryview | None]:
        """Yield the next row, consumed, as it is read; None where it is not regular. in_doubt: whether it must be one line."""
        row = _LongRow(delimiter, has_quotes=self._has_quotes, in_doubt=in_doubt)
        while not row.is_over:
            data = self._data
            at = row.follow(data, self.begin - self._base, ended=self._ended)
            is_whole = row.is_over or (self._ended and at == len(data) and not row.is_quoted)
            if at < 0 or (is_whole and row.n_fields != n_columns) or (self._ended and not is_whole):
                yield None
                return
            self.end = self._base + at
            yield self.consume()
            if is_whole:
                return
            self._fill()

    def next_line(self) -> str:
        """Return the next line of the row at hand, for the csv module. Raises StopIteration, TooLongError."""
        is_first = not self._first_end
        if not is_first and self.end < self._quoted_to:
            self.end, self._has_jumped = self._quoted_to, True
        self._last_begin = self.end
        end = self._line_end(self.end)
        if end == self.end:
            raise StopIteration
        if is_first:
            self._first_end = end
        if end - self.begin > self._most_bytes:
            raise TooLongError
        line = self._data[self.end - self._base : end - self._base]
        if not self.end:
            line = line.removeprefix(_BOM)
        self.end = end
        try:
            text = line.decode()
        except UnicodeDecodeError:
            self.is_valid, text = False, line.decode("utf-8", "surrogateescape")
        return _BARE_RETURN.sub(_HIDDEN, text) if self._keeps_returns and "\r" in text else text

    def _followed(self) -> list[str]:
        self.end, self._first_end = self.begin, 0
        self.is_valid, self._has_jumped = True, False
        return next(self._reader)

    def _line_end(self, begin: int) -> int:
        """Return the end of a line, newline included; without one, where the stream or the bytes that a row may have end."""
        searched = begin
        while True:
            at = self._data.find(b"\n", searched - self._base)
            if at >= 0:
                return self._base + at + 1
            searched = self._base + len(self._data)
            if self._ended or searched - self.begin > self._most_bytes:
                return searched
            self._fill()

    def _fill(self) -> None:
        held = self._data[self.begin - self._base :]
        data = self._read(_READ_BYTES)
        self._ended = not data
        self._data, self._base = held + data, self.begin


class _LongRow:
    """How far a row that is not held was followed: only a regular one, as in `_row_pattern`."""

    def __init__(self, delimiter: bytes, *, has_quotes: bool, in_doubt: bool) -> None:
        self.n_fields = 1
        self.is_quoted = self.is_over = False
        self._begins = True
        """Whether a field begins here."""
        self._delimiter, self._has_quotes, self._in_doubt = delimiter, has_quotes, in_doubt
        self._signs = re.compile(b"[\n%b%b]" % (re.escape(delimiter), b'"' * has_quotes))

    def follow(self, data: bytes, at: int, *, ended: bool) -> int:
        """Go on in what was read, as far as its meaning does not depend on what follows; -1: the row is not regular."""
        while at < len(data) and not self.is_over:
            if self._begins and self._has_quotes and data[at : at + 1] == b'"':
                self._begins, self.is_quoted, at = False, True, at + 1
            elif self.is_quoted:
                begin, at = at, data.find(b'"', at)
                if self._in_doubt and data.find(b"\n", begin, at if at >= 0 else len(data)) >= 0:
                    return -1
                if at < 0:
                    return len(data)
                if at + 2 >= len(data) and not ended:
                    return at
                follows = data[at + 1 : at + 3]
                if follows[:1] != b'"':
                    self.is_quoted = False
                    if follows and follows[:1] not in (self._delimiter, b"\n") and follows != b"\r\n":
                        return -1
                at += 1 + self.is_quoted
            else:
                found = self._signs.search(data, at)
                at = found.end() if found else len(data)
                sign = found[0] if found else b""
                if sign == b'"':
                    return -1
                self._begins, self.is_over = sign == self._delimiter, sign == b"\n"
                self.n_fields += self._begins
        return at


class _Lines(Iterator[str]):
    """The lines of a row, one by one, as the csv module asks for them."""

    def __init__(self, rows: TableRows) -> None:
        self._rows = rows

    def __next__(self) -> str:
        return self._rows.next_line()


_QUOTED, _PLAIN, _NO_ROW = 1, 2, 3
"""The groups of `_row_pattern`: a text in quotes, its own still doubled; a text without; and what matches where no row does."""


def _row_pattern(delimiter: str, column: int, n_columns: int, quoting: str = "double") -> re.Pattern[bytes]:
    """Return the pattern of a regular row, or of empty lines, which set no group.

    Without quotes, the carriage return that ends a row is a part of its last field. Nothing is tried twice (`*+`).

    column: index of the text; quoting: as the option; "in doubt": a row of several lines is not regular.
    """
    sign = re.escape(delimiter.encode())
    quoted, plain = rb'[^"]*+(?:""[^"]*+)*+', rb'[^"\n%b]*+' % sign
    if quoting == "in doubt":
        quoted = quoted.replace(b'[^"]', rb'[^"\n]')
    elif quoting == "none":
        # No field is in quotes, and what is plain may have them.
        quoted, plain = b"(?!)", rb"[^\n%b]*+" % sign
    fields = [rb'(?:"%b"|%b)' % (quoted, plain)] * n_columns
    fields[column] = rb'(?:"(%b)"|(%b))' % (quoted, plain)
    return re.compile(rb"(?:\r?\n)++|%b\r?\n|()" % sign.join(fields))


def _other_column(key: str, fields: list[str], delimiter: str, compression: Compression) -> str:
    """Return what to type: the column that is named most like the key, or as texts often are, or the last; or a header."""
    names = [name for name in fields if name.isprintable() and name and fields.count(name) == 1]
    if not names:
        return "give each column a name of its own in the first row"
    usual = [name for name in names if name.lower() in _USUAL]
    if not usual and any(name.isdigit() or len(name) > _LONGEST_NAME for name in fields):
        header = [f"c{i}" for i in range(1, len(fields) + 1)]
        header[max(range(len(fields)), key=lambda i: len(fields[i]))] = key
        row = io.StringIO()
        csv.writer(row, delimiter=delimiter, lineterminator="").writerow(header)
        line = row.getvalue().replace("\\", "\\\\").replace("\t", "\\t")
        command = with_file(f"sed {shlex.quote('1i ' + line)} FILE > NEW_FILE", compression)
        return f"pass --text-key NAME; or, if the first row is no header, write one before it: {command}"
    best = [*difflib.get_close_matches(key, names, 1), *usual, names[-1]][0]
    return f"pass --text-key {shlex.quote(best)}"


def _shown(name: str) -> str:
    return f'"{name[:40]}"'.encode("utf-8", "replace").decode()
