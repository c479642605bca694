"""The format of llm.c and modded-nanogpt: shards of ids behind a header of 256 int32.

Header: 20240520, 1, number of tokens, then zeros, and uint16 ids; for vocabularies that need them 20240801, 7 and uint32 ids
(llm.c's Llama 3). Readers check that the file has 1,024 bytes and the ids. The number is filled in when the shard is complete. A
side without a token has no file: an empty shard ends a training.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokmill.core.output_spec import OutputSpec, TokenSlice
    from tokmill.core.protocols import OutputFiles

HEADER_BYTES = 1024
MAGIC = {2: (20240520, 1), 4: (20240801, 7)}
"""Magic and version by bytes of an id."""
_MOST_BYTES = (1 << 31) - 1
"""llm.c holds positions in a file as int."""


class LlmcShard:
    """One file. Implements `protocols.Shard`."""

    def __init__(self, files: OutputFiles, name: str, side: str, item_bytes: int) -> None:
        self._files = files
        self._name = name
        self._side = side
        self._item_bytes = item_bytes
        self._file = files.file(name, HEADER_BYTES)

    def append(self, tokens: TokenSlice) -> None:
        """Append the ids."""
        self._file.append(tokens.ids.data)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:  # noqa: ARG002  the contract's
        """Fill in the header."""
        header = struct.pack("<3i", *MAGIC[self._item_bytes], tokens).ljust(HEADER_BYTES, b"\0")
        self._files.complete(self._name, side=self._side, tokens=tokens, documents=documents, header=header)


class LlmcFormat:
    """Shards `train_000000.bin`, `val_000000.bin`. Implements `protocols.Format`."""

    def __init__(self, files: OutputFiles, spec: OutputSpec) -> None:
        self._files = files
        self._item_bytes = spec.item_bytes
        self.most_tokens = (_MOST_BYTES - HEADER_BYTES) // spec.item_bytes

    def shard(self, side: str, number: int) -> LlmcShard:
        """Shard `number` of a side."""
        return LlmcShard(self._files, f"{side}_{number:06}.bin", side, self._item_bytes)

    def finish(self, side: str, n_shards: int) -> None:
        """Nothing to add."""
