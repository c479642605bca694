"""Where remote objects lie: what every kind of store must do, which package each kind needs, and which kind a URL asks for.

A store looks up objects, lists them, and fetches a range of one, in one attempt each; callers retry (`download.retry`). What may
pass by itself is a `TransientError`; everything else is an error of the run at once. Messages of libraries are never shown: they
quote URLs, and with them passwords and signatures.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from tokmill.core.errors import ChangedError, DamagedInputError, UsageError
from tokmill.core.extras import install_hint
from tokmill.core.text import nearest
from tokmill.store.urls import full_url, redacted, scheme_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.records import Input

_KINDS = {
    "s3": ("tokmill.store.s3:S3Store", "botocore", "s3"),
    "http": ("tokmill.store.http:HttpStore", "aiohttp", "http"),
    "https": ("tokmill.store.http:HttpStore", "aiohttp", "http"),
    "hf": ("tokmill.store.fsspec_store:FsspecStore", "huggingface_hub", "hf"),
    "gs": ("tokmill.store.fsspec_store:FsspecStore", "gcsfs", "gcs"),
}
"""By scheme: the class, the package that must be there, and the extra that brings it."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a store describes it."""

    name: str
    """Of an input its URL, secrets included; of an output its key below the prefix."""
    size_bytes: int
    version: str | None
    """See `records.Input.version`."""
    mark: str = ""
    """Metadata stored with an object of an output; empty for other objects and in listings."""


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """The object that a run began with."""

    name: str
    """Its URL without what is secret in it."""
    size_bytes: int
    version: str | None

    @property
    def url(self) -> str:
        """With what is secret in it."""
        return full_url(self.name)


class RangeBuffer:
    """Where fetched bytes arrive; those of an attempt that failed half-way stay."""

    __slots__ = ("begin", "data", "n_bytes")

    def __init__(self, begin: int, n_bytes: int) -> None:
        self.begin = begin
        """Of the object."""
        self.data = bytearray(n_bytes)
        self.n_bytes = 0
        """Arrived."""

    @property
    def at(self) -> int:
        """The byte of the object that is missing next."""
        return self.begin + self.n_bytes

    @property
    def end(self) -> int:
        """Of the object."""
        return self.begin + len(self.data)

    def add(self, chunk: bytes) -> bool:
        """Take bytes, as many as are wanted; whether more are."""
        n = min(len(chunk), len(self.data) - self.n_bytes)
        self.data[self.n_bytes : self.n_bytes + n] = chunk if n == len(chunk) else chunk[:n]
        self.n_bytes += n
        return self.n_bytes < len(self.data)


class TransientError(Exception):
    """What may pass by itself: a connection that broke, a store that is busy."""

    def __init__(self, what: str, after_s: float = 0.0) -> None:
        """what: safe to show. after_s: how long the store asks to be left alone."""
        super().__init__(what)
        self.what = what
        self.after_s = after_s


class Store(Protocol):
    """A kind of store. Methods may be called from any thread; each makes one attempt and raises TransientError or TokmillError."""

    def head(self, url: str) -> ObjectInfo | None:
        """The object; None if there is none."""

    def list(self, url: str) -> Sequence[ObjectInfo]:
        """Every object below a directory or prefix, in no order."""

    def glob(self, pattern: str) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        """Objects that match a glob pattern, and URLs of directories that do; in no order."""

    def fetch(self, pinned: ObjectVersion, buffer: RangeBuffer) -> None:
        """Bring what is missing of a buffer, at least a part of it. Raises ChangedError for another version of the object."""

    def is_streamed(self, pinned: ObjectVersion) -> bool:
        """Whether a fetch has shown that only the whole object is served: then one thread reads it, front to back."""

    def check(self, pinned: ObjectVersion) -> None:
        """Raises ChangedError when the object is another by now; for stores that cannot be asked for a version of it."""

    def release(self, pinned: ObjectVersion) -> None:
        """Give back what is held for an object that is not read any further."""


def store_for(url: str) -> Store:
    """The store of a URL. Raises UsageError for a scheme that is not known or whose package is missing."""
    scheme = scheme_of(url)
    if scheme not in _KINDS:
        raise UsageError(
            f"URLs that begin with {scheme}:// cannot be read",
            where=f"{scheme}://",
            allowed=" ".join(f"{each}://" for each in _KINDS),
            next_step=f"if {nearest(scheme, list(_KINDS))}:// was meant, write it so; else download it or pipe it in",
        )
    return _store(scheme)


@functools.cache
def _store(scheme: str) -> Store:
    target, package, extra = _KINDS[scheme]
    try:
        importlib.import_module(package)
    except ImportError:
        raise UsageError(
            f"{scheme}:// needs the package {package}, which is not installed",
            where=f"{scheme}://",
            allowed=f"{scheme}:// with the extra [{extra}]",
            next_step=install_hint(extra),
        ) from None
    module, _, name = target.partition(":")
    return cast("Store", getattr(importlib.import_module(module), name)(scheme))


def filesystem(scheme: str, **options: Any) -> Any:
    """An fsspec file system of our own, with what its configuration files and the environment say."""
    import fsspec

    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)


def sized(url: str, size_bytes: int | None) -> int:
    """Return the size that a store reports. Raises UsageError if it reports none."""
    if size_bytes is None:
        raise UsageError(
            "the store does not report the size of this object, so a cut download could not be noticed",
            where=redacted(url),
            allowed="objects whose size is known",
            next_step="download it and give the file",
        )
    return size_bytes


def pinned_version(source: Input) -> ObjectVersion:
    """What a run was begun with."""
    return ObjectVersion(source.path, source.size_bytes or 0, source.version or None)


def check_version(pinned: ObjectVersion, version: str | None, size_bytes: int | None) -> None:
    """Raises ChangedError when a store's answer is about another object than the pinned one; None is not compared."""
    if size_bytes is not None and size_bytes != pinned.size_bytes:
        raise changed(pinned.name, f"it had {pinned.size_bytes:,} bytes, has {size_bytes:,}")
    if pinned.version and version and version != pinned.version:
        raise changed(pinned.name, f"it was {pinned.version}, is {version}")


def changed(name: str, how: str) -> ChangedError:
    """The error for an object that is not the one that the run began with."""
    return ChangedError(
        f"the input changed since the run was planned: {how}",
        where=name,
        allowed="inputs that stay as they are during a run",
        next_step="restore the object and run the same command again, or start over with --fresh",
    )


def gone(name: str) -> ChangedError:
    """The error for an object that is no longer there."""
    return changed(name, "it is gone")


def denied(name: str, what: str, next_step: str) -> DamagedInputError:
    """The error for an object that may not be read."""
    return DamagedInputError(
        f"access denied: {what}", where=name, allowed="objects that may be read", next_step=next_step, resumes=True
    )


def refused(name: str, what: str) -> DamagedInputError:
    """The error for an answer that will not be another one the next time."""
    return DamagedInputError(
        f"cannot be read: {what}",
        where=name,
        allowed="a store that answers as its protocol says",
        next_step="check the URL and the settings of the store, then run the same command again",
        resumes=True,
    )
