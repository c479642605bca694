"""URLs of inputs: what a person typed, and what of it may be shown and stored.

A URL may carry a password or a signature. Such parts are no part of what an object is: they differ from one day to the next while
the object stays the same. So an input is called by its URL without them, in messages, journal and manifest, and a run resumes
with a URL that was signed anew. What was typed is kept in memory only, by that name, and reaches other processes through the pipe
that carries their question. The hard one is a query nobody knows: a parameter whose name says that it is secret is left out, the
value of another stands as it is when it is short, as a digest when it is long enough to be a secret.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokmill.core.records import Input

_SECRET = re.compile(
    r"(?i)x-(amz|goog|oss|cos|ms)-.*|.*(signature|token|secret|passw|pwd|auth|credential|session|policy|expires|apikey|accesskey).*"
    r"|(.*[_-])?key|key-pair-id|pw|pass|user|sig|jwt|googleaccessid|s[vrtepi]|sip|spr|srt|ss|sk[a-z]+"
)
"""Names of the parameters of signed URLs (S3, Google, Azure, CloudFront and others), and of such as hold tokens and passwords."""
_SHORT = 16
"""A value of more characters than this may be a secret, whatever its name."""

_typed: dict[str, str] = {}
"""What was typed, by what it is called; of this process."""


def scheme_of(url: str) -> str:
    """`s3` of `s3://bucket/key`."""
    return url.partition("://")[0].lower()


def redacted(url: str) -> str:
    """What an input with this URL is called: the URL without user, password, signature, fragment."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if "?" in host:
        host, slash, path = host.partition("?")
        path, slash = "?" + path, ""
    host = host.rpartition("@")[2]
    is_web = scheme.lower() in {"http", "https"}
    path = path.partition("#")[0] if is_web else path
    path, mark, query = path.partition("?")
    kept = "&".join(filter(None, map(_parameter, query.split("&"))))
    # Of a key in a bucket, the question mark is a character as others are.
    return f"{scheme.lower()}://{host}{slash}{path}" + (f"?{kept}" if kept or (mark and not is_web) else "")


def _parameter(text: str) -> str:
    name, _, value = text.partition("=")
    if _SECRET.fullmatch(unquote(name)):
        return ""
    return text if len(value) <= _SHORT else f"{name}=~{xxhash.xxh3_64_hexdigest(value.encode())}"


def has_credentials(url: str) -> bool:
    """Whether user or password stand before the host."""
    return "@" in url.partition("://")[2].partition("/")[0]


def path_of(name: str) -> str:
    """The part of a URL that has the suffix of a file."""
    if scheme_of(name) not in {"http", "https"}:
        return name
    _, slash, path = re.split(r"[?#]", name, maxsplit=1)[0].partition("://")[2].partition("/")
    return slash + path


def register_url(url: str) -> str:
    """Keep what was typed; returns what it is called. What is typed later counts: it may be signed anew."""
    name = redacted(url)
    _typed[name] = url
    return name


def full_url(name: str) -> str:
    """The URL of the input of that name, as it was typed."""
    return _typed.get(name, name)


def full_urls(inputs: Iterable[Input]) -> dict[str, str]:
    """What another process must be told to read these inputs: URLs by name, where they differ."""
    return {i.path: _typed[i.path] for i in inputs if _typed.get(i.path, i.path) != i.path}


def register_urls(urls: Mapping[str, str]) -> None:
    """Take over what `full_urls` returned elsewhere."""
    _typed.update(urls)
