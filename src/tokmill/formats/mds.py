"""The format of MosaicML Streaming: shards of samples of 2,048 tokens each, and an `index.json` that lists them.

A shard is u32 number of samples, u32 offsets of them and of the end, a JSON object that describes the column `tokens`, and the
samples. The header has room for as many offsets as a full shard has; where the last shard has fewer, the rest of it is zeros, over
which the offsets lead. The last sample of a side is filled up with end-of-text ids. Of packed ids a sample is a
sequence.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import msgspec

from tokmill.formats.base import FormatSpec, IdFile

if TYPE_CHECKING:
    from tokmill.core.output_spec import OutputSpec
    from tokmill.core.protocols import OutputFiles

SAMPLE_TOKENS = 2048
_MOST_BYTES = (1 << 32) - 1
"""Offsets are u32."""
_DESCRIPTION_BYTES = 1 << 10
"""More than the JSON object has."""


class MdsShard(IdFile):
    """`train/shard.00000.mds` and so on."""

    def __init__(self, files: OutputFiles, spec: OutputSpec, side: str, number: int) -> None:
        self._sample_tokens = spec.sequence or SAMPLE_TOKENS
        # As the library's own writer puts it, so that full shards are the same bytes.
        self._description = json.dumps(_column(spec), sort_keys=True).encode()
        self._header_bytes = 4 + 4 * (_n_samples(spec) + 1) + len(self._description)
        super().__init__(files, spec, side, f"{side}/shard.{number:05}.mds", self._header_bytes)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:  # noqa: ARG002  the base's
        """Fill up the last sample, and fill in the header."""
        import numpy as np

        self.file.append(np.full(-tokens % self._sample_tokens, self.spec.eot_id, self.spec.dtype).data)
        n_samples = -(-tokens // self._sample_tokens)
        offsets = np.arange(n_samples + 1, dtype=np.int64) * (self._sample_tokens * self.spec.item_bytes) + self._header_bytes
        header = n_samples.to_bytes(4, "little") + offsets.astype("<u4").tobytes() + self._description
        self.complete(tokens, documents, header.ljust(self._header_bytes, b"\0"))


def _n_samples(spec: OutputSpec) -> int:
    """Return the number of samples of a full shard."""
    most = most_tokens(spec.item_bytes)
    return min(spec.shards.tokens if spec.shards else most, most) // (spec.sequence or SAMPLE_TOKENS)


def _column(spec: OutputSpec) -> dict[str, Any]:
    sample_tokens = spec.sequence or SAMPLE_TOKENS
    sample_bytes = sample_tokens * spec.item_bytes
    return {
        "column_encodings": [f"ndarray:{spec.dtype}:{sample_tokens}"],
        "column_names": ["tokens"],
        "column_sizes": [sample_bytes],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": _n_samples(spec) * sample_bytes,
        "version": 2,
    }


def write_index(files: OutputFiles, spec: OutputSpec, side: str, n_shards: int) -> None:
    """Write `index.json` of a side, if there is a shard."""
    name = f"{side}/index.json"
    if not n_shards or name in files.completed():
        return
    shards = [
        _column(spec)
        | {
            "raw_data": {"basename": os.path.basename(path), "bytes": entry.size_bytes, "hashes": {}},
            "samples": -(-entry.tokens // (spec.sequence or SAMPLE_TOKENS)),
            "zip_data": None,
        }
        for path, entry in files.completed().items()
        if entry.side == side
    ]
    files.file(name).append(msgspec.json.encode({"shards": shards, "version": 2}))
    files.complete(name)


def most_tokens(item_bytes: int) -> int:
    """Return the most tokens of a shard."""
    return (_MOST_BYTES - _DESCRIPTION_BYTES) // (SAMPLE_TOKENS * item_bytes + 4) * SAMPLE_TOKENS


MDS = FormatSpec(
    shard=MdsShard,
    finish=write_index,
    suffix=".mds",
    index_suffixes=("index.json",),
    lists_files=True,
    shard_tokens=1 << 25,
    most_tokens=most_tokens,
    unit_tokens=SAMPLE_TOKENS,
    least_tokens=SAMPLE_TOKENS,
    too_short=f"less than one sample of {SAMPLE_TOKENS:,}; the rest of it is end-of-text ids",
)
