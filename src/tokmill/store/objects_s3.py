"""Outputs in buckets that speak S3, through the client that s3fs brings; credentials and endpoint are found as for inputs.

Each body goes with its MD5, which every such store checks; the newer checksums are refused by older ones. The hard one is a store
that does not know conditions (`If-None-Match`): it says so, and then a look before must do, which two writers can pass at once.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import StorageError, TokmillError, UsageError
from tokmill.store.base import ObjectInfo, TransientError
from tokmill.store.objects import AlreadyExists, UploadNotFound
from tokmill.store.s3 import (
    CREDENTIALS,
    answer_of,
    bad_endpoint,
    is_denied,
    is_passing,
    lacks_credentials,
    s3_filesystem,
    split_url,
)
from tokmill.store.urls import redacted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_MARK = "tokmill"
"""Name of the metadata that holds the mark."""
_ETAG = "etag "
"""Before the ETag in a version."""


class _NotThereError(Exception):
    """The store has no such object."""


class _NoConditionsError(Exception):
    """The store does not know conditions."""


class S3Objects:
    """See `objects.ObjectStore`."""

    def __init__(self, url: str) -> None:
        self._fs = s3_filesystem()
        self._bucket, key = split_url(url)
        key = key.rstrip("/")
        if not key.strip("/"):
            raise UsageError(
                "a bucket is named, and no prefix in it",
                where=redacted(url),
                allowed="s3://bucket/prefix",
                next_step=f"name one, such as s3://{self._bucket}/tokens",
            )
        self._prefix = f"{key}/"
        self.url = redacted(url).rstrip("/")
        if split_url(self.url) != (self._bucket, key):
            raise UsageError(
                "a prefix with a question mark, behind which there may be a secret, cannot be shown as it is",
                where=self.url,
                allowed="s3://bucket/prefix",
                next_step="check the URL, or choose another prefix",
            )
        self._unconditional: set[str] = set()
        """Requests for which the store does not know conditions."""

    def head(self, name: str) -> ObjectInfo | None:
        """See ObjectStore."""
        try:
            head = self._ask("head_object", Key=self._key(name))
        except _NotThereError:
            return None
        return ObjectInfo(name, head["ContentLength"], _version(head), head.get("Metadata", {}).get(_MARK, ""))

    def list(self) -> Sequence[ObjectInfo]:
        """See ObjectStore."""
        found: list[ObjectInfo] = []
        more: dict[str, str] = {}
        while True:
            page = self._ask("list_objects_v2", Prefix=self._prefix, **more)
            found += [ObjectInfo(self._name(o["Key"]), o["Size"], _version(o)) for o in page.get("Contents", [])]
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def put(self, name: str, data: bytes, *, mark: str = "", only_new: bool = False) -> None:
        """See ObjectStore."""
        metadata = {"Metadata": {_MARK: mark}} if mark else {}
        self._make(name, "put_object", only_new=only_new, Key=self._key(name), Body=data, ContentMD5=_md5(data), **metadata)

    def create_multipart(self, name: str, mark: str) -> str:
        """See ObjectStore."""
        return str(self._ask("create_multipart_upload", Key=self._key(name), Metadata={_MARK: mark})["UploadId"])

    def list_parts(self, name: str, upload: str) -> Mapping[int, tuple[int, str]]:
        """See ObjectStore."""
        found: dict[int, tuple[int, str]] = {}
        more: dict[str, int] = {}
        while True:
            page = self._ask("list_parts", Key=self._key(name), UploadId=upload, **more)
            found.update((p["PartNumber"], (p["Size"], p["ETag"].strip('"'))) for p in page.get("Parts", []))
            if not page.get("IsTruncated"):
                return found
            more = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def upload_part(self, name: str, upload: str, number: int, data: bytes) -> str:
        """See ObjectStore."""
        answer = self._ask("upload_part", Key=self._key(name), UploadId=upload, PartNumber=number, Body=data, ContentMD5=_md5(data))
        return str(answer["ETag"]).strip('"')

    def complete_multipart(self, name: str, upload: str, etags: Sequence[str], *, only_new: bool = False) -> None:
        """See ObjectStore."""
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, 1)]
        self._make(
            name,
            "complete_multipart_upload",
            only_new=only_new,
            Key=self._key(name),
            UploadId=upload,
            MultipartUpload={"Parts": parts},
        )

    def copy(self, source: ObjectInfo, name: str, mark: str) -> None:
        """See ObjectStore."""
        marked = {"MetadataDirective": "REPLACE", "Metadata": {_MARK: mark}}
        with _gone():
            self._make(name, "copy_object", only_new=True, Key=self._key(name), **self._from(source), **marked)

    def copy_part(self, source: ObjectInfo, name: str, upload: str, number: int, place: tuple[int, int]) -> str:
        """See ObjectStore."""
        begin, n_bytes = place
        of = {"UploadId": upload, "PartNumber": number, "CopySourceRange": f"bytes={begin}-{begin + n_bytes - 1}"}
        with _gone():
            answer = self._ask("upload_part_copy", Key=self._key(name), **of, **self._from(source))
        return str(answer["CopyPartResult"]["ETag"]).strip('"')

    def list_multipart(self) -> Sequence[tuple[str, str]]:
        """See ObjectStore."""
        found: list[tuple[str, str]] = []
        more: dict[str, str] = {}
        while True:
            page = self._ask("list_multipart_uploads", Prefix=self._prefix, **more)
            found += [(self._name(u["Key"]), u["UploadId"]) for u in page.get("Uploads", [])]
            if not page.get("IsTruncated"):
                return found
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort_multipart(self, name: str, upload: str) -> None:
        """See ObjectStore."""
        try:
            self._ask("abort_multipart_upload", Key=self._key(name), UploadId=upload)
        except (_NotThereError, UploadNotFound):
            return

    def delete(self, names: Iterable[str]) -> None:
        """See ObjectStore. One by one: what deletes many at once is not everywhere, and says of each only in its answer whether."""
        for name in names:
            try:
                self._ask("delete_object", Key=self._key(name))
            except _NotThereError:
                continue

    def _make(self, name: str, method: str, *, only_new: bool, **arguments: Any) -> None:
        """Make an object become visible, only where there is none if that is asked for."""
        if only_new and method not in self._unconditional:
            try:
                self._ask(method, IfNoneMatch="*", **arguments)
                return
            except _NoConditionsError:
                self._unconditional.add(method)
        if only_new and self.head(name) is not None:
            raise AlreadyExists
        self._ask(method, **arguments)

    def _from(self, source: ObjectInfo) -> dict[str, Any]:
        """What names an object that is copied, and pins it."""
        pinned = {"CopySourceIfMatch": source.version.removeprefix(_ETAG)} if source.version else {}
        return {"CopySource": {"Bucket": self._bucket, "Key": self._key(source.name)}, **pinned}

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _name(self, key: str) -> str:
        return key[len(self._prefix) :]

    def _ask(self, method: str, **arguments: Any) -> Any:
        """One request, from any thread."""
        from fsspec.asyn import sync

        async def asked() -> Any:
            from aiohttp import ClientError as HttpError
            from botocore.exceptions import BotoCoreError, ClientError

            try:
                return await self._fs._call_s3(method, Bucket=self._bucket, **arguments)  # noqa: SLF001
            except TimeoutError:
                raise TransientError("no answer in time") from None
            except (OSError, ClientError, BotoCoreError, HttpError) as error:
                if method == "complete_multipart_upload" and (answer_of(error) or ("", 0))[1] == 409:
                    # Another wrote or deleted it at that moment; unlike one in one piece, it has to be begun again then.
                    raise UploadNotFound from None
                raise _meaning(error, self.url, is_conditional="IfNoneMatch" in arguments) from None
            except ValueError as error:
                raise bad_endpoint(error) from None

        return sync(self._fs.loop, asked)


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    """Raise UploadNotFound for an object that is to be copied and is not there."""
    try:
        yield
    except _NotThereError:
        raise UploadNotFound from None


def _meaning(error: Exception, url: str, *, is_conditional: bool) -> Exception:
    """What an error of the library is to us."""
    from botocore import exceptions as boto

    answer = answer_of(error)
    if answer is not None:
        return _answered(*answer, url, is_conditional=is_conditional)
    if lacks_credentials(error):
        return _denied(f"no credentials ({type(error).__name__})", url)
    if isinstance(error, (boto.ParamValidationError, boto.InvalidEndpointConfigurationError)):
        return UsageError(
            "the bucket or key is not a possible one", where=url, allowed="s3://bucket/key", next_step="check the URL"
        )
    if isinstance(error, boto.SSLError):
        return _refused("no safe connection (SSLError)", url)
    return TransientError(f"connection failed: {type(error).__name__}")


def _answered(code: str, status: int, url: str, *, is_conditional: bool) -> Exception:
    """What an answer with an error in it means."""
    what = f"HTTP {status}" + (f" {code}" if code and code != str(status) else "")
    if is_conditional and (status == 501 or code == "NotImplemented"):
        return _NoConditionsError()
    if status == 412:
        return AlreadyExists()
    if status == 404:
        return _no_bucket(url) if code == "NoSuchBucket" else UploadNotFound() if code == "NoSuchUpload" else _NotThereError()
    # A body that arrived damaged, or a condition that met another writer at the same moment.
    if is_passing(code, status) or code in {"BadDigest", "XAmzContentSHA256Mismatch"} or status == 409:
        return TransientError(what)
    return _denied(what, url) if is_denied(code, status) else _refused(what, url)


def _no_bucket(url: str) -> TokmillError:
    return UsageError(
        "there is no such bucket", where=url, allowed="a bucket that exists", next_step="check the URL, or make the bucket"
    )


def _denied(what: str, url: str) -> StorageError:
    return StorageError(
        f"access denied: {what}",
        where=url,
        allowed="a prefix that may be listed, read and written",
        next_step=CREDENTIALS,
        resumes=True,
    )


def _refused(what: str, url: str) -> StorageError:
    return StorageError(
        f"the store refused: {what}",
        where=url,
        allowed="a store that answers as its protocol says",
        next_step="check the URL, AWS_ENDPOINT_URL, the region and whether the credentials are still good, then run it again",
    )


def _version(answer: Mapping[str, Any]) -> str | None:
    return f"{_ETAG}{answer['ETag']}" if answer.get("ETag") else None


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
