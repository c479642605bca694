"""The raw format of nanoGPT: token ids one after the other, no header, little-endian.

`np.memmap("train.bin", dtype=np.uint16, mode="r")` reads it. Both files are always there, an empty one too; of shards, those that
hold something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.formats.base import FormatSpec, IdFile

if TYPE_CHECKING:
    from tokmill.core.output_spec import OutputSpec
    from tokmill.core.protocols import OutputFiles


def open_shard(files: OutputFiles, spec: OutputSpec, side: str, number: int) -> IdFile:
    """Open `train.bin`, or of shards `train_000000.bin`."""
    return IdFile(files, spec, side, f"{spec.prefix}{side}{f'_{number:06}' if spec.shards else ''}.bin")


def write_empty(files: OutputFiles, spec: OutputSpec, side: str, n_shards: int) -> None:
    """Write an empty file for a side without a token, except in a part."""
    if not n_shards and spec.shards is None and spec.part is None:
        open_shard(files, spec, side, 0).finish(0, 0, 0)


RAW = FormatSpec(
    shard=open_shard,
    finish=write_empty,
    suffix=".bin",
    takes_name=True,
    most_tokens=lambda _: 1 << 62,
    least_tokens=1025,
    too_short="nanoGPT's train.py needs 1,025 (its block_size, and one)",
)
