"""A complete output directory with damaged files: where its gaps are, and the files made anew around them.

A file is never mended in place. It is made as `.tokmill/NAME.part` from front to back: sound ranges are copied from the old file
(by the kernel, which on some file systems only shares them), the others are appended by whoever tokenizes their part of the corpus
again. Each must have the digest that the manifest holds. Once all parts are on the disk and were read back from it, they are
renamed, one by one; the manifest stays as it is. A crash leaves every file as damaged as it was, or whole.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import xxhash

from tokmill import durable, pagecache
from tokmill.durable import storage_errors
from tokmill.errors import ChangedError, DamageError, StorageError, UsageError
from tokmill.manifest import MANIFEST_NAME, Manifest, load_manifest
from tokmill.state import discard_parts, hold, is_begun, let_go, part_of, remove_state
from tokmill.types import Cursor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Buffer

    from tokmill.durable import DirectoryLock

_BLOCK_BYTES = 4 << 20
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Span:
    """What one segment added to one file: bytes begin to end."""

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


class NewFile:
    """A damaged file while it is made anew, from front to back. Implements `protocols.OutputFile`. Close it."""

    def __init__(self, path: Path, part: Path, spans: list[Span], damaged: set[int]) -> None:
        """damaged: segments whose bytes are not in the old file."""
        self.path = path
        self.length = 0
        self.mended: list[tuple[int, int]] = []
        """Damaged ranges that were made again; neighbours are one."""
        self._part = part
        self._spans = spans
        self._damaged = damaged
        self._done = 0
        self._until = 0
        self._hash = xxhash.xxh3_128()
        with storage_errors(part):
            self._fd = durable.create(part)

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

    def close_gap(self) -> None:
        """The gap's part of the corpus was read. Raises ChangedError when there was too little of it."""
        if self._is_open:
            raise _other_bytes(self.path, self._spans[self._done])

    def finish(self) -> None:
        """Copy the rest, make all of it durable, and read it back from the disk. Raises StorageError."""
        if self._spans:
            self._copy(self._spans[-1].segment + 1)
        with storage_errors(self._part):
            durable.sync_file(self._fd)
        pagecache.drop(self._fd, 0, self.length)
        if find_damage(self._part, self._spans, self.length, lambda _n: None) is not None:
            raise StorageError(
                "the disk does not give back what was written to it",
                where=str(self._part),
                allowed="a sound disk",
                next_step="check the disk, then type the same command again; nothing was replaced",
            )

    def close(self) -> None:
        """Close the descriptor; can be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def _is_open(self) -> bool:
        return self._done < len(self._spans) and self._spans[self._done].segment < self._until

    def _close_span(self, span: Span) -> None:
        if self._hash.hexdigest() != span.digest:
            raise _other_bytes(self.path, span)
        self._hash = xxhash.xxh3_128()
        self._done += 1
        if span.segment not in self._damaged:
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
        end = self._spans[n - 1].end if n else 0
        if end > self.length:
            with storage_errors(self.path):
                source = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    _copy_range(source, self._fd, self.length, end)
                finally:
                    os.close(source)
        self.length, self._done = end, n


class Repair:
    """A hold on a complete output directory. Implements `protocols.OutputFiles` for the files of the open gap. Close it."""

    def __init__(self, directory: Path, lock: DirectoryLock, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self.gaps: list[Gap] = []
        """In the order of the corpus; found by `look`."""
        self.files: dict[str, NewFile] = {}
        """Damaged files by name, likewise."""
        self._lock = lock
        self._spans = {name: _spans(manifest, name) for name in manifest.files}

    def look(self, on_bytes: Callable[[int], None]) -> None:
        """Read every file and find the gaps. on_bytes: told how many bytes were read since the last time."""
        damaged: set[int] = set()
        for name, entry in self.manifest.files.items():
            found = find_damage(self.directory / name, self._spans[name], entry.size_bytes, on_bytes)
            if found is not None:
                self.files[name] = NewFile(self.directory / name, part_of(self.directory, name), self._spans[name], found)
                damaged |= found
        self.gaps = _gaps(self.manifest, sorted(damaged))

    def open_gap(self, gap: Gap) -> None:
        """From now on what is appended to the files belongs to this gap."""
        for file in self.files.values():
            file.open_gap(gap)

    def file(self, name: str) -> NewFile | Unneeded:
        """The file made anew; for one that is sound, something that forgets."""
        return self.files.get(name) or Unneeded()

    def close_gap(self) -> None:
        """All of the gap was appended. Raises ChangedError when that is not so."""
        for file in self.files.values():
            file.close_gap()

    def publish(self) -> None:
        """Put the files made anew in the place of the damaged ones. Raises StorageError, DiskFullError."""
        for file in self.files.values():
            file.finish()
        with storage_errors(self.directory):
            for name, file in self.files.items():
                file.close()
                durable.replace(part_of(self.directory, name), self.directory / name)
            durable.sync_directory(self.directory)

    def close(self) -> None:
        """Let go of the directory; what was not published is discarded."""
        for file in self.files.values():
            file.close()
        remove_state(self.directory, self._lock)


class Unneeded:
    """Forgets what is appended: the file is sound. Implements `protocols.OutputFile`."""

    length = 0

    def append(self, data: Buffer) -> None:
        """Nothing."""


def open_repair(directory: Path) -> Repair:
    """Take hold of a complete output directory.

    Raises LockedError, StorageError; UsageError for a directory without manifest or with a run that is to be resumed; DamageError
    for a manifest that cannot be trusted.
    """
    with storage_errors(directory):
        load_manifest(directory)
    lock = hold(directory)
    try:
        if is_begun(directory):
            raise UsageError(
                "a run that is to be resumed has begun to replace this output",
                where=str(directory),
                allowed="a complete output that nobody is making again",
                next_step="run that tokmill tokenize command again",
            )
        with storage_errors(directory):
            manifest = load_manifest(directory)
            discard_parts(directory)
        return Repair(directory, lock, manifest)
    except BaseException:
        let_go(directory, lock)
        raise


def find_damage(path: Path, spans: list[Span], size_bytes: int, on_bytes: Callable[[int], None]) -> set[int] | None:
    """Segments whose bytes are not in the file as they were written; None when the file is wholly sound.

    What the disk refuses to give is damaged too; a file that is not there, or is no file, is damaged in every segment.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return {span.segment for span in spans}
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return {span.segment for span in spans}
        once = pagecache.ReadOnce(fd, status.st_size)
        damaged = {span.segment for span in spans if not _is_sound(fd, span, once, on_bytes)}
        once.finish()
        return damaged if damaged or status.st_size != size_bytes else None
    finally:
        os.close(fd)


def _is_sound(fd: int, span: Span, once: pagecache.ReadOnce, on_bytes: Callable[[int], None]) -> bool:
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


def _spans(manifest: Manifest, name: str) -> list[Span]:
    """The spans of a file, in order. Raises DamageError when they do not add up to it."""
    ends = [(number, segment.files[name]) for number, segment in enumerate(manifest.segments) if name in segment.files]
    edges = [0, *(span.end for _, span in ends)]
    if any(end < begin for begin, end in pairwise(edges)) or edges[-1] != manifest.files[name].size_bytes:
        raise DamageError(
            f"the manifest cannot be repaired: its segments do not add up to {name}",
            where=MANIFEST_NAME,
            next_step="make the output again: tokmill tokenize ... --fresh",
        )
    return [Span(number, begin, span.end, span.digest) for begin, (number, span) in zip(edges, ends, strict=False)]


def _gaps(manifest: Manifest, damaged: list[int]) -> list[Gap]:
    """The damaged segments (from 0, ascending), neighbours together."""
    edges = [i for i, (before, here) in enumerate(pairwise(damaged), 1) if here != before + 1]
    bounds = [0, *edges, len(damaged)] if damaged else []
    return [_gap(manifest, damaged[begin], damaged[end - 1]) for begin, end in pairwise(bounds)]


def _gap(manifest: Manifest, first: int, last: int) -> Gap:
    before, behind = manifest.segments[first - 1] if first else None, manifest.segments[last]
    return Gap(
        first=first,
        last=last,
        begin=before.after if before else Cursor(),
        end=behind.after,
        bytes_in=behind.counts.bytes_in - (before.counts.bytes_in if before else 0),
        writer=before.writer if before else {},
    )


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
    return ChangedError(
        f"the corpus no longer gives the bytes of segment {span.segment + 1:,}, bytes {span.begin:,} to {span.end:,}",
        where=str(path),
        allowed="the corpus from which the output was made; nothing was replaced",
        next_step="give the original corpus with --source INPUT..., or make the output again: tokmill tokenize ... --fresh",
    )
