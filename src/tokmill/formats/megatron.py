"""The format of Megatron-LM, NeMo and GPT-NeoX: ids in `.bin`, the lengths and places of documents in `.idx`.

`.idx`: `MMIDIDX` and two zeros, u64 1, u8 type of the ids (8 uint16, 4 int32), u64 number of sequences, u64 number of document
indices, then int32 lengths, int64 places in bytes, int64 document indices from 0 to the number of sequences. A document is a
sequence. There is no type for uint32; ids of large vocabularies are int32, which are the same bytes.

The lengths are what cannot be in memory: millions of documents are gigabytes as a list. They are appended to `.idx` as documents
end, and read back from it, a block at a time, for the two arrays after them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tokmill.formats.base import FormatSpec, IdFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from tokmill.core.output_spec import OutputSpec, TokenSlice
    from tokmill.core.protocols import OutputFiles

_MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
_CODES = {2: 8, 4: 4}
"""Codes of uint16 and int32, by bytes of an id."""
_MOST_LENGTH = (1 << 31) - 1
_BLOCK = 1 << 16
"""Lengths that are looked at together."""


class MegatronShard(IdFile):
    """`train.bin` with `train.idx`, or of shards `train_000000.bin` with its `.idx`."""

    def __init__(self, files: OutputFiles, spec: OutputSpec, side: str, number: int) -> None:
        name = f"{side}_{number:06}" if spec.shards else side
        super().__init__(files, spec, side, f"{name}.bin")
        self._index_name = f"{name}.idx"
        self._index = files.file(self._index_name, HEADER.size)

    def append(self, tokens: TokenSlice) -> None:
        """Append the ids, and the lengths of documents that end."""
        import numpy as np

        super().append(tokens)
        if len(tokens.ends):
            lengths = np.diff(tokens.ends, prepend=0)
            lengths[0] += tokens.n_open
            self._append_lengths(lengths)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:
        """Append places and document indices; a document that goes on in the next shard is one of both."""
        import numpy as np

        if n_open:
            self._append_lengths(np.array([n_open], np.int64))
        n = (self._index.length - HEADER.size) // 4
        place = 0
        for lengths in self._lengths(n):
            ends = place + np.cumsum(lengths, dtype=np.int64) * self.spec.item_bytes
            self._index.append(np.concatenate(([place], ends[:-1])).astype("<i8").data)
            place = int(ends[-1])
        for begin in range(0, n + 1, _BLOCK):
            self._index.append(np.arange(begin, min(begin + _BLOCK, n + 1), dtype="<i8").data)
        self.complete(tokens, documents)
        self.files.complete(self._index_name, header=HEADER.pack(_MAGIC, 1, _CODES[self.spec.item_bytes], n, n + 1))

    def _append_lengths(self, lengths: NDArray[np.int64]) -> None:
        import numpy as np

        if int(lengths.max()) > _MOST_LENGTH:
            # A document too long for an int32 is several.
            lengths = np.concatenate([_cut_length(n) for n in lengths.tolist()])
        self._index.append(lengths.astype("<i4").data)

    def _lengths(self, n: int) -> Iterator[NDArray[np.int32]]:
        """Yield the lengths that were appended, in blocks."""
        import numpy as np

        for begin in range(0, n, _BLOCK):
            yield np.frombuffer(self._index.read(HEADER.size + 4 * begin, 4 * min(_BLOCK, n - begin)), "<i4")


def _cut_length(n: int) -> list[int]:
    """Return the lengths of the documents that one of `n` tokens becomes; 0 is one of them."""
    n_full, rest = divmod(n, _MOST_LENGTH)
    return [_MOST_LENGTH] * n_full + ([rest] if rest or not n_full else [])


MEGATRON = FormatSpec(
    shard=MegatronShard,
    suffix=".bin",
    index_magic=_MAGIC,
    index_bytes=20,
    other_eot="Megatron ends documents at the end-of-text id (--reset-position-ids, --eod-mask-loss)",
    uint16_ids=65_499,
    most_ids=1 << 31,
    expects_dtype=True,
    most_tokens=lambda _: 1 << 60,
    keeps_whole=True,
    least_tokens=1025,
    too_short="less than one sequence of 1,024 and the next token, which Megatron-LM then repeats (--seq-length)",
)
