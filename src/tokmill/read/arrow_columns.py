"""A column of a table in Arrow's memory becomes batches: what Parquet and Arrow files have in common.

The texts of an array lie one behind the other; they are joined with a byte that none of them holds and handed to the engine as one
buffer, with no Python object for each document. Where a text is null, too long or not UTF-8, the rows are looked at one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokmill.core.documents import DocumentBuffer
from tokmill.core.errors import DamagedInputError
from tokmill.core.records import Batch, Counts
from tokmill.core.system.budget import memory_too_small
from tokmill.read.json_record import NotARecordError
from tokmill.read.row_batcher import RowBatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokmill.core.errors import TokmillError
    from tokmill.core.records import Cursor, Location
    from tokmill.read.position import Position, ReadSettings

ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, EOFError)
"""What pyarrow raises for a file that is not as it should be."""
_MOST_NAMES = 8
"""Columns named in a message."""


class ColumnReader:
    """Makes batches of arrays, in order."""

    def __init__(self, position: Position, settings: ReadSettings, raw_position: Callable[[], int]) -> None:
        self._position = position
        self._settings = settings
        self._raw_position = raw_position
        allowed = f'rows with a string in the column "{settings.content.text_key}"'
        self._rows = RowBatcher(position, settings, raw_position, allowed=allowed, records="rows")

    def batches(self, array: pa.Array, *, after_last: Cursor | None = None) -> Iterator[Batch]:
        """The rows of an array of text. after_last: the cursor behind all of it, where it is not the next row.

        Raises BadRecordError, MemoryBudgetError; DamagedInputError for an array that is damaged.
        """
        begin, n_rows = 0, len(array)
        while begin < n_rows:
            part = self._dense(array, begin)
            begin += len(part)
            is_last = begin == n_rows
            plain = self._plain(part)
            if plain is None:
                yield from self._one_by_one(part, after_last if is_last else None)
            else:
                yield self._batch(plain, after_last if is_last else None)

    def end(self) -> Iterator[Batch]:
        """The batch that says that the input has ended."""
        yield from self._rows.take(self._position.end())

    def _dense(self, array: pa.Array, begin: int) -> pa.Array:
        """Rows from `begin` on as a large_binary array of about a batch of text, one row at least."""
        n_rows = min(len(array) - begin, self._settings.max_documents)
        part = array.slice(begin, n_rows)
        sizes = _sizes(part)
        fits = int(np.searchsorted(np.cumsum(sizes), self._settings.batch_bytes, "right"))
        part = part.slice(0, max(1, fits))
        if pa.types.is_dictionary(part.type):
            part = part.dictionary_decode()
        return part.cast(pa.large_binary()) if part.type != pa.large_binary() else part

    def _plain(self, part: pa.Array) -> DocumentBuffer | None:
        """The documents of an array; None if a row needs to be looked at."""
        if part.null_count:
            return None
        text = _text(part, _offsets(part))
        return _joined(part) if len(text) <= self._settings.batch_bytes and _is_utf8(part) else None

    def _batch(self, documents: DocumentBuffer, after: Cursor | None) -> Batch:
        position, first = self._position, self._position.record
        position.record += len(documents)
        return Batch(
            index=0,
            documents=documents,
            raw=None,
            is_val=None,
            after=after or position.cursor(),
            locate=lambda i: _row(position.location(0, first + i)),
            counts=Counts(documents=len(documents), bytes_in=documents.n_bytes),
            position_bytes=self._raw_position(),
        )

    def _one_by_one(self, part: pa.Array, after: Cursor | None) -> Iterator[Batch]:
        for i, text in enumerate(part):
            value = text.as_py()
            if value is None:
                what = f'the text in the column "{self._settings.content.text_key}" is null'
                self._rows.reject(NotARecordError("null_text", what, "mend the row"), self._position.record, None)
            else:
                self._rows.count(len(value))
                self._rows.add(value, self._position.record, None)
            del value
            self._position.record += 1
            if self._rows.is_full or i == len(part) - 1:
                is_last = i == len(part) - 1
                yield from self._rows.take((after if is_last else None) or self._position.cursor())


def text_column(batch: pa.RecordBatch | pa.Table, key: str) -> pa.Array:
    """The column that a key names: the one of that name, or the field of a struct for a key with dots."""
    names = batch.schema.names
    if key in names:
        return batch.column(names.index(key))
    first, *below = key.split(".")
    column = batch.column(names.index(first))
    return pc.struct_field(column, below) if below else column


def as_bytes(array: pa.Array) -> pa.Array:
    """An array of texts as one of bytes, without a copy: whether they are UTF-8 is another question."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(array.indices, as_bytes(array.dictionary), safe=False)
    views = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    return array.view(views[kind]) if kind in views else array


def check_column(schema: pa.Schema, key: str, where: Location) -> None:
    """Raises BadRecordError unless the key names one column of texts."""
    kind = _type_of(schema, key)
    # A column of nulls: what writes tables does not know of which type they would be.
    if kind is not None and (_is_text(kind) or pa.types.is_null(kind)):
        return
    if kind is None:
        bad = _missing(schema, key)
    else:
        bad = NotARecordError("not_a_string", f'the column "{key}" is of type {str(kind)[:80]}', _other_column(list(schema), ()))
    # A fault of the whole file, which no policy skips.
    error = bad.error(where, "a column of strings or bytes", "rows")
    error.next_step = bad.next_step
    raise error


def file_error(error: Exception, what: str, where: Location, budget_bytes: int) -> TokmillError:
    """What an error of pyarrow's means. what: the format; budget_bytes: --memory."""
    if isinstance(error, MemoryError):
        return memory_too_small(f"a part of this {what} file does not fit", str(where), budget_bytes)
    message = " ".join(str(error).split())[:200]
    return DamagedInputError(
        f"the {what} file is damaged: {message or type(error).__name__}",
        where=str(where),
        allowed=f"a complete {what} file",
        next_step="get a complete copy of the file; if it is not of this format, say which: --input-format text",
    )


def whole_file(location: Location) -> Location:
    """The file of a place."""
    return type(location)(path=location.path)


def _row(where: Location) -> Location:
    """A place without an offset: rows of such files have none."""
    return type(where)(path=where.path, record=where.record, unit=where.unit)


def _type_of(schema: pa.Schema, key: str) -> pa.DataType | None:
    """Of the column that a key names; None if there is none, or more than one."""
    if key in schema.names:
        return schema.field(key).type if schema.names.count(key) == 1 else None
    first, *below = key.split(".")
    if not below or schema.names.count(first) != 1:
        return None
    kind = schema.field(first).type
    for name in below:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def _missing(schema: pa.Schema, key: str) -> NotARecordError:
    """There is no such column, or more than one; what is there, inside of the struct that the key leads to."""
    how = "more than one column" if schema.names.count(key) > 1 else "no column"
    fields: Sequence[pa.Field] = list(schema)
    above: list[str] = []
    for name in key.split("."):
        kinds = [field.type for field in fields if field.name == name and pa.types.is_struct(field.type)]
        if len(kinds) != 1:
            break
        above.append(name)
        fields = [kinds[0].field(i) for i in range(kinds[0].num_fields)]
    names = ", ".join(f'"{field.name[:40]}"' for field in fields[:_MOST_NAMES])
    more = f" and {len(fields) - _MOST_NAMES} more" if len(fields) > _MOST_NAMES else ""
    inside = f' inside "{".".join(above)[:40]}"; fields' if above else "; columns"
    return NotARecordError("missing_text", f'there is {how} "{key}"{inside} there: {names}{more}', _other_column(fields, above))


def _is_text(kind: pa.DataType) -> bool:
    value: Any = kind.value_type if pa.types.is_dictionary(kind) else kind
    return value in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())


def _other_column(fields: Sequence[pa.Field], above: Sequence[str]) -> str:
    """What to type: the first column of texts. above: names of the structs that the fields are in."""
    texts: Sequence[str] = [field.name for field in fields if _is_text(field.type) and field.name.isidentifier()]
    return (
        f"pass --text-key {'.'.join([*above, texts[0]])}" if texts else "pass --text-key COLUMN (a field of a struct: COLUMN.FIELD)"
    )


def _sizes(array: pa.Array) -> np.ndarray:
    """Bytes of each text, 0 of a null: int64, shape (n_rows,)."""
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.int64)
    if pa.types.is_dictionary(array.type):
        sizes = pc.binary_length(array.dictionary).cast(pa.int64()).take(array.indices)
    elif pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        sizes = pc.binary_length(array.cast(pa.large_binary()))
    else:
        sizes = pc.binary_length(array)
    found: np.ndarray = pc.fill_null(sizes.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return found


def _offsets(array: pa.Array) -> np.ndarray:
    """Of a large_binary array without nulls: int64, shape (n_rows + 1,)."""
    return np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]


def _is_utf8(array: pa.Array) -> bool:
    """Whether each text of a large_binary array by itself is UTF-8. Does not hold the interpreter's lock."""
    text = pa.Array.from_buffers(pa.large_string(), len(array), array.buffers(), null_count=0, offset=array.offset)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _text(array: pa.Array, offsets: np.ndarray) -> memoryview:
    """What lies between the first and the last offset."""
    data = array.buffers()[2]
    return memoryview(data)[offsets[0] : offsets[-1]] if data is not None else memoryview(b"")


def _joined(array: pa.Array) -> DocumentBuffer:
    """The texts of a large_binary array of UTF-8 without nulls in one buffer, with a byte between them that none of them holds."""
    offsets = _offsets(array)
    text = np.frombuffer(_text(array, offsets), np.uint8)
    separator = b"\0" if not len(text) or text.min() else b"\xff"
    listed = pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array)
    data = pc.binary_join(listed, pa.scalar(separator, pa.large_binary()))[0].as_py()
    places = offsets - offsets[0] + np.arange(len(offsets))
    return DocumentBuffer(data, places[:-1], places[1:] - 1, separator)
