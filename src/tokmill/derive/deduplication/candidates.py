"""Candidates: documents that share a band, and clusters of them, in which each is connected with all others over shared bands."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from tokmill.core.system import memory
from tokmill.core.system.durable import open_growing, reserve, storage_errors
from tokmill.derive.buckets import read_pieces
from tokmill.output import growing_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.core.system.tree import Directory, TreePath

_AT_ONCE = 1 << 14
"""Pairs that are joined at a time: each may touch two pages."""


def shared_bands(bands: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint64]]:
    """Return those bands that several documents have, by key and document, and for each the first document that has it.

    bands: dtype BAND, all that begin with the same bits, in the order of the documents.
    """
    bands = bands[np.argsort(bands["key"], kind="stable")]
    is_same = bands["key"][1:] == bands["key"][:-1]
    is_shared = np.zeros(len(bands), bool)
    is_shared[1:] |= is_same
    is_shared[:-1] |= is_same
    some = bands[is_shared]
    is_first = np.ones(len(some), bool)
    is_first[1:] = some["key"][1:] != some["key"][:-1]
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(some)), 0))
    return some, some["document"][first]


def clusters_path(directory: Directory) -> TreePath:
    """Return where the clusters of a deduplication lie."""
    return growing_path(directory, "clusters")


def _dtype_of(n_documents: int) -> np.dtype[Any]:
    return np.dtype("<u4" if n_documents < (1 << 32) - 1 else "<u8")


class FlatClusters:
    """Clusters that another process has joined, and flattened: a stretch of the file is read at a time."""

    def __init__(self, directory: Directory, n_documents: int) -> None:
        self._path = clusters_path(directory)
        self._dtype = _dtype_of(n_documents)

    def firsts(self, documents: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the first document of the cluster of each of these, in order, which lie close together."""
        first = int(documents[0])
        found = np.empty(int(documents[-1]) - first + 1, self._dtype)
        read_pieces(self._path, first * self._dtype.itemsize, found.view(np.uint8).data)
        return found[(documents - np.uint64(first)).astype(np.int64)].astype(np.uint64) - np.uint64(1)


class Clusters:
    """For each document the first of its cluster, in a file that is mapped: union and find for many pairs at a time.

    A number in the file is that of a document of the same cluster which comes earlier, or its own, plus one; 0: it is in none.
    Every change leads to an earlier document of the true cluster, so one that is repeated after a crash does no harm.
    """

    def __init__(self, directory: Directory, n_documents: int, held_bytes: int) -> None:
        """held_bytes: of the file that may stay in the memory of this process between two calls."""
        self._path = clusters_path(directory)
        dtype = _dtype_of(n_documents)
        # An empty file cannot be mapped.
        self._n_bytes = max(1, n_documents) * dtype.itemsize
        self._is_large = self._n_bytes > held_bytes
        with storage_errors(self._path):
            fd = open_growing(self._path)
            try:
                # Where there is no room, that must be said here: a write to the mapping would be a SIGBUS.
                reserve(fd, self._n_bytes)
                self._map = mmap.mmap(fd, self._n_bytes)
            finally:
                os.close(fd)
        self._parents = np.frombuffer(self._map, dtype)

    def join(self, first: NDArray[np.uint64], second: NDArray[np.uint64]) -> None:
        """Put documents into one cluster, pair by pair."""
        for begin in range(0, len(first), _AT_ONCE):
            self._join(*(each[begin : begin + _AT_ONCE].astype(np.int64) for each in (first, second)))
            self._let_go()

    def firsts(self, documents: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the first document of the cluster of each of these, which are in one."""
        found = np.empty(len(documents), np.uint64)
        for begin in range(0, len(documents), _AT_ONCE):
            found[begin : begin + _AT_ONCE] = self._roots(documents[begin : begin + _AT_ONCE].astype(np.int64))
            self._let_go()
        return found

    def flatten(self) -> None:
        """Let the number of each document be that of the first of its cluster: so a stretch of the file is all that it takes."""
        for begin, parents in self._blocks():
            self._roots(np.flatnonzero(parents) + begin)

    def count(self) -> int:
        """Return how many clusters there are."""
        n = 0
        for begin, parents in self._blocks():
            n += int(np.count_nonzero(parents == np.arange(begin + 1, begin + 1 + len(parents))))
        return n

    def sync(self) -> None:
        """Make it durable. Raises StorageError."""
        with storage_errors(self._path):
            self._map.flush()

    def close(self) -> None:
        """Unmap the file."""
        del self._parents
        self._map.close()

    def remove(self) -> None:
        """Remove the file. Raises StorageError."""
        self.close()
        with storage_errors(self._path):
            self._path.unlink(missing_ok=True)

    def _blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        for begin in range(0, len(self._parents), 1 << 20):
            yield begin, self._parents[begin : begin + (1 << 20)]
            self._let_go()

    def _join(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        for each in (first, second):
            new = each[self._parents[each] == 0]
            self._parents[new] = new + 1
        while len(first):
            first, second = self._roots(first), self._roots(second)
            differ = first != second
            low, high = np.minimum(first, second)[differ], np.maximum(first, second)[differ]
            # Where one would go below several, it goes below the earliest; the others are joined in the next round.
            np.minimum.at(self._parents, high, (low + 1).astype(self._parents.dtype))
            first, second = low, high

    def _roots(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        roots = documents
        while True:
            parents = self._parents[roots].astype(np.int64) - 1
            if np.array_equal(parents, roots):
                break
            roots = parents
        self._parents[documents] = roots + 1
        return roots

    def _let_go(self) -> None:
        """Give pages back, which stay in the system's cache: of a mapped file, they count as memory of this process."""
        if self._is_large:
            memory.forget(self._map, 0, len(self._map))
