"""URLs of inputs: what was given, and what of it may be shown and stored.

A URL may carry a password or a signature, which change while the object stays the same. So an input is named by its URL without
them, in messages, journal and manifest, and a run resumes with a URL that was signed again. The full URL is kept in memory only, by
that name, and reaches other processes through the pipe of their request. `core/secrets.py` says what may be shown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokmill.core import secrets

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokmill.core.records import Input

_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")

_full: dict[str, str] = {}
"""Full URLs of this process, by redacted URL."""


def scheme_of(url: str) -> str:
    """`s3` of `s3://bucket/key`."""
    return url.partition("://")[0].lower()


def redacted(url: str) -> str:
    """Return the name of an input: its URL without user, password, signature, fragment."""
    return secrets.redacted(url)


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
    secrets.learn([url])
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
    secrets.learn(urls.values())
    _full.update(urls)
