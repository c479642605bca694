"""A complete output directory with damaged files: where its gaps are, and the files made anew around them.

A file is never mended in place. It is made as `.tokmill/NAME.part` from front to back: sound ranges are copied from the old file
(by the kernel, which on some file systems only shares them), the others are appended by whoever tokenizes their part of the corpus
again. Each must have the digest that the manifest holds. Once all parts are on the disk and were read back from it, they are
renamed, one by one; the manifest stays as it is. A crash leaves every file as damaged as it was, or whole.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from tokmill.check.repairing.rebuilt_file import Gap, NewFile, Span, Unneeded, find_damage, other_corpus
from tokmill.core.errors import DamageError, DiskFullError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, Manifest, load_manifest
from tokmill.core.records import Counts, Cursor, FileHeader
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.output import acquire_lock, discard_unfinished, growing_path, is_begun, release_lock, remove_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tokmill.core.records import FileEntry
    from tokmill.core.system.durable import DirectoryLock


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
        self._spans = _all_spans(manifest)
        self._completed_in = _completions(manifest, self._spans)
        self._unneeded: dict[str, Unneeded] = {}
        self._completed: dict[str, FileEntry] = {}
        self._gap: Gap | None = None

    def look(self, on_bytes: Callable[[int], None]) -> None:
        """Read every file and find the gaps. on_bytes: told how many bytes were read since the last time."""
        damaged: set[int] = set()
        for name, entry in self.manifest.files.items():
            path, spans, header = self.directory / name, self._spans[name], self._header(name)
            found = find_damage(path, [header, *spans] if header else spans, entry.size_bytes, on_bytes)
            if found is not None:
                self.files[name] = NewFile(path, growing_path(self.directory, name), spans, found, header)
                damaged |= {span.segment for span in found}
        self.gaps = _gaps(self.manifest, sorted(damaged))
        self._check_disk()

    def _check_disk(self) -> None:
        """Raises DiskFullError when the files made anew will not fit beside the damaged ones."""
        needed = sum(self.manifest.files[name].size_bytes for name in self.files)
        status = os.statvfs(self.directory)
        free = status.f_bavail * status.f_frsize
        if needed > free:
            raise DiskFullError(
                f"the repair will not fit on the disk: {needed:,} bytes are needed, {free:,} are free",
                where=str(self.directory),
                allowed="room for a second copy of each damaged file until it takes the place of the first",
                next_step="free disk space, then run the same command again; nothing was replaced",
            )

    def open_gap(self, gap: Gap) -> None:
        """From now on what is appended to the files belongs to this gap."""
        self._gap = gap
        self._unneeded = {}
        self._completed = {name: entry for name, entry in self.manifest.files.items() if self._completed_in[name] < gap.first}
        for file in self.files.values():
            file.open_gap(gap)

    def file(self, name: str, header_bytes: int = 0) -> NewFile | Unneeded:
        """The file made anew; for one that is sound, something that forgets."""
        if name in self.files:
            return self.files[name]
        if name not in self._unneeded:
            first = self._gap.first if self._gap else 0
            ends = [span.end for span in self._spans.get(name, ()) if span.segment < first]
            self._unneeded[name] = Unneeded(self.directory / name, ends[-1] if ends else header_bytes)
        return self._unneeded[name]

    def complete(self, name: str, *, side: str | None = None, tokens: int = 0, documents: int = 0, header: bytes = b"") -> None:
        """All of the file was appended. Raises ChangedError for one that was not there before, or had other numbers."""
        entry = self.manifest.files.get(name)
        if entry is None or (entry.side, entry.tokens, entry.documents) != (side, tokens, documents):
            raise other_corpus(f"the documents of {name}", self.directory)
        if name in self.files:
            self.files[name].complete(header)
        self._completed[name] = entry

    def completed(self) -> Mapping[str, FileEntry]:
        """All files that are complete where the open gap is, in the order in which they became so."""
        return self._completed

    def close_gap(self) -> None:
        """All of the gap was appended. Raises ChangedError when that is not so."""
        for file in self.files.values():
            file.close_gap()

    def publish(self) -> None:
        """Put the files made anew in the place of the damaged ones. Raises StorageError, DiskFullError."""
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

    def _header(self, name: str) -> Span | None:
        header = self.manifest.files[name].header
        return Span(self._completed_in[name], 0, header.size_bytes, header.digest) if isinstance(header, FileHeader) else None

    def close(self) -> None:
        """Let go of the directory; what was not published is discarded."""
        for file in self.files.values():
            file.close()
        remove_state(self.directory, self._lock)


def open_repair(directory: Path) -> Repair:
    """Take hold of a complete output directory.

    Raises LockedError, StorageError; UsageError for a directory without manifest or with a run that is to be resumed; DamageError
    for a manifest that cannot be trusted.
    """
    with storage_errors(directory):
        load_manifest(directory)
    lock = acquire_lock(directory)
    try:
        if is_begun(directory):
            raise UsageError(
                "a run that is to be resumed has begun to replace or extend this output",
                where=str(directory),
                allowed="a complete output that nobody is making again or appending to",
                next_step="run that tokmill command again, with --append if it had that (and --fresh, to discard an append)",
            )
        with storage_errors(directory):
            manifest = load_manifest(directory)
            discard_unfinished(directory)
        return Repair(directory, lock, manifest)
    except BaseException:
        release_lock(directory, lock)
        raise


def _all_spans(manifest: Manifest) -> dict[str, list[Span]]:
    """The spans of each file, in order. Raises DamageError when they do not add up to it."""
    found: dict[str, list[Span]] = {name: [] for name in manifest.files}
    for number, segment in enumerate(manifest.segments):
        for name, span in segment.files.items():
            spans = found.get(name, [])
            begin = spans[-1].end if spans else manifest.files[name].header_bytes if name in found else 0
            spans.append(Span(number, begin, span.end, span.digest))
    for name, entry in manifest.files.items():
        spans = found[name]
        end = spans[-1].end if spans else entry.header_bytes
        if any(span.end < span.begin for span in spans) or end != entry.size_bytes:
            raise DamageError(
                f"the manifest cannot be repaired: its segments do not add up to {name}",
                where=MANIFEST_NAME,
                allowed="segments that are, end to end, the whole of every file",
                next_step="make the output again: tokmill tokenize ... --fresh",
            )
    return found


def _completions(manifest: Manifest, spans: dict[str, list[Span]]) -> dict[str, int]:
    """The segment (from 0) in which each file was complete.

    A file of tokens is when the side's next token comes, which is for another; the last one, and what is empty, when the corpus
    ends. The others have nothing appended later.
    """
    last = len(manifest.segments) - 1
    found = {name: each[-1].segment if each else last for name, each in spans.items()}
    for side in ("train", "val"):
        names = [name for name, entry in manifest.files.items() if entry.side == side]
        sums = [getattr(segment.counts, f"tokens_{side}") for segment in manifest.segments]
        ends = accumulate(manifest.files[name].tokens for name in names)
        found |= {name: min(bisect_right(sums, end), last) for name, end in zip(names, ends, strict=True)}
    if manifest.parts:
        # A part's files are complete when the part is.
        found |= {name: min(at, _part_of(manifest, spans[name][0].segment)[2]) for name, at in found.items() if spans[name]}
    return found


def _part_of(manifest: Manifest, segment: int) -> tuple[int | None, int, int]:
    """The part that a segment belongs to, and its first and last; of an output of one run: None, and those of the whole."""
    if not manifest.parts:
        return None, 0, len(manifest.segments) - 1
    part = bisect_right(manifest.parts, segment)
    return part, manifest.parts[part - 1] if part else 0, manifest.parts[part] - 1


def _gaps(manifest: Manifest, damaged: list[int]) -> list[Gap]:
    """The damaged segments (from 0, ascending), neighbours of the same part together."""
    edges = [
        i
        for i, (before, here) in enumerate(pairwise(damaged), 1)
        if here != before + 1 or _part_of(manifest, before) != _part_of(manifest, here)
    ]
    bounds = [0, *edges, len(damaged)] if damaged else []
    return [_gap(manifest, damaged[begin], damaged[end - 1]) for begin, end in pairwise(bounds)]


def _gap(manifest: Manifest, first: int, last: int) -> Gap:
    before, behind = manifest.segments[first - 1] if first else None, manifest.segments[last]
    old, new = before.counts if before else Counts(), behind.counts
    part, first_of_part, last_of_part = _part_of(manifest, first)
    sums = {"train_tokens": old.tokens_train, "val_tokens": old.tokens_val}
    return Gap(
        first=first,
        last=last,
        begin=before.after if before else Cursor(),
        end=behind.after,
        bytes_in=new.bytes_in - old.bytes_in,
        writer=sums | before.writer if before and first > first_of_part else {},
        tokens=(new.tokens_train - old.tokens_train, new.tokens_val - old.tokens_val),
        documents=(new.documents_train - old.documents_train, new.documents_val - old.documents_val),
        is_last=last == last_of_part,
        part=part,
    )
