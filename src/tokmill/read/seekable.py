"""Inputs that are read from wherever their end says, for the libraries that read Parquet and Arrow.

One place opens them, `open_seekable`. What it returns is a file as Python knows files, that has the size it was planned with and is
compared with that again at its end; a failed read is an error of tokmill's with the place, through whatever library asked for it.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from tokmill.errors import TokmillError
from tokmill.read.stream import PlainStream

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from tokmill.types import Input


class SeekableFile(io.RawIOBase):
    """A file on this machine. Raises DamagedInputError, ChangedError."""

    def __init__(self, source: Input) -> None:
        super().__init__()
        self._size = source.size_bytes or 0
        self._plain = PlainStream(source)
        self._at = 0
        self._furthest = 0
        self.failed: TokmillError | None = None
        """What a read raised: libraries make errors of their own of it."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.IOBase."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        rest = max(0, self._size - self._at)
        n = rest if size is None or size < 0 else min(size, rest)
        try:
            data = self._plain.read_at(self._at, n)
        except TokmillError as error:
            self.failed = error
            raise
        self._at += len(data)
        self._furthest = max(self._furthest, self._at)
        return data

    def readinto(self, buffer: Buffer, /) -> int:
        """See io.RawIOBase."""
        with memoryview(buffer) as view:
            data = self.read(view.nbytes)
            view.cast("B")[: len(data)] = data
        return len(data)

    def raw_position(self) -> int:
        """Bytes from the file's beginning to the furthest place that was read, about: how far a run is."""
        return self._furthest

    def check_unchanged(self) -> None:
        """To be called behind the last read. Raises ChangedError."""
        self._plain.check_unchanged()

    def close(self) -> None:
        """See io.IOBase."""
        if not self.closed:
            self._plain.close()
        super().close()


def open_seekable(source: Input) -> SeekableFile:
    """An input that is not compressed, and has a size. Raises DamagedInputError, ChangedError."""
    return SeekableFile(source)
