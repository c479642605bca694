"""Documents with the same ids: one digest of 128 bits each, on the disk by its leading bits, then sorted bucket by bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tokmill.derive.deduplication.removals import REMOVAL
from tokmill.derive.document_stream import slices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.derive.deduplication.documents import Batch
    from tokmill.derive.deduplication.gathering import Gathered

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u8")])
"""Of a document: its digest, and number and length in one."""
DIGEST_COST = 72
"""Bytes of memory that a digest takes while its bucket is sorted."""
_AT_ONCE = 1 << 12
"""Documents that are compared before what goes is written."""
_LENGTH_BITS = 24
_MOST_LENGTH = (1 << _LENGTH_BITS) - 1
"""Length that stands for itself and for all that are longer, which are looked up."""


def digests_of(batch: Batch, long: dict[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the digests of documents: dtype DIGEST, shape (n,). long: gets the ids of those that are very long, by number."""
    if batch.is_long:
        digest, n_ids = xxhash.xxh3_128(), 0
        for piece in batch.pieces(dtype):
            digest.update(piece.data)
            n_ids += len(piece)
        data, lengths = digest.digest(), np.array([n_ids])
    else:
        size = dtype.itemsize
        views = slices(batch.ids.view(np.uint8).data, batch.begins * size, batch.ends * size)
        data, lengths = b"".join(map(xxhash.xxh3_128_digest, views)), batch.ends - batch.begins
    for at in np.flatnonzero(lengths >= _MOST_LENGTH).tolist():
        long[batch.first + at] = int(lengths[at])
    found = np.empty(len(lengths), DIGEST)
    found["high"], found["low"] = np.frombuffer(data, ">u8").reshape(-1, 2).T
    numbers = np.arange(batch.first, batch.first + len(lengths), dtype=np.uint64)
    found["document"] = numbers << np.uint64(_LENGTH_BITS) | np.minimum(lengths, _MOST_LENGTH).astype(np.uint64)
    return found


def copies_among(digests: NDArray[Any], n_protected: int, long: dict[int, int]) -> NDArray[Any]:
    """Return the documents that go of those with these digests, all that begin with the same bits: dtype REMOVAL.

    The first of those with the same digest stays, and so do the first `n_protected` of all. long: as of `digests_of`.
    """
    order = np.argsort(digests["high"])
    high = digests["high"][order]
    is_same = high[1:] == high[:-1]
    in_group = np.zeros(len(order), bool)
    in_group[1:] |= is_same
    in_group[:-1] |= is_same
    some = digests[order[in_group]]
    # The number leads in `document`, so equal digests are in the order of the documents.
    some = some[np.lexsort((some["document"], some["low"], some["high"]))]
    if not len(some):
        return np.empty(0, REMOVAL)
    is_first = np.ones(len(some), bool)
    is_first[1:] = (some["high"][1:] != some["high"][:-1]) | (some["low"][1:] != some["low"][:-1])
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(some)), 0))
    numbers = some["document"] >> np.uint64(_LENGTH_BITS)
    goes = ~is_first & (numbers >= np.uint64(n_protected))
    found = np.zeros(int(np.count_nonzero(goes)), REMOVAL)
    found["removed"], found["kept"] = numbers[goes], numbers[first][goes]
    lengths = (some["document"] & np.uint64(_MOST_LENGTH))[goes].astype(np.int64)
    for at in np.flatnonzero(lengths == _MOST_LENGTH).tolist():
        lengths[at] = long[int(found["removed"][at])]
    found["n_ids"] = found["kept_n_ids"] = lengths
    return found


MATCH = np.dtype([("document", "<u8"), ("label", "<u8")])
"""A document, and the first one with the same digest, which may be itself."""


def matches_of(removals: NDArray[Any]) -> NDArray[Any]:
    """Return all documents that must be read before the first of them goes: dtype MATCH."""
    kept = np.unique(removals["kept"])
    found = np.empty(len(removals) + len(kept), MATCH)
    found["document"] = np.concatenate([removals["removed"], kept])
    found["label"] = np.concatenate([removals["kept"], kept])
    return found


def compared(gathered: Gathered) -> Iterator[NDArray[Any]]:
    """Yield the documents that go of those in a bucket: those with the ids of the first of their label. dtype REMOVAL."""
    first: tuple[int, ...] = ()
    for rows, _ in gathered.blocks():
        for at in range(0, len(rows), _AT_ONCE):
            found = []
            for row in rows[at : at + _AT_ONCE][["document", "label", "n_ids", "begin"]].tolist():
                if not first or row[1] != first[1]:
                    first = row
                elif row[2] == first[2] and gathered.are_same(first[3], row[3], row[2]):
                    found.append((row[0], first[0], row[2], row[2], 0, 0))
            yield np.array(found, REMOVAL)
