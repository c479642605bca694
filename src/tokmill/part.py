"""One file of an output while it grows: appended to, hashed, made durable; `commit.py` gives it its name.

What is copied from another file goes from file to file inside the kernel (on file systems that can, as a reference to the same
blocks); it is read all the same, for its digest.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import xxhash

from tokmill import durable, pagecache
from tokmill.durable import storage_errors
from tokmill.errors import StorageError
from tokmill.manifest import FileSpan

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer


class PartFile:
    """A file of the output that grows. Implements `protocols.OutputFile`."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self.length = length
        self._hash = xxhash.xxh3_128()
        self._committed = length
        with storage_errors(path):
            self._fd = durable.create(path, append=True)
            os.ftruncate(self._fd, length)
        self._copy_fd = -1

    def append(self, data: Buffer) -> None:
        """Append all of a C-contiguous buffer."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.length += len(view)
        with storage_errors(self.path):
            durable.write_all(self._fd, view)

    def append_from(self, fd: int, offset: int, data: memoryview) -> None:
        """Append `data`, which was just read from the file `fd` at `offset`, by copying it from there."""
        self._hash.update(data)
        with storage_errors(self.path):
            if self._copy_fd < 0:
                # A descriptor that appends cannot be copied to (EBADF).
                self._copy_fd = durable.open_again(self.path)
            durable.copy_range(fd, offset, self._copy_fd, self.length, data)
        self.length += len(data)

    @property
    def is_ahead(self) -> bool:
        """Whether something was appended since the last commit."""
        return self.length != self._committed

    def cut_span(self) -> FileSpan | None:
        """What was appended since the last call, or None."""
        if not self.is_ahead:
            return None
        span = FileSpan(end=self.length, digest=self._hash.hexdigest())
        self._hash = xxhash.xxh3_128()
        self._committed = self.length
        return span

    def sync(self, expected: int) -> None:
        """Make at least the first `expected` bytes durable. Raises StorageError when the file is shorter than that."""
        with storage_errors(self.path):
            durable.sync_file(self._fd)
            size = os.fstat(self._fd).st_size
        pagecache.drop(self._fd, 0, expected)
        if size < expected:
            raise StorageError(
                f"the disk took {expected:,} bytes but the file has only {size:,}",
                where=str(self.path),
                next_step="check the disk, then run the same command again: it resumes from the last commit",
            )

    def close(self) -> None:
        """Close the descriptor; the part stays."""
        for fd in (self._fd, self._copy_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._copy_fd = -1
