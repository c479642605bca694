"""Arrow IPC, files (also called Feather) and streams: one column of texts, a record batch at a time.

A file's record batches are reached directly, a stream's one after the other. The hard one is a record batch of any size: only the
column that is wanted is read of a file, and what is asked for in one piece beyond the budget is refused by name before it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tokmill.core.errors import DamagedInputError, TokmillError
from tokmill.core.system.budget import piece_too_long
from tokmill.read.arrow_columns import ARROW_ERRORS, ColumnReader, as_bytes, check_column, file_error, text_column, whole_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokmill.core.records import Batch, Cursor
    from tokmill.read.position import Position, ReadSettings
    from tokmill.read.seekable import SeekableFile

_FILE_MAGIC = b"ARROW1"
_STREAM_MAGIC = b"\xff\xff\xff\xff"
_FEATHER_1_MAGIC = b"FEA1"
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""Of a stream (the Arrow columnar format, "IPC streaming format"); every writer since 2019 writes it."""


def read_arrow(file: SeekableFile, position: Position, settings: ReadSettings, start: Cursor) -> Iterator[Batch]:
    """Batches of one file, from `start` on. `index` is not set.

    Raises DamagedInputError, BadRecordError, MemoryBudgetError, ChangedError.
    """
    return _ArrowReader(file, position, settings).batches(start)


class _ArrowReader:
    """Reads one file."""

    def __init__(self, file: SeekableFile, position: Position, settings: ReadSettings) -> None:
        self._file = file
        self._position = position
        self._settings = settings
        self._columns = ColumnReader(position, settings, file.raw_position)

    def batches(self, start: Cursor) -> Iterator[Batch]:
        first = 0
        arrays = self._arrays(start.record)
        while True:
            try:
                found = next(arrays, None)
            except TokmillError:
                raise
            except ARROW_ERRORS as error:
                raise self._error(error) from error
            if found is None:
                break
            n_rows, array = found
            if array is not None:
                yield from self._batches(array.slice(self._position.record - first))
            first += n_rows
        self._file.check_unchanged()
        yield from self._columns.end()

    def _batches(self, array: pa.Array) -> Iterator[Batch]:
        """`ColumnReader.batches`, with the place where memory does not suffice."""
        try:
            yield from self._columns.batches(array)
        except MemoryError as error:
            raise self._error(error) from error

    def _arrays(self, n_before: int) -> Iterator[tuple[int, pa.Array | None]]:
        """Number of rows and column of each record batch; no column where the position lies behind it."""
        head = self._file.read(8)
        self._file.seek(0)
        if head.startswith(_FEATHER_1_MAGIC):
            raise DamagedInputError(
                "this is Feather version 1, which is no Arrow file",
                where=self._position.source.path,
                allowed="Feather version 2, Arrow IPC files and streams",
                next_step='write it again: pyarrow.feather.write_feather(pyarrow.feather.read_table("FILE"), "NEW_FILE")',
            )
        # A stream begins with a mark, of Arrow before 0.15 with the length of its schema.
        if not head.startswith((_FILE_MAGIC, _STREAM_MAGIC)) and int.from_bytes(head[:4], "little") > self._n_bytes():
            raise self._error(ValueError("it does not begin as one"))
        return self._of_file(n_before) if head.startswith(_FILE_MAGIC) else self._of_stream(n_before)

    def _n_bytes(self) -> int:
        return self._position.source.size_bytes or 0

    def _of_file(self, n_before: int) -> Iterator[tuple[int, pa.Array | None]]:
        schema = pa.ipc.open_file(_Bounded(self._file, self)).schema
        index = self._checked(schema)
        opened = pa.ipc.open_file(
            _Bounded(self._file, self), options=pa.ipc.IpcReadOptions(included_fields=[index], use_threads=False)
        )
        first = 0
        for i in range(opened.num_record_batches):
            batch = opened.get_batch(i)
            first += len(batch)
            yield len(batch), self._column(batch) if first > n_before else None

    def _of_stream(self, n_before: int) -> Iterator[tuple[int, pa.Array | None]]:
        file: Any = _Bounded(self._file, self)
        with pa.ipc.open_stream(file, options=pa.ipc.IpcReadOptions(use_threads=False)) as opened:
            self._checked(opened.schema)
            first = 0
            for batch in opened:
                first += len(batch)
                yield len(batch), self._column(batch) if first > n_before else None
        # pyarrow takes a stream that was cut between two record batches for one that ends there.
        self._file.seek(-len(_END), 2)
        if self._file.read(len(_END)) != _END:
            raise ValueError("it does not end with the mark of a stream's end")

    def _column(self, batch: pa.RecordBatch) -> pa.Array:
        batch.validate()
        column = as_bytes(text_column(batch, self._settings.content.text_key))
        # A damaged file names places that are not there; looked at unchecked, they end the process.
        column.validate(full=True)
        return column

    def _checked(self, schema: pa.Schema) -> int:
        """The index of the column that is wanted. Raises BadRecordError."""
        key = self._settings.content.text_key
        check_column(schema, key, whole_file(self._position.location()))
        names: list[str] = schema.names
        return names.index(key) if key in names else names.index(key.split(".")[0])

    def refuse(self, n_bytes: int) -> None:
        """Raises MemoryBudgetError for a read that the budget does not allow."""
        most = 2 * self._settings.max_piece_bytes
        if n_bytes > most:
            where = self._position.location()
            at = type(where)(path=where.path, record=where.record, unit=where.unit)
            self._file.failed = piece_too_long("a record batch of this Arrow file", str(at), most, 0, None)
            raise self._file.failed

    def _error(self, error: Exception) -> TokmillError:
        where = self._position.location()
        at = type(where)(path=where.path, record=where.record, unit=where.unit)
        return self._file.failed or file_error(error, "Arrow", at, self._settings.budget_bytes)


class _Bounded:
    """A file that refuses to be read beyond the budget in one piece. What pyarrow needs of a file."""

    closed = False

    def __init__(self, file: SeekableFile, reader: _ArrowReader) -> None:
        self._file = file
        self._reader = reader

    def read(self, size: int = -1) -> bytes:
        self._reader.refuse(size)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """The file is its owner's."""
