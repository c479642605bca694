"""`finalize`: the parts of an output become that output, where they are.

What the whole is follows from the plan and the manifests of the parts alone, and both stay until the end. So a `finalize` that was
killed anywhere is simply run again. A part counts records from its own beginning; in the whole, cursors and the list of skipped
records count from the beginning of the input, as after a run in one piece, so whatever works on its output works on this one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import local_path, path_text
from tokmill.core.errors import DamageError, TokmillError, UsageError
from tokmill.core.manifest import FORMAT_VERSION, SKIPPED_NAME, Manifest, encode_manifest
from tokmill.core.outcome import Outcome, outcome_of
from tokmill.core.partition import Numbering, Part
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Counts, Cursor, FileEntry, Skip, is_url
from tokmill.core.skipping import SkippedList, check_skipped, without_list
from tokmill.core.spans import Span, SpanChecker
from tokmill.core.system.durable import storage_errors
from tokmill.core.text import quoted
from tokmill.core.version import __version__
from tokmill.output import DirectoryParts, GrowingFile, files_of_whole, growing_path, left_behind, n_parts, skipped_lists
from tokmill.run.summary import notices_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokmill.core.config import Content
    from tokmill.core.manifest import FileSpan, Segment
    from tokmill.core.protocols import Observer
    from tokmill.core.system.tree import TreePath
    from tokmill.output import Header, PartsStore

_MOST_LINE_BYTES = 1 << 20
"""No line of a list of skipped records is longer."""


def parts_store(out: str, stage: str | None = None) -> PartsStore:
    """Return the place of an output that is made in parts: a directory, or `s3://bucket/prefix`.

    stage: of a URL, directory for what is needed here while parts are joined; None: the usual one. Raises UsageError.
    """
    if is_url(out):
        # Here, so that a directory needs no client of a store.
        from tokmill.output import RemoteParts

        return RemoteParts(out, stage)
    return DirectoryParts(Path(local_path(out)))


def finalize(out: str | os.PathLike[str], *, stage: str | None = None, observers: Sequence[Observer] = ()) -> Outcome:
    """Join the parts that `tokenize(..., part="I/N")` made. After an interruption, call it again.

    Args:
        out: directory or `s3://bucket/prefix` of the whole.
        stage: of a URL, directory for what is needed here meanwhile; None: the usual one.
        observers: told of every event.

    Raises:
        UsageError: parts are missing; it names them.
        LockedError: a part, or all of them, are worked on.
        TokmillError: anything else.
    """
    parts, reporter = parts_store(path_text(out, "directory"), stage), ProgressReporter(observers)
    plan = parts.read_plan()
    if plan is None:
        manifest = _check_in_parts(parts.complete(), parts.where)
        parts.tidy(manifest.fingerprint)
    else:
        with parts.lock():
            manifest = join_parts(parts, plan, reporter)
    sources = [parts.part_output(i) for i in range(n_parts(manifest.content))]
    notices = [*notices_of(manifest.content, manifest.counts, manifest.files), *left_behind(parts.scratch)]
    return outcome_of(manifest, parts.where, sources, reporter.elapsed_s, already_complete=plan is None, notices=notices)


def join_parts(parts: PartsStore, plan: Header, reporter: ProgressReporter, max_skipped: int | None = None) -> Manifest:
    """Make the whole of its parts; the lock of `parts` is held.

    max_skipped: bad records that all parts together may have left out. Raises TokmillError.
    """
    manifest = parts.complete()
    if manifest is not None and manifest.fingerprint != plan.fingerprint:
        raise parts.changed_error(manifest.content, plan.content, "remove one of the two first", is_complete=True)
    if manifest is None:
        try:
            manifest = _assemble(parts, plan.content, reporter, max_skipped)
        except TokmillError:
            # Another machine may have been faster and removed the parts.
            manifest = parts.complete() if parts.is_shared else None
            if manifest is None or manifest.fingerprint != plan.fingerprint:
                raise
    parts.remove_parts(plan.fingerprint)
    return manifest


def _assemble(parts: PartsStore, content: Content, reporter: ProgressReporter, max_skipped: int | None) -> Manifest:
    manifests = parts.load_parts(content)
    counts = sum((part.counts for part in manifests), Counts())
    check_skipped(counts, max_skipped, skipped_lists(parts.where, parts.where if parts.is_shared else ""))
    reporter.started(sum(entry.size_bytes for part in manifests for entry in files_of_whole(part).values()), 0)
    manifest = _Assembly(parts, content).assemble(manifests)
    # Before anything is renamed or copied: it may be larger than any tokmill reads.
    encode_manifest(manifest, parts.where)
    return parts.publish(manifests, manifest, reporter)


def _check_in_parts(manifest: Manifest | None, where: str) -> Manifest:
    """Return the manifest of parts that were joined before. Raises UsageError where nothing was made in parts."""
    if manifest is not None and manifest.content.n_parts:
        return manifest
    raise UsageError(
        "nothing was made in parts here" if manifest is None else "this output was made in one run: it is complete as it is",
        where=where,
        allowed="the directory or URL given as --out to tokmill tokenize --part",
        next_step=f"tokmill {'tokenize INPUT... --part 0/8 --out' if manifest is None else 'verify'} {quoted(where)}",
    )


@dataclass(slots=True)
class _Assembly:
    """Makes one manifest of those of all parts."""

    parts: PartsStore
    content: Content
    segments: list[Segment] = field(default_factory=list)
    files: dict[str, FileEntry] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    last: Cursor = field(default_factory=Cursor)
    """In the whole corpus: the end of the parts so far."""
    listing: tuple[GrowingFile, SkippedList] | None = None
    """The list of skipped records of the whole; None: it has none."""
    n_inputs: int = 0
    """Inputs of the parts so far, without one in the middle of which a part ends."""

    def assemble(self, parts: Sequence[Manifest]) -> Manifest:
        """Also writes the list of skipped records of the whole. Raises DamageError, StorageError, DiskFullError."""
        lists = self.parts.skipped_files([i for i, part in enumerate(parts) if SKIPPED_NAME in part.files])
        file = GrowingFile(growing_path(self.parts.scratch, SKIPPED_NAME), 0) if lists else None
        self.listing = None if file is None else (file, SkippedList(lambda: file, self.content, {}))
        last = max((index for index, part in enumerate(parts) if part.segments), default=-1)
        for index, part in enumerate(parts):
            self._add(index, part, lists.get(index), is_last=index == last)
        if file is not None:
            file.sync(file.length)
            file.close()
            self.files[SKIPPED_NAME] = FileEntry(size_bytes=file.length)
        return Manifest(
            format_version=FORMAT_VERSION,
            tokmill_version=__version__,
            fingerprint=self.content.fingerprint(),
            content=self.content,
            files=self.files,
            segments=self.segments,
            counts=self.counts,
            elapsed_s=round(sum(part.elapsed_s for part in parts), 3),
            peak_rss_bytes=max(part.peak_rss_bytes for part in parts),
            parts=tuple(self.ends),
        )

    def _add(self, index: int, part: Manifest, path: TreePath | None, *, is_last: bool) -> None:
        share, inputs = part.content.part, part.content.inputs
        numbering = Numbering.of(share, inputs, self.n_inputs, self.last)
        records = None if path is None else _SkippedRecords(path, f"{self.parts.part_output(index)}/{SKIPPED_NAME}", numbering)
        for number, segment in enumerate(part.segments, 1):
            files = {name: span for name, span in segment.files.items() if name != SKIPPED_NAME}
            writer = without_list(segment.writer)
            if self.listing is not None:
                file, listed = self.listing
                if SKIPPED_NAME in segment.files and records is not None:
                    for skip in records.skips(segment.files[SKIPPED_NAME]):
                        listed.add(skip)
                if is_last and number == len(part.segments):
                    listed.end()
                span = file.span()
                file.begin_span()
                files |= {SKIPPED_NAME: span} if span else {}
                writer |= listed.state()
            after, counts = numbering.cursor(segment.after), self.counts + segment.counts
            self.segments.append(msgspec.structs.replace(segment, after=after, files=files, counts=counts, writer=writer))
            self.last = after
        self.files |= {name: entry for name, entry in part.files.items() if name != SKIPPED_NAME}
        self.counts += part.counts
        self.ends.append(len(self.segments))
        ends_inside = isinstance(share, Part) and share.end is not None
        self.n_inputs += len(inputs) - ends_inside


class _SkippedRecords:
    """The list of skipped records of one part, its records numbered as in the whole corpus."""

    def __init__(self, path: TreePath, where: str, numbering: Numbering) -> None:
        """path: of the list. where: its name for messages. numbering: of the part."""
        self._path = path
        self._where = where
        self._numbering = numbering
        self._offset = 0

    def skips(self, span: FileSpan) -> Iterator[Skip]:
        """Yield the lines of the next segment. Raises DamageError for bytes that are not those written."""
        checker = SpanChecker([Span(0, self._offset, span.end, span.digest, span.pieces)])
        damaged: list[Span] = []
        with storage_errors(self._path), open(self._path.open(), "rb") as file:
            file.seek(self._offset)
            while self._offset < span.end:
                line = file.readline(_MOST_LINE_BYTES)
                damaged = checker.update(line)
                self._offset += len(line)
                if damaged or not line or self._offset > span.end:
                    break
                yield self._renumbered(line)
        if damaged or self._offset != span.end:
            raise self._damaged()

    def _renumbered(self, line: bytes) -> Skip:
        try:
            return self._numbering.skip(msgspec.json.decode(line, type=Skip))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise self._damaged() from None

    def _damaged(self) -> DamageError:
        return DamageError(
            "the list of skipped records is not the one that the part wrote",
            where=self._where,
            allowed="every byte as the part's manifest says",
            next_step="make that part again with --fresh, then run tokmill finalize again",
        )
