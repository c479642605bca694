"""The state directory `.tokmill` inside an output: what is not complete yet, and the lock of the run that works on it.

It holds `journal`, `NAME.part` for every growing file, `history` (the attempts so far), `lock`, and, while an append takes the
names of an output's files, those files (`output/superseded.py`). Trainers do not look there.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from tokmill.core.deduplication import REMOVED_NAME
from tokmill.core.errors import DamageError, TokmillError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, PARTS_NAME, PLAN_NAME, SKIPPED_NAME, STATE_NAME
from tokmill.core.output_spec import NAMED, SIDES
from tokmill.core.system import durable
from tokmill.core.system.durable import DirectoryLock, reading_errors, storage_errors
from tokmill.core.system.tree import tree_of
from tokmill.core.text import counted
from tokmill.formats import is_read_by_trainer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokmill.core.system.tree import Directory, TreePath

_SENT_NAME = ".tokmill.sent"
"""Directory of a staged output with a mark for each file that was sent to a store and is no longer here."""
_OF_A_SIDE = re.compile(rf"(train|val)(_\d+)?\.(bin|idx)|{NAMED}")
"""Files of ids beside the manifest; other formats write into a directory for each side."""
_DEEPEST = 2
"""Directories between an output and its files at most, its own included."""


def state_of(directory: Directory) -> TreePath:
    """Return the state directory of an output directory."""
    return tree_of(directory) / STATE_NAME


def growing_path(directory: Directory, name: str) -> TreePath:
    """Return where the file `name` of an output grows before it gets its name."""
    return state_of(directory) / f"{flat_name(name)}.part"


def flat_name(name: str) -> str:
    """Return the name of a file of an output without a subdirectory."""
    return name.replace("/", "%")


def plan_of(directory: Directory) -> TreePath:
    """Return where an output that is made in parts has its plan."""
    return tree_of(directory) / PLAN_NAME


def parts_of(directory: Directory) -> TreePath:
    """Return where an output that is made in parts has the output directories of its parts."""
    return tree_of(directory) / PARTS_NAME


def parts_error(place: str, where: str, give_up: str) -> UsageError:
    """Return the error for a place where an output is being made in parts. give_up: how to do so."""
    return UsageError(
        f"an output is being made in parts {place}",
        where=where,
        allowed="the commands that make its parts, and tokmill finalize when all are there",
        next_step=f"go on with those, choose another --out, or {give_up}",
    )


def history_of(directory: Directory) -> TreePath:
    """Return where a run keeps its history."""
    return state_of(directory) / "history"


def acquire_lock(directory: Directory) -> DirectoryLock:
    """Take the lock of an output directory. Raises LockedError, StorageError; LinkError if the state directory is a link."""
    return DirectoryLock(state_of(directory) / "lock")


def size_of(path: TreePath) -> int:
    """Return the bytes of a regular file; -1 where there is none, or a link. Raises OSError."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def waiting_bytes(directory: Directory, names: Iterable[str]) -> int:
    """Return the bytes of complete files of a staged output that were not sent yet. names: of the complete ones."""
    return sum(max(0, size_of(growing_path(directory, name))) for name in names)


_ANEW = "run the same command with --fresh to start over"


def check_size(path: TreePath, size_bytes: int, what: str, next_step: str = _ANEW) -> None:
    """Raise DamageError for a file that is missing or has another size. what: names the file."""
    size = size_of(path)
    if size != size_bytes:
        raise size_error(what, size, size_bytes, str(path), next_step)


def size_error(what: str, size: int, wanted: int, where: str, next_step: str = _ANEW) -> DamageError:
    """Return the error for a file of `size` bytes, or (-1) a missing one, that should have `wanted`. what: names the file."""
    return DamageError(
        f"{what} is missing" if size < 0 else f"{what} has {counted(size, 'byte')}",
        where=where,
        allowed=f"{counted(wanted, 'byte')}, as its manifest says",
        next_step=next_step,
    )


def is_begun(directory: Directory) -> bool:
    """Return whether a run left something here that the next one resumes from. Raises StorageError."""
    return (state_of(directory) / "journal").exists() and (bool(growing_files(directory)) or _marks_of(directory).is_dir())


def _marks_of(directory: Directory) -> TreePath:
    return tree_of(directory) / _SENT_NAME


def sent_mark(directory: Directory, name: str) -> TreePath:
    """Return the mark of a complete file of a staged output that was sent; it holds what the store says of the object."""
    return _marks_of(directory) / f"{flat_name(name)}.json"


def sent_names(directory: Directory) -> list[str]:
    """Return the names of the complete files of a staged output that were sent and removed here. Raises OSError."""
    marks = _marks_of(directory)
    found = marks.names() if marks.exists() else []
    return [name.removesuffix(".json").replace("%", "/") for name in found if not name.endswith(".new")]


def is_sent(directory: Directory, name: str) -> bool:
    """Return whether a complete file of a staged output was sent to the store and removed here."""
    return sent_mark(directory, name).exists()


def discard_sent(directory: Directory) -> None:
    """Remove the marks of sent files, before all of them are made again. Raises OSError."""
    marks = _marks_of(directory)
    if marks.exists():
        marks.remove_tree()
        durable.sync_directory(marks.parent)


def release_lock(directory: Directory, lock: DirectoryLock) -> None:
    """Release the lock, and remove the state directory if it is empty."""
    lock.release(remove=True)
    # It is not empty if a run can be resumed or another one has just begun. And an error of the disk must not hide the one before.
    with contextlib.suppress(OSError):
        state_of(directory).rmdir()


def missing_directories(directory: Directory) -> list[TreePath]:
    """Return the directories that are not there yet of a path, the deepest first."""
    found, path = [], tree_of(directory)
    while not path.exists():
        found.append(path)
        path = path.parent
    return found


def remove_empty(directories: Iterable[TreePath]) -> None:
    """Remove the directories that were made for an output of which nothing is left."""
    for each in directories:
        with contextlib.suppress(OSError):
            each.rmdir()


def left_behind(directory: Directory) -> list[str]:
    """Return what to say of a state directory that could not be removed (EBUSY), and is not that of a run that has just begun."""
    state = state_of(directory)
    if not state.is_dir() or (state / "journal").exists():
        return []
    return [f"{state} could not be removed; the output is complete without it: remove it, or see what holds it open"]


def growing_files(directory: Directory) -> list[TreePath]:
    """Return the growing files of a run. Raises StorageError."""
    state = state_of(directory)
    with reading_errors(state):
        names = state.names() if state.exists() else []
    return [state / name for name in names if name.endswith(".part")]


def remove_growing(directory: Directory, kinds: Iterable[str]) -> None:
    """Remove growing files, of one kind after the other, for good. kinds: how their names begin. Raises StorageError."""
    state = state_of(directory)
    for kind in kinds:
        found = [path for path in growing_files(directory) if path.name.startswith(kind)]
        with storage_errors(state):
            for path in found:
                path.unlink(missing_ok=True)
            if found:
                durable.sync_directory(state)


def remove_scratch(directory: Directory) -> None:
    """Remove what the work on an output took beside its files, which have their names, all but the manifest.

    Beside a complete output it would look like a run to be resumed.
    """
    for path in growing_files(directory):
        if path != growing_path(directory, MANIFEST_NAME):
            with contextlib.suppress(OSError, TokmillError):
                path.unlink(missing_ok=True)


def refuse_linked_sides(directory: Directory) -> None:
    """Raise LinkError where a directory of files of one side is a link, before work is done that could not be published."""
    for side in SIDES:
        (tree_of(directory) / side).refuse_link()


def refuse_strangers(directory: Directory, format_name: str) -> None:
    """Raise UsageError for files in a directory without a manifest that publishing may overwrite or a trainer may read.

    Others stay where they are: nanoGPT keeps its input and its scripts beside the files of ids.
    """
    tree = tree_of(directory)
    if (tree / MANIFEST_NAME).exists():
        return
    inside = [f"{side}/{name}" for side in SIDES if (tree / side).is_dir() for name in (tree / side).names()]
    for name in sorted([*tree.names(), *inside]):
        is_file = name in SIDES and not (tree / name).is_dir()
        if name in {SKIPPED_NAME, REMOVED_NAME} or is_file or is_read_by_trainer(format_name, name):
            raise UsageError(
                "there is a file here that the trainer may read, and no tokmill manifest lists it",
                where=str(tree / name),
                allowed="a new or empty directory, one that tokmill made, or one whose files no trainer reads",
                next_step="choose another --out, or move the file away"
                + (", or pass --fresh to overwrite it" if name.startswith(SIDES) else ""),
            )


def why_protected(path: str | os.PathLike[str], outputs: Iterable[Path] = (), inputs: Iterable[str] = ()) -> str | None:
    """Return what a path is that must not be written to, in words; None if it is neither of an output nor an input.

    Args:
        path: Links are followed.
        outputs: Directories that are, or will be, outputs; so is a directory above the path that looks like one.
        inputs: Files, as `open` takes them.
    """
    real = Path(os.path.realpath(path))
    above = [p for p in list(real.parents)[:_DEEPEST] if (p / MANIFEST_NAME).exists() or (p / STATE_NAME).is_dir()]
    if STATE_NAME in real.parts or any(_is_of_output(real, each) for each in [*above, *outputs]):
        return "a part of an output of tokmill"
    return "an input" if any(_is_same(real, each) for each in inputs) else None


def _is_of_output(real: Path, output: Path) -> bool:
    try:
        parts = real.relative_to(os.path.realpath(output)).parts
    except ValueError:
        return False
    first = parts[0] if parts else ""
    if len(parts) > 1:
        return first in {"train", "val"}
    return first in {MANIFEST_NAME, SKIPPED_NAME, REMOVED_NAME, ""} or _OF_A_SIDE.fullmatch(first) is not None


def _is_same(real: Path, path: str) -> bool:
    try:
        return os.path.samefile(real, path)
    except (OSError, ValueError):
        return False
