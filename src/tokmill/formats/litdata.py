"""The format of LitData for its `TokensLoader`: chunks of ids, and an `index.json` that lists them.

A chunk is u32 number of items, u32 offsets of them and of the end, and the items. The loader takes the ids of all items of a
chunk as one row and never asks where one ends: a chunk of one item has a header whose size is known at the beginning. Documents
are told apart by their end-of-text ids.
"""

from __future__ import annotations

import os
import struct

import msgspec

from tokmill.formats.base import FormatSpec, FormatWriter, IdFile

_HEADER = struct.Struct("<3I")
_CODES = {"uint16": 5, "uint32": 6}
"""LitData's numbers of NumPy's types."""
_MOST_BYTES = (1 << 32) - 1
"""Offsets are u32."""
_ONE_LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'
"""How PyTorch writes down that an item is a single array."""


class LitdataShard(IdFile):
    """One chunk. Implements `protocols.Shard`."""

    def __init__(self, writer: LitdataFormat, name: str, side: str) -> None:
        super().__init__(writer.files, name, side, _HEADER.size)
        self._item_bytes = writer.spec.item_bytes

    def finish(self, tokens: int, documents: int, n_open: int) -> None:  # noqa: ARG002  the contract's
        """Fill in the header."""
        self.complete(tokens, documents, _HEADER.pack(1, _HEADER.size, _HEADER.size + tokens * self._item_bytes))


class LitdataFormat(FormatWriter):
    """`train/chunk-0-0.bin` and so on, `train/index.json`. Implements `protocols.Format`."""

    def shard(self, side: str, number: int) -> LitdataShard:
        """Return chunk `number` of a side."""
        return LitdataShard(self, f"{side}/chunk-0-{number}.bin", side)

    def finish(self, side: str, n_shards: int) -> None:
        """Write the index, if there is a chunk."""
        name = f"{side}/index.json"
        if not n_shards or name in self.files.completed():
            return
        entries = {path: entry for path, entry in self.files.completed().items() if entry.side == side}
        chunks = [
            {"chunk_bytes": entry.size_bytes, "chunk_size": 1, "dim": entry.tokens, "filename": os.path.basename(path)}
            for path, entry in entries.items()
        ]
        config = {
            "chunk_bytes": max(entry.size_bytes for entry in entries.values()),
            "chunk_size": None,
            "compression": None,
            "data_format": [f"no_header_numpy:{_CODES[self.spec.dtype]}"],
            "data_spec": _ONE_LEAF,
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        # A time would make every run another output.
        index = {"chunks": chunks, "config": config, "updated_at": "0"}
        self.files.file(name).append(msgspec.json.encode(index))
        self.files.complete(name)


LITDATA = FormatSpec(
    writer=LitdataFormat,
    suffix=".bin",
    index_suffixes=("index.json",),
    lists_files=True,
    shard_tokens=1 << 25,
    most_tokens=lambda item_bytes: (_MOST_BYTES - _HEADER.size) // item_bytes,
)
