"""Which documents several sides have in common, found by digests of their ids in bounded memory.

A side keeps the digests of all its documents, or, once there are too many, of those that end in so many zero bits: a sample chosen
by content, so that a document that two sides have is in both samples or in neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ROW = np.dtype([("digest", "<u8"), ("documents", "<i8"), ("tokens", "<i8")])
"""A digest, how many documents have it, and their tokens together."""
_MOST = 1 << 20
"""Digests of a side that are kept, about 25 MB."""


class DocumentDigests:
    """The digests of one side's documents that have ids."""

    def __init__(self, most: int = _MOST) -> None:
        """most: digests that are kept."""
        self._most = most
        self._level = 0
        """Digests that are kept end in so many zero bits."""
        self._settled = np.empty(0, _ROW)
        self._new: list[NDArray[np.void]] = []
        self._n_new = 0

    @property
    def level(self) -> int:
        """The sample is one in 2**level of the digests."""
        self._settle()
        return self._level

    def add(self, digests: NDArray[np.uint64], lengths: NDArray[np.int64]) -> None:
        """Add documents. digests: of their ids; lengths: in tokens, shape (n,) both."""
        kept = (lengths > 0) & _ends_in_zeros(digests, self._level)
        rows = np.empty(int(np.count_nonzero(kept)), _ROW)
        rows["digest"], rows["documents"], rows["tokens"] = digests[kept], 1, lengths[kept]
        self._new.append(rows)
        self._n_new += len(rows)
        if self._n_new >= self._most:
            self._settle()

    def rows(self, level: int) -> NDArray[np.void]:
        """Return the digests of the sample of a level that is not below `level`: dtype _ROW, each once, in rising order."""
        self._settle()
        return self._settled[_ends_in_zeros(self._settled["digest"], level)]

    def _settle(self) -> None:
        """Add up what has the same digest, and keep fewer if there are too many."""
        if not self._new:
            return
        rows = np.concatenate([self._settled, *self._new])
        self._new, self._n_new = [], 0
        rows = rows[np.argsort(rows["digest"], kind="stable")]
        begins = np.flatnonzero(np.diff(rows["digest"], prepend=~rows["digest"][:1]))
        found = rows[begins]
        for name in ("documents", "tokens"):
            found[name] = np.add.reduceat(rows[name], begins) if len(begins) else 0
        while len(found) > self._most:
            self._level += 1
            found = found[_ends_in_zeros(found["digest"], self._level)]
        self._settled = found


@dataclass(frozen=True, slots=True)
class Shared:
    """Documents of one side, and how many of them another has, too."""

    documents: int
    """That have ids."""
    copies: int
    """Of those, the second and later ones of equal documents."""
    also_in: tuple[int | None, ...]
    """How many another side has, too, for each side; None: the side itself, or one of other ids."""


def shared_documents(sides: Sequence[DocumentDigests], comparable: Sequence[int]) -> tuple[list[Shared], int]:
    """Return what sides have in common, and the level of the sample it was found in: each count is that of the sample.

    comparable: for each side a number; those of the same number have ids of the same tokenizer.
    """
    level = max((side.level for side in sides), default=0)
    rows = [side.rows(level) for side in sides]
    found = []
    for i, own in enumerate(rows):
        shared = [
            int(own["documents"][np.isin(own["digest"], other["digest"], assume_unique=True)].sum())
            if i != j and comparable[i] == comparable[j]
            else None
            for j, other in enumerate(rows)
        ]
        n = int(own["documents"].sum())
        found.append(Shared(n, n - len(own), tuple(shared)))
    return found, level


def _ends_in_zeros(digests: NDArray[np.uint64], n_bits: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = digests & np.uint64((1 << n_bits) - 1) == 0
    return found
