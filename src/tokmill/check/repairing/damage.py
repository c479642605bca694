"""A complete output directory with damaged files: which ranges are damaged, and the files that are rebuilt around them.

A file is never changed in place. It is written as `.tokmill/NAME.part` from front to back: sound ranges are copied from the old
file (by the kernel, which on some file systems only shares them), the others are appended by whoever tokenizes their part of the
corpus again. Each must have the digest that the manifest holds. Once all parts are on the disk and were read back from it, they are
renamed, one by one; the manifest stays as it is. After a crash every file is as damaged as it was, or whole.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from tokmill.check.repairing.rebuilt_file import DamagedRange, RebuiltFile, SoundFile, find_damage, other_corpus
from tokmill.core.errors import DamageError, DiskFullError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, Manifest, load_manifest
from tokmill.core.records import Counts, Cursor
from tokmill.core.spans import HEADER, Span, add_up, spans_of
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.output import acquire_lock, discard_unfinished, growing_path, is_begun, release_lock, remove_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tokmill.core.records import FileEntry
    from tokmill.core.system.durable import DirectoryLock


class Repair:
    """A locked output directory and its files in the open damaged range. Implements `protocols.OutputFiles`. Close it."""

    def __init__(self, directory: Path, lock: DirectoryLock, manifest: Manifest) -> None:
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
        """Read every file and find the damaged ranges.

        Args:
            on_bytes: Told how many bytes were read since the last call.

        Raises:
            DiskFullError: If the rebuilt files do not fit beside the damaged ones.
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
        status = os.statvfs(self.directory)
        free = status.f_bavail * status.f_frsize
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
        subs = {os.path.dirname(name) for name in self.files}
        with storage_errors(self.directory):
            for sub in sorted(subs):
                durable.make_directory(self.directory / sub)
            for name, file in self.files.items():
                file.close()
                durable.replace(growing_path(self.directory, name), self.directory / name)
            for sub in sorted(subs):
                durable.sync_directory(self.directory / sub)

    def close(self) -> None:
        """Release the directory and discard what was not published."""
        for file in self.files.values():
            file.close()
        remove_state(self.directory, self._lock)


def open_repair(directory: Path) -> Repair:
    """Lock a complete output directory.

    Raises:
        LockedError: If another process works on it.
        UsageError: If it has no manifest, or a run that is to be resumed has begun to replace it.
        DamageError: If the manifest cannot be trusted.
        StorageError: If the disk fails.
    """
    with storage_errors(directory):
        load_manifest(directory)
    lock = acquire_lock(directory)
    try:
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
        return Repair(directory, lock, manifest)
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
        writer=sums | before.writer if before and first > first_of_part else {},
        tokens=(new.tokens_train - old.tokens_train, new.tokens_val - old.tokens_val),
        documents=(new.documents_train - old.documents_train, new.documents_val - old.documents_val),
        is_last=last == last_of_part,
        part=part,
    )
