"""URLs of inputs: what was given, and what of it may be shown and stored.

A URL may carry a password or a signature, which change while the object stays the same. So an input is named by its URL without
them, in messages, journal and manifest, and a run resumes with a URL that was signed again. The full URL is kept in memory only, by
that name, and reaches other processes through the pipe of their request. Of a query's parameters, one whose name is known to be
secret is left out; the value of any other stands as it is if it is short, and as a digest if it is long enough to be a secret.
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
"""Names of parameters of signed URLs (S3, Google, Azure, CloudFront and others), and of tokens and passwords."""
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_SHORT = 16
"""A longer value, in characters, may be a secret, whatever its name."""

_full: dict[str, str] = {}
"""Full URLs of this process, by redacted URL."""


def scheme_of(url: str) -> str:
    """`s3` of `s3://bucket/key`."""
    return url.partition("://")[0].lower()


def redacted(url: str) -> str:
    """Return the name of an input: its URL without user, password, signature, fragment."""
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
    # In the key of an object, the question mark is an ordinary character.
    return f"{scheme.lower()}://{host}{slash}{path}" + (f"?{kept}" if kept or (mark and not is_web) else "")


def _parameter(text: str) -> str:
    name, _, value = text.partition("=")
    if _SECRET.fullmatch(unquote(name)):
        return ""
    return text if len(value) <= _SHORT else f"{name}=~{xxhash.xxh3_64_hexdigest(value.encode())}"


def has_credentials(url: str) -> bool:
    """Return whether user or password stand before the host."""
    return "@" in url.partition("://")[2].partition("/")[0]


def path_of(name: str) -> str:
    """Return the part of a URL that ends with the suffix of a file."""
    if scheme_of(name) not in {"http", "https"}:
        return name
    _, slash, path = re.split(r"[?#]", name, maxsplit=1)[0].partition("://")[2].partition("/")
    return slash + path


def one_spelling(name: str) -> str:
    """Return the name of an object in one spelling: of the same address there are others (case, usual port, escapes)."""
    scheme, _, rest = name.partition("://")
    host, slash, path = rest.partition("/")
    if scheme not in {"http", "https"}:
        return name
    host = host.lower().removesuffix({"http": ":80", "https": ":443"}[scheme])
    return f"{scheme}://{host}{slash}{_ESCAPE.sub(_unescaped, path)}"


def _unescaped(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if re.fullmatch(r"[A-Za-z0-9._~-]", character) else match[0].upper()


def register_url(url: str) -> str:
    """Keep a full URL and return its redacted form. A later one counts: it may be signed again."""
    name = redacted(url)
    _full[name] = url
    return name


def full_url(name: str) -> str:
    """Return the full URL of the input of that name."""
    return _full.get(name, name)


def full_urls(inputs: Iterable[Input]) -> dict[str, str]:
    """Return the full URLs that another process needs to read these inputs, by name, where they differ."""
    return {i.path: _full[i.path] for i in inputs if _full.get(i.path, i.path) != i.path}


def register_urls(urls: Mapping[str, str]) -> None:
    """Register what `full_urls` returned in another process."""
    _full.update(urls)
