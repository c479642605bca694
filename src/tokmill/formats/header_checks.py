"""Checks of headers against the numbers of the manifest, for `verify`.

They share no code and no constant with the formats' writers, so that a mistake there does not hide itself here.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.core.config import Content
    from tokmill.core.records import FileEntry

_MDS_SAMPLE_TOKENS = 2048


def n_padding_ids(content: Content, tokens: int) -> int:
    """Return how many end-of-text ids fill up the last sample of a shard: of mds only."""
    return -tokens % _mds_sample_tokens(content) if content.format == "mds" else 0


def _mds_sample_tokens(content: Content) -> int:
    return content.packing.sequence if content.packing else _MDS_SAMPLE_TOKENS


def header_problem(header: bytes, name: str, entry: FileEntry, content: Content) -> str:
    """Return what is wrong with the header of a file, in a sentence; empty if nothing is."""
    check = _numbers if entry.side is None and name.endswith(".npy") else _CHECKS.get(content.format)
    return check(header, name, entry, content) if check else ""


def _numbers(header: bytes, _name: str, entry: FileEntry, _content: Content) -> str:
    n = (entry.size_bytes - len(header)) // 8
    begin = io.BytesIO(header)
    try:
        if np.lib.format.read_magic(begin) == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(begin)
            if (shape, is_fortran, dtype, begin.tell()) == ((n,), False, np.dtype("<i8"), len(header)):
                return ""
    except ValueError:
        pass
    return f"the header is not that of {counted(n, 'number')} of int64"


def _llmc(header: bytes, _name: str, entry: FileEntry, content: Content) -> str:
    wanted = [20240520, 1, entry.tokens] if content.dtype == "uint16" else [20240801, 7, entry.tokens]
    fields = np.frombuffer(header, "<i4")
    if len(fields) == 256 and fields[:3].tolist() == wanted and not fields[3:].any():
        return ""
    return f"the header is not that of {counted(entry.tokens, 'token')} of {content.dtype}"


def _megatron(header: bytes, name: str, entry: FileEntry, content: Content) -> str:
    if not name.endswith(".idx"):
        return ""
    n = (entry.size_bytes - 42) // 20
    code = 8 if content.dtype == "uint16" else 4
    if header == b"MMIDIDX\0\0" + np.array([1], "<u8").tobytes() + bytes([code]) + np.array([n, n + 1], "<u8").tobytes():
        return ""
    return f"the header is not that of an index of {counted(n, 'document')}"


def _litdata(header: bytes, _name: str, entry: FileEntry, _content: Content) -> str:
    return "" if header == np.array([1, 12, entry.size_bytes], "<u4").tobytes() else "the header is not that of one item"


def _mds(header: bytes, _name: str, entry: FileEntry, content: Content) -> str:
    sample_tokens, item_bytes = _mds_sample_tokens(content), np.dtype(content.dtype).itemsize
    n = -(-entry.tokens // sample_tokens)
    offsets = np.arange(n + 1, dtype="<u4") * (sample_tokens * item_bytes) + entry.header_bytes
    if header.startswith(np.array([n], "<u4").tobytes() + offsets.astype("<u4").tobytes() + b"{"):
        return ""
    return f"the header is not that of {counted(n, 'sample')}"


_CHECKS: dict[str, Callable[[bytes, str, FileEntry, Content], str]] = {
    "llmc": _llmc,
    "megatron": _megatron,
    "litdata": _litdata,
    "mds": _mds,
}
