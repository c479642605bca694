"""A file of the output that grows: appended, hashed as it grows, cut into the spans of segments, made durable."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import xxhash

from tokmill.core.errors import StorageError
from tokmill.core.manifest import FileSpan
from tokmill.core.system import durable, page_cache
from tokmill.core.system.durable import storage_errors

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer


class GrowingFile:
    """A file of the output that grows. Implements `protocols.OutputFile`."""

    def __init__(self, path: Path, length: int, header_bytes: int = 0) -> None:
        """length: what was committed, the header included."""
        self.path = path
        self.length = max(length, header_bytes)
        self.header_bytes = header_bytes
        self._hash = xxhash.xxh3_128()
        self._committed = self.length
        self._readable = self._copied_to = self._synced = -1
        with storage_errors(path):
            self._fd = durable.create(path, append=True)
            os.ftruncate(self._fd, self.length)

    def append(self, data: Buffer) -> None:
        """Append all of a C-contiguous buffer."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.length += len(view)
        with storage_errors(self.path):
            durable.write_all(self._fd, view)

    def append_from(self, fd: int, offset: int, data: memoryview) -> None:
        """Append `data`, which was just read from the file `fd` at `offset`, by copying it from there inside the kernel."""
        self._hash.update(data)
        with storage_errors(self.path):
            if self._copied_to < 0:
                # A descriptor that appends cannot be copied to (EBADF).
                self._copied_to = durable.open_again(self.path)
            durable.copy_range(fd, offset, self._copied_to, self.length, len(data), data)
        self.length += len(data)

    def read(self, begin: int, n_bytes: int) -> bytes:
        """Bytes that were appended before, fewer only at the end."""
        with storage_errors(self.path):
            if self._readable < 0:
                self._readable = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            return os.pread(self._readable, n_bytes, begin)

    def fill_header(self, header: bytes) -> None:
        """Write what was kept free for it."""
        with storage_errors(self.path):
            durable.write_at(self.path, header, 0)

    @property
    def is_ahead(self) -> bool:
        """Whether something was appended since the last commit."""
        return self.length != self._committed

    def cut_span(self) -> FileSpan | None:
        """Return what was appended since the last call, or None."""
        if not self.is_ahead:
            return None
        span = FileSpan(end=self.length, digest=self._hash.hexdigest())
        self._hash = xxhash.xxh3_128()
        self._committed = self.length
        return span

    def sync(self, expected: int) -> None:
        """Make at least the first `expected` bytes durable. Raises StorageError when the file is shorter than that."""
        if self._synced >= expected:
            return
        with storage_errors(self.path):
            durable.sync_file(self._fd)
            size = os.fstat(self._fd).st_size
        page_cache.drop(self._fd, 0, expected)
        if size < expected:
            raise StorageError(
                f"the disk took {expected:,} bytes but the file has only {size:,}",
                where=str(self.path),
                allowed="a disk that keeps what it took",
                next_step="check the disk, then run the same command again",
                resumes=True,
            )

    def end(self) -> None:
        """Nothing more is appended: make it durable and close it; its span can still be cut. Raises StorageError."""
        self.sync(self.length)
        self._synced = self.length
        self.close()

    def close(self) -> None:
        """Close the descriptors; the file stays."""
        for fd in (self._fd, self._readable, self._copied_to):
            if fd >= 0:
                os.close(fd)
        self._fd = self._readable = self._copied_to = -1
