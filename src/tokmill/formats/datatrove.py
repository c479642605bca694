"""The format of datatrove and nanotron: ids in `.ds`, the ends of documents in `.ds.index`, three lines in `.ds.metadata`.

`.ds.index` holds a u64 for each document: the number of tokens up to its end. The lines of `.ds.metadata` are tokenizer and
bytes of an id, number of tokens, and that number for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokmill.core.output_spec import OutputSpec, TokenSlice
    from tokmill.core.protocols import OutputFiles


class DatatroveShard:
    """Three files. Implements `protocols.Shard`."""

    def __init__(self, files: OutputFiles, name: str, side: str, spec: OutputSpec) -> None:
        self._files = files
        self._name = name
        self._side = side
        self._spec = spec
        self._ids = files.file(name)
        self._index = files.file(f"{name}.index")

    def append(self, tokens: TokenSlice) -> None:
        """Append the ids, and the ends of documents."""
        self._ids.append(tokens.ids.data)
        if len(tokens.ends):
            self._index.append((tokens.ends + tokens.n_before).astype("<u8").data)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:
        """Write the lines; a document that goes on in the next shard ends here, too."""
        if n_open:
            self._index.append(np.array([tokens], "<u8").data)
        lines = f"{self._spec.tokenizer}|{self._spec.item_bytes}\n{tokens}\n{_for_people(tokens)}"
        self._files.file(f"{self._name}.metadata").append(lines.encode())
        self._files.complete(self._name, side=self._side, tokens=tokens, documents=documents)
        self._files.complete(f"{self._name}.index")
        self._files.complete(f"{self._name}.metadata")


class DatatroveFormat:
    """`train/000000.ds` and so on: a directory a side, as its dataset takes all files of one. Implements `protocols.Format`."""

    most_tokens = 1 << 60

    def __init__(self, files: OutputFiles, spec: OutputSpec) -> None:
        self._files = files
        self._spec = spec

    def shard(self, side: str, number: int) -> DatatroveShard:
        """Shard `number` of a side."""
        return DatatroveShard(self._files, f"{side}/{number:06}.ds", side, self._spec)

    def finish(self, side: str, n_shards: int) -> None:
        """Nothing to add."""


def _for_people(tokens: int) -> str:
    """Three digits and a unit, as datatrove has them: `829 kT`."""
    exponent = len(str(tokens)) - 1
    unit = ("", "k", "M", "G", "T", "P")[exponent // 3]
    return f"{tokens / 10 ** (exponent // 3 * 3):.{2 - exponent % 3}f} {unit}T"
