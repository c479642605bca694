"""The format of OLMo and dolma: ids in `part-0-00000.npy`, the documents' places in `part-0-00000.csv.gz`.

In spite of its name the first is no NumPy file: it has no header. The second has a row a document, without titles:
`start,end,id,src,loc`, in tokens, the end-of-text id included; id counts the shard's documents from 0, loc from 1, src is empty.
The loader finds documents by their end-of-text ids, so each must end with one; the rows are made the same way, from the ids that
were written, when the shard is complete. Neither lengths nor rows are kept until then.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from tokmill.formats.base import FormatSpec, IdFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from tokmill.core.output_spec import OutputSpec
    from tokmill.core.protocols import OutputFile, OutputFiles

_BLOCK_BYTES = 1 << 20
_GZIP = 31
"""zlib's word for the largest window with a gzip header, whose time it leaves 0."""


class OlmoShard(IdFile):
    """`train/part-0-00000.npy` and its `.csv.gz`."""

    def __init__(self, files: OutputFiles, spec: OutputSpec, side: str, number: int) -> None:
        name = f"{side}/part-0-{number:05}"
        super().__init__(files, spec, side, f"{name}.npy")
        self._rows_name = f"{name}.csv.gz"

    def finish(self, tokens: int, documents: int, n_open: int) -> None:
        """Write the rows."""
        _append_rows(self.files.file(self._rows_name), self._ends(tokens, n_open))
        # Only now: a complete file may be closed.
        self.complete(tokens, documents)
        self.files.complete(self._rows_name)

    def _ends(self, tokens: int, n_open: int) -> Iterator[NDArray[np.int64]]:
        """Yield where documents end, found in the file."""
        import numpy as np

        n_bytes, item_bytes = tokens * self.spec.item_bytes, self.spec.item_bytes
        for begin in range(0, n_bytes, _BLOCK_BYTES):
            ids = np.frombuffer(self.file.read(begin, min(_BLOCK_BYTES, n_bytes - begin)), f"<u{item_bytes}")
            yield np.flatnonzero(ids == self.spec.eot_id) + begin // item_bytes + 1
        if n_open:
            yield np.array([tokens], np.int64)


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


OLMO = FormatSpec(
    shard=OlmoShard,
    suffix=".npy",
    index_suffixes=(".csv.gz",),
    is_eot_needed=True,
    most_tokens=lambda _: 1 << 60,
    not_packed="OLMo-core packs documents itself, and reads every .npy, the starts of documents too",
    keeps_whole=True,
    least_tokens=2048,
    too_short="no instance of sequence_length 2,048 for OLMo-core",
)
