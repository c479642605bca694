"""The documents that are deduplicated, numbered through all outputs: of several copies the first stays.

First come those that are never removed: all documents of the outputs that are deduplicated against, then the validation sides. The
training sides follow in the order of the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.output_spec import SIDES
from tokmill.core.records import ITEM_BYTES
from tokmill.derive.copiers import ids_of
from tokmill.derive.document_stream import ahead, pieces_of, whole_documents, without_mark
from tokmill.derive.source import ShiftedIds, check_edge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from tokmill.core.records import EotPlacement
    from tokmill.dataset import Ids
    from tokmill.derive.source import Source
    from tokmill.derive.spread.portions import Portion


@dataclass(frozen=True, slots=True)
class Section:
    """One side of one output."""

    loaded: Source | None
    """The output; None: another task reads it."""
    index: int
    """Number of the output: those that are deduplicated from 0 on, then those that these are deduplicated against."""
    side: str
    first: int
    """Number of its first document."""
    is_protected: bool
    """Whether its documents are never removed."""
    n_documents: int
    """As its manifest says."""
    n_tokens: int
    """The same, tokens."""
    item_bytes: int
    """Bytes of an id."""

    @property
    def source(self) -> Source:
        """The output."""
        assert self.loaded is not None
        return self.loaded

    @property
    def n_bytes(self) -> int:
        """Of its ids."""
        return self.n_tokens * self.item_bytes

    def ids(self, eot: EotPlacement | None = None) -> ShiftedIds:
        """Return a reader of its ids, every byte of them checked. eot: where end-of-text ids are wanted; None: where they are."""
        content = self.source.content
        return ShiftedIds(ids_of(self.source, self.side), content.tokenizer.eot_id, content.eot, eot or content.eot)

    def check(self) -> None:
        """Raise DamageError where it does not begin or end as its end-of-text ids say."""
        content = self.source.content
        ids = ids_of(self.source, self.side)
        check_edge(ids, content.tokenizer.eot_id, content.eot, str(self.source.directory), is_bare=False)

    def check_end(self, portion: Portion, reader: ShiftedIds, token: int, document: int) -> None:
        """Raise DamageError unless a portion was read to its end. token, document: to which it was read."""
        if (token, document) != (portion.end, portion.document + portion.n_documents):
            raise self.source.count_error(self.side, document)
        reader.read_to(portion.end)
        if portion.end == reader.n_tokens:
            self.source.finish()


def sections_of(sources: Sequence[Source], against: Sequence[Source]) -> list[Section]:
    """Return the sections of these outputs, in order."""
    wanted = [(source, len(sources) + i, side, True) for i, source in enumerate(against) for side in SIDES]
    wanted += [(source, i, "val", True) for i, source in enumerate(sources)]
    wanted += [(source, i, "train", False) for i, source in enumerate(sources)]
    found, first = [], 0
    for source, index, side, is_protected in wanted:
        counts, item_bytes = source.manifest.counts, ITEM_BYTES[source.content.dtype]
        n_documents, n_tokens = getattr(counts, f"documents_{side}"), getattr(counts, f"tokens_{side}")
        found.append(Section(source, index, side, first, is_protected, n_documents, n_tokens, item_bytes))
        first += n_documents
    return found


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents that follow each other: whole ones, or one that is longer than a block."""

    section: Section
    number: int
    """Of the section."""
    first: int
    """Number of its first document."""
    ids: NDArray[Any]
    """uint16 or uint32, as all are compared; of a long document none."""
    begins: NDArray[np.int64]
    """Of each document in `ids`, without its end-of-text id: int64, shape (n,)."""
    ends: NDArray[np.int64]
    token: int
    """Tokens of the section that lie before."""
    n_tokens: int
    """With end-of-text ids."""
    reader: ShiftedIds
    is_long: bool = False

    @property
    def n_documents(self) -> int:
        """How many it holds."""
        return 1 if self.is_long else len(self.ends)

    def pieces(self, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
        """Yield the ids of the long document, without its end-of-text id."""
        eot = self.section.source.content.eot
        for piece, is_first, is_last in pieces_of(self.reader, self.token):
            yield without_mark(piece, eot, is_first, is_last).astype(dtype, copy=False)


class Documents:
    """All documents, read front to back."""

    def __init__(self, sections: Sequence[Section], dtype: np.dtype[Any] | None = None) -> None:
        """dtype: None: as the tokenizers of all outputs need it, which must be there then."""
        self.sections = list(sections)
        if dtype is None:
            tokenizers = [section.source.content.tokenizer for section in sections]
            dtype = np.dtype("<u2" if max(each.n_ids for each in tokenizers) <= 1 << 16 else "<u4")
        self.dtype = dtype
        """Type of ids in which documents are compared, whatever the outputs have."""
        last = self.sections[-1]
        self.n = last.first + last.n_documents
        self.n_protected = next((s.first for s in self.sections if not s.is_protected), self.n)
        """So many, the first ones, are never removed."""
        self.n_bytes = sum(section.n_bytes for section in self.sections)
        """Bytes of all ids in the outputs."""
        self.n_ids = sum(section.n_tokens for section in self.sections)
        """All of them, end-of-text ids included."""

    def batches(self, number: int, token: int, document: int) -> Iterator[Batch]:
        """Yield all documents from a place on, each source checked to its end. Raises DamageError."""
        for at in range(number, len(self.sections)):
            section = self.sections[at]
            section.check()
            for batch in self._between(at, section.ids(), token, section.n_tokens, document):
                yield batch
                document = batch.first - section.first + batch.n_documents
            if document != section.n_documents:
                raise section.source.count_error(section.side, document)
            section.source.finish()
            section.source.close()
            token = document = 0

    def portion(self, portion: Portion) -> Iterator[Batch]:
        """Yield the documents of a portion, whose operand is the number of a section. Raises DamageError."""
        section = self.sections[portion.operand]
        token, document, reader = portion.token, portion.document, section.ids()
        for batch in self._between(portion.operand, reader, token, portion.end, document):
            yield batch
            token, document = batch.token + batch.n_tokens, batch.first - section.first + batch.n_documents
        section.check_end(portion, reader, token, document)

    def _between(self, at: int, reader: ShiftedIds, token: int, end: int, document: int) -> Iterator[Batch]:
        """Yield the documents of a section from a token to another."""
        section = self.sections[at]
        for block, ends in ahead(whole_documents(reader, token, end), waits=lambda block: not len(block[1])):
            if len(ends):
                batch = self._batch(section, at, block, ends, token, document, reader)
            else:
                n_tokens = sum(len(piece) for piece, _, _ in pieces_of(reader, token))
                nothing, nowhere = block[:0].astype(self.dtype), np.zeros(0, np.int64)
                first = section.first + document
                batch = Batch(section, at, first, nothing, nowhere, nowhere, token, n_tokens, reader, is_long=True)
            yield batch
            token, document = token + batch.n_tokens, document + batch.n_documents

    def _batch(
        self, section: Section, at: int, block: Ids, ends: NDArray[np.int64], token: int, document: int, reader: ShiftedIds
    ) -> Batch:
        is_after = section.source.content.eot == "after"
        begins = np.concatenate([[0], ends[:-1]]) + (not is_after)
        ids = block.astype(self.dtype, copy=False)
        return Batch(section, at, section.first + document, ids, begins, ends - is_after, token, len(block), reader)

    def close(self) -> None:
        """Close the files of all sources."""
        for section in self.sections:
            if section.loaded is not None:
                section.loaded.close()

    def where(self, numbers: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return, of documents, the index in `sections` and the number within that section."""
        firsts = np.array([section.first for section in self.sections], np.uint64)
        # Of sections without a document, the last one that begins there.
        at = np.searchsorted(firsts, numbers, side="right") - 1
        return at, (numbers - firsts[at]).astype(np.int64)
