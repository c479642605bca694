"""A complete output directory with damaged files: which ranges are damaged, and the files that are rebuilt around them.

A file is never changed in place. It is written as `.tokmill/NAME.part` from front to back: sound ranges are copied from the old
file (by the kernel, which on some file systems only shares them), the others are appended by whoever tokenizes their part of the
corpus again. Each must have the digest that the manifest holds. Once all parts are on the disk and were read back from it, they are
renamed, one by one; the manifest stays as it is. After a crash every file is as damaged as it was, or whole.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import xxhash

from tokmill.core.errors import ChangedError, DamageError, DiskFullError, StorageError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, Manifest, load_manifest
from tokmill.core.records import Counts, Cursor
from tokmill.core.skipping import list_state, without_list
from tokmill.core.spans import HEADER, Span, SpanChecker, add_up, spans_of
from tokmill.core.system import durable, page_cache
from tokmill.core.system.durable import file_system_of, storage_errors
from tokmill.core.system.tree import tree_of
from tokmill.output import (
    acquire_lock,
    discard_unfinished,
    growing_path,
    is_begun,
    refuse_linked_sides,
    release_lock,
    remove_state,
    sync_directories,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Buffer

    from tokmill.core.records import FileEntry
    from tokmill.core.system.durable import DirectoryLock
    from tokmill.core.system.tree import Directory, TreePath

_BLOCK_BYTES = 4 << 20


class Repair:
    """A locked output directory and its files in the open damaged range. Implements `protocols.OutputFiles`. Close it."""

    def __init__(self, directory: TreePath, lock: DirectoryLock, manifest: Manifest) -> None:
        """Raise DamageError if the manifest's spans are not the whole of every file."""
        self.directory = directory
        self.manifest = manifest
        self.ranges: list[DamagedRange] = []
        """In the order of the corpus; found by `find_damage`."""
        self.files: dict[str, RebuiltFile] = {}
        """Damaged files by name; found by `find_damage`."""
        self._lock = lock
        self._spans = _checked_spans(manifest)
        self._completed_in = _completions(manifest, self._spans)
        self._sound: dict[str, SoundFile] = {}
        self._completed: dict[str, FileEntry] = {}
        self._range: DamagedRange | None = None

    def find_damage(self, on_bytes: Callable[[int], None]) -> None:
        """Find the damaged ranges. Raise DiskFullError if the rebuilt files do not fit beside the damaged ones.

        on_bytes: told how many bytes were read since the last call.
        """
        damaged: set[int] = set()
        for name, entry in self.manifest.files.items():
            path, spans = self.directory / name, self._spans[name]
            found = find_damage(path, spans, entry.size_bytes, on_bytes)
            if found is not None:
                self.files[name] = RebuiltFile(path, growing_path(self.directory, name), spans, found)
                damaged |= {self._completed_in[name] if span.segment == HEADER else span.segment for span in found}
        self.ranges = _ranges(self.manifest, sorted(damaged))
        self._check_disk()

    def _check_disk(self) -> None:
        needed = sum(self.manifest.files[name].size_bytes for name in self.files)
        status = file_system_of(self.directory)
        free = status.f_bavail * status.f_frsize if status else needed
        if needed > free:
            raise DiskFullError(
                f"the repair does not fit on the disk: it needs {needed:,} bytes, {free:,} are free",
                where=str(self.directory),
                allowed="room for a second copy of each damaged file until it replaces the first",
                next_step="free disk space, then run the same command again; nothing was replaced",
            )

    def open_range(self, damaged: DamagedRange) -> None:
        """Begin a damaged range: what is appended to the files from now on belongs to it."""
        self._range = damaged
        self._sound = {}
        self._completed = {name: entry for name, entry in self.manifest.files.items() if self._completed_in[name] < damaged.first}
        for file in self.files.values():
            file.open_range(damaged)

    def file(self, name: str, header_bytes: int = 0) -> RebuiltFile | SoundFile:
        """Return the file that is rebuilt; for a sound one, something that ignores what is appended."""
        if name in self.files:
            return self.files[name]
        if name not in self._sound:
            first = self._range.first if self._range else 0
            ends = [span.end for span in self._spans.get(name, ()) if HEADER < span.segment < first]
            self._sound[name] = SoundFile(self.directory / name, ends[-1] if ends else header_bytes)
        return self._sound[name]

    def complete(self, name: str, *, side: str | None = None, tokens: int = 0, documents: int = 0, header: bytes = b"") -> None:
        """Complete a file. Raise ChangedError if the manifest does not list it, or with other numbers."""
        entry = self.manifest.files.get(name)
        if entry is None or (entry.side, entry.tokens, entry.documents) != (side, tokens, documents):
            raise other_corpus(f"the documents of {name}", self.directory)
        if name in self.files:
            self.files[name].complete(header)
        self._completed[name] = entry

    def completed(self) -> Mapping[str, FileEntry]:
        """Return the files that are complete where the open range is, in the order in which they became so."""
        return self._completed

    def close_range(self) -> None:
        """End the open range. Raise ChangedError if something of it is missing."""
        for file in self.files.values():
            file.close_range()

    def publish(self) -> None:
        """Replace the damaged files by the rebuilt ones. Raise StorageError or DiskFullError."""
        for file in self.files.values():
            file.finish()
        self._lock.check()
        with storage_errors(self.directory):
            for sub in {(self.directory / name).parent for name in self.files}:
                durable.make_directory(sub)
            for name, file in self.files.items():
                file.close()
                durable.replace(growing_path(self.directory, name), self.directory / name)
            sync_directories(self.directory, self.files)

    def close(self) -> None:
        """Release the directory and discard what was not published."""
        for file in self.files.values():
            file.close()
        remove_state(self.directory, self._lock)


def open_repair(directory: Directory) -> Repair:
    """Lock a complete output directory. Raise LockedError, DamageError or StorageError, and UsageError if a run replaces it."""
    with storage_errors(directory):
        load_manifest(directory)
    lock = acquire_lock(directory)
    try:
        refuse_linked_sides(directory)
        if is_begun(directory):
            raise UsageError(
                "an interrupted run has begun to replace or extend this output",
                where=str(directory),
                allowed="a complete output that no run is replacing or appending to",
                next_step="run that tokmill command again, with --append if it had that (and --fresh, to discard an append)",
            )
        with storage_errors(directory):
            manifest = load_manifest(directory)
            discard_unfinished(directory)
        return Repair(tree_of(directory), lock, manifest)
    except BaseException:
        release_lock(directory, lock)
        raise


def _checked_spans(manifest: Manifest) -> dict[str, list[Span]]:
    """Return the spans of each file, its header first. Raise DamageError if they do not add up to it."""
    found = spans_of(manifest)
    for name, entry in manifest.files.items():
        if not add_up(found[name], entry.size_bytes):
            raise DamageError(
                f"the manifest cannot be used for a repair: its segments do not add up to {name}",
                where=MANIFEST_NAME,
                allowed="segments that are, end to end, the whole of every file",
                next_step="make the output again: tokmill tokenize ... --fresh",
            )
    return found


def _completions(manifest: Manifest, spans: dict[str, list[Span]]) -> dict[str, int]:
    """Return the segment (from 0) in which each file was complete.

    A file of tokens is complete when the next token of its side comes, which goes to another file; the last one, and what is empty,
    when the corpus ends. The others are complete with their last bytes.
    """
    last = len(manifest.segments) - 1
    added = {name: [span.segment for span in each if span.segment != HEADER] for name, each in spans.items()}
    found = {name: segments[-1] if segments else last for name, segments in added.items()}
    for side in ("train", "val"):
        names = [name for name, entry in manifest.files.items() if entry.side == side]
        sums = [getattr(segment.counts, f"tokens_{side}") for segment in manifest.segments]
        ends = accumulate(manifest.files[name].tokens for name in names)
        found |= {name: min(bisect_right(sums, end), last) for name, end in zip(names, ends, strict=True)}
    if manifest.parts:
        # A part's files are complete when the part is.
        found |= {name: min(at, _part_of(manifest, added[name][0])[2]) for name, at in found.items() if added[name]}
    return found


def _part_of(manifest: Manifest, segment: int) -> tuple[int | None, int, int]:
    """Return the part of a segment, and the part's first and last segment; of an output of one run: None, and those of all."""
    if not manifest.parts:
        return None, 0, len(manifest.segments) - 1
    part = bisect_right(manifest.parts, segment)
    return part, manifest.parts[part - 1] if part else 0, manifest.parts[part] - 1


def _ranges(manifest: Manifest, damaged: list[int]) -> list[DamagedRange]:
    """Join the damaged segments (from 0, ascending) that follow each other in the same part."""
    edges = [
        i
        for i, (before, here) in enumerate(pairwise(damaged), 1)
        if here != before + 1 or _part_of(manifest, before) != _part_of(manifest, here)
    ]
    bounds = [0, *edges, len(damaged)] if damaged else []
    return [_range(manifest, damaged[begin], damaged[end - 1]) for begin, end in pairwise(bounds)]


def _range(manifest: Manifest, first: int, last: int) -> DamagedRange:
    before, after = manifest.segments[first - 1] if first else None, manifest.segments[last]
    old, new = before.counts if before else Counts(), after.counts
    part, first_of_part, last_of_part = _part_of(manifest, first)
    sums = {"train_tokens": old.tokens_train, "val_tokens": old.tokens_val}
    return DamagedRange(
        first=first,
        last=last,
        begin=before.after if before else Cursor(),
        end=after.after,
        bytes_in=new.bytes_in - old.bytes_in,
        before=old,
        writer=sums | without_list(before.writer) if before and first > first_of_part else {},
        listed=list_state(before.writer) if before else {},
        tokens=(new.tokens_train - old.tokens_train, new.tokens_val - old.tokens_val),
        documents=(new.documents_train - old.documents_train, new.documents_val - old.documents_val),
        is_last=last == last_of_part,
        part=part,
    )


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
    before: Counts
    """Counts of the corpus before the range."""
    writer: dict[str, int]
    """State of the writer before the range."""
    listed: dict[str, int]
    """State of the list of skipped records before the range."""
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

    def __init__(self, path: TreePath, part: TreePath, spans: Sequence[Span], damaged: set[Span]) -> None:
        """Begin the copy of `path` at `part`. spans: of the whole file, header first; damaged: those that the old file lacks."""
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
        return _read_at(self._part, begin, n_bytes)

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
        """Close the descriptor; can be called again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

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
        return bisect_left(self._spans, segment, self._done, key=lambda span: span.segment)

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
            source = self.path.open()
            try:
                durable.copy_range(source, begin, self._fd, begin, end - begin)
            finally:
                os.close(source)


class SoundFile:
    """A file that needs no rebuilding: it ignores what is appended. Implements `protocols.OutputFile`."""

    def __init__(self, path: TreePath, length: int) -> None:
        """length: before the open range."""
        self.length = length
        self._path = path

    def append(self, data: Buffer) -> None:
        """Count the bytes, which the file has already."""
        self.length += memoryview(data).nbytes

    def read(self, begin: int, n_bytes: int) -> bytes:
        """Return bytes that were appended before, from the file."""
        return _read_at(self._path, begin, max(0, min(n_bytes, self.length - begin)))


def _read_at(path: TreePath, begin: int, n_bytes: int) -> bytes:
    with storage_errors(path):
        fd = path.open()
        try:
            return os.pread(fd, n_bytes, begin)
        finally:
            os.close(fd)


def find_damage(path: TreePath, spans: Sequence[Span], size_bytes: int, on_bytes: Callable[[int], None]) -> set[Span] | None:
    """Return the spans whose bytes the file does not have as they were written; None if all of the file is sound.

    Bytes that the disk cannot read are damaged; a file that is missing, or is no regular file, is damaged everywhere.
    size_bytes: the length it should have. on_bytes: told how many bytes were read since the last call.
    """
    try:
        fd = path.open()
    except OSError:
        return set(spans)
    try:
        size = os.fstat(fd).st_size
        once = page_cache.ReadOnce(fd, size)
        damaged = {span for span in spans if not _is_sound(fd, span, once, on_bytes)}
        once.finish()
        return damaged if damaged or size != size_bytes else None
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


def _other_bytes(path: TreePath, span: Span) -> ChangedError:
    what = "the header" if span.segment == HEADER else f"the bytes of segment {span.segment + 1:,}"
    return other_corpus(f"{what}, bytes {span.begin:,} to {span.end:,}", path)


def other_corpus(what: str, path: TreePath) -> ChangedError:
    """Return the error for a corpus from which something else comes than before."""
    return ChangedError(
        f"the corpus no longer gives {what}",
        where=str(path),
        allowed="the corpus from which the output was made; nothing was replaced",
        next_step="give the original corpus with --source INPUT..., or make the output again: tokmill tokenize ... --fresh",
    )
