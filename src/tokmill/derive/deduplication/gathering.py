"""Documents that are compared, brought together on the disk: those with one label are in one bucket, with their ids."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tokmill.core.keys import mix
from tokmill.derive.deduplication.scratch import bucket_of
from tokmill.derive.document_stream import slices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.derive.deduplication.documents import Batch
    from tokmill.derive.deduplication.scratch import Records, Scratch

GATHERED = np.dtype([("document", "<u8"), ("label", "<u8"), ("n_ids", "<u4")])
GATHERED_COST = 100
"""Bytes of memory that a document takes while its bucket is worked on, beside its ids."""
_BYTES = np.dtype("u1")
_PIECE_BYTES = 4 << 20


class Gathering:
    """The documents in their buckets."""

    def __init__(self, scratch: Scratch, dtype: np.dtype[Any], n_buckets: int) -> None:
        """dtype: of ids. n_buckets: of new ones."""
        self._dtype = dtype
        self.records = scratch.records("gathered", GATHERED, n_buckets)
        self._ids = scratch.records("gathered_ids", _BYTES, n_buckets)
        self._scratch = scratch

    def add(self, batch: Batch, indexes: NDArray[np.int64], labels: NDArray[np.uint64]) -> None:
        """Add documents of a batch. indexes: which, in order. labels: uint64, shape as `indexes`."""
        records = np.empty(len(indexes), GATHERED)
        records["document"], records["label"] = (indexes + batch.first).astype(np.uint64), labels
        buckets = self.bucket_of(labels)
        if batch.is_long:
            n_ids = 0
            for piece in batch.pieces(self._dtype):
                n_ids += len(piece)
                self._ids.append(int(buckets[0]), piece.tobytes())
            records["n_ids"] = n_ids
        else:
            records["n_ids"] = (batch.ends - batch.begins)[indexes]
            order = np.argsort(buckets, kind="stable")
            size, chosen = self._dtype.itemsize, indexes[order]
            views = slices(batch.ids.view(np.uint8).data, batch.begins[chosen] * size, batch.ends[chosen] * size)
            cuts = [0, *(np.flatnonzero(np.diff(buckets[order])) + 1).tolist(), len(order)]
            for a, b in pairwise(cuts):
                self._ids.append(int(buckets[order[a]]), b"".join(views[a:b]))
        self.records.add(buckets, records)

    def bucket_of(self, labels: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return in which bucket the documents of each label are."""
        return bucket_of(mix(labels), self.records.n_buckets)

    def flush(self) -> None:
        """Make what was added readable."""
        self._ids.flush()
        self.records.flush()

    def bucket(self, number: int, held_bytes: int) -> Gathered:
        """Return a bucket. held_bytes: of ids in memory; of a larger one they are read when they are asked for."""
        return Gathered(self.records.read(number), self._ids, number, self._dtype, held_bytes)

    def drop(self) -> None:
        """Remove all of it."""
        self._scratch.drop("gathered")
        self._scratch.drop("gathered_ids")


class Gathered:
    """The documents of one bucket, by the number of their row."""

    def __init__(self, records: NDArray[Any], ids: Records, bucket: int, dtype: np.dtype[Any], held_bytes: int) -> None:
        self.records = records
        self._file, self._bucket, self._dtype = ids, bucket, dtype
        lengths = records["n_ids"].astype(np.int64) * dtype.itemsize
        self._ends = np.cumsum(lengths)
        self._begins = self._ends - lengths
        self.n_bytes = int(self._ends[-1]) if len(records) else 0
        """Of all ids."""
        self._held = ids.read(bucket, 0, self.n_bytes) if self.n_bytes <= held_bytes else None

    def groups(self) -> Iterator[list[int]]:
        """Yield the rows of each label, in the order of the documents."""
        order = np.lexsort((self.records["document"], self.records["label"]))
        cuts = [0, *(np.flatnonzero(np.diff(self.records["label"][order])) + 1).tolist(), len(order)]
        for a, b in pairwise(cuts):
            if b > a:
                yield order[a:b].tolist()

    def number(self, row: int) -> int:
        """Return the number of a document."""
        return int(self.records["document"][row])

    def n_ids(self, row: int) -> int:
        """Return how many ids it has."""
        return int(self.records["n_ids"][row])

    def ids(self, row: int) -> NDArray[Any]:
        """Return the ids of a document."""
        begin, end = int(self._begins[row]), int(self._ends[row])
        return self._bytes(begin, end - begin).view(self._dtype)

    def are_same(self, row: int, other: int) -> bool:
        """Return whether two documents have the same ids; of long ones a piece is in memory at a time."""
        if self.n_ids(row) != self.n_ids(other):
            return False
        first, second, n = int(self._begins[row]), int(self._begins[other]), self.n_ids(row) * self._dtype.itemsize
        steps = ((at, min(_PIECE_BYTES, n - at)) for at in range(0, n, _PIECE_BYTES))
        return all(np.array_equal(self._bytes(first + at, k), self._bytes(second + at, k)) for at, k in steps)

    def _bytes(self, begin: int, n: int) -> NDArray[Any]:
        return self._held[begin : begin + n] if self._held is not None else self._file.read(self._bucket, begin, n)
