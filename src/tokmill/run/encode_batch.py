"""One batch: check the text, choose the sides, encode, choose samples for the audit, narrow the ids, insert EOT ids.

The range of the ids is checked before they are narrowed, by arithmetic and not by `assert`: a wrong id is an error under
`python -O` too. Narrowing and inserting are a few passes over the whole batch; almost no Python runs for each document.
"""

from __future__ import annotations

from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash

from tokmill.core.documents import DocumentBuffer, text_bytes
from tokmill.core.errors import BadTextError, EngineError, UsageError
from tokmill.core.local_struct import MutableStruct
from tokmill.core.records import NOT_SAMPLED, Batch, Counts, EncodedBatch, Skip, Tokens
from tokmill.core.selection import Selection
from tokmill.core.text import counted
from tokmill.encode import reference_of
from tokmill.read import ENCODING_ADVICE, clean, damage_hint, first_invalid
from tokmill.run.token_limits import has_limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tokmill.core.config import Content
    from tokmill.core.protocols import Encoder
    from tokmill.core.records import Sample
    from tokmill.run.audit import Auditor

_FEW_DOCUMENTS = 1000
"""Up to here joining slices is faster than np.insert (2 MB: 0.27 ms against 0.52 for 400 documents, 1.2 against 0.75 for 5,000)."""


class _Texts(MutableStruct):
    """The documents of a batch that will be encoded."""

    documents: Sequence[bytes]
    origin: Sequence[int] | NDArray[np.intp]
    """Index of each in the batch."""
    skips: list[Skip] = msgspec.field(default_factory=list)
    n_empty: int = 0
    n_left_out: int = 0
    """By `--sample`."""
    is_changed: bool = False
    """The UTF-8 policy changed or left out some, so the batch's raw bytes are not theirs."""
    invalid_documents: int = 0
    invalid_bytes: int = 0


class EncodeStage:
    """From batches to tokens. One for each process that encodes."""

    def __init__(self, content: Content, encoder: Encoder, auditor: Auditor, unknown_id: int | None = None) -> None:
        """unknown_id: of the token for text that the vocabulary lacks."""
        self.encoder = encoder
        self._unknown_id = unknown_id
        self._content = content
        self._auditor = auditor
        self._selection = Selection(content)
        self._max_id = min(content.tokenizer.n_ids - 1, int(np.iinfo(content.dtype).max))

    def run(self, batch: Batch, *, is_val_full: bool = False) -> EncodedBatch:
        """Encode one batch. is_val_full: no document of it is for validation. Raises BadTextError, EngineError."""
        texts, hashes = self._sample(self._keep(self._check(batch), batch), batch)
        documents = texts.documents
        is_val = self._selection.is_val(hashes) if batch.is_val is None else np.full(len(documents), batch.is_val)
        is_val = is_val & (not is_val_full) | batch.is_of_val
        ids, offsets = _encode(self.encoder, documents, None if texts.is_changed else batch.raw)
        self._check_ids(ids, batch)
        n_unknown = 0 if self._unknown_id is None else int(np.count_nonzero(ids == self._unknown_id))
        without = [i for i in np.flatnonzero(np.diff(offsets) == 0).tolist() if documents[i].strip()]
        if batch.index == 0:
            _check_loss(documents, len(ids) - n_unknown, n_unknown, batch, self._content.tokenizer.name)
        chosen = self._auditor.choose(hashes, offsets, first=batch.index == 0)
        runs = self._assemble(ids, offsets, is_val, batch)
        # Copies: what cuts a sample uses the encoder, too.
        of_chosen = [(i, ids[offsets[i] : offsets[i + 1]].copy()) for i in chosen]
        samples = [
            self._auditor.sample(documents[i], its_ids, self.encoder, batch.locate(int(texts.origin[i])))
            for i, its_ids in of_chosen
        ]
        return EncodedBatch(
            runs=runs,
            counts=batch.counts + _count(texts, runs, samples) + Counts(unknown_ids=n_unknown, documents_without_ids=len(without)),
            skips=self._in_order(batch.skips, texts.skips),
            after=batch.after,
            position_bytes=batch.position_bytes,
            samples=[sample for sample in samples if sample],
        )

    def _in_order(self, read: Sequence[Skip], checked: list[Skip]) -> Sequence[Skip]:
        """Return the skips of the reader and of this stage in the order of the corpus, however files were packed into batches."""
        if not read or not checked:
            return [*read, *checked]
        wanted = {skip.path for skip in (*read, *checked)}
        rank = {source.path: i for i, source in enumerate(self._content.inputs) if source.path in wanted}
        return sorted((*read, *checked), key=lambda skip: (rank[skip.path], skip.record or 0))

    def _check(self, batch: Batch) -> _Texts:
        """Apply the UTF-8 policy to documents that the reader left unchecked."""
        texts = _Texts(batch.documents, range(len(batch.documents)))
        if batch.raw is None or first_invalid(batch.raw) is None:
            return texts
        documents, origin = [], []
        for i, document in enumerate(batch.documents):
            checked = self._check_one(document, i, batch, texts)
            if checked is not None:
                documents.append(checked)
                origin.append(i)
        texts.documents, texts.origin, texts.is_changed = documents, origin, True
        return texts

    def _check_one(self, document: bytes, i: int, batch: Batch, texts: _Texts) -> bytes | None:
        at = first_invalid(document)
        if at is None:
            return document
        content = self._content
        if content.encoding_errors != "strict":
            document, n_invalid = clean(document, content.encoding_errors)
            texts.invalid_documents += 1
            texts.invalid_bytes += n_invalid
            return document
        where = batch.locate(i)
        offset = None if where.offset is None else where.offset + at
        if content.on_error == "skip":
            texts.skips.append(Skip(path=where.path, record=where.record, offset=offset, reason="invalid_utf8"))
            return None
        raise BadTextError(
            f"not valid UTF-8: byte 0x{document[at]:02x} at byte {at:,} of the document",
            where=str(where.at(offset)),
            allowed="UTF-8 text",
            next_step=ENCODING_ADVICE
            + ", or --on-error skip to leave the document out"
            + next((damage_hint(source.compression) for source in content.inputs if source.path == where.path), ""),
        )

    def _keep(self, texts: _Texts, batch: Batch) -> _Texts:
        """Leave out empty documents, unless they are kept or are a piece of a document that was cut."""
        if self._content.keep_empty or batch.is_val is not None:
            return texts
        n_before = len(texts.documents)
        texts.documents, kept = _without_empty(texts.documents)
        texts.n_empty = n_before - len(kept)
        if texts.n_empty:
            texts.origin = [texts.origin[i] for i in kept]
        return texts

    def _sample(self, texts: _Texts, batch: Batch) -> tuple[_Texts, NDArray[np.uint64]]:
        """Leave out documents that `--sample` did not choose; return the hash of each that is left, too: uint64, shape (n,)."""
        if isinstance(texts.documents, DocumentBuffer):
            texts.documents = texts.documents.compact()
        documents, seed = texts.documents, self._content.seed
        views = documents.views() if isinstance(documents, DocumentBuffer) else documents
        hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, views, repeat(seed)), np.uint64, len(documents))
        # Whoever cut a document has decided it.
        if not self._selection.is_sample or batch.is_val is not None:
            return texts, hashes
        kept = np.flatnonzero(self._selection.is_taken(hashes))
        texts.n_left_out = len(documents) - len(kept)
        texts.documents = [documents[i] for i in kept.tolist()]
        texts.origin = np.asarray(texts.origin)[kept]
        texts.is_changed = True
        return texts, hashes[kept]

    def _check_ids(self, ids: NDArray[np.uint32], batch: Batch) -> None:
        """Raise EngineError if an id does not fit, or is the EOT id where only text was encoded."""
        largest = int(ids.max()) if len(ids) else 0
        eot_id = self._content.tokenizer.eot_id
        if largest <= self._max_id and (largest < eot_id or not np.any(ids == eot_id)):
            return
        found = largest if largest > self._max_id else eot_id
        tokenizer = self._content.tokenizer
        other_eot = (
            ", or name another token that ends documents: --eot-token"
            if found == eot_id and tokenizer.kind == "huggingface"
            else ""
        )
        raise EngineError(
            f"the engine returned id {found:,} for text",
            where=str(batch.locate(0)),
            allowed=f"ids up to {self._max_id:,} ({self._content.dtype}), and never the end-of-text id {eot_id}",
            next_step=f"run again with --engine {reference_of(tokenizer)} --fresh (slow, exact){other_eot}; if it stays, report it",
        )

    def _assemble(
        self, ids: NDArray[np.uint32], offsets: NDArray[np.int64], is_val: NDArray[np.bool_], batch: Batch
    ) -> list[Tokens]:
        """Narrow the ids, insert EOT ids, and separate the sides."""
        n = len(offsets) - 1
        if not n:
            return []
        has_eot = np.full(n, self._content.eot != "none")
        if batch.tail_open and self._content.eot == "after":
            has_eot[-1] = False
        if batch.head_open and self._content.eot == "before":
            has_eot[0] = False
        bounds = np.zeros(n + 1, np.int64)
        np.cumsum(np.diff(offsets) + has_eot, out=bounds[1:])
        out = _narrow(ids, offsets, batch, self._content)
        ends = bounds[1:n] if batch.tail_open else bounds[1:]
        if not is_val.any() or is_val.all():
            return [Tokens(bool(is_val[0]), out, ends)]
        return (_in_order if has_limits(self._content) else _part)(out, bounds, ends, is_val)


def _check_loss(documents: Sequence[bytes], n_known: int, n_unknown: int, batch: Batch, name: str) -> None:
    """Raise UsageError if all that the tokenizer makes of the first text is lost."""
    if n_known or not any(document.strip() for document in documents):
        return
    what = f"{counted(n_unknown, 'id')}, all of the unknown token" if n_unknown else "no ids"
    raise UsageError(
        f"the tokenizer loses the text: it makes {what} of the first {counted(len(documents), 'document')}",
        where=f"{batch.locate(0)}, with the tokenizer {name}",
        option="--tokenizer",
        allowed="a tokenizer whose vocabulary has the characters of the corpus",
        next_step="use another --tokenizer; a tokenizer.json that was made of another file may lack its vocabulary",
    )


def _without_empty(documents: Sequence[bytes]) -> tuple[Sequence[bytes], Sequence[int] | NDArray[np.intp]]:
    """Return the documents that are not empty, and the index of each."""
    if isinstance(documents, DocumentBuffer):
        return documents.without_empty()
    if all(documents):
        return documents, range(len(documents))
    kept = [i for i, document in enumerate(documents) if document]
    return [documents[i] for i in kept], kept


def _encode(encoder: Encoder, documents: Sequence[bytes], raw: memoryview | None) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Call `encoder.encode` with documents that may be empty."""
    full, kept = _without_empty(documents)
    if len(full) == len(documents) and full:
        return encoder.encode(full, raw)
    ids, some = encoder.encode(full, raw) if len(full) else (np.zeros(0, np.uint32), np.zeros(1, np.int64))
    lengths = np.zeros(len(documents), np.int64)
    lengths[kept] = np.diff(some)
    offsets = np.zeros(len(documents) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return ids, offsets


def _narrow(
    ids: NDArray[np.uint32], offsets: NDArray[np.int64], batch: Batch, content: Content
) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Return the ids in the content's dtype with EOT ids; a piece of a document has one only at the document's edge."""
    narrow = ids.astype(content.dtype)
    if content.eot == "none":
        return narrow
    is_after = content.eot == "after"
    if len(offsets) <= _FEW_DOCUMENTS:
        eot = np.array([content.tokenizer.eot_id], content.dtype).tobytes()
        data, edges = narrow.data.cast("B"), (offsets * narrow.itemsize).tolist()
        parts: list[bytes | memoryview] = [data[a:b] for a, b in pairwise(edges)]
        if is_after and not batch.tail_open:
            parts.append(b"")
        elif not is_after and not batch.head_open:
            parts.insert(0, b"")
        return np.frombuffer(eot.join(parts), content.dtype)
    at = offsets[1 : -1 if batch.tail_open else None] if is_after else offsets[1 if batch.head_open else 0 : -1]
    return np.insert(narrow, at, content.tokenizer.eot_id)


def _part(out: NDArray[Any], bounds: NDArray[np.int64], ends: NDArray[np.int64], is_val: NDArray[np.bool_]) -> list[Tokens]:
    """Return the documents of both sides, each side in order."""
    edges = [0, *(np.flatnonzero(is_val[1:] != is_val[:-1]) + 1).tolist(), len(is_val)]
    lengths = np.diff(bounds)
    parted = []
    for side in (False, True):
        stretches = [(a, b) for a, b in pairwise(edges) if is_val[a] == side]
        ids = np.concatenate([out[bounds[a] : bounds[b]] for a, b in stretches])
        side_ends = np.cumsum(lengths[is_val == side])
        if len(ends) < len(is_val) and is_val[-1] == side:
            side_ends = side_ends[:-1]
        parted.append(Tokens(side, ids, side_ends))
    return parted


def _in_order(out: NDArray[Any], bounds: NDArray[np.int64], ends: NDArray[np.int64], is_val: NDArray[np.bool_]) -> list[Tokens]:
    """Return the documents in the order of the corpus, in a run as many as are on one side."""
    edges = [0, *(np.flatnonzero(is_val[1:] != is_val[:-1]) + 1).tolist(), len(is_val)]
    return [
        Tokens(bool(is_val[a]), out[bounds[a] : bounds[b]], bounds[a + 1 : min(b, len(ends)) + 1] - bounds[a])
        for a, b in pairwise(edges)
    ]


def _count(texts: _Texts, runs: list[Tokens], samples: Sequence[Sample | None]) -> Counts:
    reasons = {"empty": texts.n_empty, NOT_SAMPLED: texts.n_left_out, "invalid_utf8": len(texts.skips)}
    documents = [sum(len(run.ends) for run in runs if run.is_val == side) for side in (False, True)]
    tokens = [sum(len(run.ids) for run in runs if run.is_val == side) for side in (False, True)]
    return Counts(
        documents_train=documents[0],
        documents_val=documents[1],
        tokens_train=tokens[0],
        tokens_val=tokens[1],
        bytes_text=text_bytes(texts.documents),
        skipped={reason: n for reason, n in reasons.items() if n},
        invalid_utf8_documents=texts.invalid_documents,
        invalid_utf8_bytes=texts.invalid_bytes,
        audited_documents=sum(sample is not None for sample in samples),
        audited_bytes=sum(len(sample.text) for sample in samples if sample),
    )
