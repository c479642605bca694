"""The format of datatrove and nanotron: ids in `.ds`, the ends of documents in `.ds.index`, three lines in `.ds.metadata`.

`.ds.index` holds a u64 for each document: the number of tokens up to its end. The lines of `.ds.metadata` are tokenizer and
bytes of an id, number of tokens, and that number for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.formats.base import FormatSpec, IdFile

if TYPE_CHECKING:
    from tokmill.core.output_spec import OutputSpec, TokenSlice
    from tokmill.core.protocols import OutputFiles


class DatatroveShard(IdFile):
    """`train/000000.ds` and two more files: a directory a side, for datatrove's dataset takes all files of one."""

    def __init__(self, files: OutputFiles, spec: OutputSpec, side: str, number: int) -> None:
        super().__init__(files, spec, side, f"{side}/{number:06}.ds")
        self._index = files.file(f"{self.name}.index")

    def append(self, tokens: TokenSlice) -> None:
        """Append the ids, and the ends of documents."""
        super().append(tokens)
        if len(tokens.ends):
            self._index.append((tokens.ends + tokens.n_before).astype("<u8").data)

    def finish(self, tokens: int, documents: int, n_open: int) -> None:
        """Write the lines; a document that goes on in the next shard ends here, too."""
        if n_open:
            self._index.append(tokens.to_bytes(8, "little"))
        lines = f"{self.spec.tokenizer}|{self.spec.item_bytes}\n{tokens}\n{_for_people(tokens)}"
        self.files.file(f"{self.name}.metadata").append(lines.encode())
        self.complete(tokens, documents)
        self.files.complete(f"{self.name}.index")
        self.files.complete(f"{self.name}.metadata")


def _for_people(tokens: int) -> str:
    """Three digits and a unit, as datatrove writes them: `829 kT`."""
    exponent = len(str(tokens)) - 1
    unit = ("", "k", "M", "G", "T", "P")[exponent // 3]
    return f"{tokens / 10 ** (exponent // 3 * 3):.{2 - exponent % 3}f} {unit}T"


DATATROVE = FormatSpec(
    shard=DatatroveShard,
    suffix=".ds",
    index_suffixes=(".ds.index", ".ds.metadata"),
    index_bytes=8,
    most_tokens=lambda _: 1 << 60,
    not_packed="nanotron and datatrove cut windows of their own, a token longer than a sequence",
    keeps_whole=True,
    least_tokens=2049,
    too_short="no sample of a sequence of 2,048 and the next token, as nanotron and datatrove take them",
)
