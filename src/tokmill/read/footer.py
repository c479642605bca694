"""What the end of a Parquet file says: its columns and row groups. For the reader, and for the plan, which reads some of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from tokmill.core.errors import TokmillError
from tokmill.core.records import Location
from tokmill.read.arrow_columns import ARROW_ERRORS, check_column, file_error
from tokmill.read.seekable import open_seekable

if TYPE_CHECKING:
    from tokmill.core.records import Input
    from tokmill.read.seekable import SeekableFile

_BUFFER_BYTES = 1 << 20
"""Of one column (600 MB in one row group: 133 MB resident; without a limit 376)."""


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A row group."""

    first: int
    """Rows that lie before it."""
    n_rows: int
    stored_bytes: int
    """Of the column of texts, decompressed but still encoded."""
    begin_byte: int
    """Of the file: its first page."""


def open_parquet(file: SeekableFile, key: str, where: Location, budget_bytes: int) -> pq.ParquetFile:
    """A file whose column of texts was found. Raises DamagedInputError, BadRecordError, MemoryBudgetError."""
    try:
        # Where pages have checksums, they are compared.
        opened = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
        schema = opened.schema_arrow
    except TokmillError:
        raise
    except ARROW_ERRORS as error:
        raise file.failed or file_error(error, "Parquet", where, budget_bytes) from error
    check_column(schema, key, where)
    return opened


def stored_groups(source: Input, key: str) -> list[StoredGroup]:
    """The row groups of a file. Raises as `open_parquet` does."""
    where = Location(path=source.path)
    with open_seekable(source) as file:
        metadata = open_parquet(file, key, where, 0).metadata
        groups, first = [], 0
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            columns = [group.column(j) for j in range(group.num_columns)]
            n_bytes = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == key)
            places = [place for column in columns for place in (column.dictionary_page_offset, column.data_page_offset) if place]
            groups.append(StoredGroup(first, group.num_rows, n_bytes, min(places, default=0)))
            first += group.num_rows
    return groups
