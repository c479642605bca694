"""A damaged file of the output while it is made anew: what is sound is copied, the rest is appended and must have its digest."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from tokmill.core.errors import ChangedError, StorageError
from tokmill.core.system import durable, page_cache
from tokmill.core.system.durable import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

    from tokmill.core.records import Cursor

_BLOCK_BYTES = 4 << 20
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Span:
    """What one segment added to one file, or filled in at its beginning: bytes begin to end."""

    segment: int
    """From 0."""
    begin: int
    end: int
    digest: str
    """xxh3_128, hex."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Consecutive segments, in each of which a file is damaged."""

    first: int
    last: int
    """From 0, inclusive."""
    begin: Cursor
    end: Cursor
    bytes_in: int
    """Decompressed bytes of the corpus between the two."""
    writer: dict[str, int]
    """State of the writer before it."""
    tokens: tuple[int, int]
    """That it added to train and to val."""
    documents: tuple[int, int]
    """That ended in it, likewise."""
    is_last: bool
    """The corpus, or its part, ends with it."""
    part: int | None
    """Of an output that was made in parts."""


class NewFile:
    """A damaged file while it is made anew, from front to back. Implements `protocols.OutputFile`. Close it."""

    def __init__(self, path: Path, part: Path, spans: Sequence[Span], damaged: set[Span], header: Span | None = None) -> None:
        """damaged: spans, or the header, whose bytes are not in the old file."""
        self.path = path
        self.length = header.end if header else 0
        self.mended: list[tuple[int, int]] = []
        """Damaged ranges that were made again; neighbours are one."""
        self._part = part
        self._spans = spans
        self._damaged = damaged
        self._header = header
        self._lacks_header = header in damaged
        self._done = 0
        self._until = 0
        self._hash = xxhash.xxh3_128()
        self._readable = -1
        with storage_errors(part):
            self._fd = durable.create(part)
        if header and not self._lacks_header:
            self._copy_bytes(0, header.end)
        with storage_errors(part):
            os.lseek(self._fd, self.length, os.SEEK_SET)

    def open_gap(self, gap: Gap) -> None:
        """Copy what lies before a gap; what is appended from now on is its bytes."""
        self._copy(gap.first)
        self._until = gap.last + 1

    def append(self, data: Buffer) -> None:
        """Append what belongs to the gap; bytes behind it are passed over. Raises ChangedError for other bytes than before."""
        view = memoryview(data).cast("B")
        while view and self._is_open:
            span = self._spans[self._done]
            part = view[: span.end - self.length]
            self._hash.update(part)
            with storage_errors(self._part):
                durable.write_all(self._fd, part)
            self.length += len(part)
            view = view[len(part) :]
            if self.length == span.end:
                self._close_span(span)

    def read(self, begin: int, n_bytes: int) -> bytes:
        """Bytes that are there so far, fewer only at the end."""
        with storage_errors(self._part):
            if self._readable < 0:
                self._readable = os.open(self._part, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            return os.pread(self._readable, n_bytes, begin)

    def complete(self, header: bytes) -> None:
        """Fill in the header, where that is what is damaged. Raises ChangedError for another than before."""
        if self._header is None or not self._lacks_header:
            return
        if xxhash.xxh3_128_hexdigest(header) != self._header.digest:
            raise _other_bytes(self.path, self._header)
        with storage_errors(self._part):
            durable.write_at(self._part, header, 0)
        self._lacks_header = False
        if self.mended and self.mended[0][0] == self._header.end:
            self.mended[0] = (0, self.mended[0][1])
        else:
            self.mended.insert(0, (0, self._header.end))

    def close_gap(self) -> None:
        """The gap's part of the corpus was read. Raises ChangedError when there was too little of it."""
        if self._is_open:
            raise _other_bytes(self.path, self._spans[self._done])

    def finish(self) -> None:
        """Copy the rest, make all of it durable, and read it back from the disk. Raises StorageError."""
        if self._spans:
            self._copy(self._spans[-1].segment + 1)
        if self._header and self._lacks_header:
            raise _other_bytes(self.path, self._header)
        with storage_errors(self._part):
            durable.sync_file(self._fd)
        page_cache.drop(self._fd, 0, self.length)
        if find_damage(self._part, self._written, self.length, lambda _n: None) is not None:
            raise StorageError(
                "the disk does not give back what was written to it",
                where=str(self._part),
                allowed="a sound disk",
                next_step="check the disk, then type the same command again; nothing was replaced",
            )

    def close(self) -> None:
        """Close the descriptors; can be called again."""
        for fd in (self._fd, self._readable):
            if fd >= 0:
                os.close(fd)
        self._fd = self._readable = -1

    @property
    def _written(self) -> list[Span]:
        return [*([self._header] if self._header else []), *self._spans]

    @property
    def _is_open(self) -> bool:
        return self._done < len(self._spans) and self._spans[self._done].segment < self._until

    def _close_span(self, span: Span) -> None:
        if self._hash.hexdigest() != span.digest:
            raise _other_bytes(self.path, span)
        self._hash = xxhash.xxh3_128()
        self._done += 1
        if span not in self._damaged:
            return
        if self.mended and self.mended[-1][1] == span.begin:
            self.mended[-1] = (self.mended[-1][0], span.end)
        else:
            self.mended.append((span.begin, span.end))

    def _copy(self, before: int) -> None:
        """Copy the bytes of the segments before that one."""
        n = self._done
        while n < len(self._spans) and self._spans[n].segment < before:
            n += 1
        end = self._spans[n - 1].end if n else self.length
        if end > self.length:
            self._copy_bytes(self.length, end)
        self.length, self._done = end, n

    def _copy_bytes(self, begin: int, end: int) -> None:
        with storage_errors(self.path):
            source = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _copy_range(source, self._fd, begin, end)
            finally:
                os.close(source)


class Unneeded:
    """Forgets what is appended: the file is sound. Implements `protocols.OutputFile`."""

    def __init__(self, path: Path, length: int) -> None:
        """length: before the gap."""
        self.length = length
        self._path = path

    def append(self, data: Buffer) -> None:
        """It is there already."""
        self.length += memoryview(data).nbytes

    def read(self, begin: int, n_bytes: int) -> bytes:
        """What was appended before is in the sound file."""
        with storage_errors(self._path):
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                return os.pread(fd, max(0, min(n_bytes, self.length - begin)), begin)
            finally:
                os.close(fd)


def find_damage(path: Path, spans: Sequence[Span], size_bytes: int, on_bytes: Callable[[int], None]) -> set[Span] | None:
    """Those whose bytes are not in the file as they were written; None when the file is wholly sound.

    What the disk refuses to give is damaged too; a file that is not there, or is no file, is damaged everywhere.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return set(spans)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return set(spans)
        once = page_cache.ReadOnce(fd, status.st_size)
        damaged = {span for span in spans if not _is_sound(fd, span, once, on_bytes)}
        once.finish()
        return damaged if damaged or status.st_size != size_bytes else None
    finally:
        os.close(fd)


def _is_sound(fd: int, span: Span, once: page_cache.ReadOnce, on_bytes: Callable[[int], None]) -> bool:
    state, at = xxhash.xxh3_128(), span.begin
    while at < span.end:
        once.before(at)
        try:
            block = os.pread(fd, min(_BLOCK_BYTES, span.end - at), at)
        except OSError:
            return False
        if not block:
            return False
        state.update(block)
        at += len(block)
        on_bytes(len(block))
    return state.hexdigest() == span.digest


def _copy_range(source: int, target: int, begin: int, end: int) -> None:
    """Append bytes begin to end of one file to another. Raises OSError."""
    copy = getattr(os, "copy_file_range", None)
    while begin < end:
        n = 0
        try:
            n = copy(source, target, end - begin, begin) if copy else 0
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            copy = None
        if not n:
            block = os.pread(source, min(_BLOCK_BYTES, end - begin), begin)
            if not block:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            durable.write_all(target, block)
            n = len(block)
        begin += n


def _other_bytes(path: Path, span: Span) -> ChangedError:
    return other_corpus(f"the bytes of segment {span.segment + 1:,}, bytes {span.begin:,} to {span.end:,}", path)


def other_corpus(what: str, path: Path) -> ChangedError:
    """The error for a corpus from which something else comes than before."""
    return ChangedError(
        f"the corpus no longer gives {what}",
        where=str(path),
        allowed="the corpus from which the output was made; nothing was replaced",
        next_step="give the original corpus with --source INPUT..., or make the output again: tokmill tokenize ... --fresh",
    )
