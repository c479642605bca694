"""The raw format of nanoGPT: token ids one behind the other, no header, little-endian.

`np.memmap("train.bin", dtype=np.uint16, mode="r")` reads it. Every run of ids goes straight from the encoder's array to the file.
Both files are always there, an empty one too; of shards, those that hold something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokmill.core.output_spec import OutputSpec, TokenSlice
    from tokmill.core.protocols import OutputFiles


class RawShard:
    """One file of ids. Implements `protocols.Shard`."""

    def __init__(self, files: OutputFiles, name: str, side: str) -> None:
        self._files = files
        self._name = name
        self._side = side
        self._file = files.file(name)

    def append(self, tokens: TokenSlice) -> None:
        """Append the ids."""
        self._file.append(tokens.ids.data)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:  # noqa: ARG002  the contract's
        """Nothing to add."""
        self._files.complete(self._name, side=self._side, tokens=tokens, documents=documents)


class RawFormat:
    """`train.bin` and `val.bin`, or shards `train_000000.bin`. Implements `protocols.Format`."""

    most_tokens = 1 << 62

    def __init__(self, files: OutputFiles, spec: OutputSpec) -> None:
        self._files = files
        self._is_sharded = spec.shards is not None
        self._is_part = spec.part is not None

    def shard(self, side: str, number: int) -> RawShard:
        """Shard `number` of a side."""
        return RawShard(self._files, f"{side}_{number:06}.bin" if self._is_sharded else f"{side}.bin", side)

    def finish(self, side: str, n_shards: int) -> None:
        """A side without a token is an empty file, but not of each part."""
        if not n_shards and not self._is_sharded and not self._is_part:
            self.shard(side, 0).finish(0, 0, 0)
