"""The ids of one side read in order, whatever files they lie in and wherever those are: the one reader of ids but for maps.

Training maps files (`sharded_array.py`). What looks at every id once reads instead: the pages of a map count as memory, and a
disk that fails would be a signal instead of an error.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from bisect import bisect
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tokmill.core.errors import DamageError
from tokmill.core.system.current import SYSTEM
from tokmill.core.system.refusals import explaining
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokmill.core.records import IdType
    from tokmill.dataset.sharded_array import Ids
    from tokmill.dataset.token_files import Extent, TokenFile

BLOCK_TOKENS = 1 << 20
"""Ids that are read at a time."""

ReadInto: TypeAlias = "Callable[[str, int, memoryview], None]"
"""Fills a buffer with the bytes of a file, by its name, from an offset on."""


class IdReader:
    """The ids of one side, in memory only those that were read last."""

    def __init__(self, side: str, extents: Sequence[Extent], dtype: IdType, read_into: ReadInto) -> None:
        """side: named for what lies in no file. extents: in order; their files' names are what `read_into` is given."""
        self.dtype: np.dtype[Any] = np.dtype(dtype).newbyteorder("<")
        self._side = side
        self._extents = [extent for extent in extents if extent.n_tokens]
        self._begins = list(accumulate((extent.n_tokens for extent in self._extents), initial=0))
        self._read_into = read_into
        self._held: Ids = np.zeros(0, self.dtype)
        self._held_begin = 0

    @classmethod
    def of_files(cls, side: str, files: Sequence[TokenFile], dtype: IdType) -> IdReader:
        """Return a reader of files on this machine, which `files_of` has checked."""
        named = {file.name: file for file in files}

        def read_into(name: str, offset: int, view: memoryview) -> None:
            _read_file(named[name], offset, view, np.dtype(dtype).itemsize)

        return cls(side, files, dtype, read_into)

    def __len__(self) -> int:
        return self._begins[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of all ids."""
        return len(self) * self.dtype.itemsize

    def __getitem__(self, index: slice) -> Ids:
        begin, end, step = index.indices(len(self))
        if step != 1:
            raise IndexError("ids are read in order")
        return self.read(begin, end)

    def read(self, begin: int, end: int) -> Ids:
        """Return the ids from `begin` to `end`, as many as there are: uint16 or uint32, shape (n,).

        What was read last is not read again: a stretch may begin with the end of the one before.
        """
        begin, end = max(begin, 0), min(end, len(self))
        if begin >= end:
            return np.zeros(0, self.dtype)
        at = begin - self._held_begin
        kept = self._held[at:] if 0 <= at < len(self._held) else self._held[:0]
        if begin + len(kept) < end:
            ids = np.empty(end - begin, self.dtype)
            ids[: len(kept)] = kept
            self._fill(begin + len(kept), ids[len(kept) :])
            kept = ids
        self._held, self._held_begin = kept, begin
        return kept[: end - begin]

    def blocks(self, n_tokens: int = BLOCK_TOKENS) -> Iterator[Ids]:
        """Yield all ids, `n_tokens` at a time."""
        for begin in range(0, len(self), n_tokens):
            yield self.read(begin, begin + n_tokens)

    def locate(self, index: int) -> tuple[str, int]:
        """Return the name of the file in which an id is and the byte at which it begins; past the last id, where the last ends."""
        if not self._extents:
            return self._side, 0
        extent, number = self.find_extent(index)
        return extent.name, extent.header_bytes + number * self.dtype.itemsize

    def find_extent(self, index: int) -> tuple[Extent, int]:
        """Return where an id lies, and its number in there, from 0. There is at least one id."""
        number = max(min(bisect(self._begins, index), len(self._extents)) - 1, 0)
        return self._extents[number], index - self._begins[number]

    def _fill(self, begin: int, ids: Ids) -> None:
        view, item_bytes = ids.view(np.uint8).data, self.dtype.itemsize
        number = bisect(self._begins, begin) - 1
        while len(view):
            extent, first = self._extents[number], begin - self._begins[number]
            n = min(extent.n_tokens - first, len(view) // item_bytes)
            self._read_into(extent.name, extent.header_bytes + first * item_bytes, view[: n * item_bytes])
            view, begin, number = view[n * item_bytes :], begin + n, number + 1


def _read_file(file: TokenFile, offset: int, view: memoryview, item_bytes: int) -> None:
    """Fill `view`. Raises DamageError for a file that ends too soon, StorageError for one that cannot be read."""
    with explaining(str(file.path)), contextlib.ExitStack() as stack:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        done = 0
        while done < len(view):
            n = SYSTEM.read_into(fd, view[done:], offset + done)
            if not n:
                missing = file.n_tokens - (offset + done - file.header_bytes) // item_bytes
                raise DamageError(
                    f"the file ends {counted(missing, 'id')} too soon",
                    where=str(file.path),
                    allowed=f"{counted(file.n_tokens, 'id')}, as the manifest says",
                    next_step=f"tokmill verify {shlex.quote(str(file.path.parent))} says what else is damaged",
                )
            done += n
