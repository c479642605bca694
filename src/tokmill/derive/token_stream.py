"""The ids of one side of a source as one stream, whatever files they lie in, and the documents in it, found by end-of-text ids.

The placement of end-of-text ids changes by a shift: with one in front of everything and without the last, ids that had them after
each document have them before it. So a conversion needs no list of documents, and no more memory than one block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.errors import DamageError, UsageError
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.records import EotPlacement, IdType
    from tokmill.dataset import Ids
    from tokmill.derive.source import CheckedFile

BLOCK_TOKENS = 1 << 20
"""Ids that are read at a time."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Ids that lie one behind the other in a file."""

    name: str
    begin_byte: int
    n_tokens: int


class IdStream:
    """The ids of a side, read front to back; what was read last can be read again.

    open_file: gives an extent's file by its name, opened once.
    """

    def __init__(self, extents: Sequence[Extent], dtype: IdType, open_file: Callable[[str], CheckedFile]) -> None:
        self.n_tokens = sum(extent.n_tokens for extent in extents)
        self._extents = extents
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._open_file = open_file
        self._held: Ids = np.zeros(0, self._dtype)
        self._held_begin = 0
        self._is_begun = False

    def read(self, begin: int, end: int) -> Ids:
        """Ids `begin` to `end`, those of them that there are. `begin` never goes back behind what was read before. A view."""
        begin, end = max(begin, 0), min(end, self.n_tokens)
        if begin >= end:
            return np.zeros(0, self._dtype)
        if not self._is_begun or begin > self._held_begin + len(self._held):
            self._held, self._held_begin, self._is_begun = self._held[:0], begin, True
        kept = self._held[begin - self._held_begin :]
        if begin + len(kept) < end:
            kept = np.concatenate([kept, *self._fetch(begin + len(kept), end)])
        self._held, self._held_begin = kept, begin
        return kept[: end - begin]

    def _fetch(self, begin: int, end: int) -> Iterator[Ids]:
        before = 0
        for extent in self._extents:
            first, last = max(begin - before, 0), min(end - before, extent.n_tokens)
            if first < last:
                ids = np.empty(last - first, self._dtype)
                file = self._open_file(extent.name)
                file.read_into(extent.begin_byte + first * self._dtype.itemsize, ids.data.cast("B"))
                yield ids
            before += extent.n_tokens


class Placed:
    """The ids of a side with the end-of-text ids where another output wants them, and the ends of documents in it."""

    def __init__(self, stream: IdStream, eot_id: int, was: EotPlacement, wanted: EotPlacement) -> None:
        """was, wanted: `none` for both, or for neither."""
        self.n_tokens = stream.n_tokens
        self._stream = stream
        self._eot = np.array([eot_id], np.uint32)
        self._wanted = wanted
        self._shift = 0 if was == wanted else 1 if wanted == "before" else -1

    def blocks(self, begin: int, end: int) -> Iterator[tuple[Ids, NDArray[np.int64]]]:
        """The ids from `begin` to `end`, block by block, each with the ends of documents in it.

        ends: int64, shape (n,): for each document that ends in the block, the index in its ids just past its last.
        """
        while begin < end:
            upto = min(begin + BLOCK_TOKENS, end)
            ids = self._read(begin, upto + 1)
            yield ids[: upto - begin], self._ends(ids, upto - begin)
            begin = upto

    def _read(self, begin: int, end: int) -> Ids:
        """Up to one more than is asked for is there at the end of the side, where the shift has left a place."""
        end = min(end, self.n_tokens)
        ids = self._stream.read(begin - self._shift, end - self._shift)
        eot = self._eot.astype(ids.dtype)
        if self._shift > 0 and begin == 0:
            return np.concatenate([eot, ids])
        if self._shift < 0 and end == self.n_tokens and begin < end:
            return np.concatenate([ids, eot])
        return ids

    def _ends(self, ids: Ids, n: int) -> NDArray[np.int64]:
        """ids: `n` of them and, where there is one, the next."""
        if self._wanted == "none":
            return np.zeros(0, np.int64)
        marks = np.flatnonzero(ids == self._eot[0])
        if self._wanted == "after":
            return marks[marks < n] + 1
        ends = marks[marks > 0]
        return ends if len(ids) > n else np.append(ends, n)


def check_edge(stream: IdStream, eot_id: int, eot: EotPlacement, where: str, *, is_bare: bool) -> None:
    """Raises DamageError, for a bare file UsageError, when a side does not begin or end as its end-of-text ids say."""
    if eot == "none" or not stream.n_tokens:
        return
    edge = stream.read(0, 1) if eot == "before" else stream.read(stream.n_tokens - 1, stream.n_tokens)
    if int(edge[0]) == eot_id:
        return
    which = "last" if eot == "after" else "first"
    what = f"the {which} id is {int(edge[0]):,}, not the end-of-text id {eot_id:,}"
    if is_bare:
        raise UsageError(
            what,
            where=where,
            allowed="whole documents, each with its end-of-text id",
            next_step="state what is in it (--dtype, --eot, --eot-id), and give the files of a corpus together, in order",
        )
    raise DamageError(
        what,
        where=where,
        allowed="whole documents, each with its end-of-text id",
        next_step="tokmill verify says what else is damaged; make that output again",
    )


def narrowed(ids: Ids, dtype: IdType, where: str) -> Ids:
    """The ids as another type. Raises UsageError for one that does not fit."""
    wanted = np.dtype(dtype).newbyteorder("<")
    if ids.dtype == wanted:
        return ids
    largest = int(ids.max()) if len(ids) else 0
    if largest > np.iinfo(wanted).max:
        raise UsageError(
            f"id {largest:,} does not fit into {dtype}",
            where=where,
            allowed=f"{counted(int(np.iinfo(wanted).max) + 1, 'id')}, from 0",
            option="--to-dtype",
            suggested="uint32",
        )
    return ids.astype(wanted)
