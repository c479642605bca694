"""The footer of a Parquet file: counted against the budget before it is decoded, and compared with the file it is in.

pyarrow decodes all of it, which takes ten to forty times the bytes that are stored: so much for each column and each row group. How
many there are is read first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tokmill.core.errors import DamagedInputError
from tokmill.core.system.budget import index_too_large
from tokmill.read.arrow_columns import ARROW_ERRORS, file_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokmill.core.records import Location
    from tokmill.read.position import ReadSettings
    from tokmill.read.seekable import SeekableFile

_MAGIC = b"PAR1"
_ENCRYPTED_MAGIC = b"PARE"
_SIGNATURE_BYTES = 28
"""After a footer that is not encrypted, of a file whose columns are (Parquet modular encryption, 5.5)."""
_CHUNK_BYTES, _COLUMN_BYTES = 950, 1800
"""Memory for a column of a row group, and for a column (measured: 2,000 columns x 80 groups, 60,000 x 1, 5 x 20,000)."""
_ARROW_SCHEMA, _IGNORED = b"\x18\x0cARROW:schema\x18", b"\x18\x0cARROW-schema\x18"
"""The key of the Arrow types that a table had: ignored, texts are strings. pyarrow would collect columns that were dictionaries (of
pandas, `category`) into one dictionary for each read, in a time that grows with the square of the rows."""
_SCHEMA, _ROW_GROUPS = 2, 4
_FOOTER_BEGIN = b"\x15"
"""Its first field, the version, is a number."""
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LIST, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, 9, 12
"""Types of Thrift's compact protocol."""
_MORE = 0x80
"""A byte of a number that is not its last."""
_MOST_SHIFT = 63
_MOST_NESTED = 32
_WINDOW_BYTES = 1 << 20


def read_footer(file: SeekableFile, where: Location, settings: ReadSettings) -> pq.FileMetaData:
    """Return the decoded footer of a file.

    Raises DamagedInputError, MemoryBudgetError, ChangedError.
    """
    size = file.seek(0, 2)
    try:
        length = _footer_bytes(file, size, where)
        _check_size(2 * length, where, settings)
        footer = _read(file, size - 8 - length, length)
        _check_size(2 * length + _decoded_bytes(footer), where, settings)
        whole = b"".join([_MAGIC, footer.replace(_ARROW_SCHEMA, _IGNORED), length.to_bytes(4, "little"), _MAGIC])
        del footer
        metadata = pq.read_metadata(pa.BufferReader(whole))
    except ARROW_ERRORS as error:
        raise file.failed or file_error(error, "Parquet", where, settings.budget_bytes) from error
    if length - metadata.serialized_size == _SIGNATURE_BYTES:
        raise _encrypted(where, "columns of this Parquet file are encrypted")
    return metadata


def places_of(metadata: pq.FileMetaData, key: str) -> list[int]:
    """Return the places of the columns that a key names."""
    return [i for i in range(metadata.num_columns) if metadata.schema.column(i).path == key]


def check_footer(file: SeekableFile, metadata: pq.FileMetaData, key: str) -> None:
    """Raise ValueError if the file holds rows that its footer does not name, as several files in one do."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise ValueError(f"its row groups do not have the {metadata.num_rows:,} rows that its footer names")
    if not groups:
        return
    wanted = places_of(metadata, key)
    chunks = [(group, group.column(i)) for group in groups for i in wanted]
    for group, chunk in chunks:
        if chunk.num_values != group.num_rows:
            raise ValueError(f"a column has {chunk.num_values:,} values for {group.num_rows:,} rows")
        if chunk.file_path:
            raise ValueError("its rows lie in other files")
    chunks += [(groups[-1], groups[-1].column(i)) for i in range(metadata.num_columns)]
    begins = [min(filter(None, (c.dictionary_page_offset, c.data_page_offset)), default=0) for _, c in chunks]
    end = max(begin + chunk.total_compressed_size for begin, (_, chunk) in zip(begins, chunks, strict=True))
    footer = file.seek(0, 2) - 8 - metadata.serialized_size
    # What follows the last column is an index of pages, or a Bloom filter. If it was a file by itself, another one is as long as
    # what seems to follow, or shorter, and ends at the beginning or there: all offsets are those of a file that begins later.
    for begin, stop in ((len(_MAGIC), min(footer - end + len(_MAGIC), end)), (max(len(_MAGIC), end), footer)):
        _check_one_file(file, begin, stop)


def _check_one_file(file: SeekableFile, begin: int, end: int) -> None:
    """Raise ValueError if another file ends between two places."""
    overlap = len(_MAGIC) - 1
    for at in range(begin, end, _WINDOW_BYTES):
        data = _read(file, at, min(_WINDOW_BYTES + overlap, end - at))
        found = data.find(_MAGIC)
        while found >= 0:
            if _is_end(file, at + found):
                what = f"another Parquet file ends in it, at byte {at + found + len(_MAGIC):,}"
                raise ValueError(f"{what}: each must be a file by itself")
            found = data.find(_MAGIC, found + 1)


def _is_end(file: SeekableFile, at: int) -> bool:
    """Return whether a footer ends at the magic bytes that are at a place."""
    length = int.from_bytes(_read(file, at - 4, 4), "little")
    if not 0 < length <= min(at - 4, _WINDOW_BYTES):
        return 0 < length <= at - 4 and _read(file, at - 4 - length, 1) == _FOOTER_BEGIN
    try:
        _Thrift(_read(file, at - 4 - length, length)).skip(_STRUCT)
    except (ValueError, IndexError):
        return False
    return True


def _footer_bytes(file: SeekableFile, size: int, where: Location) -> int:
    """Return the length of the footer. Raises ValueError; DamagedInputError for a file that is encrypted."""
    ends = (_read(file, 0, 4), _read(file, size - 4, 4)) if size >= len(_MAGIC) else ()
    if _ENCRYPTED_MAGIC in ends:
        raise _encrypted(where, "this Parquet file is encrypted")
    length = int.from_bytes(_read(file, size - 8, 4), "little") if size > 2 * len(_MAGIC) + 4 else 0
    if set(ends) != {_MAGIC} or not 0 < length <= size - 12:
        raise ValueError("it does not begin and end as one")
    return length


def _check_size(n_bytes: int, where: Location, settings: ReadSettings) -> None:
    if n_bytes > settings.spare_bytes:
        raise index_too_large("the footer of this Parquet file", str(where), settings.terms, n_bytes, settings.spare_bytes)


def _encrypted(where: Location, what: str) -> DamagedInputError:
    return DamagedInputError(
        f"{what}; tokmill has no keys",
        where=str(where),
        allowed="Parquet files that are not encrypted",
        next_step="read it with its keys, and write it again without encryption",
    )


def _read(file: SeekableFile, begin: int, n_bytes: int) -> bytes:
    file.seek(begin)
    data = file.read(n_bytes)
    if len(data) < n_bytes:
        raise ValueError("it ends early")
    return data


def _decoded_bytes(footer: bytes) -> int:
    """Return about how much memory a footer takes when it is decoded. Raises ValueError, IndexError."""
    thrift = _Thrift(footer)
    n_columns = n_chunks = 0
    for field, kind in thrift.fields():
        if field not in (_SCHEMA, _ROW_GROUPS) or kind != _LIST:
            thrift.skip(kind)
            continue
        n_items, item = thrift.list_head()
        if field == _SCHEMA:
            n_columns = n_items
            for _ in range(n_items):
                thrift.skip(item)
        else:
            # All row groups have the same columns, which are their first field.
            inside = next(thrift.fields(), None) if n_items else None
            n_chunks = n_items * thrift.list_head()[0] if inside == (1, _LIST) else 0
            break
    return _COLUMN_BYTES * n_columns + _CHUNK_BYTES * n_chunks


class _Thrift:
    """A cursor in data of Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield number and type of each field of a struct; whoever asks for the next has read, or skipped, this one."""
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._varint() >> 1
            yield number, head & 15

    def list_head(self) -> tuple[int, int]:
        """Return number and type of the items of a list."""
        head = self._byte()
        n_items = head >> 4 if head >> 4 < 15 else self._varint()
        if n_items > len(self._data):
            raise ValueError("a list in its footer is longer than the footer")
        return n_items, head & 15

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a value of a type."""
        if depth > _MOST_NESTED:
            raise ValueError("its footer is nested too deeply")
        if kind in (_BYTE, _DOUBLE):
            self._at += 1 if kind == _BYTE else 8
        elif kind in _INTEGERS:
            self._varint()
        elif kind == _BINARY:
            length = self._varint()
            self._at += length
        elif kind == _STRUCT:
            for _, inside in self.fields():
                self.skip(inside, depth + 1)
        elif kind == _LIST:
            n_items, item = self.list_head()
            for _ in range(n_items):
                self.skip(_BYTE if item in _BOOLEANS else item, depth + 1)
        elif kind not in _BOOLEANS:
            raise ValueError("its footer is not one of Parquet")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < _MORE:
                return value
            shift += 7
            if shift > _MOST_SHIFT:
                raise ValueError("a number in its footer has no end")
