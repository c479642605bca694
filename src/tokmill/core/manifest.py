"""The manifest: the JSON file, written last, that makes an output complete; and the journal's lines, of which it is made.

Both are read as untrusted: names are single components, lengths grow, counts and checksums must agree.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import msgspec
import xxhash

from tokmill.core.bounded import MOST_BYTES, MOST_VALUES, Natural, Seconds, Whole, check_amount, count_values
from tokmill.core.config import Content, Provenance
from tokmill.core.deduplication import Removal
from tokmill.core.errors import DamageError, UsageError
from tokmill.core.history import History, is_sane
from tokmill.core.options import FORMAT_NAMES
from tokmill.core.packing import MOST_SEQUENCE, PackedSide
from tokmill.core.partition import MOST_PARTS, Part
from tokmill.core.records import Counts, Cursor, FileEntry, text_to_path
from tokmill.core.system.tree import TreePath, beside, tree_of
from tokmill.core.text import shortened

if TYPE_CHECKING:
    from collections.abc import Container

    from tokmill.core.system.tree import Directory

MANIFEST_NAME = "manifest.json"
SKIPPED_NAME = "skipped.jsonl"
STATE_NAME = ".tokmill"
"""The state directory inside an output."""
PLAN_NAME = f"{STATE_NAME}/plan"
PARTS_NAME = f"{STATE_NAME}/parts"
"""Where an output that is made in parts has them; see `output/parts.py`."""
BESIDE = {"report.html"}
"""Files that may lie beside those of an output, as hidden files may."""
_MOST_IDS = 1 << 24
_MOST_NAMED = 5
_FIRST = re.compile(rb'[\s\0]*(\Z|\{\s*"format_version":\s*\d+,\s*"tokmill_version":)')
"""How a manifest of any version begins, or one of which nothing is left."""
FORMAT_VERSION = 2
"""Version of manifest and journal. Any other is an error: 1 had another checksum."""


PieceSizes = Annotated[str, msgspec.Meta(pattern="^(?:[1-9][0-9]{0,17}(?: [1-9][0-9]{0,17})*)?$", max_length=1 << 22)]
"""Decimal numbers with a blank between two: of 30 TB of text there are more than a manifest may have values."""


class FileSpan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one segment added to one file."""

    end: Natural
    """Length of the file in bytes after the segment."""
    digest: str
    """xxh3_128, hex, of the bytes that the segment added; of several pieces, of their digests one after the other."""
    pieces: PieceSizes = ""
    """Bytes of each piece, where several processes wrote them; together they are what the segment added."""


class Segment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What consecutive commits added: a range of the corpus and the ranges of the files that it became."""

    after: Cursor
    """Where the next segment begins in the corpus."""
    files: dict[str, FileSpan]
    """By name; files that the segment did not touch are left out."""
    counts: Counts
    """Sums from the start of the corpus to the end of this segment."""
    writer: dict[str, Whole] = {}
    """State of the writer after the segment."""
    completed: dict[str, FileEntry] = {}
    """Files to which no later segment adds; in the journal alone, the manifest has all of them together."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A complete output directory."""

    format_version: Natural
    tokmill_version: str
    fingerprint: str
    """Fingerprint of `content`."""
    content: Content
    """Inputs, tokenizer and every setting that decides the bytes."""
    files: dict[str, FileEntry]
    """By name."""
    segments: list[Segment]
    counts: Counts
    elapsed_s: Seconds
    """Sum over the run and those it resumed."""
    peak_rss_bytes: Natural
    cut_short: bool | msgspec.UnsetType = msgspec.UNSET
    """True: the corpus went on where `--max-tokens` were reached."""
    made_from: tuple[Provenance, ...] | msgspec.UnsetType = msgspec.UNSET
    """In the order of the inputs; left out of an output that was tokenized in one run."""
    parts: tuple[Natural, ...] | msgspec.UnsetType = msgspec.UNSET
    """For an output made in parts: the number of segments up to the end of each part."""
    documents_digest: str | msgspec.UnsetType = msgspec.UNSET
    """Proof of a shuffled or mixed training side: the sum modulo 2**128 of xxh3_128 of each document's ids in its sources, as hex;
    see `derive/arranging.py`. Of a packed output, of each piece of a document: see `derive/packing.py`. Of one without copies, with
    the number of the document in the output as seed."""
    packed: dict[str, PackedSide] | msgspec.UnsetType = msgspec.UNSET
    """What became of each side of a packed output."""
    removal: Removal | msgspec.UnsetType = msgspec.UNSET
    """What was removed from an output without copies."""
    recipe: str | msgspec.UnsetType = msgspec.UNSET
    """Fingerprint of the recipe and its sources, where `build` made the output."""
    history: History | msgspec.UnsetType = msgspec.UNSET
    """The attempts of the run."""
    checksum: str = ""
    """xxh3_128, hex, of the file's bytes before this field, which is the last."""


def encode_manifest(manifest: Manifest, where: str = MANIFEST_NAME) -> bytes:
    """The file's bytes: indented JSON with its checksum filled in, a newline at the end.

    where: for the UsageError that is raised where no tokmill would read so large a manifest.
    """
    data = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, checksum="")), indent=1)
    # The inputs can be told from the rest in whole JSON only.
    n_bytes, n_values = len(data), count_values(data)
    if n_bytes > MOST_BYTES or n_values > MOST_VALUES:
        raise UsageError(
            f"the manifest would have {n_bytes:,} bytes and {n_values:,} values, more than any tokmill reads",
            where=where,
            allowed=f"{MOST_BYTES:,} bytes, and {MOST_VALUES:,} values beside those of the inputs",
            next_step="make larger shards (--shard-tokens), or several outputs of the corpus, each of a part of its files",
        )
    body = memoryview(data)[: -len(b'"checksum": ""\n}')]
    return b"".join((body, seal(body)))


def seal(body: bytes | memoryview) -> bytes:
    """Return the end of a manifest's file that says what came before."""
    return b'"checksum": "%s"\n}\n' % xxhash.xxh3_128_hexdigest(body).encode()


def published(segments: list[Segment], files: Container[str]) -> list[Segment]:
    """Return the segments as a manifest has them: with published files only."""
    return [
        msgspec.structs.replace(s, files={name: span for name, span in s.files.items() if name in files}, completed={})
        if s.completed or any(name not in files for name in s.files)
        else s
        for s in segments
    ]


def knows_reading(content: Content, counts: Counts) -> bool:
    """Return whether counts are also of reading and encoding: they are not for documents that were chosen or put in order later."""
    return not content.origin or bool(counts.bytes_in)


def load_manifest(directory: Directory) -> Manifest:
    """Read and check `directory`/manifest.json. Raises UsageError if there is none, DamageError if it is not what was written."""
    path = tree_of(directory) / MANIFEST_NAME
    try:
        data = read_state(path)
    except FileNotFoundError:
        is_begun = (directory / STATE_NAME / "journal").exists()
        there = ", but a run that is under way or was interrupted" if is_begun else ""
        raise _unfinished_parts(directory) or UsageError(
            "no complete tokmill output here" + (there if directory.is_dir() else ": there is no such directory"),
            where=str(directory),
            allowed=f"a directory with {MANIFEST_NAME}",
            next_step="wait for it, or run the command that was interrupted again: it continues"
            if is_begun
            else "give the directory that was --out; tokmill finalize joins what was made in parts",
        ) from None
    except NotADirectoryError:
        raise UsageError(
            "this is a file, not a directory that tokmill made",
            where=str(directory),
            allowed=f"a directory with {MANIFEST_NAME}",
            next_step="give the directory that was --out; of a bare file: tokmill inspect, tokmill convert",
        ) from None
    return decode_manifest(data, str(path))


def _unfinished_parts(directory: Directory) -> UsageError | None:
    """Return the error for an output whose parts were not joined; None where there are none, or their number is unknown."""
    try:
        plan = msgspec.json.decode(read_state(tree_of(directory) / PLAN_NAME).partition(b" ")[2], type=_PlanOnly)
        parts = tree_of(directory) / PARTS_NAME
        there = [name for name in (parts.names() if parts.exists() else ()) if name.isdecimal()]
        complete = {int(name) for name in there if (parts / name / MANIFEST_NAME).exists()}
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError, DamageError):
        return None
    return unfinished_parts(str(directory), plan.content.n_parts, complete)


def unfinished_parts(where: str, n_parts: int, complete: Container[int]) -> UsageError:
    """Return the error for an output whose parts were not joined. where: directory or URL. complete: parts that are there."""
    missing = [str(index) for index in range(n_parts) if index not in complete]
    there = f"{n_parts - len(missing):,} of {n_parts:,} parts are there"
    there += f", missing: {', '.join(shortened(missing, _MOST_NAMED))}" if missing else ""
    then = f"tokmill finalize {shlex.quote(where)}"
    return UsageError(
        f"no complete tokmill output here, but one that is being made in parts: {there}",
        where=where,
        allowed="an output whose parts were joined",
        next_step=f"make those that are missing, then: {then}" if missing else then,
    )


def refuse_foreign(data: bytes, where: str) -> None:
    """Raise UsageError for a file called as the manifest that is none of tokmill: nothing that it names is removed or replaced."""
    if not _FIRST.match(data):
        raise UsageError(
            f"a {MANIFEST_NAME} that tokmill did not make",
            where=where,
            allowed="a new or empty directory, or one that tokmill made",
            next_step="choose another --out, or move the file away",
        )


def listed_files(directory: Directory) -> list[str]:
    """Return the names of the files that a manifest of any version lists, be it damaged; none where it cannot be read.

    It may have been edited: whoever removes them looks at the names first.
    """
    path = tree_of(directory) / MANIFEST_NAME
    try:
        files = [*msgspec.json.decode(read_state(path), type=_FilesOnly).files]
        check_names(files, str(path))
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError, DamageError):
        return []
    return files


def check_version(version: int, what: str, where: str, without: str) -> None:
    """Raise UsageError for what another version of tokmill wrote. what: names it. without: how to do without that version."""
    if version == FORMAT_VERSION:
        return
    is_newer = version > FORMAT_VERSION
    raise UsageError(
        f"{'a newer' if is_newer else 'an older'} tokmill {what}, with version {version} of manifest and journal",
        where=where,
        allowed=f"version {FORMAT_VERSION}",
        next_step=f"{'pip install --upgrade tokmill' if is_newer else 'use that tokmill for it'}, or {without}",
    )


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Decode a manifest, strictly. Raises DamageError, or UsageError for one of another version of tokmill."""
    check_amount(data, "the manifest", where)
    version = _decoded(data, _VersionOnly, where).format_version
    check_version(version, "made this output", where, "make it again: the command that made it, with --fresh")
    body = memoryview(data)[: -len(seal(b""))]
    if data[len(body) :] != seal(body):
        raise _damaged("the manifest was changed after it was written: its checksum differs", where)
    manifest: Manifest = _decoded(data, Manifest, where)
    check_names(manifest.files, where)
    _check_values(manifest, where)
    return manifest


def read_state(path: Directory) -> bytes:
    """Read a file that tokmill wrote about its own state, as `open_state` opens it. Raises DamageError, OSError."""
    with open_state(path) as file:
        return file.read()


def open_state(path: Directory) -> BinaryIO:
    """Open a file that tokmill wrote about its own state, as untrusted: a regular file of limited size, through no link.

    Raises DamageError, OSError.
    """
    fd = (path if isinstance(path, TreePath) else beside(path)).open()
    size_bytes = os.fstat(fd).st_size
    if size_bytes > MOST_BYTES:
        os.close(fd)
        raise _damaged(f"{path.name} has {size_bytes:,} bytes; tokmill writes no such file", str(path))
    return open(fd, "rb")


def _decoded(data: bytes, kind: Any, where: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise unknown_value(error, where) or _damaged(f"the manifest is not readable: {error}", where) from None


def _check_values(manifest: Manifest, where: str) -> None:
    """Raise DamageError for numbers and names that no run can have written."""
    check_content(manifest.content, where)
    n_inputs = len(manifest.content.inputs)
    if any(not 0 <= segment.after.input_index <= n_inputs for segment in manifest.segments):
        raise _damaged("a segment ends after the last input", where)
    for segment in manifest.segments:
        check_names(segment.files, where)
    parts = manifest.parts or ()
    if list(parts) != sorted(parts) or (parts and (parts[0] < 0 or parts[-1] != len(manifest.segments))):
        raise _damaged("the parts do not add up to the segments", where)
    if isinstance(manifest.history, History) and not is_sane(manifest.history):
        raise _damaged("a history that no run has had", where)


def check_content(content: Content, where: str) -> None:
    """Raise DamageError for settings that no run can have had, UsageError for a format that this version does not know."""
    # If nobody named the tokenizer of the ids, only their width is known.
    if not 0 < content.tokenizer.n_ids <= (_MOST_IDS if content.tokenizer.is_known else 1 << 32):
        raise _damaged(f"a tokenizer of {content.tokenizer.n_ids:,} ids", where)
    count = content.n_parts if isinstance(content.n_parts, int) else 1
    part = content.part if isinstance(content.part, Part) else Part(index=0, count=count, plan="")
    if not 0 <= part.index < part.count <= MOST_PARTS:
        raise _damaged(f"part {part} of an output", where)
    if not 0 <= content.val_fraction < 1 or not 0 <= content.seed < 1 << 64:
        raise _damaged(f"a share of {content.val_fraction} for validation, with the seed {content.seed}", where)
    if content.format not in FORMAT_NAMES:
        raise _unknown(f"the format {content.format!r}", where)
    if content.packing and not (content.packing.sequence <= MOST_SEQUENCE and content.packing.pad_id < content.tokenizer.n_ids):
        raise _damaged(f"sequences of {content.packing.sequence:,} ids, filled up with {content.packing.pad_id:,}", where)
    if content.separator == "":
        raise _damaged("the separator is empty", where)
    for source in content.inputs:
        try:
            text_to_path(source.path)
        except ValueError:
            raise _damaged("the path of an input is not readable", where) from None


def check_names(names: object, where: str) -> None:
    """Raises DamageError for a file name that is not one plain component, `train/` or `val/` before it at most.

    names: iterable of str.
    """
    for name in names:  # type: ignore[attr-defined]
        plain = name.removeprefix("train/").removeprefix("val/") if name.count("/") == 1 else name
        hidden = not plain or plain.startswith(".") or name == MANIFEST_NAME
        if hidden or "/" in plain or "\\" in plain or not plain.isprintable():
            raise _damaged(f"the file name {name!r} leads out of the directory or is hidden", where)


class _FilesOnly(msgspec.Struct):
    files: dict[str, Any]


class _PartsOnly(msgspec.Struct):
    n_parts: Annotated[int, msgspec.Meta(ge=1, le=MOST_PARTS)]


class _PlanOnly(msgspec.Struct):
    content: _PartsOnly


class _VersionOnly(msgspec.Struct):
    format_version: Natural


def unknown_value(error: Exception, where: str) -> UsageError | None:
    """Return the error for a name that only a newer tokmill knows, where decoding failed for that; otherwise None."""
    return _unknown(str(error), where) if str(error).startswith("Invalid enum value") else None


def _unknown(what: str, where: str) -> UsageError:
    return UsageError(
        f"this tokmill does not know what the output was made with: {what}",
        where=where,
        allowed="what this version knows",
        next_step="pip install --upgrade tokmill",
    )


def _damaged(what: str, where: str) -> DamageError:
    return DamageError(
        what,
        where=where,
        allowed="a manifest as tokmill wrote it",
        next_step="restore it from a copy, or run the tokmill command that made the output again, with --fresh",
    )
