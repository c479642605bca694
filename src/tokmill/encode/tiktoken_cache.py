"""Where tiktoken keeps the files of its encodings, and what it calls them: so that what it has fetched once is found without it.

A cache is a directory that others write to: a file in it counts only if its SHA-256 is the published one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

_URL = "https://openaipublic.blob.core.windows.net/encodings/"
"""From where the files are published; tiktoken 0.14, tiktoken_ext/openai_public.py."""
_SHARE = {"p50k_edit": "p50k_base", "o200k_harmony": "o200k_base", "gpt2": "r50k_base"}
"""Encodings that have another's file and pattern."""


def url_of(encoding: str, base: str | None = None) -> str:
    """Of the encoding's file. base: another place that has the files under the same names."""
    return f"{(base or _URL).rstrip('/')}/{encoding}.tiktoken"


def encoding_of(name: str, known: Container[str]) -> str | None:
    """The encoding that a name stands for: its own, or that of a model as tiktoken knows it (gpt-4o: o200k_base)."""
    if name in known or name in _SHARE:
        return _SHARE.get(name, name)
    if not name or "/" in name or not name.isprintable():
        return None
    from tiktoken.model import encoding_name_for_model

    try:
        encoding = encoding_name_for_model(name)
    except KeyError:
        return None
    encoding = _SHARE.get(encoding, encoding)
    return encoding if encoding in known else None


def tiktoken_cache_paths(encoding: str) -> list[str]:
    """The paths at which tiktoken would have the file, most wanted first."""
    given = [os.environ[name] for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR") if name in os.environ]
    directories = given[:1] or [os.path.join(tempfile.gettempdir(), "data-gym-cache")]
    name = hashlib.sha1(url_of(encoding).encode(), usedforsecurity=False).hexdigest()
    return [os.path.join(directory, name) for directory in directories if directory]


def cached_path(encoding: str, sha256: str) -> str | None:
    """The file of an encoding in a cache; None when it is not there, or is not the published one."""
    for path in tiktoken_cache_paths(encoding):
        try:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    return os.path.abspath(path)
        except OSError:
            continue
    return None
