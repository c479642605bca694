"""The format of Megatron-LM, NeMo and GPT-NeoX: ids in `.bin`, the lengths and places of documents in `.idx`.

`.idx`: `MMIDIDX` and two zeros, u64 1, u8 type of the ids (8 uint16, 4 int32), u64 number of sequences, u64 number of document
indices, then int32 lengths, int64 places in bytes, int64 document indices from 0 to the number of sequences. A document is a
sequence. There is no type for uint32; ids of large vocabularies are int32, which are the same bytes.

The lengths are what cannot be in memory: millions of documents are gigabytes as a list. They are appended to `.idx` as documents
end, and read back from it, a block at a time, for the two arrays behind them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.core.output_spec import OutputSpec, TokenSlice
    from tokmill.core.protocols import OutputFiles

_MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
CODES = {2: 8, 4: 4}
"""Of uint16 and int32, by bytes of an id."""
_MOST_LENGTH = (1 << 31) - 1
_BLOCK = 1 << 16
"""Lengths that are looked at together."""


class MegatronShard:
    """A `.bin` and its `.idx`. Implements `protocols.Shard`."""

    def __init__(self, files: OutputFiles, name: str, side: str, item_bytes: int) -> None:
        self._files = files
        self._name = name
        self._side = side
        self._item_bytes = item_bytes
        self._bin = files.file(f"{name}.bin")
        self._idx = files.file(f"{name}.idx", HEADER.size)

    def append(self, tokens: TokenSlice) -> None:
        """Append the ids, and the lengths of documents that end."""
        self._bin.append(tokens.ids.data)
        if len(tokens.ends):
            lengths = np.diff(tokens.ends, prepend=0)
            lengths[0] += tokens.n_open
            self._append_lengths(lengths)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:
        """Append places and document indices; a document that goes on in the next shard is one of both."""
        if n_open:
            self._append_lengths(np.array([n_open], np.int64))
        n = (self._idx.length - HEADER.size) // 4
        place = 0
        for lengths in self._lengths(n):
            ends = place + np.cumsum(lengths, dtype=np.int64) * self._item_bytes
            self._idx.append(np.concatenate(([place], ends[:-1])).astype("<i8").data)
            place = int(ends[-1])
        for begin in range(0, n + 1, _BLOCK):
            self._idx.append(np.arange(begin, min(begin + _BLOCK, n + 1), dtype="<i8").data)
        header = HEADER.pack(_MAGIC, 1, CODES[self._item_bytes], n, n + 1)
        self._files.complete(f"{self._name}.bin", side=self._side, tokens=tokens, documents=documents)
        self._files.complete(f"{self._name}.idx", header=header)

    def _append_lengths(self, lengths: NDArray[np.int64]) -> None:
        if int(lengths.max()) > _MOST_LENGTH:
            # A document too long for an int32 is several.
            parts = [_parts(n) for n in lengths.tolist()]
            lengths = np.concatenate(parts)
        self._idx.append(lengths.astype("<i4").data)

    def _lengths(self, n: int) -> Iterator[NDArray[np.int32]]:
        """The lengths that were appended, in blocks."""
        for begin in range(0, n, _BLOCK):
            yield np.frombuffer(self._idx.read(HEADER.size + 4 * begin, 4 * min(_BLOCK, n - begin)), "<i4")


def _parts(n: int) -> list[int]:
    """The lengths of the documents that one of `n` tokens becomes; 0 is one of them."""
    n_full, rest = divmod(n, _MOST_LENGTH)
    return [_MOST_LENGTH] * n_full + ([rest] if rest or not n_full else [])


class MegatronFormat:
    """`train.bin` with `train.idx`, or shards `train_000000.bin`. Implements `protocols.Format`."""

    most_tokens = 1 << 60

    def __init__(self, files: OutputFiles, spec: OutputSpec) -> None:
        self._files = files
        self._item_bytes = spec.item_bytes
        self._is_sharded = spec.shards is not None

    def shard(self, side: str, number: int) -> MegatronShard:
        """Shard `number` of a side."""
        name = f"{side}_{number:06}" if self._is_sharded else side
        return MegatronShard(self._files, name, side, self._item_bytes)

    def finish(self, side: str, n_shards: int) -> None:
        """Nothing to add."""
