"""The output directory of a run: journal, append, commit, publish, recovery. The only module that publishes.

While a run is under way everything lives in `.tokmill/` inside the output directory: `journal` (a header, then a line a segment),
`NAME.part` for every file to come, `lock`. A commit makes the parts durable first and then appends one line to the journal, so the
journal never speaks of bytes that could be lost. Publishing writes the manifest beside the parts, renames every part to its final
name, and renames the manifest last; whoever finds a written manifest in `.tokmill/` only has to do the renames again.

The hard one: a failed fsync is never tried again. The kernel may have dropped the pages and marked them clean, so a second call
would lie. The run stops, and the next one truncates to the last line of the journal and writes those bytes from the source anew.
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from tokmill import durable
from tokmill.changes import changed_error
from tokmill.durable import DirectoryLock, storage_errors
from tokmill.errors import DamageError, UsageError
from tokmill.journal import Header, Journal
from tokmill.manifest import MANIFEST_NAME, Manifest, Segment, decode_manifest, encode_manifest, load_manifest
from tokmill.part import PartFile
from tokmill.types import Counts, Cursor
from tokmill.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokmill.config import Content

STATE_NAME = ".tokmill"


class Output:
    """One run's hold on an output directory. Implements `protocols.OutputFiles`. Close it."""

    def __init__(self, directory: Path, lock: DirectoryLock, journal: Journal) -> None:
        self.directory = directory
        self._lock = lock
        self._journal = journal
        self._files: dict[str, PartFile] = {}
        self._named = set(_lengths(journal.segments))
        self._elapsed_before_s = journal.elapsed_s
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._pending: Future[None] | None = None
        self._failure: BaseException | None = None

    @property
    def segments(self) -> list[Segment]:
        """All segments committed so far, those of earlier runs included."""
        return self._journal.segments

    @property
    def cursor(self) -> Cursor:
        """Where reading goes on."""
        return self.segments[-1].after if self.segments else Cursor()

    @property
    def counts(self) -> Counts:
        """Sums up to the cursor."""
        return self.segments[-1].counts if self.segments else Counts()

    @property
    def elapsed_before_s(self) -> float:
        """Time that earlier runs put into the committed segments."""
        return self._elapsed_before_s

    @property
    def names(self) -> set[str]:
        """Names of all files so far."""
        return {*self._files, *_lengths(self.segments)}

    def file(self, name: str) -> PartFile:
        """The file that will be published as `name`, as long as it was at the last commit."""
        if name not in self._files:
            self._files[name] = PartFile(self._part(name), _lengths(self.segments).get(name, 0))
        return self._files[name]

    def commit(
        self, after: Cursor, counts: Counts, writer: dict[str, int], elapsed_s: float, on_done: Callable[[int], None] | None = None
    ) -> None:
        """Commit what was appended, in the background; waits for the commit before. Raises its StorageError or DiskFullError.

        on_done is called in the background with the number of segments when they are on the disk.
        """
        self.settle()
        touched = {name: file for name, file in self._files.items() if file.is_ahead}
        spans = {name: span for name, file in touched.items() if (span := file.cut_span())}
        segment = Segment(after=after, files=spans, counts=counts, writer=writer)
        self._pending = self._committer.submit(self._commit, segment, list(touched.values()), elapsed_s, on_done)

    @property
    def is_settled(self) -> bool:
        """Whether no commit is under way."""
        return self._pending is None or self._pending.done()

    def settle(self) -> None:
        """Wait for the commit under way and raise its error; after an error, raise it for ever."""
        if self._pending is not None:
            self._failure = self._pending.exception()
            self._pending = None
        if self._failure is not None:
            raise self._failure

    def _commit(self, segment: Segment, files: list[PartFile], elapsed_s: float, on_done: Callable[[int], None] | None) -> None:
        if any(name not in self._named for name in segment.files):
            # The journal must not speak of a file whose name the disk does not have yet.
            with storage_errors(self.directory):
                durable.sync_directory(_state(self.directory))
            self._named.update(segment.files)
        for file, span in zip(files, segment.files.values(), strict=True):
            file.sync(span.end)
        with storage_errors(self._journal.path):
            self._journal.append(segment, elapsed_s)
        if on_done:
            on_done(len(self.segments))

    def publish(self, manifest: Manifest) -> None:
        """Give every file its name, the manifest last; then drop the journal."""
        self.settle()
        for file in self._files.values():
            file.sync(file.length)
            file.close()
        part = self._part(MANIFEST_NAME)
        with storage_errors(part):
            durable.write_file(part, encode_manifest(manifest))
        _publish_files(self.directory, manifest)
        self._drop_state()

    def _drop_state(self) -> None:
        self._journal.close()
        _remove_state(self.directory, self._lock)

    def close(self) -> None:
        """Let go of the directory; what was committed stays."""
        self._committer.shutdown(wait=True)
        for file in self._files.values():
            file.close()
        self._journal.close()
        _let_go(self.directory, self._lock)

    def _part(self, name: str) -> Path:
        return _state(self.directory) / f"{name}.part"


def open_output(directory: Path, content: Content, version: str, *, fresh: bool, replacing: str | None = None) -> Output | Manifest:
    """Take hold of an output directory: a new one, one to resume, or (returned as its manifest) one that is complete.

    replacing: fingerprint of a complete output that stands there until this one takes its place. Raises LockedError, ChangedError,
    DamageError, StorageError, DiskFullError; UsageError for files that tokmill did not make.
    """
    state = _state(directory)
    if state.is_symlink():
        raise DamageError(
            "the state of the run is a symbolic link", where=str(state), next_step="remove it, or choose another --out"
        )
    lock = DirectoryLock(state / "lock")
    try:
        return _open_locked(directory, content, version, lock, fresh=fresh, replacing=replacing)
    except BaseException:
        _let_go(directory, lock)
        raise


def _open_locked(
    directory: Path, content: Content, version: str, lock: DirectoryLock, *, fresh: bool, replacing: str | None
) -> Output | Manifest:
    journal_path = _state(directory) / "journal"
    if fresh:
        with storage_errors(directory):
            _discard_parts(directory)
    complete = None if fresh else _finish_publishing(directory, content) or _complete(directory, content, replacing)
    if complete:
        _remove_state(directory, lock)
        return complete
    with storage_errors(journal_path):
        journal = Journal.open(journal_path, Header.of(content, version))
    try:
        if journal.header.fingerprint != content.fingerprint() and not journal.segments:
            # Nothing was committed yet, so nothing is lost by beginning differently.
            journal.close()
            with storage_errors(directory):
                _discard_parts(directory)
                journal = Journal.open(journal_path, Header.of(content, version))
        if journal.header.fingerprint != content.fingerprint():
            raise changed_error(journal.header.content, content, directory)
        _check_parts(directory, journal.segments)
        if not fresh and not journal.segments:
            _refuse_strangers(directory)
    except BaseException:
        journal.close()
        raise
    return Output(directory, lock, journal)


def _complete(directory: Path, content: Content, replacing: str | None) -> Manifest | None:
    """The manifest of a complete directory with this content; None where there is none, or one that is to be replaced.

    Raises ChangedError for another content.
    """
    state = _state(directory)
    if not (directory / MANIFEST_NAME).exists() or ((state / "journal").exists() and part_files(directory)):
        return None
    with storage_errors(directory):
        manifest = load_manifest(directory)
    if manifest.fingerprint == replacing:
        return None
    if manifest.fingerprint != content.fingerprint():
        raise changed_error(manifest.content, content, directory)
    for name, entry in manifest.files.items():
        _check_size(directory / name, entry.size_bytes, "a file of the complete output")
    return manifest


def _check_size(path: Path, size_bytes: int, what: str) -> None:
    """Raises DamageError for a file that is not there or has another size."""
    size = path.lstat().st_size if path.exists() else -1
    if size != size_bytes:
        raise DamageError(
            f"{what} is missing" if size < 0 else f"{what} has {counted(size, 'byte')}",
            where=str(path),
            allowed=f"{counted(size_bytes, 'byte')}, as its manifest says",
            next_step="run the same command with --fresh to start over",
        )


def _finish_publishing(directory: Path, content: Content) -> Manifest | None:
    """Do again the renames of a run that was killed while publishing; its manifest, or None if none was."""
    part = _state(directory) / f"{MANIFEST_NAME}.part"
    with storage_errors(part):
        if not part.exists():
            return None
        data = part.read_bytes()
    try:
        manifest = decode_manifest(data, str(part))
    except DamageError:
        # Killed while the manifest itself was written: the journal has everything it was made of.
        with storage_errors(part):
            part.unlink()
        return None
    if manifest.fingerprint != content.fingerprint():
        raise changed_error(manifest.content, content, directory)
    _publish_files(directory, manifest)
    return manifest


def _publish_files(directory: Path, manifest: Manifest) -> None:
    """Rename the parts of `manifest` into place, its own file last. Can be done again after a crash at any point."""
    state = _state(directory)
    with storage_errors(directory):
        _retire_older(directory, manifest)
        for name, entry in manifest.files.items():
            part = state / f"{name}.part"
            _check_size(part if part.exists() else directory / name, entry.size_bytes, "a file of the finished run")
            if part.exists():
                durable.replace(part, directory / name)
        durable.sync_directory(directory)
        durable.replace(state / f"{MANIFEST_NAME}.part", directory / MANIFEST_NAME)
        durable.sync_directory(directory)
        durable.sync_directory(directory.parent)


def _retire_older(directory: Path, manifest: Manifest) -> None:
    """Take away an earlier complete output, its manifest before the new files come, so that it never stands beside them.

    One that the new output only adds to stays: its files are the beginnings of the new ones, and readers go by its manifest until
    the new one takes its name.
    """
    path = directory / MANIFEST_NAME
    if not path.exists():
        return
    try:
        older = load_manifest(directory)
    except (DamageError, UsageError):
        older = None
    if older and any(p.how == "append" and p.fingerprint == older.fingerprint for p in manifest.made_from or ()):
        return
    for name in set(older.files if older else ()) - set(manifest.files):
        (directory / name).unlink(missing_ok=True)
    path.unlink()
    durable.sync_directory(directory)


def _check_parts(directory: Path, segments: list[Segment]) -> None:
    """Raises DamageError when a part lacks bytes that the journal says were made durable."""
    for name, length in _lengths(segments).items():
        part = _state(directory) / f"{name}.part"
        size = part.lstat().st_size if part.exists() and not part.is_symlink() else -1
        if size < length:
            raise DamageError(
                "a file of the run to be resumed is missing" if size < 0 else "a file of the run to be resumed was cut short",
                where=str(part),
                allowed=f"at least {counted(length, 'byte')}, as committed; it has {max(size, 0):,}",
                next_step="run the same command with --fresh to start over",
            )


def _refuse_strangers(directory: Path) -> None:
    for name in ("train.bin", "val.bin"):
        if (directory / name).exists() and not (directory / MANIFEST_NAME).exists():
            raise UsageError(
                "the output directory holds a file that no tokmill manifest vouches for",
                where=str(directory / name),
                allowed="a new or empty directory, or one that tokmill made",
                next_step="choose another --out, move the file away, or pass --fresh to overwrite it",
            )


def _lengths(segments: list[Segment]) -> dict[str, int]:
    """Committed length of every file, in bytes."""
    return {name: span.end for segment in segments for name, span in segment.files.items()}


def _discard_parts(directory: Path) -> None:
    """Remove the written manifest, which alone says that parts are complete, then the journal, then the parts."""
    state = _state(directory)
    if (state / f"{MANIFEST_NAME}.part").exists():
        (state / f"{MANIFEST_NAME}.part").unlink()
        durable.sync_directory(state)
    (state / "journal").unlink(missing_ok=True)
    for part in part_files(directory):
        part.unlink()


def _remove_state(directory: Path, lock: DirectoryLock) -> None:
    with storage_errors(directory):
        _discard_parts(directory)
        _let_go(directory, lock)


def _let_go(directory: Path, lock: DirectoryLock) -> None:
    """Give the lock back, and the state directory where nothing is left in it."""
    lock.release(remove=True)
    # Not empty: a run to be resumed, or another that began the moment the lock was free. And a disk that cannot be written
    # has been the error already, which this one must not hide.
    with contextlib.suppress(OSError):
        _state(directory).rmdir()


def part_files(directory: Path) -> list[Path]:
    """The parts of a run that is not complete. Raises StorageError."""
    state = _state(directory)
    with storage_errors(state):
        names = durable.uninterrupted(lambda: os.listdir(state)) if state.is_dir() else []
    return [state / name for name in names if name.endswith(".part")]


def _state(directory: Path) -> Path:
    return directory / STATE_NAME
