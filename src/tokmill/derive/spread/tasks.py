"""Tasks on several machines, which share the directory in which an output is made, and what every one of them must know."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec
import xxhash

from tokmill.core.bounded import Natural
from tokmill.core.errors import DamageError, LockedError, UsageError
from tokmill.core.manifest import read_state
from tokmill.core.records import is_url
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.core.system.tree import tree_of
from tokmill.derive.loading import load_source
from tokmill.output import growing_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokmill.core.system.tree import Directory
    from tokmill.derive.source import Source

TASKS_A_SLOT = 4
"""Portions, and buckets, for each task that can run at a time, where there is so much: so all end at about the same time."""
_WORK_NAME = "work"


class Tasks(Protocol):
    """Does tasks on several machines."""

    def n_slots(self, budget_bytes: int) -> int:
        """Return how many tasks with so much memory can run at a time. Raises UsageError where none can."""

    def do(
        self, function: str, questions: Iterable[tuple[int, bytes]], collect: Callable[[int, bytes], None], *, budget_bytes: int
    ) -> None:
        """Return when every question is answered. A task whose machine dies is done again.

        Args:
            function: `module:name` of a function from question to answer, bytes both.
            questions: Each with a number, taken one by one as there is room.
            collect: Given number and answer, in any order.
            budget_bytes: Memory of a task.

        Raises what a task raises, TokmillError.
        """


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What one task is to do, as far as all kinds of tasks say it."""

    directory: str
    """In which the output is made."""
    work: str
    """Digest of the work, hex."""
    number: Natural
    """Of the portion, or the bucket."""


Q = TypeVar("Q", bound=Question)
W = TypeVar("W", bound=msgspec.Struct)


def save_work(directory: Directory, work: msgspec.Struct) -> str:
    """Write what the tasks of an output must know into a file of its state directory. Returns its digest. Raises StorageError."""
    data = msgspec.json.encode(work)
    with storage_errors(directory):
        durable.replace_file(growing_path(directory, _WORK_NAME), data)
    return xxhash.xxh3_128_hexdigest(data)


def understood(data: bytes, question_kind: type[Q], work_kind: type[W]) -> tuple[Q, W, Directory]:
    """Return a question, what it is about, and the directory.

    Raises UsageError where the directory is not shared, LockedError for the work of a run that was replaced.
    """
    question = msgspec.json.decode(data, type=question_kind)
    directory = tree_of(Path(question.directory))
    found = b""
    with suppress(OSError, DamageError):
        found = read_state(growing_path(directory, _WORK_NAME))
    if not found:
        raise UsageError(
            f"the node {socket.gethostname()} does not see the directory in which the output is made",
            where=question.directory,
            allowed="a directory that all nodes of the cluster share: of an s3:// output, --stage",
            next_step="choose another --out (or --stage), or leave --ray out",
        )
    if xxhash.xxh3_128_hexdigest(found) != question.work:
        raise gone_error(question.directory)
    return question, msgspec.json.decode(found, type=work_kind), directory


def gone_error(where: str) -> LockedError:
    """Return the error of a task whose files another run has replaced."""
    return LockedError(
        "another run has taken the place of the one that asked for this task",
        where=where,
        allowed="one run at a time",
        next_step="wait for it to end",
    )


def load_same(place: str, checksum: str) -> Source:
    """Return the source that the process had that asked: the one with this manifest. Raises UsageError, DamageError."""
    source = load_source(place if is_url(place) else Path(place))
    if source.manifest.checksum != checksum:
        raise UsageError(
            "a source was replaced while it was read",
            where=place,
            allowed="an output that stays as it is, at one path on all nodes",
            next_step="run the same command again",
        )
    return source
