"""Object stores as the place of an output: what such a store must do, and which kinds there are.

A store makes one attempt; callers retry. What may pass by itself is a `TransientError`; answers of the protocol are `AlreadyExists`
and `UploadNotFound`; everything else is an error of the run. The file objects of fsspec do not serve: an exception inside
`with fs.open(..., "wb")` publishes what was written so far.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from tokmill.core.errors import UsageError
from tokmill.store.base import store_for
from tokmill.store.urls import scheme_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokmill.store.base import ObjectInfo

_KINDS = {"s3": "tokmill.store.s3:S3Objects"}
"""By scheme. Another one needs whole objects that appear at once, parts that can be sent again, and conditions on what is there."""


class AlreadyExists(Exception):  # noqa: N818  an answer
    """An object was to be made new, and there is one."""


class UploadNotFound(Exception):  # noqa: N818  an answer
    """What was begun is not known any more: finished or given up, by us in an attempt that seemed to fail, or by others."""


class ObjectStore(Protocol):
    """What lies below one prefix of a store. Names are keys without the prefix.

    Methods may be called from any thread; each makes one attempt and raises TransientError, StorageError or UsageError.
    """

    url: str
    """Of the prefix, without a slash at its end and without what is secret."""

    def head(self, name: str) -> ObjectInfo | None:
        """The object with its mark; None if there is none."""

    def list(self) -> Sequence[ObjectInfo]:
        """Every object below the prefix, in the order of their names, without marks."""

    def put(self, name: str, data: bytes, *, mark: str = "", only_new: bool = False) -> None:
        """Make an object in one piece. Raises AlreadyExists where there is one and `only_new` is asked for."""

    def create_multipart(self, name: str, mark: str) -> str:
        """Begin an object that is sent in parts, and is not visible before it is finished. Returns what the store calls that."""

    def list_parts(self, name: str, upload: str) -> Mapping[int, tuple[int, str]]:
        """Size and ETag (without quotes) of the parts that have arrived, by number from 1. Raises UploadNotFound."""

    def upload_part(self, name: str, upload: str, number: int, data: bytes) -> str:
        """Send a part, which the store holds against its MD5. Returns its ETag. Raises UploadNotFound."""

    def complete_multipart(self, name: str, upload: str, etags: Sequence[str], *, only_new: bool = False) -> None:
        """Make the object of its parts. Raises UploadNotFound; AlreadyExists as `put`."""

    def copy(self, source: ObjectInfo, name: str, mark: str) -> None:
        """Make an object of another one below the prefix, of this version of it, in one piece and inside the store.

        Raises AlreadyExists where there is one, or where the other is not that version any more; UploadNotFound where it is gone.
        """

    def copy_part(self, source: ObjectInfo, name: str, upload: str, number: int, place: tuple[int, int]) -> str:
        """Make a part of bytes of another object: from the first of `place`, so many. Returns its ETag. Raises as `copy`."""

    def list_multipart(self) -> Sequence[tuple[str, str]]:
        """Name, and what the store calls it, of every object that was begun and neither finished nor given up."""

    def abort_multipart(self, name: str, upload: str) -> None:
        """Let the store forget the parts; no error when it has."""

    def delete(self, names: Iterable[str]) -> None:
        """Take objects away, in this order; no error for one that is not there."""


def objects_at(url: str) -> ObjectStore:
    """The objects below a URL. Raises UsageError for a kind of store that takes no output, and for a package that is missing."""
    scheme = scheme_of(url)
    if scheme not in _KINDS:
        raise UsageError(
            f"outputs are not written to {scheme}://",
            where=f"{scheme}://",
            allowed="a directory, or s3:// with a bucket and a prefix (any store that speaks S3, see AWS_ENDPOINT_URL)",
            next_step="--out DIR, then copy it there, manifest.json last",
        )
    # Says what is missing, as for inputs.
    store_for(url)
    module, _, name = _KINDS[scheme].partition(":")
    return cast("ObjectStore", getattr(import_module(module), name)(url))
