"""An output that is made in parts: the plan that all of them follow, and the contract of the place where they lie.

The plan (`.tokmill/plan`) holds settings, inputs with size and time, and the number of parts. Whoever comes first writes it. A run
with another plan gets an error, unless the two differ only in that the new one lets bad records pass: then it replaces the old one.
Each part is an output of its own, `.tokmill/parts/NNNNN/`, with its own journal and manifest, so it is made, resumed and published
exactly as a whole output is. `DirectoryParts` keeps parts in a directory, which several machines may mount. Joining them copies
nothing: their files have their final names already and are renamed. `remote_parts.py` keeps parts in an object store.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.errors import LockedError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, PARTS_NAME, SKIPPED_NAME, encode_manifest, load_manifest
from tokmill.core.partition import Part, inputs_of_parts
from tokmill.core.system import durable
from tokmill.core.system.durable import reading_errors, storage_errors
from tokmill.core.system.tree import tree_of
from tokmill.core.text import counted, quoted, shortened
from tokmill.formats import FORMATS
from tokmill.output.config_diff import changed_error, is_made_of, is_only_more_lenient
from tokmill.output.directory import give_name, publish_files
from tokmill.output.journal import Header, encode_header, read_header
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
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from tokmill.core.config import Content
    from tokmill.core.errors import ChangedError
    from tokmill.core.manifest import Manifest
    from tokmill.core.progress import ProgressReporter
    from tokmill.core.records import FileEntry
    from tokmill.core.system.durable import DirectoryLock
    from tokmill.core.system.tree import Directory, TreePath

_MOST_NAMED = 5


def in_parts(content: Content, count: int) -> Content:
    """Return the settings of an output in `count` parts. Raises UsageError where that cannot be."""
    if FORMATS[content.format].lists_files:
        raise UsageError(
            f"the format {content.format} cannot be made in parts: it has one index for all files of a side",
            option="--format",
            allowed=", ".join(name for name, spec in FORMATS.items() if not spec.lists_files),
            next_step=f"make it with --format raw, then: tokmill convert DIR --format {content.format} --out OTHER",
        )
    if content.offsets:
        raise UsageError(
            "the offsets of a part begin at 0, and so would those of every other",
            option="--offsets",
            allowed="an output of one run",
            next_step="leave it out; then, of the finished output: tokmill reshard DIR --offsets --out OTHER",
        )
    if content.shards and content.shards.drop_tail:
        raise UsageError(
            "every part has a last shard of its own, which --drop-tail would leave out",
            option="--drop-tail",
            allowed="parts with all of their shards",
            next_step="leave it out; tokmill reshard makes shards of one size of the finished output",
        )
    inputs_of_parts(content.inputs, content.separator, count)
    return msgspec.structs.replace(content, n_parts=count)


def part_content(whole: Content, index: int) -> Content:
    """Return the settings of one part of an output that is made in parts, with the inputs it has a share in."""
    return next(islice(part_contents(whole), index, None))


def part_contents(whole: Content) -> Iterator[Content]:
    """Yield the settings of all parts, in order. Raises UsageError for inputs that cannot be divided."""
    count, plan = n_parts(whole), whole.fingerprint()
    for index, share in enumerate(inputs_of_parts(whole.inputs, whole.separator, count)):
        part = Part(index=index, count=count, plan=plan, begin=share.begin, end=share.end)
        yield msgspec.structs.replace(whole, inputs=whole.inputs[share.first : share.stop], n_parts=msgspec.UNSET, part=part)


def n_parts(content: Content) -> int:
    """Return the number of parts of an output: 1 where it is made in one run."""
    return content.n_parts if isinstance(content.n_parts, int) else 1


def part_directory(directory: Directory, index: int) -> TreePath:
    """Return the output directory of a part."""
    return parts_of(directory) / f"{index:05}"


def parts_url(url: str) -> str:
    """Return the URL below which the parts of an output in a store are."""
    return f"{url.rstrip('/')}/{PARTS_NAME}"


def part_url(url: str, index: int) -> str:
    """Return the URL of a part, which is an output of its own."""
    return f"{parts_url(url)}/{index:05}"


def skipped_lists(out: str, url: str = "") -> str:
    """Return the pattern of the files that list the records which parts left out: in a directory, or at a URL."""
    return f"{parts_url(url)}/*/{SKIPPED_NAME}" if url else str(parts_of(Path(out)) / "*" / SKIPPED_NAME)


def without_history(part: Manifest) -> Manifest:
    """Return the manifest of a part without what the whole does not need, and is the most of it in memory."""
    return msgspec.structs.replace(part, history=msgspec.UNSET)


def files_of_whole(part: Manifest) -> dict[str, FileEntry]:
    """Return the files of a part that the whole has, too: all but the list of skipped records, which is made again."""
    return {name: entry for name, entry in part.files.items() if name != SKIPPED_NAME}


class PartsStore(ABC):
    """The place of an output that is made in parts. What asks a disk or a store raises StorageError where that fails."""

    where: str
    """Directory or URL of the whole output."""
    scratch: TreePath
    """Directory whose `.tokmill` holds what grows here while the parts are joined."""
    is_shared: bool
    """Whether others can join the parts at the same time, with no lock between them."""
    _give_up: str
    """How to give up all parts, for messages."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock for making all parts or joining them. Raises LockedError."""

    @abstractmethod
    def read_plan(self) -> Header | None:
        """Return what is being made in parts here; None where nothing is. Raises DamageError, UsageError."""

    @abstractmethod
    def write_plan(self, plan: Header, *, replace: bool) -> None:
        """Write the plan. replace: take the place of one that is there, and forget what was joined by it."""

    @abstractmethod
    def complete(self, *, pending: bool = False) -> Manifest | None:
        """Return the manifest of the whole where it is complete. pending: also where it is just being published."""

    @abstractmethod
    def part_output(self, index: int) -> str:
        """Return the directory or URL of a part's output."""

    @abstractmethod
    def missing_parts(self, content: Content) -> dict[int, bool]:
        """Return the numbers of the parts that are not complete, and whether each was begun. content: of the whole."""

    @abstractmethod
    def is_busy(self, index: int) -> bool:
        """Whether somebody surely works on the part now."""

    @abstractmethod
    def read_manifests(self, count: int) -> list[Manifest]:
        """Read the manifests of all parts, which are complete. Raises DamageError."""

    @abstractmethod
    def skipped_files(self, indexes: Sequence[int]) -> dict[int, TreePath]:
        """Return local files with the lists of skipped records of these parts, by number. Raises DamageError for a missing one."""

    @abstractmethod
    def publish(self, parts: Sequence[Manifest], manifest: Manifest, reporter: ProgressReporter) -> Manifest:
        """Give all files of the parts their final names, then put the manifest. Can be done again after a crash.

        Returns the manifest that stands there then. Raises DamageError, LockedError.
        """

    @abstractmethod
    def remove_parts(self, fingerprint: str | None) -> None:
        """Remove the parts, and then the plan; can be done again after a crash.

        fingerprint: of the whole, which is complete; None: it is not, and all of it is given up.
        """

    @abstractmethod
    def tidy(self, fingerprint: str) -> None:
        """Remove what parts left that were begun while the whole was completed. fingerprint: of the whole. Raises LockedError."""

    @abstractmethod
    def discard(self) -> None:
        """Remove parts that were not joined, to begin again. Raises UsageError where the whole is complete, LockedError."""

    @abstractmethod
    def leave(self, index: int, fingerprint: str) -> Manifest | None:
        """Return the manifest of the whole if others completed it while part `index` was made, and remove that part."""

    @abstractmethod
    def _enter(self, whole: Content, *, is_new: bool) -> None:
        """Make sure that nothing else is made here. Raises UsageError for files that tokmill did not make, LockedError."""

    def agree(self, whole: Content, version: str, on_new: Callable[[], None] = lambda: None) -> Manifest | None:
        """Agree with all others that make parts of the same output.

        Args:
            whole: settings of the whole.
            version: of tokmill, for the plan.
            on_new: called before the first run writes the plan.

        Returns:
            The manifest of the whole where it is complete, or is being published.

        Raises:
            ChangedError: something else is made or stands here.
            UsageError: tokmill did not make what is here.
            LockedError: a run in one piece is writing here.
        """
        complete = self.complete(pending=True)
        if complete is not None:
            if complete.fingerprint != whole.fingerprint():
                raise self.changed_error(complete.content, whole, "remove it first", is_complete=True)
            return complete
        is_new = self._is_new(whole, version)
        self._enter(whole, is_new=is_new)
        if is_new:
            on_new()
            self.write_plan(Header.of(whole, version), replace=False)
            self._is_new(whole, version)
        return None

    def load_parts(self, content: Content) -> list[Manifest]:
        """Return the manifests of all parts. content: of the whole. Raises UsageError where some are missing, ChangedError."""
        missing = self.missing_parts(content)
        if missing:
            raise self._missing_error(content, missing)
        manifests = self.read_manifests(n_parts(content))
        for index, (manifest, wanted) in enumerate(zip(manifests, part_contents(content), strict=True)):
            if not is_made_of(manifest, wanted):
                again = f"make part {index} again with --fresh"
                raise self.changed_error(manifest.content, wanted, again, index=index, is_complete=True)
        return manifests

    def _missing_error(self, content: Content, missing: Mapping[int, bool]) -> UsageError:
        count, n_missing, named = n_parts(content), len(missing), list(missing)[:_MOST_NAMED]
        busy = {i for i in named if missing[i] and self.is_busy(i)}
        words = [f"{i} (being made)" if i in busy else f"{i} (begun)" if missing[i] else str(i) for i in named]
        words = shortened(words, _MOST_NAMED, n_missing)
        commands = [f"tokmill tokenize INPUT... --part {i}/{count} --out {quoted(self.where)}" for i in named if i not in busy]
        steps = ["with the inputs and options of the others:", *commands] if commands else ["wait for those that are being made"]
        return UsageError(
            f"{counted(n_missing, 'part')} of {count:,} {'is' if n_missing == 1 else 'are'} missing: {', '.join(words)}",
            where=self.where,
            allowed=f"all parts, from 0 to {count - 1:,}, complete",
            next_step="\n".join(steps),
        )

    def complete_error(self) -> UsageError:
        """Return the error for --fresh where nothing is to be made."""
        return UsageError(
            "the output is complete, and parts do not replace a complete output",
            where=self.where,
            allowed="--fresh where an output is being made",
            next_step="choose another --out, or remove it first",
        )

    def changed_error(
        self, before: Content, now: Content, or_else: str, *, index: int | None = None, is_complete: bool = False
    ) -> ChangedError:
        """Return the error that names what differs between two plans, or a plan and a complete output: the whole, or a part.

        or_else: the way out; --fresh would start only one part over.
        """
        where = self.where if index is None else self.part_output(index)
        error = changed_error(before, now, where if self.is_shared else Path(where), is_complete=is_complete)
        error.next_step = f"restore what changed, choose another --out, or {or_else}"
        return error

    def _is_new(self, whole: Content, version: str) -> bool:
        """Whether there is no plan yet. Raises ChangedError for another one that cannot be replaced."""
        plan = self.read_plan()
        if plan is not None and plan.fingerprint != whole.fingerprint() and is_only_more_lenient(plan.content, whole):
            self.write_plan(Header.of(whole, version), replace=True)
            plan = self.read_plan()
        if plan is not None and plan.fingerprint != whole.fingerprint():
            raise self.changed_error(plan.content, whole, self._give_up)
        return plan is None


class DirectoryParts(PartsStore):
    """Parts in a directory. The lock of the directory keeps others out while they are joined."""

    is_shared = False

    def __init__(self, directory: Path) -> None:
        self.directory = self.scratch = tree_of(directory)
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
        with reading_errors(plan_of(self.directory)):
            return read_header(plan_of(self.directory), self._give_up)

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
        parts = parts_of(self.directory)
        with storage_errors(self.directory):
            # Looked at one by one, thousands that nobody began would take seconds.
            begun = set(parts.names() if parts.exists() else ())
            found = {i: part_directory(self.directory, i) for i in range(n_parts(content))}
            return {
                i: path.name in begun for i, path in found.items() if path.name not in begun or not (path / MANIFEST_NAME).exists()
            }

    def is_busy(self, index: int) -> bool:
        """Whether somebody holds the lock of the part now."""
        part = part_directory(self.directory, index)
        if not state_of(part).exists():
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
            with storage_errors(part):
                manifests.append(without_history(load_manifest(part)))
        return manifests

    def skipped_files(self, indexes: Sequence[int]) -> dict[int, TreePath]:
        """Return the parts' own files."""
        return {i: part_directory(self.directory, i) / SKIPPED_NAME for i in indexes}

    def publish(self, parts: Sequence[Manifest], manifest: Manifest, reporter: ProgressReporter) -> Manifest:
        """Rename all files into place, the manifest last. Raises StorageError, DamageError, LockedError."""
        written = growing_path(self.directory, MANIFEST_NAME)
        if self._lock is not None:
            self._lock.check()
        with storage_errors(self.directory):
            durable.write_file(written, encode_manifest(manifest, self.where))
            try:
                # A run of a part that begins from now on sees the written manifest and ends.
                self._refuse_busy()
            except LockedError:
                written.unlink()
                raise
        owners = {name: index for index, part in enumerate(parts) for name in files_of_whole(part)}
        n_bytes = 0

        def move(directory: TreePath, name: str, size_bytes: int) -> None:
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
            found = source if source.exists() else target
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
            state = state_of(self.directory)
            parts.remove_tree()
            for name in state.names():
                if name.startswith("plan.") and name.endswith(".new"):
                    (state / name).unlink(missing_ok=True)
            plan_of(self.directory).unlink(missing_ok=True)
            durable.sync_directory(state)
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

    def _enter(self, whole: Content, *, is_new: bool) -> None:
        if is_new and is_begun(self.directory):
            raise UsageError(
                "a run that is not in parts was begun in this directory",
                where=str(state_of(self.directory)),
                allowed="a new or empty directory, or one in which these parts are made",
                next_step="run that tokmill tokenize command again, without --part, or choose another --out",
            )
        if is_new and self.directory.is_dir():
            with storage_errors(self.directory):
                refuse_strangers(self.directory, whole.format)

    def _refuse_busy(self) -> None:
        """Raise LockedError while somebody makes a part, also one that was complete and is made again."""
        parts = parts_of(self.directory)
        with storage_errors(parts):
            found = [parts / name for name in sorted(parts.names() if parts.exists() else ())]
        for part in found:
            if part.is_dir() and state_of(part).exists():
                release_lock(part, acquire_lock(part))
