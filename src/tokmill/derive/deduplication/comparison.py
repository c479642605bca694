"""Near copies: documents of a cluster are compared n-gram by n-gram, and the later one goes if they are alike enough.

They come in the order in which the first stays. Each is compared with those before it that stay and share a band with it, those
that share most bands first. So a document goes for the sake of one that is in the output, never for one that went itself, and of
a cluster in which only neighbours are alike every other document stays.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from tokmill.derive.deduplication.removals import REMOVAL
from tokmill.derive.deduplication.signatures import ngram_hashes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokmill.core.deduplication import NearRule
    from tokmill.derive.deduplication.gathering import Gathered

MOST_COMPARED = 32
"""Documents that one is compared with, and documents that are remembered for a band: so the work grows with the documents of a
cluster, not with their pairs."""


class Comparison:
    """The comparing of the documents of one bucket."""

    def __init__(self, gathered: Gathered, members: NDArray[Any], rule: NearRule, n_protected: int, held_bytes: int) -> None:
        """members: dtype BAND, the shared bands of these documents. held_bytes: of n-grams in memory."""
        self._gathered = gathered
        self._rule = rule
        self._n_protected = n_protected
        self._held_bytes, self._most_held = 0, held_bytes
        self._held: OrderedDict[int, NDArray[np.uint64]] = OrderedDict()
        members = members[np.argsort(members["document"], kind="stable")]
        self._keys = members["key"]
        self._begins = np.searchsorted(members["document"], gathered.records["document"], side="left")
        self._ends = np.searchsorted(members["document"], gathered.records["document"], side="right")
        self.n_pairs = self.n_unexamined = 0
        self.found: list[tuple[int, int, int, int, int, int]] = []

    def run(self) -> NDArray[Any]:
        """Compare all. Returns the documents that go: dtype REMOVAL."""
        for rows in self._gathered.groups():
            if self._gathered.number(rows[-1]) >= self._n_protected:
                self._compare(rows)
        return np.array(self.found, REMOVAL)

    def _compare(self, rows: list[int]) -> None:
        """Compare the documents of a cluster. rows: in the order of the documents."""
        kept: dict[int, list[int]] = {}
        full: set[int] = set()
        for row in rows:
            keys = self._keys[self._begins[row] : self._ends[row]].tolist()
            if self._gathered.number(row) >= self._n_protected:
                shares = Counter(each for key in keys for each in kept.get(key, ()))
                candidates = sorted(shares, key=lambda each: (-shares[each], each))
                if self._goes(row, candidates[:MOST_COMPARED]):
                    continue
                self.n_unexamined += len(candidates) > MOST_COMPARED or not full.isdisjoint(keys)
            for key in keys:
                those = kept.setdefault(key, [])
                if len(those) < MOST_COMPARED:
                    those.append(row)
                else:
                    full.add(key)

    def _goes(self, row: int, candidates: list[int]) -> bool:
        """Return whether a document is a near copy of one of these, and note it if so."""
        rule = self._rule
        for other in candidates:
            ours, theirs = self._ngrams(row), self._ngrams(other)
            fewest = min(len(ours), len(theirs))
            most = max(len(ours), len(theirs)) if rule.measure == "jaccard" else len(ours)
            if fewest < rule.threshold * most:
                # Whatever they share, it is not enough.
                continue
            self.n_pairs += 1
            both = np.concatenate([ours, theirs])
            both.sort(kind="stable")
            shared = int(np.count_nonzero(both[1:] == both[:-1]))
            of = len(both) - shared if rule.measure == "jaccard" else len(ours)
            if shared >= rule.threshold * of:
                numbers = self._gathered.number(row), self._gathered.number(other)
                self.found.append((*numbers, self._gathered.n_ids(row), self._gathered.n_ids(other), shared, of))
                return True
        return False

    def _ngrams(self, row: int) -> NDArray[np.uint64]:
        """Return the hashes of the n-grams of a document, each once, sorted; those asked for last are in memory."""
        found = self._held.get(row)
        if found is not None:
            self._held.move_to_end(row)
            return found
        found = np.unique(ngram_hashes(self._gathered.ids(row), self._rule.ngram))
        self._held[row] = found
        self._held_bytes += found.nbytes
        while self._held_bytes > self._most_held and len(self._held) > 2:
            self._held_bytes -= self._held.popitem(last=False)[1].nbytes
        return found
