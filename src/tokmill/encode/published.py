"""The published encodings: which of them are on this machine, and how to fetch one where there is a network.

A fetched file gets its name only when it is whole, its SHA-256 is the published one, and it is on the disk: a run that is killed,
a connection that breaks and a page of a proxy leave no file behind that looks like a tokenizer.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

import msgspec

from tokmill.core.errors import InputError, UsageError
from tokmill.core.records import path_to_text, text_to_path
from tokmill.core.system.durable import make_directory, replace, storage_errors, sync_directory, write_file
from tokmill.encode.resolve import ENCODINGS, Encoding, resolve_tokenizer
from tokmill.encode.tiktoken_cache import cached_path, encoding_of, url_of

_TIMEOUT_S = 30
_MOST_BYTES = 64 << 20
"""The largest published file has 4 MB; whoever sends more than this sends something else."""
_BUILT_IN = "r50k_base"


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """One published encoding."""

    name: str
    models: str
    """Some that have it."""
    n_ids: int
    eot_id: int
    sha256: str
    path: str | None
    """Where its file is on this machine, in the form of `path_to_text`; None: it must be fetched."""


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was put in place."""

    name: str
    path: str
    """In the form of `path_to_text`."""
    size_bytes: int
    sha256: str
    was_there: bool
    """It was there already, and nothing was fetched."""


_MODELS = {
    "r50k_base": "GPT-2, GPT-3; built in as gpt2",
    "p50k_base": "text-davinci-003, Codex",
    "cl100k_base": "GPT-4, GPT-3.5",
    "o200k_base": "GPT-4o, GPT-5, o1",
}


def list_vocabularies() -> list[Vocabulary]:
    """All published encodings."""
    return [
        Vocabulary(
            name=encoding.name,
            models=_MODELS[encoding.name],
            n_ids=max(encoding.n_ranks, encoding.eot_id + 1),
            eot_id=encoding.eot_id,
            sha256=encoding.sha256,
            path=_path_here(encoding),
        )
        for encoding in ENCODINGS.values()
    ]


def fetch_vocabulary(name: str, directory: str | os.PathLike[str], base_url: str | None = None) -> Fetched:
    """Put the file of a published encoding into `directory`, which is made if need be, as `<encoding>.tiktoken`.

    base_url: another place that has the files. Raises UsageError for an unknown name, InputError when the file cannot be had or is
    not the published one, StorageError and DiskFullError.
    """
    known = encoding_of(name, ENCODINGS)
    if known is None:
        raise UsageError(
            f"there is no published encoding {name!r}",
            where="tokmill vocab fetch",
            allowed=", ".join(ENCODINGS) + ", or a model that has one of them",
            next_step="tokmill vocab list",
        )
    encoding = ENCODINGS[known]
    path = Path(directory) / f"{known}.tiktoken"
    there = _content(path, encoding)
    if there is None:
        _put(path, _source(encoding, base_url))
    return Fetched(
        name=known,
        path=path_to_text(str(path)),
        size_bytes=path.stat().st_size,
        sha256=encoding.sha256,
        was_there=there is not None,
    )


def _path_here(encoding: Encoding) -> str | None:
    if encoding.name == _BUILT_IN:
        return resolve_tokenizer(encoding.name).path
    path = cached_path(encoding.name, encoding.sha256)
    return None if path is None else path_to_text(path)


def _content(path: Path, encoding: Encoding) -> bytes | None:
    """What is at `path`, if it is the published file."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == encoding.sha256 else None


def _source(encoding: Encoding, base_url: str | None) -> bytes:
    """The published file: from the package or a cache if it is there, unless a place is named; else from the network."""
    here = None if base_url else _path_here(encoding)
    found = _content(Path(text_to_path(here)), encoding) if here else None
    return found if found is not None else _download(encoding, url_of(encoding.name, base_url))


def _download(encoding: Encoding, url: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise UsageError("the place is no URL", where=url, allowed="http:// or https://", next_step="leave --base-url out")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310  http and https only, just checked
            data: bytes = response.read(_MOST_BYTES)
            length = response.headers.get("Content-Length")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, urllib.error.HTTPError):
            reason = f"HTTP status {error.code}"
            error.close()
        raise InputError(
            f"the file of {encoding.name} cannot be fetched: {reason}",
            where=url,
            allowed="a machine with a network that reaches it",
            next_step="run it again there; or name another place that has the file with --base-url",
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != encoding.sha256:
        is_short = length is not None and length.isdecimal() and len(data) < int(length)
        raise InputError(
            f"what came is {'cut short' if is_short else 'not the published file'}: {len(data):,} bytes, SHA-256 {found}",
            where=url,
            allowed=f"the file of {encoding.name}, SHA-256 {encoding.sha256}; nothing was kept",
            next_step="run it again; if it stays, something between here and there changes what is sent",
        )
    return data


def _put(path: Path, data: bytes) -> None:
    """The file under its name, whole and durable."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with storage_errors(path):
        make_directory(path.parent)
        try:
            write_file(unfinished, data)
            replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        sync_directory(path.parent)
