"""Documents cut into pieces that fit into a sequence: only those that are longer, into full sequences and a rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tokmill.derive.source import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.core.packing import Drop
    from tokmill.dataset import Ids
    from tokmill.derive.source import ShiftedIds


MOST_PIECES = 1 << 14
"""Documents that are looked at together, and pieces of one: as objects of Python, short ones take a hundred times their bytes."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Consecutive pieces of a side. All arrays have the shape (n,)."""

    ids: Ids
    """Those in which the pieces lie, one after the other."""
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    """In `ids`."""
    is_first: NDArray[np.bool_]
    """Whether a document begins with the piece."""
    is_last: NDArray[np.bool_]
    """Whether a document ends with it."""
    token: int
    """Where the next ones begin on the side."""
    is_inside: bool
    """Whether they begin inside a document of which pieces came before."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Ids of each piece."""
        return self.ends - self.begins

    def kept(self, drop: Drop, sequence: int) -> NDArray[np.bool_]:
        """Return which pieces are not to be left out."""
        is_whole: NDArray[np.bool_] = self.is_first & self.is_last
        if drop == "long":
            return is_whole
        if drop == "rests":
            is_full: NDArray[np.bool_] = self.lengths == sequence
            is_whole |= is_full
            return is_whole
        return np.ones(len(self.begins), np.bool_)

    def n_cut(self) -> int:
        """Return the documents that end here and are more than one piece."""
        return int(np.count_nonzero(self.is_last & ~self.is_first))

    def n_cut_by_windows(self, sequence: int, offset: int) -> int:
        """Return the documents that end here and would be cut by windows end to end. offset: tokens before the side."""
        first = offset + self.token - len(self.ids)
        is_cut = (first + self.begins) // sequence != (first + self.ends - 1) // sequence
        return int(np.count_nonzero(self.is_last & (is_cut | ~self.is_first)))


def pieces_from(ids: ShiftedIds, token: int, sequence: int, *, is_inside: bool) -> Iterator[Pieces]:
    """Yield the pieces of a side from a token on, some of them at a time: about a block of ids, or less where pieces are short.

    token: where a piece begins. is_inside: whether pieces of its document came before.
    """
    step = max(sequence, min(BLOCK_TOKENS, sequence * MOST_PIECES))
    while token < ids.n_tokens:
        block, ends = ids.block(token, min(token + step, ids.n_tokens))
        if len(ends) > MOST_PIECES:
            ends = ends[:MOST_PIECES]
            block = block[: ends[-1]]
        pieces = _cut(block, ends, sequence, is_inside=is_inside)
        n_taken = int(pieces.ends[-1])
        token, is_inside = token + n_taken, pieces.is_inside
        yield Pieces(block[:n_taken], pieces.begins, pieces.ends, pieces.is_first, pieces.is_last, token, is_inside)


def _cut(block: Ids, ends: NDArray[np.int64], sequence: int, *, is_inside: bool) -> Pieces:
    """Cut a block in which a piece ends, at least; what is left at its end is the beginning of a piece. Its token is 0."""
    n_left = len(block) - (int(ends[-1]) if len(ends) else 0)
    begins = np.concatenate([np.zeros(1, np.int64), ends])
    stops = np.append(ends, len(block))
    # Of a document that goes on, the full sequences alone.
    n_pieces = -(-(stops - begins) // sequence)
    n_pieces[-1] = n_left // sequence
    which = np.repeat(np.arange(len(begins)), n_pieces)
    number = np.arange(len(which)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    first = begins[which] + number * sequence
    is_first, is_last = number == 0, (number == n_pieces[which] - 1) & (which < len(ends))
    if is_inside:
        is_first &= which > 0
    went_on = bool(n_pieces[-1]) or (is_inside and not len(ends))
    return Pieces(block, first, np.minimum(first + sequence, stops[which]), is_first, is_last, 0, went_on)
