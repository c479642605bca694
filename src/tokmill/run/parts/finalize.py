"""`finalize`: the parts of an output, made one by one, become that output.

Nothing is copied: a part's files have their final names already and are renamed into the output directory; the manifest, put
together from those of the parts, comes last. All that is decided follows from the plan and the parts' manifests, which stay
until the end, so a `finalize` that was killed anywhere is simply run again. Numbers of records, which a part can only count
from its own beginning, become those of the whole, in cursors and in the list of what was skipped: whatever works on an output
of one run works on this one.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.errors import DamageError, LockedError, UsageError
from tokmill.core.manifest import FORMAT_VERSION, MANIFEST_NAME, MOST_BYTES, SKIPPED_NAME, Manifest, encode_manifest, load_manifest
from tokmill.core.outcome import Outcome, outcome_of
from tokmill.core.partition import Part, counts_records_from_part
from tokmill.core.paths import local_path
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Counts, Cursor, FileEntry, Skip
from tokmill.core.skipping import n_bad_records, too_many_error
from tokmill.core.spans import Span, SpanChecker
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.core.text import counted
from tokmill.core.version import __version__
from tokmill.output import (
    MOST_NAMED,
    GrowingFile,
    acquire_lock,
    changed_parts_error,
    growing_path,
    incomplete,
    is_only_more_lenient,
    load_plan,
    n_parts,
    part_contents,
    part_directory,
    parts_of,
    plan_of,
    release_lock,
    remove_state,
    skipped_lists,
    state_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokmill.core.config import Content
    from tokmill.core.manifest import FileSpan, Segment
    from tokmill.core.protocols import Observer
    from tokmill.core.system.durable import DirectoryLock
    from tokmill.output import Header


def finalize(directory: str | os.PathLike[str], *, observers: Sequence[Observer] = ()) -> Outcome:
    """Put together the parts that `tokenize(..., part="I/N")` made in a directory, as `tokmill finalize` does; again to go on.

    Raises TokmillError: UsageError where parts are missing, naming them; LockedError while one of them, or all, are worked on.
    """
    directory = Path(local_path(directory))
    reporter = ProgressReporter(observers)
    plan = load_plan(directory)
    if plan is None:
        with storage_errors(directory):
            complete = load_manifest(directory) if (directory / MANIFEST_NAME).exists() else None
        manifest = check_in_parts(complete, str(directory))
        if parts_of(directory).exists():
            _tidy(directory)
        return _outcome(directory, manifest, reporter, already_complete=True)
    lock = acquire_lock(directory)
    try:
        manifest = finalize_held(directory, plan, reporter, lock)
    except BaseException:
        release_lock(directory, lock)
        raise
    return _outcome(directory, manifest, reporter, already_complete=False)


def finalize_held(
    directory: Path, plan: Header, reporter: ProgressReporter, lock: DirectoryLock, max_skipped: int | None = None
) -> Manifest:
    """Put the parts together; the lock of the directory is held, and given back when all is done.

    max_skipped: bad records that all parts together may have left out. Raises TokmillError.
    """
    if (directory / MANIFEST_NAME).exists():
        manifest = load_manifest(directory)
        if manifest.fingerprint != plan.fingerprint:
            raise changed_parts_error(manifest.content, plan.content, directory, or_else="remove one of the two first")
    else:
        parts = load_parts(directory, plan.content)
        check_skipped(parts, max_skipped, skipped_lists(str(directory)))
        reporter.started(sum(entry.size_bytes for part in parts for entry in part.files.values()), 0)
        manifest = Assembly(directory, plan.content).assemble(parts)
        _publish(directory, parts, manifest, reporter)
    remove_parts(directory)
    remove_state(directory, lock)
    return manifest


def check_skipped(parts: Sequence[Manifest], max_skipped: int | None, where: str) -> None:
    """Raises TooManySkippedError where all parts together left out more bad records than that. where: what lists them."""
    counts = sum((part.counts for part in parts), Counts())
    if max_skipped is not None and n_bad_records(counts) > max_skipped:
        raise too_many_error(counts, max_skipped, where)


def missing_parts(directory: Path, content: Content) -> list[int]:
    """Numbers of the parts that are not complete. content: of the whole."""
    return [i for i in range(n_parts(content)) if not (part_directory(directory, i) / MANIFEST_NAME).exists()]


def load_parts(directory: Path, content: Content) -> list[Manifest]:
    """The manifests of all parts. Raises UsageError where some are missing, ChangedError, DamageError."""
    missing = missing_parts(directory, content)
    if missing:
        begun = [i for i in missing[:MOST_NAMED] if part_directory(directory, i).exists()]
        raise incomplete(str(directory), content, missing, begun, [i for i in begun if _is_busy(part_directory(directory, i))])
    found = []
    for index, wanted in enumerate(part_contents(content)):
        where = part_directory(directory, index)
        if where.is_symlink():
            raise DamageError(
                "a part of the output is a symbolic link",
                where=str(where),
                allowed="a directory that tokenize --part made",
                next_step="put the directory in its place",
            )
        with storage_errors(where):
            manifest = load_manifest(where)
        if manifest.fingerprint != wanted.fingerprint() and not is_only_more_lenient(manifest.content, wanted):
            raise changed_parts_error(manifest.content, wanted, where, or_else=f"make part {index} again with --fresh")
        found.append(manifest)
    return found


def check_in_parts(manifest: Manifest | None, where: str) -> Manifest:
    """What was put together before; None: nothing is complete. Raises UsageError where nothing was made in parts."""
    if manifest is not None and manifest.content.n_parts:
        return manifest
    raise UsageError(
        "nothing was made in parts here" if manifest is None else "this output was made in one run: it is complete as it is",
        where=where,
        allowed="what was --out of tokmill tokenize --part",
        next_step=f"tokmill tokenize INPUT... --part 0/8 --out {where}" if manifest is None else f"tokmill verify {where}",
    )


@dataclass(slots=True)
class Assembly:
    """One manifest of those of all parts."""

    directory: Path
    content: Content
    segments: list[Segment] = field(default_factory=list)
    files: dict[str, FileEntry] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    last: Cursor = field(default_factory=Cursor)
    """In the whole corpus: behind the parts so far."""
    n_inputs: int = 0
    """Behind the parts so far; one that a part ends in the middle of is not among them."""

    def assemble(self, parts: Sequence[Manifest]) -> Manifest:
        """Writes the list of what was skipped beside the parts. Raises DamageError, StorageError, DiskFullError."""
        skipped = self._skipped_file(parts)
        for index, part in enumerate(parts):
            self._add(index, part, skipped)
        if skipped is not None:
            skipped.sync(skipped.length)
            skipped.close()
            self.files[SKIPPED_NAME] = FileEntry(size_bytes=skipped.length)
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

    def _skipped_file(self, parts: Sequence[Manifest]) -> GrowingFile | None:
        if not any(SKIPPED_NAME in part.files for part in parts):
            return None
        return GrowingFile(growing_path(self.directory, SKIPPED_NAME), 0)

    def _add(self, index: int, part: Manifest, skipped: GrowingFile | None) -> None:
        share, inputs = part.content.part, part.content.inputs
        begins_inside = isinstance(share, Part) and share.begin > 0
        shift = 0
        if begins_inside and counts_records_from_part(inputs[0]) and self.last.input_index == self.n_inputs:
            shift = self.last.record
        records = _Skipped(part_directory(self.directory, index), part, inputs[0].path if begins_inside else "", shift)
        for segment in part.segments:
            files = {name: span for name, span in segment.files.items() if name != SKIPPED_NAME}
            if SKIPPED_NAME in segment.files and skipped is not None:
                for line in records.lines(segment.files[SKIPPED_NAME]):
                    skipped.append(line)
                span = skipped.cut_span()
                files |= {SKIPPED_NAME: span} if span else {}
            after = self._placed(segment.after, shift)
            self.segments.append(msgspec.structs.replace(segment, after=after, files=files, counts=self.counts + segment.counts))
            self.last = after
        self.files |= {name: entry for name, entry in part.files.items() if name != SKIPPED_NAME}
        self.counts += part.counts
        self.ends.append(len(self.segments))
        ends_inside = isinstance(share, Part) and share.end is not None
        self.n_inputs += len(inputs) - ends_inside

    def _placed(self, cursor: Cursor, shift: int) -> Cursor:
        """A cursor of a part in the whole corpus."""
        record = cursor.record + (shift if cursor.input_index == 0 and cursor.offset else 0)
        return msgspec.structs.replace(cursor, input_index=cursor.input_index + self.n_inputs, record=record)


class _Skipped:
    """What one part passed over, with the numbers of records in the whole corpus."""

    def __init__(self, directory: Path, part: Manifest, path: str, shift: int) -> None:
        """path: of the input in which the part begins; shift: records of that which lie before the part."""
        self._path = directory / SKIPPED_NAME
        self._size = part.files[SKIPPED_NAME].size_bytes if SKIPPED_NAME in part.files else 0
        self._begins_in = path
        self._shift = shift
        self._offset = 0

    def lines(self, span: FileSpan) -> Iterator[bytes]:
        """The lines of one segment. Raises DamageError for bytes that are not those written."""
        checker = SpanChecker([Span(0, self._offset, span.end, span.digest)])
        damaged: list[Span] = []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while self._offset < min(span.end, self._size):
                line = file.readline()
                damaged = checker.update(line)
                self._offset += len(line)
                if damaged or not line or self._offset > span.end:
                    break
                yield self._renumbered(line)
        if damaged or self._offset != span.end:
            raise self._damaged()

    def _renumbered(self, line: bytes) -> bytes:
        try:
            skip = msgspec.json.decode(line, type=Skip)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self._damaged() from None
        if not self._shift or skip.path != self._begins_in or skip.record is None:
            return line
        return msgspec.json.encode(msgspec.structs.replace(skip, record=skip.record + self._shift)) + b"\n"

    def _damaged(self) -> DamageError:
        return DamageError(
            "the list of what was skipped is not the one that the part wrote",
            where=str(self._path),
            allowed="every byte as the part's manifest says",
            next_step="make that part again with --fresh, then run tokmill finalize again",
        )


def _publish(directory: Path, parts: Sequence[Manifest], manifest: Manifest, reporter: ProgressReporter) -> None:
    """Rename all files into place, the manifest last. Raises StorageError, DamageError."""
    written, encoded = growing_path(directory, MANIFEST_NAME), encode_whole(manifest, str(directory))
    with storage_errors(directory):
        durable.write_file(written, encoded)
        try:
            # Whoever begins now sees that, and ends.
            refuse_busy(directory)
        except LockedError:
            written.unlink()
            raise
        for sub in sorted({os.path.dirname(name) for name in manifest.files} - {""}):
            durable.make_directory(directory / sub)
    done = 0
    for index, part in enumerate(parts):
        for name, entry in moved(part).items():
            _move(directory, index, name, entry.size_bytes)
            done += entry.size_bytes
            reporter.progress(done)
    with storage_errors(directory):
        if SKIPPED_NAME in manifest.files:
            durable.replace(growing_path(directory, SKIPPED_NAME), directory / SKIPPED_NAME)
        for sub in {os.path.dirname(name) for name in manifest.files} | {""}:
            durable.sync_directory(directory / sub)
        durable.replace(written, directory / MANIFEST_NAME)
        durable.sync_directory(directory)
        durable.sync_directory(directory.parent)


def encode_whole(manifest: Manifest, where: str) -> bytes:
    """The manifest as a file. Raises UsageError for one that is too large to be read."""
    encoded = encode_manifest(manifest)
    if len(encoded) > MOST_BYTES:
        raise UsageError(
            f"the manifest would have {len(encoded):,} bytes, more than any tokmill reads",
            where=where,
            allowed=f"{MOST_BYTES:,} bytes: some 60 TB of corpus",
            next_step="make several outputs of the corpus, each of a part of its files",
        )
    return encoded


def moved(part: Manifest) -> dict[str, FileEntry]:
    """The files of a part that the whole has, too."""
    return {name: entry for name, entry in part.files.items() if name != SKIPPED_NAME}


def _move(directory: Path, index: int, name: str, size_bytes: int) -> None:
    """Give a part's file its place, unless it is there already."""
    source, target = part_directory(directory, index) / name, directory / name
    with storage_errors(source):
        found = source if source.exists() or source.is_symlink() else target
        size = found.lstat().st_size if found.exists() else -1
        if size != size_bytes or found.is_symlink():
            raise DamageError(
                "a file of a part is missing" if size < 0 else f"a file of a part has {counted(size, 'byte')}",
                where=str(source),
                allowed=f"{counted(size_bytes, 'byte')}, as the part's manifest says",
                next_step=f"make part {index} again with --fresh, then run tokmill finalize again",
            )
        if found is source:
            durable.replace(source, target)


def refuse_busy(directory: Path) -> None:
    """Raises LockedError while somebody makes a part, be it one that was complete and is made again."""
    with storage_errors(parts_of(directory)):
        found = sorted(parts_of(directory).iterdir()) if parts_of(directory).is_dir() else []
    for part in found:
        if state_of(part).is_dir():
            release_lock(part, acquire_lock(part))


def _is_busy(part: Path) -> bool:
    """Whether somebody makes the part now."""
    if not state_of(part).is_dir():
        return False
    try:
        release_lock(part, acquire_lock(part))
    except LockedError:
        return True
    return False


def _tidy(directory: Path) -> None:
    """Take away what a run of a part left that began while the parts were put together."""
    lock = acquire_lock(directory)
    try:
        refuse_busy(directory)
        remove_parts(directory)
    finally:
        release_lock(directory, lock)


def remove_parts(directory: Path) -> None:
    """Take away what there is of the parts, and then the plan. Raises StorageError."""
    parts = parts_of(directory)
    with storage_errors(parts):
        if parts.is_dir() and not parts.is_symlink():
            shutil.rmtree(parts)
        for scratch in state_of(directory).glob("plan.*.new"):
            scratch.unlink(missing_ok=True)
        plan_of(directory).unlink(missing_ok=True)
        durable.sync_directory(state_of(directory))


def _outcome(directory: Path, manifest: Manifest, reporter: ProgressReporter, *, already_complete: bool) -> Outcome:
    sources = [str(part_directory(directory, i)) for i in range(n_parts(manifest.content))]
    return outcome_of(manifest, str(directory), sources, reporter.elapsed_s, already_complete=already_complete)
