"""Buckets that speak S3, through botocore: inputs are read from them and outputs are sent to them.

Credentials, region and endpoint are found as the AWS tools find them (AWS_PROFILE, AWS_ENDPOINT_URL, ~/.aws/config, SSO), and
fsspec's settings for s3 count too (FSSPEC_S3_ANON=true). An input's requests name the pinned version (If-Match), so a store never
mixes two. Each body goes with its MD5, which every such store checks; older stores reject the newer checksums. A store that does
not know conditions (If-None-Match) says so; then a look before must do, which two writers can pass at once.

Why botocore: obstore cannot make a multipart upload conditional, list and resume one, or copy ranges (its issues 289 and 563 in
apache/arrow-rs-object-store); s3fs offers these only under private names.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import functools
import hashlib
import re
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import MemoryBudgetError, StorageError, UsageError
from tokmill.core.secrets import has_credentials
from tokmill.core.system.memory import usable_bytes
from tokmill.core.text import format_memory
from tokmill.store import base
from tokmill.store.base import (
    AlreadyExists,
    ObjectInfo,
    Store,
    TransientError,
    UploadNotFound,
    changed,
    check_version,
    denied,
    gone,
    refused,
    store_for,
    within,
)
from tokmill.store.urls import redacted, scheme_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tokmill.store.base import ObjectVersion, RangeBuffer

_CONNECT_S, _SILENCE_S = 15, 60
_CHUNK_BYTES = 128 << 10
"""Read at once: a connection that breaks loses up to this much."""
_MARK = "tokmill"
"""Name of the metadata that holds the mark."""
_ETAG = "etag "
"""Before the ETag in a version."""
_TRANSIENT = {
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "InternalError",
    "ServiceUnavailable",
    "OperationAborted",
    "IncompleteBody",
    # A body that arrived damaged.
    "BadDigest",
    "XAmzContentSHA256Mismatch",
}
_DENIED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AccessDenied", "Forbidden"}
_CREDENTIALS = (
    "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, ...), or FSSPEC_S3_ANON=true for a public bucket, "
    "then run the same command again"
)
_MAGIC = re.compile(r"[*?[]")


_OTHER = "the store says that other bytes have arrived than were sent (ETag)"


class _NotThereError(Exception):
    """The store has no such object."""


class _NoConditionsError(Exception):
    """The store does not know conditions."""


class _Client:
    """The S3 client of botocore, which tries once. Used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: Any = None

    def ask(self, translate: Callable[[Exception], Exception], method: str, **arguments: Any) -> Any:
        """Return the answer to one request. Raises what `translate` makes of an error."""
        with translated(translate):
            with self._lock:
                self._made = self._made or _new_client()
            request = partial(getattr(self._made, method), **_in_every_request(self._made, method), **arguments)
            answer = within(base.limit_s(len(arguments.get("Body", b""))), request)
            _check_fields(answer, method)
            return answer

    def pages(
        self, translate: Callable[[Exception], Exception], method: str, room: _Room | None = None, **arguments: Any
    ) -> Iterator[Any]:
        """Yield the answers to a request that is answered in pages. room: what several listings share.

        Raises as `ask`; UsageError for a listing without an end, MemoryBudgetError for one that does not fit.
        """
        room = room or _Room()
        seen: set[int] = set()
        n_same, where = 0, arguments.get("Prefix") or arguments["Bucket"]
        while True:
            page = self.ask(translate, method, **arguments)
            lists = _FIELDS[method][1]
            room.take((each for key in lists for each in page.get(key, ())), where)
            yield page
            if not page.get("IsTruncated"):
                return
            found = hash(tuple(each[name] for key, names in lists.items() for each in page.get(key, ()) for name in names))
            n_same = n_same + 1 if found in seen else 0
            following = tuple(page.get(theirs) for theirs in _NEXT_PAGE[method])
            if hash(following) in seen or None in following or n_same > _MOST_SAME:
                raise UsageError(
                    "the listing of the store has no end: it gives the same pages again and again, or names no next one",
                    where=where,
                    allowed="listings of any length, each page another",
                    next_step=_NARROWER,
                )
            seen.update((found, hash(following)))
            arguments.update(zip(_NEXT_PAGE[method].values(), following, strict=True))


class _Room:
    """Memory and time that listings may take together: a store may name new keys for ever."""

    def __init__(self) -> None:
        self._most_bytes = self._left_bytes = usable_bytes() // _LISTED_PART
        self._until = time.monotonic() + _LONGEST_S

    def take(self, entries: Iterable[Mapping[str, Any]], where: str) -> None:
        """Count the entries of a page. Raises MemoryBudgetError, and UsageError when it takes too long."""
        self._left_bytes -= sum(_ENTRY_BYTES + sum(map(sys.getsizeof, each.values())) for each in entries)
        if self._left_bytes < 0:
            raise MemoryBudgetError(
                "the listing of the store is too long for the memory of this machine, or has no end",
                where=where,
                allowed=f"as much as fits into {format_memory(self._most_bytes)}, some 500 bytes for each object",
                next_step=_NARROWER,
            )
        if time.monotonic() > self._until:
            raise UsageError(
                f"the listing of the store has no end: it goes on after {_LONGEST_S // 3600} hours",
                where=where,
                allowed="listings that end",
                next_step=_NARROWER,
            )


_LISTED_PART, _ENTRY_BYTES, _LONGEST_S = 2, 200, 12 * 3600
"""Part of the machine's memory that listings may take; bytes for an entry beside its texts; seconds that listings may take."""
_NARROWER = "check the store, or name a narrower prefix"
_NEXT_PAGE = {
    "list_objects_v2": {"NextContinuationToken": "ContinuationToken"},
    "list_parts": {"NextPartNumberMarker": "PartNumberMarker"},
    "list_multipart_uploads": {"NextKeyMarker": "KeyMarker", "NextUploadIdMarker": "UploadIdMarker"},
}
"""By request: where an answer says how to go on, and where the next request says so."""
_MOST_SAME = 1_000
"""Pages in a row with the same entries as earlier ones, or none: some stores give empty ones."""
_FIELDS: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "head_object": (("ContentLength",), {}),
    "get_object": (("ContentLength", "Body"), {}),
    "create_multipart_upload": (("UploadId",), {}),
    "upload_part": (("ETag",), {}),
    "upload_part_copy": (("CopyPartResult",), {}),
    "list_objects_v2": ((), {"Contents": ("Key", "Size"), "CommonPrefixes": ("Prefix",)}),
    "list_parts": ((), {"Parts": ("PartNumber", "Size", "ETag")}),
    "list_multipart_uploads": ((), {"Uploads": ("Key", "UploadId")}),
}
"""By request, what an answer must have, and what each entry of its lists."""


def _check_fields(answer: Mapping[str, Any], method: str) -> None:
    """Raise ResponseParserError for an answer that lacks something."""
    from botocore.parsers import ResponseParserError

    needed, lists = _FIELDS.get(method, ((), {}))
    missing = [name for name in needed if name not in answer]
    missing += [name for key, names in lists.items() for each in answer.get(key, ()) for name in names if name not in each]
    if missing:
        raise ResponseParserError(f"the answer has no {missing[0]}")


def _new_client() -> Any:
    import fsspec
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.session import Session

    configured = fsspec.config.conf.get("s3", {})
    is_anonymous = str(configured.get("anon", False)).lower() in {"true", "1", "yes"}
    config = Config(
        connect_timeout=_CONNECT_S,
        read_timeout=_SILENCE_S,
        max_pool_connections=16,
        # MD5 is the checksum that every such store knows.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        **({"signature_version": UNSIGNED} if is_anonymous else {}),
    )
    arguments = {
        "endpoint_url": configured.get("endpoint_url"),
        "aws_access_key_id": configured.get("key"),
        "aws_secret_access_key": configured.get("secret"),
        "aws_session_token": configured.get("token"),
        "use_ssl": configured.get("use_ssl"),
        **configured.get("client_kwargs", {}),
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    try:
        config = config.merge(Config(**{**configured.get("config_kwargs", {}), "retries": {"total_max_attempts": 1}}))
        session = Session(profile=configured.get("profile"))
        session.register_component("data_loader", _data_loader(session.get_config_variable("data_path")))
        return session.create_client("s3", **arguments, config=config)
    except TypeError as error:
        raise UsageError(
            f"the settings of fsspec for s3 have a key that cannot be used: {error}",
            where="FSSPEC_S3, or the files of fsspec's settings",
            allowed="in client_kwargs and config_kwargs, what botocore's create_client and Config take",
            next_step="correct the key, or take it out",
        ) from None


@functools.cache
def _data_loader(path: str | None) -> Any:
    """Return what reads botocore's descriptions of services, which takes it 0.2 s the first time. path: beside botocore's own."""
    from botocore.loaders import create_loader

    return create_loader(path)


def _in_every_request(client: Any, method: str) -> dict[str, Any]:
    """Return what fsspec's settings add to each request that takes it, such as the encryption of objects."""
    import fsspec

    added = fsspec.config.conf.get("s3", {}).get("s3_additional_kwargs", {})
    if not added:
        return {}
    shape = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method]).input_shape
    return {name: value for name, value in added.items() if shape is not None and name in shape.members}


class S3Store(Store):
    """See `base.Store`."""

    def __init__(self, _scheme: str) -> None:
        self._client = _Client()

    def head(self, url: str) -> ObjectInfo | None:
        """See Store."""
        bucket, key = split_url(url)
        try:
            head = self._client.ask(_input_errors(redacted(url)), "head_object", Bucket=bucket, Key=key) if key else None
        except _NotThereError:
            return None
        return ObjectInfo(url, head["ContentLength"], _version(head)) if head else None

    def list(self, url: str) -> Sequence[ObjectInfo]:
        """See Store."""
        bucket, key = split_url(url)
        top = key.rstrip("/")
        return self._list(redacted(url), bucket, f"{top}/" if top else "", _Room())[0]

    def glob(self, pattern: str) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        """See Store. A `*` is matched one level at a time, so that what lies deeper is not listed; `**` lists all of it."""
        from fsspec.utils import glob_translate

        name, (bucket, key), room = redacted(pattern), split_url(pattern), _Room()
        is_directory = key.endswith("/")
        if "**" in key:
            plain = key[: _MAGIC.search(key).start()]  # type: ignore[union-attr]
            infos, _ = self._list(name, bucket, plain, room)
            matches = re.compile(glob_translate(key)).match
            keys = [split_url(info.name)[1] for info in infos]
            if is_directory:
                above = {each[: slash.end()] for each in keys for slash in re.finditer("^|/", each)}
                return (), [f"s3://{bucket}/{each}" for each in above if matches(each)]
            return [info for info, each in zip(infos, keys, strict=True) if matches(each)], ()
        prefixes, objects = [""], []
        *directories, last = key.removesuffix("/").split("/")
        for i, level in enumerate([*directories, last]):
            is_last, found_below = i == len(directories), []
            for prefix in prefixes:
                if not _MAGIC.search(level) and not is_last:
                    found_below.append(f"{prefix}{level}/")
                    continue
                plain = _MAGIC.split(level)[0]
                infos, below = self._list(name, bucket, prefix + plain, room, Delimiter="/")
                is_like = re.compile(re.escape(prefix) + fnmatch.translate(level)).match
                found_below += [each for each in below if is_like(each[:-1])]
                is_wanted = is_last and not is_directory
                objects += [info for info in infos if is_wanted and is_like(split_url(info.name)[1])]
            prefixes = found_below
        return objects, [f"s3://{bucket}/{prefix}" for prefix in prefixes]

    def fetch(self, pinned: ObjectVersion, buffer: RangeBuffer) -> None:
        """See Store."""
        bucket, key = split_url(pinned.url)
        is_etag = (pinned.version or "").startswith(_ETAG)
        condition = {"IfMatch": pinned.version.removeprefix(_ETAG)} if pinned.version and is_etag else {}
        place = f"bytes={buffer.at}-{buffer.end - 1}"
        errors = _input_errors(pinned.name)
        try:
            answer = self._client.ask(errors, "get_object", Bucket=bucket, Key=key, Range=place, **condition)
        except _NotThereError:
            raise gone(pinned.name) from None
        with contextlib.ExitStack() as opened:
            body = opened.enter_context(contextlib.closing(answer["Body"]))
            size = answer.get("ContentRange", "").rpartition("/")[2]
            check_version(pinned, _version(answer), int(size) if size.isdecimal() else answer["ContentLength"])
            if answer["ResponseMetadata"]["HTTPStatusCode"] != 206 and buffer.at:
                raise refused(pinned.name, "the store does not serve ranges")
            # What reads it closes it: nobody else can, while it waits for a byte.
            opened.pop_all()
        with translated(errors):
            _receive(body, buffer)

    def _list(self, name: str, bucket: str, prefix: str, room: _Room, **options: Any) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        """Return objects whose keys begin with a prefix, and with a delimiter the prefixes below it; none of a missing bucket."""
        objects: Any = []
        prefixes: Any = []
        with contextlib.suppress(_NotThereError):
            of = {"Bucket": bucket, "Prefix": prefix, **options}
            for page in self._client.pages(_input_errors(name), "list_objects_v2", room, **of):
                infos = (ObjectInfo(f"s3://{bucket}/{o['Key']}", o["Size"], _version(o)) for o in page.get("Contents", []))
                objects += [info for info in infos if not info.name.endswith("/")]
                prefixes += [each["Prefix"] for each in page.get("CommonPrefixes", [])]
        return objects, prefixes


class S3Objects:
    """The objects below one prefix. Names are keys without the prefix.

    Methods may be called from any thread; each makes one attempt and raises TransientError, StorageError or UsageError.
    """

    def __init__(self, url: str) -> None:
        self._client = _Client()
        self._bucket, key = split_url(url)
        key = key.rstrip("/")
        if not key.strip("/"):
            raise UsageError(
                "the URL names a bucket and no prefix in it",
                where=redacted(url),
                allowed="s3://bucket/prefix",
                next_step=f"name one, such as s3://{self._bucket}/tokens",
            )
        self._prefix = f"{key}/"
        self.url = redacted(url).rstrip("/")
        """Of the prefix, without a slash at its end and without secrets."""
        if split_url(self.url) != (self._bucket, key):
            raise UsageError(
                "the prefix has a question mark, and what follows may be a secret, so it cannot be shown as it is",
                where=self.url,
                allowed="s3://bucket/prefix",
                next_step="check the URL, or choose another prefix",
            )
        self._unconditional: set[str] = set()
        """Requests for which the store does not know conditions."""

    def head(self, name: str) -> ObjectInfo | None:
        """Return an object with its mark; None if there is none."""
        try:
            head = self._ask("head_object", Key=self._key(name))
        except _NotThereError:
            return None
        return ObjectInfo(name, head["ContentLength"], _version(head), head.get("Metadata", {}).get(_MARK, ""))

    def list(self) -> Sequence[ObjectInfo]:
        """Return every object below the prefix, in the order of their names, without marks."""
        pages = self._pages("list_objects_v2", Prefix=self._prefix)
        return [ObjectInfo(self._name(o["Key"]), o["Size"], _version(o)) for page in pages for o in page.get("Contents", [])]

    def put(self, name: str, data: bytes, *, mark: str = "", only_new: bool = False) -> None:
        """Make an object in one piece. Raises AlreadyExists if there is one and `only_new` is set."""
        metadata = {"Metadata": {_MARK: mark}} if mark else {}
        sent = {"Key": self._key(name), "Body": data, "ContentMD5": _md5(data), **metadata}
        if self._is_other(self._make(name, "put_object", only_new=only_new, **sent), data):
            self.delete([name])
            raise TransientError(_OTHER)

    def create_multipart(self, name: str, mark: str) -> str:
        """Begin an object that is sent in parts, and not visible before it is complete. Return the id of the upload."""
        return str(self._ask("create_multipart_upload", Key=self._key(name), Metadata={_MARK: mark})["UploadId"])

    def list_parts(self, name: str, upload: str) -> Mapping[int, tuple[int, str]]:
        """Return size and ETag (without quotes) of the parts that have arrived, by number from 1. Raises UploadNotFound."""
        pages = self._pages("list_parts", Key=self._key(name), UploadId=upload)
        return {p["PartNumber"]: (p["Size"], p["ETag"].strip('"')) for page in pages for p in page.get("Parts", [])}

    def upload_part(self, name: str, upload: str, number: int, data: bytes) -> str:
        """Send a part, which the store checks against its MD5. Return its ETag. Raises UploadNotFound."""
        part = {"UploadId": upload, "PartNumber": number, "Body": data, "ContentMD5": _md5(data)}
        answer = self._ask("upload_part", Key=self._key(name), **part)
        if self._is_other(answer, data):
            raise TransientError(_OTHER)
        return str(answer["ETag"]).strip('"')

    def _is_other(self, answer: Mapping[str, Any], data: bytes) -> bool:
        """Return whether the ETag of an answer says that other bytes have arrived than were sent.

        It counts where it is an MD5: of one request's body (not of an object of several parts), which looks like one, unless the
        store encrypts with keys of its own or the client's, or is a directory bucket; their ETags are something else.
        """
        etag = str(answer.get("ETag", "")).strip('"').lower()
        is_md5 = re.fullmatch("[0-9a-f]{32}", etag) and not self._bucket.endswith("--x-s3")
        is_encrypted = "kms" in str(answer.get("ServerSideEncryption", "")) or answer.get("SSECustomerAlgorithm")
        return bool(is_md5) and not is_encrypted and etag != hashlib.md5(data, usedforsecurity=False).hexdigest()

    def complete_multipart(self, name: str, upload: str, etags: Sequence[str], *, only_new: bool = False) -> None:
        """Make the object from its parts. Raises UploadNotFound; AlreadyExists as `put`."""
        parts = {"Parts": [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, 1)]}
        of = {"UploadId": upload, "MultipartUpload": parts}
        self._make(name, "complete_multipart_upload", only_new=only_new, Key=self._key(name), **of)

    def copy(self, source: ObjectInfo, name: str, mark: str) -> None:
        """Copy an object below the prefix, this version of it, in one request and inside the store.

        Raises AlreadyExists if there is one, or the source is another version by now; UploadNotFound if the source is gone.
        """
        marked = {"MetadataDirective": "REPLACE", "Metadata": {_MARK: mark}}
        with _gone():
            self._make(name, "copy_object", only_new=True, Key=self._key(name), **self._from(source), **marked)

    def copy_part(self, source: ObjectInfo, name: str, upload: str, number: int, place: tuple[int, int]) -> str:
        """Make a part from bytes of another object; place: offset and number of bytes. Return its ETag. Raises as `copy`."""
        begin, n_bytes = place
        of = {"UploadId": upload, "PartNumber": number, "CopySourceRange": f"bytes={begin}-{begin + n_bytes - 1}"}
        with _gone():
            answer = self._ask("upload_part_copy", Key=self._key(name), **of, **self._from(source))
        return str(answer["CopyPartResult"]["ETag"]).strip('"')

    def list_multipart(self) -> Sequence[tuple[str, str]]:
        """Return name and upload id of every multipart upload that is neither complete nor aborted."""
        pages = self._pages("list_multipart_uploads", Prefix=self._prefix)
        return [(self._name(u["Key"]), u["UploadId"]) for page in pages for u in page.get("Uploads", [])]

    def abort_multipart(self, name: str, upload: str) -> None:
        """Abort an upload and delete its parts; no error if it is not known."""
        with contextlib.suppress(_NotThereError, UploadNotFound):
            self._ask("abort_multipart_upload", Key=self._key(name), UploadId=upload)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, in this order; no error for one that is not there.

        One by one: not every store deletes many at once, and then says only in its answer which it did.
        """
        for name in names:
            with contextlib.suppress(_NotThereError):
                self._ask("delete_object", Key=self._key(name))

    def _make(self, name: str, method: str, *, only_new: bool, **arguments: Any) -> Any:
        """Make an object become visible, only where there is none if that is asked for. Return the answer."""
        if only_new and method not in self._unconditional:
            try:
                return self._ask(method, IfNoneMatch="*", **arguments)
            except _NoConditionsError:
                self._unconditional.add(method)
        if only_new and self.head(name) is not None:
            raise AlreadyExists
        return self._ask(method, **arguments)

    def _from(self, source: ObjectInfo) -> dict[str, Any]:
        """Return the arguments that name an object to copy, and pin it."""
        pinned = {"CopySourceIfMatch": source.version.removeprefix(_ETAG)} if source.version else {}
        return {"CopySource": {"Bucket": self._bucket, "Key": self._key(source.name)}, **pinned}

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _name(self, key: str) -> str:
        return key[len(self._prefix) :]

    def _ask(self, method: str, **arguments: Any) -> Any:
        translate = _output_errors(self.url, method, is_conditional="IfNoneMatch" in arguments)
        return self._client.ask(translate, method, Bucket=self._bucket, **arguments)

    def _pages(self, method: str, **arguments: Any) -> Iterator[Any]:
        return self._client.pages(_output_errors(self.url, method), method, Bucket=self._bucket, **arguments)


def _receive(body: Any, buffer: RangeBuffer) -> None:
    """Read what a buffer lacks, and close the body. Raises TransientError when that takes too long."""
    adding = threading.Lock()
    is_late = False

    def receive() -> None:
        with contextlib.closing(body):
            while buffer.at < buffer.end:
                chunk = body.read(min(_CHUNK_BYTES, buffer.end - buffer.at))
                if not chunk:
                    raise TransientError("the answer ended early")
                with adding:
                    if is_late:
                        return
                    buffer.add(chunk)

    try:
        within(base.limit_s(buffer.end - buffer.at), receive)
    except BaseException:
        with adding:
            is_late = True
        # It ends with the next byte that arrives. The socket is not always to be had.
        with contextlib.suppress(Exception):
            body.set_socket_timeout(0.001)
        raise


def objects_at(url: str) -> S3Objects:
    """Return the objects below a URL. Raises UsageError for a kind of store that takes no output, and for a missing package.

    An output needs whole objects that appear at once, parts that can be sent again, and conditions on what is there.
    """
    scheme = scheme_of(url)
    if scheme != "s3":
        raise UsageError(
            f"outputs are not written to {scheme}://",
            where=f"{scheme}://",
            allowed="a directory, or s3:// with a bucket and a prefix (any store that speaks S3, see AWS_ENDPOINT_URL)",
            next_step="--out DIR, then copy it there, manifest.json last",
        )
    # Raises if the package is missing, as for inputs.
    store_for(url)
    return S3Objects(url)


def split_url(url: str) -> tuple[str, str]:
    """Return bucket and key. Raises UsageError."""
    if has_credentials(url):
        raise UsageError(
            "user and password in an s3:// URL are not read",
            where=redacted(url),
            allowed="s3://bucket/key",
            next_step="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    bucket, _, key = url.partition("://")[2].partition("/")
    if not bucket:
        raise UsageError("no bucket is named", where=redacted(url), allowed="s3://bucket/key", next_step="check the URL")
    return bucket, key


@contextlib.contextmanager
def translated(translate: Callable[[Exception], Exception]) -> Iterator[None]:
    """Raise what `translate` makes of an error of botocore; one of the connection while a body is read is not translated there."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (OSError, ClientError, BotoCoreError, ResponseParserError) as error:
        raise translate(error) from None
    except HTTPError as error:
        raise TransientError(f"connection failed: {type(error).__name__}") from None
    except ValueError as error:
        raise _bad_endpoint(error) from None


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    """Raise UploadNotFound for an object that is to be copied and is not there."""
    try:
        yield
    except _NotThereError:
        raise UploadNotFound from None


def _input_errors(name: str) -> Callable[[Exception], Exception]:
    """Return what translates errors about an input."""

    def translate(error: Exception) -> Exception:
        _, status = _answer_of(error)
        if status == 404:
            return _NotThereError()
        if status in {412, 416}:
            return changed(name, "it is no longer the object of that version and size")
        return _meaning(error, name, lambda what: denied(name, what, _CREDENTIALS), lambda what: refused(name, what))

    return translate


def _output_errors(url: str, method: str, *, is_conditional: bool = False) -> Callable[[Exception], Exception]:
    """Return what translates errors about the prefix of an output."""

    def denied_output(what: str) -> StorageError:
        allowed = "a prefix that may be listed, read and written"
        return StorageError(f"access denied: {what}", where=url, allowed=allowed, next_step=_CREDENTIALS, resumes=True)

    def refused_output(what: str) -> StorageError:
        return StorageError(
            f"the store refused: {what}",
            where=url,
            allowed="a store that answers as its protocol says",
            next_step="check the URL, AWS_ENDPOINT_URL, the region and whether the credentials are still good, then run it again",
        )

    def translate(error: Exception) -> Exception:
        code, status = _answer_of(error)
        if is_conditional and (status == 501 or code == "NotImplemented"):
            return _NoConditionsError()
        if status == 412:
            return AlreadyExists()
        if status == 409 and method == "complete_multipart_upload":
            # Another wrote or deleted the object at that moment; unlike a put, the upload has to be begun again then.
            return UploadNotFound()
        if code == "NoSuchBucket":
            allowed, next_step = "a bucket that exists", "check the URL, or make the bucket"
            return UsageError("there is no such bucket", where=url, allowed=allowed, next_step=next_step)
        if status == 404:
            return UploadNotFound() if code == "NoSuchUpload" else _NotThereError()
        return _meaning(error, url, denied_output, refused_output)

    return translate


def _meaning(error: Exception, where: str, denied: Callable[[str], Exception], refused: Callable[[str], Exception]) -> Exception:
    """Return what an error of botocore means, wherever it came from."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    transient = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, ResponseParserError, OSError)
    no_credentials = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)
    if isinstance(error, boto.ClientError):
        found: Exception
        code, status = _answer_of(error)
        what = f"HTTP {status}" + (f" {code}" if code and code != str(status) else "")
        # 409: a condition that met another writer at the same moment.
        if code in _TRANSIENT or status in {409, 429} or (status >= 500 and status != 501):
            found = TransientError(what)
        else:
            found = denied(what) if code in _DENIED or status in {401, 403} else refused(what)
    elif isinstance(error, (*no_credentials, boto.CredentialRetrievalError, boto.TokenRetrievalError, boto.SSOError)):
        found = denied(f"no credentials ({type(error).__name__})")
    elif isinstance(error, (boto.ParamValidationError, boto.InvalidEndpointConfigurationError)):
        what, allowed = "the bucket or key is not a possible one", "s3://bucket/key"
        found = UsageError(what, where=where, allowed=allowed, next_step="check the URL")
    elif isinstance(error, boto.SSLError):
        found = refused("no safe connection (SSLError)")
    elif isinstance(error, (boto.ReadTimeoutError, boto.ConnectTimeoutError, TimeoutError)):
        found = TransientError("no answer in time")
    elif isinstance(error, boto.InvalidRegionError):
        found = UsageError(
            "the region of the store is not a possible one",
            where="AWS_DEFAULT_REGION, or region in the AWS configuration",
            allowed="letters, digits and hyphens, such as us-east-1",
            next_step="correct it",
        )
    elif isinstance(error, transient):
        found = TransientError(f"connection failed: {type(error).__name__}")
    else:
        found = refused(type(error).__name__)
    return found


def _answer_of(error: Exception) -> tuple[str, int]:
    """Return code and HTTP status of the answer that an error is about; empty and 0 if there was none."""
    from botocore.exceptions import ClientError

    response: dict[str, Any] = error.response if isinstance(error, ClientError) else {}
    return str(response.get("Error", {}).get("Code", "")), int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _bad_endpoint(error: ValueError) -> Exception:
    """Return the error for an endpoint that is not a URL; any other error as it is."""
    if "endpoint" not in str(error) and "URL" not in str(error):
        return error
    return UsageError(
        # It may hold a password.
        "the endpoint of the store is not a URL",
        where="AWS_ENDPOINT_URL",
        allowed="http:// or https://, a host and perhaps a port, such as https://s3.example.org:9000",
        next_step="set AWS_ENDPOINT_URL, or endpoint_url in the AWS configuration, to such a URL",
    )


def _version(answer: Mapping[str, Any]) -> str | None:
    return f"{_ETAG}{answer['ETag']}" if answer.get("ETag") else None


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
