"""Arrow IPC, files (also called Feather) and streams: one column of texts, a record batch at a time.

A file's record batches are reached directly, a stream's one after the other. A record batch may have any size: of a file only the
wanted column is read, and a read of more bytes than the budget allows in one piece is an error before it is made.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tokmill.core.errors import DamagedInputError
from tokmill.core.records import Location
from tokmill.core.system.budget import piece_too_long
from tokmill.read.arrow_columns import ARROW_ERRORS, ColumnReader, as_bytes, check_column, text_column
from tokmill.read.position import FormatReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokmill.core.records import Batch, Cursor
    from tokmill.read.position import Position, ReadSettings
    from tokmill.read.seekable import SeekableFile

_FILE_MAGIC = b"ARROW1"
_STREAM_MAGIC = b"\xff\xff\xff\xff"
_FEATHER_1_MAGIC = b"FEA1"
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""End of a stream (the Arrow columnar format, "IPC streaming format"); every writer since 2019 writes it."""


class ArrowReader(FormatReader["SeekableFile"]):
    """The reader of one file."""

    def __init__(self, stream: SeekableFile, position: Position, settings: ReadSettings) -> None:
        """See FormatReader."""
        super().__init__(stream, position, settings)
        self._columns = ColumnReader("Arrow", stream, position, settings)
        self._n_before = 0
        """Rows before the position that are still to be met."""

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """See FormatReader."""
        self._n_before = start.record
        arrays = self._arrays()
        while True:
            try:
                array = next(arrays, None)
            except ARROW_ERRORS as error:
                raise self._columns.error(error) from error
            if array is None:
                break
            yield from self._columns.batches(array)
        yield from self._columns.end()

    def _arrays(self) -> Iterator[pa.Array]:
        """Yield the column of each record batch, from the position on."""
        head = self._stream.read(8)
        self._stream.seek(0)
        if head.startswith(_FEATHER_1_MAGIC):
            raise DamagedInputError(
                "this is Feather version 1, which is no Arrow file",
                where=self._position.source.path,
                allowed="Feather version 2, Arrow IPC files and streams",
                next_step='write it again: pyarrow.feather.write_feather(pyarrow.feather.read_table("FILE"), "NEW_FILE")',
            )
        # A stream begins with a mark, before Arrow 0.15 with the length of its schema.
        n_bytes = self._position.source.size_bytes or 0
        if not head.startswith((_FILE_MAGIC, _STREAM_MAGIC)) and int.from_bytes(head[:4], "little") > n_bytes:
            raise self._columns.error(ValueError("it does not begin as one"))
        return self._of_file() if head.startswith(_FILE_MAGIC) else self._of_stream()

    def _of_file(self) -> Iterator[pa.Array]:
        schema = pa.ipc.open_file(_BudgetedFile(self._stream, self.check_size)).schema
        index = self._checked(schema)
        opened = pa.ipc.open_file(
            _BudgetedFile(self._stream, self.check_size), options=pa.ipc.IpcReadOptions(included_fields=[index], use_threads=False)
        )
        for i in range(opened.num_record_batches):
            yield from self._column(opened.get_batch(i))

    def _of_stream(self) -> Iterator[pa.Array]:
        file: Any = _BudgetedFile(self._stream, self.check_size)
        with pa.ipc.open_stream(file, options=pa.ipc.IpcReadOptions(use_threads=False)) as opened:
            self._checked(opened.schema)
            for batch in opened:
                yield from self._column(batch)
        # pyarrow accepts a stream that was cut between two record batches.
        self._stream.seek(-len(_END), 2)
        if self._stream.read(len(_END)) != _END:
            raise ValueError("it does not end with the mark of a stream's end")

    def _column(self, batch: pa.RecordBatch) -> Iterator[pa.Array]:
        """Yield the column of the next record batch from the position on, unless the position is after all of it."""
        begin, self._n_before = self._n_before, max(0, self._n_before - len(batch))
        if 0 < begin >= len(batch):
            return
        batch.validate()
        column = as_bytes(text_column(batch, self._settings.content.text_key))
        # A damaged file has offsets beyond its data; used unchecked, they end the process.
        column.validate(full=True)
        yield column.slice(begin)

    def _checked(self, schema: pa.Schema) -> int:
        """Return the index of the wanted column. Raises BadRecordError."""
        key = self._settings.content.text_key
        check_column(schema, key, Location(path=self._position.source.path))
        names: list[str] = schema.names
        return names.index(key) if key in names else names.index(key.split(".")[0])

    def check_size(self, n_bytes: int) -> None:
        """Raise MemoryBudgetError for a read that the budget does not allow."""
        most = 2 * self._settings.max_piece_bytes
        if n_bytes > most:
            where = str(self._position.location().at(None))
            self._stream.failed = piece_too_long("a record batch of this Arrow file", where, most, None, None)
            raise self._stream.failed


class _BudgetedFile(io.RawIOBase):
    """A file for pyarrow, with reads that the budget allows; closing it leaves the file open."""

    def __init__(self, file: SeekableFile, check_size: Callable[[int], None]) -> None:
        self._file = file
        self._check_size = check_size

    def read(self, size: int = -1, /) -> bytes:
        self._check_size(size)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
