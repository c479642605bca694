"""The texts of one column of an Arrow record batch, a slice of rows at a time, however large the batch is.

Buffers are read from front to back, and decompressed as they are read. Texts with offsets lie in the order of the rows. Those of
views and dictionaries may lie anywhere: a slice of rows collects them in the order in which they are stored, each once.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tokmill.core.errors import DamagedInputError
from tokmill.read.compression import new_codec
from tokmill.read.stream import CompressedStream, read_fully

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Compression, Input
    from tokmill.read.formats.arrow_messages import ColumnPlace, FlatTable, Message
    from tokmill.read.seekable import SeekableFile

_CODECS: tuple[Compression, ...] = ("lz4", "zstd")
_MOST_ROWS = 1 << 16
"""Rows looked at at a time."""
_INLINE_BYTES = 12
"""A view of so few bytes holds them itself."""
_VIEW = np.dtype([("n_bytes", "<i4"), ("prefix", "<i4"), ("buffer", "<i4"), ("offset", "<i4")])
_STREAMS_KEPT = 8
_NONE = np.zeros(0, np.uint8)
"""Bits of validity where all are null."""
_PASS_BYTES = 1 << 20


class _FileRange:
    """A range of a file as a stream."""

    def __init__(self, file: SeekableFile, begin: int, n_bytes: int) -> None:
        self.offset = 0
        self._file, self._begin, self._n = file, begin, n_bytes

    def read(self, n_bytes: int) -> bytes:
        """See ByteStream."""
        self._file.seek(self._begin + self.offset)
        data = self._file.read(min(n_bytes, self._n - self.offset))
        self.offset += len(data)
        return data

    def skip(self, n_bytes: int) -> None:
        """See ByteStream."""
        self.offset = min(self._n, self.offset + n_bytes)

    def raw_position(self) -> int:
        """See ByteStream."""
        return self._file.raw_position()

    def close(self) -> None:
        """The file is another's."""


class Buffer:
    """A buffer of a record batch."""

    def __init__(self, file: SeekableFile, source: Input, begin: int, n_stored: int, compression: Compression) -> None:
        """Find out how long it is, decompressed. Raises ValueError."""
        self._file, self._source, self._begin, self._n_stored = file, source, begin, n_stored
        self._compression: Compression = "none"
        self.n_bytes = n_stored
        if compression == "none" or not n_stored:
            return
        file.seek(begin)
        head = file.read(8)
        length = struct.unpack("<q", head)[0] if len(head) == n_stored or len(head) == 8 else -2
        self._begin, self._n_stored = begin + 8, n_stored - 8
        # A buffer that compression would have made longer is stored as it is.
        if length != -1:
            self._compression = compression
        self.n_bytes = self._n_stored if length == -1 else length
        if self.n_bytes < 0 or self._n_stored < 0:
            raise ValueError("a buffer has no length")

    def open(self) -> ByteStream:
        """Return its bytes as a stream."""
        stored = _FileRange(self._file, self._begin, self._n_stored)
        is_plain = self._compression == "none"
        return stored if is_plain else CompressedStream(stored, self._source, new_codec(self._compression))

    def all(self) -> bytes:
        """Return all of it. Raises ValueError."""
        return _exactly(self.open(), self.n_bytes)


def _exactly(stream: ByteStream, n_bytes: int) -> bytes:
    """Return the next bytes of a buffer. Raises ValueError if it has less, or is damaged."""
    try:
        data = read_fully(stream, n_bytes)
    except DamagedInputError as error:
        raise ValueError(f"in a buffer {error.what}") from error
    if len(data) < n_bytes:
        raise ValueError("a buffer is shorter than it says")
    return data


def _pass_over(stream: ByteStream, n_bytes: int) -> None:
    """Go on in a buffer. Raises as `_exactly`."""
    if isinstance(stream, _FileRange):
        stream.skip(n_bytes)
        return
    while n_bytes:
        n_bytes -= len(_exactly(stream, min(n_bytes, _PASS_BYTES)))


class BatchBuffers:
    """The buffers and nodes of one record batch, taken in order."""

    def __init__(self, file: SeekableFile, source: Input, message: Message, rows: FlatTable) -> None:
        """Begin with its first column. Raises ValueError."""
        self._file, self._source = file, source
        self._body, self._n_body = message.body, message.end - message.body
        self.n_rows = rows.number(0)
        self.is_old = message.is_old
        self._nodes, self._buffers, self._n_views = rows.numbers(1, 2), rows.numbers(2, 2), rows.numbers(4)[:, 0]
        self.go_to((0, 0, 0))
        packed = rows.table(3)
        codec = packed.number(0, "<b") if packed else 0
        if codec not in range(len(_CODECS)):
            raise ValueError(f"its buffers are compressed in a way that nobody knows ({codec})")
        self._compression: Compression = _CODECS[codec] if packed else "none"

    def go_to(self, start: tuple[int, int, int]) -> None:
        """Continue with these: indices of the next node, buffer and column of views."""
        self._node, self._buffer, self._view = start

    def node(self) -> tuple[int, int]:
        """Return length and number of nulls of the next node; -1: not known."""
        if self._node >= len(self._nodes):
            raise ValueError("a record batch does not have all columns")
        n_rows, n_nulls = map(int, self._nodes[self._node])
        self._node += 1
        if n_rows < 0 or not -1 <= n_nulls <= n_rows:
            raise ValueError("a column has no length")
        return n_rows, n_nulls

    def buffer(self) -> Buffer:
        """Return the next buffer."""
        if self._buffer >= len(self._buffers):
            raise ValueError("a record batch does not have all columns")
        begin, length = map(int, self._buffers[self._buffer])
        self._buffer += 1
        if min(begin, length) < 0 or begin + length > self._n_body:
            raise ValueError("a buffer lies outside its record batch")
        return Buffer(self._file, self._source, self._body + begin, length, self._compression)

    def data_of_views(self) -> list[Buffer]:
        """Return the buffers that the next column of views points into."""
        if self._view >= len(self._n_views):
            raise ValueError("a record batch does not have all columns")
        n_buffers, self._view = int(self._n_views[self._view]), self._view + 1
        if not 0 <= n_buffers <= len(self._buffers):
            raise ValueError("a column of views has no buffers")
        return [self.buffer() for _ in range(n_buffers)]

    def valid(self, check_size: Callable[[int], None]) -> tuple[int, NDArray[np.uint8] | None]:
        """Return the length of the next node, and its bits of validity; None if all are valid."""
        n_rows, n_nulls = self.node()
        bits = self.buffer()
        if not n_nulls or (n_nulls < 0 and not bits.n_bytes):
            return n_rows, None
        check_size(bits.n_bytes)
        if 8 * bits.n_bytes < n_rows:
            raise ValueError("a buffer is shorter than it says")
        return n_rows, np.frombuffer(bits.all(), np.uint8)[: -(-n_rows // 8)]


class Heap:
    """Texts that lie anywhere in some buffers."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.inline = b""
        """Buffer -1: the views themselves."""
        self._buffers = buffers
        self._open: dict[int, ByteStream] = {}

    def texts(self, which: NDArray[np.int64], begins: NDArray[np.int64], sizes: NDArray[np.int64]) -> pa.Array:
        """Return texts, each in buffer `which`, as large_binary. Raises ValueError for one that is not inside it."""
        lengths = np.array([buffer.n_bytes for buffer in self._buffers] + [len(self.inline)], np.int64)
        if len(which) and (which.min() < -1 or which.max() >= len(self._buffers) or (begins + sizes > lengths[which]).any()):
            raise ValueError("a text lies outside its buffer")
        if len(sizes) and min(begins.min(), sizes.min()) < 0:
            raise ValueError("a text lies outside its buffer")
        order = np.lexsort((sizes, begins, which))
        kept = np.ones(len(order), np.bool_)
        columns = [column[order] for column in (which, begins, sizes)]
        kept[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
        positions = np.empty(len(order), np.int64)
        positions[order] = np.cumsum(kept) - 1
        which, begins, sizes = (column[kept] for column in columns)
        ends = begins + sizes
        follows = (which[1:] == which[:-1]) & (begins[1:] == ends[:-1])
        edges = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(which)] if len(which) else [0]
        data = b"".join([self._read(int(which[a]), int(begins[a]), int(ends[b - 1])) for a, b in pairwise(edges)])
        offsets = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        return pa.Array.from_buffers(pa.large_binary(), len(sizes), [None, pa.py_buffer(offsets), pa.py_buffer(data)]).take(
            pa.array(positions)
        )

    def _read(self, which: int, begin: int, end: int) -> bytes:
        if which < 0:
            return self.inline[begin:end]
        stream = self._open.pop(which, None)
        if stream is None or stream.offset > begin:
            stream = self._buffers[which].open()
        _pass_over(stream, begin - stream.offset)
        # The last used is the last to go.
        self._open[which] = stream
        if len(self._open) > _STREAMS_KEPT:
            del self._open[next(iter(self._open))]
        return _exactly(stream, end - begin)


class Values:
    """Texts that are reached by their number: of a dictionary, which may grow by deltas, or of runs. Held, as far as they fit."""

    def __init__(self, most_bytes: int) -> None:
        """most_bytes: how much text is held; more is read where it is needed."""
        self._room = most_bytes
        self._parts: list[_Part] = []
        self._firsts = np.zeros(1, np.int64)
        """The number of the first text of each part, and of all texts."""

    def add(self, part: _Part) -> None:
        """Add texts after those that there are."""
        if part.array is None and part.n_bytes <= self._room:
            part.hold()
        if part.array is not None:
            self._room -= part.n_bytes
        # Each part is more than half of the one before: there are few, and each text was copied few times.
        while self._parts and len(self._parts[-1]) <= 2 * len(part) and (one := self._parts[-1].with_next(part)):
            self._parts.pop()
            part = one
        self._parts.append(part)
        self._firsts = np.cumsum([0, *map(len, self._parts)])

    def sizes(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bytes of texts; -1 of a null. Raises ValueError for a number that there is not."""
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self._firsts[-1]:
            raise ValueError("a row has no text in the dictionary")
        found = np.empty(len(numbers), np.int64)
        for part, places, inside in self._by_part(numbers):
            found[places] = part.sizes[inside]
        return found

    def texts(self, numbers: NDArray[np.int64]) -> pa.Array:
        """Return texts, none of them null, as large_binary."""
        found = [(part.texts(inside), places) for part, places, inside in self._by_part(numbers)]
        if len(found) == 1:
            return found[0][0]
        order = np.argsort(np.concatenate([np.empty(0, np.int64), *(places for _, places in found)]))
        return pa.concat_arrays([pa.array([], pa.large_binary()), *(array for array, _ in found)]).take(pa.array(order))

    def _by_part(self, numbers: NDArray[np.int64]) -> Iterator[tuple[_Part, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield each part with the places, in `numbers`, of those that are in it, and which of its texts these are."""
        which = np.searchsorted(self._firsts, numbers, "right") - 1
        for i in np.unique(which):
            places = np.flatnonzero(which == i)
            yield self._parts[i], places, numbers[places] - self._firsts[i]


class _Part:
    """Texts of one message."""

    def __init__(self, heap: Heap, which: NDArray[np.int64], begins: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        """sizes: -1 of a null."""
        self._heap, self._which, self._begins = heap, which, begins
        self.sizes = sizes
        self.n_bytes = int(sizes.sum())
        self.array: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def hold(self) -> None:
        """Read all texts."""
        self.array = self._heap.texts(self._which, self._begins, np.maximum(0, self.sizes))
        self._which = self._begins = self.sizes[:0]

    def with_next(self, other: _Part) -> _Part | None:
        """Return the texts of both, if they are held."""
        if self.array is None or other.array is None:
            return None
        both = _Part(self._heap, self._which, self._begins, np.concatenate([self.sizes, other.sizes]))
        both.array = pa.concat_arrays([self.array, other.array])
        return both

    def texts(self, numbers: NDArray[np.int64]) -> pa.Array:
        if self.array is not None:
            return self.array.take(pa.array(numbers))
        return self._heap.texts(self._which[numbers], self._begins[numbers], self.sizes[numbers])


class ColumnTexts:
    """Reads the texts of a column, of a type other than a dictionary."""

    def __init__(
        self,
        batch_bytes: int,
        most_bytes: int,
        most_text_bytes: int,
        hold: Callable[[int], None],
        check_size: Callable[[int], None],
    ) -> None:
        """Prepare.

        batch_bytes: of text wanted at a time; most_bytes: held at most; most_text_bytes: of one text that is read;
        hold: told of the bytes of texts that are read next, may wait; check_size: raises for what else is too much.
        """
        self._batch_bytes = batch_bytes
        self._most_text_bytes = most_text_bytes
        self._most = most_bytes
        # What lies anywhere is collected for more rows at once: to find it, all may have to be decompressed again.
        self._gathered_bytes = max(batch_bytes, most_bytes // 4)
        self._hold = hold
        self._check_size = check_size

    def rows(
        self, batch: BatchBuffers, message: Message, place: ColumnPlace, dictionary: Values, begin: int
    ) -> Iterator[pa.Array | int]:
        """Yield the rows of a column from `begin` on, as large_binary (or null); of a text that is too long, its bytes alone.

        Raises ValueError.
        """
        above: NDArray[np.uint8] | None = None
        *structs, start = place.starts(message.header, is_old=message.is_old)
        for outer in structs:
            batch.go_to(outer)
            above = _both(above, self._valid(batch, batch.n_rows))
        batch.go_to(start)
        kind = place.kinds[-1]
        if pa.types.is_null(kind):
            batch.node()
            for at in range(begin, batch.n_rows, _MOST_ROWS):
                yield pa.nulls(min(_MOST_ROWS, batch.n_rows - at))
        elif pa.types.is_run_end_encoded(kind):
            yield from self._numbered(self._runs(batch, kind, begin), above, begin)
        elif pa.types.is_dictionary(kind):
            valid = _both(above, self._valid(batch, batch.n_rows))
            numbers = self._indices(batch.buffer(), kind.index_type, batch.n_rows, begin)
            yield from self._numbered(((part, dictionary) for part in numbers), valid, begin)
        elif _is_view(kind):
            yield from self._viewed(batch, _both(above, self._valid(batch, batch.n_rows)), begin)
        else:
            yield from self._in_order(batch, kind, _both(above, self._valid(batch, batch.n_rows)), begin)

    def values(self, batch: BatchBuffers, kind: Any, values: Values) -> None:
        """Add all texts of a column to those of a dictionary. Raises ValueError."""
        is_null = pa.types.is_null(kind)
        n_rows, valid = (batch.node()[0], _NONE) if is_null else batch.valid(self._check_size)
        self._check_size(24 * n_rows)
        which = np.zeros(n_rows, np.int64)
        begins, sizes = which, which
        heap = Heap([])
        if _is_view(kind):
            heap, which, begins, sizes = _of_views(batch.buffer().all(), n_rows, batch.data_of_views())
        elif not is_null:
            offsets, data = batch.buffer(), batch.buffer()
            self._check_size(offsets.n_bytes)
            edges = np.frombuffer(offsets.all(), _offset_type(kind), n_rows + 1).astype(np.int64) if n_rows else which
            if n_rows and (edges[0] < 0 or (np.diff(edges) < 0).any()):
                raise ValueError("a text lies outside its buffer")
            heap, begins, sizes = Heap([data]), edges[:-1], np.diff(edges)
        if valid is not None:
            sizes = np.where(_bools(valid, 0, n_rows), sizes, -1)
        values.add(_Part(heap, which, begins, sizes))

    def _valid(self, batch: BatchBuffers, n_rows: int) -> NDArray[np.uint8] | None:
        n_found, bits = batch.valid(self._check_size)
        if n_found != n_rows:
            raise ValueError("its columns are not of the same length")
        return bits

    def _in_order(self, batch: BatchBuffers, kind: Any, valid: NDArray[np.uint8] | None, begin: int) -> Iterator[pa.Array | int]:
        """Yield texts that have offsets."""
        dtype, (bounds_data, data) = _offset_type(kind), (batch.buffer(), batch.buffer())
        if begin >= batch.n_rows:
            return
        bounds, texts = bounds_data.open(), data.open()
        _pass_over(bounds, begin * dtype.itemsize)
        edges = np.frombuffer(_exactly(bounds, dtype.itemsize), dtype).astype(np.int64)
        if not 0 <= edges[0] <= data.n_bytes:
            raise ValueError("a text lies outside its buffer")
        _pass_over(texts, int(edges[0]))
        for at in range(begin, batch.n_rows, _MOST_ROWS):
            n_rows = min(_MOST_ROWS, batch.n_rows - at)
            new = np.frombuffer(_exactly(bounds, n_rows * dtype.itemsize), dtype)
            edges = np.concatenate([edges[-1:], new])
            sizes = np.diff(edges)
            if (sizes < 0).any() or edges[-1] > data.n_bytes:
                raise ValueError("a text lies outside its buffer")
            for a, b in self._slices(sizes, self._batch_bytes):
                if sizes[a] > self._most_text_bytes:
                    _pass_over(texts, int(sizes[a]))
                    is_null = valid is not None and not _bools(valid, at + a, 1)[0]
                    yield pa.nulls(1) if is_null else int(sizes[a])
                    continue
                text = _exactly(texts, int(edges[b] - edges[a]))
                bits = None if valid is None else np.packbits(_bools(valid, at + a, b - a), bitorder="little")
                buffers = [
                    None if bits is None else pa.py_buffer(bits),
                    pa.py_buffer(edges[a : b + 1] - edges[a]),
                    pa.py_buffer(text),
                ]
                yield pa.Array.from_buffers(pa.large_binary(), b - a, buffers)

    def _viewed(self, batch: BatchBuffers, valid: NDArray[np.uint8] | None, begin: int) -> Iterator[pa.Array | int]:
        """Yield texts that have views."""
        views, buffers = batch.buffer(), batch.data_of_views()
        stream = views.open()
        _pass_over(stream, begin * _VIEW.itemsize)
        kept: Heap | None = None
        for at in range(begin, batch.n_rows, _MOST_ROWS):
            n_rows = min(_MOST_ROWS, batch.n_rows - at)
            heap, which, begins, sizes = _of_views(_exactly(stream, n_rows * _VIEW.itemsize), n_rows, buffers, kept)
            kept = heap
            is_valid = np.ones(n_rows, np.bool_) if valid is None else _bools(valid, at, n_rows)
            sizes = np.where(is_valid, sizes, 0)
            for a, b in self._slices(sizes, self._gathered_bytes):
                if sizes[a] > self._most_text_bytes:
                    yield int(sizes[a])
                    continue
                there = is_valid[a:b]
                yield _spread(heap.texts(which[a:b][there], begins[a:b][there], sizes[a:b][there]), there)

    def _numbered(
        self, numbered: Iterator[tuple[NDArray[np.int64], Values]], valid: NDArray[np.uint8] | None, begin: int
    ) -> Iterator[pa.Array | int]:
        """Yield texts that have numbers. numbered: the numbers of rows, and of which texts."""
        for numbers, values in numbered:
            is_valid = np.ones(len(numbers), np.bool_) if valid is None else _bools(valid, begin, len(numbers))
            sizes = np.zeros(len(numbers), np.int64)
            sizes[is_valid] = values.sizes(numbers[is_valid])
            is_valid &= sizes >= 0
            for a, b in self._slices(np.maximum(0, sizes), self._gathered_bytes):
                if sizes[a] > self._most_text_bytes:
                    yield int(sizes[a])
                    continue
                there = is_valid[a:b]
                yield _spread(values.texts(numbers[a:b][there]), there)
            begin += len(numbers)

    def _indices(self, stored: Buffer, index_type: Any, n_rows: int, begin: int) -> Iterator[NDArray[np.int64]]:
        dtype = np.dtype(index_type.to_pandas_dtype())
        stream = stored.open()
        _pass_over(stream, begin * dtype.itemsize)
        for at in range(begin, n_rows, _MOST_ROWS):
            yield np.frombuffer(_exactly(stream, min(_MOST_ROWS, n_rows - at) * dtype.itemsize), dtype).astype(np.int64)

    def _runs(self, batch: BatchBuffers, kind: Any, begin: int) -> Iterator[tuple[NDArray[np.int64], Values]]:
        """Yield the number of the run in which each row is, and the texts of the runs."""
        batch.node()
        if batch.is_old:
            batch.buffer()
        n_runs, _ = batch.valid(self._check_size)
        stored = batch.buffer()
        self._check_size(stored.n_bytes)
        ends = np.frombuffer(stored.all(), np.dtype(kind.run_end_type.to_pandas_dtype()))[:n_runs].astype(np.int64)
        if (np.diff(ends) <= 0).any():
            raise ValueError("its runs do not follow one another")
        values = Values(self._most)
        self.values(batch, kind.value_type, values)
        for at in range(begin, batch.n_rows, _MOST_ROWS):
            yield np.searchsorted(ends, np.arange(at, min(batch.n_rows, at + _MOST_ROWS)), "right"), values

    def _slices(self, sizes: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
        """Yield stretches of texts of so many bytes, of one text at least."""
        sums, a = np.cumsum(sizes), 0
        while a < len(sizes):
            before = int(sums[a - 1]) if a else 0
            b = max(a + 1, int(np.searchsorted(sums, before + most, "right")))
            n_bytes = int(sums[b - 1]) - before
            if n_bytes <= self._most_text_bytes:
                self._hold(n_bytes)
            yield a, b
            a = b


def _is_view(kind: Any) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _offset_type(kind: Any) -> np.dtype[Any]:
    return np.dtype("<i8" if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) else "<i4")


def _of_views(
    data: bytes, n_rows: int, buffers: list[Buffer], kept: Heap | None = None
) -> tuple[Heap, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return where the texts of views are: in which buffer, from where on, how many bytes. kept: the heap of these buffers."""
    if len(data) < n_rows * _VIEW.itemsize:
        raise ValueError("a buffer is shorter than it says")
    views = np.frombuffer(data, _VIEW, n_rows)
    sizes = views["n_bytes"].astype(np.int64)
    is_inline = sizes <= _INLINE_BYTES
    which = np.where(is_inline, -1, views["buffer"]).astype(np.int64)
    begins = np.where(is_inline, 4 + _VIEW.itemsize * np.arange(n_rows), views["offset"]).astype(np.int64)
    if (which[~is_inline] < 0).any():
        raise ValueError("a text lies outside its buffer")
    heap = kept or Heap(buffers)
    heap.inline = data
    return heap, which, begins, sizes


def _both(one: NDArray[np.uint8] | None, other: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """Return the bits that are set in both."""
    return one & other if one is not None and other is not None else one if other is None else other


def _bools(bits: NDArray[np.uint8], begin: int, n: int) -> NDArray[np.bool_]:
    """Return `n` bits from `begin` on; what is left out is 0."""
    found = np.unpackbits(bits[begin // 8 : (begin + n + 7) // 8], bitorder="little")[begin % 8 :][:n].astype(np.bool_)
    return found if len(found) == n else np.concatenate([found, np.zeros(n - len(found), np.bool_)])


def _spread(texts: pa.Array, is_there: NDArray[np.bool_]) -> pa.Array:
    """Return the texts in the places where one is, and nulls elsewhere."""
    if is_there.all():
        return texts
    return texts.take(pa.array(np.cumsum(is_there) - 1, mask=~is_there))
