"""Statistics of an output's ids, read once: lengths of documents, frequent ids, bytes per token.

Ids come in blocks of a fixed number, and all that is kept has a fixed size: a bin for every half power of two of lengths, a count
for every id of the vocabulary, a window for every three-hundredth of a side. A list of documents could have billions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from tokmill.core.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from tokmill.core.records import EotPlacement
    from tokmill.dataset import IdReader, Ids
    from tokmill.reports.shared_documents import DocumentDigests

BLOCK_TOKENS = 1 << 20
"""Ids that are read at a time."""
LENGTH_BINS = 2 * 48
"""Bin i holds lengths from 2**(i/2) to 2**((i+1)/2) tokens."""
DENSITY_STEP = 0.1
DENSITY_BINS = 120
"""Bins of bytes per token, `DENSITY_STEP` wide; the last holds all above."""
WINDOWS = 300
"""Windows of a side, to see what changes along it."""
MOST_COUNTED_IDS = 1 << 24


@dataclass(slots=True)
class SideStatistics:
    """Statistics of one side."""

    n_tokens: int
    """End-of-text ids included."""
    n_documents: int = 0
    """Documents that could be told apart."""
    n_empty: int = 0
    longest: int = 0
    """Tokens of the longest document, its end-of-text id not counted."""
    n_in_documents: int = 0
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LENGTH_BINS, np.int64))
    """Documents by length, shape (LENGTH_BINS,)."""
    densities: NDArray[np.int64] = field(default_factory=lambda: np.zeros(DENSITY_BINS, np.int64))
    """Documents by bytes per token, shape (DENSITY_BINS,)."""
    window_tokens: int = 1
    window_bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(WINDOWS, np.int64))
    """Bytes of text of each window, shape (WINDOWS,)."""

    def quantile(self, share: float) -> float:
        """Return the length that this share of the documents does not exceed, exact to half a power of two."""
        sums = np.cumsum(self.lengths)
        if not sums[-1]:
            return 0.0
        number = int(np.searchsorted(sums, share * sums[-1]))
        return float(min(2 ** ((number + 0.5) / 2), self.longest))


def together(sides: Iterable[SideStatistics]) -> SideStatistics:
    """Return the statistics of several sides as if they were one; its windows are of no use but for their sum."""
    whole = SideStatistics(0)
    for side in sides:
        for name in ("n_tokens", "n_documents", "n_empty", "n_in_documents", "lengths", "densities", "window_bytes"):
            setattr(whole, name, getattr(whole, name) + getattr(side, name))
        whole.longest = max(whole.longest, side.longest)
    return whole


class TokenStatistics:
    """Counts of the ids of both sides."""

    def __init__(self, n_ids: int, eot_id: int, eot: EotPlacement, sizes: NDArray[np.int64] | None) -> None:
        self._n_ids = n_ids
        self._eot_id = eot_id
        self._eot = eot
        self._sizes = sizes
        self.frequencies: NDArray[np.int64] | None = np.zeros(n_ids, np.int64) if n_ids <= MOST_COUNTED_IDS else None
        """How often each id occurs, shape (n_ids,); None: there are too many to count."""

    def read_side(self, reader: IdReader, digests: DocumentDigests | None = None) -> Iterator[tuple[int, SideStatistics]]:
        """Read one side; yield after every block its bytes and the side, which is whole with the last. Raises DamageError.

        digests: is told of its documents.
        """
        n_tokens = len(reader)
        side = SideStatistics(n_tokens, window_tokens=max(1, -(-n_tokens // WINDOWS)))
        documents = _Documents(side, digests, drop_first=self._eot == "before")
        position = 0
        for ids in reader.blocks(BLOCK_TOKENS):
            if int(ids.max()) >= self._n_ids:
                raise self._wrong_id(ids, position, reader)
            if self.frequencies is not None:
                self.frequencies += np.bincount(ids, minlength=self._n_ids)
            sums = None if self._sizes is None else np.concatenate([[0], np.cumsum(self._sizes[ids])])
            if sums is not None:
                _add_windows(side, position, sums)
            if self._eot != "none":
                documents.add(np.flatnonzero(ids == self._eot_id), ids, sums)
            position += len(ids)
            yield ids.nbytes, side
        documents.finish(is_open=self._eot == "before")
        yield 0, side

    def _wrong_id(self, ids: Ids, position: int, reader: IdReader) -> DamageError:
        at = int(np.argmax(ids >= self._n_ids))
        name, begin_byte = reader.locate(position + at)
        return DamageError(
            f"the file holds the id {int(ids[at]):,}",
            where=f"{name}, byte {begin_byte:,}",
            allowed=f"ids below {self._n_ids:,}",
            next_step="tokmill verify says what else is damaged",
        )


class _Documents:
    """The documents between end-of-text ids, across blocks."""

    def __init__(self, side: SideStatistics, digests: DocumentDigests | None, *, drop_first: bool) -> None:
        """digests: is told of them. drop_first: documents begin with the end-of-text id, so nothing is before the first one."""
        self._side = side
        self._digests = digests
        self._open = xxhash.xxh3_64()
        """Digest of the open document, as far as it was read."""
        self._drops = drop_first
        self._tokens = self._bytes = 0
        """Sizes of the open document."""

    def add(self, marks: NDArray[np.int64], ids: Ids, sums: NDArray[np.int64] | None) -> None:
        """Add a block. marks: indices of end-of-text ids; sums: bytes of text before each id, int64, shape (n_ids + 1,)."""
        n_ids = len(ids)
        digests = None if self._digests is None else self._digests_of(marks, ids)
        if not len(marks):
            self._tokens += n_ids
            self._bytes += int(sums[n_ids]) if sums is not None else 0
            return
        tokens = np.diff(marks, prepend=-1) - 1
        tokens[0] += self._tokens
        n_bytes = None
        if sums is not None:
            n_bytes = np.diff(sums[marks], prepend=0)
            n_bytes[0] += self._bytes
            self._bytes = int(sums[n_ids] - sums[marks[-1]])
        self._tokens = n_ids - int(marks[-1]) - 1
        first, self._drops = int(self._drops), False
        self._count(tokens[first:], None if n_bytes is None else n_bytes[first:], known=sums is not None)
        if self._digests is not None and digests is not None:
            self._digests.add(digests[first:], tokens[first:])

    def _digests_of(self, marks: NDArray[np.int64], ids: Ids) -> NDArray[np.uint64]:
        """Return the digests of the documents that end in a block: of their ids as uint32, so that all formats have the same."""
        data, ends = ids.astype("<u4").view(np.uint8).data, (4 * marks).tolist()
        if not ends:
            self._open.update(data)
            return np.empty(0, np.uint64)
        self._open.update(data[: ends[0]])
        found = [self._open.intdigest()]
        found += [xxhash.xxh3_64_intdigest(data[begin + 4 : end]) for begin, end in pairwise(ends)]
        self._open.reset()
        self._open.update(data[ends[-1] + 4 :])
        return np.array(found, np.uint64)

    def finish(self, *, is_open: bool) -> None:
        """End the side. is_open: with a document that no end-of-text id closes."""
        if self._tokens or (is_open and not self._drops and self._side.n_tokens):
            one = np.array([self._tokens])
            self._count(one, np.array([self._bytes]), known=bool(self._bytes))
            if self._digests is not None:
                self._digests.add(np.array([self._open.intdigest()], np.uint64), one)

    def _count(self, tokens: NDArray[np.int64], n_bytes: NDArray[np.int64] | None, *, known: bool) -> None:
        side = self._side
        if not len(tokens):
            return
        full = tokens > 0
        side.n_documents += len(tokens)
        side.n_empty += len(tokens) - int(np.count_nonzero(full))
        side.longest = max(side.longest, int(tokens.max()))
        side.n_in_documents += int(tokens.sum())
        # A hundredth of a bin, so that a power of two is never counted below itself.
        bins = (2 * np.log2(tokens[full]) + 0.01).astype(np.int64)
        side.lengths += np.bincount(np.minimum(bins, LENGTH_BINS - 1), minlength=LENGTH_BINS)
        if known and n_bytes is not None:
            density = (n_bytes[full] / tokens[full] / DENSITY_STEP).astype(np.int64)
            side.densities += np.bincount(np.minimum(density, DENSITY_BINS - 1), minlength=DENSITY_BINS)


def _add_windows(side: SideStatistics, position: int, sums: NDArray[np.int64]) -> None:
    """Add a block that begins at `position`. sums: bytes of text before each id, int64, shape (n_ids + 1,)."""
    n_ids = len(sums) - 1
    first, last = position // side.window_tokens, (position + n_ids - 1) // side.window_tokens
    edges = np.clip(np.arange(first, last + 2) * side.window_tokens - position, 0, n_ids)
    side.window_bytes[first : last + 1] += np.diff(sums[edges])
