"""The order of the documents of an arrangement, and which of them it takes more than once.

A document is named by its source and its place, which is its number on the training side of that source. So the order depends
neither on how a source was made (threads, parts, merged from several) nor on its format and shards, and whoever has the sources
can say what the output must be. The numbers that decide are those of `core/keys.py`; none is made of the content, or copies of one
text would lie side by side.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.arrangement import MOST_COPIES, MOST_DOCUMENTS
from tokmill.core.keys import Purpose, key_of, keys_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.core.arrangement import Arrangement

_CHUNK = 1 << 16
"""Documents whose numbers are made at a time."""


def copies(arrangement: Arrangement, number: int, first: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return the copies of documents `first` to `first + n` of the source with this number, by place and repetition.

    Returns the index of each copy's document, from 0 for `first`, and the numbers of the copies (`copy_numbers`).
    """
    times = _times(arrangement, number, first, n)
    index = np.repeat(np.arange(n, dtype=np.int64), times)
    repetition = np.arange(len(index)) - np.repeat(np.cumsum(times) - times, times)
    return index, copy_numbers(number, index + first, repetition)


def _times(arrangement: Arrangement, number: int, first: int, n: int) -> NDArray[np.int64]:
    """Return how often each of the documents `first` to `first + n` of a source is taken: int64, shape (n,)."""
    source = arrangement.sources[number]
    times = np.full(n, source.times, np.int64)
    if source.last_chosen is not None:
        places = np.arange(first, first + n, dtype=np.uint64)
        times += choice_keys(arrangement.seed, number, places) <= np.uint64(source.last_chosen)
    return times


def n_copies(arrangement: Arrangement, number: int) -> int:
    """Return how many copies of its documents are taken of a source, by its numbers of choice."""
    source = arrangement.sources[number]
    if source.last_chosen is None:
        return source.times * source.documents
    firsts = range(0, source.documents, _CHUNK)
    return sum(int(_times(arrangement, number, first, min(_CHUNK, source.documents - first)).sum()) for first in firsts)


def order_keys(arrangement: Arrangement, copies: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the numbers by which copies are sorted; equal ones, which are rare, by the number of the copy.

    copies: of `copy_numbers`. Returns uint64 of that shape.
    """
    places = (copies >> np.uint64(12)) & np.uint64(MOST_DOCUMENTS - 1)
    found = np.empty(len(copies), np.uint64)
    # All of a source and a repetition at once; there are few of these.
    streams = (copies >> np.uint64(52) << np.uint64(12)) | (copies & np.uint64(MOST_COPIES - 1))
    for stream in np.unique(streams).tolist():
        mask = streams == stream
        key = key_of(arrangement.seed, Purpose.ORDER, stream >> 12, stream & (MOST_COPIES - 1))
        found[mask] = keys_at(places[mask], key)
    return found


def sorted_keys(arrangement: Arrangement, most_held: int) -> Iterator[NDArray[np.uint64]]:
    """Yield the numbers by which all copies are sorted, in order, some at a time. most_held: numbers in memory, about.

    All numbers are made again for each half of `most_held` of them, 20 ns each: less work than to sort them on a disk up to some
    hundred times `most_held`.
    """
    n_ranges = max(1, -(-2 * arrangement.n_documents // most_held))
    edges = [(i << 64) // n_ranges for i in range(n_ranges + 1)]
    for low, high in pairwise(edges):
        found = [np.zeros(0, np.uint64)]
        for number, source in enumerate(arrangement.sources):
            for first in range(0, source.documents, _CHUNK):
                keys = _keys_of(arrangement, number, first, min(_CHUNK, source.documents - first))
                found.append(keys[(keys >= np.uint64(low)) & (keys <= np.uint64(high - 1))] if n_ranges > 1 else keys)
        joined = np.concatenate(found)
        found.clear()
        joined.sort()
        yield joined


def _keys_of(arrangement: Arrangement, number: int, first: int, n: int) -> NDArray[np.uint64]:
    """Return the numbers by which the copies of documents `first` to `first + n` of a source are sorted, in no order."""
    source = arrangement.sources[number]
    places = np.arange(first, first + n, dtype=np.uint64)
    key = [key_of(arrangement.seed, Purpose.ORDER, number, repetition) for repetition in range(source.times + 1)]
    found = [keys_at(places, each) for each in key[:-1]]
    if source.last_chosen is not None:
        places = places[choice_keys(arrangement.seed, number, places) <= np.uint64(source.last_chosen)]
        found.append(keys_at(places, key[-1]))
    return np.concatenate([np.zeros(0, np.uint64), *found])


def copies_by_stretch(arrangement: Arrangement, n_stretches: int) -> NDArray[np.int64]:
    """Return how many copies of each source have numbers in each stretch of equal length: int64, shape (n_sources, n_stretches)."""
    found = np.zeros((len(arrangement.sources), n_stretches), np.int64)
    for number, source in enumerate(arrangement.sources):
        for first in range(0, source.documents, _CHUNK):
            keys = _keys_of(arrangement, number, first, min(_CHUNK, source.documents - first))
            stretches = ((keys >> np.uint64(32)) * np.uint64(n_stretches) >> np.uint64(32)).astype(np.int64)
            found[number] += np.bincount(stretches, minlength=n_stretches)
    return found


def copy_numbers(source: int, place: NDArray[np.int64], repetition: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return one number for each copy of a document, in the order of source, place and repetition: uint64, shape of the arrays."""
    return np.uint64(source << 52) | (place.astype(np.uint64) << np.uint64(12)) | repetition.astype(np.uint64)


def choice_keys(seed: int, source: int, places: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the numbers that choose which documents of a source are taken once more, no two alike: uint64, shape of `places`."""
    return keys_at(places, key_of(seed, Purpose.CHOICE, source))
