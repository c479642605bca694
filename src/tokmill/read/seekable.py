"""Inputs as binary files with `seek`, for formats that are not read from front to back: local files, and remote objects.

`open_seekable` opens them all. It returns a file as Python knows files, with the size that was planned, which is compared again at
its end; a failed read is an error of tokmill's, through whatever library asked for it.

A remote object is read in blocks, of which a few are kept; sequential reads are read ahead for. A library may ask for any number of
bytes at once, so a request of many blocks is fetched in one piece, past the cache.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from collections import OrderedDict
from typing import TYPE_CHECKING

from tokmill.core.errors import TokmillError
from tokmill.core.system.refusals import in_thread
from tokmill.read.stream import POINTER_BYTES, PlainStream, check_no_pointer

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import Buffer

    from tokmill.core.records import Input

SEEKABLE_BLOCK_BYTES = 4 << 20
BLOCKS_KEPT = 8
"""32 MiB, less than a stream holds: one or the other is open, never both."""
_AHEAD = 2


class SeekableFile(io.RawIOBase):
    """The stored bytes of an input, from whatever place its two kinds read them."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self._size = size_bytes
        self._at = 0
        self.failed: TokmillError | None = None
        """What a read raised: libraries make errors of their own of it."""

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.IOBase."""
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            raise ValueError("a position before the beginning")
        self._at = at
        return at

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, fewer only at the end of the file. Raises DamagedInputError, ChangedError."""
        rest = max(0, self._size - self._at)
        n = rest if size is None or size < 0 else min(size, rest)
        try:
            data = self._bytes(self._at, n)
        except TokmillError as error:
            self.failed = error
            raise
        self._at += len(data)
        return data

    def readinto(self, buffer: Buffer, /) -> int:
        """See io.RawIOBase."""
        with memoryview(buffer) as view:
            data = self.read(view.nbytes)
            view.cast("B")[: len(data)] = data
        return len(data)

    def raw_position(self) -> int:
        """Return the place that was read last: the end of the file, which is read first, says nothing of how far reading came."""
        return self._at

    @abstractmethod
    def check_unchanged(self) -> None:
        """Compare the file with what it was planned as, after the last read. Raises ChangedError."""

    @abstractmethod
    def _bytes(self, begin: int, n_bytes: int) -> bytes:
        """Return bytes that lie within the size; fewer mean the end of the file. Raises DamagedInputError, ChangedError."""


def open_seekable(source: Input) -> SeekableFile:
    """Open an input that has a size as a file of its stored bytes (not decompressed) that can seek; the caller closes it.

    Raises DamagedInputError, ChangedError (also while it is read: the object was replaced), UsageError (a package is missing).
    """
    file = RemoteFile(source) if source.is_remote else LocalFile(source)
    if source.size_bytes and source.size_bytes < POINTER_BYTES:
        try:
            check_no_pointer(file.read(), source)
        except BaseException:
            file.close()
            raise
        file.seek(0)
    return file


class LocalFile(SeekableFile):
    """A file on this machine."""

    def __init__(self, source: Input) -> None:
        super().__init__(source.size_bytes or 0)
        self._plain = PlainStream(source)

    def check_unchanged(self) -> None:
        """See SeekableFile."""
        self._plain.check_unchanged()

    def close(self) -> None:
        """See io.IOBase."""
        if not self.closed:
            self._plain.close()
        super().close()

    def _bytes(self, begin: int, n_bytes: int) -> bytes:
        return self._plain.read_at(begin, n_bytes)


class RemoteFile(SeekableFile):
    """A remote object as a file."""

    def __init__(self, source: Input) -> None:
        from tokmill.store import Fetcher

        self._fetcher = Fetcher(source)
        super().__init__(self._fetcher.pinned.size_bytes)
        self._blocks: OrderedDict[int, Future[memoryview]] = OrderedDict()
        self._last = -2

    def check_unchanged(self) -> None:
        """See SeekableFile."""
        self._fetcher.check()

    def close(self) -> None:
        """Release blocks and connection."""
        if not self.closed:
            self._blocks.clear()
            self._fetcher.close()
        super().close()

    def _bytes(self, begin: int, n_bytes: int) -> bytes:
        if n_bytes > SEEKABLE_BLOCK_BYTES * BLOCKS_KEPT // 2:
            return bytes(self._fetcher.fetch(begin, begin + n_bytes))
        parts, end = [], begin + n_bytes
        while begin < end:
            index, within = divmod(begin, SEEKABLE_BLOCK_BYTES)
            parts.append(self._block(index)[within : within + end - begin])
            begin += len(parts[-1])
        return b"".join(parts)

    def _block(self, index: int) -> memoryview:
        first = index not in self._blocks
        block = self._begun(index)
        is_streamed = self._fetcher.store.is_streamed(self._fetcher.pinned)
        if not is_streamed and (index == self._last + 1 or (index == self._last and not first)):
            for ahead in range(index + 1, index + 1 + _AHEAD):
                if ahead * SEEKABLE_BLOCK_BYTES < self._size:
                    self._begun(ahead)
        self._last = index
        return block.result()

    def _begun(self, index: int) -> Future[memoryview]:
        """Return a block, fetched or being fetched; drop the least recently used one for it."""
        block = self._blocks.get(index)
        if block is None:
            first = index * SEEKABLE_BLOCK_BYTES
            block = in_thread(self._fetcher.fetch, first, min(first + SEEKABLE_BLOCK_BYTES, self._size), name="fetch")
            self._blocks[index] = block
            while len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(index)
        return block
