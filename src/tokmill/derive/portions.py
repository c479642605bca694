"""Documents on their way through several machines: what one task scatters of a source is a portion, one file on the shared disk.

A portion is as much of a training side as a task takes at a time, cut where the manifest says how many documents lie before. Its
file holds runs: what was in memory at a time, the ids of one bucket after the other, their records, and an index that says where
each bucket begins. At the end stand the offsets of these indexes. So a task that writes a bucket reads a stretch of every file, and
there are as many files as portions, not portions times buckets. A file has its name when all of it is on the disk. Nothing of it
can be seen in the output.
"""

from __future__ import annotations

import os
import struct
import uuid
from bisect import bisect_right
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Self

import msgspec
import numpy as np

from tokmill.core.bounded import Natural
from tokmill.core.errors import DamageError
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.derive.buckets import RECORD, SUM_BITS, BucketState, damage, read_open
from tokmill.output import growing_path, remove_growing, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from tokmill.core.system.tree import Directory, TreePath
    from tokmill.derive.bucket_run import Operand

_ENTRY = np.dtype(
    [("ids", "<u8"), ("ids_bytes", "<u8"), ("records", "<u8"), ("n_records", "<u8"), ("sum_low", "<u8"), ("sum_high", "<u8")]
)
"""Of a bucket in a run: where its ids begin and how many bytes they have, the same of its records, and the sum of their digests."""
_TRAILER = struct.Struct("<8s16sQQQ")
"""Magic, work, runs, buckets, offset of the offsets of the indexes."""
_MAGIC = b"TMPORTN2"
_INDEX_SHARE = 16
"""Of a run, and of a portion, an index takes up to one part in so many."""
_LOW = (1 << 64) - 1
_PORTION_COST = 100
"""Bytes of memory that stretches of a bucket take while they are held, beside ids and records."""


class Portion(msgspec.Struct, frozen=True, kw_only=True):
    """Documents of one source that one task scatters."""

    operand: Natural
    token: Natural
    """Where the first begins on its training side."""
    end: Natural
    """Where the last one ends."""
    document: Natural
    """Number of the first on its side."""
    n_documents: Natural


def cut_portions(operands: Sequence[Operand], least_tokens: int) -> list[Portion]:
    """Return all documents of the operands as portions, of at least so many tokens each but the last ones."""
    portions: list[Portion] = []
    for index, operand in enumerate(operands):
        counts = operand.source.manifest.counts
        token = document = 0
        for step in operand.source.steps:
            is_between = not step.writer.get("train_inside", 1) and step.counts.documents_train > document
            if is_between and step.counts.tokens_train - token >= least_tokens:
                token, document = _add(portions, index, token, document, step.counts.tokens_train, step.counts.documents_train)
        if document < counts.documents_train:
            _add(portions, index, token, document, counts.tokens_train, counts.documents_train)
    return portions


def _add(portions: list[Portion], operand: int, token: int, document: int, end: int, end_document: int) -> tuple[int, int]:
    portions.append(Portion(operand=operand, token=token, end=end, document=document, n_documents=end_document - document))
    return end, end_document


class PortionWriter:
    """The file of one portion while it is made, with the method `add` of Buckets. A context that removes what is not finished."""

    def __init__(self, directory: Directory, work: bytes, number: int, n_buckets: int, held_bytes: int) -> None:
        """work: what the file is for, 16 bytes. held_bytes: memory for a run."""
        self.state = BucketState(fingerprint="", n_buckets=n_buckets)
        self._path = portion_path(directory, number)
        self._work = work
        _remove_unfinished(directory, number)
        self._growing = growing_path(directory, f"portion_{number:06}_{uuid.uuid4().hex}")
        with storage_errors(self._growing):
            self._fd = durable.open_growing(self._growing)
        self._most = held_bytes
        self._offset = 0
        self._indexes: list[int] = []
        """Offset of the index of each run."""
        self._sum = 0
        self._clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        with storage_errors(self._growing):
            self._growing.unlink(missing_ok=True)

    def _clear(self) -> None:
        self._ids: dict[int, list[bytes]] = {}
        self._records: dict[int, list[bytes]] = {}
        self._sums: dict[int, int] = {}
        self._held = 0

    def add(self, bucket: int, ids: bytes, records: bytes, digests: int) -> None:
        """See Buckets. Raises StorageError, DiskFullError."""
        self._ids.setdefault(bucket, []).append(ids)
        self._records.setdefault(bucket, []).append(records)
        self._sums[bucket] = (self._sums.get(bucket, 0) + digests) % (1 << SUM_BITS)
        self._held += len(ids) + len(records) + _PORTION_COST
        if self._held >= self._most:
            self._write_run()

    def finish(self) -> int:
        """Make the file durable and give it its name. Returns the sum of the digests of its documents."""
        self._write_run()
        trailer = _TRAILER.pack(_MAGIC, self._work, len(self._indexes), self.state.n_buckets, self._offset)
        with storage_errors(self._growing):
            self._append(np.array(self._indexes, "<u8").tobytes() + trailer)
            durable.sync_file(self._fd)
            try:
                durable.replace(self._growing, self._path)
            except FileNotFoundError:
                # Another task makes the same portion, because this one is believed to be dead.
                if not self._path.exists():
                    raise
            durable.sync_directory(self._path.parent)
        return self._sum % (1 << SUM_BITS)

    def _write_run(self) -> None:
        if not self._held:
            return
        entries = np.zeros(self.state.n_buckets, _ENTRY)
        with storage_errors(self._growing):
            for kind, size, held in (("ids", "ids_bytes", self._ids), ("records", "n_records", self._records)):
                sizes = np.zeros(self.state.n_buckets, "<u8")
                for bucket, pieces in held.items():
                    sizes[bucket] = sum(map(len, pieces))
                entries[kind] = np.uint64(self._offset) + np.cumsum(sizes) - sizes
                entries[size] = sizes if kind == "ids" else sizes // np.uint64(RECORD.itemsize)
                for bucket in sorted(held):
                    self._append(b"".join(held.pop(bucket)))
            for bucket, digests in self._sums.items():
                entries["sum_low"][bucket], entries["sum_high"][bucket] = digests & _LOW, digests >> 64
            self._indexes.append(self._offset)
            self._append(entries.view(np.uint8).data)
        self._sum += sum(self._sums.values())
        self._clear()

    def _append(self, data: bytes | memoryview) -> None:
        durable.write_all_at(self._fd, data, self._offset)
        self._offset += len(data)


class PortionBuckets:
    """The buckets in the files of all portions, with the methods of Buckets that read."""

    def __init__(self, directory: Directory, work: bytes, n_portions: int, n_buckets: int) -> None:
        """Opens nothing yet. work: what the files are for."""
        self.state = BucketState(fingerprint="", n_buckets=n_buckets)
        self._paths = [portion_path(directory, number) for number in range(n_portions)]
        self._work = work
        self.digest = ""
        """Sum of the digests of all documents, hex; set by who knows it."""
        self._bucket = -1
        self._extents: list[tuple[TreePath, int, int]] = []
        """Of the current bucket: file, offset and bytes of its ids, in order."""
        self._ends: list[int] = []
        self._records: list[bytes] = []
        self._sum = 0

    def sum_of(self, number: int) -> int | None:
        """Return the sum of the digests of a portion; None where its file is not there, or of other work. Raises StorageError."""
        if not self._paths[number].exists():
            return None
        try:
            with _opened(self._paths[number]) as fd:
                return sum(map(_sum, self._entries(fd, self._paths[number], 0, self.state.n_buckets))) % (1 << SUM_BITS)
        except DamageError:
            return None

    def records_of(self, first: int, last: int) -> list[NDArray[Any]]:
        """Return the records of the buckets `first` to `last`, each dtype RECORD. Raises StorageError, DamageError."""
        found: list[list[NDArray[Any]]] = [[] for _ in range(last - first)]
        for path in self._paths:
            with _opened(path) as fd:
                for entries in self._entries(fd, path, first, last):
                    n = int(entries["n_records"].sum())
                    # Those of a run lie one after the other.
                    records = np.frombuffer(_read(fd, path, int(entries["records"][0]), n * RECORD.itemsize), RECORD)
                    for bucket, part in enumerate(np.split(records, np.cumsum(entries["n_records"])[:-1].astype(np.int64))):
                        found[bucket].append(part)
        return [np.concatenate(each) if each else np.empty(0, RECORD) for each in found]

    def close(self) -> None:
        """See Buckets: nothing is held."""

    def records(self, bucket: int) -> NDArray[Any]:
        """See Buckets."""
        self._go_to(bucket)
        return np.frombuffer(b"".join(self._records), RECORD)

    def ids_bytes(self, bucket: int) -> int:
        """See Buckets."""
        self._go_to(bucket)
        return self._ends[-1] if self._ends else 0

    def read_ids(self, bucket: int, offset: int, view: memoryview) -> None:
        """See Buckets."""
        self._go_to(bucket)
        number = bisect_right(self._ends, offset)
        while view:
            path, begin, n_bytes = self._extents[number]
            skipped = offset - (self._ends[number] - n_bytes)
            n = min(len(view), n_bytes - skipped)
            with _opened(path) as fd:
                read_open(fd, path, begin + skipped, view[:n])
            view, offset, number = view[n:], offset + n, number + 1

    def check(self, bucket: int, digests: int) -> None:
        """See Buckets."""
        self._go_to(bucket)
        if digests % (1 << SUM_BITS) != self._sum:
            raise damage(state_of(self._paths[0].parent), f"documents of bucket {bucket:,} are not those that were written")

    def _go_to(self, bucket: int) -> None:
        if bucket == self._bucket:
            return
        self._bucket, self._extents, self._records, total = bucket, [], [], 0
        for path in self._paths:
            with _opened(path) as fd:
                for entries in self._entries(fd, path, bucket, bucket + 1):
                    total += _sum(entries)
                    entry = entries[0]
                    if entry["ids_bytes"]:
                        self._extents.append((path, int(entry["ids"]), int(entry["ids_bytes"])))
                    self._records.append(_read(fd, path, int(entry["records"]), int(entry["n_records"]) * RECORD.itemsize))
        self._ends = list(accumulate(n_bytes for _, _, n_bytes in self._extents))
        self._sum = total % (1 << SUM_BITS)

    def _entries(self, fd: int, path: TreePath, first: int, last: int) -> Iterator[NDArray[Any]]:
        """Yield the entries of buckets `first` to `last` in each run, shape (last - first,). Raises DamageError."""
        n_buckets, size = self.state.n_buckets, os.fstat(fd).st_size
        trailer = _read(fd, path, max(0, size - _TRAILER.size), _TRAILER.size)
        magic, work, n_runs, found, offset = _TRAILER.unpack(trailer)
        if (magic, work, found) != (_MAGIC, self._work, n_buckets) or offset + n_runs * 8 + _TRAILER.size != size:
            raise damage(path, "it is not a portion of this work")
        for index in np.frombuffer(_read(fd, path, offset, n_runs * 8), "<u8").tolist():
            if index + n_buckets * _ENTRY.itemsize > offset:
                raise damage(path, "it is not a portion of this work")
            yield np.frombuffer(_read(fd, path, index + first * _ENTRY.itemsize, (last - first) * _ENTRY.itemsize), _ENTRY)


def most_buckets(held_bytes: int) -> int:
    """Return how many buckets runs of so many bytes can have, so that their indexes are a small part of them."""
    return max(1, held_bytes // (_INDEX_SHARE * _ENTRY.itemsize))


def least_portion_bytes(n_buckets: int) -> int:
    """Return the bytes of a portion of which the index of its last run is a small part."""
    return n_buckets * _INDEX_SHARE * _ENTRY.itemsize


def index_bytes(n_bytes: int, n_documents: int) -> int:
    """Return the bytes of all indexes, at most: a part of the full runs, and of the last ones of portions."""
    return 2 * (n_bytes + _PORTION_COST * n_documents) // _INDEX_SHARE


def portion_path(directory: Directory, number: int) -> TreePath:
    """Return where the file of a portion lies."""
    return growing_path(directory, f"portion_{number:06}")


def remove_portions(directory: Directory) -> None:
    """Remove all portions of an output that is made without them, and what their tasks must know. Raises StorageError."""
    remove_growing(directory, ("work.", "portion_"))


def _remove_unfinished(directory: Directory, number: int) -> None:
    """Remove what tasks that died have left of a portion."""
    state = state_of(directory)
    with storage_errors(state):
        for name in state.names():
            if name.startswith(f"portion_{number:06}_"):
                (state / name).unlink(missing_ok=True)


@contextmanager
def _opened(path: TreePath) -> Iterator[int]:
    with storage_errors(path):
        fd = path.open()
        try:
            yield fd
        finally:
            os.close(fd)


def _read(fd: int, path: TreePath, offset: int, n_bytes: int) -> bytes:
    data = bytearray(n_bytes)
    read_open(fd, path, offset, memoryview(data))
    return bytes(data)


def _sum(entries: NDArray[Any]) -> int:
    """Return the sum of the digests of entries."""
    low, high = (sum(entries[name].ravel().tolist()) for name in ("sum_low", "sum_high"))
    return int(low + (high << 64)) % (1 << SUM_BITS)
