"""Whether the documents of a shuffled, mixed or deduplicated output are those of its sources, each in its place.

See `derive/arranging.py` and `derive/deduplication/copying.py`.
"""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from tokmill.core.document_order import n_copies, sorted_keys
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokmill.core.arrangement import Arrangement
    from tokmill.core.manifest import Manifest
    from tokmill.dataset import Ids

_USUAL_BYTES = 1 << 30
_KEY_COST = 16
"""Bytes of the memory budget for each key that is held: so half of it at most."""
_LEAST_KEYS = 1 << 16
"""Held, however small the budget: each part of the keys costs the making of all."""
_MANY = 4096
"""Keys that are turned into Python's numbers at a time."""


class OrderCheck:
    """Takes the ids of the training side in order, block by block."""

    def __init__(self, manifest: Manifest, arrangement: Arrangement | None, budget_bytes: int | None) -> None:
        """arrangement: of a shuffled or mixed output; None: documents were left out, and those that stayed are in their order.

        budget_bytes: memory; None: 1 GiB.
        """
        content = manifest.content
        self._eot_id = content.tokenizer.eot_id
        self._is_before = content.eot == "before"
        self._dtype = np.dtype("<u2" if content.tokenizer.n_ids <= 1 << 16 else "<u4")
        held_keys = max(_LEAST_KEYS, (budget_bytes or _USUAL_BYTES) // _KEY_COST)
        self._keys = itertools.count() if arrangement is None else _numbers(sorted_keys(arrangement, held_keys))
        self._arrangement = arrangement
        self._n_tokens = manifest.counts.tokens_train
        self._expected = manifest.documents_digest
        self._n_expected = manifest.counts.documents_train if arrangement is None else arrangement.n_documents
        self._order = "without copies" if arrangement is None else "in the order of the seed"
        self._n = self._sum = 0
        self._open: xxhash.xxh3_128 | None = None if self._is_before else self._begun()

    def update(self, ids: Ids) -> None:
        """Take the next ids: uint16 or uint32, shape (n,)."""
        marks = np.flatnonzero(ids == self._eot_id).tolist()
        data = ids.astype(self._dtype, copy=False).view(np.uint8).data
        size = self._dtype.itemsize
        edges = [-1, *marks, len(ids)]
        pieces = [data[(a + 1) * size : b * size] for a, b in pairwise(edges)]
        if self._open is not None:
            self._open.update(pieces[0])
        if not marks:
            return
        self._close()
        for piece in pieces[1:-1]:
            self._sum += xxhash.xxh3_128_intdigest(piece, next(self._keys, 0))
        self._n += len(pieces) - 2
        self._open = self._begun()
        self._open.update(pieces[-1])

    def problem(self) -> str | None:
        """Return what is wrong, in words; all ids have been taken."""
        if self._is_before:
            self._close()
        if self._n != self._n_expected:
            return f"{counted(self._n, 'document')} of train, but {self._n_expected:,} of its sources"
        if f"{self._sum % (1 << 128):032x}" != self._expected:
            return f"the documents of train are not those of its sources {self._order}"
        return _wrong_figures(self._arrangement, self._n_tokens) if self._arrangement else None

    def _begun(self) -> xxhash.xxh3_128:
        return xxhash.xxh3_128(seed=next(self._keys, 0))

    def _close(self) -> None:
        if self._open is not None:
            self._sum += self._open.intdigest()
            self._n += 1
            self._open = None


def _wrong_figures(arrangement: Arrangement, n_tokens: int) -> str | None:
    """Return what is wrong with the figures of the sources. The tokens of one source alone are known only to who reads it."""
    for number, source in enumerate(arrangement.sources):
        n = n_copies(arrangement, number)
        if n != source.taken_documents:
            return (
                f"the seed takes {counted(n, 'document')} of source {number + 1}, but the manifest says {source.taken_documents:,}"
            )
    taken_tokens = sum(source.taken_tokens for source in arrangement.sources)
    if taken_tokens != n_tokens:
        return f"{counted(n_tokens, 'token')} of train, but {taken_tokens:,} of its sources together"
    return None


def _numbers(sorted_parts: Iterator[np.ndarray]) -> Iterator[int]:
    for part in sorted_parts:
        for begin in range(0, len(part), _MANY):
            yield from part[begin : begin + _MANY].tolist()
