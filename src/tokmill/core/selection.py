"""Which documents are taken, and on which side they are: a function of a document's hash alone, so of no order and no machine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from tokmill.core.keys import Purpose, key_of, keys_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokmill.core.config import Content

Fate = Literal["train", "val", "left out"]


class Selection:
    """The choice that the settings of an output come to. Hashes are xxh3_64 of a document's text, with the seed as seed."""

    def __init__(self, content: Content) -> None:
        self._val_below = np.uint64(math.ceil(content.val_fraction * 2**64))
        self._keeps_whole = bool(content.val_tokens)
        self.is_sample = isinstance(content.sample, float)
        self._sample_below = np.uint64(math.ceil(content.sample * 2**64)) if isinstance(content.sample, float) else np.uint64(0)
        # Not the hash itself: a sample of one in ten would else have all documents for validation in it.
        self._key = key_of(content.seed, Purpose.SAMPLE)

    def is_val(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which documents are for validation: bool, of the shape of `hashes`."""
        return hashes < self._val_below

    def is_taken(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which documents `--sample` chose: bool, of the shape of `hashes`."""
        return keys_at(hashes, self._key) < self._sample_below if self.is_sample else np.ones(len(hashes), np.bool_)

    def fate(self, value: int, *, is_block: bool = False) -> Fate:
        """Return what becomes of a document with this hash, or of a block of one that is divided."""
        hashes = np.array([value], np.uint64)
        if not self.is_taken(hashes)[0]:
            return "left out"
        # Where validation ends depends on the documents before: whether the next block goes on, nobody could say while reading.
        if is_block and self._keeps_whole:
            return "train"
        return "val" if self.is_val(hashes)[0] else "train"
