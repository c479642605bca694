"""Ids that tasks write where they belong in the files of an output, while one process lets the writer of the format say where.

That process gives the writer arrays that stand for the ids and are never looked at. What the writer says is a stretch of them, a
file and a place in it; the task that has the ids writes it there and returns its digest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tokmill.core.errors import DamageError, UsageError
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.core.text import counted
from tokmill.derive.spread.tasks import gone_error
from tokmill.output import growing_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from tokmill.core.system.tree import Directory
    from tokmill.output import GrowingFile


class Stretch:
    """Bytes that a task writes. Implements `WrittenPiece`."""

    def __init__(self, begin: int, name: str, offset: int, n_bytes: int) -> None:
        """begin: among all that the task has. name: of the file. offset: there."""
        self.begin = begin
        self.name = name
        self.offset = offset
        self.n_bytes = n_bytes
        self.digest = b""


class Placed:
    """Takes note of which stretch of what a task has goes where. Implements `Elsewhere`."""

    def __init__(self, send: Callable[[dict[int, list[Stretch]]], None], dtype: np.dtype[Any]) -> None:
        """send: has stretches written, by number of the task, and sets their digests. dtype: of ids."""
        self._send = send
        self._number = -1
        self._address = self._n_bytes = self._at = 0
        self._waiting: dict[int, list[Stretch]] = {}
        self._virtual = np.empty(0, dtype)

    def begin(self, number: int, n_ids: int) -> Any:
        """Return an array that stands for the ids of a task; what is appended next to the output is of these, in order.

        It is never looked at, so that it takes no memory.
        """
        if len(self._virtual) < n_ids:
            self._virtual = np.empty(n_ids, self._virtual.dtype)
        ids = self._virtual[:n_ids]
        self._number, self._at = number, 0
        self._address, self._n_bytes = ids.ctypes.data, ids.nbytes
        return ids

    def check(self, format_name: str, where: str) -> None:
        """Raise UsageError unless all ids of the task have their place."""
        if self._at != self._n_bytes:
            raise UsageError(
                f"files of the format {format_name} cannot be written by several machines",
                where=where,
                allowed="--ray with another --format",
                next_step="leave --ray out",
            )
        self._number, self._address, self._n_bytes = -1, 0, 0

    def takes(self, view: memoryview) -> bool:
        """See Elsewhere."""
        if not len(view) or self._number < 0:
            return False
        return 0 <= np.frombuffer(view, np.uint8).ctypes.data - self._address < self._n_bytes

    def write(self, file: GrowingFile, view: memoryview, offset: int) -> Stretch:
        """See Elsewhere."""
        stretch = Stretch(self._at, Path(str(file.path)).name, offset, len(view))
        self._at += len(view)
        self._waiting.setdefault(self._number, []).append(stretch)
        return stretch

    def wait(self) -> None:
        """See Elsewhere."""
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self._send(waiting)

    def close_file(self, file: GrowingFile) -> None:
        """See Elsewhere: nothing is held for a file."""


class StretchWriter:
    """Writes the stretches of one task: it is given all that the task has, in order. A context: leaving it closes the files."""

    def __init__(self, directory: Directory, places: Sequence[tuple[int, str, int, int]]) -> None:
        """directory: in which the output is made. places: of stretches, in order: begin, name of the file, offset there, bytes."""
        self._directory = directory
        self._left = list(places)
        self._at = 0
        self._hash = xxhash.xxh3_128()
        self._files: dict[str, int] = {}
        self.digests: list[str] = []
        """Of the stretches that are written, hex."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._files.values():
            os.close(fd)

    @property
    def is_done(self) -> bool:
        """Whether all stretches are written."""
        return not self._left

    def write(self, view: memoryview) -> None:
        """Write the next bytes that the task has. Raises StorageError, DiskFullError, LockedError."""
        begin, self._at = self._at, self._at + len(view)
        while self._left:
            first, name, offset, n_bytes = self._left[0]
            a, b = max(first, begin), min(first + n_bytes, self._at)
            if a >= b:
                return
            part = view[a - begin : b - begin]
            self._hash.update(part)
            with storage_errors(self._directory):
                durable.write_all_at(self._file(name), part, offset + a - first)
            if b < first + n_bytes:
                return
            self.digests.append(self._hash.hexdigest())
            self._hash = xxhash.xxh3_128()
            del self._left[0]

    def finish(self, what: str) -> None:
        """Make all of it durable. what: the task had, for the error. Raises DamageError where that was too little."""
        if self._left:
            raise DamageError(
                f"work in progress is damaged: {what} ends at byte {self._at:,}",
                where=str(self._directory),
                allowed=f"{counted(self._left[-1][0] + self._left[-1][3], 'byte')}",
                next_step="run the same command again with --fresh",
            )
        for fd in self._files.values():
            durable.sync_file(fd)

    def _file(self, name: str) -> int:
        if name not in self._files:
            try:
                self._files[name] = (growing_path(self._directory, "x").parent / name).open(os.O_RDWR)
            except FileNotFoundError as error:
                raise gone_error(str(self._directory)) from error
        return self._files[name]
