"""Memory that the processes of a run share: what a worker has for others, and a few numbers that all look at.

Each worker has an arena that only it writes to. The coordinator and the other workers see it at the same place, because they are
forked from the same process, and read what messages point at.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from enum import IntEnum

from tokmill.core.system.memory import forget

_ALIGNMENT = 64


class Signal(IntEnum):
    """The numbers that all processes look at."""

    STOPPED = 0
    """Not 0: the run is to end; nothing more is read."""
    PAUSED = 1
    """Not 0: memory is short; nothing is read for now."""
    RESETS = 2
    """How often workers were asked to drop their caches."""
    FRONT = 3
    """The range whose results are written next."""
    VAL_FULL = 4
    """Not 0: no further document is for validation."""


class SharedMemory:
    """The arenas of all workers and the numbers, in one mapping."""

    def __init__(self, n_workers: int, arena_bytes: int, n_long: int) -> None:
        """n_long: long documents that may be held at the same time, one of them by the worker whose range is written next."""
        self.arena_bytes = -(-arena_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.mapping = mmap.mmap(-1, mmap.PAGESIZE + n_workers * self.arena_bytes)
        self.view = memoryview(self.mapping)
        self._tokens = os.pipe()
        """Whoever takes a byte out may hold a long document."""
        os.set_blocking(self._tokens[0], False)
        os.write(self._tokens[1], b"x" * (n_long - 1))
        self.signals = self.view[: mmap.PAGESIZE].cast("q")
        """One for each `Signal`; then for each worker, whether it waits for its input."""

    def tell_reading(self, worker: int, *, is_reading: bool) -> None:
        """Note that a worker begins to wait for its input, or has it."""
        self.signals[len(Signal) + worker] = is_reading

    def is_reading(self, worker: int) -> bool:
        """Return whether a worker waits for its input."""
        return bool(self.signals[len(Signal) + worker])

    def take_token(self) -> bool:
        """Return whether a token could be taken."""
        try:
            return bool(os.read(self._tokens[0], 1))
        except BlockingIOError:
            return False

    def return_token(self) -> None:
        """Let others have a token."""
        os.write(self._tokens[1], b"x")

    def close(self) -> None:
        """Close what holds the tokens."""
        for fd in self._tokens:
            os.close(fd)

    def begin(self, worker: int) -> int:
        """Return where the arena of a worker begins."""
        return mmap.PAGESIZE + worker * self.arena_bytes

    def forget(self, begin: int, n_bytes: int) -> None:
        """Let these bytes no longer count as memory of this process; they stay as they are."""
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        forget(self.mapping, first, begin + n_bytes - first)


class Ring:
    """A stretch of memory, given out in pieces that come back in about the same order."""

    def __init__(self, begin: int, n_bytes: int) -> None:
        self._begin = begin
        self._n_bytes = n_bytes
        self._taken: deque[list[int]] = deque()
        """Begin, end, and whether it is still in use."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is given out."""
        return not self._taken

    def has_room_for(self, n_bytes: int) -> bool:
        """Return whether so many bytes could ever be given out."""
        return n_bytes <= self._n_bytes

    def holds(self, begin: int) -> bool:
        """Return whether a place lies in it."""
        return self._begin <= begin < self._begin + self._n_bytes

    def take(self, n_bytes: int) -> int | None:
        """Return where a free piece of so many bytes begins; None if there is none now."""
        n_bytes = max(_ALIGNMENT, -(-n_bytes // _ALIGNMENT) * _ALIGNMENT)
        at = self._place(n_bytes)
        if at is None:
            return None
        self._taken.append([at, at + n_bytes, 1])
        return self._begin + at

    def _place(self, n_bytes: int) -> int | None:
        if not self._taken:
            return 0 if n_bytes <= self._n_bytes else None
        first, (last, end, _) = self._taken[0][0], self._taken[-1]
        if last < first:
            return end if first - end >= n_bytes else None
        if self._n_bytes - end >= n_bytes:
            return end
        return 0 if first >= n_bytes else None

    def give_back(self, begin: int) -> None:
        """Take a piece back."""
        for piece in self._taken:
            if self._begin + piece[0] == begin:
                piece[2] = 0
                break
        while self._taken and not self._taken[0][2]:
            self._taken.popleft()
