"""A complete output at a prefix of an object store as a source: its objects are read front to back, with read-ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.errors import DamageError
from tokmill.core.text import counted, quoted
from tokmill.derive.source import CheckedFile, Source, SourceBytes, refuse_unfit
from tokmill.output import Prefix, reading_errors

if TYPE_CHECKING:
    from tokmill.store import ObjectInfo, RemoteStream


class RemoteSource(Source):
    """A complete output at a prefix. Its objects stay those that were listed first, or StorageError is raised."""

    def __init__(self, url: str) -> None:
        """Raises UsageError where there is no complete output, DamageError, StorageError."""
        self._prefix = Prefix(url)
        super().__init__(self._prefix.url, refuse_unfit(self._prefix.complete_manifest(), self._prefix.url))
        self._objects = self._prefix.list()

    def _open(self, name: str, size_bytes: int) -> CheckedFile:
        """Open an object. Raises DamageError."""
        path = f"{self._prefix.url}/{name}"
        found = self._objects.get(name)
        if found is None or found.size_bytes != size_bytes:
            raise DamageError(
                "a source is damaged: an object " + ("is not as long as it was written" if found else "is missing"),
                where=path,
                allowed=f"{counted(size_bytes, 'byte')}, as its manifest says",
                next_step=f"tokmill verify {quoted(self._prefix.url)} says what else is damaged; make that output again",
            )
        return CheckedFile(path, size_bytes, self._spans[name], lambda: _ObjectBytes(self._prefix, found))


class _ObjectBytes(SourceBytes):
    """The bytes of an object, of the version that was listed."""

    def __init__(self, prefix: Prefix, info: ObjectInfo) -> None:
        self.size_bytes = info.size_bytes
        self._prefix = prefix
        self._info = info
        self._stream: RemoteStream | None = None

    def read_into(self, view: memoryview, offset: int) -> int:
        """See SourceBytes. What is read from a place before the last one is asked for again."""
        with reading_errors():
            if self._stream is None or offset < self._stream.offset:
                self.close()
                self._stream = self._prefix.stream(self._info)
            if offset > self._stream.offset:
                self._stream.skip(offset - self._stream.offset)
            data = self._stream.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """See SourceBytes."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
