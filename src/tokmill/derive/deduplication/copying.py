"""Writes the documents that stay, in their order, through the writer of a format, and a line for each that went.

The manifest has a sum over the documents of the training side: the digest of a document's ids, with its number in the output as
seed. It is made of the sources' ids; `verify` makes it again of the output's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash

from tokmill.core.deduplication import REMOVED_NAME, Removal, RemovedFrom
from tokmill.core.events import Committed
from tokmill.core.records import ITEM_BYTES, Counts, Cursor, Tokens
from tokmill.derive.buckets import sum_of_digests
from tokmill.derive.deduplication.removals import lines_of
from tokmill.derive.document_stream import ahead, pieces_of, slices, whole_documents, without_mark
from tokmill.derive.engine import COMMIT_BYTES, check_counts, publish, wait_for_stage
from tokmill.derive.source import narrowed
from tokmill.formats import make_writer, spec_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tokmill.core.config import Content, Provenance
    from tokmill.core.manifest import Manifest
    from tokmill.core.progress import ProgressReporter
    from tokmill.dataset import Ids
    from tokmill.derive.deduplication.documents import Documents, Section
    from tokmill.derive.deduplication.removals import ByNumber
    from tokmill.derive.source import ShiftedIds
    from tokmill.output import Output, RunHistoryRecorder

_DIGEST_BITS = 48
"""Of a digest's sum in one number of the journal, of which there are three."""


class Copying:
    """The writing of one output."""

    def __init__(
        self,
        documents: Documents,
        sections: Sequence[Section],
        removals: ByNumber,
        content: Content,
        output: Output,
        reporter: ProgressReporter,
    ) -> None:
        """sections: those that become the output, in its order; of training sides the documents that stay."""
        self._documents = documents
        self._sections = sections
        self._removals = removals
        self._begin(content)
        self._output = output
        self._reporter = reporter
        state = output.segments[-1].writer if output.segments else {}
        self._writer = make_writer(output, state, spec_of(content))
        self._place = (state.get("section", 0), state.get("token", 0), state.get("document", 0))
        self._digest = sum(state.get(f"digest_{i}", 0) << (i * _DIGEST_BITS) for i in range(3))
        self._counts = output.counts
        self._uncommitted_bytes = 0
        self.position_bytes = 0

    def _begin(self, content: Content) -> None:
        """Set what is the same wherever the documents are written."""
        self._content = content
        self._digested = np.dtype("<u2" if content.tokenizer.n_ids <= 1 << 16 else "<u4")
        self._digest = 0
        self.written_bytes = 0

    @property
    def done_bytes(self) -> int:
        """Of the sources' ids: what lies before the last commit."""
        number, token, _ = self._place
        sizes = [ITEM_BYTES[section.source.content.dtype] for section in self._sections]
        done = sum(section.n_tokens * size for section, size in zip(self._sections[:number], sizes, strict=False))
        return done + (token * sizes[number] if token else 0)

    def run(self) -> None:
        """Write what is left. Raises TokmillError."""
        number, token, document = self._place
        for at in range(number, len(self._sections)):
            self._copy(at, token, document)
            token = document = 0

    def publish(
        self, counts: Counts, removal: Removal, made_from: tuple[Provenance, ...], recorder: RunHistoryRecorder, recipe: str
    ) -> Manifest:
        """Complete the output. counts: what it must hold. recipe: as of `dedup`. Returns the manifest. Raises TokmillError."""
        check_counts(self._output, self._counts, counts)
        self._writer.finish()
        if REMOVED_NAME in self._output.names - set(self._output.completed()):
            self._output.file(REMOVED_NAME)
            self._output.complete(REMOVED_NAME)
        self._counts = counts
        self._commit(is_last=True)
        self._output.settle()
        entries = dict(self._output.completed())
        self._reporter.progress(self.position_bytes, counts, is_last=True)
        return publish(
            self._output,
            self._content,
            entries,
            counts,
            self._reporter,
            recorder,
            made_from=made_from or msgspec.UNSET,
            documents_digest=f"{self._digest:032x}",
            recipe=recipe or msgspec.UNSET,
            removal=removal,
        )

    def begin(self) -> None:
        """Commit nothing, so that what is in the state directory stays when the run is interrupted."""
        if not self._output.segments:
            self._commit()

    def note(self, n_bytes: int) -> None:
        """Tell of bytes of ids that were read."""
        self.position_bytes += n_bytes
        self._reporter.progress(self.position_bytes, self._counts)

    def _copy(self, at: int, token: int, document: int) -> None:
        """Write the documents of a section that stay."""
        section = self._sections[at]
        section.check()
        reader = section.ids(self._content.eot)
        for block, ends in ahead(whole_documents(reader, token), waits=lambda block: not len(block[1])):
            n_tokens, gone = self._take(section, reader, block, ends, token, section.first + document)
            if gone is not None and len(gone):
                self._output.file(REMOVED_NAME).append(lines_of(gone, self._documents))
            token, document = token + n_tokens, document + max(1, len(ends))
            self._place = (at, token, document)
            self._noted(section, n_tokens)
        if document != section.n_documents:
            raise section.source.count_error(section.side, document)
        section.source.finish()
        section.source.close()
        self._place = (at + 1, 0, 0)

    def _take(
        self, section: Section, reader: ShiftedIds, block: Ids, ends: NDArray[np.int64], token: int, first: int
    ) -> tuple[int, NDArray[Any] | None]:
        """Write what stays of documents that follow each other. Returns their tokens, and what goes; None on the validation side.

        block, ends: as of `whole_documents`, from `token` on. first: number of the first one.
        """
        gone = self._removals.between(first, max(1, len(ends))) if section.side == "train" else None
        if not len(ends):
            return self._write_long(section, reader, token, is_gone=gone is not None and len(gone) > 0), gone
        self._write(section, block, ends, None if gone is None else gone["removed"] - np.uint64(first))
        return len(block), gone

    def _write(self, section: Section, ids: Ids, ends: NDArray[np.int64], gone: NDArray[np.uint64] | None) -> None:
        """Write whole documents. gone: indexes of those that do not stay; None: of the validation side."""
        is_val, ids = section.side == "val", narrowed(ids, self._content.dtype, str(section.source.directory))
        if gone is not None and len(gone):
            lengths = np.diff(ends, prepend=0)
            stays = np.ones(len(ends), bool)
            stays[gone.astype(np.int64)] = False
            ids, ends = ids[np.repeat(stays, lengths)], np.cumsum(lengths[stays])
        if not len(ends):
            return
        if not is_val:
            data, size = ids.astype(self._digested, copy=False).view(np.uint8).data, self._digested.itemsize
            begins, is_after = np.concatenate([[0], ends[:-1]]), self._content.eot == "after"
            documents = slices(data, (begins + (not is_after)) * size, (ends - is_after) * size)
            number = self._counts.documents_train
            self._digest = (self._digest + sum_of_digests(documents, range(number, number + len(ends)))) % (1 << 128)
        self._append(Tokens(is_val=is_val, ids=ids, ends=ends))

    def _write_long(self, section: Section, reader: ShiftedIds, token: int, *, is_gone: bool) -> int:
        """Write a document that is longer than a block piece by piece, unless it goes. Return its tokens."""
        is_val, n_tokens = section.side == "val", 0
        digest = xxhash.xxh3_128(seed=self._counts.documents_train)
        for piece, is_first, is_last in pieces_of(reader, token):
            n_tokens += len(piece)
            if is_gone:
                continue
            ids = narrowed(piece, self._content.dtype, str(section.source.directory))
            digest.update(without_mark(ids, self._content.eot, is_first, is_last).astype(self._digested).data)
            self._append(Tokens(is_val=is_val, ids=ids, ends=np.array([len(piece)] if is_last else [], np.int64)))
        if not is_val and not is_gone:
            self._digest = (self._digest + digest.intdigest()) % (1 << 128)
        return n_tokens

    def _append(self, tokens: Tokens) -> None:
        self._put(tokens)
        n_ids, n_documents = len(tokens.ids), len(tokens.ends)
        self._counts += (
            Counts(tokens_val=n_ids, documents_val=n_documents)
            if tokens.is_val
            else Counts(tokens_train=n_ids, documents_train=n_documents)
        )
        self.written_bytes += tokens.ids.nbytes

    def _put(self, tokens: Tokens) -> None:
        """Write documents where the output has them next."""
        self._writer.append(tokens)

    def _noted(self, section: Section, n_tokens: int) -> None:
        n_bytes = n_tokens * ITEM_BYTES[section.source.content.dtype]
        self._uncommitted_bytes += n_bytes
        self.note(n_bytes)
        if self._uncommitted_bytes >= COMMIT_BYTES:
            self._commit()

    def _commit(self, *, is_last: bool = False) -> None:
        self._output.settle()
        elapsed_s, counts = self._reporter.elapsed_s, self._counts
        n_written = counts.documents_train + counts.documents_val
        after = Cursor(input_index=len(self._content.inputs)) if is_last else Cursor(record=n_written)
        state = dict(zip(("section", "token", "document"), self._place, strict=True))
        state |= {f"digest_{i}": self._digest >> (i * _DIGEST_BITS) & ((1 << _DIGEST_BITS) - 1) for i in range(3)}
        self._output.commit(
            after,
            counts,
            self._writer.state() | state,
            self._output.elapsed_before_s + elapsed_s,
            lambda segment: self._reporter.emit(Committed(elapsed_s=elapsed_s, segment=segment, counts=counts)),
        )
        self._uncommitted_bytes = 0
        wait_for_stage(self._output, lambda: self._reporter.progress(self.position_bytes, self._counts, is_last=True))


def removal_of(removed: Sequence[Sequence[int]], sections: Sequence[Section]) -> tuple[RemovedFrom, ...]:
    """Return what was removed from each source. removed: as of `State`. sections: the training sides, in order."""
    return tuple(
        RemovedFrom(
            documents=section.n_documents,
            tokens=section.n_tokens,
            copies=copies,
            copy_tokens=copy_tokens,
            near_copies=near_copies,
            near_copy_tokens=near_copy_tokens,
        )
        for section, (copies, copy_tokens, near_copies, near_copy_tokens) in zip(sections, removed, strict=True)
    )
