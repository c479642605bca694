"""Numbers that look random and are not drawn: each follows from a seed and from what it is for, so that no order of work, number of
threads or interruption changes it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
"""Constants of SplitMix64 (Steele, Lea and Flood, 2014)."""


class Purpose(IntEnum):
    """What numbers are for; those of different purposes have nothing to do with each other."""

    SHUFFLED_WINDOWS = 0
    RANDOM_WINDOWS = 1
    ORDER = 2
    """Documents lie sorted by it."""
    CHOICE = 3
    """Documents with the smallest are taken once more."""
    PACKED_DOCUMENTS = 4
    """Which of the documents of a length takes which place."""
    SEQUENCES = 5
    """The order of packed sequences."""
    IN_SEQUENCE = 6
    """The order in one of them."""
    SIGNATURE = 8
    """What hashes of n-grams are multiplied by."""
    SHUFFLED_DOCUMENTS = 9
    """The order of documents in an epoch."""
    SAMPLE = 10
    """Documents with the smallest are taken at all."""


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply a fixed bijection of 64-bit numbers in which every bit depends on every bit: the finalizer of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def key_of(seed: int, *numbers: int) -> NDArray[np.uint64]:
    """Return a number for a seed, 0 <= seed < 2**64, and further numbers, the first of which is a purpose: uint64, shape (1,)."""
    key = mix(np.array([seed], np.uint64))
    for number in numbers:
        key = mix(key + np.array([number + 1], np.uint64) * STEP)
    return key


def keys_at(places: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a number for each place, no two alike where places differ. places: uint64, any shape. key: of `key_of`."""
    return mix(places * STEP + key)
