"""What a deduplication has on the disk while it works: records in buckets, and the state from which an interrupted run goes on.

Every pass reads documents front to back or buckets one by one, and appends records to buckets. A commit makes the records durable
and then replaces the state; what a run that was killed wrote after it is overwritten.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from tokmill.core.bounded import Natural
from tokmill.core.errors import ChangedError
from tokmill.core.keys import mix
from tokmill.core.system.durable import storage_errors
from tokmill.derive.buckets import load_state, read_pieces, save_state, sync_pieces, write_pieces
from tokmill.output import growing_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.core.system.tree import Directory, TreePath

_LEAST_PIECE = 1 << 14
_READ_RECORDS = 1 << 16
"""Of a bucket that is read in parts, at a time."""
_PIECE_COST = 60
"""Bytes of memory that a piece takes while it is held, beside its records."""


class State(msgspec.Struct, kw_only=True):
    """What is done, as of a commit."""

    fingerprint: str
    """Of the output that it is for."""
    is_spread: bool = False
    """Whether it is done in tasks: what they leave each other is of no use to a run on one machine."""
    compare: bool
    """Whether both copies are read before one of them goes: that decides which passes there are."""
    completed: list[str]
    """Names of the passes that are complete."""
    section: Natural = 0
    """Of the pass under way: the section to go on with, the same, tokens and documents of it that lie before, and the bucket."""
    token: Natural = 0
    document: Natural = 0
    bucket: Natural = 0
    done_bytes: Natural = 0
    """Of ids, for progress."""
    lengths: dict[str, list[Natural]] = {}
    """Bytes of each bucket, by the kind of its records."""
    removed: list[list[Natural]] = []
    """Of each source: copies, their tokens, near copies, their tokens."""
    very_long: dict[int, Natural] = {}
    """Ids of documents whose length does not fit beside their number."""
    short: Natural = 0
    long: Natural = 0
    clusters: Natural = 0
    compared_pairs: Natural = 0
    unexamined: Natural = 0


S = TypeVar("S", bound=State)


class StoredRecords:
    """The records of one kind, in buckets, wherever these lie."""

    def __init__(self, dtype: np.dtype[Any], n_buckets: int) -> None:
        self.dtype = dtype
        self.n_buckets = n_buckets

    def append(self, bucket: int, data: bytes) -> None:
        """Append the bytes of records to a bucket."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write what is held, so that it can be read."""
        raise NotImplementedError

    def n_bytes(self, bucket: int) -> int:
        """Return the bytes of a bucket that can be read."""
        raise NotImplementedError

    def read(self, bucket: int, begin: int = 0, n: int | None = None) -> NDArray[Any]:
        """Return the records of a bucket, or `n` of them from `begin` on. Raises StorageError, DamageError."""
        size = self.dtype.itemsize
        found = np.empty(self.n_bytes(bucket) // size - begin if n is None else n, self.dtype)
        self._read(bucket, begin * size, found.view(np.uint8).data)
        return found

    def _read(self, bucket: int, offset: int, view: memoryview) -> None:
        """Fill `view` with bytes of a bucket."""
        raise NotImplementedError

    def add(self, buckets: NDArray[np.int64], records: NDArray[Any]) -> None:
        """Append records, each to its bucket, in this order."""
        if not len(records):
            return
        order = np.argsort(buckets, kind="stable")
        buckets, data = buckets[order], records[order]
        cuts = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(buckets)]
        for a, b in pairwise(cuts):
            self.append(int(buckets[a]), data[a:b].tobytes())

    def blocks(self, bucket: int) -> Iterator[NDArray[Any]]:
        """Yield the records of a bucket in the order in which they were added, some at a time."""
        n = self.n_bytes(bucket) // self.dtype.itemsize
        for begin in range(0, n, _READ_RECORDS):
            yield self.read(bucket, begin, min(_READ_RECORDS, n - begin))

    def parts(self, bucket: int, fields: tuple[str, ...], most: int) -> Iterator[NDArray[Any]]:
        """Yield the records of a bucket, up to about `most` of them at a time, those with the same key together.

        A bucket that is larger is read as often as it has parts. Where many have the same key, a part comes block by block: before
        each block lies, of every key that came earlier, the first record alone. So memory grows with the keys of a part, of which
        there are `most` at most. The bucket of a record must be that of `bucket_of`.

        Args:
            bucket: Which.
            fields: Those that are the key together, the leading one first.
            most: Records in memory at a time.
        """
        if self.n_bytes(bucket) // self.dtype.itemsize <= most:
            yield self.read(bucket)
            return
        # Half of the room is for keys, half for the block; parts are not of one size.
        n_parts = -(-self._n_keys(bucket, fields[0]) * 3 // most)
        for part in range(n_parts):
            first, waiting, n_waiting = np.empty(0, self.dtype), [], 0
            for block in self.blocks(bucket):
                waiting.append(block[_parts_of(block[fields[0]], self.n_buckets, n_parts) == part])
                n_waiting += len(waiting[-1])
                if len(first) + n_waiting > most:
                    records = np.concatenate([first, *waiting])
                    waiting, n_waiting = [], 0
                    yield records
                    first = _first_of_each(records, fields)
            if n_waiting:
                yield np.concatenate([first, *waiting])

    def _n_keys(self, bucket: int, field: str) -> int:
        """Return about how many different numbers there are in a field of a bucket, at least 1: those of one in 64 are counted."""
        found = np.empty(0, np.uint64)
        for block in self.blocks(bucket):
            numbers = block[field]
            found = np.union1d(found, numbers[mix(numbers) < np.uint64(1 << 58)])
        return 64 * (len(found) + 1)


class Records(StoredRecords):
    """Records on the disk of one machine."""

    def __init__(self, directory: Directory, kind: str, dtype: np.dtype[Any], lengths: list[int], buffer_bytes: int) -> None:
        """lengths: bytes of each bucket that are committed."""
        super().__init__(dtype, len(lengths))
        self.lengths = list(lengths)
        self._directory = directory
        self._kind = kind
        self._held: list[list[bytes]] = [[] for _ in lengths]
        self._sizes = [0] * len(lengths)
        self._held_bytes, self._most_held = 0, buffer_bytes
        self._most = max(buffer_bytes // max(1, len(lengths)), _LEAST_PIECE)
        self._touched: set[int] = set()

    def append(self, bucket: int, data: bytes) -> None:
        """See StoredRecords."""
        self._held[bucket].append(data)
        size = len(data) + _PIECE_COST
        self._sizes[bucket] += size
        self._held_bytes += size
        if self._sizes[bucket] >= self._most:
            self._flush(bucket)
        elif self._held_bytes >= self._most_held:
            self.flush()

    def flush(self) -> None:
        """See StoredRecords."""
        for bucket, size in enumerate(self._sizes):
            if size:
                self._flush(bucket)

    def sync(self) -> None:
        """Make all that was added durable. Raises StorageError."""
        self.flush()
        for bucket in sorted(self._touched):
            sync_pieces(self._path(bucket))
        self._touched.clear()

    def n_bytes(self, bucket: int) -> int:
        """See StoredRecords."""
        return self.lengths[bucket]

    def _read(self, bucket: int, offset: int, view: memoryview) -> None:
        read_pieces(self._path(bucket), offset, view)

    def remove(self) -> None:
        """Remove all buckets. Raises StorageError."""
        for bucket in range(self.n_buckets):
            path = self._path(bucket)
            with storage_errors(path):
                path.unlink(missing_ok=True)

    def _path(self, bucket: int) -> TreePath:
        return growing_path(self._directory, f"{self._kind}_{bucket:05}")

    def _flush(self, bucket: int) -> None:
        self.lengths[bucket] += write_pieces(self._path(bucket), self._held[bucket], self.lengths[bucket])
        self._held_bytes -= self._sizes[bucket]
        self._held[bucket], self._sizes[bucket] = [], 0
        self._touched.add(bucket)


class Scratch:
    """All records of one deduplication, and its state."""

    def __init__(self, directory: Directory, fingerprint: str, buffer_bytes: int, *, compare: bool) -> None:
        """Open what an earlier run left, or nothing. buffer_bytes: memory for records of one kind that are not written yet.

        compare: as of `State`. Raises ChangedError if the earlier run had another choice.
        """
        self.directory = directory
        self._buffer_bytes = buffer_bytes
        new = State(fingerprint=fingerprint, compare=compare, completed=[])
        self.state = begun_state(directory, new)
        self._kinds: dict[str, Records] = {}
        self._dropped: list[Records] = []

    def records(self, kind: str, dtype: np.dtype[Any], n_buckets: int) -> StoredRecords:
        """Return the records of a kind. n_buckets: of new ones; a run that was killed may have had another memory."""
        if kind not in self._kinds:
            lengths = self.state.lengths.get(kind) or [0] * n_buckets
            self._kinds[kind] = Records(self.directory, kind, dtype, lengths, self._buffer_bytes)
        return self._kinds[kind]

    def drop(self, kind: str) -> None:
        """Remove all records of a kind with the next commit: until then an interrupted run needs them."""
        lengths = self.state.lengths.pop(kind, [])
        records = self._kinds.pop(kind, None)
        self._dropped.append(records or Records(self.directory, kind, np.dtype("u1"), lengths, self._buffer_bytes))

    def commit(self) -> None:
        """Make everything durable: an interrupted run goes on from here. Raises StorageError, DiskFullError."""
        for kind, records in self._kinds.items():
            records.sync()
            self.state.lengths[kind] = list(records.lengths)
        save_state(state_path(self.directory), self.state)
        for records in self._dropped:
            records.remove()
        self._dropped = []


def begun_state(directory: Directory, new: S) -> S:
    """Return the state of an earlier run of the same work; where there is none, the new one.

    Raises ChangedError if that run had another choice of comparing, or of tasks.
    """
    found = load_state(state_path(directory), type(new))
    if found is None or found.fingerprint != new.fingerprint:
        return new
    for option, was, wanted in (("--compare", found.compare, new.compare), ("--ray", found.is_spread, new.is_spread)):
        if was != wanted:
            raise ChangedError(
                f"the work in this directory was begun {'with' if was else 'without'} {option}",
                where=str(directory),
                option=option,
                allowed=f"{option} {'given' if was else 'left out'}, as when it was begun",
                next_step="give the same options again, choose another --out, or start over with --fresh",
            )
    return found


def _parts_of(keys: NDArray[np.uint64], n_buckets: int, n_parts: int) -> NDArray[np.uint64]:
    """Return the part of its bucket in which each record is: by what follows the bits that decide the bucket."""
    rests = (keys >> np.uint64(32)) * np.uint64(n_buckets) & np.uint64(0xFFFFFFFF)
    return rests * np.uint64(n_parts) >> np.uint64(32)


def _first_of_each(records: NDArray[Any], fields: tuple[str, ...]) -> NDArray[Any]:
    """Return the first record of each key."""
    order = np.lexsort([records[field] for field in reversed(fields)])
    is_first = np.zeros(len(order), bool)
    is_first[:1] = True
    for field in fields:
        numbers = records[field][order]
        is_first[1:] |= numbers[1:] != numbers[:-1]
    return records[order[is_first]]


def bucket_of(keys: NDArray[np.uint64], n_buckets: int) -> NDArray[np.int64]:
    """Return the bucket of each key by its leading 32 bits."""
    return ((keys >> np.uint64(32)) * np.uint64(n_buckets) >> np.uint64(32)).astype(np.int64)


def state_path(directory: Directory) -> TreePath:
    """Return where the state of a deduplication lies."""
    return growing_path(directory, "deduplication")
