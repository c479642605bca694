"""Leaves the page cache as it was: what a run reads and writes does not push out what other programs use.

A part of a file that was not in memory before it was read is dropped after it; one that was stays, for another program uses it.
Where the system does not say what is in memory, nothing is done.
"""

from __future__ import annotations

import mmap

from tokmill.core.system.current import SYSTEM

drop, read_ahead = SYSTEM.drop_pages, SYSTEM.read_ahead

_PART_BYTES = 8 << 20
_SMALLEST_BYTES = 1 << 20
"""Smaller files are not worth two system calls."""
_AHEAD_BYTES = 16 << 20
"""What the kernel may have read ahead for us (8 MiB seen), which does not show that others use it."""
_RESIDENT_SHARE = 0.5


class ReadOnce:
    """A file that is read once, from front to back. The descriptor stays the caller's."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """size_bytes: of the file; 0 for one that has no size, for which nothing is done."""
        self._fd = fd
        self._size = size_bytes if size_bytes >= _SMALLEST_BYTES else 0
        self._begin = 0
        self._end = 0
        self._seen = 0
        self._was_resident = True

    def before(self, offset: int) -> None:
        """Called before a read at `offset`."""
        self._seen = offset
        if offset < self._end or offset >= self._size:
            return
        ahead = 0 if self._was_resident else _AHEAD_BYTES
        self.finish()
        self._begin = offset - offset % mmap.ALLOCATIONGRANULARITY
        self._end = min(self._begin + _PART_BYTES, self._size)
        if self._begin + ahead < self._end:
            self._was_resident = SYSTEM.resident_share(self._fd, self._begin + ahead, self._end) >= _RESIDENT_SHARE
        else:
            self._was_resident = False

    def finish(self) -> None:
        """Called when the descriptor is about to be closed."""
        if not self._was_resident:
            # What comes behind it may be read by another process now.
            drop(self._fd, self._begin, min(self._end, self._seen) - self._begin)
            self._was_resident = True
