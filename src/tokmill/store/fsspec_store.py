"""Any other file system that fsspec knows: the Hub of Hugging Face, Google's buckets.

Their answers do not say which version they are of, so an object is looked up before the first byte and after the last.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import TokmillError
from tokmill.store import base
from tokmill.store.base import ObjectInfo, Store, TransientError, check_version, denied, filesystem, gone, refused, sized, within
from tokmill.store.urls import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tokmill.store.base import ObjectVersion, RangeBuffer

_VERSIONS = ("etag", "ETag", "generation", "lfs_oid", "blob_id", "md5Hash", "last_modified", "updated", "mtime")
"""What file systems call it, the surest first."""
_NEXT = {
    "hf": "huggingface-cli login, or set HF_TOKEN, then run the same command again",
    "gs": "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS, then run the same command again",
}


class FsspecStore(Store):
    """See `base.Store`."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._fs = filesystem(self._scheme)
        # What is not asynchronous reads through a file object, which would fetch some MB beyond each range, too.
        self._exactly = {} if self._fs.async_impl else {"cache_type": "none"}

    def head(self, url: str) -> ObjectInfo | None:
        """See Store."""
        info = self._translated(redacted(url), lambda: self._fs.info(url), lambda: None)
        return self._found(info) if info and info["type"] == "file" else None

    def list(self, url: str) -> Sequence[ObjectInfo]:
        """See Store."""
        found = self._translated(redacted(url), lambda: self._fs.find(url.rstrip("/"), detail=True), dict)
        return self._objects(found.values())

    def glob(self, pattern: str) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        """See Store."""
        found = self._translated(redacted(pattern), lambda: self._fs.glob(pattern, detail=True), dict)
        return self._objects(found.values()), [self._url(i) + "/" for i in found.values() if i["type"] == "directory"]

    def fetch(self, pinned: ObjectVersion, buffer: RangeBuffer) -> None:
        """See Store."""
        begin, end = buffer.at, buffer.end
        read = partial(self._fs.cat_file, pinned.url, start=begin, end=end, **self._exactly)
        data = self._translated(pinned.name, read, n_bytes=end - begin)
        if not data:
            raise TransientError("the answer ended early")
        buffer.add(data)

    def check(self, pinned: ObjectVersion) -> None:
        """See Store."""
        self._translated(pinned.name, self._fs.invalidate_cache)
        found = self.head(pinned.url)
        if found is None:
            raise gone(pinned.name)
        check_version(pinned, found.version, found.size_bytes)

    def _url(self, info: Any) -> str:
        name = str(info["name"])
        return name if "://" in name else f"{self._scheme}://{name.lstrip('/')}"

    def _found(self, info: Any) -> ObjectInfo:
        return ObjectInfo(url := self._url(info), sized(url, info.get("size")), _version(info))

    def _objects(self, infos: Iterable[Any]) -> Sequence[ObjectInfo]:
        return [self._found(i) for i in infos if i["type"] == "file" and not i["name"].endswith("/")]

    def _translated(self, name: str, call: Callable[[], Any], if_gone: Callable[[], Any] | None = None, n_bytes: int = -1) -> Any:
        """Return what a call brings. n_bytes: of the object; of a listing, -1."""
        try:
            return within(base.LISTING_S if n_bytes < 0 else base.limit_s(n_bytes), call)
        except FileNotFoundError:
            if if_gone is None:
                raise gone(name) from None
            return if_gone()
        except (TokmillError, TransientError):
            raise
        except Exception as error:  # noqa: BLE001  raised again, as what it means
            raise self._meaning(error, name) from None

    def _meaning(self, error: Exception, name: str) -> TransientError | TokmillError:
        """What an error of some library is to us: by the status of an answer where there is one."""
        answer = getattr(error, "response", None)
        statuses = (getattr(answer, "status_code", None), getattr(error, "status", None), getattr(error, "code", None))
        status = next((s for s in statuses if isinstance(s, int)), 0)
        what = f"{type(error).__name__}" + (f", HTTP {status}" if status else "")
        if isinstance(error, PermissionError) or status in {401, 403}:
            return denied(name, what, _NEXT.get(self._scheme, "check the credentials, then run the same command again"))
        if status == 429 or status >= 500 or (not status and isinstance(error, (OSError, TimeoutError))):
            return TransientError(what)
        return refused(name, what)


def _version(info: Any) -> str | None:
    lfs = info.get("lfs") or {}
    oid = lfs.get("sha256") or lfs.get("oid")
    if oid:
        return f"sha256 {oid}"
    return next((f"{key.lower()} {info[key]}" for key in _VERSIONS if info.get(key)), None)
