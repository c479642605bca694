"""Parquet: one column of texts, streamed; a row group of any size is read a megabyte at a time.

pyarrow does the reading. The hard one is that it is told how many rows to read and not how many bytes: it begins with few rows, and
the next number follows from what the last ones took. What still does not fit is asked for again with fewer rows, down to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tokmill.core.errors import TokmillError
from tokmill.read.arrow_columns import ARROW_ERRORS, ColumnReader, file_error, text_column, whole_file
from tokmill.read.footer import open_parquet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow.parquet as pq

    from tokmill.core.records import Batch, Cursor
    from tokmill.read.position import Position, ReadSettings
    from tokmill.read.seekable import SeekableFile

_FIRST_ROWS = 16
_MOST_ROWS = 4096
_MORE = 4
"""By so much the number of rows grows at most from one read to the next."""


def read_parquet(file: SeekableFile, position: Position, settings: ReadSettings, start: Cursor) -> Iterator[Batch]:
    """Batches of one file, from `start` on. `index` is not set.

    Raises DamagedInputError, BadRecordError, MemoryBudgetError, ChangedError.
    """
    return _ParquetReader(file, position, settings).batches(start)


class _ParquetReader:
    """Reads one file."""

    def __init__(self, file: SeekableFile, position: Position, settings: ReadSettings) -> None:
        self._file = file
        self._position = position
        self._settings = settings
        self._columns = ColumnReader(position, settings, file.raw_position)

    def batches(self, start: Cursor) -> Iterator[Batch]:
        opened = open_parquet(
            self._file, self._settings.content.text_key, whole_file(self._position.location()), self._settings.budget_bytes
        )
        first, end = 0, self._position.end_record
        for group in range(opened.metadata.num_row_groups):
            behind = first + opened.metadata.row_group(group).num_rows
            # A part of a file ends where a row group does.
            if start.record < behind and (end is None or behind <= end):
                yield from self._group(opened, group, first, behind)
            first = behind
        self._file.check_unchanged()
        yield from self._columns.end()

    def _group(self, opened: pq.ParquetFile, group: int, first: int, behind: int) -> Iterator[Batch]:
        """The rows of a group from the position on, which lies in it."""
        most = _MOST_ROWS
        while self._position.record < behind:
            rows = RowGroup(opened, group, self._position.record - first, most, self._settings)
            while (column := self._next(rows, most)) is not None:
                yield from self._batches(column)
            if not rows.is_over:
                most = max(1, min(most, rows.n_rows) // 8)
            elif self._position.record < behind:
                raise self._error(ValueError(f"row group {group} ends {behind - self._position.record:,} rows early"))

    def _next(self, rows: RowGroup, most: int) -> pa.Array | None:
        """The texts of the next rows; None at the end of the group, and where so many rows do not fit into memory."""
        try:
            return rows.next()
        except TokmillError:
            raise
        except MemoryError as error:
            if most == 1:
                raise self._error(error) from error
            return None
        except ARROW_ERRORS as error:
            raise self._error(error) from error

    def _batches(self, column: pa.Array) -> Iterator[Batch]:
        """`ColumnReader.batches`, with the place where memory does not suffice."""
        try:
            yield from self._columns.batches(column)
        except MemoryError as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> TokmillError:
        where = self._position.location()
        at = type(where)(path=where.path, record=where.record, unit=where.unit)
        return self._file.failed or file_error(error, "Parquet", at, self._settings.budget_bytes)


class RowGroup:
    """The texts of one row group, a number of rows at a time that follows their size."""

    def __init__(self, opened: pq.ParquetFile, group: int, n_skipped: int, most_rows: int, settings: ReadSettings) -> None:
        """n_skipped: rows that lie before. Raises what pyarrow raises, as does `next`."""
        self.n_rows = min(_FIRST_ROWS, most_rows)
        """Read next."""
        self.is_over = False
        """Whether the end of the group was met."""
        self._most = most_rows
        self._skip = n_skipped
        self._key = settings.content.text_key
        # Enough of a batch to be one by itself, and not so much that two are made of it.
        self._target_bytes = settings.batch_bytes * 3 // 4
        self._opened = opened
        self._batches: Iterator[Any] = opened.iter_batches(
            batch_size=self.n_rows, row_groups=[group], columns=[self._key], use_threads=False
        )

    def next(self) -> pa.Array | None:
        """The texts of the next rows; None at the end of the group."""
        while (batch := next(self._batches, None)) is not None:
            n_read = len(batch)
            column = text_column(batch, self._key)
            column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            self._adapt(max(1, column.nbytes) / max(1, n_read))
            if self._skip < n_read:
                column, self._skip = column.slice(self._skip), 0
                return column
            self._skip -= n_read
        self.is_over = True
        return None

    def _adapt(self, row_bytes: float) -> None:
        wanted = max(1, min(self._most, int(self._target_bytes / row_bytes), self.n_rows * _MORE))
        if wanted != self.n_rows:
            self.n_rows = wanted
            self._opened.reader.set_batch_size(wanted)
