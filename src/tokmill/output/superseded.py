"""The files of a complete output while an append takes their names: they stay readable until the new manifest is in place.

Several files cannot be replaced at once. So before the first one is, every file gets a second name, `.tokmill/old-CHECKSUM/NAME`,
after the checksum of its manifest; second names stay until another manifest is in place. A reader of the old manifest finds its
files under one name or the other. A reader that opened a file under its own name and then finds the second name has to open it
again; one that then finds another manifest has to begin again. To discard the append, the files get their own names back.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tokmill.core.errors import ChangedError, DamageError, LinkError, TokmillError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, Manifest, decode_manifest, load_manifest, read_state
from tokmill.core.system import durable
from tokmill.core.system.durable import reading_errors, storage_errors
from tokmill.core.system.tree import beside, tree_of
from tokmill.output.state_dir import (
    acquire_lock,
    flat_name,
    growing_files,
    growing_path,
    history_of,
    is_begun,
    release_lock,
    state_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokmill.core.system.durable import DirectoryLock
    from tokmill.core.system.tree import Directory, TreePath

T = TypeVar("T")

_PREFIX = "old-"
_ATTEMPTS = 20
"""Appends that may be completed while an output is read; with more, something else is wrong."""


def superseded_directory(directory: Directory, manifest: Manifest) -> TreePath:
    """Return the directory of the second names of the files of this manifest."""
    return state_of(directory) / f"{_PREFIX}{manifest.checksum[:16]}"


def superseded_names(directory: Directory, manifest: Manifest) -> frozenset[str]:
    """Return the second names that exist, flat. Raises StorageError."""
    with reading_errors(directory):
        try:
            return frozenset(superseded_directory(directory, manifest).names())
        except (FileNotFoundError, NotADirectoryError, LinkError):
            # Not what an append made.
            return frozenset()


def located(directory: Path, manifest: Manifest, name: str) -> Path:
    """Return where the file `name` of this manifest is now, for reading: a finished output may be kept elsewhere, and linked."""
    second = superseded_directory(directory, manifest) / flat_name(name)
    with contextlib.suppress(LinkError):
        if second.is_file():
            return Path(str(second))
    return directory / name


def open_file(directory: Path, manifest: Manifest, name: str) -> int:
    """Open the file `name` of this manifest for reading, through no link. Returns the descriptor. Raises OSError.

    If another manifest is in place by now, the file may be of that one.
    """
    path = located(directory, manifest, name)
    try:
        fd = beside(path).open()
    except FileNotFoundError:
        if path == directory / name:
            raise
        return beside(directory / name).open()
    if path != directory / name or (now := located(directory, manifest, name)) == path:
        return fd
    os.close(fd)
    try:
        return beside(now).open()
    except FileNotFoundError:
        return beside(path).open()


def read_consistent(directory: Path, read: Callable[[Manifest], T]) -> T:
    """Return what `read` makes of a complete output; call it again as long as an append replaces the output meanwhile.

    Raises what `load_manifest` and `read` raise; ChangedError when that does not end.
    """
    for _ in range(_ATTEMPTS):
        stamp = _stamp(directory)
        manifest = load_manifest(directory)
        names = superseded_names(directory, manifest)
        try:
            found = read(manifest)
        except (TokmillError, OSError, ValueError):
            if _stamp(directory) == stamp and superseded_names(directory, manifest) == names:
                raise
            continue
        if superseded_names(directory, manifest) == names and _stamp(directory) == stamp:
            return found
    raise replaced_error(directory)


def replaced_error(directory: Directory) -> ChangedError:
    """Return the error for an output that was replaced while it was read."""
    return ChangedError(
        "the output was replaced while it was read: something was appended to it, or it was made again",
        where=str(directory),
        allowed="a complete output that does not change while it is read",
        next_step="run the same command again when that run has ended",
    )


def is_current(directory: Directory, manifest: Manifest) -> bool:
    """Return whether this manifest is still in place. Raises DamageError, UsageError, OSError."""
    return load_manifest(directory).checksum == manifest.checksum


def is_append_to(older: Manifest, manifest: Manifest) -> bool:
    """Return whether the output of `manifest` is that of `older` with more inputs."""
    return any(p.how == "append" and p.fingerprint == older.fingerprint for p in manifest.made_from or ())


def pending_manifest(directory: Directory) -> Manifest | None:
    """Return the manifest of a run that is publishing, or was killed while it did. Raises StorageError."""
    written = growing_path(directory, MANIFEST_NAME)
    with reading_errors(written):
        try:
            return decode_manifest(read_state(written), str(written))
        except (FileNotFoundError, DamageError, UsageError):
            return None


def pending_append(directory: Directory, manifest: Manifest) -> Manifest | None:
    """Return the manifest of an append to this output that is publishing, or was killed while it did. Raises StorageError."""
    pending = pending_manifest(directory)
    return pending if pending is not None and is_append_to(manifest, pending) else None


def keep_superseded(directory: TreePath, older: Manifest) -> None:
    """Give every file of a complete output a durable second name. Raises OSError."""
    second_names = superseded_directory(directory, older)
    durable.make_directory(second_names)
    for name in older.files:
        second = second_names / flat_name(name)
        # An append that was killed may have given it, and the first name may be another file's by now.
        if not second.exists():
            with contextlib.suppress(FileNotFoundError):
                durable.link(directory / name, second)
    durable.sync_directory(second_names)
    durable.sync_directory(second_names.parent)


def discard_unfinished(directory: Directory) -> None:
    """Remove what a run left: its written manifest, which says that files are complete, then the journal and the growing files.

    Files that an append has begun to replace get their own names back first. Raises OSError, StorageError.
    """
    directory = tree_of(directory)
    if _superseded_directories(directory):
        _put_back(directory)
    written = growing_path(directory, MANIFEST_NAME)
    if written.exists():
        written.unlink()
        durable.sync_directory(state_of(directory))
    (state_of(directory) / "journal").unlink(missing_ok=True)
    _remove_each(growing_files(directory))
    _remove_leftovers(directory)


def _remove_each(paths: Iterable[TreePath]) -> None:
    """Remove all that can be removed. Raises the OSError of the first that cannot."""
    errors = []
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _remove_leftovers(directory: TreePath) -> None:
    """Remove what no later run needs; what cannot be removed stays and does no harm."""
    history, journal = history_of(directory), state_of(directory) / "journal"
    with contextlib.suppress(OSError):
        _remove_each((history, durable.aside(history), durable.aside(journal)))
    for old in _superseded_directories(directory):
        with contextlib.suppress(OSError):
            old.remove_tree()


def remove_state(directory: Directory, lock: DirectoryLock) -> None:
    """Empty and remove the state directory, and release the lock.

    Raises StorageError where something stays that the next run would resume from.
    """
    with storage_errors(directory):
        try:
            # If the lock was lost, what is there is another run's.
            if lock.is_held:
                discard_unfinished(directory)
        except OSError:
            if is_begun(directory) or growing_path(directory, MANIFEST_NAME).exists():
                raise
        finally:
            release_lock(directory, lock)


def discard_append(directory: Directory) -> None:
    """Discard what an interrupted append left, so that the old output is whole. Raises LockedError, StorageError."""
    remove_state(directory, acquire_lock(directory))


def remove_files(directory: TreePath, names: Iterable[str]) -> None:
    """Remove those files of an output that exist, and then its empty subdirectories. Raises OSError."""
    names = list(names)
    for name in names:
        (directory / name).unlink(missing_ok=True)
    for sub in {os.path.dirname(name) for name in names} - {""}:
        # It is not empty: still needed, or not ours.
        with contextlib.suppress(OSError):
            (directory / sub).rmdir()


def _put_back(directory: TreePath) -> None:
    """Give the files of the complete output their own names back, and remove what an append put beside them."""
    try:
        manifest = load_manifest(directory)
    except (DamageError, UsageError):
        return
    second_names = superseded_directory(directory, manifest)
    if not second_names.exists():
        return
    pending = pending_append(directory, manifest)
    for name in manifest.files:
        if (second_names / flat_name(name)).exists():
            durable.replace(second_names / flat_name(name), directory / name)
    if pending:
        # What still grows has not taken the name.
        remove_files(directory, [n for n in pending.files if n not in manifest.files and not growing_path(directory, n).exists()])
    sync_directories(directory, manifest.files)


def sync_directories(directory: TreePath, names: Iterable[str]) -> None:
    """Return when the names of these files of an output are on the disk."""
    for each in {directory, *((directory / name).parent for name in names)}:
        durable.sync_directory(each)


def _superseded_directories(directory: TreePath) -> list[TreePath]:
    state = state_of(directory)
    names = state.names() if state.exists() else []
    return [state / name for name in names if name.startswith(_PREFIX)]


def _stamp(directory: Directory) -> tuple[int, ...] | None:
    """Return what changes when another manifest takes the place: it is replaced, never written over."""
    try:
        found = (tree_of(directory) / MANIFEST_NAME).lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
