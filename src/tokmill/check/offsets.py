"""Whether the list of the offsets of all documents of a side is that of its ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

if TYPE_CHECKING:
    from tokmill.dataset import Ids


class OffsetsCheck:
    """Whether a list of the offsets of all documents of a side is that of its ids. Takes ids and list in any order."""

    def __init__(self, eot_id: int, eot: str) -> None:
        self._eot_id, self._eot = eot_id, eot
        self._found, self._listed = xxhash.xxh3_128(), xxhash.xxh3_128()
        self._found.update(np.zeros(1, "<i8").tobytes())
        self._at = 0
        self._last = -1
        self._is_rising = True

    def update(self, ids: Ids) -> None:
        """Take the next ids of the side."""
        if self._eot != "none":
            marks = np.flatnonzero(ids == self._eot_id) + self._at + (self._eot == "after")
            self._found.update(marks[marks > 0].astype("<i8").tobytes())
        self._at += len(ids)

    def update_list(self, block: memoryview) -> None:
        """Take the next bytes of the list, whole numbers."""
        numbers = np.frombuffer(block, "<i8")
        self._listed.update(block)
        if len(numbers):
            self._is_rising &= bool((np.diff(numbers, prepend=self._last) >= 0).all())
            self._last = int(numbers[-1])

    def problem(self) -> str:
        """Return what is wrong, in words; empty if nothing is."""
        if self._eot == "before" and self._at:
            self._found.update(np.array([self._at], "<i8").tobytes())
        is_same = self._eot == "none" or self._found.digest() == self._listed.digest()
        if is_same and self._is_rising and self._last == self._at:
            return ""
        return "the offsets are not those of the documents"
