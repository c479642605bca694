"""The directory `.tokmill` inside an output: what is not complete yet, and the lock of whoever works on it.

It holds `journal` (of a run that is to be resumed), `NAME.part` for every file to come, `history` (how it went so far), `lock`, and
while an append takes the names of an output's files, those files (`kept.py`). Trainers do not look there.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from tokmill import durable
from tokmill.durable import DirectoryLock, reading_errors
from tokmill.errors import DamageError

if TYPE_CHECKING:
    from pathlib import Path

STATE_NAME = ".tokmill"


def state_of(directory: Path) -> Path:
    """The state directory of an output directory."""
    return directory / STATE_NAME


def part_of(directory: Path, name: str) -> Path:
    """Where the file `name` of an output is made before it has its name; of one in a subdirectory too."""
    return state_of(directory) / f"{flat_name(name)}.part"


def flat_name(name: str) -> str:
    """The name of a file of an output where there are no subdirectories."""
    return name.replace("/", "%")


def history_of(directory: Path) -> Path:
    """Where a run notes how it went so far."""
    return state_of(directory) / "history"


def hold(directory: Path) -> DirectoryLock:
    """Take the lock of an output directory. Raises LockedError, StorageError; DamageError for a link instead of a directory."""
    state = state_of(directory)
    if state.is_symlink():
        raise DamageError(
            "the state of the run is a symbolic link",
            where=str(state),
            allowed="a directory of its own",
            next_step="remove it, or choose another --out",
        )
    return DirectoryLock(state / "lock")


def is_begun(directory: Path) -> bool:
    """Whether a run left something here that the next one goes on with. Raises StorageError."""
    return (state_of(directory) / "journal").exists() and bool(part_files(directory))


def let_go(directory: Path, lock: DirectoryLock) -> None:
    """Give the lock back, and the state directory where nothing is left in it."""
    lock.release(remove=True)
    # Not empty: a run to be resumed, or another that began the moment the lock was free. And a disk that cannot be written
    # has been the error already, which this one must not hide.
    with contextlib.suppress(OSError):
        state_of(directory).rmdir()


def part_files(directory: Path) -> list[Path]:
    """The parts of a run that is not complete. Raises StorageError."""
    state = state_of(directory)
    with reading_errors(state):
        names = durable.uninterrupted(lambda: os.listdir(state)) if state.is_dir() else []
    return [state / name for name in names if name.endswith(".part")]
