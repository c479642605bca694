"""Near copies: documents of a cluster are compared n-gram by n-gram, and the later one goes if they are alike enough.

They come in the order in which the first stays. Each is compared with those before it that stay and share a band with it, those
that share most bands first. So a document goes for the sake of one that is in the output, never for one that went itself, and of
a cluster in which only neighbours are alike every other document stays.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from tokmill.core.errors import MemoryBudgetError
from tokmill.core.text import format_memory
from tokmill.derive.deduplication.removals import REMOVAL
from tokmill.derive.deduplication.signatures import ngram_hashes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.core.deduplication import NearRule
    from tokmill.derive.deduplication.gathering import Gathered

MOST_COMPARED = 32
"""Documents that one is compared with, and documents that are remembered for a band: so the work grows with the documents of a
cluster, not with their pairs."""

_AT_ONCE = 1 << 12
"""Documents that are compared before what goes is written."""
_BAND_COST = 300
"""Bytes of memory that a band takes while a cluster is compared, and the first document that has it."""
_ENTRY_COST = 200
"""The same, a further document of it."""


class Comparison:
    """The comparing of the documents of one bucket."""

    def __init__(
        self, gathered: Gathered, rule: NearRule, n_protected: int, ngrams_bytes: int, cluster_bytes: int, where: str
    ) -> None:
        """Compare nothing yet.

        Args:
            gathered: The documents; their labels are clusters, their keys bands that they share with others.
            rule: When one is a near copy.
            n_protected: So many documents, the first ones of all, stay.
            ngrams_bytes: Of n-grams in memory.
            cluster_bytes: Of what is remembered of the documents of a cluster that stay.
            where: The output, for errors.
        """
        self._gathered = gathered
        self._rule = rule
        self._n_protected = n_protected
        self._held_bytes, self._most_held = 0, ngrams_bytes
        self._held: OrderedDict[int, NDArray[np.uint64]] = OrderedDict()
        self._label = -1
        self._most_remembered, self._where = cluster_bytes, where
        self._begin()
        self.n_pairs = self.n_unexamined = 0
        self._found: list[tuple[int, int, int, int, int, int]] = []

    def _begin(self) -> None:
        """Begin with a cluster."""
        self._kept: dict[int, list[int]] = {}
        """Documents that stay, by the bands that they share."""
        self._full: set[int] = set()
        self._places: dict[int, tuple[int, int]] = {}
        """Of each of them, where its ids begin, and how many they are."""
        self._remembered_bytes = 0

    def run(self) -> Iterator[NDArray[Any]]:
        """Compare all. Yields the documents that go, some at a time: dtype REMOVAL. Raises MemoryBudgetError."""
        for rows, keys in self._gathered.blocks():
            for at in range(0, len(rows), _AT_ONCE):
                for number, label, n_ids, n_keys, begin, first in rows[at : at + _AT_ONCE].tolist():
                    if label != self._label:
                        self._label = label
                        self._begin()
                    self._compare(number, (begin, n_ids), keys[first : first + n_keys].tolist())
                yield np.array(self._found, REMOVAL)
                self._found = []

    def _compare(self, number: int, place: tuple[int, int], keys: list[int]) -> None:
        """Compare a document with those of its cluster that came before and stay."""
        if number >= self._n_protected:
            shares = Counter(each for key in keys for each in self._kept.get(key, ()))
            candidates = sorted(shares, key=lambda each: (-shares[each], each))
            if self._goes(number, place, candidates[:MOST_COMPARED]):
                return
            self.n_unexamined += len(candidates) > MOST_COMPARED or not self._full.isdisjoint(keys)
        for key in keys:
            those = self._kept.get(key)
            if those is None:
                self._kept[key], self._places[number] = [number], place
                self._remembered_bytes += _BAND_COST
            elif len(those) < MOST_COMPARED:
                those.append(number)
                self._places[number] = place
                self._remembered_bytes += _ENTRY_COST
            else:
                self._full.add(key)
        if self._remembered_bytes > self._most_remembered:
            raise _too_large(len(self._places), self._remembered_bytes, self._where)

    def _goes(self, number: int, place: tuple[int, int], candidates: list[int]) -> bool:
        """Return whether a document is a near copy of one of these, and note it if so."""
        rule = self._rule
        for other in candidates:
            ours, theirs = self._ngrams(number, place), self._ngrams(other, self._places[other])
            fewest = min(len(ours), len(theirs))
            most = max(len(ours), len(theirs)) if rule.measure == "jaccard" else len(ours)
            # As a quotient: that is rounded to the threshold where it is equal to it.
            if fewest / most < rule.threshold:
                # Whatever they share, it is not enough.
                continue
            self.n_pairs += 1
            both = np.concatenate([ours, theirs])
            both.sort(kind="stable")
            shared = int(np.count_nonzero(both[1:] == both[:-1]))
            of = len(both) - shared if rule.measure == "jaccard" else len(ours)
            if shared / of >= rule.threshold:
                self._found.append((number, other, place[1], self._places[other][1], shared, of))
                return True
        return False

    def _ngrams(self, number: int, place: tuple[int, int]) -> NDArray[np.uint64]:
        """Return the hashes of the n-grams of a document, each once, sorted; those asked for last are in memory."""
        found = self._held.get(number)
        if found is not None:
            self._held.move_to_end(number)
            return found
        found = np.unique(ngram_hashes(self._gathered.ids(*place), self._rule.ngram))
        self._held[number] = found
        self._held_bytes += found.nbytes + _ENTRY_COST
        while self._held_bytes > self._most_held and len(self._held) > 2:
            self._held_bytes -= self._held.popitem(last=False)[1].nbytes + _ENTRY_COST
        return found


def _too_large(n_documents: int, n_bytes: int, where: str) -> MemoryBudgetError:
    return MemoryBudgetError(
        f"bands connect {n_documents:,} documents and more, none of which is a near copy of another",
        where=where,
        option="--memory",
        allowed=f"groups of which fit into {format_memory(n_bytes)}, a fraction of the budget",
        next_step="run the same command again with a larger --memory: it goes on here; more --rows connect fewer",
        resumes=True,
    )
