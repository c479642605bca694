"""Stores: what each kind must do, for inputs and for outputs, which package each kind needs, and which kind a URL asks for.

Each method makes one attempt; callers retry (`download.retry`). What may pass by itself is a `TransientError`; `AlreadyExists` and
`UploadNotFound` are answers of the protocol; everything else is an error of the run at once. Messages of libraries are never shown:
they quote URLs, and with them passwords and signatures. Outputs are not written through the file objects of fsspec, because an
exception inside `with fs.open(..., "wb")` publishes what was written so far.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from tokmill.core.errors import ChangedError, DamagedInputError, UsageError
from tokmill.core.extras import install_hint
from tokmill.core.system.refusals import in_thread
from tokmill.core.text import nearest
from tokmill.store.urls import full_url, redacted, scheme_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

REQUEST_S = 300.0
"""A request may take so long, and what its bytes take at the least rate: one that is answered a byte at a time is never silent."""
LISTING_S = 900.0
"""The same of a listing whose pages a library asks for."""
LEAST_BYTES_PER_S = 16 << 10
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
    """The version of an object that a run began with."""

    name: str
    """Its URL without secrets."""
    size_bytes: int
    version: str | None

    @property
    def url(self) -> str:
        """Secrets included."""
        return full_url(self.name)


class RangeBuffer:
    """The bytes of a range that have arrived; those of an attempt that failed half-way stay."""

    __slots__ = ("begin", "data", "n_bytes")

    def __init__(self, begin: int, n_bytes: int) -> None:
        self.begin = begin
        """Offset in the object."""
        self.data = bytearray(n_bytes)
        self.n_bytes = 0
        """Have arrived."""

    @property
    def at(self) -> int:
        """Offset in the object of the next byte that is missing."""
        return self.begin + self.n_bytes

    @property
    def end(self) -> int:
        """Offset in the object."""
        return self.begin + len(self.data)

    def add(self, chunk: bytes) -> bool:
        """Take as many bytes as are missing; return whether more are."""
        n = min(len(chunk), len(self.data) - self.n_bytes)
        self.data[self.n_bytes : self.n_bytes + n] = chunk if n == len(chunk) else chunk[:n]
        self.n_bytes += n
        return self.n_bytes < len(self.data)


class TransientError(Exception):
    """A failure that may pass by itself: a connection that broke, a store that is busy."""

    def __init__(self, what: str, after_s: float = 0.0) -> None:
        """what: safe to show. after_s: how long the store asks to wait."""
        super().__init__(what)
        self.what = what
        self.after_s = after_s


class AlreadyExists(Exception):  # noqa: N818  an answer
    """The answer that there is an object already where a new one was to be made."""


class UploadNotFound(Exception):  # noqa: N818  an answer
    """The answer that an upload is not known: completed or aborted, by an attempt that seemed to fail or by another run."""


def limit_s(n_bytes: int = 0) -> float:
    """Return how long a request may take that sends or brings so many bytes."""
    return REQUEST_S + n_bytes / LEAST_BYTES_PER_S


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a request brings. Raise TransientError when it takes longer.

    Its thread then goes on for as long as its connection: the call must not touch what a next attempt uses.
    """
    answer = in_thread(call, name="request")
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():
            raise
        raise TransientError(f"not answered in full in {seconds:,.0f} s") from None


class Store(Protocol):
    """A kind of store to read inputs from. Methods may be called from any thread; they raise TransientError or TokmillError.

    Kinds inherit what the last three do: ranges are served, each answer says which version it is of, and nothing is held.
    """

    def head(self, url: str) -> ObjectInfo | None:
        """Return an object; None if there is none."""

    def list(self, url: str) -> Sequence[ObjectInfo]:
        """Return every object below a directory or prefix, in no order."""

    def glob(self, pattern: str) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        """Return objects that match a glob pattern, and URLs of directories that do; in no order."""

    def fetch(self, pinned: ObjectVersion, buffer: RangeBuffer) -> None:
        """Fetch what is missing of a buffer, or a part of that. Raises ChangedError for another version of the object."""

    def is_streamed(self, pinned: ObjectVersion) -> bool:  # noqa: ARG002  the contract
        """Return whether a fetch has shown that only the whole object is served: then one thread reads it, front to back."""
        return False

    def check(self, pinned: ObjectVersion) -> None:  # noqa: ARG002  the contract
        """Raise ChangedError if the object is another by now; for stores that cannot be asked for a version."""
        return

    def release(self, pinned: ObjectVersion) -> None:  # noqa: ARG002  the contract
        """Release what is held for an object that is not read any further."""
        return


def store_for(url: str) -> Store:
    """Return the store of a URL. Raises UsageError for an unknown scheme or a missing package."""
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
    """Return a new fsspec file system, configured by fsspec's files and the environment."""
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


def check_version(pinned: ObjectVersion, version: str | None, size_bytes: int | None) -> None:
    """Raise ChangedError if a store's answer is about another version than the pinned one; None is not compared."""
    if size_bytes is not None and size_bytes != pinned.size_bytes:
        raise changed(pinned.name, f"it had {pinned.size_bytes:,} bytes, has {size_bytes:,}")
    if pinned.version and version and version != pinned.version:
        raise changed(pinned.name, f"it was {pinned.version}, is {version}")


def changed(name: str, how: str) -> ChangedError:
    """Return the error for an object that is not the one that the run began with."""
    return ChangedError(
        f"the input changed since the run was planned: {how}",
        where=name,
        allowed="inputs that stay as they are during a run",
        next_step="restore the object and run the same command again, or start over with --fresh",
    )


def gone(name: str) -> ChangedError:
    """Return the error for an object that is no longer there."""
    return changed(name, "it is gone")


def denied(name: str, what: str, next_step: str) -> DamagedInputError:
    """Return the error for an object that may not be read."""
    return DamagedInputError(
        f"access denied: {what}", where=name, allowed="objects that may be read", next_step=next_step, resumes=True
    )


def refused(name: str, what: str) -> DamagedInputError:
    """Return the error for an answer that will be the same the next time."""
    return DamagedInputError(
        f"cannot be read: {what}",
        where=name,
        allowed="a store that answers as its protocol says",
        next_step="check the URL and the settings of the store, then run the same command again",
        resumes=True,
    )
