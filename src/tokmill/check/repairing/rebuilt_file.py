"""A damaged file while it is rebuilt: sound ranges are copied, the others are appended and must have their digests."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from tokmill.core.errors import ChangedError, StorageError
from tokmill.core.spans import HEADER, Span, SpanChecker
from tokmill.core.system import durable, page_cache
from tokmill.core.system.durable import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

    from tokmill.core.records import Cursor

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class DamagedRange:
    """Consecutive segments in each of which a file is damaged, and the part of the corpus that they were made from."""

    first: int
    last: int
    """From 0, inclusive."""
    begin: Cursor
    end: Cursor
    bytes_in: int
    """Decompressed bytes of the corpus between the two cursors."""
    writer: dict[str, int]
    """State of the writer before the range."""
    tokens: tuple[int, int]
    """Tokens that the range added to train and to val."""
    documents: tuple[int, int]
    """Documents of train and of val that end in the range."""
    is_last: bool
    """Whether the corpus, or its part, ends with the range."""
    part: int | None
    """Number of the part, in an output that was made in parts."""


class RebuiltFile:
    """The new copy of a damaged file, written from front to back. Implements `protocols.OutputFile`. Close it."""

    def __init__(self, path: Path, part: Path, spans: Sequence[Span], damaged: set[Span]) -> None:
        """Begin the copy.

        Args:
            path: The damaged file.
            part: Where the copy is written.
            spans: Of the whole file, its header first.
            damaged: Spans whose bytes the old file does not have.
        """
        self.path = path
        self.rebuilt: list[tuple[int, int]] = []
        """Damaged byte ranges that were made again; neighbours are one."""
        self._part = part
        self._header = spans[0] if spans and spans[0].segment == HEADER else None
        self._spans = spans[1:] if self._header else spans
        self._damaged = damaged
        self.length = self._header.end if self._header else 0
        self._done = 0
        self._open: Sequence[Span] = ()
        self._checker = SpanChecker(())
        self._readable = -1
        with storage_errors(part):
            self._fd = durable.create(part)
        if self._header and self._header not in damaged:
            self._copy_bytes(0, self._header.end)
        with storage_errors(part):
            os.lseek(self._fd, self.length, os.SEEK_SET)

    def open_range(self, damaged: DamagedRange) -> None:
        """Copy what lies before a damaged range; what is appended from now on belongs to the range."""
        self._copy(damaged.first)
        n = self._first_from(damaged.last + 1)
        self._open, self._done = self._spans[self._done : n], n
        self._checker = SpanChecker(self._open)

    def append(self, data: Buffer) -> None:
        """Append the bytes that belong to the range and ignore those after it. Raise ChangedError if they differ from before."""
        end = self._open[-1].end if self._open else self.length
        view = memoryview(data).cast("B")[: end - self.length]
        if not view:
            return
        with storage_errors(self._part):
            durable.write_all(self._fd, view)
        self.length += len(view)
        for span in self._checker.update(view):
            raise _other_bytes(self.path, span)

    def read(self, begin: int, n_bytes: int) -> bytes:
        """Return bytes that were written before, fewer only at the end."""
        with storage_errors(self._part):
            if self._readable < 0:
                self._readable = os.open(self._part, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            return os.pread(self._readable, n_bytes, begin)

    def complete(self, header: bytes) -> None:
        """Fill in the header if it is damaged. Raise ChangedError if it differs from before."""
        if self._header is None or self._header not in self._damaged:
            return
        if xxhash.xxh3_128_hexdigest(header) != self._header.digest:
            raise _other_bytes(self.path, self._header)
        with storage_errors(self._part):
            durable.write_at(self._part, header, 0)
        self._damaged = self._damaged - {self._header}
        self._note_rebuilt(self._header)

    def close_range(self) -> None:
        """End the range. Raise ChangedError if the corpus gave too little."""
        for span in self._open:
            if span.end > self.length:
                raise _other_bytes(self.path, span)
            if span in self._damaged:
                self._note_rebuilt(span)
        self._open = ()

    def finish(self) -> None:
        """Copy the rest, make all of it durable, and read it back. Raise StorageError if it is not what was written."""
        if self._spans:
            self._copy(self._spans[-1].segment + 1)
        if self._header and self._header in self._damaged:
            raise _other_bytes(self.path, self._header)
        with storage_errors(self._part):
            durable.sync_file(self._fd)
        page_cache.drop(self._fd, 0, self.length)
        spans = [self._header, *self._spans] if self._header else self._spans
        if find_damage(self._part, spans, self.length, lambda _n: None) is not None:
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

    def _note_rebuilt(self, span: Span) -> None:
        """Add a span to `rebuilt`, joined with its neighbours."""
        joined: list[tuple[int, int]] = []
        for begin, end in sorted([*self.rebuilt, (span.begin, span.end)]):
            if joined and joined[-1][1] == begin:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((begin, end))
        self.rebuilt = joined

    def _first_from(self, segment: int) -> int:
        """Return the index of the first span that is not done and of that segment or a later one."""
        n = self._done
        while n < len(self._spans) and self._spans[n].segment < segment:
            n += 1
        return n

    def _copy(self, before: int) -> None:
        """Copy the bytes of the segments before that one."""
        n = self._first_from(before)
        if n > self._done:
            self._copy_bytes(self.length, self._spans[n - 1].end)
            self.length, self._done = self._spans[n - 1].end, n
            with storage_errors(self._part):
                os.lseek(self._fd, self.length, os.SEEK_SET)

    def _copy_bytes(self, begin: int, end: int) -> None:
        with storage_errors(self.path):
            source = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                durable.copy_range(source, begin, self._fd, begin, end - begin)
            finally:
                os.close(source)


class SoundFile:
    """A file that needs no rebuilding: it ignores what is appended. Implements `protocols.OutputFile`."""

    def __init__(self, path: Path, length: int) -> None:
        """length: before the open range."""
        self.length = length
        self._path = path

    def append(self, data: Buffer) -> None:
        """Count the bytes, which the file has already."""
        self.length += memoryview(data).nbytes

    def read(self, begin: int, n_bytes: int) -> bytes:
        """Return bytes that were appended before, from the file."""
        with storage_errors(self._path):
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                return os.pread(fd, max(0, min(n_bytes, self.length - begin)), begin)
            finally:
                os.close(fd)


def find_damage(path: Path, spans: Sequence[Span], size_bytes: int, on_bytes: Callable[[int], None]) -> set[Span] | None:
    """Return the spans whose bytes the file does not have as they were written; None if all of the file is sound.

    Bytes that the disk cannot read are damaged; a file that is missing, or is no regular file, is damaged everywhere.

    Args:
        path: The file.
        spans: Of all of it.
        size_bytes: The length it should have.
        on_bytes: Told how many bytes were read since the last call.
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
    checker = SpanChecker([span])
    while checker.position < span.end:
        once.before(checker.position)
        try:
            block = os.pread(fd, min(_BLOCK_BYTES, span.end - checker.position), checker.position)
        except OSError:
            return False
        if not block or checker.update(block):
            return False
        on_bytes(len(block))
    return True


def _other_bytes(path: Path, span: Span) -> ChangedError:
    what = "the header" if span.segment == HEADER else f"the bytes of segment {span.segment + 1:,}"
    return other_corpus(f"{what}, bytes {span.begin:,} to {span.end:,}", path)


def other_corpus(what: str, path: Path) -> ChangedError:
    """Return the error for a corpus from which something else comes than before."""
    return ChangedError(
        f"the corpus no longer gives {what}",
        where=str(path),
        allowed="the corpus from which the output was made; nothing was replaced",
        next_step="give the original corpus with --source INPUT..., or make the output again: tokmill tokenize ... --fresh",
    )
