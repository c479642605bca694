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

if TYPE_CHECKING:
    from tokmill.core.output_spec import OutputSpec, TokenSlice
    from tokmill.core.protocols import OutputFiles

HEADER = struct.Struct("<3I")
_CODES = {2: 5, 4: 6}
"""LitData's numbers of NumPy's uint16 and uint32, by bytes of an id."""
_MOST_BYTES = (1 << 32) - 1
"""Offsets are u32."""


class LitdataShard:
    """One chunk. Implements `protocols.Shard`."""

    def __init__(self, files: OutputFiles, name: str, side: str, item_bytes: int) -> None:
        self._files = files
        self._name = name
        self._side = side
        self._item_bytes = item_bytes
        self._file = files.file(name, HEADER.size)

    def append(self, tokens: TokenSlice) -> None:
        """Append the ids."""
        self._file.append(tokens.ids.data)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:  # noqa: ARG002  the contract's
        """Fill in the header."""
        header = HEADER.pack(1, HEADER.size, HEADER.size + tokens * self._item_bytes)
        self._files.complete(self._name, side=self._side, tokens=tokens, documents=documents, header=header)


class LitdataFormat:
    """`train/chunk-0-0.bin` and so on, `train/index.json`. Implements `protocols.Format`."""

    def __init__(self, files: OutputFiles, spec: OutputSpec) -> None:
        self._files = files
        self._item_bytes = spec.item_bytes
        self.most_tokens = (_MOST_BYTES - HEADER.size) // spec.item_bytes

    def shard(self, side: str, number: int) -> LitdataShard:
        """Chunk `number` of a side."""
        return LitdataShard(self._files, f"{side}/chunk-0-{number}.bin", side, self._item_bytes)

    def finish(self, side: str, n_shards: int) -> None:
        """Write the index, where there is a chunk."""
        name = f"{side}/index.json"
        if not n_shards or name in self._files.completed():
            return
        entries = {path: entry for path, entry in self._files.completed().items() if entry.side == side}
        chunks = [
            {"chunk_bytes": entry.size_bytes, "chunk_size": 1, "dim": entry.tokens, "filename": os.path.basename(path)}
            for path, entry in entries.items()
        ]
        config = {
            "chunk_bytes": max(entry.size_bytes for entry in entries.values()),
            "chunk_size": None,
            "compression": None,
            "data_format": [f"no_header_numpy:{_CODES[self._item_bytes]}"],
            "data_spec": _ONE_LEAF,
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        # A time would make every run another output.
        index = {"chunks": chunks, "config": config, "updated_at": "0"}
        self._files.file(name).append(msgspec.json.encode(index))
        self._files.complete(name)


_ONE_LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'
"""How PyTorch writes down that an item is a single array."""
