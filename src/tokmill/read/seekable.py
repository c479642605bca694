"""Inputs as binary files with `seek`, for formats that are not read from front to back: local files, and remote objects.

A remote one is read in blocks, of which a few are kept; who reads on behind a block is read ahead for. The hard one is that nothing
bounds what such a reader asks for at once: a request of many blocks goes past the cache, in one piece.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, BinaryIO, cast

from tokmill.errors import ChangedError, DamagedInputError
from tokmill.read.remote import Fetcher
from tokmill.types import text_to_path

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from tokmill.types import Input

SEEKABLE_BLOCK_BYTES = 4 << 20
BLOCKS_KEPT = 8
"""32 MiB, less than a stream holds: one or the other is open, never both."""
_AHEAD = 2


def open_seekable(source: Input) -> BinaryIO:
    """An input's stored bytes (not decompressed) as a file that can seek; the caller closes it.

    Raises DamagedInputError, ChangedError (also while it is read: the object was replaced), UsageError (a package is missing).
    """
    if source.is_remote:
        return cast("BinaryIO", RemoteFile(source))
    try:
        file = open(text_to_path(source.path), "rb")  # noqa: SIM115  the caller closes it
    except FileNotFoundError:
        raise _changed(source, "it is gone") from None
    except OSError as error:
        raise _unreadable(source, error) from error
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != (source.size_bytes, source.mtime_ns or status.st_mtime_ns):
        file.close()
        raise _changed(source, "it has another size or modification time")
    return file


class RemoteFile(io.RawIOBase):
    """A remote object as a file."""

    def __init__(self, source: Input) -> None:
        super().__init__()
        self._fetcher = Fetcher(source)
        self._size = self._fetcher.pin.size_bytes
        self._position = 0
        self._blocks: OrderedDict[int, Future[memoryview]] = OrderedDict()
        self._last = -2

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of every file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Fill the buffer as far as the object goes. Raises DamagedInputError, ChangedError."""
        view = memoryview(buffer).cast("B")
        n_bytes = max(0, min(len(view), self._size - self._position))
        if n_bytes > SEEKABLE_BLOCK_BYTES * BLOCKS_KEPT // 2:
            view[:n_bytes] = self._fetcher.fetch(self._position, self._position + n_bytes)
            self._position += n_bytes
            return n_bytes
        end, at = self._position + n_bytes, 0
        while self._position < end:
            index, within = divmod(self._position, SEEKABLE_BLOCK_BYTES)
            block = self._block(index)
            n = min(end - self._position, len(block) - within)
            view[at : at + n] = block[within : within + n]
            at += n
            self._position += n
        return n_bytes

    def close(self) -> None:
        """Give back what is held."""
        if not self.closed:
            self._blocks.clear()
            self._fetcher.close()
        super().close()

    def _block(self, index: int) -> memoryview:
        first = index not in self._blocks
        block = self._begun(index)
        is_streamed = self._fetcher.store.is_streamed(self._fetcher.pin)
        if not is_streamed and (index == self._last + 1 or (index == self._last and not first)):
            for ahead in range(index + 1, index + 1 + _AHEAD):
                if ahead * SEEKABLE_BLOCK_BYTES < self._size:
                    self._begun(ahead)
        self._last = index
        return block.result()

    def _begun(self, index: int) -> Future[memoryview]:
        """A block, being fetched or there; the one that was not used for longest is dropped for it."""
        block = self._blocks.get(index)
        if block is None:
            block = Future()
            begin = index * SEEKABLE_BLOCK_BYTES
            arguments = (block, begin, min(begin + SEEKABLE_BLOCK_BYTES, self._size))
            threading.Thread(target=self._fetch, args=arguments, name="fetch", daemon=True).start()
            self._blocks[index] = block
            while len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(index)
        return block

    def _fetch(self, block: Future[memoryview], begin: int, end: int) -> None:
        try:
            block.set_result(self._fetcher.fetch(begin, end))
        except Exception as error:  # noqa: BLE001  raised where the block is used
            block.set_exception(error)


def _changed(source: Input, how: str) -> ChangedError:
    return ChangedError(
        f"the input changed since the run was planned: {how}",
        where=source.path,
        allowed="inputs that stay as they are during a run",
        next_step="restore the file and run the same command again, or start over with --fresh",
    )


def _unreadable(source: Input, error: OSError) -> DamagedInputError:
    return DamagedInputError(
        f"cannot be read: {error.strerror or error}",
        where=source.path,
        allowed="a file that can be read from beginning to end",
        next_step="mend the permissions or the disk and run the same command again: it resumes",
    )
