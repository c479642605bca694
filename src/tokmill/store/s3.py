"""Buckets that speak S3, through s3fs: credentials, region and endpoint are found as boto finds them (AWS_ENDPOINT_URL, ...).

Each request names the version that was pinned (If-Match), so a store refuses to mix two. The file object and the retries of s3fs
are refused: the first knows nothing of versions, and two who retry wait the product of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokmill.core.errors import UsageError
from tokmill.store.base import ObjectInfo, TransientError, changed, check_version, denied, filesystem, gone, refused
from tokmill.store.urls import has_credentials, redacted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokmill.core.errors import TokmillError
    from tokmill.store.base import ObjectVersion, RangeBuffer

_CHUNK_BYTES = 1 << 20
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
}
_DENIED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AccessDenied", "Forbidden"}
CREDENTIALS = (
    "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, ...), or FSSPEC_S3_ANON=true for a public bucket, "
    "then run the same command again"
)


class S3Store:
    """See `stores.Store`."""

    def __init__(self, _scheme: str) -> None:
        self._fs = s3_filesystem()

    def head(self, url: str) -> ObjectInfo | None:
        """See Store."""
        bucket, key = split_url(url)
        if not key:
            return None
        head = self._sync(redacted(url), self._fs._call_s3, "head_object", Bucket=bucket, Key=key, is_gone=lambda: None)  # noqa: SLF001
        return ObjectInfo(url, head["ContentLength"], _version(head.get("ETag"))) if head else None

    def list(self, url: str) -> Sequence[ObjectInfo]:
        """See Store."""
        bucket, key = split_url(url)
        path = f"{bucket}/{key}".rstrip("/")
        found = self._sync(redacted(url), self._fs._find, path, detail=True, is_gone=dict)  # noqa: SLF001
        return _objects(info for name, info in found.items() if name.startswith(f"{path}/"))

    def glob(self, pattern: str) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        """See Store."""
        bucket, key = split_url(pattern)
        found = self._sync(redacted(pattern), self._fs._glob, f"{bucket}/{key}", detail=True, is_gone=dict)  # noqa: SLF001
        return _objects(found.values()), [f"s3://{i['name']}/" for i in found.values() if i["type"] == "directory"]

    def fetch(self, pinned: ObjectVersion, buffer: RangeBuffer) -> None:
        """See Store."""
        self._sync(pinned.name, self._fetch, pinned, buffer)

    def is_streamed(self, pinned: ObjectVersion) -> bool:  # noqa: ARG002  the contract
        """See Store; ranges are always served."""
        return False

    def check(self, pinned: ObjectVersion) -> None:
        """Nothing: each answer says which version it is."""

    def release(self, pinned: ObjectVersion) -> None:
        """Nothing is held."""

    async def _fetch(self, pinned: ObjectVersion, buffer: RangeBuffer) -> None:
        bucket, key = split_url(pinned.url)
        kind, _, etag = (pinned.version or "").partition(" ")
        condition = {"IfMatch": etag} if kind == "etag" else {}
        answer = await self._fs._call_s3(  # noqa: SLF001
            "get_object", Bucket=bucket, Key=key, Range=f"bytes={buffer.at}-{buffer.end - 1}", **condition
        )
        body = answer["Body"]
        try:
            size = answer.get("ContentRange", "").rpartition("/")[2]
            check_version(pinned, _version(answer.get("ETag")), int(size) if size.isdecimal() else answer["ContentLength"])
            if answer["ResponseMetadata"]["HTTPStatusCode"] != 206 and buffer.at:
                raise refused(pinned.name, "the store does not serve ranges")
            while buffer.at < buffer.end:
                chunk = await body.read(min(_CHUNK_BYTES, buffer.end - buffer.at))
                if not chunk:
                    raise TransientError("the answer ended early")
                buffer.add(chunk)
        finally:
            body.close()

    def _sync(self, name: str, function: Any, *arguments: Any, is_gone: Any = None, **options: Any) -> Any:
        """Call a coroutine in fsspec's thread; is_gone: gives the answer for what is not there, else that is a change."""
        from fsspec.asyn import sync

        async def translated() -> Any:
            from aiohttp import ClientError as HttpError
            from botocore.exceptions import BotoCoreError, ClientError

            try:
                return await function(*arguments, **options)
            except FileNotFoundError:
                if is_gone is None:
                    raise gone(name) from None
                return is_gone()
            except TimeoutError:
                raise TransientError("no answer in time") from None
            except (OSError, ClientError, BotoCoreError, HttpError) as error:
                raise _meaning(error, name) from None
            except ValueError as error:
                raise bad_endpoint(error) from None

        return sync(self._fs.loop, translated)


def s3_filesystem() -> Any:
    """s3fs as its configuration and the environment say, that tries once."""
    import fsspec

    configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    # MD5 is the checksum that every such store knows.
    own = {"request_checksum_calculation": "when_required", "max_pool_connections": 16}
    found = filesystem("s3", config_kwargs={**own, **configured, "retries": {"total_max_attempts": 1}})
    found.retries = 1
    return found


def split_url(url: str) -> tuple[str, str]:
    """Bucket and key. Raises UsageError."""
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


def _meaning(error: Exception, name: str) -> TransientError | TokmillError:
    """What an error of the library is to us."""
    from botocore import exceptions as boto

    answer = answer_of(error)
    if answer is not None:
        return _answered(*answer, name)
    if lacks_credentials(error):
        return denied(name, f"no credentials ({type(error).__name__})", CREDENTIALS)
    if isinstance(error, (boto.ParamValidationError, boto.InvalidEndpointConfigurationError)):
        return UsageError(
            "the bucket or key is not a possible one", where=name, allowed="s3://bucket/key", next_step="check the URL"
        )
    if isinstance(error, boto.SSLError):
        return refused(name, "no safe connection (SSLError)")
    return TransientError(f"connection failed: {type(error).__name__}")


def _answered(code: str, status: int, name: str) -> TransientError | TokmillError:
    """What an answer with an error in it means."""
    what = f"HTTP {status}" + (f" {code}" if code and code != str(status) else "")
    if status in {412, 416}:
        return changed(name, "it is no longer the object of that version and size")
    if is_passing(code, status):
        return TransientError(what)
    if is_denied(code, status):
        return denied(name, what, CREDENTIALS)
    return refused(name, what)


def bad_endpoint(error: ValueError) -> Exception:
    """What the client says of an endpoint that is no URL; any other error as it is."""
    if not str(error).startswith("Invalid endpoint"):
        return error
    return UsageError(
        # It may hold a password.
        "the endpoint of the store is not a URL",
        where="AWS_ENDPOINT_URL",
        allowed="http:// or https://, a host and perhaps a port, such as https://s3.example.org:9000",
        next_step="set AWS_ENDPOINT_URL, or endpoint_url in the AWS configuration, to such a URL",
    )


def answer_of(error: Exception) -> tuple[str, int] | None:
    """Code and HTTP status of the answer that an error of the library is about; None: there was no answer."""
    from botocore.exceptions import ClientError

    cause = error if isinstance(error, ClientError) else error.__cause__
    if not isinstance(cause, ClientError):
        return None
    response: dict[str, Any] = cause.response
    return str(response.get("Error", {}).get("Code", "")), int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_passing(code: str, status: int) -> bool:
    """Whether such an answer may pass by itself."""
    return code in _TRANSIENT or status == 429 or (status >= 500 and status != 501)


def is_denied(code: str, status: int) -> bool:
    """Whether such an answer is about who asks."""
    return code in _DENIED or status in {401, 403}


def lacks_credentials(error: Exception) -> bool:
    """Whether nothing was asked of the store because nobody said who asks."""
    from botocore import exceptions as boto

    return isinstance(
        error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound, boto.TokenRetrievalError)
    )


def _version(etag: str | None) -> str | None:
    return f"etag {etag}" if etag else None


def _objects(infos: Iterable[Any]) -> list[ObjectInfo]:
    return [
        ObjectInfo(f"s3://{i['name']}", i["size"], _version(i.get("ETag")))
        for i in infos
        if i["type"] == "file" and not i["name"].endswith("/")
    ]
