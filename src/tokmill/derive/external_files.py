"""Bare files of another tool as a source: what is in them is stated, documents are found by their end-of-text ids.

They are read once beforehand. The format is not guessed: a header read as ids, or ids of the wrong width, give tokens too.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, cast, get_args

import msgspec
import numpy as np

from tokmill.core.config import BareFiles, Content, Origin
from tokmill.core.errors import UsageError
from tokmill.core.manifest import FORMAT_VERSION, Manifest
from tokmill.core.output_spec import SIDES
from tokmill.core.records import (
    Counts,
    Cursor,
    EotPlacement,
    FileEntry,
    FileHeader,
    IdType,
    Input,
    Tokenizer,
    path_to_text,
)
from tokmill.dataset import IdReader, bare_file, check_size, extents_of, refuse_index
from tokmill.derive.arguments import check_choice
from tokmill.derive.source import ShiftedIds, Source, Step, check_edge
from tokmill.encode import resolve_with
from tokmill.formats import FORMATS

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

_NAMES = tuple(name for name, spec in FORMATS.items() if not spec.lists_files)
"""Formats whose files of ids can be read without an index."""
_STEP_TOKENS = 32 << 20


@dataclass(frozen=True, slots=True)
class Stated:
    """What was stated of bare files; None: nothing."""

    from_format: str | None
    from_dtype: str | None
    from_eot: str | None
    from_eot_id: int | None
    from_tokenizer: str | None

    def options(self) -> list[str]:
        """Return the options that were given."""
        return [f"--{each.name.replace('_', '-')}" for each in fields(self) if getattr(self, each.name) is not None]


def load_bare(paths: Sequence[Path], val: Sequence[Path], stated: Stated) -> Source:
    """Return files in this order as one source: `paths` its training side, `val` its validation side.

    Raises UsageError for what is not stated or not as stated.
    """
    every = [*paths, *val]
    _check_stated(every, stated)
    from_format, dtype, eot = (
        cast("str", stated.from_format),
        cast("IdType", stated.from_dtype),
        cast("EotPlacement", stated.from_eot),
    )
    described = _describe(stated.from_tokenizer, stated.from_eot_id, dtype)
    content = Content(
        inputs=tuple(_input(path) for path in every),
        tokenizer=described,
        separator=None,
        val_fraction=0.0,
        dtype=dtype,
        eot=eot,
        format=from_format,
        origin=Origin(
            bare_files=BareFiles(
                format=from_format,
                dtype=dtype,
                eot=eot,
                eot_id=described.eot_id,
                n_val=len(val),
            )
        ),
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
    directory = paths[0] if len(paths) == 1 else paths[0].parent
    source = Source(directory, manifest, (), is_bare=True)
    try:
        steps, largest = _scan(source)
    finally:
        source.close()
    if stated.from_tokenizer is None:
        content = msgspec.structs.replace(content, tokenizer=msgspec.structs.replace(described, n_ids=largest + 1))
    manifest = msgspec.structs.replace(manifest, content=content, counts=steps[-1].counts)
    return Source(directory, manifest, steps, is_bare=True)


def _check_stated(paths: Sequence[Path], stated: Stated) -> None:
    if not paths:
        raise UsageError(
            "no file was given", where="FILE", allowed="one or more", next_step="tokmill convert train.bin --from-format raw ..."
        )
    where = path_to_text(str(paths[0]))
    choices = (
        ("--from-format", stated.from_format, _NAMES),
        ("--from-dtype", stated.from_dtype, get_args(IdType)),
        ("--from-eot", stated.from_eot, get_args(EotPlacement)),
    )
    for option, value, allowed in choices:
        check_choice(option, value, allowed)
    dtype, eot, eot_id, tokenizer = stated.from_dtype, stated.from_eot, stated.from_eot_id, stated.from_tokenizer
    missing = [option for option, value, _ in choices if value is None]
    if eot_id is None and tokenizer is None and eot != "none":
        missing.append("--from-eot-id or --from-tokenizer")
    if missing:
        given = f"--from-format {stated.from_format or 'raw'} --from-dtype {dtype or 'uint16'} --from-eot {eot or 'after'}"
        which = f"--from-tokenizer {tokenizer}" if tokenizer else f"--from-eot-id {50256 if eot_id is None else eot_id}"
        raise UsageError(
            f"a bare file needs {', '.join(missing)}",
            where=where,
            allowed="; ".join(f"{option} {', '.join(allowed)}" for option, _, allowed in choices)
            + "; the id that ends documents, 50256 for GPT-2; or a directory that tokmill made",
            next_step=f"tokmill convert {shlex.quote(where)} {given} {which} ..., if that is what is in it",
        )
    _check_once(paths)
    if eot_id is not None and not 0 <= eot_id <= np.iinfo(cast("str", dtype)).max:
        raise UsageError(
            f"{eot_id} is not an id of {dtype}",
            option="--from-eot-id",
            allowed=f"0 to {np.iinfo(cast('str', dtype)).max:,}",
            suggested="50256",
            next_step="which is that of GPT-2, or another --from-dtype",
        )


def _check_once(paths: Sequence[Path]) -> None:
    """Raise UsageError for a file that was given twice, also under another name."""
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
    """Return the tokenizer that was stated; without one, all that the width of the ids says."""
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
    """Return size and number of ids of a file. Raises UsageError if they are not as stated, DamageError for a file that was cut."""
    check_size(path, None)
    refuse_index(path)
    file = bare_file(path, content.dtype, FORMATS[content.format])
    if not file.n_tokens:
        raise UsageError(
            "there are no ids in this file",
            where=path_to_text(str(path)),
            allowed="one id or more",
            next_step="leave it out, or make the file again",
        )
    header = FileHeader(size_bytes=file.header_bytes, digest="") if file.header_bytes else msgspec.UNSET
    return FileEntry(size_bytes=path.stat().st_size, side=side, tokens=file.n_tokens, header=header)


def _scan(source: Source) -> tuple[list[Step], int]:
    """Read all ids once. Returns the documents up to each step, and the largest id. Raises UsageError for what is not as stated."""
    content, tokenizer = source.content, source.content.tokenizer
    counts, steps, largest = Counts(), [], tokenizer.eot_id
    for side in SIDES:
        extents = extents_of(source.manifest, side)
        if not extents:
            continue
        ids = IdReader(side, extents, content.dtype, source.read_into)
        edge = path_to_text(extents[0 if content.eot == "before" else -1].name)
        check_edge(ids, tokenizer.eot_id, content.eot, edge, is_bare=True)
        for begin in range(0, len(ids), _STEP_TOKENS):
            end = min(begin + _STEP_TOKENS, len(ids))
            n_documents, largest_here = _count(ids, begin, end, content)
            largest = max(largest, largest_here)
            more: dict[str, int] = {f"documents_{side}": n_documents, f"tokens_{side}": end - begin}
            counts += Counts(documents=n_documents, **more)  # type: ignore[arg-type]
            steps.append(Step(Cursor(offset=counts.tokens_train + counts.tokens_val), counts, {}, {}))
    return [*steps[:-1], replace(steps[-1], after=Cursor(input_index=len(content.inputs)))], largest


def _count(reader: IdReader, begin: int, end: int, content: Content) -> tuple[int, int]:
    """Return the documents that end in these ids of a side, and the largest id.

    Raises UsageError for an id that the tokenizer does not have.
    """
    tokenizer = content.tokenizer
    n_documents = largest = 0
    for ids, ends in ShiftedIds(reader, tokenizer.eot_id, content.eot, content.eot).blocks(begin, end):
        n_documents += len(ends)
        largest = max(largest, int(ids.max()))
        if largest >= tokenizer.n_ids:
            i = int(np.argmax(ids >= tokenizer.n_ids))
            extent, number = reader.find_extent(begin + i)
            raise UsageError(
                f"id {int(ids[i]):,} is not below {tokenizer.n_ids:,}",
                where=f"{path_to_text(extent.name)}, id {number:,} (from 0), byte {reader.locate(begin + i)[1]:,}",
                allowed=f"ids of {tokenizer.name}",
                next_step="most likely another --from-dtype; or another --from-format, --from-eot-id or --from-tokenizer",
            )
        begin += len(ids)
    return n_documents, largest
