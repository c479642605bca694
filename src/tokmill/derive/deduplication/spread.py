"""`dedup` on several machines: the passes of `marking.py` and the writing of the output, in tasks (`spread_tasks.py`).

Digests and bands are taken by portions of the sources, sorted by buckets, and documents compared by buckets of clusters. What a
task leaves the others is one file of records by bucket, on the directory that all share. This process asks for the tasks, adds up
what they counted, and joins clusters, which no task could do alone. Then it lets the writer of the format place the documents
that stay, whose lengths the tasks have written down, and tasks write them there. Every task can be done again, and twice at once:
it writes the same bytes. A file that is there is not made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import xxhash

from tokmill.core.deduplication import REMOVED_NAME
from tokmill.core.records import Tokens
from tokmill.derive.deduplication.candidates import clusters_path
from tokmill.derive.deduplication.copying import Copying
from tokmill.derive.deduplication.gathering import GATHERED_KINDS
from tokmill.derive.deduplication.marking import BUFFER_SHARE, Marking
from tokmill.derive.deduplication.shared import Files, SharedScratch, SharedState
from tokmill.derive.deduplication.spread_tasks import (
    LENGTH,
    LINE,
    PAIR,
    CopyAnswer,
    CopyQuestion,
    Counters,
    PassQuestion,
    SectionFacts,
    Work,
)
from tokmill.derive.spread.placing import Placed
from tokmill.derive.spread.portions import Portion, cut_side
from tokmill.derive.spread.run_files import least_file_bytes, most_buckets
from tokmill.derive.spread.tasks import TASKS_A_SLOT, save_work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from tokmill.core.config import Content
    from tokmill.core.deduplication import NearRule
    from tokmill.core.progress import ProgressReporter
    from tokmill.derive.deduplication.documents import Documents, Section
    from tokmill.derive.source import Source
    from tokmill.derive.spread.placing import Stretch
    from tokmill.derive.spread.tasks import Tasks
    from tokmill.output import Output

_NAME = "tokmill.derive.deduplication.spread_tasks:{}"
_PORTION_BYTES = 256 << 20
"""Of ids, in one portion, about: some seconds of work, so that little is lost with a machine."""
_LEAST_BYTES = 8 << 20
"""Of a portion, and of a bucket while it is sorted: smaller ones are not worth a task."""
_MOST_FILES = 1 << 12
"""Of a pass. Each is opened for each bucket: of a large corpus portions are larger, and a task works on several buckets."""
_MOST_KINDS = 3
"""Of records in one file."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """What the tasks of a pass take and leave."""

    by: str
    """The kind of records whose buckets the tasks share out; nothing: portions."""
    writes: tuple[str, ...]
    drops: tuple[str, ...]
    """What is needed no longer."""


def _passes_of(near: NearRule | None, *, compare: bool) -> dict[str, _Pass]:
    """Return the passes that are done in tasks, by name."""
    copies = ("gone", "copies") if near else ("removals",)
    found = {"_take_digests": _Pass("", ("digests", "lengths"), ())}
    if compare:
        found |= {
            "_find_copies": _Pass("digests", ("matches",), ("digests",)),
            "_gather_copies": _Pass("", GATHERED_KINDS, ("matches",)),
            "_compare_copies": _Pass("gathered", copies, GATHERED_KINDS),
        }
    else:
        found |= {"_find_copies": _Pass("digests", copies, ("digests",))}
    if near:
        found |= {
            "_take_bands": _Pass("", ("bands",), ("gone",)),
            "_find_candidates": _Pass("bands", ("shared", "pairs"), ("bands",)),
            "_thin_pairs": _Pass("pairs", ("joined",), ("pairs",)),
            "_gather_candidates": _Pass("", GATHERED_KINDS, ("shared",)),
            "_compare_candidates": _Pass("gathered", ("removals",), GATHERED_KINDS),
            "_follow": _Pass("copies", ("removals",), ("copies",)),
        }
    return found | {"_measure": _Pass("", ("kept", "lines"), ("lengths",))}


class Cluster:
    """The machines that do tasks, as one deduplication needs them."""

    def __init__(self, tasks: Tasks, task_bytes: int) -> None:
        """task_bytes: memory of a task, all of it."""
        self._tasks = tasks
        self._task_bytes = task_bytes

    @property
    def n_wanted(self) -> int:
        """Tasks that keep all busy."""
        return TASKS_A_SLOT * self._tasks.n_slots(self._task_bytes)

    def do(self, function: str, questions: Iterable[tuple[int, bytes]], collect: Callable[[int, bytes], None]) -> None:
        """Have questions answered. function: of the module of tasks. The rest as of `Tasks.do`."""
        self._tasks.do(_NAME.format(function), questions, collect, budget_bytes=self._task_bytes)


class SpreadMarking(Marking):
    """The passes, by the process that asks for the tasks."""

    def __init__(
        self,
        documents: Documents,
        near: NearRule | None,
        scratch: SharedScratch,
        room_bytes: int,
        *,
        sources: Sequence[Source],
        n_sources: int,
        content: Content,
        cluster: Cluster,
        note: Callable[[int], None],
        on_commit: Callable[[], None],
    ) -> None:
        """sources: all outputs, by their number. content: of the output. room_bytes: of a task. The rest as of Marking."""
        self._cluster = cluster
        self._n_wanted = cluster.n_wanted
        self._shared_state = scratch.state
        self._most_buckets = most_buckets(room_bytes // BUFFER_SHARE, _MOST_KINDS)
        self._sources = sources
        self._content = msgspec.structs.replace(content, inputs=())
        super().__init__(documents, near, scratch, room_bytes, n_sources=n_sources, note=note, on_commit=on_commit)
        self._room_bytes = room_bytes
        self._plan = _passes_of(near, compare=self._compares)
        n_bytes = max(1, documents.n_bytes)
        portion_bytes = max(min(_PORTION_BYTES, max(_LEAST_BYTES, n_bytes // self._n_wanted)), n_bytes // _MOST_FILES)
        portion_bytes = max(portion_bytes, least_file_bytes(min(self._most_buckets, n_bytes // _LEAST_BYTES + 1), _MOST_KINDS))
        scratch.state.portion_tokens = scratch.state.portion_tokens or portion_bytes // documents.dtype.itemsize
        self.portions = [
            portion
            for at, section in enumerate(documents.sections)
            for portion in cut_side(section.source, at, section.side, scratch.state.portion_tokens)
        ]

    def _passes(self) -> dict[str, Callable[[], None]]:
        found: dict[str, Callable[[], None]] = {}
        for name in self._plan:
            found[name] = partial(self._spread, name)
            if name == "_thin_pairs":
                found["_join_candidates"] = self._join_candidates
        return found

    def _n_buckets(self, n_bytes: int) -> int:
        wanted = min(self._n_wanted, n_bytes // _LEAST_BYTES)
        return max(1, min(max(super()._n_buckets(n_bytes), wanted), self._most_buckets))

    def _spread(self, name: str) -> None:
        """Have one pass done."""
        state, plan = self._shared_state, self._plan[name]
        for kind in plan.writes:
            self._decide(kind)
        self._commit()
        questions = list(self._questions(name, plan))
        n_files = len(self.portions) if not plan.by else len(questions)
        files = Files(
            name=name,
            n_files=n_files,
            kinds=plan.writes,
            n_buckets=max(state.n_buckets[kind] for kind in plan.writes),
            identity=self._identity(name, n_files),
        )
        work = save_work(self.scratch.directory, self.work(files))
        counted = SharedState(
            fingerprint="", compare=state.compare, completed=[], removed=[[0, 0, 0, 0] for _ in range(self._n_sources)]
        )

        def collect(number: int, answer: bytes) -> None:
            _add(counted, msgspec.json.decode(answer, type=Counters))
            if not plan.by and name != "_measure":
                self._note(self._bytes_of(self.portions[number]))

        directory = str(self.scratch.directory)
        asked = (
            (each.number, msgspec.json.encode(msgspec.structs.replace(each, directory=directory, work=work))) for each in questions
        )
        self._cluster.do("mark", asked, collect)
        # Not before all are done: the same tasks are asked again by a run that goes on.
        _add(state, counted)
        if not plan.by and name != "_measure":
            state.done_bytes += self._documents.n_bytes
        for kind in plan.writes:
            state.files.setdefault(kind, []).append(files)
        for kind in plan.drops:
            self.scratch.drop(kind)
        if name == "_gather_candidates":
            self._let_clusters_go()

    def _decide(self, kind: str) -> None:
        """Decide how many buckets records of a kind have, where that is not yet done."""
        ways: dict[str, Callable[[], object]] = {
            "digests": self._digests,
            "matches": self._matches,
            "bands": self._bands,
            "shared": self._shared,
            "gone": self._gone,
            "copies": self._copies,
            **dict.fromkeys(GATHERED_KINDS, self._gathering),
            **dict.fromkeys(("pairs", "joined"), self._pairs),
        }
        if kind in ways:
            ways[kind]()
        self._shared_state.n_buckets.setdefault(kind, 1)

    def _pairs(self) -> None:
        assert self._near
        buckets = self._by_number("pairs", PAIR, "document", self._near.bands)
        self.scratch.records("joined", PAIR, buckets.n_buckets)

    def _questions(self, name: str, plan: _Pass) -> Iterator[PassQuestion]:
        """Yield what the tasks of a pass are asked, without directory and work."""
        if plan.by:
            n_buckets = self._shared_state.n_buckets[plan.by]
            n_tasks = min(n_buckets, _MOST_FILES)
            for number in range(n_tasks):
                first, last = (each * n_buckets // n_tasks for each in (number, number + 1))
                yield PassQuestion(directory="", work="", number=number, name=name, first=first, last=last)
            return
        for number, portion in enumerate(self.portions):
            if name != "_measure" or not self._documents.sections[portion.operand].is_protected:
                yield PassQuestion(directory="", work="", number=number, name=name, portion=portion)

    def _identity(self, name: str, n_files: int) -> str:
        """Return what tells the files of a pass from those of other work."""
        state = self._shared_state
        decided = [sorted(state.n_buckets.items()), state.portion_tokens, n_files]
        return xxhash.xxh3_128_hexdigest(msgspec.json.encode([state.fingerprint, state.compare, name, decided]))

    def work(self, writes: Files | None) -> Work:
        """Return what tasks must know. writes: what they leave."""
        documents, state = self._documents, self._shared_state
        names = list(SectionFacts.__struct_fields__)
        return Work(
            sections=tuple(SectionFacts(**{name: getattr(each, name) for name in names}) for each in documents.sections),
            places=tuple(str(source.directory) for source in self._sources),
            checksums=tuple(source.manifest.checksum for source in self._sources),
            n_sources=self._n_sources,
            dtype=documents.dtype.str,
            near=self._near,
            compare=state.compare,
            n_buckets=state.n_buckets,
            files=state.files,
            very_long=state.very_long,
            writes=writes,
            room_bytes=self._room_bytes,
            content=self._content,
        )

    def _bytes_of(self, portion: Portion) -> int:
        return (portion.end - portion.token) * self._documents.sections[portion.operand].item_bytes

    def _join_candidates(self) -> None:
        """Join the pairs of all tasks to clusters, each of whose documents then says which is the first."""
        joined, clusters = self.scratch.records("joined", PAIR, 1), self._opened_clusters()
        for bucket in self._buckets(joined):
            for some in joined.blocks(bucket):
                clusters.join(some["first"], some["document"])
        self.state.clusters = clusters.count()
        clusters.flatten()
        clusters.sync()
        clusters.close()
        self._clusters = None
        self.scratch.drop("joined")

    def _let_clusters_go(self) -> None:
        assert isinstance(self.scratch, SharedScratch)
        self.scratch.drop_paths([clusters_path(self.scratch.directory)])

    def kept_lengths(self, number: int) -> Iterator[Any]:
        """Yield the tokens of the documents of a portion that stay, in order, some at a time: dtype LENGTH."""
        assert isinstance(self.scratch, SharedScratch)
        return self.scratch.records_in("kept", LENGTH, number).blocks(0)

    def lines_of(self, number: int) -> Iterator[bytes]:
        """Yield the lines about the documents of a portion that go, some bytes at a time."""
        assert isinstance(self.scratch, SharedScratch)
        for block in self.scratch.records_in("lines", LINE, number).blocks(0):
            yield block.tobytes()

    def lines(self) -> Iterator[bytes]:
        """See Marking."""
        for number, portion in enumerate(self.portions):
            if not self._documents.sections[portion.operand].is_protected:
                yield from self.lines_of(number)


def _add(state: SharedState, counted: Counters | SharedState) -> None:
    """Add what was counted to a state."""
    for ours, theirs in zip(state.removed, counted.removed, strict=True):
        ours[:] = map(sum, zip(ours, theirs, strict=True))
    state.very_long |= counted.very_long
    for name in ("short", "long", "compared_pairs", "unexamined"):
        setattr(state, name, getattr(state, name) + getattr(counted, name))


class SpreadCopying(Copying):
    """The writing of the output, by the process that asks for the tasks."""

    def __init__(
        self,
        documents: Documents,
        sections: Sequence[Section],
        marking: SpreadMarking,
        content: Content,
        output: Output,
        reporter: ProgressReporter,
        cluster: Cluster,
    ) -> None:
        """marking: says what goes, once it was run. The rest as of Copying."""
        self._cluster = cluster
        self._marking = marking
        self._placed = Placed(self._send, np.dtype(content.dtype).newbyteorder("<"))
        output.elsewhere = self._placed
        super().__init__(documents, sections, marking.removals, content, output, reporter)
        self._firsts: dict[int, int] = {}
        """Numbers in the output of the first documents of portions that are being written."""
        self._sums: dict[int, int] = {}
        """Of the digests of portions."""
        self._work = ""

    def _copy(self, at: int, token: int, document: int) -> None:
        section = self._sections[at]
        if section.is_protected:
            super()._copy(at, token, document)
            return
        portions = [
            (number, portion)
            for number, portion in enumerate(self._marking.portions)
            if self._documents.sections[portion.operand] is section and portion.token >= token
        ]
        self._work = save_work(self._output.directory, self._marking.work(None))
        n_at_once = self._cluster.n_wanted
        if self._output.stage_bytes:
            # What is complete leaves the stage after a commit.
            largest = max((portion.end - portion.token for _, portion in portions), default=1) * section.item_bytes
            n_at_once = max(1, min(n_at_once, self._output.stage_bytes // largest))
        for begin in range(0, len(portions), n_at_once):
            self._copy_group(at, section, portions[begin : begin + n_at_once])
        self._place = (at + 1, 0, 0)

    def _copy_group(self, at: int, section: Section, portions: Sequence[tuple[int, Portion]]) -> None:
        """Have portions written, and commit them."""
        for number, _ in portions:
            self._firsts[number] = self._counts.documents_train
            n_ids = sum(int(lengths.sum(dtype=np.int64)) for lengths in self._marking.kept_lengths(number))
            ids, done = self._placed.begin(number, n_ids), 0
            for lengths in self._marking.kept_lengths(number):
                ends = np.cumsum(lengths, dtype=np.int64)
                self._append(Tokens(is_val=False, ids=ids[done : done + int(ends[-1])], ends=ends))
                done += int(ends[-1])
            self._placed.check(self._content.format, str(self._output.directory))
            for lines in self._marking.lines_of(number):
                self._output.file(REMOVED_NAME).append(lines)
        self._placed.wait()
        self._digest = (self._digest + sum(self._sums.values())) % (1 << 128)
        self._firsts, self._sums = {}, {}
        last = portions[-1][1]
        self._place = (at, last.end, last.document + last.n_documents)
        self.note(sum((portion.end - portion.token) * section.item_bytes for _, portion in portions))
        self._commit()

    def _send(self, placed: dict[int, list[Stretch]]) -> None:
        """Have stretches of portions written."""

        def collect(number: int, data: bytes) -> None:
            answer = msgspec.json.decode(data, type=CopyAnswer)
            if number not in self._sums:
                self._sums[number] = int(answer.sum, 16)
            for stretch, digest in zip(placed[number], answer.digests, strict=True):
                stretch.digest = bytes.fromhex(digest)

        questions = ((number, self._question(number, stretches)) for number, stretches in placed.items())
        self._cluster.do("copy_portion", questions, collect)

    def _question(self, number: int, stretches: Sequence[Stretch]) -> bytes:
        question = CopyQuestion(
            directory=str(self._output.directory),
            work=self._work,
            number=number,
            portion=self._marking.portions[number],
            first=self._firsts[number],
            is_digested=number not in self._sums,
            places=tuple((s.begin, s.name, s.offset, s.n_bytes) for s in stretches),
        )
        return msgspec.json.encode(question)
