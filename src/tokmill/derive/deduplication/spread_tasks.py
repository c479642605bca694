"""The passes of `marking.py` as tasks: each works on a portion of the documents, or on buckets, and writes a file of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tokmill.core.bounded import Natural
from tokmill.core.config import Content
from tokmill.core.deduplication import NearRule
from tokmill.core.records import Counts, Tokens
from tokmill.derive.deduplication.candidates import FlatClusters
from tokmill.derive.deduplication.copying import Copying
from tokmill.derive.deduplication.documents import Documents, Section
from tokmill.derive.deduplication.marking import BUFFER_SHARE, Marking
from tokmill.derive.deduplication.removals import ByNumber, lines_of
from tokmill.derive.deduplication.shared import Files, SharedScratch, SharedState
from tokmill.derive.document_stream import ahead, whole_documents
from tokmill.derive.spread.placing import StretchWriter
from tokmill.derive.spread.portions import Portion
from tokmill.derive.spread.run_files import RunWriter, answer_of
from tokmill.derive.spread.tasks import Question, gone_error, load_same, understood

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokmill.core.system.tree import Directory
    from tokmill.derive.deduplication.documents import Batch
    from tokmill.derive.deduplication.scratch import StoredRecords

PAIR = np.dtype([("document", "<u8"), ("first", "<u8")])
"""A document, and the first one of all that share a band with it."""
LENGTH = np.dtype("<u4")
"""Tokens of a document."""
LINE = np.dtype("u1")
_MANY = 1 << 12
"""Removals that become lines at a time."""


class SectionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A section, without its source."""

    index: Natural
    side: str
    first: Natural
    is_protected: bool
    n_documents: Natural
    n_tokens: Natural
    item_bytes: Natural

    def section(self) -> Section:
        """Return it as one that another task reads."""
        return Section(None, **msgspec.structs.asdict(self))


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What the tasks of one pass must know."""

    sections: tuple[SectionFacts, ...]
    places: tuple[str, ...]
    """Of the outputs, by their number: directory or URL."""
    checksums: tuple[str, ...]
    """Of their manifests."""
    n_sources: Natural
    """Outputs that are deduplicated."""
    dtype: str
    """In which documents are compared."""
    near: NearRule | None
    compare: bool
    n_buckets: dict[str, Natural]
    files: dict[str, list[Files]]
    """As of `SharedState`."""
    very_long: dict[int, Natural]
    writes: Files | None
    """What the tasks of the pass leave; None: they write to the output."""
    room_bytes: Natural
    content: Content
    """Of the output, without inputs, which may be many."""


class PassQuestion(Question, frozen=True, kw_only=True):
    """What one task of a pass is to do."""

    name: str
    """Of the pass."""
    portion: Portion | None = None
    """Of which section which documents; None: buckets."""
    first: Natural = 0
    last: Natural = 0
    """The buckets `first` to `last`."""


class CopyQuestion(Question, frozen=True, kw_only=True):
    """Which documents of a portion are to be written where."""

    portion: Portion
    first: Natural
    """Number in the output of the first document that stays."""
    is_digested: bool
    """Whether the sum of the digests is wanted: all of the portion is read then."""
    places: tuple[tuple[int, str, int, int], ...]
    """Of stretches of what stays, in order: begin in it, name of the file, offset there, bytes."""


class CopyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    digests: list[str]
    """Of each stretch, hex."""
    sum: str
    """Of the digests of the documents, hex."""


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What a task adds to the state."""

    removed: list[list[Natural]]
    very_long: dict[int, Natural]
    short: Natural
    long: Natural
    compared_pairs: Natural
    unexamined: Natural


def mark(data: bytes) -> bytes:
    """Do a task of a pass, unless its file is there; return what it counted. Raises TokmillError."""
    question, work, directory = understood(data, PassQuestion, Work)
    files = work.writes
    assert files is not None
    identity, path = bytes.fromhex(files.identity), files.path(directory, question.number)
    there = answer_of(path, identity, len(files.kinds), files.n_buckets)
    if there is not None:
        return there
    documents = _documents(work, question.portion)
    held_bytes = work.room_bytes // BUFFER_SHARE
    try:
        with RunWriter(directory, files.file_name(question.number), identity, files.kinds, files.n_buckets, held_bytes) as writer:
            answer = MarkingTask(work, question, directory, documents, writer).work()
            writer.complete(answer)
            return answer
    except FileNotFoundError as error:
        raise gone_error(str(directory)) from error
    finally:
        documents.close()


def _documents(work: Work, portion: Portion | None) -> Documents:
    """Return all documents, of which those of a portion can be read."""
    sections = [each.section() for each in work.sections]
    if portion is not None:
        facts = work.sections[portion.operand]
        source = load_same(work.places[facts.index], work.checksums[facts.index])
        sections[portion.operand] = Section(source, **msgspec.structs.asdict(facts))
    return Documents(sections, np.dtype(work.dtype))


class MarkingTask(Marking):
    """The work of one task."""

    def __init__(self, work: Work, question: PassQuestion, directory: Directory, documents: Documents, writer: RunWriter) -> None:
        state = SharedState(
            fingerprint="",
            compare=work.compare,
            completed=[],
            n_buckets=work.n_buckets,
            files=work.files,
            very_long=dict(work.very_long) if question.name == "_find_copies" else {},
        )
        self._shared_scratch = SharedScratch(directory, state, writer)
        self._writer = writer
        self._question = question
        super().__init__(
            documents,
            work.near,
            self._shared_scratch,
            work.room_bytes,
            n_sources=work.n_sources,
            note=lambda _n_bytes: None,
            on_commit=lambda: None,
        )
        # Ray gives a task one core.
        self._n_threads = 1

    def work(self) -> bytes:
        """Do it; return what was counted."""
        name, state = self._question.name, self.state
        {**self._passes(), "_thin_pairs": self._thin_pairs, "_measure": self._measure}[name]()
        counters = Counters(
            removed=state.removed,
            very_long=state.very_long if name == "_take_digests" else {},
            short=state.short,
            long=state.long,
            compared_pairs=state.compared_pairs,
            unexamined=state.unexamined,
        )
        return msgspec.json.encode(counters)

    def _batches(self) -> Iterator[Batch]:
        portion = self._question.portion
        assert portion is not None
        for batch in self._documents.portion(portion):
            if self._question.name == "_take_digests" and not batch.section.is_protected:
                lengths = np.array([batch.n_tokens]) if batch.is_long else batch.ends - batch.begins + 1
                self._writer.put("lengths", 0, lengths.astype(LENGTH).tobytes())
            yield batch

    def _buckets(self, records: StoredRecords) -> Iterator[int]:  # noqa: ARG002  those of this task
        yield from range(self._question.first, self._question.last)

    def _commit(self) -> None:
        """Commit nothing: what a task leaves is there when all of it is."""

    def _opened_clusters(self) -> Any:
        if self._question.name == "_find_candidates":
            return _Joining(self._by_number("pairs", PAIR, "document"))
        return FlatClusters(self.scratch.directory, self._documents.n)

    def _thin_pairs(self) -> None:
        """Leave of pairs that several bands have made one each: one process joins them all."""
        pairs, joined = (self.scratch.records(kind, PAIR, 0) for kind in ("pairs", "joined"))
        for bucket in self._buckets(pairs):
            some = pairs.read(bucket)
            some = some[np.lexsort((some["first"], some["document"]))]
            is_new = np.ones(len(some), bool)
            is_new[1:] = some[1:] != some[:-1]
            joined.append(bucket, some[is_new].tobytes())

    def _measure(self) -> None:
        """Find out how long the documents of a portion are that stay, and write the lines about those that go."""
        portion = self._question.portion
        assert portion is not None
        first = self._documents.sections[portion.operand].first + portion.document
        for lengths in self._shared_scratch.records_in("lengths", LENGTH, self._question.number).blocks(0):
            gone = self.removals.between(first, len(lengths))
            stays = np.ones(len(lengths), bool)
            stays[(gone["removed"] - np.uint64(first)).astype(np.int64)] = False
            self._writer.put("kept", 0, lengths[stays].tobytes())
            for begin in range(0, len(gone), _MANY):
                self._writer.put("lines", 0, lines_of(gone[begin : begin + _MANY], self._documents))
            first += len(lengths)


class _Joining:
    """Takes pairs of one cluster, for the process that joins those of all tasks. Stands for `Clusters` in a task."""

    def __init__(self, pairs: ByNumber) -> None:
        self._pairs = pairs

    def join(self, first: NDArray[np.uint64], second: NDArray[np.uint64]) -> None:
        """See Clusters."""
        differ = first != second
        found = np.empty(int(np.count_nonzero(differ)), PAIR)
        found["first"], found["document"] = first[differ], second[differ]
        self._pairs.add(found)

    def count(self) -> int:
        """See Clusters: who joins them counts them."""
        return 0


def copy_portion(data: bytes) -> bytes:
    """Write the documents of a portion that stay, where they belong; return their digests. Raises TokmillError."""
    question, work, directory = understood(data, CopyQuestion, Work)
    documents = _documents(work, question.portion)
    try:
        with StretchWriter(directory, question.places) as writer:
            return msgspec.json.encode(_PortionCopying(work, question, directory, documents, writer).copy(question))
    except FileNotFoundError as error:
        raise gone_error(str(directory)) from error
    finally:
        documents.close()


class _PortionCopying(Copying):
    """The writing of the documents of one portion."""

    def __init__(
        self, work: Work, question: CopyQuestion, directory: Directory, documents: Documents, writer: StretchWriter
    ) -> None:
        state = SharedState(fingerprint="", compare=work.compare, completed=[], n_buckets=work.n_buckets, files=work.files)
        marking = Marking(
            documents,
            work.near,
            SharedScratch(directory, state),
            work.room_bytes,
            n_sources=work.n_sources,
            note=lambda _n_bytes: None,
            on_commit=lambda: None,
        )
        self._documents = documents
        self._removals = marking.removals
        self._stretch_writer = writer
        self._counts = Counts(documents_train=question.first)
        self._begin(work.content)

    def copy(self, question: CopyQuestion) -> CopyAnswer:
        """Write them."""
        portion = question.portion
        section = self._documents.sections[portion.operand]
        reader = section.ids(self._content.eot)
        token, document = portion.token, portion.document
        blocks = ahead(whole_documents(reader, token, portion.end), waits=lambda block: not len(block[1]))
        for block, ends in blocks:
            n_tokens, _ = self._take(section, reader, block, ends, token, section.first + document)
            token, document = token + n_tokens, document + max(1, len(ends))
            if not question.is_digested and self._stretch_writer.is_done:
                break
        else:
            section.check_end(portion, reader, token, document)
        self._stretch_writer.finish(f"the portion at document {portion.document:,}")
        return CopyAnswer(digests=self._stretch_writer.digests, sum=f"{self._digest:x}")

    def _put(self, tokens: Tokens) -> None:
        self._stretch_writer.write(tokens.ids.view(np.uint8).data)
