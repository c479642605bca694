"""Byte streams: a file, standard input or a remote object, plain or compressed, read once from front to back in bounded memory.

The end is what is easily missed. A decompressor whose input ends early raises nothing, so truncation is found by asking whether the
last frame was complete. A file that another program writes to or replaces is found by comparing size and modification time when it
is opened and again at its end. Python's file objects over decompressors are half as fast, and some accept a truncated file.

Two streams wrap another one: `PeekedStream` gives its beginning twice, `BoundedStream` ends before it does.
"""

from __future__ import annotations

import codecs
import os
import re
import shlex
import stat
import threading
from typing import TYPE_CHECKING

from tokmill.core.errors import BadTextError, ChangedError, DamagedInputError
from tokmill.core.records import STDIN, text_to_path
from tokmill.core.system.current import SYSTEM
from tokmill.core.system.page_cache import ReadOnce, read_ahead
from tokmill.read.compression import new_codec
from tokmill.read.utf8 import HEAD_BYTES, foreign

if TYPE_CHECKING:
    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Input
    from tokmill.read.compression import Codec, Frame

_SKIP_BYTES = 1 << 20
POINTER_BYTES = 1024
"""A pointer of Git LFS is shorter (its specification)."""
_POINTER = re.compile(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/v1\n(?:[a-z0-9.-]+ .*\n)*oid [^\n]+\nsize \d+\n?")
_LEAST_TEXT_BYTES = 16
"""Fewer may be the beginning of anything."""
_DECODED_BYTES = 1 << 18
"""Decoded at a time."""
_MARK = "\udcff"
"""Becomes the byte 0xFF."""
_HANDLER = "tokmill.mark"
_bad = threading.local()
"""What the decoder met first that is not in its encoding."""


class PlainStream:
    """The bytes of a file, a pipe or standard input as they are stored."""

    def __init__(self, source: Input) -> None:
        """Open the input. Raises DamagedInputError, ChangedError."""
        self.offset = 0
        self._source = source
        self._fd = open_stored(source)
        self._once = ReadOnce(self._fd, source.size_bytes or 0)
        try:
            self.check_unchanged()
            if (source.size_bytes or 0) > _SKIP_BYTES:
                read_ahead(self._fd)
        except BaseException:
            self.close()
            raise

    def read(self, n_bytes: int) -> bytes:
        """See ByteStream."""
        self._once.before(self.offset)
        try:
            data = os.read(self._fd, n_bytes)
        except OSError as error:
            raise _unreadable(self._source, error, self.offset) from error
        self.offset += len(data)
        if not data:
            self._check_end()
        return data

    def skip(self, n_bytes: int) -> None:
        """See ByteStream."""
        size = self._source.size_bytes
        if size is None:
            _read_past(self, n_bytes, self._source)
            return
        if self.offset + n_bytes > size:
            raise _ends_early(self._source, size)
        self.offset = os.lseek(self._fd, n_bytes, os.SEEK_CUR)

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return `n_bytes` bytes from anywhere in a file, fewer only at its end. Raises DamagedInputError, ChangedError."""
        parts: list[bytes] = []
        while n_bytes:
            try:
                data = os.pread(self._fd, n_bytes, offset)
            except OSError as error:
                raise _unreadable(self._source, error, offset) from error
            if not data:
                self.check_unchanged()
                break
            parts.append(data)
            offset += len(data)
            n_bytes -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def raw_position(self) -> int:
        """See ByteStream."""
        return self.offset

    def close(self) -> None:
        """See ByteStream."""
        if self._fd >= 0 and self._source.path != STDIN:
            self._once.finish()
            os.close(self._fd)
        self._fd = -1

    def _check_end(self) -> None:
        self.check_unchanged()
        size = self._source.size_bytes
        if size is not None and self.offset != size:
            raise _changed(self._source, f"{self.offset:,} bytes were read of {size:,}")

    def check_unchanged(self) -> None:
        """Raise ChangedError if the file is not as it was when the run was planned."""
        source = self._source
        if source.size_bytes is None:
            return
        now = os.fstat(self._fd)
        if now.st_size != source.size_bytes:
            raise _changed(source, f"it had {source.size_bytes:,} bytes, has {now.st_size:,}")
        if source.mtime_ns is not None and now.st_mtime_ns != source.mtime_ns:
            raise _changed(source, "it has the same size and another modification time")


class _Wrapper:
    """A stream made of another one, which it closes."""

    def __init__(self, stream: ByteStream) -> None:
        self.offset = stream.offset
        self._stream = stream

    def raw_position(self) -> int:
        """See ByteStream."""
        return self._stream.raw_position()

    def close(self) -> None:
        """See ByteStream."""
        self._stream.close()


class CompressedStream(_Wrapper):
    """The decompressed bytes of all frames of a file. Whatever is not a complete frame is an error."""

    def __init__(self, stream: ByteStream, source: Input, codec: Codec) -> None:
        super().__init__(stream)
        self._source = source
        self._codec = codec
        self._frame: Frame | None = codec.new_frame()
        self._pending = b""
        self._frame_begin = 0
        """Compressed byte at which the frame begins."""
        self._frame_head: bytes | None = b""
        """The beginning of the frame; None once it gave something."""

    def read(self, n_bytes: int) -> bytes:
        """See ByteStream."""
        while frame := self._frame or self._next_frame():
            data = self._pending
            if not data and frame.needs_input:
                data = self._stream.read(self._codec.chunk_bytes)
                if not data:
                    raise self._broken("the compressed data ends in the middle", "get a complete copy of the file")
            self._pending = b""
            if self._frame_head is not None and len(self._frame_head) < HEAD_BYTES:
                self._frame_head += data[:HEAD_BYTES]
            try:
                text = frame.decompress(data, n_bytes)
            except self._codec.errors as error:
                raise self._broken(*self._codec.explain(error)) from error
            if frame.eof:
                self._pending = frame.unused_data or b""
                self._frame = None
            if text:
                self._frame_head = None
                self.offset += len(text)
                return text
        return b""

    def skip(self, n_bytes: int) -> None:
        """See ByteStream."""
        _read_past(self, n_bytes, self._source)

    def _next_frame(self) -> Frame | None:
        """Begin the next frame; return None at the true end."""
        rest = self._codec.after_frame(self._pending)
        while not rest:
            data = self._stream.read(self._codec.chunk_bytes)
            if not data:
                return None
            rest = self._codec.after_frame(data)
        self._pending = rest
        self._frame = self._codec.new_frame()
        self._frame_begin, self._frame_head = self._stream.offset - len(rest), b""
        return self._frame

    def _broken(self, what: str, next_step: str) -> DamagedInputError:
        """Return the error for a frame. One that gave nothing may be no frame at all."""
        head, begin = self._frame_head, self._frame_begin
        if head is None or next_step.startswith("compress it again"):
            return self._damaged(what, next_step)
        if begin:
            cut = f"head -c {begin} FILE > NEW_FILE"
            return self._damaged(
                f"what follows the first {begin:,} bytes is no complete {self._codec.name} data",
                f"get a complete copy of the file; or, if something else was put at its end, leave that out: {cut}",
            )
        is_text = head.isascii() and head.count(0) == 0 and len(head) > _LEAST_TEXT_BYTES
        suffix = os.path.splitext(self._source.path)[1]
        found = foreign(head) or (("text", f"take {suffix} off its name") if is_text else None)
        if found and found[0] != f"{self._codec.name} data":
            what, next_step = f"this is not {self._codec.name}: it begins like {found[0]}", found[1]
        return self._damaged(what, next_step)

    def _damaged(self, what: str, next_step: str) -> DamagedInputError:
        at = f"compressed byte {self._stream.offset - len(self._pending):,} or before, decompressed byte {self.offset:,}"
        return DamagedInputError(
            f"{what} ({self._codec.name})",
            where=f"{_shown(self._source)}, {at}",
            allowed=f"complete {self._codec.name} data and nothing else",
            next_step=next_step,
        )


class DecodedStream(_Wrapper):
    """Text in another encoding, as UTF-8. Places in it are bytes of that.

    What the encoding does not have becomes a byte that UTF-8 does not have, one for each bad sequence. So whatever is done with
    bytes that are not UTF-8 is done with it: a document is left out, or a character stands for it. A run that stops at the first
    says where it is in the file.
    """

    def __init__(self, stream: ByteStream, source: Input) -> None:
        super().__init__(stream)
        self._source = source
        self._decoder = codecs.getincrementaldecoder(source.encoding or "utf-8")(_HANDLER)
        self._held = memoryview(b"")
        self._ended = False
        self.is_strict = False
        """Whether what the encoding does not have is an error."""

    def read(self, n_bytes: int) -> bytes:
        """See ByteStream. Raises BadTextError where `is_strict`."""
        while not len(self._held) and not self._ended:
            data = self._stream.read(min(_DECODED_BYTES, max(1, n_bytes)))
            self._ended = not data
            self._held = memoryview(self._decoded(data))
        taken, self._held = bytes(self._held[:n_bytes]), self._held[n_bytes:]
        self.offset += len(taken)
        return taken

    def skip(self, n_bytes: int) -> None:
        """See ByteStream."""
        _read_past(self, n_bytes, self._source)

    def _decoded(self, data: bytes) -> bytes:
        _bad.first = None
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeError as error:
            # Without the mark that says which of two encodings it is, nothing of it is known.
            raise BadTextError(
                f"not {self._source.encoding}: {error}",
                where="standard input" if self._source.path == STDIN else self._source.path,
                allowed=f"text in {self._source.encoding}, with the byte order mark that it begins with",
                next_step=f"pass --encoding {self._source.encoding}-le, or {self._source.encoding}-be",
            ) from None
        if self.is_strict and _bad.first is not None:
            before_end, byte, reason = _bad.first
            raise BadTextError(
                f"not {self._source.encoding}: byte 0x{byte:02x} ({reason})",
                where=f"{'standard input' if self._source.path == STDIN else self._source.path}, "
                f"byte {self._stream.offset - before_end:,}",
                allowed=f"text in {self._source.encoding}, as --encoding says",
                next_step="pass the encoding that it has; or --encoding-errors replace (or ignore), or --on-error skip to leave "
                "out documents that have such bytes",
            )
        return text.encode("utf-8", "surrogateescape")


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Put a mark in place of bytes that mean nothing, and note where the first of them are, from the end of what was read."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    if getattr(_bad, "first", None) is None:
        _bad.first = (len(error.object) - error.start, error.object[error.start], error.reason)
    return _MARK, error.end


codecs.register_error(_HANDLER, _mark)


class PeekedStream(_Wrapper):
    """A stream whose first bytes can be looked at before they are read."""

    def __init__(self, stream: ByteStream) -> None:
        super().__init__(stream)
        self.peeked = b""
        """What was peeked at and is still to be read."""
        self._ended = False

    def peek(self, n_bytes: int) -> bytes:
        """Return up to n_bytes bytes beyond those peeked at before, b"" only at the end; `read` returns them again."""
        data = self._stream.read(n_bytes)
        self._ended = not data
        self.peeked += data
        return data

    def read(self, n_bytes: int) -> bytes:
        """See ByteStream."""
        if self.peeked:
            data, self.peeked = self.peeked[:n_bytes], self.peeked[n_bytes:]
        else:
            data = b"" if self._ended else self._stream.read(n_bytes)
        self.offset += len(data)
        return data

    def skip(self, n_bytes: int) -> None:
        """See ByteStream."""
        n_held = min(n_bytes, len(self.peeked))
        self.peeked = self.peeked[n_held:]
        if n_bytes > n_held:
            self._stream.skip(n_bytes - n_held)
        self.offset += n_bytes


class BoundedStream(_Wrapper):
    """A stream that ends at a given byte of its input."""

    def __init__(self, stream: ByteStream, end: int, source: Input) -> None:
        super().__init__(stream)
        self._end = end
        self._source = source

    def read(self, n_bytes: int) -> bytes:
        """See ByteStream."""
        n_left = self._end - self.offset
        if n_left > 0:
            data = self._stream.read(min(n_bytes, n_left))
            self.offset += len(data)
            return data
        # Opening compares size and time, as reading to the end would have done.
        open_stream(self._source).close()
        return b""

    def skip(self, n_bytes: int) -> None:
        """See ByteStream."""
        self._stream.skip(n_bytes)
        self.offset += n_bytes


def read_fully(stream: ByteStream, n_bytes: int) -> bytes:
    """Return the next n_bytes bytes of a stream, fewer only at its end. Raises what `read` raises."""
    parts = []
    while n_bytes and (data := stream.read(n_bytes)):
        parts.append(data)
        n_bytes -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def open_stream(source: Input) -> ByteStream:
    """Open the decompressed bytes of an input, from its beginning; text in another encoding is decoded.

    Args:
        source: the input; a remote one is read through its store.

    Returns:
        The stream, which the caller closes.

    Raises:
        DamagedInputError: it cannot be read.
        ChangedError: it is not as it was when the run was planned.
    """
    if source.is_remote:
        from tokmill.store import RemoteStream

        stored: ByteStream = RemoteStream(source)
    else:
        stored = PlainStream(source)
    if source.size_bytes and source.size_bytes < POINTER_BYTES:
        stored = _no_pointer(stored, source)
    plain = stored if source.compression == "none" else CompressedStream(stored, source, new_codec(source.compression))
    return DecodedStream(plain, source) if source.encoding else plain


def _no_pointer(stored: ByteStream, source: Input) -> ByteStream:
    """Return the stream of a small input, still at its beginning. Raises DamagedInputError for a pointer of Git LFS."""
    peeked = PeekedStream(stored)
    try:
        while len(peeked.peeked) < (source.size_bytes or 0) and peeked.peek(POINTER_BYTES):
            pass
        check_no_pointer(peeked.peeked, source)
    except BaseException:
        stored.close()
        raise
    return peeked


def check_no_pointer(data: bytes, source: Input) -> None:
    """Raise DamagedInputError if all bytes of a small input are a pointer that Git LFS left in its place."""
    if not _POINTER.fullmatch(data):
        return
    pull = "give the URL of the file itself, or pull it in a clone: git lfs pull"
    if not source.is_remote:
        pull = f"git -C {shlex.quote(os.path.dirname(text_to_path(source.path)))} lfs pull"
    raise DamagedInputError(
        "this is a pointer of Git LFS, not the file that it stands for",
        where=source.path,
        allowed="the file itself",
        next_step=pull,
    )


def open_stored(source: Input) -> int:
    """Return a descriptor of an input on this machine. Raises ChangedError, DamagedInputError."""
    if source.path == STDIN:
        return 0
    path = text_to_path(source.path)
    descriptor = SYSTEM.descriptor_of(path)
    try:
        return os.open(path if descriptor is None else _inherited(path, descriptor), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _changed(source, "it is gone") from None
    except OSError as error:
        raise _unreadable(source, error, 0) from error


def _inherited(path: str, descriptor: int) -> str:
    """Return the path of a pipe of a process substitution: the descriptor may be one of the parent process's."""
    for candidate in (path, SYSTEM.path_in_parent(descriptor)):
        try:
            if candidate and stat.S_ISFIFO(os.stat(candidate).st_mode):
                return candidate
        except OSError:
            continue
    return path


def is_as_planned(source: Input, fd: int) -> bool:
    """Return whether an open file has the size and time of modification that it was planned with."""
    now = os.fstat(fd)
    return now.st_size == source.size_bytes and source.mtime_ns in (None, now.st_mtime_ns)


def _read_past(stream: ByteStream, n_bytes: int, source: Input) -> None:
    """Read past bytes of a stream that cannot seek. Raises ChangedError where it has fewer."""
    end = stream.offset + n_bytes
    while stream.offset < end:
        if not stream.read(min(_SKIP_BYTES, end - stream.offset)):
            raise _ends_early(source, stream.offset)


def _shown(source: Input) -> str:
    return "standard input" if source.path == STDIN else source.path


def _unreadable(source: Input, error: OSError, offset: int) -> DamagedInputError:
    return DamagedInputError(
        f"cannot be read: {error.strerror or error}",
        where=f"{_shown(source)}, byte {offset:,}",
        allowed="a file that can be read from beginning to end",
        next_step="repair the permissions or the disk, then run the same command again",
        resumes=True,
    )


def _changed(source: Input, how: str) -> ChangedError:
    return ChangedError(
        f"the input changed since the run was planned: {how}",
        where=_shown(source),
        allowed="inputs that stay as they are during a run",
        next_step="restore the file and run the same command again, or start over with --fresh",
    )


def _ends_early(source: Input, size: int) -> ChangedError:
    return _changed(source, f"it ends at byte {size:,}, before the point where the run resumes")
