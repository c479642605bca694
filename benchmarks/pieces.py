"""Words of a text, in numpy: where they begin, a hash of each, and how many distinct ones there are as the text grows.

A piece is what a GPT-2 style pretokenizer hands to the merges, about: a run of letters (bytes from 0x80 on count as
letters), of digits, or of other marks, with one space before it; or a run of white space. Caches of tokenizers are keyed by
pieces, so the curve of distinct pieces is what decides how much a cache can help. Pieces are told apart by a 64-bit hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 8 << 20
SPACE, BLANK, LETTER, DIGIT, MARK = range(5)

_CLASS = np.full(256, MARK, dtype=np.uint8)
_CLASS[[9, 10, 11, 12, 13]] = BLANK
_CLASS[32] = SPACE
_CLASS[48:58] = DIGIT
_CLASS[65:91] = _CLASS[97:123] = _CLASS[128:] = LETTER
_VALUE = np.random.default_rng(1).integers(1, 2**63, 256, dtype=np.uint64)
_FACTOR = 0x9E3779B97F4A7C15  # odd, hence invertible modulo 2**64


def _powers(factor: int, n: int) -> NDArray[np.uint64]:
    out = np.full(n, factor, dtype=np.uint64)
    out[0] = 1
    return np.cumprod(out, dtype=np.uint64)


def starts_of(text: NDArray[np.uint8]) -> NDArray[np.int64]:
    """First bytes of the pieces of `text` (uint8, shape (n,), n > 0), int64, ascending, the first is 0."""
    kind = _CLASS[text]
    before, here = kind[:-1], kind[1:]
    blank_before, blank_here = before <= BLANK, here <= BLANK
    begins = (before != here) & ~(blank_before & blank_here) & ~((before == SPACE) & ~blank_here)
    # The last space of a run of white space goes with what follows.
    begins[:-1] |= blank_before[:-1] & (here[:-1] == SPACE) & (kind[2:] > BLANK)
    return np.concatenate([[0], np.flatnonzero(begins) + 1])


class PieceHasher:
    """Hashes of pieces: a sum over the bytes times powers of an odd number, from prefix sums; tables are made once."""

    def __init__(self) -> None:
        self._up = _powers(_FACTOR, BLOCK_BYTES)
        self._down = _powers(pow(_FACTOR, -1, 2**64), BLOCK_BYTES)

    def block(self, text: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Starts (int64) and hashes (uint64) of the pieces of at most BLOCK_BYTES bytes."""
        starts = starts_of(text)
        sums = np.zeros(len(text) + 1, dtype=np.uint64)
        np.cumsum(_VALUE[text] * self._up[: len(text)], out=sums[1:])
        ends = np.append(starts[1:], len(text))
        hashes = (sums[ends] - sums[starts]) * self._down[starts]
        hashes ^= hashes >> np.uint64(32)
        return starts, hashes * np.uint64(_FACTOR)


def blocks_at_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of at most BLOCK_BYTES that end behind a newline where there is one."""
    pending = b""
    for chunk in chunks:
        pending += chunk
        while len(pending) > BLOCK_BYTES:
            cut = pending.rfind(b"\n", 0, BLOCK_BYTES) + 1 or BLOCK_BYTES
            yield pending[:cut]
            pending = pending[cut:]
    if pending:
        yield pending


class Growth:
    """Counts distinct pieces as a text goes by."""

    def __init__(self, every_bytes: int) -> None:
        self.points: list[tuple[int, int, int]] = [(0, 0, 0)]
        """(bytes, pieces, distinct pieces), at about every `every_bytes` and at the end."""
        self._every_bytes = every_bytes
        self._hasher = PieceHasher()
        self._known = np.empty(0, dtype=np.uint64)
        self._fresh: list[NDArray[np.uint64]] = []
        self._n_bytes = self._n_pieces = 0

    def add(self, block: bytes) -> None:
        """Count the next block, at most BLOCK_BYTES."""
        _, hashes = self._hasher.block(np.frombuffer(block, dtype=np.uint8))
        self._n_bytes += len(block)
        self._n_pieces += len(hashes)
        self._fresh.append(np.unique(hashes))
        if self._n_bytes - self.points[-1][0] >= self._every_bytes:
            self.close_point()

    def close_point(self) -> None:
        """Record a point here, if anything came since the last."""
        if self._fresh:
            self._known = np.unique(np.concatenate([self._known, *self._fresh]))
            self._fresh = []
            self.points.append((self._n_bytes, self._n_pieces, len(self._known)))


def growth(chunks: Iterable[bytes], every_bytes: int) -> list[tuple[int, int, int]]:
    """(bytes, pieces, distinct pieces) of a text, a point about every `every_bytes`."""
    counter = Growth(every_bytes)
    for block in blocks_at_lines(chunks):
        counter.add(block)
    counter.close_point()
    return counter.points
