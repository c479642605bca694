"""Arrow IPC, files (also called Feather) and streams: one column of texts, a slice of a record batch at a time.

Of a record batch, which may have any size, only the buffers of the wanted column are read, and never all of them at once. Several
streams one after another are read like one. Whatever else is in the file is an error.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tokmill.core.errors import DamagedInputError
from tokmill.core.records import Location
from tokmill.core.system.budget import piece_too_long
from tokmill.read.arrow_columns import ARROW_ERRORS, ColumnReader, check_column
from tokmill.read.formats.arrow_buffers import BatchBuffers, ColumnTexts, Values
from tokmill.read.formats.arrow_messages import (
    DICTIONARY,
    FILE_MAGIC,
    BigEndianError,
    ColumnPlace,
    FlatTable,
    Message,
    MessageReader,
    OldStreamError,
    OpenStreamError,
)
from tokmill.read.position import FormatReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from tokmill.core.errors import TokmillError
    from tokmill.core.records import Batch, Cursor
    from tokmill.read.position import Position, ReadSettings
    from tokmill.read.seekable import SeekableFile

_FEATHER_1_MAGIC = b"FEA1"
_COPY = "import pyarrow.feather as f, pyarrow.ipc as i; f.write_feather(i.open_{}('FILE').read_all(), 'NEW_FILE')"


class ArrowReader(FormatReader["SeekableFile"]):
    """The reader of one file."""

    def __init__(self, stream: SeekableFile, position: Position, settings: ReadSettings) -> None:
        """See FormatReader."""
        super().__init__(stream, position, settings)
        self._columns = ColumnReader("Arrow", stream, position, settings)
        self._most = 2 * settings.max_piece_bytes
        """Bytes held at once."""
        self._copy = ""
        """What writes the file again, for messages."""
        self._texts = ColumnTexts(
            settings.batch_bytes, self._most, settings.most_record_bytes, partial(settings.hold, alone=True), self.check_size
        )

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """See FormatReader."""
        arrays = self._arrays(start.record)
        while True:
            try:
                array = next(arrays, None)
            except ARROW_ERRORS as error:
                raise self._error(error) from error
            if array is None:
                break
            yield from self._columns.too_long(array) if isinstance(array, int) else self._columns.batches(array)
        yield from self._columns.end()

    def _arrays(self, n_before: int) -> Iterator[pa.Array | int]:
        """Yield the column, slice by slice, without the first n_before rows; see `ColumnTexts.rows`."""
        head = self._stream.read(len(FILE_MAGIC))
        self._copy = _COPY.format("file" if head == FILE_MAGIC else "stream")
        if head.startswith(_FEATHER_1_MAGIC):
            raise DamagedInputError(
                "this is Feather version 1, which is no Arrow file",
                where=self._position.source.path,
                allowed="Feather version 2, Arrow IPC files and streams",
                next_step='write it again: pyarrow.feather.write_feather(pyarrow.feather.read_table("FILE"), "NEW_FILE")',
            )
        place: ColumnPlace | None = None
        dictionary = Values(self._most)
        for message in MessageReader(self._stream, self.check_size).messages():
            if message.schema is not None:
                place, dictionary = self._place(message.schema, message.header), Values(self._most)
            elif place is None:
                raise ValueError("rows without a schema")
            elif message.kind == DICTIONARY:
                if message.header.number(0) == place.dictionary_id:
                    dictionary = self._with_values(dictionary, message, place)
            else:
                batch = BatchBuffers(self._stream, self._position.source, message, message.header)
                begin, n_before = n_before, max(0, n_before - batch.n_rows)
                if begin < batch.n_rows:
                    yield from self._texts.rows(batch, message, place, dictionary, begin)

    def _with_values(self, dictionary: Values, message: Message, place: ColumnPlace) -> Values:
        """Return a dictionary with the values of a message added, or in place of others."""
        rows: FlatTable | None = message.header.table(1)
        if rows is None:
            raise ValueError("a dictionary has no values")
        values = dictionary if message.header.number(2, "<B") else Values(self._most)
        batch = BatchBuffers(self._stream, self._position.source, message, rows)
        self._texts.values(batch, place.kinds[-1].value_type, values)
        return values

    def _place(self, schema: pa.Schema, header: FlatTable) -> ColumnPlace:
        """Return where the wanted column is. Raises BadRecordError."""
        key = self._settings.content.text_key
        check_column(schema, key, Location(path=self._position.source.path))
        if header.number(0, "<h"):
            raise BigEndianError
        return ColumnPlace.find(schema, header, [key] if key in schema.names else key.split("."))

    def _error(self, error: Exception) -> TokmillError:
        """Return the error for one of pyarrow's or of ours."""
        if isinstance(error, OldStreamError):
            what, next_step = (
                "this is a stream of Arrow before 0.15 (the legacy format)",
                f'write it again: python -c "{self._copy}"',
            )
        elif isinstance(error, OpenStreamError):
            what = "the stream ends without the mark of its end: it may be cut off, or its writer was not closed"
            next_step = f'get a complete copy; if this is all of it, write it again: python -c "{self._copy}"'
        elif isinstance(error, BigEndianError):
            what = (
                "its numbers begin with their highest byte (big-endian), as some machines write them; tokmill reads the other order"
            )
            next_step = f'write it again: python -c "{self._copy}"'
        else:
            return self._columns.error(error)
        where = str(self._position.location().at(None))
        return DamagedInputError(
            what, where=where, allowed="little-endian Arrow IPC files, and streams with their end", next_step=next_step
        )

    def check_size(self, n_bytes: int) -> None:
        """Raise MemoryBudgetError for what the budget does not allow to be held at once."""
        if n_bytes > self._most:
            where = str(self._position.location().at(None))
            what = "what must be held at once of this Arrow file (its index, or that of a dictionary)"
            raise piece_too_long(what, where, self._most, self._settings.terms, n_bytes)
