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
    from tokmill.derive.deduplication.scratch import Scratch, StoredRecords

GATHERED = np.dtype([("document", "<u8"), ("label", "<u8"), ("n_ids", "<u4"), ("n_keys", "<u2")])
"""A document: its number, what it has in common with those that it is compared with, and how many ids and keys it has."""
GATHERED_COST = 150
"""Bytes of memory that a document takes while its bucket is worked on, beside its ids and keys."""
KEY = np.dtype("<u8")
KEY_COST = 24
"""The same of a key."""
ROW = np.dtype([*((name, GATHERED[name]) for name in GATHERED.names or ()), ("begin", "<i8"), ("first_key", "<i8")])
"""A document as it is compared: also where its ids begin in the bucket, in bytes, and its keys in those of the block."""
GATHERED_KINDS = ("gathered", "gathered_ids", "gathered_keys")
"""The names in scratch of the three kinds of records that are gathered."""
_BYTES = np.dtype("u1")
_PIECE_BYTES = 4 << 20
_AHEAD_BYTES = 1 << 16
"""That are read at least, unless all of a bucket is in memory."""


class Gathering:
    """The documents in their buckets, each with its ids and keys."""

    def __init__(self, scratch: Scratch, dtype: np.dtype[Any], n_buckets: int) -> None:
        """dtype: of ids. n_buckets: of new ones."""
        self._dtype = dtype
        self.records = scratch.records("gathered", GATHERED, n_buckets)
        self._ids = scratch.records("gathered_ids", _BYTES, n_buckets)
        self._keys = scratch.records("gathered_keys", KEY, n_buckets)
        self._scratch = scratch

    def add(
        self,
        batch: Batch,
        indexes: NDArray[np.int64],
        labels: NDArray[np.uint64],
        n_keys: NDArray[np.int64] | int = 0,
        keys: NDArray[np.uint64] | None = None,
    ) -> None:
        """Add documents of a batch.

        Args:
            batch: Of documents that come after those that were added.
            indexes: Which, in order: int64, shape (n,).
            labels: uint64, shape (n,).
            n_keys: Keys of each: int64, shape (n,).
            keys: Those of all, one document after the other: uint64, shape (sum of n_keys,).
        """
        records = np.empty(len(indexes), GATHERED)
        records["document"], records["label"] = (indexes + batch.first).astype(np.uint64), labels
        records["n_keys"] = n_keys
        buckets = self.bucket_of(labels)
        if keys is not None:
            self._keys.add(np.repeat(buckets, n_keys), keys)
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
        for each in (self._ids, self._keys, self.records):
            each.flush()

    def bucket(self, number: int, held_bytes: int, most: int) -> Gathered:
        """Return a bucket.

        Args:
            number: Which.
            held_bytes: Of ids in memory; of a larger one they are read when they are asked for.
            most: Documents in memory at a time.
        """
        return Gathered(self.records, self._ids, self._keys, number, self._dtype, held_bytes, most)

    def drop(self) -> None:
        """Remove all of it."""
        for kind in GATHERED_KINDS:
            self._scratch.drop(kind)


class Gathered:
    """The documents of one bucket."""

    def __init__(
        self,
        records: StoredRecords,
        ids: StoredRecords,
        keys: StoredRecords,
        bucket: int,
        dtype: np.dtype[Any],
        held_bytes: int,
        most: int,
    ) -> None:
        self._records, self._ids, self._keys = records, ids, keys
        self._bucket, self._dtype, self._most = bucket, dtype, most
        self.n_bytes = ids.n_bytes(bucket)
        """Of all ids."""
        self._window = 0, ids.read(bucket) if self.n_bytes <= held_bytes else np.empty(0, _BYTES)
        """Where it begins, and its bytes: all, or those that were read last."""
        self._first = -1, 0, np.empty(0, _BYTES)
        """The document that others were compared with last: where it begins, how many bytes it has, and these."""

    def blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[np.uint64]]]:
        """Yield the documents label by label, in order, some at a time: dtype ROW, and their keys.

        Those of one label come together, those of one with very many in several blocks.
        """
        for least, last in self._labels():
            found = []
            for rows, keys in self._rows():
                is_wanted = (rows["label"] >= least) & (rows["label"] <= last)
                some = rows[is_wanted], keys[np.repeat(is_wanted, rows["n_keys"])]
                if least == last:
                    yield _with_keys(*some)
                else:
                    found.append(some)
            if found:
                rows, keys = _with_keys(*(np.concatenate(each) for each in zip(*found, strict=True)))
                found = []
                yield rows[np.argsort(rows["label"], kind="stable")], keys

    def _rows(self) -> Iterator[tuple[NDArray[Any], NDArray[np.uint64]]]:
        """Yield all documents in their order, and their keys."""
        begin = n_before = 0
        for some in self._records.blocks(self._bucket):
            rows = np.empty(len(some), ROW)
            for name in GATHERED.names or ():
                rows[name] = some[name]
            lengths = some["n_ids"].astype(np.int64) * self._dtype.itemsize
            rows["begin"] = begin + np.cumsum(lengths) - lengths
            n_keys = int(some["n_keys"].sum(dtype=np.int64))
            yield rows, self._keys.read(self._bucket, n_before, n_keys)
            begin, n_before = begin + int(lengths.sum()), n_before + n_keys

    def _labels(self) -> list[tuple[int, int]]:
        """Return the first and last label of what is in memory at a time: all of the bucket, if it is no larger than usual."""
        if self._records.n_bytes(self._bucket) // GATHERED.itemsize <= self._most:
            return [(0, (1 << 64) - 1)]
        labels, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
        for some in self._records.blocks(self._bucket):
            new, numbers = np.unique(some["label"], return_counts=True)
            labels, places = np.unique(np.concatenate([labels, new]), return_inverse=True)
            counts = np.bincount(places, np.concatenate([counts, numbers])).astype(np.int64)
        found: list[tuple[int, int]] = []
        n = 0
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
            if found and n + count <= self._most:
                found[-1], n = (found[-1][0], label), n + count
            else:
                found.append((label, label))
                n = count
        return found

    def ids(self, begin: int, n_ids: int) -> NDArray[Any]:
        """Return the ids of a document. begin: as of ROW."""
        return self._bytes(begin, n_ids * self._dtype.itemsize).view(self._dtype)

    def are_same(self, first: int, second: int, n_ids: int) -> bool:
        """Return whether two documents of so many ids have the same; of long ones a piece is in memory at a time.

        first, second: where they begin, as of ROW.
        """
        n = n_ids * self._dtype.itemsize
        if n <= _PIECE_BYTES:
            if self._first[:2] != (first, n):
                self._first = first, n, self._bytes(first, n).copy()
            return np.array_equal(self._first[2], self._bytes(second, n))
        steps = ((at, min(_PIECE_BYTES, n - at)) for at in range(0, n, _PIECE_BYTES))
        return all(np.array_equal(self._bytes(first + at, k), self._bytes(second + at, k)) for at, k in steps)

    def _bytes(self, begin: int, n: int) -> NDArray[Any]:
        first, data = self._window
        if not first <= begin <= begin + n <= first + len(data):
            # Documents of one label come in the order in which they lie there.
            self._window = first, data = begin, self._ids.read(self._bucket, begin, min(max(n, _AHEAD_BYTES), self.n_bytes - begin))
        return data[begin - first : begin - first + n]


def _with_keys(rows: NDArray[Any], keys: NDArray[np.uint64]) -> tuple[NDArray[Any], NDArray[np.uint64]]:
    """Return documents that know where their keys begin in these."""
    n_keys = rows["n_keys"].astype(np.int64)
    rows["first_key"] = np.cumsum(n_keys) - n_keys
    return rows, keys
