"""The format of MosaicML Streaming: shards of samples of 2,048 tokens each, and an `index.json` that lists them.

A shard is u32 number of samples, u32 offsets of them and of the end, a JSON object that describes the column `tokens`, and the
samples. What stands before the samples has room for as many as a full shard has; where the last shard has fewer, the rest of it is
zeros, over which the offsets lead. The last sample of a side is filled up with end-of-text ids.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from tokmill.core.output_spec import OutputSpec, TokenSlice
    from tokmill.core.protocols import OutputFiles

SAMPLE_TOKENS = 2048
_MOST_BYTES = (1 << 32) - 1
"""Offsets are u32."""
_DESCRIPTION_BYTES = 1 << 10
"""More than the JSON object has."""


class MdsShard:
    """One file. Implements `protocols.Shard`."""

    def __init__(self, files: OutputFiles, name: str, side: str, spec: OutputSpec, description: bytes, n_samples: int) -> None:
        """n_samples: of a full shard."""
        self._files = files
        self._name = name
        self._side = side
        self._spec = spec
        self._description = description
        self._header_bytes = 4 + 4 * (n_samples + 1) + len(description)
        self._file = files.file(name, self._header_bytes)

    def append(self, tokens: TokenSlice) -> None:
        """Append the ids."""
        self._file.append(tokens.ids.data)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:  # noqa: ARG002  the contract's
        """Fill up the last sample, and fill in what stands before all."""
        self._file.append(np.full(-tokens % SAMPLE_TOKENS, self._spec.eot_id, self._spec.dtype).data)
        n_samples = -(-tokens // SAMPLE_TOKENS)
        offsets = np.arange(n_samples + 1, dtype=np.int64) * (SAMPLE_TOKENS * self._spec.item_bytes) + self._header_bytes
        header = n_samples.to_bytes(4, "little") + offsets.astype("<u4").tobytes() + self._description
        header = header.ljust(self._header_bytes, b"\0")
        self._files.complete(self._name, side=self._side, tokens=tokens, documents=documents, header=header)


class MdsFormat:
    """`train/shard.00000.mds` and so on, `train/index.json`. Implements `protocols.Format`."""

    def __init__(self, files: OutputFiles, spec: OutputSpec) -> None:
        self._files = files
        self._spec = spec
        sample_bytes = SAMPLE_TOKENS * spec.item_bytes
        self.most_tokens = (_MOST_BYTES - _DESCRIPTION_BYTES) // (sample_bytes + 4) * SAMPLE_TOKENS
        tokens = spec.shards.tokens if spec.shards else self.most_tokens
        self._n_samples = min(tokens, self.most_tokens) // SAMPLE_TOKENS
        self._column = {
            "column_encodings": [f"ndarray:{spec.dtype}:{SAMPLE_TOKENS}"],
            "column_names": ["tokens"],
            "column_sizes": [sample_bytes],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "size_limit": self._n_samples * sample_bytes,
            "version": 2,
        }

    def shard(self, side: str, number: int) -> MdsShard:
        """Shard `number` of a side."""
        # As the library's own writer puts it, so that full shards are the same bytes.
        description = json.dumps(self._column, sort_keys=True).encode()
        return MdsShard(self._files, f"{side}/shard.{number:05}.mds", side, self._spec, description, self._n_samples)

    def finish(self, side: str, n_shards: int) -> None:
        """Write the index, where there is a shard."""
        name = f"{side}/index.json"
        if not n_shards or name in self._files.completed():
            return
        shards = [
            self._column
            | {
                "raw_data": {"basename": os.path.basename(path), "bytes": entry.size_bytes, "hashes": {}},
                "samples": -(-entry.tokens // SAMPLE_TOKENS),
                "zip_data": None,
            }
            for path, entry in self._files.completed().items()
            if entry.side == side
        ]
        self._files.file(name).append(msgspec.json.encode({"shards": shards, "version": 2}))
        self._files.complete(name)
