"""Files in which tasks on several machines leave each other bytes, by kind and bucket, over a directory that all share.

A file holds runs: what was in memory at a time, of each kind the bytes of one bucket after the other, and an index that says where
each begins. At the end stand the offsets of these indexes, and the answer of the task. So a task that works on a bucket reads a
stretch of every file, and there are as many files as tasks, not tasks times buckets. A file has its name when all of it is on the
disk. Nothing of it can be seen in the output.
"""

from __future__ import annotations

import os
import struct
import uuid
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Self

import numpy as np

from tokmill.core.errors import DamageError
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.derive.buckets import damage, read_open
from tokmill.output import growing_path, state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from tokmill.core.system.tree import Directory, TreePath

_ENTRY = np.dtype([("begin", "<u8"), ("n_bytes", "<u8")])
"""Of the bytes of a bucket, of one kind, in a run."""
_TRAILER = struct.Struct("<8s16sQQQQQ")
"""Magic, work, runs, buckets, kinds, bytes of the answer, offset of the offsets of the indexes; behind these lies the answer."""
_MAGIC = b"TMRUNS01"
INDEX_SHARE = 16
"""Of a run an index takes up to one part in so many."""
_PIECE_COST = 60
"""Bytes of memory that a piece takes while it is held, beside what is in it."""


class RunWriter:
    """The file of one task while it is made. A context that removes what is not finished."""

    def __init__(self, directory: Directory, name: str, work: bytes, kinds: Sequence[str], n_buckets: int, held_bytes: int) -> None:
        """name: of the file. work: what it is for, 16 bytes. held_bytes: memory for a run. Raises StorageError."""
        self._path = growing_path(directory, name)
        self._work = work
        self._kinds = {kind: at for at, kind in enumerate(kinds)}
        self._n_buckets = n_buckets
        _remove_unfinished(directory, name)
        self._growing = growing_path(directory, f"{name}_{uuid.uuid4().hex}")
        with storage_errors(self._growing):
            self._fd = durable.open_growing(self._growing)
        self._most = held_bytes
        self._offset = 0
        self._indexes: list[int] = []
        """Offset of the index of each run."""
        self._held: list[dict[int, list[bytes]]] = [{} for _ in kinds]
        """Of each kind, what is not written yet, by bucket."""
        self._held_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        with storage_errors(self._growing):
            self._growing.unlink(missing_ok=True)

    def put(self, kind: str, bucket: int, data: bytes) -> None:
        """Add bytes to a bucket. Raises StorageError, DiskFullError."""
        self.hold(kind, bucket, data)
        if self._held_bytes >= self._most:
            self._write_run()

    def hold(self, kind: str, bucket: int, data: bytes) -> None:
        """Add bytes to a bucket that lie in one run with what is put next."""
        self._held[self._kinds[kind]].setdefault(bucket, []).append(data)
        self._held_bytes += len(data) + _PIECE_COST

    def complete(self, answer: bytes) -> None:
        """Make the file durable and give it its name. Raises StorageError, DiskFullError."""
        self._write_run()
        head = (_MAGIC, self._work, len(self._indexes), self._n_buckets, len(self._kinds), len(answer), self._offset)
        with storage_errors(self._growing):
            self._append(np.array(self._indexes, "<u8").tobytes() + answer + _TRAILER.pack(*head))
            durable.sync_file(self._fd)
            try:
                durable.replace(self._growing, self._path)
            except FileNotFoundError:
                # Another task makes the same file, because this one is believed to be dead.
                if not self._path.exists():
                    raise
            durable.sync_directory(self._path.parent)

    def _write_run(self) -> None:
        """Write what is held, and its index."""
        if not any(self._held):
            return
        entries = np.zeros((self._n_buckets, len(self._kinds)), _ENTRY)
        with storage_errors(self._growing):
            for at, held in enumerate(self._held):
                sizes = np.zeros(self._n_buckets, "<u8")
                for bucket, pieces in held.items():
                    sizes[bucket] = sum(map(len, pieces))
                entries["begin"][:, at] = np.uint64(self._offset) + np.cumsum(sizes) - sizes
                entries["n_bytes"][:, at] = sizes
                for bucket in sorted(held):
                    self._append(b"".join(held.pop(bucket)))
            self._indexes.append(self._offset)
            self._append(entries.view(np.uint8).data.cast("B"))
        self._held_bytes = 0

    def _append(self, data: bytes | memoryview) -> None:
        durable.write_all_at(self._fd, data, self._offset)
        self._offset += len(data)


class RunFile:
    """A file that a task has made, open for reading. A context."""

    def __init__(self, path: TreePath, work: bytes, n_kinds: int, n_buckets: int) -> None:
        """Raises StorageError, DamageError for one that is not of this work."""
        self.path = path
        self._shape = (n_buckets, n_kinds)
        with storage_errors(path):
            self._fd = path.open()
        try:
            self.answer, self._indexes = self._load(work)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def entries(self, first: int, last: int) -> Iterator[NDArray[Any]]:
        """Yield of each run where the bytes of buckets `first` to `last` begin, and how many they are.

        Shape (last - first, kinds), fields begin and n_bytes.
        """
        n_kinds = self._shape[1]
        for index in self._indexes:
            data = self.read(index + first * n_kinds * _ENTRY.itemsize, (last - first) * n_kinds * _ENTRY.itemsize)
            yield np.frombuffer(data, _ENTRY).reshape(-1, n_kinds)

    def read(self, offset: int, n_bytes: int) -> bytearray:
        """Return bytes of it. Raises StorageError, DamageError."""
        data = bytearray(n_bytes)
        self.read_into(offset, memoryview(data))
        return data

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset` on. Raises StorageError, DamageError."""
        with storage_errors(self.path):
            read_open(self._fd, self.path, offset, view)

    def _load(self, work: bytes) -> tuple[bytes, list[int]]:
        """Return the answer, and where the indexes begin."""
        size = os.fstat(self._fd).st_size
        head = _TRAILER.unpack(self.read(max(0, size - _TRAILER.size), _TRAILER.size))
        magic, found, n_runs, n_buckets, n_kinds, n_answer, offset = head
        if (magic, found, (n_buckets, n_kinds)) != (_MAGIC, work, self._shape) or (
            offset + n_runs * 8 + n_answer + _TRAILER.size != size
        ):
            raise self._strange()
        indexes = np.frombuffer(self.read(offset, n_runs * 8), "<u8").tolist()
        if any(index + n_buckets * n_kinds * _ENTRY.itemsize > offset for index in indexes):
            raise self._strange()
        return bytes(self.read(offset + n_runs * 8, n_answer)), indexes

    def _strange(self) -> DamageError:
        return damage(self.path, "it is not a file of this work")


class Extents:
    """Stretches of files, one after the other, as one."""

    def __init__(self, stretches: Sequence[tuple[TreePath, int, int]], opened: Callable[[TreePath], RunFile]) -> None:
        """stretches: file, offset and bytes. opened: opens a file."""
        self._stretches = stretches
        self._ends = list(accumulate(n_bytes for _, _, n_bytes in stretches))
        self._opened = opened
        self.n_bytes = self._ends[-1] if stretches else 0

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset` on. Raises StorageError, DamageError."""
        number = bisect_right(self._ends, offset)
        while view:
            path, begin, n_bytes = self._stretches[number]
            skipped = offset - (self._ends[number] - n_bytes)
            n = min(len(view), n_bytes - skipped)
            with self._opened(path) as file:
                file.read_into(begin + skipped, view[:n])
            view, offset, number = view[n:], offset + n, number + 1


def answer_of(path: TreePath, work: bytes, n_kinds: int, n_buckets: int) -> bytes | None:
    """Return the answer of the task that made a file; None where it is not there, or of other work. Raises StorageError."""
    if not path.exists():
        return None
    try:
        with RunFile(path, work, n_kinds, n_buckets) as file:
            return file.answer
    except DamageError:
        return None


def most_buckets(held_bytes: int, n_kinds: int) -> int:
    """Return how many buckets runs of so many bytes can have, so that their indexes are a small part of them."""
    return max(1, held_bytes // (INDEX_SHARE * n_kinds * _ENTRY.itemsize))


def least_file_bytes(n_buckets: int, n_kinds: int) -> int:
    """Return the bytes of a file of which the index of its last run is a small part."""
    return n_buckets * n_kinds * INDEX_SHARE * _ENTRY.itemsize


def _remove_unfinished(directory: Directory, name: str) -> None:
    """Remove what tasks that died have left of a file."""
    state = state_of(directory)
    with storage_errors(state):
        for each in state.names():
            if each.startswith(f"{name}_"):
                (state / each).unlink(missing_ok=True)
