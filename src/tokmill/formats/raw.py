"""The raw format of nanoGPT: token ids one after the other, no header, little-endian.

`np.memmap("train.bin", dtype=np.uint16, mode="r")` reads it. Both files are always there, an empty one too; of shards, those that
hold something.
"""

from __future__ import annotations

from tokmill.formats.base import FormatSpec, FormatWriter, IdFile


class RawFormat(FormatWriter):
    """`train.bin` and `val.bin`, or shards `train_000000.bin`. Implements `protocols.Format`."""

    def shard(self, side: str, number: int) -> IdFile:
        """Return shard `number` of a side."""
        return IdFile(self.files, f"{side}_{number:06}.bin" if self.spec.shards else f"{side}.bin", side)

    def finish(self, side: str, n_shards: int) -> None:
        """Write an empty file for a side without a token, except in a part."""
        if not n_shards and self.spec.shards is None and self.spec.part is None:
            self.shard(side, 0).finish(0, 0, 0)


RAW = FormatSpec(writer=RawFormat, suffix=".bin", most_tokens=lambda _: 1 << 62)
