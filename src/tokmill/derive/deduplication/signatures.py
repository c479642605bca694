"""Signatures of documents: MinHash of their n-grams of ids, and the numbers that bands of it are folded to.

An n-gram is hashed to 64 bits, which depend on every bit of it. A number of a signature is the smallest product of the upper 32
bits of the hashes and an odd multiplier, modulo 2**32. Two documents share such a number with about the probability that is the
Jaccard similarity of their n-grams: the share of n-grams of both in those of either. Documents that share all numbers of a band are
candidates. Every constant here decides bytes of outputs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tokmill.core.keys import STEP, Purpose, key_of, keys_at, mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokmill.core.deduplication import NearRule

BAND = np.dtype([("key", "<u8"), ("document", "<u8")])
"""What a band of a document is folded to; the number of the band is in it."""
BAND_COST = 56
"""Bytes of memory that a band takes while its bucket is sorted."""
_MULTIPLIER = np.uint64(0xD1342543DE82EF95)
_HASHED = 1 << 14
"""N-grams that are hashed at a time: they stay in the cache."""
_COLUMNS = 1024
"""N-grams whose products are made at a time."""


def ngram_hashes(ids: NDArray[Any], n: int) -> NDArray[np.uint64]:
    """Return a hash of each n consecutive ids: uint64, shape (len(ids) - n + 1,)."""
    n_grams = max(0, len(ids) - n + 1)
    found = np.empty(n_grams, np.uint64)
    for begin in range(0, n_grams, _HASHED):
        some = found[begin : begin + _HASHED]
        some[:] = ids[begin : begin + len(some)]
        for k in range(1, n):
            some *= _MULTIPLIER
            some += ids[begin + k : begin + k + len(some)]
        # Not of the sum itself: that of ids that are all 0 is 0, and so would be every product of its hash.
        some[:] = mix(some + STEP)
    return found


class Signer:
    """Makes signatures of documents."""

    def __init__(self, rule: NearRule, n_threads: int) -> None:
        """n_threads: which no byte depends on."""
        self._rule = rule
        n = rule.bands * rule.rows
        numbers = keys_at(np.arange(n, dtype=np.uint64), key_of(0, Purpose.SIGNATURE))
        self._multipliers = (numbers >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
        self._n_threads = n_threads
        self._pool = ThreadPoolExecutor(n_threads) if n_threads > 1 else None

    def signatures(self, ids: NDArray[Any], begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the signatures of documents, each of at least one n-gram: uint32, shape (n, bands * rows)."""
        hashes = (ngram_hashes(ids, self._rule.ngram) >> np.uint64(32)).astype(np.uint32)
        found = np.full((len(begins), len(self._multipliers)), 0xFFFFFFFF, np.uint32)
        last = ends - self._rule.ngram + 1
        if self._pool is None or len(begins) < 2 * self._n_threads:
            self._sign(hashes, begins, last, found)
            return found
        # As many n-grams for each.
        sums = np.cumsum(last - begins)
        cuts = [0, *np.searchsorted(sums, sums[-1] * np.arange(1, self._n_threads) // self._n_threads).tolist(), len(begins)]
        futures = [self._pool.submit(self._sign, hashes, begins[a:b], last[a:b], found[a:b]) for a, b in pairwise(cuts) if b > a]
        for future in futures:
            future.result()
        return found

    def _sign(
        self, hashes: NDArray[np.uint32], begins: NDArray[np.int64], ends: NDArray[np.int64], found: NDArray[np.uint32]
    ) -> None:
        """Fill `found`. begins, ends: of the n-grams of each document, in order."""
        multipliers = self._multipliers[:, None]
        products = np.empty((len(multipliers), _COLUMNS), np.uint32)
        least = np.empty(len(multipliers), np.uint32)
        spans, at, begin = list(zip(begins.tolist(), ends.tolist(), strict=True)), 0, 0
        while at < len(spans):
            # As many documents as the columns hold; the last one may go on in the next columns.
            begin = max(begin, spans[at][0])
            upto = min(begin + _COLUMNS, len(hashes))
            np.multiply(multipliers, hashes[begin:upto], out=products[:, : upto - begin])
            while at < len(spans) and spans[at][0] < upto:
                first, last = spans[at]
                np.minimum.reduce(products[:, max(first, begin) - begin : min(last, upto) - begin], axis=1, out=least)
                np.minimum(found[at], least, out=found[at])
                if last > upto:
                    break
                at += 1
            begin = upto

    def bands(self, signatures: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Return what the bands of signatures are folded to: uint64, shape (n, bands)."""
        rows = signatures.reshape(len(signatures), self._rule.bands, self._rule.rows)
        keys = np.broadcast_to(mix(np.arange(1, self._rule.bands + 1, dtype=np.uint64) * STEP), rows.shape[:2])
        for row in range(self._rule.rows):
            keys = mix(keys * STEP + rows[:, :, row])
        return keys

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
