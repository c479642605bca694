"""Best-fit decreasing over lengths instead of documents: which pieces lie together in a sequence, planned from a histogram.

Plain best-fit decreasing takes items by falling length and puts each into the fullest bin that has room for it. Items of a length
are alike, and so are bins with the same free room: here all items of a length are placed at once, into whole runs of equal bins.
The result is a plain one's, bin for bin but for the choice among equals, at a cost that the number of items has no part in.

A run is a node of a tree: bins that got `n_items` of a length on top of what their parent's have. As the bins of a run are numbered
one after the other, its own and then those of its children, the bin of an item follows from the item's number among those of its
length by two searches.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Places:
    """Where items are."""

    bins: NDArray[np.int64]
    slots: NDArray[np.int64]
    """Number of the item in its bin, from 0, by falling length."""
    n_slots: NDArray[np.int64]
    """Items of that bin."""


class Bins:
    """Items of some lengths in as few bins as best-fit decreasing needs."""

    def __init__(self, counts: NDArray[np.int64]) -> None:
        """counts: int64, shape (size + 1,): items of each length, none of length 0. size: room of a bin."""
        self.size = len(counts) - 1
        self.lengths = np.flatnonzero(counts)
        """That there are, rising: few of those that there could be."""
        self.counts = counts[self.lengths]
        """Items of each of them."""
        runs = _Runs(self.size)
        for length, n in zip(self.lengths[::-1].tolist(), self.counts[::-1].tolist(), strict=True):
            runs.place(length, n)
        self.n_bins = runs.n_bins
        per_bin, in_run, left = (np.array(each, np.int64) for each in (runs.n_items, runs.sizes, runs.left))
        self._first_bins, self._offsets = _numbered(runs)
        self._per_bin = per_bin
        self._first_items = np.cumsum(per_bin * in_run) - per_bin * in_run
        # Bins to which nothing was added after them, by number.
        leaves = np.flatnonzero(left)
        leaves = leaves[np.argsort(self._first_bins[leaves])]
        self._leaf_bins, self._leaf_items = self._first_bins[leaves], (self._offsets + per_bin)[leaves]
        # Lengths were placed from the longest on.
        self._before = (np.cumsum(self.counts[::-1]) - self.counts[::-1])[::-1]

    def kinds(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where each length, of which there are items, is in `lengths` of this. int64, shape (n,)."""
        return np.searchsorted(self.lengths, lengths)

    def places(self, kinds: NDArray[np.int64], numbers: NDArray[np.int64]) -> Places:
        """Return where items lie. numbers: of each among those of its length, from 0. Both int64, shape (n,)."""
        items = self._before[kinds] + numbers
        run = np.searchsorted(self._first_items, items, side="right") - 1
        bins, slots = np.divmod(items - self._first_items[run], self._per_bin[run])
        bins += self._first_bins[run]
        slots += self._offsets[run]
        return Places(bins, slots, self._leaf_items[np.searchsorted(self._leaf_bins, bins, side="right") - 1])


class _Runs:
    """Runs of equal bins, by free room, while lengths are placed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rooms: list[int] = []
        """Of the runs that have bins left, rising."""
        self._by_room: dict[int, list[int]] = {}
        self.n_bins = 0
        self.parents: list[int] = []
        """Number of the run on which each is based; -1: empty bins."""
        self.n_items: list[int] = []
        """That it added to each bin."""
        self.sizes: list[int] = []
        """Bins that it had first."""
        self.left: list[int] = []
        """Bins that nothing was added to since."""

    def place(self, length: int, n: int) -> None:
        """Place n items of a length, which is less than those before."""
        while n:
            at = bisect_left(self._rooms, length)
            room = self._rooms[at] if at < len(self._rooms) else self._size
            run = self._by_room[room][-1] if at < len(self._rooms) else -1
            n_fitting = room // length
            # A bin that got one is the fullest with room for the next, until it has none.
            n_full = n // n_fitting if run < 0 else min(n // n_fitting, self.left[run])
            if n_full:
                self._add(run, room, length, n_fitting, n_full)
                n -= n_full * n_fitting
            else:
                self._add(run, room, length, n, 1)
                n = 0

    def _add(self, run: int, room: int, length: int, n_items: int, n_bins: int) -> None:
        """Add items of a length to each of some bins of a run. run: -1: new bins."""
        if run < 0:
            self.n_bins += n_bins
        else:
            self.left[run] -= n_bins
            if not self.left[run]:
                self._by_room[room].pop()
                if not self._by_room[room]:
                    del self._by_room[room]
                    self._rooms.pop(bisect_left(self._rooms, room))
        number, now = len(self.parents), room - length * n_items
        self.parents.append(run)
        self.n_items.append(n_items)
        self.sizes.append(n_bins)
        self.left.append(n_bins)
        if now:
            if now not in self._by_room:
                insort(self._rooms, now)
            self._by_room.setdefault(now, []).append(number)


def _numbered(runs: _Runs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first bin of each run, and the items that its bins have from the runs below it."""
    first, offsets, free = [0] * len(runs.parents), [0] * len(runs.parents), [0] * len(runs.parents)
    n_bins = 0
    for number, (parent, size, left) in enumerate(zip(runs.parents, runs.sizes, runs.left, strict=True)):
        if parent < 0:
            first[number], n_bins = n_bins, n_bins + size
        else:
            first[number] = free[parent]
            free[parent] += size
            offsets[number] = offsets[parent] + runs.n_items[parent]
        free[number] = first[number] + left
    return np.array(first, np.int64), np.array(offsets, np.int64)
