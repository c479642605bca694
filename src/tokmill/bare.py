"""Bare files of another tool as a source: what is in them is stated, documents are found by their end-of-text ids.

They are read once beforehand. Guessing the format was refused: a header read as ids, or ids of the wrong width, give tokens too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import msgspec
import numpy as np

from tokmill.config import Content
from tokmill.encode.vocabulary import resolve_tokenizer
from tokmill.errors import UsageError
from tokmill.manifest import FORMAT_VERSION, Manifest
from tokmill.sources import CheckedFile, Source, Step
from tokmill.streams import Extent, IdStream, Placed, check_edge
from tokmill.types import Counts, Cursor, EotPlacement, FileEntry, Head, IdType, Input, Tokenizer, path_to_text

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADERS = {"raw": 0, "llmc": 1024, "megatron": 0, "datatrove": 0, "olmo": 0}
"""Bytes before the first id, of formats whose ids lie one behind the other."""
_LLMC_HEADS = {("uint16", 20240520, 1), ("uint32", 20240801, 7)}
_STEP_TOKENS = 32 << 20


def load_bare(
    paths: Sequence[Path],
    *,
    from_format: str | None,
    dtype: str | None,
    eot: str | None,
    eot_id: int | None,
    tokenizer: str | None,
) -> Source:
    """Files in this order as one source, its train side. Raises UsageError for what is not stated or not as stated."""
    _check_stated(paths, from_format, dtype, eot)
    described = _describe(tokenizer, eot_id, cast("IdType", dtype), eot)
    content = Content(
        inputs=tuple(_input(path) for path in paths),
        tokenizer=described,
        separator=None,
        val_fraction=0.0,
        dtype=cast("IdType", dtype),
        eot=cast("EotPlacement", eot),
        format=cast("str", from_format),
        origin=(f"bare files, read as {from_format}, {dtype}, end-of-text id {described.eot_id} {eot}",),
    )
    files = {str(path): _entry(path, content) for path in paths}
    counts = Counts(tokens_train=sum(entry.tokens for entry in files.values()))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        tokmill_version="",
        fingerprint="",
        content=content,
        files=files,
        segments=[],
        counts=counts,
        elapsed_s=0.0,
        peak_rss_bytes=0,
    )
    steps, largest = _scan(manifest)
    if tokenizer is None:
        content = msgspec.structs.replace(content, tokenizer=msgspec.structs.replace(described, n_ids=largest + 1))
    manifest = msgspec.structs.replace(manifest, content=content, counts=steps[-1].counts)
    return Source(paths[0] if len(paths) == 1 else paths[0].parent, manifest, steps, is_bare=True)


def _check_stated(paths: Sequence[Path], from_format: str | None, dtype: str | None, eot: str | None) -> None:
    if len(set(paths)) < len(paths):
        raise UsageError("a file was given twice", where=str(paths), allowed="each file once", next_step="leave one out")
    choices = (
        ("--from-format", from_format, tuple(HEADERS)),
        ("--dtype", dtype, get_args(IdType)),
        ("--eot", eot, get_args(EotPlacement)),
    )
    for option, value, allowed in choices:
        if value not in allowed:
            raise UsageError(
                f"a bare file needs {option}" if value is None else f"{value!r} is not a value of {option}",
                where=str(paths[0]) if paths else "no file was given",
                allowed=f"{option} {', '.join(allowed)}; or a directory that tokmill made",
                next_step="tokmill convert train.bin --from-format raw --dtype uint16 --eot after --eot-id 50256 ...",
            )


def _describe(name: str | None, eot_id: int | None, dtype: IdType, eot: str | None) -> Tokenizer:
    """The tokenizer that was stated; without one, all that the width of the ids says."""
    if name is not None:
        described = _named(name, eot_id)
        return described if eot_id is None else msgspec.structs.replace(described, eot_id=eot_id)
    if eot_id is None and eot != "none":
        raise UsageError(
            "a bare file needs --eot-id or --tokenizer",
            where="--eot-id",
            allowed="the id that ends documents, 50256 for GPT-2",
            next_step="--eot-id 50256, or --tokenizer gpt2",
        )
    n_ids = int(np.iinfo(dtype).max) + 1
    return Tokenizer(name="not known", kind="tiktoken", encoding="not known", path="", sha256="", n_ids=n_ids, eot_id=eot_id or 0)


def _named(name: str, eot_id: int | None) -> Tokenizer:
    """Where the tokenizer's end-of-text id is not clear, with the one that was stated."""
    try:
        return resolve_tokenizer(name)
    except UsageError:
        if eot_id is None:
            raise
        return resolve_tokenizer(name, str(eot_id))


def _input(path: Path) -> Input:
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(
            f"cannot open it: {error.strerror}",
            where=path_to_text(str(path)),
            allowed="a directory that tokmill made, or files of ids",
            next_step="check the path",
        ) from None
    return Input(
        path=path_to_text(str(path)),
        format="ids",
        compression="none",
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _entry(path: Path, content: Content) -> FileEntry:
    """Size and number of ids of a file. Raises UsageError when they are not as stated."""
    size_bytes, item_bytes, head_bytes = path.stat().st_size, np.dtype(content.dtype).itemsize, HEADERS[content.format]
    n_tokens, rest = divmod(size_bytes - head_bytes, item_bytes)
    if content.format == "llmc":
        with path.open("rb") as file:
            head = np.frombuffer(file.read(12).ljust(12, b"\0"), "<i4").tolist()
        if (content.dtype, *head[:2]) not in _LLMC_HEADS or head[2] != n_tokens:
            raise _unlike(
                path, f"its header says {head[:3]}", "llmc begins with 20240520, 1 (uint16) or 20240801, 7 (uint32), count"
            )
    if rest or n_tokens < 0:
        raise _unlike(path, f"it has {size_bytes:,} bytes", f"{head_bytes:,} bytes and whole ids of {content.dtype}")
    head_entry = Head(size_bytes=head_bytes, digest="") if head_bytes else msgspec.UNSET
    return FileEntry(size_bytes=size_bytes, side="train", tokens=n_tokens, head=head_entry)


def _unlike(path: Path, what: str, allowed: str) -> UsageError:
    return UsageError(
        f"the file is not what was stated: {what}",
        where=path_to_text(str(path)),
        allowed=allowed,
        next_step="check --from-format and --dtype, or make the file again",
    )


def _scan(manifest: Manifest) -> tuple[list[Step], int]:
    """Read everything once: documents up to each step, and the largest id. Raises UsageError for what is not as stated."""
    content, described = manifest.content, manifest.content.tokenizer
    opened: dict[str, CheckedFile] = {}

    def open_file(name: str) -> CheckedFile:
        if name not in opened:
            for file in opened.values():
                file.close()
            opened.clear()
            opened[name] = CheckedFile(Path(name), manifest.files[name].size_bytes, None, None)
        return opened[name]

    extents = [Extent(name, entry.head_bytes, entry.tokens) for name, entry in manifest.files.items()]
    stream = IdStream(extents, content.dtype, open_file)
    try:
        check_edge(stream, described.eot_id, content.eot, path_to_text(extents[0].name), is_bare=True)
        placed = Placed(IdStream(extents, content.dtype, open_file), described.eot_id, content.eot, content.eot)
        return _count(placed, described, len(extents))
    finally:
        for file in opened.values():
            file.close()


def _count(placed: Placed, described: Tokenizer, n_inputs: int) -> tuple[list[Step], int]:
    steps: list[Step] = []
    documents, largest = 0, described.eot_id
    for begin in range(0, max(placed.n_tokens, 1), _STEP_TOKENS):
        end = min(begin + _STEP_TOKENS, placed.n_tokens)
        for ids, ends in placed.blocks(begin, end):
            documents += len(ends)
            largest = max(largest, int(ids.max()))
        if largest >= described.n_ids:
            raise UsageError(
                f"id {largest:,} is not below {described.n_ids:,}",
                where=f"tokens {begin:,} to {end:,}",
                allowed=f"ids of {described.name}",
                next_step="check --dtype, --from-format, --eot-id and --tokenizer",
            )
        counts = Counts(documents=documents, documents_train=documents, tokens_train=end)
        after = Cursor(input_index=n_inputs) if end == placed.n_tokens else Cursor(offset=end)
        steps.append(Step(after, counts, {}, {}))
    return steps, largest
