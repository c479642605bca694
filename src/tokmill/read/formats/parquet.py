"""Parquet: one column of texts, streamed; a row group of any size is read a megabyte at a time.

pyarrow does the reading, but is told how many rows to read and not how many bytes. So it begins with few rows, and the next number
follows from the size of the last ones. What still does not fit is asked for again with fewer rows, down to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokmill.core.local_struct import LocalStruct, MutableStruct
from tokmill.core.records import Location
from tokmill.read.arrow_columns import ARROW_ERRORS, ColumnReader, check_column, file_error, text_column
from tokmill.read.formats.parquet_footer import check_footer, places_of, read_footer
from tokmill.read.position import FormatReader
from tokmill.read.seekable import open_seekable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokmill.core.records import Batch, Cursor, Input
    from tokmill.read.position import Position, ReadSettings
    from tokmill.read.seekable import SeekableFile

_BUFFER_BYTES = 1 << 20
"""Buffer for one column (600 MB in one row group: 133 MB resident; without a limit 376)."""
_KEPT_CHUNKS, _KEPT_BYTES = 1 << 13, 4 << 20
"""Columns of row groups, and stored bytes, of a footer that is kept for the next range: twelve mebibytes when it is decoded."""
_FIRST_ROWS = 16
_MOST_ROWS = 1 << 16
_MORE = 4
"""The factor by which the number of rows grows at most from one read to the next."""


class StoredGroup(LocalStruct, frozen=True):
    """A row group of a file."""

    first: int
    """Rows that lie before it."""
    n_rows: int
    stored_bytes: int
    """Size of the text column, decompressed but still encoded."""
    begin_byte: int
    """Offset of its first page in the file."""


class _Footer(MutableStruct):
    """The footer of a file."""

    source: Input
    settings: tuple[str, int]
    """What else it was read with."""
    metadata: pq.FileMetaData
    is_checked: bool = False
    groups: list[StoredGroup] | None = None


_last: list[_Footer] = []
"""The footer that was read last, if it is small: most ranges are of the file of the range before."""


def stored_groups(source: Input, settings: ReadSettings) -> list[StoredGroup]:
    """Return the row groups of a file.

    Args:
        source: the file.
        settings: of its reader.

    Returns:
        The groups in the order of the file.

    Raises:
        DamagedInputError: the file's end cannot be read.
        MemoryBudgetError: there is too much of it.
        BadRecordError: there is no such column of texts.
        ChangedError: the file is not as it was found.
    """
    key = settings.content.text_key
    with open_seekable(source) as file:
        footer = _open(file, source, settings)[0]
        if footer.groups is not None:
            return footer.groups
        metadata = footer.metadata
        groups, first, wanted = [], 0, places_of(metadata, key)
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            columns = [group.column(j) for j in range(group.num_columns)]
            n_bytes = _stored_bytes(group, wanted)
            places = [place for column in columns for place in (column.dictionary_page_offset, column.data_page_offset) if place]
            groups.append(StoredGroup(first, group.num_rows, n_bytes, min(places, default=0)))
            first += group.num_rows
    footer.groups = groups
    return groups


def _stored_bytes(group: pq.RowGroupMetaData, places: Sequence[int]) -> int:
    """Return the bytes of the texts of a row group, decompressed but still encoded. places: of their columns."""
    return sum(group.column(i).total_uncompressed_size for i in places)


def _footer_of(file: SeekableFile, source: Input, settings: ReadSettings) -> _Footer:
    """Return the footer of a file that is what it was planned as. Raises DamagedInputError, MemoryBudgetError."""
    read_with = (settings.content.text_key, settings.budget_bytes)
    if _last and (_last[0].source, _last[0].settings) == (source, read_with):
        return _last[0]
    _last.clear()
    footer = _Footer(source, read_with, read_footer(file, Location(path=source.path), settings))
    metadata, is_known = footer.metadata, source.mtime_ns is not None or isinstance(source.version, str)
    is_small = metadata.num_row_groups * metadata.num_columns <= _KEPT_CHUNKS and metadata.serialized_size <= _KEPT_BYTES
    if is_known and is_small:
        _last.append(footer)
    return footer


def _open(file: SeekableFile, source: Input, settings: ReadSettings) -> tuple[_Footer, pq.ParquetFile]:
    """Open a file with a column of texts. Raises DamagedInputError, BadRecordError, MemoryBudgetError."""
    footer, where = _footer_of(file, source, settings), Location(path=source.path)
    try:
        # Where pages have checksums, they are compared.
        opened = pq.ParquetFile(
            file, metadata=footer.metadata, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
        )
        schema = opened.schema_arrow
    except ARROW_ERRORS as error:
        raise file.failed or file_error(error, "Parquet", where, settings.budget_bytes) from error
    check_column(schema, settings.content.text_key, where)
    return footer, opened


class ParquetReader(FormatReader["SeekableFile"]):
    """The reader of one file."""

    def __init__(self, stream: SeekableFile, position: Position, settings: ReadSettings) -> None:
        """See FormatReader."""
        super().__init__(stream, position, settings)
        self._columns = ColumnReader("Parquet", stream, position, settings)
        self._places: Sequence[int] = ()
        """The numbers of the columns that hold the texts."""
        self._n_rows = _FIRST_ROWS
        """To be read first of a group: as many as were read last of the group before."""

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """See FormatReader."""
        footer, opened = _open(self._stream, self._position.source, self._settings)
        try:
            if not footer.is_checked:
                check_footer(self._stream, opened.metadata, self._settings.content.text_key)
        except ARROW_ERRORS as error:
            raise self._columns.error(error) from error
        footer.is_checked = True
        self._places = places_of(opened.metadata, self._settings.content.text_key)
        first, stop = 0, self._position.stop_record
        for group in range(opened.metadata.num_row_groups):
            end = first + opened.metadata.row_group(group).num_rows
            # A range of a file ends where a row group does.
            if start.record < end and (stop is None or end <= stop):
                yield from self._group(opened, group, first, end)
            first = end
        yield from self._columns.end()

    def _group(self, opened: pq.ParquetFile, group: int, first: int, end: int) -> Iterator[Batch]:
        """Yield the rows of a group, from the position in it on. first, end: rows of the file."""
        most = _MOST_ROWS
        while self._position.record < end:
            stored = _stored_bytes(opened.metadata.row_group(group), self._places)
            # Of a small group, most may be what pages begin with.
            row_bytes = stored // max(1, end - first) if stored > _BUFFER_BYTES else 0
            self._settings.hold(row_bytes, alone=True)
            rows = _GroupRows(opened, group, self._position.record - first, self._n_rows, most, row_bytes, self._settings)
            while (column := self._next(rows, most)) is not None:
                yield from self._columns.batches(column)
            self._n_rows = rows.n_rows
            if not rows.is_over:
                self._n_rows, most = _FIRST_ROWS, max(1, min(most, rows.n_rows) // 8)
            elif self._position.record < end:
                raise self._columns.error(ValueError(f"row group {group} ends {end - self._position.record:,} rows early"))

    def _next(self, rows: _GroupRows, most: int) -> pa.Array | None:
        """Return the texts of the next rows; None at the end of the group, and where so many rows do not fit into memory."""
        try:
            return rows.next()
        except MemoryError as error:
            if most == 1:
                raise self._columns.error(error) from error
            return None
        except ARROW_ERRORS as error:
            raise self._columns.error(error) from error


class _GroupRows:
    """The texts of one row group, read by a number of rows that follows from their size."""

    def __init__(
        self,
        opened: pq.ParquetFile,
        group: int,
        n_skipped: int,
        first_rows: int,
        most_rows: int,
        row_bytes: int,
        settings: ReadSettings,
    ) -> None:
        """Begin after n_skipped rows. first_rows: to be read at first. row_bytes: what each takes, about.

        Raises what pyarrow raises, as does `next`.
        """
        self.is_over = False
        """Whether the end of the group was met."""
        self._most = most_rows
        self._skip = n_skipped
        self._key = settings.content.text_key
        # Enough of a batch to be one by itself, and not so much that two are made of it.
        self._target_bytes = settings.batch_bytes * 3 // 4
        self._opened = opened
        self.n_rows = max(1, min(first_rows, most_rows, self._target_bytes // max(1, row_bytes)))
        """To be read next."""
        self._batches: Iterator[Any] = opened.iter_batches(
            batch_size=self.n_rows, row_groups=[group], columns=[self._key], use_threads=False
        )

    def next(self) -> pa.Array | None:
        """Return the texts of the next rows; None at the end of the group."""
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
