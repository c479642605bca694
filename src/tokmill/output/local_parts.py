"""Parts of an output in a directory: a machine's own, or one that several machines mount.

Joining parts copies nothing: their files have their final names already and are renamed into the output directory.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tokmill.core.errors import DamageError, LockedError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, SKIPPED_NAME, encode_manifest, load_manifest
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.output.directory import give_name, publish_files
from tokmill.output.journal import encode_header, read_header
from tokmill.output.parts import PartsStore, files_of_whole, n_parts, part_directory
from tokmill.output.state_dir import (
    acquire_lock,
    growing_path,
    is_begun,
    parts_of,
    plan_of,
    refuse_strangers,
    release_lock,
    size_error,
    size_of,
    state_of,
)
from tokmill.output.superseded import pending_manifest, remove_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tokmill.core.config import Content
    from tokmill.core.manifest import Manifest
    from tokmill.core.progress import ProgressReporter
    from tokmill.core.system.durable import DirectoryLock
    from tokmill.output.journal import Header


class DirectoryParts(PartsStore):
    """Parts in a directory. The lock of the directory keeps others out while they are joined."""

    is_shared = False

    def __init__(self, directory: Path) -> None:
        self.directory = self.scratch = directory
        self.where = str(directory)
        self._lock: DirectoryLock | None = None
        self._give_up = f"give up all parts: remove {state_of(directory)}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the output directory. Raises LockedError, StorageError."""
        lock = self._lock = acquire_lock(self.directory)
        try:
            yield
        finally:
            self._lock = None
            release_lock(self.directory, lock)

    def read_plan(self) -> Header | None:
        """Return what is being made in parts here; None where nothing is. Raises DamageError, UsageError, StorageError."""
        with storage_errors(plan_of(self.directory)):
            return read_header(plan_of(self.directory))

    def write_plan(self, plan: Header, *, replace: bool) -> None:
        """Write the plan, durably; where there is one already, it stays unless `replace`. Raises StorageError."""
        path = plan_of(self.directory)
        with storage_errors(path):
            durable.make_directory(path.parent)
            written = path.with_name(f"plan.{os.uname().nodename}.{os.getpid()}.new")
            durable.write_file(written, encode_header(plan))
            (durable.replace if replace else durable.publish_new)(written, path)
            durable.sync_directory(path.parent)

    def complete(self, *, pending: bool = False) -> Manifest | None:
        """Return the manifest of the whole, if there is one. Raises DamageError, UsageError, StorageError."""
        with storage_errors(self.directory):
            if (self.directory / MANIFEST_NAME).exists():
                return load_manifest(self.directory)
        return pending_manifest(self.directory) if pending else None

    def part_output(self, index: int) -> str:
        """Return the output directory of a part."""
        return str(part_directory(self.directory, index))

    def missing_parts(self, content: Content) -> dict[int, bool]:
        """Return the parts without a manifest, and whether each was begun."""
        paths = {i: part_directory(self.directory, i) for i in range(n_parts(content))}
        return {i: path.exists() for i, path in paths.items() if not (path / MANIFEST_NAME).exists()}

    def is_busy(self, index: int) -> bool:
        """Whether somebody holds the lock of the part now."""
        part = part_directory(self.directory, index)
        if not state_of(part).is_dir():
            return False
        try:
            release_lock(part, acquire_lock(part))
        except LockedError:
            return True
        return False

    def read_manifests(self, count: int) -> list[Manifest]:
        """Read the manifests of all parts. Raises DamageError, StorageError."""
        manifests = []
        for part in (part_directory(self.directory, i) for i in range(count)):
            if part.is_symlink():
                raise DamageError(
                    "a part of the output is a symbolic link",
                    where=str(part),
                    allowed="a directory that tokenize --part made",
                    next_step="put the directory in its place",
                )
            with storage_errors(part):
                manifests.append(load_manifest(part))
        return manifests

    def skipped_files(self, indexes: Sequence[int]) -> dict[int, Path]:
        """Return the parts' own files."""
        return {i: part_directory(self.directory, i) / SKIPPED_NAME for i in indexes}

    def publish(self, parts: Sequence[Manifest], manifest: Manifest, reporter: ProgressReporter) -> Manifest:
        """Rename all files into place, the manifest last. Raises StorageError, DamageError, LockedError."""
        written = growing_path(self.directory, MANIFEST_NAME)
        with storage_errors(self.directory):
            durable.write_file(written, encode_manifest(manifest))
            try:
                # A run of a part that begins from now on sees the written manifest and ends.
                self._refuse_busy()
            except LockedError:
                written.unlink()
                raise
        owners = {name: index for index, part in enumerate(parts) for name in files_of_whole(part)}
        n_bytes = 0

        def move(directory: Path, name: str, size_bytes: int) -> None:
            nonlocal n_bytes
            if name not in owners:
                give_name(directory, name, size_bytes)
                return
            self._move(owners[name], name, size_bytes)
            n_bytes += size_bytes
            reporter.progress(n_bytes)

        publish_files(self.directory, manifest, move)
        return manifest

    def _move(self, index: int, name: str, size_bytes: int) -> None:
        """Give a part's file its place, unless it is there already."""
        source, target = part_directory(self.directory, index) / name, self.directory / name
        with storage_errors(source):
            found = source if os.path.lexists(source) else target
            size = size_of(found)
            if size != size_bytes:
                again = f"make part {index} again with --fresh, then run tokmill finalize again"
                raise size_error("a file of a part", size, size_bytes, str(source), again)
            if found is source:
                durable.replace(source, target)

    def remove_parts(self, fingerprint: str | None) -> None:
        """Remove the parts and the plan; of a whole that is complete, also the state directory. Raises StorageError."""
        parts = parts_of(self.directory)
        with storage_errors(parts):
            if parts.is_dir() and not parts.is_symlink():
                shutil.rmtree(parts)
            for scratch in state_of(self.directory).glob("plan.*.new"):
                scratch.unlink(missing_ok=True)
            plan_of(self.directory).unlink(missing_ok=True)
            durable.sync_directory(state_of(self.directory))
        if fingerprint is not None and self._lock is not None:
            remove_state(self.directory, self._lock)

    def tidy(self, fingerprint: str) -> None:
        """Remove what a part left that was begun while the whole was completed. Raises LockedError, StorageError."""
        if parts_of(self.directory).exists():
            with self.lock():
                self._refuse_busy()
                self.remove_parts(fingerprint)

    def discard(self) -> None:
        """Remove parts that were not joined. Raises UsageError where the whole is complete, LockedError, StorageError."""
        if (self.directory / MANIFEST_NAME).exists():
            raise self.complete_error()
        self._refuse_busy()
        self.remove_parts(None)

    def leave(self, index: int, fingerprint: str) -> Manifest | None:  # noqa: ARG002  `finalize` removes what a late part left
        """Return the manifest of the whole if it is complete or is being published."""
        complete = self.complete(pending=True)
        return complete if complete is not None and complete.fingerprint == fingerprint else None

    def _enter(self, whole: Content, *, is_new: bool) -> None:  # noqa: ARG002  a store's
        if is_new and is_begun(self.directory):
            raise UsageError(
                "a run that is not in parts was begun in this directory",
                where=str(state_of(self.directory)),
                allowed="a new or empty directory, or one in which these parts are made",
                next_step="run that tokmill tokenize command again, without --part, or choose another --out",
            )
        if is_new and self.directory.is_dir():
            with storage_errors(self.directory):
                refuse_strangers(self.directory)

    def _refuse_busy(self) -> None:
        """Raise LockedError while somebody makes a part, also one that was complete and is made again."""
        parts = parts_of(self.directory)
        with storage_errors(parts):
            found = sorted(parts.iterdir()) if parts.is_dir() else []
        for part in found:
            if state_of(part).is_dir():
                release_lock(part, acquire_lock(part))
