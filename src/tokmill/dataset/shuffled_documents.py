"""Whole documents one after the other, in another order each epoch, as one endless sequence of ids that windows are cut from.

Which document is at which place of an epoch is computed (`core/permutation.py`). Where it lies in the sequence follows from the
lengths of all before it, so the sums of lengths are kept for some thousand places each, and what lies between is added up again.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.keys import Purpose, key_of, keys_at
from tokmill.core.permutation import permute

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokmill.dataset.document_ends import Ends

_STRETCH = 1 << 16
"""Documents whose lengths are added up together."""
_MOST_EPOCHS = 2
"""A batch may have the last windows of one and the first of the next."""


class ShuffledDocuments:
    """Where the ids of such a sequence lie in the file. Of the documents it keeps a number for some thousand of them."""

    def __init__(self, seed: int) -> None:
        """seed: 0 <= seed < 2**64."""
        self._seed = seed
        self._sums: dict[int, list[int]] = {}
        """By epoch, ids before each stretch of documents, as far as they are known."""
        self._stretch: tuple[int, int, NDArray[np.int64], NDArray[np.int64]] | None = None
        """The one used last: epoch, number, where its documents begin, and the sums of their lengths."""

    def __reduce__(self) -> tuple[type[ShuffledDocuments], tuple[int]]:
        return ShuffledDocuments, (self._seed,)

    def pieces(self, ends: Ends, epoch: int, begin: int, n_ids: int) -> list[tuple[int, int]]:
        """Return where ids `begin` to `begin + n_ids` of an epoch lie: begin and end of each piece in the side.

        ends: of the side's documents. The ids must be there.
        """
        sums = self._sums_of(epoch)
        while sums[-1] <= begin:
            sums.append(sums[-1] + int(self._lengths(ends, epoch, len(sums) - 1)[1][-1]))
        number, found = bisect_right(sums, begin) - 1, []
        while n_ids:
            begins, upto = self._lengths(ends, epoch, number)
            at = begin - sums[number]
            i = int(np.searchsorted(upto, at, side="right"))
            while n_ids and i < len(upto):
                skipped = at - (int(upto[i - 1]) if i else 0)
                first, n = int(begins[i]) + skipped, min(n_ids, int(upto[i]) - at)
                found.append((first, first + n))
                at, n_ids, i = at + n, n_ids - n, i + 1
            begin, number = sums[number] + at, number + 1
            if number == len(sums):
                sums.append(sums[-1] + int(upto[-1]))
        return found

    def _sums_of(self, epoch: int) -> list[int]:
        if epoch not in self._sums:
            self._sums = {kept: self._sums[kept] for kept in sorted(self._sums)[1 - _MOST_EPOCHS :]}
        return self._sums.setdefault(epoch, [0])

    def _lengths(self, ends: Ends, epoch: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the documents of a stretch begin in the side, and the sums of their lengths: int64, shape (n,)."""
        if self._stretch is None or self._stretch[:2] != (epoch, number):
            places = np.arange(number * _STRETCH, min((number + 1) * _STRETCH, len(ends)), dtype=np.uint64)
            keys = keys_at(np.full(len(places), epoch, np.uint64), key_of(self._seed, Purpose.SHUFFLED_DOCUMENTS))
            documents = permute(places, len(ends), keys).astype(np.int64)
            begins = np.where(documents > 0, ends[documents - 1], 0)
            self._stretch = (epoch, number, begins, np.cumsum(ends[documents] - begins))
        return self._stretch[2:]
