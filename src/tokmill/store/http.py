"""Web servers: ranges where they are served, one stream from front to back where they are not.

The connection is fsspec's, so that its configuration (headers, proxies, time limits) counts. Its file object does not serve: for a
server without ranges it holds whole objects in memory, and it knows nothing of versions. A server may answer wrongly: an answer is
believed only as far as its status, range, size and ETag say that it is what was requested.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import UsageError
from tokmill.core.secrets import has_credentials
from tokmill.store import base
from tokmill.store.base import ObjectInfo, Store, TransientError, changed, check_version, denied, filesystem, gone, refused, sized
from tokmill.store.urls import redacted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokmill.store.base import ObjectVersion, RangeBuffer

_CONNECT_S = 15
_SILENCE_S = 60
"""Without a byte, after which a connection counts as broken."""
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_SKIP_BYTES = 1 << 20
_SUFFIXES = {"gzip": (".gz", ".tgz"), "x-gzip": (".gz", ".tgz"), "zstd": (".zst", ".tzst"), "aws-chunked": ("",)}
"""By the encoding that an answer names, endings of a name that say the same; of aws-chunked, which is about an upload, any."""


class HttpStore(Store):
    """See `base.Store`."""

    def __init__(self, _scheme: str) -> None:
        import fsspec

        configured = fsspec.config.conf.get("http", {}).get("client_kwargs", {})
        # Proxies and .netrc of the environment count, as they do for curl.
        self._fs = filesystem("http", client_kwargs={"trust_env": True, **configured})
        self._streams: dict[str, _Stream] = {}
        self._lock = threading.Lock()

    def head(self, url: str) -> ObjectInfo | None:
        """One byte is asked for: a URL that was signed for reading allows nothing else, and many servers know no HEAD."""
        return self._sync(self._look, url)  # type: ignore[no-any-return]

    def list(self, url: str) -> Sequence[ObjectInfo]:
        """Raises UsageError: a web server has no listing that could be relied upon."""
        raise UsageError(
            "a web server does not list what it has",
            where=redacted(url),
            allowed="URLs of objects, one by one",
            next_step="name each object",
        )

    def glob(self, pattern: str) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        """Raises UsageError, as `list`."""
        return self.list(pattern), ()

    def fetch(self, pinned: ObjectVersion, buffer: RangeBuffer) -> None:
        """See Store. Where there are no ranges, bytes that lie before are read and passed over."""
        self._sync(self._fetch, pinned, buffer)

    def is_streamed(self, pinned: ObjectVersion) -> bool:
        """See Store."""
        return pinned.name in self._streams

    def release(self, pinned: ObjectVersion) -> None:
        """See Store."""
        stream = self._streams.pop(pinned.name, None)
        if stream is not None:
            self._fs.loop.call_soon_threadsafe(stream.answer.close)

    def _sync(self, function: Any, *arguments: Any) -> Any:
        from fsspec.asyn import sync

        return sync(self._fs.loop, self._translated, function, *arguments)

    async def _translated(self, function: Any, *arguments: Any) -> Any:
        import aiohttp

        url = arguments[0] if isinstance(arguments[0], str) else arguments[0].url
        name = redacted(url)
        try:
            return await function(*arguments)
        except (aiohttp.InvalidURL, ValueError):
            # A slash ends the host, so what was meant for a password is taken for a port.
            is_cut = has_credentials(url) and "@" not in url.partition("://")[2].partition("/")[0]
            raise UsageError(
                "this is not a URL" + (": the password has a slash" if is_cut else ""),
                where=name,
                allowed="https://host/path",
                next_step="write each / of the password as %2F" if is_cut else "check the URL",
            ) from None
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise refused(name, f"no safe connection ({type(error).__name__})") from None
        except aiohttp.ClientPayloadError:
            raise TransientError("the answer ended early") from None
        except (aiohttp.ClientConnectionError, TimeoutError, OSError) as error:
            raise TransientError(_reason(error)) from None
        except aiohttp.ClientError as error:
            raise refused(name, type(error).__name__) from None

    async def _get(self, url: str, headers: Mapping[str, str]) -> Any:
        import aiohttp
        import yarl

        session = await self._fs.set_session()
        options = dict(self._fs.kwargs)
        headers = {"Accept-Encoding": "identity", **options.pop("headers", {}), **headers}
        options.setdefault("timeout", aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S))
        # As typed, to the letter: another spelling of a query would not fit its signature.
        is_encoded = url.isascii() and " " not in url
        request = session.get(yarl.URL(url, encoded=is_encoded), headers=headers, auto_decompress=False, **options)
        async with asyncio.timeout(base.limit_s()):
            return await request

    async def _look(self, url: str) -> ObjectInfo | None:
        answer = await self._get(url, {"Range": "bytes=0-0"})
        try:
            if answer.status in {404, 410}:
                return None
            if answer.status == 416:
                size = _total(answer)
                return ObjectInfo(url, 0 if size is None else size, _version(answer))
            _check_status(answer, redacted(url))
            size = _total(answer) if answer.status == 206 else answer.content_length
            return ObjectInfo(url, sized(url, size), _version(answer))
        finally:
            answer.close()

    async def _fetch(self, pinned: ObjectVersion, buffer: RangeBuffer) -> None:
        stream = self._streams.pop(pinned.name, None)
        if stream is not None and stream.position <= buffer.at:
            await self._read_on(stream, pinned, buffer)
            return
        if stream is not None:
            stream.answer.close()
        answer = await self._get(pinned.url, _conditions(pinned) | {"Range": f"bytes={buffer.at}-{buffer.end - 1}"})
        try:
            _check_answer(answer, pinned, buffer.at)
            if answer.status == 200:
                stream, answer = _Stream(answer), None
                await self._read_on(stream, pinned, buffer)
                return
            async with asyncio.timeout(base.limit_s(buffer.end - buffer.at)):
                async for chunk in answer.content.iter_any():
                    if not buffer.add(chunk):
                        break
        finally:
            if answer is not None:
                # What was asked for has been read: the connection is used again. What is left over, nobody wants.
                answer.release() if answer.content.at_eof() else answer.close()

    async def _read_on(self, stream: _Stream, pinned: ObjectVersion, buffer: RangeBuffer) -> None:
        """Read on in an answer that is the whole object; it is kept for what comes next."""
        try:
            async with asyncio.timeout(base.limit_s(buffer.end - stream.position)):
                await stream.read_into(buffer)
        except BaseException:
            stream.answer.close()
            raise
        self._streams[pinned.name] = stream


class _Stream:
    """An answer that is the whole object, and how far it was read."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.position = 0

    async def read_into(self, buffer: RangeBuffer) -> None:
        """Read what a buffer lacks; what lies before it is passed over."""
        while buffer.at < buffer.end:
            n_before = buffer.at - self.position
            chunk: bytes = await self.answer.content.read(min(_SKIP_BYTES, n_before) or buffer.end - buffer.at)
            if not chunk:
                raise TransientError("the answer ended early")
            self.position += len(chunk)
            if not n_before:
                buffer.add(chunk)


def _conditions(pinned: ObjectVersion) -> dict[str, str]:
    """Headers that let a server refuse another version. A weak ETag cannot be asked for."""
    kind, _, value = (pinned.version or "").partition(" ")
    return {"If-Match": value} if kind == "etag" and not value.startswith("W/") else {}


def _version(answer: Any) -> str | None:
    etag, modified = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
    return f"etag {etag}" if etag else f"modified {modified}" if modified else None


def _total(answer: Any) -> int | None:
    """Size of the whole object, of an answer to a range."""
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    return int(match[2]) if match and match[2] != "*" else None


def _check_answer(answer: Any, pinned: ObjectVersion, begin: int) -> None:
    """Raises what an answer means that is not what was asked for."""
    if answer.status in {404, 410}:
        raise gone(pinned.name)
    if answer.status == 412:
        raise changed(pinned.name, f"it is no longer {pinned.version}")
    if answer.status == 416:
        check_version(pinned, _version(answer), _total(answer))
    _check_status(answer, pinned.name)
    check_version(pinned, _version(answer), _total(answer) if answer.status == 206 else answer.content_length)
    if answer.status == 206:
        match = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        if not match or match[1] is None or int(match[1]) != begin:
            raise refused(pinned.name, f"the server was asked for bytes from {begin:,} on and answered with others")


def _check_status(answer: Any, name: str) -> None:
    """Raises TransientError or TokmillError unless the answer carries the object, as it is stored."""
    status = f"HTTP {answer.status} {answer.reason or ''}".strip()
    if answer.status in _TRANSIENT:
        after = answer.headers.get("Retry-After", "")
        raise TransientError(status, float(after) if after.isdecimal() else 0.0)
    if answer.status in {401, 403, 407}:
        raise denied(name, status, "check user, password or signature (signed URLs expire), then run the same command again")
    if answer.status not in {200, 206}:
        raise refused(name, status)
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in {"", "identity"} and not name.partition("?")[0].lower().endswith(_SUFFIXES.get(encoding, ())):
        raise _encoded(name, encoding)


def _encoded(name: str, encoding: str) -> UsageError:
    suffix = _SUFFIXES.get(encoding, ("",))[0]
    return UsageError(
        f"the server sends it compressed ({encoding}), though asked not to, and its name does not say so",
        where=name,
        allowed="an object as it is stored; one that is compressed, with a name that ends in .gz or .zst",
        next_step=f"fetch it, as FILE{suffix}, and name that" if suffix else "fetch it with curl --compressed, and name the file",
    )


def _reason(error: BaseException) -> str:
    """A sentence about a connection that failed, without the URL that messages of libraries quote."""
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "no answer in time"
    cause = getattr(error, "os_error", error)
    text = getattr(cause, "strerror", None)
    return f"connection failed: {text}" if text and "://" not in text else f"connection failed: {type(error).__name__}"
