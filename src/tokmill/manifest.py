"""The manifest: the JSON file, written last, that makes an output directory complete; and the journal's lines, of which it is made.

Both are read back as untrusted: names are single components, lengths grow, counts and checksums must agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import xxhash

from tokmill.config import Content
from tokmill.errors import DamageError, UsageError
from tokmill.provenance import Provenance
from tokmill.types import Counts, Cursor, FileEntry

if TYPE_CHECKING:
    from collections.abc import Container

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
"""Of manifest and journal. A newer one is refused, an older one read."""


class FileSpan(msgspec.Struct, frozen=True, kw_only=True):
    """What one segment added to one file."""

    end: int
    """Length of the file in bytes behind the segment."""
    digest: str
    """xxh3_128, hex, of the bytes that the segment added."""


class Segment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One commit: a range of the corpus and the ranges of the files that it became."""

    after: Cursor
    """Where the next segment begins in the corpus."""
    files: dict[str, FileSpan]
    """By name; files that the segment did not touch are left out."""
    counts: Counts
    """Sums from the start of the corpus to the end of this segment."""
    writer: dict[str, int] = {}
    """State of the writer behind the segment."""
    completed: dict[str, FileEntry] = {}
    """Files to which no later segment adds; in the journal alone, the manifest has all of them together."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A complete output directory."""

    format_version: int
    tokmill_version: str
    fingerprint: str
    """Of `content`."""
    content: Content
    """Inputs, tokenizer and every setting that decides the bytes."""
    files: dict[str, FileEntry]
    """By name."""
    segments: list[Segment]
    counts: Counts
    elapsed_s: float
    """Sum over the run and those it resumed."""
    peak_rss_bytes: int
    made_from: tuple[Provenance, ...] | msgspec.UnsetType = msgspec.UNSET
    """In the order of the inputs; left out of an output that was tokenized in one run."""
    checksum: str = ""
    """xxh3_128, hex, of the manifest's canonical JSON with this field empty."""


def encode_manifest(manifest: Manifest) -> bytes:
    """The file's bytes: indented JSON with its checksum filled in, a newline at the end."""
    sealed = msgspec.structs.replace(manifest, checksum=_checksum(manifest))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=1) + b"\n"


def published(segments: list[Segment], files: Container[str]) -> list[Segment]:
    """The segments as a manifest has them: of published files alone."""
    return [
        msgspec.structs.replace(s, files={name: span for name, span in s.files.items() if name in files}, completed={})
        if s.completed or any(name not in files for name in s.files)
        else s
        for s in segments
    ]


def load_manifest(directory: Path) -> Manifest:
    """Read and check `directory`/manifest.json. Raises UsageError if there is none, DamageError if it is not what was written."""
    path = directory / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            "no complete tokmill output here",
            where=str(directory),
            allowed=f"a directory with {MANIFEST_NAME}",
            next_step="give the directory that was --out, or run the tokmill tokenize command again: it resumes",
        ) from None
    return decode_manifest(data, str(path))


def decode_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`. Raises DamageError, or UsageError for one of a newer tokmill."""
    try:
        version = msgspec.json.decode(data, type=_VersionOnly).format_version
    except msgspec.MsgspecError as error:
        raise _damaged(f"the manifest is not readable: {error}", where) from None
    if version > FORMAT_VERSION:
        raise UsageError(
            f"the manifest has version {version}, newer than this tokmill",
            where=where,
            allowed=f"version {FORMAT_VERSION} or older",
            next_step="pip install --upgrade tokmill",
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise _damaged(f"the manifest is not readable: {error}", where) from None
    if manifest.checksum != _checksum(manifest):
        raise _damaged("the manifest was changed after it was written: its checksum differs", where)
    check_names(manifest.files, where)
    return manifest


def check_names(names: object, where: str) -> None:
    """Raises DamageError for a file name that is not one plain component, `train/` or `val/` before it at most.

    names: iterable of str.
    """
    for name in names:  # type: ignore[attr-defined]
        plain = name.removeprefix("train/").removeprefix("val/") if name.count("/") == 1 else name
        if not plain or plain.startswith(".") or "/" in plain or "\\" in plain or "\0" in plain:
            raise _damaged(f"the file name {name!r} leads out of the directory or is hidden", where)


class _VersionOnly(msgspec.Struct):
    format_version: int


def _checksum(manifest: Manifest) -> str:
    empty = msgspec.structs.replace(manifest, checksum="")
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(empty, order="deterministic"))


def _damaged(what: str, where: str) -> DamageError:
    return DamageError(what, where=where, next_step="tokenize again with --fresh")
