"""`finalize` at a prefix of an object store: the parts of an output, made one by one, become that output where they are.

The manifests of the parts, and their lists of what was skipped, are fetched; what follows from them is what follows on a disk
(`run/parts/finalize.py`). Files get their final names by copies inside the store; the manifest comes last, then the parts go. So a
`finalize` that was killed anywhere is simply run again, and two at once make the same objects and one manifest.
"""

from __future__ import annotations

import shutil
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tokmill.core.errors import ChangedError, DamageError, TokmillError
from tokmill.core.manifest import MANIFEST_NAME, SKIPPED_NAME
from tokmill.core.outcome import outcome_of
from tokmill.core.progress import ProgressReporter
from tokmill.core.spans import spans_of
from tokmill.core.system.durable import storage_errors
from tokmill.output import (
    Claim,
    RemoteParts,
    acquire_lock,
    changed_parts_error,
    growing_path,
    incomplete,
    missing_parts,
    n_parts,
    output_of,
    part_directory,
    part_name,
    part_url,
    parts_url,
    reading_errors,
    release_lock,
    skipped_lists,
    stage_of,
)
from tokmill.run.parts.finalize import Assembly, check_in_parts, check_skipped, encode_whole, load_parts, moved
from tokmill.store import Copier, CopyTask, FileToSend, Uploader, UploadState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from tokmill.core.config import Content
    from tokmill.core.manifest import Manifest
    from tokmill.core.outcome import Outcome
    from tokmill.core.protocols import Observer
    from tokmill.output import Header
    from tokmill.store import ObjectInfo

_FETCHED_AT_ONCE = 8
_TICK_S = 0.2
_BLOCK_BYTES = 1 << 20


def finalize_at(url: str, *, stage: str | None = None, observers: Sequence[Observer] = ()) -> Outcome:
    """Put together the parts that `tokenize(..., part="I/N")` made at a prefix; again to go on.

    stage: directory in which manifests and lists of the parts are kept meanwhile; None: the usual one. Raises TokmillError:
    UsageError where parts are missing, naming them; LockedError while somebody on this machine does the same.
    """
    remote, reporter = RemoteParts(url), ProgressReporter(observers)
    plan = remote.plan()
    if plan is None:
        manifest = check_in_parts(remote.prefix.manifest(), remote.url)
        remote.remove_parts(manifest.fingerprint)
        return _outcome(remote, manifest, reporter, already_complete=True)
    root = stage_of(parts_url(url), stage)
    lock = acquire_lock(root)
    try:
        manifest = finalize_remote(remote, plan, root, reporter)
    finally:
        release_lock(root, lock)
        with suppress(OSError):
            root.rmdir()
    return _outcome(remote, manifest, reporter, already_complete=False)


def finalize_remote(
    remote: RemoteParts, plan: Header, root: Path, reporter: ProgressReporter, max_skipped: int | None = None
) -> Manifest:
    """Put the parts together; the lock of the staged directory `root` is held.

    max_skipped: bad records that all parts together may have left out. Raises TokmillError.
    """
    manifest = remote.prefix.manifest()
    if manifest is not None and manifest.fingerprint != plan.fingerprint:
        raise changed_parts_error(
            manifest.content, plan.content, remote.url, or_else="remove one of the two first", is_complete=True
        )
    if manifest is None:
        remote.check_claim(plan.fingerprint)
        try:
            with _scratch(root, remote.url) as scratch:
                manifest = _Joining(remote, plan.content, root, scratch, reporter).join(max_skipped)
        except TokmillError:
            # Another one may have been faster, and its parts are gone.
            manifest = remote.complete(plan.fingerprint)
            if manifest is None:
                raise
    remote.remove_parts(plan.fingerprint)
    return manifest


class _Joining:
    """The parts of one output on their way to be one."""

    def __init__(self, remote: RemoteParts, content: Content, root: Path, scratch: Path, reporter: ProgressReporter) -> None:
        self._remote = remote
        self._content = content
        self._fingerprint = content.fingerprint()
        self._root = root
        self._scratch = scratch
        self._reporter = reporter

    def join(self, max_skipped: int | None) -> Manifest:
        """Copy, and put the manifest. Raises TokmillError."""
        there = self._remote.parts()
        missing, begun = missing_parts(there, self._content)
        if missing:
            raise incomplete(self._remote.url, self._content, missing, begun)
        self._fetch(there, MANIFEST_NAME, range(n_parts(self._content)))
        parts = load_parts(self._scratch, self._content)
        check_skipped(parts, max_skipped, skipped_lists("", self._remote.url))
        self._fetch(there, SKIPPED_NAME, [i for i, part in enumerate(parts) if SKIPPED_NAME in part.files])
        manifest = Assembly(self._scratch, self._content).assemble(parts)
        encode_whole(manifest, self._remote.url)
        sent = self._copy(parts)
        if SKIPPED_NAME in manifest.files:
            sent[SKIPPED_NAME] = self._send_skipped(manifest)
        return self._remote.prefix.commit(manifest, sent, Claim(fingerprint=self._fingerprint, owner=""))

    def _fetch(self, there: Mapping[str, ObjectInfo], name: str, indexes: Sequence[int]) -> None:
        """Bring an object of each of these parts here."""
        with ThreadPoolExecutor(_FETCHED_AT_ONCE, "fetch") as pool:
            for _ in pool.map(lambda index: self._fetch_one(there, index, name), indexes):
                pass

    def _fetch_one(self, there: Mapping[str, ObjectInfo], index: int, name: str) -> None:
        stored = there.get(part_name(index, name))
        path = part_directory(self._scratch, index) / name
        if stored is None:
            raise DamageError(
                "a file of a part is missing",
                where=str(path),
                allowed="every file that the part's manifest lists",
                next_step=f"make part {index} again with --fresh, then run tokmill finalize again",
            )
        stream = self._remote.prefix.stream(stored)
        try:
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file, reading_errors():
                    while data := stream.read(_BLOCK_BYTES):
                        file.write(data)
        finally:
            stream.close()

    def _copy(self, parts: Sequence[Manifest]) -> dict[str, ObjectInfo]:
        """Give the files of all parts their names; what the store says of them."""
        moves = [
            CopyTask(source=part_name(i, name), name=name, size_bytes=entry.size_bytes, run=part.fingerprint, part=i)
            for i, part in enumerate(parts)
            for name, entry in moved(part).items()
        ]
        self._reporter.started(sum(move.size_bytes for move in moves), 0)
        with Copier(self._remote.prefix.store, self._fingerprint) as copier:
            copies = {copier.copy(move): move for move in moves}
            self._wait(copies)
            return {move.name: copy.result() for copy, move in copies.items()}

    def _wait(self, copies: Mapping[Future[ObjectInfo], CopyTask]) -> None:
        left, n_bytes = set(copies), 0
        while left:
            done, left = wait(left, timeout=_TICK_S, return_when=FIRST_EXCEPTION)
            for copy in done:
                copy.result()
                n_bytes += copies[copy].size_bytes
            self._reporter.progress(n_bytes)

    def _send_skipped(self, manifest: Manifest) -> ObjectInfo:
        """The list of what was skipped is made here: records are numbered anew."""
        file = FileToSend(
            name=SKIPPED_NAME,
            paths=(growing_path(self._scratch, SKIPPED_NAME),),
            entry=manifest.files[SKIPPED_NAME],
            spans=tuple(spans_of(manifest)[SKIPPED_NAME]),
        )
        ledger = UploadState(self._root / "finalize.json", self._remote.url)
        with Uploader(self._remote.prefix.store, self._fingerprint, ledger, on_bytes=lambda _: None) as sender:
            return sender.send(file).result()


@contextmanager
def _scratch(root: Path, url: str) -> Iterator[Path]:
    """An empty directory that is laid out as the prefix is; an error that names something in it names the object instead."""
    scratch = output_of(root)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with storage_errors(scratch):
            scratch.mkdir(parents=True)
        yield scratch
    except (DamageError, ChangedError) as error:
        error.where = error.where and error.where.replace(str(scratch), url)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):
            (root / "finalize.json").unlink()


def _outcome(remote: RemoteParts, manifest: Manifest, reporter: ProgressReporter, *, already_complete: bool) -> Outcome:
    sources = [part_url(remote.url, i) for i in range(n_parts(manifest.content))]
    return outcome_of(manifest, remote.url, sources, reporter.elapsed_s, already_complete=already_complete)
