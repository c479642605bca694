"""The messages of an Arrow IPC file or stream: where each lies, and that nothing else is in the file.

pyarrow hands over a record batch as a whole, however large. Here only its description is read (a flatbuffer, "Serialization and
Interprocess Communication" in the Arrow columnar format), which says where the buffers of each column are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tokmill.read.arrow_columns import stored_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from tokmill.read.seekable import SeekableFile

FILE_MAGIC = b"ARROW1"
_CONTINUATION = b"\xff\xff\xff\xff"
_FOOTER_END = 4 + len(FILE_MAGIC)
_GAP_BYTES = 1 << 20
_FIRST = 8
"""Where messages begin in a file."""
SCHEMA, DICTIONARY, ROWS = 1, 2, 3
_VERSION_5 = 4


class OldStreamError(ValueError):
    """A stream of Arrow before 0.15, whose messages begin otherwise."""


class OpenStreamError(ValueError):
    """A stream that ends without the mark of its end, which the format allows."""


class BigEndianError(ValueError):
    """A table whose numbers begin with their highest byte."""


class FlatTable:
    """A table in a flatbuffer. Raises ValueError for what lies outside it."""

    def __init__(self, data: bytes, at: int | None = None) -> None:
        """Describe the table at a byte of `data`; by default, its root."""
        self._data = data
        self._at = self._number("<I", 0) if at is None else at
        self._fields = self._at - self._number("<i", self._at)

    def number(self, field: int, code: str = "<q") -> int:
        """Return a number. code: its type, for `struct`."""
        at = self._place(field)
        return self._number(code, at) if at else 0

    def table(self, field: int) -> FlatTable | None:
        """Return a table in this one; None if there is none."""
        at = self._place(field)
        return FlatTable(self._data, at + self._number("<I", at)) if at else None

    def tables(self, field: int, index: int) -> FlatTable:
        """Return one of a vector of tables."""
        begin, n_items = self._vector(field)
        if not 0 <= index < n_items:
            raise ValueError("its schema is not complete")
        at = begin + 4 * index
        return FlatTable(self._data, at + self._number("<I", at))

    def numbers(self, field: int, width: int = 1) -> NDArray[np.int64]:
        """Return a vector of int64, or of structs of so many: shape (n, width)."""
        begin, n_items = self._vector(field)
        if begin + 8 * width * n_items > len(self._data):
            raise ValueError("a message is shorter than it says")
        return np.frombuffer(self._data, "<i8", width * n_items, begin).reshape(n_items, width)

    def _vector(self, field: int) -> tuple[int, int]:
        at = self._place(field)
        if not at:
            return 0, 0
        begin = at + self._number("<I", at)
        return begin + 4, self._number("<I", begin)

    def _place(self, field: int) -> int:
        """Return the byte at which a field is, 0 if it is left out."""
        at = 4 + 2 * field
        if at >= self._number("<H", self._fields):
            return 0
        relative = self._number("<H", self._fields + at)
        return self._at + relative if relative else 0

    def _number(self, code: str, at: int) -> int:
        if at < 0:
            raise ValueError("a message is damaged")
        try:
            value: int = struct.unpack_from(code, self._data, at)[0]
        except struct.error as error:
            raise ValueError("a message is shorter than it says") from error
        return value


@dataclass(frozen=True, slots=True)
class Message:
    """A message: what it is, and where its buffers are."""

    kind: int
    header: FlatTable
    is_old: bool
    """Whether unions and runs have a buffer more: bits of validity (before Arrow 1.0)."""
    body: int
    """Offset of its buffers in the file."""
    end: int
    """Offset after it."""
    schema: pa.Schema | None = None
    """What it is, if it is a schema."""


class MessageReader:
    """The messages of one file, in order."""

    def __init__(self, file: SeekableFile, check_size: Callable[[int], None]) -> None:
        """Begin. check_size: raises for what is too much to be read at once."""
        self._file = file
        self._check_size = check_size
        self._size = file.seek(0, 2)

    def read(self, begin: int, n_bytes: int) -> bytes:
        """Return bytes of the file. Raises ValueError if it has less."""
        self._check_size(n_bytes)
        self._file.seek(begin)
        data = self._file.read(n_bytes)
        if len(data) < n_bytes:
            raise ValueError(f"it ends at byte {begin + len(data):,}, in the middle of a message")
        return data

    def messages(self) -> Iterator[Message]:
        """Yield all messages; of a file, dictionaries before rows. Raises ValueError for anything that is no message."""
        begin = self.read(0, min(len(FILE_MAGIC), self._size))
        return self._of_file() if begin == FILE_MAGIC else self._of_stream()

    def _of_stream(self) -> Iterator[Message]:
        """Yield the messages of one stream, or of several, one after another."""
        at, is_open = 0, False
        while at < self._size or not at:
            message = self._message(at)
            if message is None:
                if not is_open:
                    raise ValueError(f"there is no schema at byte {at:,}")
                at, is_open = at + 8, False
                continue
            if is_open == (message.kind == SCHEMA):
                raise ValueError(f"at byte {at:,}, a stream {'begins before another ended' if is_open else 'has no schema'}")
            is_open, at = True, message.end
            yield message
        if is_open:
            raise OpenStreamError

    def _of_file(self) -> Iterator[Message]:
        length, magic = struct.unpack(f"<i{len(FILE_MAGIC)}s", self.read(max(0, self._size - _FOOTER_END), _FOOTER_END))
        footer_at = self._size - _FOOTER_END - length
        if magic != FILE_MAGIC or length < 0 or footer_at < _FIRST:
            raise ValueError("it does not end as one")
        data = self.read(footer_at, length)
        footer = FlatTable(data)
        # The second number of a block is 32 bits of length and 32 of padding.
        dictionaries, rows = ([(int(at), int(m) & 0xFFFFFFFF, int(n)) for at, m, n in footer.numbers(i, 3)] for i in (2, 3))
        blocks = sorted(dictionaries + rows)
        first = blocks[0][0] if blocks else footer_at
        self._check_beginning(min(first, footer_at))
        self._check_blocks([(first, 0, 0), *blocks], footer_at)
        header = footer.table(1)
        if header is None:
            raise ValueError("it has no schema")
        whole = b"".join([FILE_MAGIC, bytes(2), data, length.to_bytes(4, "little"), FILE_MAGIC])
        yield Message(SCHEMA, header, is_old=False, body=first, end=first, schema=pa.ipc.open_file(pa.BufferReader(whole)).schema)
        for blocks, kind in ((dictionaries, DICTIONARY), (rows, ROWS)):
            for at, n_metadata, n_body in blocks:
                message = self._message(at, is_file=True)
                if message is None or message.kind != kind or message.end != at + n_metadata + n_body:
                    raise ValueError(f"at byte {at:,} is not the message that the index at its end names")
                yield message

    def _check_beginning(self, end: int) -> None:
        """Raise ValueError if something other than a schema, and the mark of an end, lies before the first block."""
        data = self.read(_FIRST, max(0, end - _FIRST))
        begin = _FIRST + (len(data) - len(data.lstrip(b"\0"))) // 8 * 8
        if begin >= end:
            return
        if data[begin - _FIRST :].startswith(_CONTINUATION) or not _is_bare_schema(data[begin - _FIRST :]):
            message = self._message(begin, is_file=True)
            if message and message.kind != SCHEMA:
                raise ValueError(f"it has something at byte {begin:,} that its index does not name")
            self._check_blocks([(message.end if message else begin, 0, 0)], end)

    def _check_blocks(self, blocks: list[tuple[int, int, int]], footer_at: int) -> None:
        """Raise ValueError if there is anything between the blocks that the index names, or one is named twice."""
        for (at, n_metadata, n_body), (following, _, _) in pairwise([*blocks, (footer_at, 0, 0)]):
            end = at + n_metadata + n_body
            if min(n_body, at) < 0 or end > following:
                raise ValueError(f"its index names what lies at byte {following:,} twice")
            last = following == footer_at
            while end < following:
                gap = self.read(end, min(_GAP_BYTES, following - end))
                rest = gap.removeprefix(_CONTINUATION) if last else gap
                if rest.strip(b"\0"):
                    raise ValueError(f"it has something at byte {end:,} that its index does not name")
                end, last = end + len(gap), False

    def _message(self, at: int, *, is_file: bool = False) -> Message | None:
        """Return the message at a byte; None for the mark of a stream's end. Raises ValueError."""
        prefix = self.read(at, min(8, self._size - at))
        is_new = prefix.startswith(_CONTINUATION)
        if len(prefix) < 4 or (is_new and len(prefix) < 8):
            raise ValueError(f"it ends at byte {self._size:,}, in the middle of a message")
        length = struct.unpack_from("<i", prefix, 4 if is_new else 0)[0]
        begin = at + (8 if is_new else 4)
        if not 0 <= length <= self._size - begin or (not is_new and not is_file and at):
            raise ValueError(f"there is no message at byte {at:,}")
        if not length and is_new:
            return None
        metadata = self.read(begin, length)
        try:
            root = FlatTable(metadata)
            kind, header, n_body = root.number(1, "<B"), root.table(2), root.number(3)
        except ValueError as error:
            raise ValueError(f"there is no message at byte {at:,}") from error
        if kind not in (SCHEMA, DICTIONARY, ROWS) or header is None or n_body < 0:
            raise ValueError(f"there is no message of a table at byte {at:,}")
        if not is_new and not is_file:
            raise OldStreamError
        body = begin + length
        if body + n_body > self._size:
            raise ValueError(f"it ends at byte {self._size:,}, in the middle of a message")
        is_old = root.number(0, "<h") < _VERSION_5
        schema = None
        if kind == SCHEMA:
            schema = pa.ipc.read_schema(pa.py_buffer(b"".join([_CONTINUATION, length.to_bytes(4, "little"), metadata])))
        return Message(kind, header, is_old, body, body + n_body, schema)


def _is_bare_schema(data: bytes) -> bool:
    """Return whether a schema begins here without what every message begins with, as Polars writes it, and no message follows."""
    try:
        is_schema = FlatTable(data).number(1, "<B") == SCHEMA
    except ValueError:
        return False
    return is_schema and not any(_is_rows(data[at:]) for at in range(0, len(data), 8) if data.startswith(_CONTINUATION, at))


def _is_rows(data: bytes) -> bool:
    """Return whether a message of rows begins here."""
    try:
        return FlatTable(data[8:]).number(1, "<B") in (DICTIONARY, ROWS)
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class ColumnPlace:
    """Where a column is in the record batches of a schema."""

    kinds: tuple[Any, ...]
    """The types of the structs around it, and its own."""
    dictionary_id: int
    _before: tuple[NDArray[np.int64], ...]
    """Parts, as `_n_parts` counts them, before each of these."""

    @classmethod
    def find(cls, schema: pa.Schema, header: FlatTable, names: list[str]) -> ColumnPlace:
        """Return the place of a column. header: the schema's; names: of the structs around it, and its own."""
        fields, table, kinds = list(schema), header, list[Any]()
        before = [np.zeros(4, np.int64)]
        for name in names:
            index = next(i for i, field in enumerate(fields) if field.name == name)
            before[-1] = sum((_n_parts(field.type) for field in fields[:index]), before[-1])
            # A struct has one node, and one buffer: which are null.
            before.append(before[-1] + (1, 1, 0, 0))
            table = table.tables(5 if kinds else 1, index)
            kinds.append(stored_type(fields[index].type))
            fields = [kinds[-1].field(i) for i in range(kinds[-1].num_fields)]
        encoding = table.table(4)
        return cls(tuple(kinds), encoding.number(0) if encoding else -1, tuple(before[:-1]))

    def starts(self, rows: FlatTable, *, is_old: bool) -> list[tuple[int, int, int]]:
        """Return for each of its kinds the index of the first node, buffer and column of views in the header of a record batch."""
        n_data = rows.numbers(4)[:, 0]
        parts = [tuple(map(int, before)) for before in self._before]
        return [(nodes, buffers + int(n_data[:views].sum()) + bare * is_old, views) for nodes, buffers, views, bare in parts]


def _n_parts(kind: Any) -> NDArray[np.int64]:
    """Return the nodes, buffers, columns of views, and nodes that had a buffer more before Arrow 1.0, of a type."""
    kind, types = stored_type(kind), pa.types
    if types.is_dictionary(kind):
        return np.array([1, 2, 0, 0])
    is_view, is_union = types.is_string_view(kind) or types.is_binary_view(kind), types.is_union(kind)
    is_bare = is_union or types.is_run_end_encoded(kind)
    if types.is_null(kind) or types.is_run_end_encoded(kind):
        n_buffers = 0
    elif types.is_struct(kind) or types.is_fixed_size_list(kind) or (is_union and kind.mode == "sparse"):
        n_buffers = 1
    else:
        has_offsets = (types.is_binary, types.is_string, types.is_large_binary, types.is_large_string)
        n_buffers = 3 if any(test(kind) for test in (*has_offsets, types.is_list_view, types.is_large_list_view)) else 2
    children = (_n_parts(kind.field(i).type) for i in range(kind.num_fields))
    return sum(children, np.array([1, n_buffers, int(is_view), int(is_bare)]))
