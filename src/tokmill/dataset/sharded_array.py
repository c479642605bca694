"""The ids of one side as one array: the read-only map of a file, or several maps with one index.

Several files cannot be mapped as one, for they do not end where pages do, and a copy would take the memory that a map saves. A
slice within one file is a view; one that crosses into the next is a copy of its own ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from tokmill.core.errors import DamageError
from tokmill.core.system.refusals import explaining
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.dataset.token_files import TokenFile

Ids: TypeAlias = "NDArray[np.uint16] | NDArray[np.uint32]"
"""uint16 or uint32, shape (n_tokens,)."""
TokenArray: TypeAlias = "Ids | ShardedIds"
"""All ids of a side: len, slices, single ids and arrays of indices work alike on both."""


def map_files(files: Sequence[TokenFile], dtype: np.dtype[Any]) -> TokenArray:
    """Return the files as one read-only array, in that order. Files without ids cannot be mapped and add nothing.

    Raises StorageError, and DamageError for a file that was cut since it was looked at.
    """
    parts = [_mapped(file, dtype) for file in files if file.n_tokens]
    if not parts:
        empty: Ids = np.empty(0, dtype)
        empty.flags.writeable = False
        return empty
    return parts[0] if len(parts) == 1 else ShardedIds(parts)


def _mapped(file: TokenFile, dtype: np.dtype[Any]) -> Ids:
    try:
        with explaining(str(file.path)):
            return np.memmap(file.path, dtype=dtype, mode="r", offset=file.header_bytes, shape=(file.n_tokens,))
    except ValueError as error:
        raise DamageError(
            f"the file cannot be mapped: {error}",
            where=str(file.path),
            allowed=counted(file.n_tokens, "id"),
            next_step="open it again when nothing writes to it",
        ) from None


class ShardedIds(NDArrayOperatorsMixin):
    """Several arrays of ids as one, of shape (n_tokens,).

    Whatever needs all of it at once (np.asarray, ==, arithmetic) makes a copy in memory.
    """

    ndim = 1

    def __init__(self, parts: Sequence[Ids]) -> None:
        """parts: at least one, of one dtype, none empty; kept."""
        self._parts = tuple(parts)
        self._begins = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        self.dtype: np.dtype[Any] = self._parts[0].dtype
        self.shape = (int(self._begins[-1]),)
        self.size = self.shape[0]
        self.nbytes = self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[np.unsignedinteger[Any]]:
        for part in self._parts:
            yield from part

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> np.unsignedinteger[Any]: ...
    @overload
    def __getitem__(self, index: slice | NDArray[np.integer[Any]]) -> Ids: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            begin, end, step = index.indices(self.size)
            if step > 0:
                return self._between(begin, max(begin, end))[::step]
            lowest = begin + step * (len(range(begin, end, step)) - 1)
            return self._between(lowest, begin + 1)[::step] if begin > end else self._between(0, 0)
        places = np.asarray(index)
        found = self._at(places.reshape(-1)).reshape(places.shape)
        return found if places.ndim else found[()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001  numpy's protocol
        if copy is False:
            raise ValueError("several files as one array in memory are a copy")
        return np.concatenate(self._parts, dtype=dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(i) if isinstance(i, ShardedIds) else i for i in inputs]
        return getattr(ufunc, method)(*plain, **options)

    def __repr__(self) -> str:
        return f"<ShardedIds of {len(self._parts)} files, {self.size:,} {self.dtype.name}>"

    def tolist(self) -> list[int]:
        """Return all ids as Python ints, about 40 bytes each."""
        return [i for part in self._parts for i in part.tolist()]

    def windows(self, starts: NDArray[np.int64], n_ids: int) -> Ids:
        """Return what the function `windows` does."""
        if len(starts) and not 0 <= starts.min() <= starts.max() <= self.size - n_ids:
            raise IndexError(f"window out of bounds: there are {self.size:,} ids")
        shards = np.searchsorted(self._begins, starts, side="right") - 1
        offsets = (starts - self._begins[shards]).tolist()
        found: Ids = np.empty((len(starts), n_ids), self.dtype)
        for row, shard, offset, start in zip(found, shards.tolist(), offsets, starts.tolist(), strict=True):
            part = self._parts[shard][offset : offset + n_ids]
            row[:] = part if len(part) == n_ids else self._between(start, start + n_ids)
        return found

    def _between(self, begin: int, end: int) -> Ids:
        """Return ids begin..end-1, 0 <= begin <= end <= size: a view if they lie in one file."""
        first = int(np.searchsorted(self._begins[1:], begin, side="right"))
        last = max(first, int(np.searchsorted(self._begins[1:], end - 1, side="right")))
        pieces = [
            self._parts[shard][max(0, begin - at) : end - at]
            for shard in range(first, min(last + 1, len(self._parts)))
            for at in (int(self._begins[shard]),)
        ]
        if not pieces:
            return self._parts[0][:0]
        joined: Ids = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, dtype=self.dtype)
        return joined

    def _at(self, places: NDArray[Any]) -> Ids:
        """Return the ids at these places, negative ones from the end. places: int64, shape (n,). Raises IndexError beyond them."""
        if not np.issubdtype(places.dtype, np.integer) and places.size:
            raise IndexError(f"an index is an integer, a slice or an array of integers, not of {places.dtype.name}")
        places = np.where(places < 0, places + self.size, places).astype(np.int64)
        if places.size and not 0 <= places.min() <= places.max() < self.size:
            raise IndexError(f"index out of bounds: there are {self.size:,} ids")
        shards = np.searchsorted(self._begins, places, side="right") - 1
        found: Ids = np.empty(len(places), self.dtype)
        for shard in np.unique(shards):
            mask = shards == shard
            found[mask] = self._parts[shard][places[mask] - self._begins[shard]]
        return found


def joined(ids: TokenArray, pieces: Sequence[Sequence[tuple[int, int]]]) -> Ids:
    """Return rows of one length that are joined of pieces, each from its begin to its end. Returns the dtype of ids, a copy."""
    return np.stack([np.concatenate([ids[begin:end] for begin, end in row]) for row in pieces])


def windows(ids: TokenArray, starts: NDArray[np.int64], n_ids: int) -> Ids:
    """Return the ids start..start+n_ids-1 for each start: one copy, without a Python loop if one file holds them all.

    starts: int64, shape (n,), from 0 to len(ids) - n_ids (beyond: IndexError). Returns the dtype of ids, shape (n, n_ids), a copy.
    """
    if isinstance(ids, ShardedIds):
        return ids.windows(starts, n_ids)
    # A view of all windows, whose rows overlap: choosing rows copies each in one go (four times as fast as an index for each id).
    every: Ids = np.ndarray((len(ids) - n_ids + 1, n_ids), ids.dtype, buffer=ids.data, strides=(ids.itemsize, ids.itemsize))
    return every[starts]
