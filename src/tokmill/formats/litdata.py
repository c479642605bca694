"""The format of LitData for its `TokensLoader`: chunks of ids, and an `index.json` that lists them.

A chunk is u32 number of items, u32 offsets of them and of the end, and the items. The loader takes the ids of all items of a
chunk as one row and never asks where one ends: a chunk of one item has a header whose size is known at the beginning. Documents
are told apart by their end-of-text ids.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import msgspec

from tokmill.formats.base import FormatSpec, IdFile

if TYPE_CHECKING:
    from tokmill.core.output_spec import OutputSpec
    from tokmill.core.protocols import OutputFiles

_HEADER = struct.Struct("<3I")
_CODES = {"uint16": 5, "uint32": 6}
"""LitData's numbers of NumPy's types."""
_MOST_BYTES = (1 << 32) - 1
"""Offsets are u32."""
_ONE_LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'
"""How PyTorch writes down that an item is a single array."""


class LitdataShard(IdFile):
    """The chunk `train/chunk-0-0.bin` and so on."""

    def __init__(self, files: OutputFiles, spec: OutputSpec, side: str, number: int) -> None:
        super().__init__(files, spec, side, f"{side}/chunk-0-{number}.bin", _HEADER.size)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:  # noqa: ARG002  the base's
        """Fill in the header."""
        self.complete(tokens, documents, _HEADER.pack(1, _HEADER.size, _HEADER.size + tokens * self.spec.item_bytes))


def write_index(files: OutputFiles, spec: OutputSpec, side: str, n_shards: int) -> None:
    """Write `index.json` of a side, if there is a chunk."""
    name = f"{side}/index.json"
    if not n_shards or name in files.completed():
        return
    entries = {path: entry for path, entry in files.completed().items() if entry.side == side}
    chunks = [
        {"chunk_bytes": entry.size_bytes, "chunk_size": 1, "dim": entry.tokens, "filename": os.path.basename(path)}
        for path, entry in entries.items()
    ]
    config = {
        "chunk_bytes": max(entry.size_bytes for entry in entries.values()),
        "chunk_size": None,
        "compression": None,
        "data_format": [f"no_header_numpy:{_CODES[spec.dtype]}"],
        "data_spec": _ONE_LEAF,
        "encryption": None,
        "item_loader": "TokensLoader",
    }
    # A time would make every run another output.
    index = {"chunks": chunks, "config": config, "updated_at": "0"}
    files.file(name).append(msgspec.json.encode(index))
    files.complete(name)


LITDATA = FormatSpec(
    shard=LitdataShard,
    finish=write_index,
    suffix=".bin",
    index_suffixes=("index.json",),
    lists_files=True,
    shard_tokens=1 << 25,
    most_tokens=lambda item_bytes: (_MOST_BYTES - _HEADER.size) // item_bytes,
    least_tokens=2049,
    too_short="no item of TokensLoader(block_size=2049), which LitGPT uses for sequences of 2,048",
)
