"""The ids of one side of a source with end-of-text ids where another output wants them, and the documents in it.

The placement of end-of-text ids changes by a shift: with one in front of everything and without the last, ids that had them after
each document have them before it. So a conversion needs no list of documents, and no more memory than one block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.errors import DamageError, UsageError
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.core.records import EotPlacement, IdType
    from tokmill.dataset import IdReader, Ids

BLOCK_TOKENS = 1 << 20
"""Ids that are read at a time."""


class ShiftedIds:
    """The ids of a side with end-of-text ids where another output wants them, and the ends of documents in it."""

    def __init__(self, ids: IdReader, eot_id: int, was: EotPlacement, wanted: EotPlacement) -> None:
        """was, wanted: `none` for both, or for neither."""
        self.n_tokens = len(ids)
        self._ids = ids
        self._eot = np.array([eot_id], np.uint32)
        self._wanted = wanted
        self._shift = 0 if was == wanted else 1 if wanted == "before" else -1

    def blocks(self, begin: int, end: int) -> Iterator[tuple[Ids, NDArray[np.int64]]]:
        """Yield the ids from `begin` to `end`, block by block, each with the ends of documents in it.

        ends: int64, shape (n,): for each document that ends in the block, the index in its ids just past its last.
        """
        while begin < end:
            upto = min(begin + BLOCK_TOKENS, end)
            ids = self._read(begin, upto + 1)
            yield ids[: upto - begin], self._ends(ids, upto - begin)
            begin = upto

    def _read(self, begin: int, end: int) -> Ids:
        """Read ids; at the end of the side there may be one more than was asked for, if the shift left room for it."""
        end = min(end, self.n_tokens)
        ids = self._ids.read(begin - self._shift, end - self._shift)
        eot = self._eot.astype(ids.dtype)
        if self._shift > 0 and begin == 0:
            return np.concatenate([eot, ids])
        if self._shift < 0 and end == self.n_tokens and begin < end:
            return np.concatenate([ids, eot])
        return ids

    def _ends(self, ids: Ids, n: int) -> NDArray[np.int64]:
        """Return where documents end among the first `n` ids. ids: those and, if there is one, the next."""
        if self._wanted == "none":
            return np.zeros(0, np.int64)
        marks = np.flatnonzero(ids == self._eot[0])
        if self._wanted == "after":
            return marks[marks < n] + 1
        ends = marks[marks > 0]
        return ends if len(ids) > n else np.append(ends, n)


def check_edge(ids: IdReader, eot_id: int, eot: EotPlacement, where: str, *, is_bare: bool) -> None:
    """Raise DamageError, for a bare file UsageError, if a side does not begin or end as its end-of-text ids say."""
    if eot == "none" or not len(ids):
        return
    edge = ids[:1] if eot == "before" else ids[-1:]
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
    """Return the ids as another dtype. Raises UsageError for one that does not fit."""
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
