"""Where a complete output lies that is to be checked: a directory, or a prefix of an object store; read once, from front to back.

A file of a directory is opened through no link and must be a regular one; while an append takes its name, it has another. An
object is read ahead in blocks, a bounded number of them, and all of it is of the version that was listed; nothing is copied to
this machine first.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tokmill.core.errors import StorageError
from tokmill.core.manifest import MANIFEST_NAME, Manifest, load_manifest
from tokmill.core.records import is_url
from tokmill.core.system.durable import uninterrupted
from tokmill.output import open_file, pending_append

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.output import Prefix
    from tokmill.store import ObjectInfo


class NotReadableError(Exception):
    """One file of the output is at fault; the others can be looked at."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class OpenedFile(ABC):
    """A file of the output. A context: it is closed at the end."""

    size_bytes: int

    @abstractmethod
    def read_into(self, buffer: memoryview) -> int:
        """Read up to len(buffer) bytes; returns how many, 0 at the end. Raises StorageError."""

    @abstractmethod
    def close(self) -> None:
        """Give it back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OutputLocation(ABC):
    """An output."""

    name: str
    """For messages: directory or URL."""

    @abstractmethod
    def manifest(self) -> Manifest:
        """Raises UsageError if there is none, DamageError, StorageError."""

    @abstractmethod
    def names(self, sub: str) -> Sequence[str]:
        """What lies in the output, or in a directory `sub` of it, sorted. Raises StorageError."""

    @abstractmethod
    def open(self, manifest: Manifest, name: str) -> OpenedFile:
        """A file of the output of this manifest. Raises NotReadableError."""

    @abstractmethod
    def pending_append(self, manifest: Manifest) -> Manifest | None:
        """The manifest of an append to this output that is being published, or was interrupted then. Raises StorageError."""

    def is_current(self, manifest: Manifest) -> bool:
        """Whether this is still the manifest. Raises what `manifest` raises."""
        return self.manifest().checksum == manifest.checksum


def location_of(given: str | Path) -> OutputLocation:
    """The location of that name. Raises UsageError for a store that is not known or whose package is missing."""
    return RemoteLocation(str(given)) if is_url(str(given)) else LocalLocation(Path(given))


class LocalLocation(OutputLocation):
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = str(directory)

    def manifest(self) -> Manifest:
        """See OutputLocation."""
        try:
            return load_manifest(self.directory)
        except OSError as error:
            raise _unreadable(self.directory / MANIFEST_NAME, error) from error

    def names(self, sub: str) -> Sequence[str]:
        """See OutputLocation."""
        directory = self.directory / sub
        if sub and not directory.is_dir():
            return []
        try:
            return sorted(uninterrupted(lambda: os.listdir(directory)))
        except OSError as error:
            raise _unreadable(directory, error) from error

    def open(self, manifest: Manifest, name: str) -> OpenedFile:
        """See OutputLocation."""
        return _File(self.directory, manifest, name)

    def pending_append(self, manifest: Manifest) -> Manifest | None:
        """See OutputLocation."""
        return pending_append(self.directory, manifest)


class _File(OpenedFile):
    """A regular file."""

    def __init__(self, directory: Path, manifest: Manifest, name: str) -> None:
        self._path = directory / name
        try:
            fd = open_file(directory, manifest, name)
        except FileNotFoundError:
            raise NotReadableError("the file is missing") from None
        except OSError as error:
            raise NotReadableError(f"the file cannot be opened: {error.strerror}") from None
        self._file = os.fdopen(fd, "rb", buffering=0)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            self._file.close()
            raise NotReadableError("it is not a regular file")
        self.size_bytes = found.st_size

    def read_into(self, buffer: memoryview) -> int:
        """See OpenedFile."""
        try:
            return self._file.readinto(buffer)
        except OSError as error:
            raise _unreadable(self._path, error) from error

    def close(self) -> None:
        """See OpenedFile."""
        self._file.close()


class RemoteLocation(OutputLocation):
    """A prefix of an object store."""

    def __init__(self, url: str) -> None:
        """Raises UsageError."""
        from tokmill.output import Prefix

        self._prefix = Prefix(url)
        self.name = self._prefix.url
        self._objects: dict[str, ObjectInfo] = {}

    def manifest(self) -> Manifest:
        """See OutputLocation."""
        manifest = self._prefix.complete_manifest()
        self._objects = self._prefix.list()
        return manifest

    def names(self, sub: str) -> Sequence[str]:
        """See OutputLocation. What lies under a deeper prefix is left out: a listing of this one does not show it as a file."""
        top = f"{sub}/" if sub else ""
        inside = [name.removeprefix(top) for name in self._objects if name.startswith(top)]
        return sorted(name for name in inside if name and "/" not in name)

    def open(self, manifest: Manifest, name: str) -> OpenedFile:  # noqa: ARG002  the other location's
        """See OutputLocation."""
        if name not in self._objects:
            raise NotReadableError("the object is missing")
        return _Object(self._prefix, self._objects[name])

    def pending_append(self, manifest: Manifest) -> Manifest | None:  # noqa: ARG002  the contract
        """None: nothing is appended to an output in a store."""
        return None


class _Object(OpenedFile):
    """An object."""

    def __init__(self, prefix: Prefix, stored: ObjectInfo) -> None:
        self.size_bytes = stored.size_bytes
        self._stream = prefix.stream(stored)

    def read_into(self, buffer: memoryview) -> int:
        """See OpenedFile."""
        from tokmill.output import reading_errors

        with reading_errors():
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """See OpenedFile."""
        self._stream.close()


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot read it: {error.strerror}",
        where=str(path),
        allowed="files that can be read",
        next_step="check the disk, then verify again",
    )
