"""Parts of an output at a prefix of an object store: machines that make parts share nothing but the store.

Whoever comes first puts the plan, only where there is none yet. Each part is an output with a manifest of its own, made in a staged
directory like any other. Joining parts copies objects inside the store; the manifest comes last, then the parts are removed. Two
machines that do it at once make the same objects and one manifest.

A part may be made on two machines. The slower one may complete its part after the parts were joined and removed. So it looks
for the manifest of the whole once its own is there, and then removes its part again.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from tokmill.core.errors import DamageError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, PARTS_NAME, PLAN_NAME, SKIPPED_NAME, decode_manifest
from tokmill.core.spans import spans_of
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.output.journal import decode_header, encode_header
from tokmill.output.parts import PartsStore, files_of_whole, n_parts, part_directory, part_url, parts_url, without_history
from tokmill.output.place import output_of, stage_of
from tokmill.output.prefix import Prefix, give_up, is_ours, reading_errors
from tokmill.output.state_dir import acquire_lock, growing_path, release_lock
from tokmill.store import AlreadyExists, Copier, CopyTask, FileToSend, Uploader, UploadState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tokmill.core.config import Content
    from tokmill.core.manifest import Manifest
    from tokmill.core.progress import ProgressReporter
    from tokmill.core.system.tree import TreePath
    from tokmill.output.journal import Header
    from tokmill.store import ObjectInfo

A = TypeVar("A")
T = TypeVar("T")

_BELOW = f"{PARTS_NAME}/"
_AT_ONCE = 8
"""Objects that are fetched or removed at a time: each waits for an answer."""
_BLOCK_BYTES = 1 << 20


def part_name(index: int, name: str) -> str:
    """Return the name of the object `name` of a part, below the prefix of the whole."""
    return f"{_BELOW}{index:05}/{name}"


class RemoteParts(PartsStore):
    """Parts at a prefix. What it asks of the store, it asks again for some minutes, then raises StorageError."""

    is_shared = True

    def __init__(self, url: str, stage: str | None = None) -> None:
        """Ask nothing yet.

        stage: directory for what is needed here while parts are joined; None: the usual one. Raises UsageError for a store
        that cannot take an output.
        """
        self._prefix = Prefix(url)
        self.where = self._prefix.url
        self._root = stage_of(parts_url(url), stage)
        self.scratch = output_of(self._root)
        self._give_up = give_up(self.where)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of this machine's directory for these parts, which is empty then. Raises LockedError, StorageError."""
        lock = acquire_lock(self._root)
        try:
            self._clear_scratch()
            yield
        finally:
            self._clear_scratch()
            release_lock(self._root, lock)
            with contextlib.suppress(OSError):
                self._root.rmdir()

    def _clear_scratch(self) -> None:
        with contextlib.suppress(OSError):
            self.scratch.remove_tree()
        with contextlib.suppress(OSError):
            (self._root / "finalize.json").unlink()

    def read_plan(self) -> Header | None:
        """Return what is being made in parts here; None where nothing is. Raises DamageError, UsageError, StorageError."""
        data = self._prefix.whole(PLAN_NAME)
        return None if data is None else decode_header(data, f"{self.where}/{PLAN_NAME}", self._give_up)

    def write_plan(self, plan: Header, *, replace: bool) -> None:
        """Put the plan; where there is one already, it stays unless `replace`. Raises StorageError."""
        if replace:
            self._remove_copies()
        with contextlib.suppress(AlreadyExists):
            self._prefix.ask(lambda: self._prefix.store.put(PLAN_NAME, encode_header(plan), only_new=not replace))

    def complete(self, *, pending: bool = False) -> Manifest | None:  # noqa: ARG002  an object is there or not
        """Return the manifest of the whole, if there is one. Raises DamageError, UsageError, StorageError."""
        return self._prefix.manifest()

    def part_output(self, index: int) -> str:
        """Return the URL of a part's output."""
        return part_url(self.where, index)

    def missing_parts(self, content: Content) -> dict[int, bool]:
        """Return the parts without a manifest, and whether each was begun."""
        there = self._objects()
        begun = {name.removeprefix(_BELOW).partition("/")[0] for name in there}
        return {i: f"{i:05}" in begun for i in range(n_parts(content)) if part_name(i, MANIFEST_NAME) not in there}

    def is_busy(self, index: int) -> bool:  # noqa: ARG002  a store cannot say
        """Return False: nothing at a prefix says whether a run is alive."""
        return False

    def read_manifests(self, count: int) -> list[Manifest]:
        """Read the manifests of all parts, several at a time. Raises DamageError, StorageError."""
        there = self._objects()

        def read(index: int) -> Manifest:
            name = part_name(index, MANIFEST_NAME)
            return without_history(decode_manifest(b"".join(self._blocks(there, index, MANIFEST_NAME)), f"{self.where}/{name}"))

        return _at_once(read, range(count))

    def skipped_files(self, indexes: Sequence[int]) -> dict[int, TreePath]:
        """Fetch the lists of skipped records of these parts, several at a time. Raises DamageError, StorageError."""
        if not indexes:
            return {}
        there = self._objects()

        def fetch(index: int) -> TreePath:
            path = part_directory(self.scratch, index) / SKIPPED_NAME
            with storage_errors(path):
                durable.make_directory(path.parent)
                with open(durable.create(path), "wb") as file:
                    file.writelines(self._blocks(there, index, SKIPPED_NAME))
            return path

        return dict(zip(indexes, _at_once(fetch, indexes), strict=True))

    def _blocks(self, there: Mapping[str, ObjectInfo], index: int, name: str) -> Iterator[bytes]:
        """Yield the bytes of an object of a part. Raises DamageError where it is missing."""
        found = there.get(part_name(index, name))
        if found is None:
            raise DamageError(
                "a file of a part is missing",
                where=f"{self.part_output(index)}/{name}",
                allowed="every file that the part's manifest lists",
                next_step=f"make part {index} again with --fresh, then run tokmill finalize again",
            )
        with reading_errors(), contextlib.closing(self._prefix.stream(found)) as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block

    def publish(self, parts: Sequence[Manifest], manifest: Manifest, reporter: ProgressReporter) -> Manifest:
        """Copy all files inside the store, send the list of skipped records, put the manifest. Raises what these raise."""
        sent = self._copy(parts, manifest.fingerprint, reporter)
        if SKIPPED_NAME in manifest.files:
            sent[SKIPPED_NAME] = self._send_skipped(manifest)
        return self._prefix.commit(manifest, sent)

    def _copy(self, parts: Sequence[Manifest], fingerprint: str, reporter: ProgressReporter) -> dict[str, ObjectInfo]:
        """Give the files of all parts their names; return what the store says of them."""
        tasks = [
            CopyTask(source=part_name(i, name), name=name, size_bytes=entry.size_bytes, run=part.fingerprint, part=i)
            for i, part in enumerate(parts)
            for name, entry in files_of_whole(part).items()
        ]
        with Copier(self._prefix.store, fingerprint) as copier:
            copies = [(task, copier.copy(task)) for task in tasks]
            sent, n_bytes = {}, 0
            for task, copy in copies:
                sent[task.name] = copy.result()
                n_bytes += task.size_bytes
                reporter.progress(n_bytes)
            return sent

    def _send_skipped(self, manifest: Manifest) -> ObjectInfo:
        """Send the list of skipped records, which is made here: its records have the numbers of the whole."""
        file = FileToSend(
            name=SKIPPED_NAME,
            paths=(growing_path(self.scratch, SKIPPED_NAME),),
            entry=manifest.files[SKIPPED_NAME],
            spans=tuple(spans_of(manifest)[SKIPPED_NAME]),
        )
        state = UploadState(self._root / "finalize.json", self.where)
        with Uploader(self._prefix.store, manifest.fingerprint, state, on_bytes=lambda _: None) as uploader:
            return uploader.send(file).result()

    def remove_parts(self, fingerprint: str | None) -> None:  # noqa: ARG002  the local store's
        """Remove the parts, unfinished uploads, and then the plan. Raises StorageError."""
        self._remove(_BELOW)
        self._prefix.delete([PLAN_NAME])

    def tidy(self, fingerprint: str) -> None:
        """Remove what late parts left. Raises StorageError."""
        self.remove_parts(fingerprint)

    def discard(self) -> None:
        """Remove parts that were not joined. Raises UsageError where the whole is complete, StorageError."""
        if self._prefix.head(MANIFEST_NAME) is not None:
            raise self.complete_error()
        if self._prefix.head(PLAN_NAME) is not None:
            self._remove_copies()
            self.remove_parts(None)

    def leave(self, index: int, fingerprint: str) -> Manifest | None:
        """Return the manifest of the whole if others completed it, and remove the part."""
        complete = self.complete()
        if complete is None or complete.fingerprint != fingerprint:
            return None
        self._remove(part_name(index, ""))
        return complete

    def _enter(self, whole: Content, *, is_new: bool) -> None:
        self._prefix.refuse_inputs(whole.inputs)
        if is_new:
            self._prefix.refuse_foreign(whole.fingerprint())

    def _objects(self) -> dict[str, ObjectInfo]:
        """All objects of parts, by name."""
        return {name: found for name, found in self._prefix.list().items() if name.startswith(_BELOW)}

    def _remove_copies(self) -> None:
        """Remove what an interrupted finalize has copied of the parts of this plan."""
        try:
            plan = self.read_plan()
        except (DamageError, UsageError):
            # Nothing says which those are; the next run meets them and says so.
            return
        for name in [name for name in self._prefix.list() if _is_of_whole(name)]:
            found = self._prefix.head(name)
            if found is not None and plan is not None and found.mark.partition(" ")[0] == plan.fingerprint:
                self._delete([name])

    def _remove(self, prefix: str) -> None:
        """Remove every object below, manifests first, and unfinished uploads, those to names of the whole too."""
        for name, upload in self._prefix.ask(self._prefix.store.list_multipart):
            if name.startswith(prefix) or (prefix == _BELOW and _is_of_whole(name)):
                self._prefix.ask(lambda name=name, upload=upload: self._prefix.store.abort_multipart(name, upload))  # type: ignore[misc]
        names = [name for name in self._prefix.list() if name.startswith(prefix)]
        manifests = [name for name in names if name.endswith(f"/{MANIFEST_NAME}")]
        self._delete(manifests)
        self._delete(set(names) - set(manifests))

    def _delete(self, names: Iterable[str]) -> None:
        _at_once(lambda name: self._prefix.delete([name]), names)


def _at_once(function: Callable[[A], T], items: Iterable[A]) -> list[T]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, items))


def _is_of_whole(name: str) -> bool:
    return is_ours(name) or name == SKIPPED_NAME
