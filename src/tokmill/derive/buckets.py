"""Documents on their way from the order of their sources into another: on disk, in buckets by the number that they are sorted by.

A bucket is as large as memory allows to sort at once. It is two files that grow in the state directory of the output: the ids of
its documents one after the other, and a record for each. The order of a bucket's documents here is that of the sources, so a sort
that keeps the order of equal ones needs nothing else. The number of buckets cannot be seen in the output.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np
import xxhash

from tokmill.core.arrangement import RECORD_BYTES
from tokmill.core.bounded import Natural
from tokmill.core.errors import DamageError
from tokmill.core.system import durable
from tokmill.core.system.current import SYSTEM
from tokmill.core.system.durable import storage_errors
from tokmill.output import growing_path, remove_growing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future
    from typing import Any

    from numpy.typing import NDArray

    from tokmill.core.system.tree import Directory, TreePath

S = TypeVar("S", bound=msgspec.Struct)

RECORD = np.dtype([("copy", "<u8"), ("n_ids", "<u4")])
"""Of a document in a bucket: the number of the copy, and its ids."""
assert RECORD.itemsize == RECORD_BYTES
RECORD_COST = 64
"""Bytes of memory that a document takes while its bucket is sorted, beside its ids."""
_PIECE_COST = 100
"""Bytes of memory that a piece takes while it is held, beside its ids and records: two objects of Python."""
SUM_BITS = 128
"""Sums of digests are taken modulo 2 to this."""


class BucketState(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the buckets after a commit."""

    fingerprint: str
    """Of the output that they are for."""
    n_buckets: Natural
    source: Natural = 0
    """The source to go on with; the number of sources: all documents are in the buckets."""
    token: Natural = 0
    """Tokens of its training side that lie before."""
    document: Natural = 0
    """The same, documents."""
    is_inside: bool = False
    """Whether the token belongs to a document of which pieces are in the buckets."""
    numbers: dict[str, dict[int, Natural]] = {}
    """How many pieces of each length are in the buckets, by side, where they are counted."""
    done_bytes: Natural = 0
    """Of ids, for progress."""
    ids: list[Natural] = []
    """Bytes of the ids of each bucket."""
    records: list[Natural] = []
    """Bytes of its records."""
    sums: list[str] = []
    """Sum of the digests of its documents, hex."""


class Buckets:
    """The buckets of one output. Close them."""

    def __init__(self, directory: Directory, state: BucketState, buffer_bytes: int) -> None:
        """Go on from a commit. buffer_bytes: memory for what is not yet in the files, of all buckets: half of it is written while
        the other half is filled.
        """
        self._directory = directory
        n = state.n_buckets
        self.state = msgspec.structs.replace(state, ids=state.ids or [0] * n, records=state.records or [0] * n)
        self._sums = [int(each, 16) for each in state.sums] or [0] * n
        self._ids: list[list[bytes]] = [[] for _ in range(n)]
        self._records: list[list[bytes]] = [[] for _ in range(n)]
        self._sizes = [0] * n
        self._most = max(buffer_bytes // (2 * n), 1 << 14)
        self._held_bytes, self._most_held = 0, buffer_bytes // 2
        self._writing = ThreadPoolExecutor(1, "buckets")
        self._pending: deque[tuple[Future[None], int]] = deque()
        self._pending_bytes = 0
        self._lengths = list(self.state.ids)
        self._record_lengths = list(self.state.records)
        self._touched: set[int] = set()

    @classmethod
    def open(cls, directory: Directory, fingerprint: str, n_buckets: int, buffer_bytes: int, *, is_fixed: bool) -> Buckets:
        """Open the buckets of an output, new ones or those that were begun. Raises StorageError.

        is_fixed: what is committed of the output was made of so many buckets, so that others are of no use.
        """
        state = _read_state(directory)
        if state is None or state.fingerprint != fingerprint or (is_fixed and state.n_buckets != n_buckets):
            state = BucketState(fingerprint=fingerprint, n_buckets=n_buckets)
        return cls(directory, state, buffer_bytes)

    def add(self, bucket: int, ids: bytes, records: bytes, digests: int) -> None:
        """Add documents, or a piece of one. ids: of all of them. records: of those that end here. digests: their sum."""
        self._ids[bucket].append(ids)
        self._records[bucket].append(records)
        self._sums[bucket] = (self._sums[bucket] + digests) % (1 << SUM_BITS)
        n_bytes = len(ids) + len(records) + _PIECE_COST
        self._sizes[bucket] += n_bytes
        self._held_bytes += n_bytes
        if self._sizes[bucket] >= self._most:
            self._flush(bucket)
        elif self._held_bytes >= self._most_held:
            # Of thousands of buckets, none of which has much.
            self._flush_all()

    def commit(self, after: BucketState) -> None:
        """Make all that was added durable: work goes on from here. after: as of `flush`. Raises StorageError, DiskFullError."""
        self.flush(after)
        for bucket in sorted(self._touched):
            for path in self._paths(bucket):
                sync_pieces(path)
        self._touched.clear()
        save_state(_state_path(self._directory), self.state)

    def flush(self, after: BucketState) -> None:
        """Write all that was added, so that it can be read; a run that is killed goes on from the last commit.

        after: `state` with the place in the sources that was reached.
        """
        self._flush_all()
        self._wait(0)
        self.state = msgspec.structs.replace(
            after,
            ids=list(self._lengths),
            records=list(self._record_lengths),
            sums=[f"{each:x}" for each in self._sums],
        )

    def records(self, bucket: int) -> NDArray[Any]:
        """Return the records of a bucket, dtype RECORD. Raises StorageError, DamageError."""
        found = np.empty(self.state.records[bucket] // RECORD.itemsize, RECORD)
        read_pieces(self._paths(bucket)[1], 0, found.view(np.uint8).data)
        return found

    def read_ids(self, bucket: int, offset: int, view: memoryview) -> None:
        """Fill `view` with bytes of the ids of a bucket. Raises StorageError, DamageError."""
        read_pieces(self._paths(bucket)[0], offset, view)

    def ids_bytes(self, bucket: int) -> int:
        """Return the bytes of all ids of a bucket."""
        return self.state.ids[bucket]

    def check(self, bucket: int, digests: int) -> None:
        """Raise DamageError unless the documents that were read of a bucket are those that were added."""
        if digests % (1 << SUM_BITS) != int(self.state.sums[bucket], 16):
            raise damage(self._paths(bucket)[0], "its documents are not those that were written")

    @property
    def digest(self) -> str:
        """Sum of the digests of all documents, hex."""
        return f"{sum(int(each, 16) for each in self.state.sums) % (1 << SUM_BITS):032x}"

    def remove(self, bucket: int) -> None:
        """Remove a bucket that is in the output for good. Raises StorageError."""
        for path in self._paths(bucket):
            with storage_errors(path):
                path.unlink(missing_ok=True)

    def _paths(self, bucket: int) -> tuple[TreePath, TreePath]:
        return tuple(growing_path(self._directory, f"bucket_{bucket:05}.{kind}") for kind in ("ids", "records"))  # type: ignore[return-value]

    def _flush_all(self) -> None:
        for bucket, size in enumerate(self._sizes):
            if size:
                self._flush(bucket)

    def _flush(self, bucket: int) -> None:
        """Have what is held of a bucket written."""
        paths, held, n_bytes = self._paths(bucket), (self._ids[bucket], self._records[bucket]), self._sizes[bucket]
        offsets = self._lengths[bucket], self._record_lengths[bucket]
        self._pending.append((self._writing.submit(_write_all, paths, held, offsets), n_bytes))
        self._pending_bytes += n_bytes
        self._held_bytes -= n_bytes
        self._lengths[bucket] += sum(map(len, held[0]))
        self._record_lengths[bucket] += sum(map(len, held[1]))
        self._ids[bucket], self._records[bucket], self._sizes[bucket] = [], [], 0
        self._touched.add(bucket)
        self._wait(self._most_held)

    def _wait(self, most_bytes: int) -> None:
        """Wait until no more than so many bytes are being written. Raises what went wrong with one."""
        while self._pending and (self._pending_bytes > most_bytes or self._pending[0][0].done()):
            writing, n_bytes = self._pending.popleft()
            self._pending_bytes -= n_bytes
            writing.result()

    def close(self) -> None:
        """Return when nothing is written any more; what is in no commit may be lost."""
        self._writing.shutdown(cancel_futures=True)


def _write_all(paths: Sequence[TreePath], held: Sequence[Sequence[bytes]], offsets: Sequence[int]) -> None:
    """Write what is held of each file at its offset."""
    for path, pieces, offset in zip(paths, held, offsets, strict=True):
        write_pieces(path, pieces, offset)


def write_pieces(path: TreePath, pieces: Sequence[bytes], offset: int) -> int:
    """Write pieces one after the other from `offset` on, where a commit may be followed by bytes of a run that was killed."""
    data = b"".join(pieces)
    with storage_errors(path):
        fd = durable.open_growing(path)
        try:
            durable.write_all_at(fd, data, offset)
        finally:
            os.close(fd)
    return len(data)


def sync_pieces(path: TreePath) -> None:
    """Make what was written of a file durable. Raises StorageError."""
    with storage_errors(path):
        fd = durable.open_growing(path)
        try:
            durable.sync_file(fd)
        finally:
            os.close(fd)


def read_pieces(path: TreePath, offset: int, view: memoryview) -> None:
    """Fill `view` with bytes of a file. Raises StorageError, DamageError for a file that is too short."""
    if not view:
        return
    with storage_errors(path):
        fd = path.open()
        try:
            read_open(fd, path, offset, view)
        finally:
            os.close(fd)


def read_open(fd: int, path: TreePath, offset: int, view: memoryview) -> None:
    """Fill `view` with bytes of an open file. Raises OSError, DamageError for a file that is too short."""
    while view and (n := SYSTEM.read_into(fd, view, offset)):
        offset, view = offset + n, view[n:]
    if view:
        raise damage(path, f"it is {len(view):,} bytes too short")


def damage(path: TreePath, what: str) -> DamageError:
    """Return the error for a file of documents on their way. what: is wrong with it."""
    return DamageError(
        f"a file of work in progress is damaged: {what}",
        where=str(path),
        allowed="files that nobody else writes to, on a sound disk",
        next_step="run the same command again with --fresh",
    )


def _state_path(directory: Directory) -> TreePath:
    return growing_path(directory, "buckets")


def remove_buckets(directory: Directory) -> None:
    """Remove all buckets of an output that is made without them from now on. Raises StorageError."""
    remove_growing(directory, ("buckets.", "bucket_"))


def save_state(path: TreePath, state: msgspec.Struct) -> None:
    """Replace a file of state, durably. Raises StorageError, DiskFullError."""
    with storage_errors(path):
        durable.write_file(durable.aside(path), msgspec.json.encode(state))
        durable.replace(durable.aside(path), path)
        durable.sync_directory(path.parent)


def load_state(path: TreePath, kind: type[S]) -> S | None:
    """Return what was saved; None where there is nothing, or it cannot be read, so that it is made again. Raises StorageError."""
    if not path.exists():
        return None
    with storage_errors(path):
        fd = path.open()
        try:
            data = os.read(fd, 1 << 28)
        finally:
            os.close(fd)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _read_state(directory: Directory) -> BucketState | None:
    """Return the last commit; None where there is none, or it cannot be read, so that the buckets are made again."""
    state = load_state(_state_path(directory), BucketState)
    if state is None:
        return None
    lists = (state.ids, state.records, state.sums)
    is_sound = state.n_buckets > 0 and all(len(each) == state.n_buckets for each in lists)
    return state if is_sound else None


def sum_of_digests(documents: Sequence[bytes | memoryview], keys: Sequence[int]) -> int:
    """Return the sum of xxh3-128 of each document's ids, with the number that it is sorted by as seed."""
    return sum(map(xxhash.xxh3_128_intdigest, documents, keys))
