"""Where a complete output lies that is checked: a directory, or a prefix of an object store.

A file of a directory is opened through no link and must be a regular one; during an append it may have another name for a moment.
An object is read ahead in a bounded number of blocks, all of the version that was listed; nothing is copied to this machine.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from tokmill.core.config import path_text
from tokmill.core.errors import LinkError, StorageError
from tokmill.core.manifest import MANIFEST_NAME, Manifest, load_manifest
from tokmill.core.records import is_url
from tokmill.core.system.tree import TreePath
from tokmill.output import open_file, pending_append

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokmill.store import ObjectInfo


class NotReadableError(Exception):
    """One file of the output cannot be read; the others can. Its argument is a sentence for the list of problems."""


class OpenedFile:
    """A file of the output, read once from front to back. A context that closes it."""

    def __init__(self, stream: Any, size_bytes: int, errors: Callable[[], AbstractContextManager[None]]) -> None:
        """stream: has `read` and `close`, and `readinto` if it can. errors: raises what the stream raises as StorageError."""
        self.size_bytes = size_bytes
        self._stream = stream
        self._errors = errors

    def read_into(self, buffer: memoryview) -> int:
        """Read up to len(buffer) bytes and return how many, 0 at the end. Raise StorageError."""
        with self._errors():
            if hasattr(self._stream, "readinto"):
                return int(self._stream.readinto(buffer))
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class LocalLocation:
    """A directory that holds an output."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = str(directory)

    def manifest(self) -> Manifest:
        """Return the manifest. Raise UsageError if there is none, DamageError, StorageError."""
        with _reading(self.directory / MANIFEST_NAME):
            return load_manifest(self.directory)

    def names(self, sub: str) -> Sequence[str]:
        """Return what lies in the output, or in its directory `sub`, sorted. Raise StorageError."""
        directory = self.directory / sub
        if sub and not directory.is_dir():
            return []
        with _reading(directory):
            return sorted(TreePath(directory).names())

    def open(self, manifest: Manifest, name: str) -> OpenedFile:
        """Open a file of the output of this manifest. Raise NotReadableError."""
        try:
            fd = open_file(self.directory, manifest, name)
        except FileNotFoundError:
            raise NotReadableError("the file is missing") from None
        except LinkError as error:
            raise NotReadableError(error.what) from None
        except OSError as error:
            raise NotReadableError(f"the file cannot be opened: {error.strerror}") from None
        size_bytes = os.fstat(fd).st_size
        return OpenedFile(os.fdopen(fd, "rb", buffering=0), size_bytes, lambda: _reading(self.directory / name))

    def pending_append(self, manifest: Manifest) -> Manifest | None:
        """Return the manifest of an append to this output that is being published, or was interrupted then. Raise StorageError."""
        return pending_append(self.directory, manifest)


class RemoteLocation:
    """A prefix of an object store that holds an output, with the methods of LocalLocation."""

    def __init__(self, url: str) -> None:
        """Raise UsageError."""
        from tokmill.output import Prefix

        self._prefix = Prefix(url)
        self.name = self._prefix.url
        self._objects: dict[str, ObjectInfo] = {}

    def manifest(self) -> Manifest:
        """See LocalLocation."""
        manifest = self._prefix.complete_manifest()
        self._objects = self._prefix.list()
        return manifest

    def names(self, sub: str) -> Sequence[str]:
        """See LocalLocation. What lies under a deeper prefix is left out: a listing of this one does not show it as a file."""
        top = f"{sub}/" if sub else ""
        inside = [name.removeprefix(top) for name in self._objects if name.startswith(top)]
        return sorted(name for name in inside if name and "/" not in name)

    def open(self, manifest: Manifest, name: str) -> OpenedFile:  # noqa: ARG002  as LocalLocation
        """See LocalLocation."""
        from tokmill.output import reading_errors

        if name not in self._objects:
            raise NotReadableError("the object is missing")
        return OpenedFile(self._prefix.stream(self._objects[name]), self._objects[name].size_bytes, reading_errors)

    def pending_append(self, manifest: Manifest) -> Manifest | None:  # noqa: ARG002  as LocalLocation
        """Return None: nothing is appended to an output in a store."""
        return None


OutputLocation: TypeAlias = LocalLocation | RemoteLocation


def location_of(given: str | Path) -> OutputLocation:
    """Return the location of that name. Raise UsageError if the store is not known or its package is missing."""
    return RemoteLocation(str(given)) if is_url(path_text(given, "directory")) else LocalLocation(Path(given))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot read it: {error.strerror}",
            where=str(path),
            allowed="files that can be read",
            next_step="check the disk, then verify again",
        ) from error
