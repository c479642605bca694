"""Which documents go, and for which document that stays: on the disk, by the number of the one that goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.derive.deduplication.documents import Documents
    from tokmill.derive.deduplication.scratch import Scratch

REMOVAL = np.dtype([("removed", "<u8"), ("kept", "<u8"), ("n_ids", "<u4"), ("kept_n_ids", "<u4"), ("shared", "<u4"), ("of", "<u4")])
"""A document that goes: its number, that of a document that stays, the ids of both without end-of-text ids, and how many n-grams
they share, of how many. `of` is 0 for documents with the same ids."""
GONE = np.dtype([("removed", "<u8")])
"""A document that goes, when that is all that must be known of it."""
RECORD_COST = 3
"""Bytes of memory that a record takes while its bucket is sorted, by its size."""
_MANY = 1 << 12
"""Removals that become lines at a time."""


class ByNumber:
    """Records of documents, read in the order of their numbers: in buckets of consecutive ones, each of which is sorted."""

    def __init__(self, scratch: Scratch, kind: str, dtype: np.dtype[Any], field: str, n_documents: int, n_buckets: int) -> None:
        """field: the one with the number. n_buckets: of new ones."""
        self._field = field
        self._records = scratch.records(kind, dtype, n_buckets)
        self._width = max(1, -(-n_documents // self._records.n_buckets))
        self._nothing = np.empty(0, dtype)
        self._held = (-1, self._nothing, self._nothing[field].copy())
        """A bucket, sorted, and its numbers one after the other, for the search."""

    def add(self, records: NDArray[Any]) -> None:
        """Add records; afterwards only `flush` makes them readable."""
        self._records.add(self.bucket_of(records[self._field]), records)

    @property
    def n_buckets(self) -> int:
        """How many there are."""
        return self._records.n_buckets

    def bucket_of(self, numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the bucket of documents with these numbers."""
        return (numbers // np.uint64(self._width)).astype(np.int64)

    def flush(self) -> None:
        """Make what was added readable."""
        self._records.flush()
        self._let_go()

    def those_of(self, bucket: int, numbers: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Look up documents, all of one bucket. Return which of these numbers have a record, and their records, in this order."""
        records, sorted_numbers = self._sorted(bucket)
        at = np.searchsorted(sorted_numbers, numbers)
        is_found = np.zeros(len(numbers), bool)
        is_inside = at < len(records)
        is_found[is_inside] = sorted_numbers[at[is_inside]] == numbers[is_inside]
        return is_found, records[at[is_found]]

    def between(self, first: int, n: int) -> NDArray[Any]:
        """Return those of documents `first` to `first + n`, in order."""
        buckets = range(first // self._width, min(-(-(first + n) // self._width), self._records.n_buckets))
        found = []
        for bucket in buckets:
            records, numbers = self._sorted(bucket)
            a, b = np.searchsorted(numbers, np.array([first, first + n], np.uint64))
            found.append(records[a:b])
        return found[0] if len(found) == 1 else np.concatenate([self._nothing, *found])

    def in_order(self) -> Iterator[NDArray[Any]]:
        """Yield all, some at a time."""
        for bucket in range(self._records.n_buckets):
            yield self._sorted(bucket)[0]

    def _sorted(self, bucket: int) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        if self._held[0] != bucket:
            self._let_go()
            records = self._records.read(bucket)
            records = records[np.argsort(records[self._field], kind="stable")]
            self._held = (bucket, records, records[self._field].copy())
        return self._held[1:]

    def _let_go(self) -> None:
        self._held = (-1, self._nothing, self._nothing[self._field].copy())


def follow(copies: NDArray[Any], removals: ByNumber, bucket: int) -> NDArray[Any]:
    """Return copies, each for the sake of a document that stays: where that of `kept` went as a near copy, of the one it went for.

    copies: dtype REMOVAL. bucket: that of all their `kept` among the removals.
    """
    is_near, near = removals.those_of(bucket, copies["kept"])
    found = copies.copy()
    for field in ("kept", "kept_n_ids", "shared", "of"):
        found[field][is_near] = near[field]
    return found


def lines_of(removals: NDArray[Any], documents: Documents) -> bytes:
    """Return the lines of an audit file for documents that go."""
    lines = []
    at, places = documents.where(removals["removed"])
    kept_at, kept_places = documents.where(removals["kept"])
    sections = documents.sections
    rows = zip(at.tolist(), places.tolist(), kept_at.tolist(), kept_places.tolist(), removals.tolist(), strict=True)
    for section, place, kept_section, kept_place, (_, _, n_ids, kept_n_ids, shared, of) in rows:
        line = {
            "source": sections[section].index,
            "document": place,
            "tokens": n_ids + 1,
            "kept_source": sections[kept_section].index,
            "kept_side": sections[kept_section].side,
            "kept_document": kept_place,
            "kept_tokens": kept_n_ids + 1,
            "kind": "near" if of else "copy",
            "similarity": round(shared / of, 4) if of else 1.0,
        }
        lines.append(msgspec.json.encode(line))
    return b"".join(line + b"\n" for line in lines)


def audit_lines(removals: ByNumber, documents: Documents) -> Iterator[bytes]:
    """Yield the lines of all documents that go, in order, some at a time."""
    for records in removals.in_order():
        for begin in range(0, len(records), _MANY):
            yield lines_of(records[begin : begin + _MANY], documents)


def count_removed(removed: list[list[int]], removals: NDArray[Any], documents: Documents) -> None:
    """Add documents that go to the sums of each source: copies, their tokens, near copies, their tokens."""
    at, _ = documents.where(removals["removed"])
    sources = np.array([section.index for section in documents.sections])[at]
    for is_near in (False, True):
        some = (removals["of"] > 0) == is_near
        found = sources[some]
        tokens = removals["n_ids"][some].astype(np.int64) + 1
        for source in np.unique(found).tolist():
            removed[source][2 * is_near] += int(np.count_nonzero(found == source))
            removed[source][2 * is_near + 1] += int(tokens[found == source].sum())
