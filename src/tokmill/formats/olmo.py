"""The format of OLMo and dolma: ids in `part-0-00000.npy`, the documents' places in `part-0-00000.csv.gz`.

In spite of its name the first is no NumPy file: it has no header. The second has a row a document, without titles:
`start,end,id,src,loc`, in tokens, the end-of-text id included; id counts the shard's documents from 0, loc from 1, src is empty.
The loader finds documents by their end-of-text ids, so each must end with one; the rows are made the same way, from the ids that
were written, when the shard is complete. Neither lengths nor rows are kept until then.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.core.output_spec import OutputSpec, TokenSlice
    from tokmill.core.protocols import OutputFile, OutputFiles

_BLOCK_BYTES = 1 << 20
_GZIP = 31
"""zlib's word for the largest window with a gzip header, whose time it leaves 0."""


class OlmoShard:
    """Two files. Implements `protocols.Shard`."""

    def __init__(self, files: OutputFiles, name: str, side: str, spec: OutputSpec) -> None:
        self._files = files
        self._name = name
        self._side = side
        self._spec = spec
        self._ids = files.file(f"{name}.npy")

    def append(self, tokens: TokenSlice) -> None:
        """Append the ids."""
        self._ids.append(tokens.ids.data)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:
        """Write the rows."""
        self._files.complete(f"{self._name}.npy", side=self._side, tokens=tokens, documents=documents)
        rows = self._files.file(f"{self._name}.csv.gz")
        _append_rows(rows, self._ends(tokens, n_open))
        self._files.complete(f"{self._name}.csv.gz")

    def _ends(self, tokens: int, n_open: int) -> Iterator[NDArray[np.int64]]:
        """Where documents end, found in the file."""
        n_bytes, item_bytes = tokens * self._spec.item_bytes, self._spec.item_bytes
        for begin in range(0, n_bytes, _BLOCK_BYTES):
            ids = np.frombuffer(self._ids.read(begin, min(_BLOCK_BYTES, n_bytes - begin)), f"<u{item_bytes}")
            yield np.flatnonzero(ids == self._spec.eot_id) + begin // item_bytes + 1
        if n_open:
            yield np.array([tokens], np.int64)


class OlmoFormat:
    """`train/part-0-00000.npy` and so on. Implements `protocols.Format`."""

    most_tokens = 1 << 60

    def __init__(self, files: OutputFiles, spec: OutputSpec) -> None:
        self._files = files
        self._spec = spec

    def shard(self, side: str, number: int) -> OlmoShard:
        """Shard `number` of a side."""
        return OlmoShard(self._files, f"{side}/part-0-{number:05}", side, self._spec)

    def finish(self, side: str, n_shards: int) -> None:
        """Nothing to add."""


def _append_rows(file: OutputFile, ends: Iterator[NDArray[np.int64]]) -> None:
    squeeze = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    number = start = 0
    for block in ends:
        lines = []
        for end in block.tolist():
            lines.append(f"{start},{end},{number},,{number + 1}\n")
            number, start = number + 1, end
        file.append(squeeze.compress("".join(lines).encode()))
    file.append(squeeze.flush())
