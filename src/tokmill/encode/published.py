"""The published encodings of tiktoken: what they are, where their files are on this machine, and how to fetch one.

A cache is a directory that others write to, and a proxy may send a page of its own: a file counts only if its SHA-256 is the
published one. A fetched file gets its name only when it is whole and on the disk.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from tokmill.core.errors import InputError, UsageError
from tokmill.core.records import path_to_text
from tokmill.core.system.durable import make_directory, replace, storage_errors, sync_directory, write_file
from tokmill.core.system.tree import beside
from tokmill.encode.tokenizer_files import read_file

_TIMEOUT_S = 30
MOST_RANKS_BYTES = 64 << 20
"""The largest published file has 4 MB; whoever sends more than this sends something else."""
_BUILT_IN = "r50k_base"
_URL = "https://openaipublic.blob.core.windows.net/encodings/"
"""From where the files are published; tiktoken 0.14, tiktoken_ext/openai_public.py."""
_SHARE = {"p50k_edit": "p50k_base", "o200k_harmony": "o200k_base", "gpt2": "r50k_base"}
"""Encodings that have another's file and pattern."""


class Encoding(msgspec.Struct, frozen=True, kw_only=True):
    """A published encoding of tiktoken's."""

    name: str
    """Encodings that share file and pattern (p50k_edit, o200k_harmony) go by the name of the first: text gives the same ids."""
    models: str
    """Some that have it."""
    sha256: str
    """Hash of its file of ranks, hex."""
    pattern: str
    """Divides text into the pieces inside which bytes are merged; syntax of the Rust crate fancy-regex."""
    n_ranks: int
    """Largest rank, plus one."""
    eot_id: int
    engine: str = "gigatoken"
    """The fastest engine that loads it. Not gigatoken where the ranks leave a gap: its loader wants them dense."""


_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# Hashes, patterns and ids: tiktoken 0.14, tiktoken_ext/openai_public.py.
_PUBLISHED = (
    Encoding(
        name="r50k_base",
        models="GPT-2, GPT-3; built in as gpt2",
        sha256="306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        pattern=_GPT2,
        n_ranks=50256,
        eot_id=50256,
    ),
    Encoding(
        name="p50k_base",
        models="text-davinci-003, Codex",
        sha256="94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
        pattern=_GPT2,
        n_ranks=50281,
        eot_id=50256,
        engine="tiktoken",
    ),
    Encoding(
        name="cl100k_base",
        models="GPT-4, GPT-3.5",
        sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        pattern=_CL100K,
        n_ranks=100256,
        eot_id=100257,
    ),
    Encoding(
        name="o200k_base",
        models="GPT-4o, GPT-5, o1",
        sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        pattern=_O200K,
        n_ranks=199998,
        eot_id=199999,
    ),
)
ENCODINGS = {encoding.name: encoding for encoding in _PUBLISHED}
BY_SHA256 = {encoding.sha256: encoding for encoding in _PUBLISHED}


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


def list_vocabularies() -> list[Vocabulary]:
    """Return all published encodings."""
    return [
        Vocabulary(
            name=encoding.name,
            models=encoding.models,
            n_ids=max(encoding.n_ranks, encoding.eot_id + 1),
            eot_id=encoding.eot_id,
            sha256=encoding.sha256,
            path=None if here is None else path_to_text(here),
        )
        for encoding, here in ((encoding, path_here(encoding)) for encoding in ENCODINGS.values())
    ]


def fetch_vocabulary(name: str, directory: str | os.PathLike[str], base_url: str | None = None) -> Fetched:
    """Put the file of a published encoding into a directory, as `<encoding>.tiktoken`.

    Args:
        name: Of the encoding, or of a model that has it.
        directory: Made if need be.
        base_url: Another place that has the files under the same names.

    Returns:
        The file, and whether it was there already.

    Raises:
        UsageError: The name is unknown.
        InputError: The file cannot be fetched, or is not the published one.
        StorageError: The directory cannot be written to; DiskFullError if it is full.
    """
    known = encoding_of(name)
    if known is None:
        raise UsageError(
            f"there is no published encoding {name!r}",
            where="tokmill vocab fetch",
            allowed=", ".join(ENCODINGS) + ", or a model that has one of them",
            next_step="tokmill vocab list",
        )
    encoding = ENCODINGS[known]
    path = Path(directory) / f"{known}.tiktoken"
    was_there = _content(path, encoding) is not None
    if not was_there:
        # From this machine if it is here, unless a place is named.
        here = None if base_url else path_here(encoding)
        data = _content(Path(here), encoding) if here else None
        _put(path, data if data is not None else _download(encoding, url_of(known, base_url)))
    return Fetched(
        name=known,
        path=path_to_text(str(path)),
        size_bytes=path.stat().st_size,
        sha256=encoding.sha256,
        was_there=was_there,
    )


def url_of(encoding: str, base: str | None = None) -> str:
    """Return the URL of an encoding's file. base: another place that has the files under the same names."""
    return f"{(base or _URL).rstrip('/')}/{encoding}.tiktoken"


def encoding_of(name: str) -> str | None:
    """Return the encoding that a name means: its own, or that of a model as tiktoken knows it (gpt-4o: o200k_base)."""
    if name in ENCODINGS or name in _SHARE:
        return _SHARE.get(name, name)
    if not name or "/" in name or not name.isprintable():
        return None
    from tiktoken.model import encoding_name_for_model

    try:
        encoding = encoding_name_for_model(name)
    except KeyError:
        return None
    encoding = _SHARE.get(encoding, encoding)
    return encoding if encoding in ENCODINGS else None


def tiktoken_cache_paths(encoding: str) -> list[str]:
    """Return the paths at which tiktoken would have the file, the first first."""
    import tempfile

    given = [os.environ[name] for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR") if name in os.environ]
    directories = given[:1] or [os.path.join(tempfile.gettempdir(), "data-gym-cache")]
    name = hashlib.sha1(url_of(encoding).encode(), usedforsecurity=False).hexdigest()
    return [os.path.join(directory, name) for directory in directories if directory]


def path_here(encoding: Encoding) -> str | None:
    """Return the file of an encoding on this machine: GPT-2's is part of the package, the others may be in a cache of tiktoken's.

    None if it is not there, or is not the published one.
    """
    if encoding.name == _BUILT_IN:
        # An engine reads it by its path, so the package is a directory.
        return str(Path(__file__).parent / "assets" / f"{_BUILT_IN}.tiktoken")
    paths = tiktoken_cache_paths(encoding.name)
    return next((os.path.abspath(path) for path in paths if _content(Path(path), encoding) is not None), None)


def _content(path: Path, encoding: Encoding) -> bytes | None:
    """Return what is at `path`, if it is the published file."""
    try:
        data = read_file(str(path), ".tiktoken file", MOST_RANKS_BYTES)
    except UsageError:
        return None
    return data if hashlib.sha256(data).hexdigest() == encoding.sha256 else None


def _download(encoding: Encoding, url: str) -> bytes:
    # Here, so that a run without it does not load an HTTP client.
    import http.client
    import urllib.error
    import urllib.request

    if not url.startswith(("http://", "https://")):
        raise UsageError("this is not a URL", where=url, allowed="http:// or https://", next_step="leave --base-url out")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310  http and https only, just checked
            data: bytes = response.read(MOST_RANKS_BYTES)
            length = response.headers.get("Content-Length")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, urllib.error.HTTPError):
            reason = f"HTTP status {error.code}"
            error.close()
        raise InputError(
            f"the file of {encoding.name} cannot be fetched: {reason}",
            where=url,
            allowed="a machine that can reach it",
            next_step="run it again there, or pass --base-url with another place that has the file",
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != encoding.sha256:
        is_short = length is not None and length.isdecimal() and len(data) < int(length)
        raise InputError(
            f"the download is {'cut short' if is_short else 'not the published file'}: {len(data):,} bytes, SHA-256 {found}",
            where=url,
            allowed=f"the file of {encoding.name}, SHA-256 {encoding.sha256}; nothing was kept",
            next_step="run it again; if it fails again, something on the way (a proxy?) changes the file",
        )
    return data


def _put(path: Path, data: bytes) -> None:
    """Write the file under its name, whole and durable."""
    whole = beside(path)
    unfinished = whole.with_name(f".{path.name}.{os.getpid()}")
    with storage_errors(path):
        make_directory(whole.parent)
        try:
            write_file(unfinished, data)
            replace(unfinished, whole)
        finally:
            unfinished.unlink(missing_ok=True)
        sync_directory(whole.parent)
