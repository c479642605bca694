"""An output that is made in a directory of our own and sent to an object store.

The staged directory is an output like any other, with its journal, so that a run is resumed exactly; it is found again by the URL.
Shards are sent as they become complete and are then taken away, so the disk need hold a few of them only; the run waits where the
store is slower than it. A side that is one file is sent when it is complete: an object cannot be appended to. A file that is sent
leaves a mark: what the journal, which is read as it grows, speaks of is here or marked. The run's own process does not send: its
memory is divided to the last byte, and a store that hangs must not hold it.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import FIRST_EXCEPTION, wait
from typing import TYPE_CHECKING, Self

import msgspec

from tokmill.core.errors import DamageError, LockedError, StorageError, TokmillError
from tokmill.core.events import AnyEvent, Committed, Progress, Started
from tokmill.core.manifest import MANIFEST_NAME, load_manifest, read_state, refuse_foreign
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Counts
from tokmill.core.spans import Span, iter_spans, with_header
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.output.config_diff import changed_error, is_made_of, is_only_more_lenient
from tokmill.output.journal import JournalFollower, read_header
from tokmill.output.place import Place, output_of, stage_of
from tokmill.output.prefix import Prefix
from tokmill.output.state_dir import (
    acquire_lock,
    growing_path,
    is_begun,
    is_sent,
    missing_directories,
    release_lock,
    remove_empty,
    sent_mark,
    sent_names,
    size_error,
    state_of,
)
from tokmill.store import FileToSend, ObjectInfo, Uploader, UploadState, outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future

    from tokmill.core.config import Content, Job
    from tokmill.core.events import Finished
    from tokmill.core.manifest import Manifest
    from tokmill.core.protocols import Observer
    from tokmill.core.records import FileEntry
    from tokmill.core.system.tree import TreePath
    from tokmill.output.journal import Commit

_TICK_S = 0.2


class Staged(Place):
    """An output that is made here and sent to a store. As a context, it holds the staged directory."""

    def __init__(self, url: str, stage: str | None) -> None:
        """Raises UsageError for a store that cannot be used, LockedError, StorageError."""
        self._prefix = Prefix(url)
        self.url = self._prefix.url
        self.root = stage_of(url, stage)
        self._output = output_of(self.root)
        self.directory = str(self._output)
        self._output.refuse_link()
        self._new_directories = missing_directories(self.root)
        self._lock = acquire_lock(self.root)
        self._state = UploadState(self.root / "upload.json", self.url)
        self._sender: Uploader | None = None
        self._n_sent = 0
        self._run = ""
        """Fingerprint of what is made here; empty before it is known that something is."""
        self._shipment = ShardUploader(self._output, self._ready_sender)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._sender is not None:
            self._sender.__exit__(None, None, None)
            if isinstance(error, LockedError):
                self._abort_uploads()
        if error is not None and not self._is_begun():
            if isinstance(error, TokmillError):
                error.resumes = False
            if not isinstance(error, StorageError):
                self.drop()
        release_lock(self.root, self._lock)
        # Not empty: what the next attempt goes on with.
        remove_empty([self.root, *(each for each in self._new_directories if each != self.root)])

    def _abort_uploads(self) -> None:
        """Abort what was begun in parts: the prefix is another run's, and a store charges for what nobody completes."""
        with contextlib.suppress(StorageError):
            for name, upload in list(self._state.notes.begun.items()):
                self._prefix.ask(lambda name=name, upload=upload: self._prefix.store.abort_multipart(name, upload))  # type: ignore[misc]
                self._state.note_begun(name, None)

    def begin(self, content: Content, *, fresh: bool, stage_bytes: int = 0) -> Manifest | None:
        """Make the prefix ready for an output; return its manifest if it is complete there.

        stage_bytes: most bytes of complete files that wait here; 0: they are sent when all are complete.

        Raises ChangedError for a complete output, or one begun, of other inputs or settings; LockedError, UsageError, DamageError,
        StorageError.
        """
        self._prefix.refuse_inputs(content.inputs)
        fingerprint = content.fingerprint()
        if not fresh:
            with storage_errors(self._output):
                # Raises UsageError for a run that another version of tokmill began: what it noted may mean something else.
                read_header(state_of(self._output) / "journal")
        before = self._state.notes.content
        is_mine = before is not None and before.fingerprint() == fingerprint
        there = self._prefix.head(MANIFEST_NAME)
        if fresh:
            if there is not None:
                refuse_foreign(self._prefix.whole(MANIFEST_NAME) or b"", f"{self.url}/{MANIFEST_NAME}")
            self._state.change(is_fresh=True, replaces=(there and there.version) or "", retired=())
        elif not is_mine and not self._is_begun():
            self._state.change(is_fresh=False, replaces="", retired=())
        if there is not None and there.version != self._state.notes.replaces:
            return self._complete(content)
        if before is not None and not is_mine and not fresh and self._is_begun():
            raise changed_error(before, content, self.url)
        self._prefix.refuse_parts()
        if not fresh and not is_mine:
            self._prefix.refuse_foreign(fingerprint)
        self._run = fingerprint
        self._state.change(content=content)
        if not fresh:
            self._check_sent()
        self._shipment.while_made = bool(stage_bytes)
        return None

    def loosened(self, job: Job) -> Job:
        """Return the job of a part; what a stricter run began here is begun again: what was sent bears that run's name."""
        before, content = self._state.notes.content, job.content
        if before is None or before.fingerprint() == content.fingerprint() or not is_only_more_lenient(before, content):
            return job
        return job if self._prefix.head(MANIFEST_NAME) is not None else msgspec.structs.replace(job, fresh=True)

    @property
    def observers(self) -> Sequence[Observer]:
        """Return who must be told of the run's events."""
        return [self._shipment]

    def publish(self, finished: Finished, observers: Sequence[Observer]) -> Finished:
        """Send what is staged, its manifest last, and let go of it. Raises StorageError, DamageError, LockedError, UsageError."""
        if not self._run:
            return finished
        with storage_errors(self._output):
            manifest = load_manifest(self._output)
        n_bytes = sum(entry.size_bytes for entry in manifest.files.values())
        reporter = ProgressReporter(observers)
        sent = self._send(manifest, reporter)
        self._prefix.retire(self._state)
        self._prefix.clear(manifest.files, self._state)
        found = self._prefix.commit(manifest, sent)
        try:
            self._prefix.tidy(manifest.files)
        except StorageError as error:
            reporter.notice(f"the output is complete, but some parts could not be removed: {error.what}")
        self.drop()
        if found.checksum != manifest.checksum:
            reporter.notice("another run with the same inputs and settings completed this output meanwhile")
        return msgspec.structs.replace(
            finished, already_complete=False, uploaded_bytes=n_bytes, upload_s=round(reporter.elapsed_s, 3)
        )

    def _send(self, manifest: Manifest, reporter: ProgressReporter) -> dict[str, ObjectInfo]:
        here = [entry.size_bytes for name, entry in manifest.files.items() if not is_sent(self._output, name)]
        before = self._n_sent
        reporter.emit(Started(total_bytes=sum(here), verb="uploading"))

        def tick() -> None:
            n_bytes = min(self._n_sent - before, sum(here))
            reporter.emit(Progress(elapsed_s=reporter.elapsed_s, position_bytes=n_bytes, counts=Counts(), rss_bytes=0))
            if self._sender is not None and self._sender.trouble:
                reporter.notice(f"the store does not answer as it should ({self._sender.trouble}); trying again")
                self._sender.trouble = ""

        # An output without files has nobody who did this.
        self._ready_sender()
        return self._shipment.finish(manifest, tick, _TICK_S)

    def _ready_sender(self) -> Uploader:
        """Return what sends, made for the first file: from then on what stood at the prefix before is gone."""
        if self._sender is None:
            self._prefix.retire(self._state)
            self._sender = Uploader(
                self._prefix.store,
                self._run,
                self._state,
                on_bytes=self._on_bytes,
                check=lambda: self._prefix.check_overtaken(self._run),
            )
        return self._sender

    def _on_bytes(self, n_bytes: int) -> None:
        # From several threads: a figure for a progress bar may miss one.
        self._n_sent += n_bytes

    def _check_sent(self) -> None:
        """Raise DamageError when what was sent and taken away here is no longer there."""
        sent = self._shipment.sent()
        there = self._prefix.list() if sent else {}
        for name, stored in sent.items():
            if name not in there or there[name].version != stored.version:
                raise DamageError(
                    "an object that an earlier attempt had sent is " + ("another one now" if name in there else "gone"),
                    where=f"{self.url}/{name}",
                    allowed="objects that stay as they were sent",
                    next_step="run the same command with --fresh to make all of it again",
                )

    def _complete(self, content: Content) -> Manifest:
        """Return the manifest of the output that is complete at the prefix. Raises ChangedError, DamageError."""
        manifest = self._prefix.complete_manifest()
        if not is_made_of(manifest, content):
            raise changed_error(manifest.content, content, self.url, is_complete=True)
        there = self._prefix.list()
        for name, entry in manifest.files.items():
            size = there[name].size_bytes if name in there else -1
            if size != entry.size_bytes:
                raise size_error("an object of the complete output", size, entry.size_bytes, f"{self.url}/{name}")
        with contextlib.suppress(StorageError):
            # A run that was killed after the manifest did not do it; who may only read cannot.
            self._prefix.tidy(manifest.files)
        self.drop()
        return manifest

    def _is_begun(self) -> bool:
        """Return whether anything here would be lost."""
        return is_begun(self._output) or (self._output / MANIFEST_NAME).exists()

    def drop(self) -> None:
        """Remove what was staged: the prefix has it."""
        with contextlib.suppress(OSError):
            self._output.remove_tree()
        with contextlib.suppress(OSError):
            (self.root / "upload.json").unlink()


class ShardUploader:
    """The files of one staged output. Implements `protocols.Observer`, but raises what goes wrong with the sending."""

    def __init__(self, directory: TreePath, sender: Callable[[], Uploader]) -> None:
        """sender: made when it is needed first."""
        self.while_made = False
        """Whether files are sent before all of them are complete."""
        self._directory = directory
        self._make_sender = sender
        self._journal = JournalFollower(state_of(directory) / "journal")
        self._n_segments = 0
        self._spans: dict[str, list[Span]] = {}
        self._pending: dict[str, Future[ObjectInfo]] = {}
        self._lock = threading.Lock()
        """Commits are told in the thread that makes them."""

    def on_event(self, event: AnyEvent) -> None:
        """Send what is complete; take away what has arrived."""
        if not self.while_made:
            return
        with self._lock:
            if isinstance(event, (Started, Committed)):
                commits, is_new = self._journal.read()
                if is_new:
                    self._spans, self._n_segments = {}, 0
                self._take(commits)
            self._settle()

    def finish(self, manifest: Manifest, tick: Callable[[], None], tick_s: float) -> dict[str, ObjectInfo]:
        """Send the rest of a complete output; return what the store says of all of it. tick: called every `tick_s` seconds."""
        files = outgoing(self._directory, manifest)
        for file in files:
            if not is_sent(self._directory, file.name) and file.name not in self._pending:
                self._pending[file.name] = self._make_sender().send(file)
        # Those that are sent now stay here until the manifest is there: there is room for them.
        left = set(self._pending.values())
        while left:
            done, left = wait(left, timeout=tick_s, return_when=FIRST_EXCEPTION)
            for each in done:
                each.result()
            tick()
        arrived = {name: each.result() for name, each in self._pending.items()}
        return {file.name: arrived.get(file.name) or self._marked(file.name) for file in files}

    def sent(self) -> dict[str, ObjectInfo]:
        """Return what was sent and taken away, by an earlier attempt too."""
        with storage_errors(self._directory):
            names = sent_names(self._directory)
        return {name: self._marked(name) for name in names}

    def _take(self, commits: Iterable[Commit]) -> None:
        """Begin to send the files that are complete with these commits."""
        for commit in commits:
            self._n_segments += not commit.joins
            iter_spans([commit.segment], self._spans, self._n_segments - 1)
            for name, entry in commit.segment.completed.items():
                spans = tuple(with_header(self._spans.pop(name, ()), entry))
                if not is_sent(self._directory, name) and name not in self._pending:
                    self._pending[name] = self._make_sender().send(self._file(name, entry, spans))

    def _file(self, name: str, entry: FileEntry, spans: tuple[Span, ...]) -> FileToSend:
        paths = growing_path(self._directory, name), self._directory / name
        return FileToSend(name=name, paths=paths, entry=entry, spans=spans)

    def _settle(self) -> None:
        """Mark and take away what has arrived. Raises what went wrong."""
        for name, each in list(self._pending.items()):
            if each.done():
                self._mark(each.result())
                del self._pending[name]

    def _mark(self, stored: ObjectInfo) -> None:
        mark = sent_mark(self._directory, stored.name)
        with storage_errors(mark):
            durable.replace_file(mark, msgspec.json.encode(stored))
            for path in (growing_path(self._directory, stored.name), self._directory / stored.name):
                path.unlink(missing_ok=True)

    def _marked(self, name: str) -> ObjectInfo:
        mark = sent_mark(self._directory, name)
        try:
            with storage_errors(mark):
                return msgspec.json.decode(read_state(mark), type=ObjectInfo)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise DamageError(
                "what was noted of a file that was sent is not readable",
                where=str(mark),
                allowed="JSON as tokmill writes it",
                next_step="run the same command with --fresh to make it again",
            ) from None
