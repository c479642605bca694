"""What the tasks of one deduplication leave each other: the records of `scratch.py`, in a file for each task and pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokmill.core.bounded import Natural
from tokmill.core.system.durable import storage_errors
from tokmill.derive.buckets import save_state
from tokmill.derive.deduplication.scratch import Scratch, State, StoredRecords, state_path
from tokmill.derive.spread.run_files import Extents, RunFile
from tokmill.output import growing_path

if TYPE_CHECKING:
    import numpy as np

    from tokmill.core.system.tree import Directory, TreePath
    from tokmill.derive.spread.run_files import RunWriter


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one pass, one for each task."""

    name: str
    n_files: Natural
    kinds: tuple[str, ...]
    """Of the records in them."""
    n_buckets: Natural
    """Of the kind that has most."""
    identity: str
    """Of all that decides what is in them, hex."""

    def file_name(self, number: int) -> str:
        """Return the name of a file."""
        return f"task{self.name}_{number:06}"

    def path(self, directory: Directory, number: int) -> TreePath:
        """Return where a file lies."""
        return growing_path(directory, self.file_name(number))

    def opened(self, path: TreePath) -> RunFile:
        """Open one of them. Raises StorageError, DamageError."""
        return RunFile(path, bytes.fromhex(self.identity), len(self.kinds), self.n_buckets)


class SharedState(State, kw_only=True):
    """What is done, as of a commit, by tasks."""

    is_spread: bool = True
    portion_tokens: Natural = 0
    """Of a portion, at least."""
    n_buckets: dict[str, Natural] = msgspec.field(default_factory=dict)
    """By the kind of records, as they were first decided."""
    files: dict[str, list[Files]] = msgspec.field(default_factory=dict)
    """By the kind of records: in which files they are."""


class SharedRecords(StoredRecords):
    """The records of one kind in the files of all tasks; what is appended goes to that of this task."""

    def __init__(
        self,
        directory: Directory,
        kind: str,
        dtype: np.dtype[Any],
        state: SharedState,
        writer: RunWriter | None,
        only: int | None = None,
    ) -> None:
        """state: says in which files they are. writer: None: nothing is appended. only: number of the one file that is read."""
        super().__init__(dtype, state.n_buckets[kind])
        self._directory = directory
        self._kind = kind
        self._state = state
        self._writer = writer
        self._only = only
        self._held: tuple[int, list[Extents]] = (-1, [])
        """A bucket, and where its records are."""

    def append(self, bucket: int, data: bytes) -> None:
        """See StoredRecords."""
        assert self._writer is not None
        self._writer.put(self._kind, bucket, data)

    def flush(self) -> None:
        """See StoredRecords: what one task appends, others read."""

    def n_bytes(self, bucket: int) -> int:
        """See StoredRecords."""
        return sum(each.n_bytes for each in self._extents(bucket))

    def _read(self, bucket: int, offset: int, view: memoryview) -> None:
        for extents in self._extents(bucket):
            n = max(0, min(len(view), extents.n_bytes - offset))
            if n:
                extents.read_into(offset, view[:n])
                view = view[n:]
            offset = max(0, offset - extents.n_bytes)

    def _extents(self, bucket: int) -> list[Extents]:
        """Return where the records of a bucket are, of each pass that wrote some."""
        if self._held[0] != bucket:
            self._held = (bucket, [self._extents_in(files, bucket) for files in self._state.files.get(self._kind, [])])
        return self._held[1]

    def _extents_in(self, files: Files, bucket: int) -> Extents:
        at, stretches = files.kinds.index(self._kind), []
        for number in range(files.n_files) if self._only is None else [self._only]:
            path = files.path(self._directory, number)
            with files.opened(path) as file:
                for entries in file.entries(bucket, bucket + 1):
                    begin, n_bytes = entries[0, at].tolist()
                    if n_bytes:
                        stretches.append((path, begin, n_bytes))
        return Extents(stretches, files.opened)


class SharedScratch(Scratch):
    """All records of one deduplication that is done in tasks, and its state."""

    def __init__(self, directory: Directory, state: SharedState, writer: RunWriter | None = None) -> None:
        """writer: of the task that works here; None: it asks for tasks."""
        self.directory = directory
        self.state: SharedState = state
        self._writer = writer
        self._unneeded: list[TreePath] = []

    def records(self, kind: str, dtype: np.dtype[Any], n_buckets: int) -> StoredRecords:
        """See Scratch."""
        self.state.n_buckets.setdefault(kind, n_buckets)
        return SharedRecords(self.directory, kind, dtype, self.state, self._writer)

    def records_in(self, kind: str, dtype: np.dtype[Any], number: int) -> StoredRecords:
        """Return the records of a kind that one task has written. number: of its file."""
        return SharedRecords(self.directory, kind, dtype, self.state, self._writer, number)

    def drop(self, kind: str) -> None:
        """See Scratch. A task drops nothing: others may need it."""
        if self._writer is not None:
            return
        for files in self.state.files.pop(kind, []):
            if not any(files in others for others in self.state.files.values()):
                self.drop_paths([files.path(self.directory, number) for number in range(files.n_files)])

    def drop_paths(self, paths: list[TreePath]) -> None:
        """Remove files with the next commit."""
        self._unneeded += paths

    def commit(self) -> None:
        """See Scratch."""
        if self._writer is not None:
            return
        save_state(state_path(self.directory), self.state)
        for path in self._unneeded:
            with storage_errors(path):
                path.unlink(missing_ok=True)
        self._unneeded = []
