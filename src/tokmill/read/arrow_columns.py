"""Batches of a column in Arrow's memory: what Parquet and Arrow files have in common.

The texts of an array lie next to each other; they are joined with a byte that none of them has and given to the engine as one
buffer, without a Python object for each document. Where a text is null, too long or not UTF-8, rows are looked at one by one.
"""

from __future__ import annotations

import glob as globbing
import os
import shlex
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokmill.core.documents import DocumentBuffer
from tokmill.core.errors import DamagedInputError
from tokmill.core.records import Batch, Counts
from tokmill.core.system.budget import memory_too_small
from tokmill.core.text import shortened
from tokmill.read.json_record import NotARecordError
from tokmill.read.position import Places
from tokmill.read.row_batcher import RowBatcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokmill.core.errors import TokmillError
    from tokmill.core.records import Location
    from tokmill.read.position import Position, ReadSettings
    from tokmill.read.seekable import SeekableFile

ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, EOFError)
"""What pyarrow raises for damaged files."""
_MOST_NAMES = 8
"""Columns named in a message."""
_LONG_BYTES = 1 << 8
"""Rows of at least so many bytes on average are joined by Python: 3 kB 0.08 ms a megabyte, where pyarrow takes 0.3 to 1.2."""


class ColumnReader:
    """The maker of batches from the arrays of one file, in order, and of the file's errors."""

    def __init__(self, kind: str, file: SeekableFile, position: Position, settings: ReadSettings) -> None:
        """Begin at a position. kind: the format, for messages."""
        self._kind = kind
        self._file = file
        self._position = position
        self._settings = settings
        allowed = f'rows with a string in the column "{settings.content.text_key}"'
        self._batcher = RowBatcher(position, settings, file.raw_position, allowed=allowed, records="rows")

    def batches(self, array: pa.Array) -> Iterator[Batch]:
        """Yield the rows of an array of text.

        Raises BadRecordError, MemoryBudgetError; DamagedInputError for an array that is damaged.
        """
        begin = 0
        try:
            while begin < len(array):
                part = self._dense(array, begin)
                begin += len(part)
                plain = self._plain(part)
                if plain is None:
                    yield from self._one_by_one(part)
                else:
                    yield self._batch(plain)
        except MemoryError as error:
            raise self.error(error) from error

    def too_long(self, n_bytes: int) -> Iterator[Batch]:
        """Yield what was read before a row whose text is too long, and skip it unread. Raises MemoryBudgetError."""
        self._batcher.count(n_bytes)
        self._reject_long(n_bytes)
        self._position.record += 1
        yield from self._batcher.take(self._position.cursor())

    def end(self) -> Iterator[Batch]:
        """Compare the file with what it was, and yield the batch that says that it has ended. Raises ChangedError."""
        self._file.check_unchanged()
        yield from self._batcher.take(self._position.end())

    def error(self, error: Exception) -> TokmillError:
        """Return the error for one of pyarrow's at the position."""
        where = self._position.location().at(None)
        return self._file.failed or file_error(error, self._kind, where, self._settings.budget_bytes)

    def _dense(self, array: pa.Array, begin: int) -> pa.Array:
        """Return rows from `begin` on as a large_binary array of about a batch of text, one row at least."""
        n_rows = min(len(array) - begin, self._settings.max_documents)
        part = array.slice(begin, n_rows)
        sizes = _sizes(part)
        fits = int(np.searchsorted(np.cumsum(sizes), self._settings.batch_bytes, "right"))
        part = part.slice(0, max(1, fits))
        return part.cast(pa.large_binary()) if part.type != pa.large_binary() else part

    def _plain(self, part: pa.Array) -> DocumentBuffer | None:
        """Return the documents of an array; None if a row needs to be looked at."""
        if part.null_count:
            return None
        text = _text(part, _offsets(part))
        return _joined(part) if len(text) <= self._settings.batch_bytes and _is_utf8(part) else None

    def _batch(self, documents: DocumentBuffer) -> Batch:
        position = self._position
        locate = Places(position.location())
        position.record += len(documents)
        return Batch(
            documents=documents,
            after=position.cursor(),
            locate=locate,
            counts=Counts(documents=len(documents), bytes_in=documents.n_bytes),
            position_bytes=self._file.raw_position(),
        )

    def _one_by_one(self, part: pa.Array) -> Iterator[Batch]:
        batcher, position, done, sizes = self._batcher, self._position, 0, _sizes(part)
        is_null = part.is_null().to_numpy(zero_copy_only=False)
        while done < len(part):
            n = 1
            if is_null[done]:
                # Nulls come in millions: all that follow each other, as far as there is room for them.
                ends = np.flatnonzero(~is_null[done : done + max(1, batcher.room_rows)])
                n = int(ends[0]) if len(ends) else min(len(part) - done, max(1, batcher.room_rows))
                what = f'the text in the column "{self._settings.content.text_key}" is null'
                batcher.reject(NotARecordError("null_text", what, "fix the row"), position.record, None, n)
            elif sizes[done] > self._settings.most_record_bytes:
                batcher.count(int(sizes[done]))
                self._reject_long(int(sizes[done]))
            else:
                self._settings.hold(int(sizes[done]), alone=True)
                value = part[done].as_py()
                batcher.count(len(value))
                batcher.add(value, position.record, None)
                del value
            done += n
            position.record += n
            if batcher.is_full or done == len(part):
                yield from batcher.take(position.cursor())

    def _reject_long(self, n_bytes: int) -> None:
        """Skip a text that is too long, before there is a copy of it. Raises MemoryBudgetError if that is not the policy."""
        settings, position = self._settings, self._position
        if not settings.skips_long(position, position.record, is_longer=True):
            raise settings.too_long("the text of a row", position.location().at(None), n_bytes, is_record=True)
        what = f"the text is longer than {settings.most_record_bytes:,} bytes"
        self._batcher.reject(NotARecordError("too_long", what, "raise --memory"), position.record, None)


def text_column(batch: pa.RecordBatch | pa.Table, key: str) -> pa.Array:
    """Return the column that a key names: the one of that name, or the field of a struct for a key with dots."""
    names = batch.schema.names
    if key in names:
        return batch.column(names.index(key))
    first, *below = key.split(".")
    column = batch.column(names.index(first))
    return pc.struct_field(column, below) if below else column


def check_column(schema: pa.Schema, key: str, where: Location) -> None:
    """Raise BadRecordError, for the whole file, unless the key names one column of texts."""
    kind = _type_of(schema, key)
    # The writer of a column of nulls does not know of which type they would be.
    if kind is not None and (_is_text(kind) or pa.types.is_null(kind)):
        return
    if kind is None:
        bad = _missing(schema, key)
    else:
        bad = NotARecordError("not_a_string", f'the column "{key}" is of type {str(kind)[:80]}', _other_column(list(schema), ()))
    raise bad.file_error(where, "a column of strings or bytes")


def file_error(error: Exception, what: str, where: Location, budget_bytes: int) -> TokmillError:
    """Return the error for one of pyarrow's. what: the format; budget_bytes: --memory."""
    if isinstance(error, MemoryError):
        return memory_too_small(f"a part of this {what} file does not fit", str(where), budget_bytes)
    message = " ".join(str(error).split())[:200]
    # Braces cannot be escaped in a pattern.
    name = shlex.quote("!" + globbing.escape(os.path.basename(where.path)).replace("{", "?"))
    return DamagedInputError(
        f"the {what} file is damaged: {message or type(error).__name__}",
        where=str(where),
        allowed=f"a complete {what} file",
        next_step=f"get a complete copy of the file; if it is no {what} file, leave it out (of a directory with --glob {name}), "
        "or name it alone with --input-format text",
    )


def _type_of(schema: pa.Schema, key: str) -> pa.DataType | None:
    """Return the type of the column that a key names; None if there is none, or more than one."""
    if key in schema.names:
        return stored_type(schema.field(key).type) if schema.names.count(key) == 1 else None
    first, *below = key.split(".")
    if not below or schema.names.count(first) != 1:
        return None
    kind = stored_type(schema.field(first).type)
    for name in below:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = stored_type(kind.field(name).type)
    return kind


def _missing(schema: pa.Schema, key: str) -> NotARecordError:
    """Return the error for no such column, or more than one. It names those in the struct that the key leads to."""
    how = "more than one column" if schema.names.count(key) > 1 else "no column"
    fields: Sequence[pa.Field] = list(schema)
    above: list[str] = []
    for name in key.split("."):
        kinds = [field.type for field in fields if field.name == name and pa.types.is_struct(field.type)]
        if len(kinds) != 1:
            break
        above.append(name)
        fields = [kinds[0].field(i) for i in range(kinds[0].num_fields)]
    names = ", ".join(shortened([f'"{field.name[:40]}"' for field in fields], _MOST_NAMES))
    inside = f' inside "{".".join(above)[:40]}"; fields' if above else "; columns"
    return NotARecordError("missing_text", f'there is {how} "{key}"{inside} there: {names}', _other_column(fields, above))


def stored_type(kind: Any) -> Any:
    """Return the type that is stored for a type: of an extension, the one below it."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind


def _is_text(kind: Any) -> bool:
    kind = stored_type(kind)
    value = stored_type(kind.value_type) if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else kind
    return value in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())


def _other_column(fields: Sequence[pa.Field], above: Sequence[str]) -> str:
    """Return what to type: the first column of texts. above: names of the structs that the fields are in."""
    names = [field.name for field in fields]
    texts = [field.name for field in fields if _is_text(field.type) and field.name.isprintable() and names.count(field.name) == 1]
    if texts:
        return f"pass --text-key {shlex.quote('.'.join([*above, texts[0]]))}"
    if len(set(names)) < len(names):
        return "rename columns that have the same name, and write the file again"
    return "pass --text-key COLUMN (a field of a struct: COLUMN.FIELD)"


def _sizes(array: pa.Array) -> np.ndarray:
    """Return the bytes of each text, 0 of a null: int64, shape (n_rows,)."""
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.int64)
    sizes = pc.binary_length(array)
    found: np.ndarray = pc.fill_null(sizes.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return found


def _offsets(array: pa.Array) -> np.ndarray:
    """Return the offsets of a large_binary array without nulls: int64, shape (n_rows + 1,)."""
    return np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]


def _is_utf8(array: pa.Array) -> bool:
    """Return whether each text of a large_binary array by itself is UTF-8. Does not hold the interpreter's lock."""
    text = pa.Array.from_buffers(pa.large_string(), len(array), array.buffers(), null_count=0, offset=array.offset)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _text(array: pa.Array, offsets: np.ndarray) -> memoryview:
    """Return the bytes between the first and the last offset."""
    data = array.buffers()[2]
    return memoryview(data)[offsets[0] : offsets[-1]] if data is not None else memoryview(b"")


def _joined(array: pa.Array) -> DocumentBuffer:
    """Return the texts of a large_binary array of UTF-8 without nulls, with a byte between them that none of them has."""
    offsets = _offsets(array)
    view = _text(array, offsets)
    text = np.frombuffer(view, np.uint8)
    separator = b"\0" if not len(text) or text.min() else b"\xff"
    if len(text) >= _LONG_BYTES * len(array):
        edges = (offsets - offsets[0]).tolist()
        data = separator.join([view[begin:end] for begin, end in pairwise(edges)])
    else:
        listed = pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array)
        data = pc.binary_join(listed, pa.scalar(separator, pa.large_binary()))[0].as_py()
    places = offsets - offsets[0] + np.arange(len(offsets))
    return DocumentBuffer(data, places[:-1], places[1:] - 1, separator)
