"""The compression formats: what each adds to the loop over frames in `stream.py`.

All use low-level decompressors, which return a bounded number of bytes per call, however far a few bytes expand, and say whether a
frame was complete.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

from tokmill.core.local_struct import LocalStruct

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.core.records import Compression

_WINDOW_LOG_MAX = 27
"""A zstd frame may ask for a window of 128 MiB, the most that the zstd command accepts without --long."""
_XZ_MEMORY_BYTES = 130 << 20
"""Memory for decompressing xz: `xz -9` needs 65 MiB; the limit is about that of zstd."""


class Frame(Protocol):
    """One frame (zstd) or member (gzip)."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Codec(LocalStruct, frozen=True):
    """A compression format."""

    name: str
    new_frame: Callable[[], Frame]
    errors: tuple[type[Exception], ...]
    """What a frame raises for damaged data."""
    chunk_bytes: int
    """Compressed bytes read at a time; what follows a frame is copied once, so small frames ask for small chunks."""
    is_padded: bool = False
    """Whether zeros may follow a frame: tapes and block devices pad gzip, and xz has stream padding (its file format, 2.2)."""
    hints: tuple[tuple[str, str, str], ...] = ()
    """For errors that are no damage: a word of the error, what happened, and the command that helps."""

    def after_frame(self, data: bytes) -> bytes:
        """Return the bytes after a frame without padding."""
        return data.lstrip(b"\0") if self.is_padded else data

    def explain(self, error: Exception) -> tuple[str, str]:
        """Return what happened, and what to do next."""
        for word, what, command in self.hints:
            if word in str(error):
                return what, f"compress it again: {command}"
        return f"the compressed data is damaged: {error}", f"test it with {self.name} -t; if it is not {self.name}, rename it"


def _gzip() -> Codec:
    """Return gzip by ISA-L: 600 MB/s, where zlib has 270."""
    from isal import igzip_lib

    lib: Any = igzip_lib

    def new_frame() -> Frame:
        return lib.IgzipDecompressor(flag=lib.DECOMP_GZIP)  # type: ignore[no-any-return]

    return Codec("gzip", new_frame, (lib.error, EOFError, ValueError), 128 << 10, is_padded=True)


def _zstd() -> Codec:
    """Return zstd by the standard library (Python 3.14) or its backport."""
    if sys.version_info >= (3, 14):
        from compression import zstd as lib
    else:
        from backports import zstd as lib

    def new_frame() -> Frame:
        return lib.ZstdDecompressor(options={lib.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})

    what = f"the data was compressed with a window of more than {1 << _WINDOW_LOG_MAX - 20} MiB"
    hints = (
        ("memory", what, "zstd -d --long=31 -c FILE | zstd -o NEW_FILE"),
        ("Dictionary", "the data was compressed with a dictionary", "zstd -d -D DICTIONARY -c FILE | zstd -o NEW_FILE"),
    )
    return Codec("zstd", new_frame, (lib.ZstdError, EOFError), 512 << 10, hints=hints)


def _xz() -> Codec:
    import lzma

    def new_frame() -> Frame:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    what = f"decompressing the data takes more than {_XZ_MEMORY_BYTES >> 20} MiB of memory"
    hints = (("Memory usage limit", what, "xz -dc FILE | xz -6 > NEW_FILE"),)
    return Codec("xz", new_frame, (lzma.LZMAError, EOFError), 128 << 10, is_padded=True, hints=hints)


def _bzip2() -> Codec:
    import bz2

    return Codec("bzip2", bz2.BZ2Decompressor, (OSError, EOFError), 64 << 10)


def _lz4() -> Codec:
    import lz4.frame

    new_frame: Any = lz4.frame.LZ4FrameDecompressor
    return Codec("lz4", new_frame, (RuntimeError, EOFError), 512 << 10)


_CODECS: dict[Compression, Callable[[], Codec]] = {"gzip": _gzip, "zstd": _zstd, "xz": _xz, "bzip2": _bzip2, "lz4": _lz4}


def new_codec(compression: Compression) -> Codec:
    """Return the codec of a compression."""
    return _CODECS[compression]()
