"""The files of a complete output while an append takes their names: kept in the state directory until the new manifest has its own.

Several files cannot be replaced at once, so before the first is, each has a second name, `.tokmill/old-CHECKSUM/NAME`, after the
checksum of its manifest. Whoever has read that manifest finds its files there, or under their own names: the second names are all
there before the first file is replaced, and stay until another manifest is in place. So only who opened a file under its own name
and then finds the second has to open again, and only who then finds another manifest has to begin again. To discard the append,
the files get their names back.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, TypeVar

from tokmill.core.errors import ChangedError, DamageError, TokmillError, UsageError
from tokmill.core.manifest import MANIFEST_NAME, Manifest, decode_manifest, load_manifest, read_state
from tokmill.core.system import durable
from tokmill.core.system.durable import reading_errors, storage_errors
from tokmill.output.state_dir import flat_name, growing_files, growing_path, history_of, is_begun, release_lock, state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tokmill.core.system.durable import DirectoryLock

T = TypeVar("T")

_PREFIX = "old-"
_ATTEMPTS = 20
"""Appends that may be completed under our hands before something else must be wrong."""
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def superseded_directory(directory: Path, manifest: Manifest) -> Path:
    """Where the files of this manifest have their second names while an append takes the first."""
    return state_of(directory) / f"{_PREFIX}{manifest.checksum[:16]}"


def superseded_names(directory: Path, manifest: Manifest) -> frozenset[str]:
    """The second names that there are, flat. Raises StorageError."""
    with reading_errors(directory):
        try:
            return frozenset(durable.uninterrupted(lambda: os.listdir(superseded_directory(directory, manifest))))
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()


def located(directory: Path, manifest: Manifest, name: str) -> Path:
    """Where the file `name` of this manifest is, now."""
    kept = superseded_directory(directory, manifest) / flat_name(name)
    return kept if kept.exists() else directory / name


def open_file(directory: Path, manifest: Manifest, name: str) -> int:
    """Open the file `name` of this manifest for reading, through no link. Returns the descriptor. Raises OSError.

    When another manifest is in place, it may be that one's file.
    """
    path = located(directory, manifest, name)
    try:
        fd = os.open(path, _FLAGS)
    except FileNotFoundError:
        if path == directory / name:
            raise
        return os.open(directory / name, _FLAGS)
    if path != directory / name or (now := located(directory, manifest, name)) == path:
        return fd
    os.close(fd)
    try:
        return os.open(now, _FLAGS)
    except FileNotFoundError:
        return os.open(path, _FLAGS)


def read_consistent(directory: Path, read: Callable[[Manifest], T]) -> T:
    """What `read` makes of a complete output, done again as long as an append takes its place meanwhile.

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


def replaced_error(directory: Path) -> ChangedError:
    """The error for an output that became another one while it was read."""
    return ChangedError(
        "the output became another one while it was read: something was appended to it, or it was made again",
        where=str(directory),
        allowed="a complete output that stays while it is read, or to which an append is not yet complete",
        next_step="run the same command again when that run has ended",
    )


def is_current(directory: Path, manifest: Manifest) -> bool:
    """Whether this is still the manifest. Raises DamageError, UsageError, OSError."""
    return load_manifest(directory).checksum == manifest.checksum


def is_append_to(older: Manifest, manifest: Manifest) -> bool:
    """Whether the output of `manifest` is that of `older` with more inputs."""
    return any(p.how == "append" and p.fingerprint == older.fingerprint for p in manifest.made_from or ())


def pending_manifest(directory: Path) -> Manifest | None:
    """The manifest of a run that was killed while publishing, or is publishing now. Raises StorageError."""
    part = growing_path(directory, MANIFEST_NAME)
    with reading_errors(part):
        try:
            return decode_manifest(read_state(part), str(part))
        except (FileNotFoundError, DamageError):
            return None


def pending_append(directory: Path, manifest: Manifest) -> Manifest | None:
    """The manifest of an append to this output that was killed while publishing, or is publishing now. Raises StorageError."""
    pending = pending_manifest(directory)
    return pending if pending is not None and is_append_to(manifest, pending) else None


def keep(directory: Path, older: Manifest) -> None:
    """Give every file of a complete output its second name; returns when all are on the disk. Raises OSError."""
    kept = superseded_directory(directory, older)
    durable.make_directory(kept)
    for name in older.files:
        second = kept / flat_name(name)
        # One that has it was given it by an append that was killed, and its first name may be another file's by now.
        if not second.exists():
            with contextlib.suppress(FileNotFoundError):
                durable.link(directory / name, second)
    durable.sync_directory(kept)
    durable.sync_directory(kept.parent)


def discard_unfinished(directory: Path) -> None:
    """Remove what a run left: its written manifest, which alone says that parts are complete, then journal and parts.

    Files that an append has begun to replace get their names back first. Raises OSError, StorageError.
    """
    if _kept_directories(directory):
        _put_back(directory)
    written = growing_path(directory, MANIFEST_NAME)
    if written.exists():
        written.unlink()
        durable.sync_directory(state_of(directory))
    (state_of(directory) / "journal").unlink(missing_ok=True)
    _remove_each(growing_files(directory))
    _remove_leftovers(directory)


def _remove_each(paths: Iterable[Path]) -> None:
    """Remove all that can be removed. Raises the OSError of the first that cannot."""
    errors = []
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _remove_leftovers(directory: Path) -> None:
    """Remove what nothing goes by; what cannot be removed stays, and is no reason to end a run."""
    history, journal = history_of(directory), state_of(directory) / "journal"
    with contextlib.suppress(OSError):
        _remove_each((history, durable.aside(history), durable.aside(journal)))
    for kept in _kept_directories(directory):
        with contextlib.suppress(OSError):
            _remove_each(kept / name for name in durable.uninterrupted(lambda kept=kept: os.listdir(kept)))  # type: ignore[misc]
            kept.rmdir()


def remove_state(directory: Path, lock: DirectoryLock) -> None:
    """Discard what is there, give the lock back, and remove the directory.

    Raises StorageError where something stays that the next run would go on with; what else stays does no harm.
    """
    with storage_errors(directory):
        try:
            discard_unfinished(directory)
        except OSError:
            if is_begun(directory) or growing_path(directory, MANIFEST_NAME).exists():
                raise
        finally:
            release_lock(directory, lock)


def remove_files(directory: Path, names: Iterable[str]) -> None:
    """Remove files of an output, as far as they are there, and subdirectories in which nothing is left. Raises OSError."""
    names = list(names)
    for name in names:
        (directory / name).unlink(missing_ok=True)
    for sub in {os.path.dirname(name) for name in names} - {""}:
        # Not empty: somebody's, or still needed.
        with contextlib.suppress(OSError):
            (directory / sub).rmdir()


def _put_back(directory: Path) -> None:
    """Give the files of the complete output their first names, and take away what an append put beside them."""
    try:
        manifest = load_manifest(directory)
    except (DamageError, UsageError):
        return
    kept = superseded_directory(directory, manifest)
    if not kept.is_dir():
        return
    pending = pending_append(directory, manifest)
    for name in manifest.files:
        if (kept / flat_name(name)).exists():
            durable.replace(kept / flat_name(name), directory / name)
    if pending:
        # What is still a part has not taken the name.
        remove_files(directory, [n for n in pending.files if n not in manifest.files and not growing_path(directory, n).exists()])
    for sub in {os.path.dirname(name) for name in manifest.files} | {""}:
        durable.sync_directory(directory / sub)


def _kept_directories(directory: Path) -> list[Path]:
    state = state_of(directory)
    names = durable.uninterrupted(lambda: os.listdir(state)) if state.is_dir() else []
    return [state / name for name in names if name.startswith(_PREFIX)]


def _stamp(directory: Path) -> tuple[int, ...] | None:
    """What tells the manifest that is in place from another: it is never written over, only replaced."""
    try:
        found = os.stat(directory / MANIFEST_NAME)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
