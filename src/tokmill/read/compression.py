"""The compression formats: what each adds to the loop over frames in `stream.py`.

All use low-level decompressors, which return a bounded number of bytes per call, however far a few bytes expand, and say whether a
frame was complete.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.core.records import Compression

_WINDOW_LOG_MAX = 27
"""A zstd frame may ask for a window of 128 MiB, the most that the zstd command accepts without --long."""
_XZ_MEMORY_BYTES = 130 << 20
"""Memory for decompressing xz: `xz -9` needs 65 MiB; the limit is the same 128 MiB as for zstd."""


class Frame(Protocol):
    """One frame (zstd) or member (gzip)."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Codec(Protocol):
    """A compression format."""

    name: str
    error: type[Exception] | tuple[type[Exception], ...]
    chunk_bytes: int
    """Compressed bytes read at a time; what follows a frame is copied once, so small frames ask for small chunks."""

    def new_frame(self) -> Frame: ...
    def after_frame(self, data: bytes) -> bytes:
        """Return the bytes after a frame without the padding that the format allows there."""

    def explain(self, error: Exception) -> tuple[str, str]:
        """Return what happened, and what to do next."""


class _Gzip:
    """gzip by ISA-L: 600 MB/s, where zlib has 270."""

    name = "gzip"
    chunk_bytes = 128 << 10

    def __init__(self) -> None:
        from isal import igzip_lib

        self._lib: Any = igzip_lib
        self.error: type[Exception] | tuple[type[Exception], ...] = (self._lib.error, EOFError, ValueError)

    def new_frame(self) -> Frame:
        return self._lib.IgzipDecompressor(flag=self._lib.DECOMP_GZIP)  # type: ignore[no-any-return]

    def after_frame(self, data: bytes) -> bytes:
        # Tapes and block devices pad with zeros; gzip(1) takes them too.
        return data.lstrip(b"\0")

    def explain(self, error: Exception) -> tuple[str, str]:
        return _damaged(error, "gzip")


class _Zstd:
    """zstd by the standard library's module (Python 3.14) or its backport."""

    name = "zstd"
    chunk_bytes = 512 << 10

    def __init__(self) -> None:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        self._lib: Any = zstd
        self.error: type[Exception] | tuple[type[Exception], ...] = (self._lib.ZstdError, EOFError)

    def new_frame(self) -> Frame:
        options = {self._lib.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
        return self._lib.ZstdDecompressor(options=options)  # type: ignore[no-any-return]

    def after_frame(self, data: bytes) -> bytes:
        return data

    def explain(self, error: Exception) -> tuple[str, str]:
        if "memory" in str(error):
            return (
                f"the data was compressed with a window of more than {1 << _WINDOW_LOG_MAX - 20} MiB",
                "compress it again: zstd -d --long=31 -c FILE | zstd -o NEW_FILE",
            )
        return _damaged(error, "zstd")


class _Xz:
    """xz by the standard library."""

    name = "xz"
    chunk_bytes = 128 << 10

    def __init__(self) -> None:
        import lzma

        self._lib: Any = lzma
        self.error: type[Exception] | tuple[type[Exception], ...] = (lzma.LZMAError, EOFError)

    def new_frame(self) -> Frame:
        return self._lib.LZMADecompressor(self._lib.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)  # type: ignore[no-any-return]

    def after_frame(self, data: bytes) -> bytes:
        # Stream padding (the xz file format, section 2.2).
        return data.lstrip(b"\0")

    def explain(self, error: Exception) -> tuple[str, str]:
        if "Memory usage limit" in str(error):
            return (
                f"decompressing the data takes more than {_XZ_MEMORY_BYTES >> 20} MiB of memory",
                "compress it again: xz -dc FILE | xz -6 > NEW_FILE",
            )
        return _damaged(error, "xz")


class _Bzip2:
    """bzip2 by the standard library."""

    name = "bzip2"
    chunk_bytes = 64 << 10

    def __init__(self) -> None:
        import bz2

        self._lib: Any = bz2
        self.error: type[Exception] | tuple[type[Exception], ...] = (OSError, EOFError)

    def new_frame(self) -> Frame:
        return self._lib.BZ2Decompressor()  # type: ignore[no-any-return]

    def after_frame(self, data: bytes) -> bytes:
        return data

    def explain(self, error: Exception) -> tuple[str, str]:
        return _damaged(error, "bzip2")


class _Lz4:
    """lz4 frames by the package lz4."""

    name = "lz4"
    chunk_bytes = 512 << 10

    def __init__(self) -> None:
        import lz4.frame

        self._lib: Any = lz4.frame
        self.error: type[Exception] | tuple[type[Exception], ...] = (RuntimeError, EOFError)

    def new_frame(self) -> Frame:
        return _Lz4Frame(self._lib.LZ4FrameDecompressor())

    def after_frame(self, data: bytes) -> bytes:
        return data

    def explain(self, error: Exception) -> tuple[str, str]:
        return _damaged(error, "lz4")


class _Lz4Frame:
    """An lz4 frame whose unused data is bytes, never None, as in the standard library."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def needs_input(self) -> bool:
        return bool(self._frame.needs_input)

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data or b""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._frame.decompress(data, max_length)  # type: ignore[no-any-return]


def _damaged(error: Exception, command: str) -> tuple[str, str]:
    return (
        f"the compressed data is damaged or is followed by something else: {error}",
        f"test it with {command} -t; if it is not {command}, rename it",
    )


_CODECS: dict[Compression, Callable[[], Codec]] = {"gzip": _Gzip, "zstd": _Zstd, "xz": _Xz, "bzip2": _Bzip2, "lz4": _Lz4}


def new_codec(compression: Compression) -> Codec:
    """Return the codec of a compression."""
    return _CODECS[compression]()
