"""Documents on their way through several machines: what one task scatters of a source is a portion, one file on the shared disk.

A portion is as much of a training side as a task takes at a time, cut where the manifest says how many documents lie before. Its
file holds runs: what was in memory at a time, the ids of one bucket after the other, then their records. An index at its end says
where each bucket begins in each run. So a task that writes a bucket reads a stretch of every file, and there are as many files as
portions, not portions times buckets. A file has its name when all of it is on the disk. Nothing of it can be seen in the output.
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
from tokmill.derive.buckets import RECORD, BucketState
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
"""Magic, work, runs, buckets, offset of the index."""
_MAGIC = b"TMPORTN1"
_SUM_BITS = 128
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
        self._runs: list[NDArray[Any]] = []
        self._clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        with storage_errors(self._growing):
            self._growing.unlink(missing_ok=True)

    def _clear(self) -> None:
        n = self.state.n_buckets
        self._ids: list[list[bytes]] = [[] for _ in range(n)]
        self._records: list[list[bytes]] = [[] for _ in range(n)]
        self._sums = [0] * n
        self._held = 0

    def add(self, bucket: int, ids: bytes, records: bytes, digests: int) -> None:
        """See Buckets. Raises StorageError, DiskFullError."""
        self._ids[bucket].append(ids)
        self._records[bucket].append(records)
        self._sums[bucket] = (self._sums[bucket] + digests) % (1 << _SUM_BITS)
        self._held += len(ids) + len(records) + _PORTION_COST
        if self._held >= self._most:
            self._write_run()

    def finish(self) -> int:
        """Make the file durable and give it its name. Returns the sum of the digests of its documents."""
        self._write_run()
        index = np.concatenate(self._runs) if self._runs else np.empty(0, _ENTRY)
        trailer = _TRAILER.pack(_MAGIC, self._work, len(self._runs), self.state.n_buckets, self._offset)
        with storage_errors(self._growing):
            self._append(index.tobytes() + trailer)
            durable.sync_file(self._fd)
            try:
                durable.replace(self._growing, self._path)
            except FileNotFoundError:
                # Another task makes the same portion, because this one is believed to be dead.
                if not self._path.exists():
                    raise
            durable.sync_directory(self._path.parent)
        return _sum(index)

    def _write_run(self) -> None:
        if not self._held:
            return
        entries = np.zeros(self.state.n_buckets, _ENTRY)
        with storage_errors(self._growing):
            for kind, size, portions in (("ids", "ids_bytes", self._ids), ("records", "n_records", self._records)):
                for bucket, of_bucket in enumerate(portions):
                    data = b"".join(of_bucket)
                    of_bucket.clear()
                    entries[bucket][kind] = self._offset
                    entries[bucket][size] = len(data) if kind == "ids" else len(data) // RECORD.itemsize
                    self._append(data)
        entries["sum_low"] = [each & _LOW for each in self._sums]
        entries["sum_high"] = [each >> 64 for each in self._sums]
        self._runs.append(entries)
        self._clear()

    def _append(self, data: bytes) -> None:
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
        self._records: list[NDArray[Any]] = []
        self._sum = 0

    def sum_of(self, number: int) -> int | None:
        """Return the sum of the digests of a portion; None where its file is not there, or of other work. Raises StorageError."""
        if not self._paths[number].exists():
            return None
        try:
            with _opened(self._paths[number]) as fd:
                return _sum(self._entries(fd, self._paths[number], 0, self.state.n_buckets))
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
        return np.concatenate(self._records) if self._records else np.empty(0, RECORD)

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
                _read_into(fd, path, begin + skipped, view[:n])
            view, offset, number = view[n:], offset + n, number + 1

    def check(self, bucket: int, digests: int) -> None:
        """See Buckets."""
        self._go_to(bucket)
        if digests % (1 << _SUM_BITS) != self._sum:
            raise _damage(state_of(self._paths[0].parent), f"documents of bucket {bucket:,} are not those that were written")

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
                    data = _read(fd, path, int(entry["records"]), int(entry["n_records"]) * RECORD.itemsize)
                    self._records.append(np.frombuffer(data, RECORD))
        self._ends = list(accumulate(n_bytes for _, _, n_bytes in self._extents))
        self._sum = total % (1 << _SUM_BITS)

    def _entries(self, fd: int, path: TreePath, first: int, last: int) -> NDArray[Any]:
        """Return the entries of buckets `first` to `last`, shape (runs, last - first). Raises DamageError."""
        n_buckets, size = self.state.n_buckets, os.fstat(fd).st_size
        trailer = _read(fd, path, max(0, size - _TRAILER.size), _TRAILER.size)
        magic, work, n_runs, found, offset = _TRAILER.unpack(trailer)
        if (magic, work, found) != (_MAGIC, self._work, n_buckets) or offset + n_runs * n_buckets * _ENTRY.itemsize > size:
            raise _damage(path, "it is not a portion of this work")
        rows = [
            _read(fd, path, offset + (run * n_buckets + first) * _ENTRY.itemsize, (last - first) * _ENTRY.itemsize)
            for run in range(n_runs)
        ]
        return np.frombuffer(b"".join(rows), _ENTRY).reshape(n_runs, last - first)


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
    _read_into(fd, path, offset, memoryview(data))
    return bytes(data)


def _read_into(fd: int, path: TreePath, offset: int, view: memoryview) -> None:
    while view and (n := os.preadv(fd, [view], offset)):
        offset, view = offset + n, view[n:]
    if view:
        raise _damage(path, f"it is {len(view):,} bytes too short")


def _sum(entries: NDArray[Any]) -> int:
    """Return the sum of the digests of entries."""
    low, high = (sum(entries[name].ravel().tolist()) for name in ("sum_low", "sum_high"))
    return int(low + (high << 64)) % (1 << _SUM_BITS)


def _damage(path: TreePath, what: str) -> DamageError:
    return DamageError(
        f"a file of work in progress is damaged: {what}",
        where=str(path),
        allowed="files that nobody else writes to, on a sound disk that all nodes share",
        next_step="run the same command again with --fresh",
    )
