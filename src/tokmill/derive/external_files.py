"""Bare files of another tool as a source: what is in them is stated, documents are found by their end-of-text ids.

They are read once beforehand. Guessing the format was refused: a header read as ids, or ids of the wrong width, give tokens too.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import msgspec
import numpy as np

from tokmill.core.config import Content
from tokmill.core.errors import UsageError
from tokmill.core.manifest import FORMAT_VERSION, Manifest
from tokmill.core.records import Counts, Cursor, EotPlacement, FileEntry, FileHeader, IdType, Input, Tokenizer, path_to_text
from tokmill.core.text import counted, nearest
from tokmill.dataset import check_npy, check_size, read_npy_header, refuse_index
from tokmill.derive.source import SIDES, CheckedFile, Source, Step
from tokmill.derive.token_stream import Extent, IdStream, Placed, check_edge
from tokmill.encode import resolve_with

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

HEADERS = {"raw": 0, "llmc": 1024, "megatron": 0, "datatrove": 0, "olmo": 0}
"""Bytes before the first id, of formats whose ids lie one behind the other."""
_LLMC_HEADERS = {("uint16", 20240520, 1), ("uint32", 20240801, 7)}
_STEP_TOKENS = 32 << 20


def load_bare(
    paths: Sequence[Path],
    *,
    val: Sequence[Path] = (),
    from_format: str | None,
    dtype: str | None,
    eot: str | None,
    eot_id: int | None,
    tokenizer: str | None,
) -> Source:
    """Files in this order as one source: its train side, and `val` its validation side.

    Raises UsageError for what is not stated or not as stated.
    """
    every = [*paths, *val]
    _check_stated(every, from_format=from_format, dtype=dtype, eot=eot, eot_id=eot_id, tokenizer=tokenizer)
    described = _describe(tokenizer, eot_id, cast("IdType", dtype))
    content = Content(
        inputs=tuple(_input(path) for path in every),
        tokenizer=described,
        separator=None,
        val_fraction=0.0,
        dtype=cast("IdType", dtype),
        eot=cast("EotPlacement", eot),
        format=cast("str", from_format),
        origin=(_origin(f"{from_format}, {dtype}", f"{described.eot_id} {eot}", len(val)),),
    )
    files = {str(path): _entry(path, content, "val" if i >= len(paths) else "train") for i, path in enumerate(every)}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        tokmill_version="",
        fingerprint="",
        content=content,
        files=files,
        segments=[],
        counts=Counts(),
        elapsed_s=0.0,
        peak_rss_bytes=0,
    )
    steps, largest = _scan(manifest)
    if tokenizer is None:
        content = msgspec.structs.replace(content, tokenizer=msgspec.structs.replace(described, n_ids=largest + 1))
    manifest = msgspec.structs.replace(manifest, content=content, counts=steps[-1].counts)
    return Source(paths[0] if len(paths) == 1 else paths[0].parent, manifest, steps, is_bare=True)


def _origin(ids: str, eot: str, n_val: int) -> str:
    """What was stated of bare files, as the output's settings have it."""
    for_val = f"; for validation, the last {counted(n_val, 'input')}" if n_val else ""
    return f"bare files, read as {ids}, end-of-text id {eot}{for_val}"


_ORIGIN = re.compile(
    r"bare files, read as (\w+), (\w+), end-of-text id (\d+) (\w+)(?:; for validation, the last ([\d,]+) inputs?)?"
)


def stated_options(content: Content) -> tuple[list[str], int]:
    """What was stated of the bare files that an output was made of, without a tokenizer, and how many are its validation side."""
    found = _ORIGIN.fullmatch(content.origin[0]) if content.origin else None
    if found is None:
        return [], 0
    from_format, dtype, eot_id, eot, n_val = found.groups(default="0")
    options = ["--from-format", from_format, "--dtype", dtype, "--eot", eot, "--eot-id", eot_id]
    return options, int(n_val.replace(",", ""))


def _check_stated(
    paths: Sequence[Path],
    *,
    from_format: str | None,
    dtype: str | None,
    eot: str | None,
    eot_id: int | None,
    tokenizer: str | None,
) -> None:
    if not paths:
        raise UsageError(
            "no file was given", where="FILE", allowed="one or more", next_step="tokmill convert train.bin --from-format raw ..."
        )
    where = path_to_text(str(paths[0]))
    choices = (
        ("--from-format", from_format, tuple(HEADERS)),
        ("--dtype", dtype, get_args(IdType)),
        ("--eot", eot, get_args(EotPlacement)),
    )
    for option, value, allowed in choices:
        if value is not None and value not in allowed:
            raise UsageError(
                f"{value!r} is not a value of {option}",
                option=option,
                allowed=", ".join(allowed),
                suggested=nearest(value, allowed),
            )
    missing = [option for option, value, _ in choices if value is None]
    if eot_id is None and tokenizer is None and eot != "none":
        missing.append("--eot-id or --tokenizer")
    if missing:
        stated = f"--from-format {from_format or 'raw'} --dtype {dtype or 'uint16'} --eot {eot or 'after'}"
        which = f"--tokenizer {tokenizer}" if tokenizer else f"--eot-id {50256 if eot_id is None else eot_id}"
        raise UsageError(
            f"a bare file needs {', '.join(missing)}",
            where=where,
            allowed="; ".join(f"{option} {', '.join(allowed)}" for option, _, allowed in choices)
            + "; the id that ends documents, 50256 for GPT-2; or a directory that tokmill made",
            next_step=f"tokmill convert {shlex.quote(where)} {stated} {which} ..., if that is what is in it",
        )
    _check_once(paths)
    if eot_id is not None and not 0 <= eot_id <= np.iinfo(cast("str", dtype)).max:
        raise UsageError(
            f"{eot_id} is not an id of {dtype}",
            option="--eot-id",
            allowed=f"0 to {np.iinfo(cast('str', dtype)).max:,}",
            suggested="50256",
            next_step="which is that of GPT-2, or another --dtype",
        )


def _check_once(paths: Sequence[Path]) -> None:
    """Raises UsageError for a file that was given twice, also under another name."""
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        status = _status(path)
        first = seen.setdefault((status.st_dev, status.st_ino), path)
        if first is not path:
            raise UsageError(
                "a file was given twice",
                where=", ".join(dict.fromkeys(path_to_text(str(each)) for each in (first, path))),
                allowed="each file once",
                next_step="leave one out",
            )


def _describe(name: str | None, eot_id: int | None, dtype: IdType) -> Tokenizer:
    """The tokenizer that was stated; without one, all that the width of the ids says."""
    if name is not None:
        described = resolve_with(name, eot_id)
        return described if eot_id is None else msgspec.structs.replace(described, eot_id=eot_id)
    n_ids = int(np.iinfo(dtype).max) + 1
    return Tokenizer(name="not known", kind="tiktoken", encoding="not known", path="", sha256="", n_ids=n_ids, eot_id=eot_id or 0)


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UsageError(
            f"cannot open it: {error.strerror}",
            path=path_to_text(str(path)),
            allowed="a directory that tokmill made, or files of ids",
        ) from None


def _input(path: Path) -> Input:
    status = _status(path)
    return Input(
        path=path_to_text(str(path)),
        format="ids",
        compression="none",
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _entry(path: Path, content: Content, side: str) -> FileEntry:
    """Size and number of ids of a file. Raises UsageError when they are not as stated, DamageError for a file that was cut."""
    check_size(path, None)
    refuse_index(path)
    size_bytes, item_bytes, header_bytes = path.stat().st_size, np.dtype(content.dtype).itemsize, HEADERS[content.format]
    npy = read_npy_header(path)
    if npy is not None:
        check_npy(npy, content.dtype, path)
        header_bytes = npy.size_bytes
    n_tokens, rest = divmod(size_bytes - header_bytes, item_bytes)
    if content.format == "llmc":
        with path.open("rb") as file:
            header = np.frombuffer(file.read(12).ljust(12, b"\0"), "<i4").tolist()
        if (content.dtype, *header[:2]) not in _LLMC_HEADERS or header[2] != n_tokens:
            raise _unlike(
                path, f"its header says {header[:3]}", "llmc begins with 20240520, 1 (uint16) or 20240801, 7 (uint32), count"
            )
    if rest or n_tokens < 0:
        header = f"a header of {header_bytes:,} bytes and " if header_bytes else ""
        raise _unlike(
            path, f"it has {counted(size_bytes, 'byte')}", f"{header}a multiple of {item_bytes} bytes, the width of {content.dtype}"
        )
    if not n_tokens:
        raise UsageError(
            "there are no ids in this file",
            where=path_to_text(str(path)),
            allowed="one id or more",
            next_step="leave it out, or make the file again",
        )
    header_entry = FileHeader(size_bytes=header_bytes, digest="") if header_bytes else msgspec.UNSET
    return FileEntry(size_bytes=size_bytes, side=side, tokens=n_tokens, header=header_entry)


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
            opened[name] = CheckedFile(Path(name), manifest.files[name].size_bytes, None)
        return opened[name]

    counts, steps, largest = Counts(), [], described.eot_id
    try:
        for side in SIDES:
            extents = [Extent(name, e.header_bytes, e.tokens) for name, e in manifest.files.items() if e.side == side]
            if not extents:
                continue
            edge = path_to_text(extents[0 if content.eot == "before" else -1].name)
            check_edge(IdStream(extents, content.dtype, open_file), described.eot_id, content.eot, edge, is_bare=True)
            placed = Placed(IdStream(extents, content.dtype, open_file), described.eot_id, content.eot, content.eot)
            for begin in range(0, placed.n_tokens, _STEP_TOKENS):
                end = min(begin + _STEP_TOKENS, placed.n_tokens)
                n_documents, largest_here = _count(placed, begin, end, described, extents)
                largest = max(largest, largest_here)
                more: dict[str, int] = {f"documents_{side}": n_documents, f"tokens_{side}": end - begin}
                counts += Counts(documents=n_documents, **more)  # type: ignore[arg-type]
                steps.append(Step(Cursor(offset=counts.tokens_train + counts.tokens_val), counts, {}, {}))
    finally:
        for file in opened.values():
            file.close()
    return [*steps[:-1], replace(steps[-1], after=Cursor(input_index=len(content.inputs)))], largest


def _count(placed: Placed, begin: int, end: int, described: Tokenizer, extents: Sequence[Extent]) -> tuple[int, int]:
    """Documents that end in these ids of a side, and the largest of them. Raises UsageError for one that the tokenizer has not."""
    n_documents = largest = 0
    for ids, ends in placed.blocks(begin, end):
        n_documents += len(ends)
        largest = max(largest, int(ids.max()))
        if largest >= described.n_ids:
            i = int(np.argmax(ids >= described.n_ids))
            raise UsageError(
                f"id {int(ids[i]):,} is not below {described.n_ids:,}",
                where=_place(extents, begin + i, ids.itemsize),
                allowed=f"ids of {described.name}",
                next_step="most likely another --dtype; or another --from-format, --eot-id or --tokenizer",
            )
        begin += len(ids)
    return n_documents, largest


def _place(extents: Sequence[Extent], number: int, item_bytes: int) -> str:
    """File, number of the id in it and byte, of an id of a side."""
    for extent in extents:
        if number < extent.n_tokens:
            return f"{path_to_text(extent.name)}, id {number:,} (from 0), byte {extent.begin_byte + number * item_bytes:,}"
        number -= extent.n_tokens
    return path_to_text(extents[-1].name)
