"""Where an output is made: in the named directory, or, for an object store, in one of our own from which it is sent.

The staged directory is an output like any other, with its journal, so that a run is resumed exactly; it is found again by the URL.
Shards are sent as they become complete and are then taken away, so the disk need hold a few of them only; the run waits where the
store is slower than it. A side that is one file is sent when it is complete: an object cannot be appended to.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import xxhash

from tokmill.core.errors import DamageError, StorageError, TokmillError
from tokmill.core.events import Progress, Started
from tokmill.core.manifest import MANIFEST_NAME, load_manifest
from tokmill.core.outcome import already_finished
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Counts, is_url
from tokmill.core.system.durable import storage_errors
from tokmill.output.config_diff import changed_error, is_made_of, is_only_more_lenient
from tokmill.output.state_dir import acquire_lock, is_begun, is_sent, release_lock, size_error
from tokmill.store import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.config import Job
    from tokmill.core.events import Finished
    from tokmill.core.manifest import Manifest
    from tokmill.core.protocols import Observer
    from tokmill.output.prefix import Prefix
    from tokmill.store import ObjectInfo, Uploader

_TICK_S = 0.2
_SHOWN = 60
"""Characters of a URL in the name of a directory; what tells it from others follows."""


def stage_of(url: str, stage: str | None) -> Path:
    """The directory, one for each URL, in which an output for a store is made. stage: in which directory; None: the usual one."""
    name = redacted(url).rstrip("/")
    shown = re.sub(r"[^A-Za-z0-9.]+", "-", name.partition("://")[2])[-_SHOWN:].strip("-.")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokmill" / "stage"
    return Path(stage or usual).absolute() / f"{shown}-{xxhash.xxh3_64_hexdigest(name.encode())}"


def output_of(root: Path) -> Path:
    """The output directory inside a staged one."""
    return root / "output"


def is_complete_at(job: Job, url: str) -> bool:
    """Whether the output of a job is complete at a prefix. Raises UsageError, StorageError."""
    from tokmill.output.prefix import Prefix

    try:
        manifest = Prefix(url).manifest()
    except DamageError:
        # The run itself says it better.
        return False
    return manifest is not None and manifest.fingerprint == job.content.fingerprint()


def destination(out: str, stage: str | None) -> Here | Staged:
    """The place of an output: a directory, or a URL. stage: for a URL; it may come from the environment of every run.

    Raises UsageError, LockedError, StorageError.
    """
    return Staged(out, stage) if is_url(out) else Here(out)


class Here:
    """An output in a directory of this machine."""

    def __init__(self, out: str, url: str = "") -> None:
        """url: of an output in a store of which others send all files."""
        self.directory = out
        self.url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    @property
    def observers(self) -> Sequence[Observer]:
        """Nobody else."""
        return ()

    def begin(self, job: Job) -> Finished | None:  # noqa: ARG002  the other place's
        """The run itself looks whether it is complete."""
        return None

    def loosened(self, job: Job) -> Job:
        """Return the job as it is."""
        return job

    def drop(self) -> None:
        """Remove nothing: the output is where it belongs."""

    def publish(self, finished: Finished, observers: Sequence[Observer]) -> Finished:  # noqa: ARG002  the contract's
        """The run itself has done so."""
        return finished


class Staged:
    """An output that is made here and sent to a store. As a context, it holds the staged directory."""

    def __init__(self, url: str, stage: str | None) -> None:
        """Raises UsageError for a store that cannot be used, LockedError, StorageError."""
        from tokmill.output.prefix import Prefix
        from tokmill.output.shard_uploader import ShardUploader
        from tokmill.store import UploadState

        self._prefix: Prefix = Prefix(url)
        self.url = self._prefix.url
        self.root = stage_of(url, stage)
        self._output = output_of(self.root)
        self.directory = str(self._output)
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
        if error is not None and not self._is_begun():
            if isinstance(error, TokmillError):
                error.resumes = False
            if not isinstance(error, StorageError):
                self.drop()
        release_lock(self.root, self._lock)
        # Not empty: what the next attempt goes on with.
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def begin(self, job: Job) -> Finished | None:
        """Make the prefix ready for a job; return what came of it if its output is complete there.

        Raises ChangedError for a complete output, or one begun, of other inputs or settings; LockedError, UsageError, DamageError,
        StorageError.
        """
        self._prefix.refuse_inputs(job.content.inputs)
        content, fingerprint = job.content, job.content.fingerprint()
        before = self._state.notes.content
        is_mine = before is not None and before.fingerprint() == fingerprint
        there = self._prefix.head(MANIFEST_NAME)
        if job.fresh:
            self._state.change(is_fresh=True, replaces=(there and there.version) or "", retired=())
        elif not is_mine and not self._is_begun():
            self._state.change(is_fresh=False, replaces="", retired=())
        if there is not None and there.version != self._state.notes.replaces:
            return self._complete(job)
        if before is not None and not is_mine and not job.fresh and self._is_begun():
            raise changed_error(before, content, self.url)
        self._prefix.refuse_parts()
        if not job.fresh and not is_mine:
            self._prefix.refuse_foreign(fingerprint)
        self._run = fingerprint
        self._state.change(content=content)
        if not job.fresh:
            self._check_sent()
        self._shipment.while_made = bool(job.resources.stage_bytes)
        return None

    def loosened(self, job: Job) -> Job:
        """The job of a part; one that a stricter run began here begins again: what was sent bears that run's name."""
        before, content = self._state.notes.content, job.content
        if before is None or before.fingerprint() == content.fingerprint() or not is_only_more_lenient(before, content):
            return job
        return job if self._prefix.head(MANIFEST_NAME) is not None else msgspec.structs.replace(job, fresh=True)

    @property
    def observers(self) -> Sequence[Observer]:
        """Who has to be told of the run's events."""
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
        """Who sends. Made when the first file is to be sent: from then on what stood there before is gone."""
        from tokmill.store import Uploader

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
        """Raises DamageError when what was sent and taken away here is no longer there."""
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

    def _complete(self, job: Job) -> Finished:
        """What came of the run whose output is complete at the prefix. Raises ChangedError, DamageError."""
        manifest = self._prefix.complete_manifest()
        if not is_made_of(manifest, job.content):
            raise changed_error(manifest.content, job.content, self.url, is_complete=True)
        there = self._prefix.list()
        for name, entry in manifest.files.items():
            size = there[name].size_bytes if name in there else -1
            if size != entry.size_bytes:
                raise size_error("an object of the complete output", size, entry.size_bytes, f"{self.url}/{name}")
        with contextlib.suppress(StorageError):
            # A run that was killed after the manifest did not do it; who may only read cannot.
            self._prefix.tidy(manifest.files)
        self.drop()
        return already_finished(manifest)

    def _is_begun(self) -> bool:
        """Whether anything here would be lost."""
        return is_begun(self._output) or (self._output / MANIFEST_NAME).exists()

    def drop(self) -> None:
        """Take away what was staged: the prefix has it."""
        shutil.rmtree(self._output, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.root / "upload.json").unlink()
