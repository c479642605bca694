"""`shuffle` and `mix` on several machines: the passes of `derive/arranging.py`, in tasks that run anywhere.

The tasks share the directory in which the output is made, and nothing else. One scatters a portion of a source into a file of its
own (`portions.py`), another sorts a bucket and writes its ids where they belong in the files of the output. This process
reads the records of each bucket: it sorts them, lets the writer of the format say which stretch of it goes to which file and place,
and commits, as a run on one machine does. So the files are those of such a run, in any format. Every task can be done again, and
twice at once: it writes the same bytes. A portion that is there is not made again, and no bucket that is committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash

from tokmill.core.bounded import Natural
from tokmill.core.config import Content
from tokmill.core.document_order import order_keys
from tokmill.core.errors import UsageError
from tokmill.core.records import ITEM_BYTES, Tokens
from tokmill.derive.arranging import Arranging
from tokmill.derive.bucket_run import FIXED_BYTES, LEAST_BYTES, MIB, Operand
from tokmill.derive.buckets import RECORD, remove_buckets
from tokmill.derive.copiers import ids_of
from tokmill.derive.document_stream import ahead, whole_documents
from tokmill.derive.source import ShiftedIds
from tokmill.derive.spread.placing import Placed, StretchWriter
from tokmill.derive.spread.portions import Portion, PortionBuckets, PortionWriter, cut_portions, least_portion_bytes, most_buckets
from tokmill.derive.spread.tasks import TASKS_A_SLOT, Question, gone_error, load_same, save_work, understood

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.progress import ProgressReporter
    from tokmill.core.records import Counts
    from tokmill.core.system.tree import Directory
    from tokmill.derive.spread.placing import Stretch
    from tokmill.derive.spread.tasks import Tasks
    from tokmill.output import Output

_PORTION_BYTES = 256 << 20
"""Of ids, in one portion, about: some seconds of work, so that little is lost with a machine."""
_LEAST_BYTES = 8 << 20
_HELD_SHARE = 8
"""Part of the memory that the records of a group take: those of two are held, each twice for a moment."""
_RUN_SHARE = 2
"""Part of the memory of a task that a run of a portion takes."""
_MOST_PORTIONS = 1 << 12
"""Each is opened for each bucket: of a large corpus they are larger."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What the tasks of an output must know, in a file of its state directory: a node that does not find it does not share that."""

    content: Content
    """Without inputs, which may be many."""
    places: tuple[str, ...]
    """Of the operands: directory or URL."""
    checksums: tuple[str, ...]
    """Of their manifests."""
    numbers: tuple[int, ...]
    firsts: tuple[int, ...]
    identity: str
    """Of all that decides what is in the files of portions, hex."""
    n_portions: Natural
    n_buckets: Natural
    budget_bytes: Natural
    """Of a task, for documents."""


class _Question(Question, frozen=True, kw_only=True):
    """What one task is to do."""

    portion: Portion | None = None
    """What is to be scattered; None: the bucket is to be written."""
    places: tuple[tuple[int, str, int, int], ...] = ()
    """Where stretches of the sorted bucket go, in order: begin in it, name of the file, offset there, bytes."""


class Spread(Arranging):
    """The making of one output, by the process that asks for the tasks."""

    def __init__(
        self,
        operands: Sequence[Operand],
        content: Content,
        output: Output,
        budget_bytes: int,
        reporter: ProgressReporter,
        counts: Counts,
        tasks: Tasks,
        task_bytes: int,
    ) -> None:
        """budget_bytes: of a task, for documents. task_bytes: of a task, all of it. The rest as of Arranging."""
        self._tasks = tasks
        self._task_bytes = task_bytes
        self._placed = Placed(self._write_placed, np.dtype(content.dtype).newbyteorder("<"))
        output.elsewhere = self._placed
        super().__init__(operands, content, output, budget_bytes, reporter, counts)
        self._portions = cut_portions(operands, self._portion_tokens)
        identity = xxhash.xxh3_128_digest(f"{content.fingerprint()} {self._n_buckets} {self._portion_tokens}".encode())
        self._work_is = Work(
            content=msgspec.structs.replace(content, inputs=()),
            places=tuple(str(operand.source.directory) for operand in operands),
            checksums=tuple(operand.source.manifest.checksum for operand in operands),
            numbers=tuple(operand.number for operand in operands),
            firsts=tuple(operand.first for operand in operands),
            identity=identity.hex(),
            n_portions=len(self._portions),
            n_buckets=self._n_buckets,
            budget_bytes=budget_bytes,
        )
        self._work_digest = ""
        self._found = PortionBuckets(output.directory, identity, len(self._portions), self._n_buckets)
        self._buckets = self._found  # type: ignore[assignment]

    def _open_buckets(self, n_bytes: int, n_records: int, record_cost: int) -> None:
        n_bytes += n_records * record_cost
        n_slots = self._tasks.n_slots(self._task_bytes)
        most = most_buckets(self._room // _RUN_SHARE)
        least = max(1, min(TASKS_A_SLOT * n_slots, n_bytes // _LEAST_BYTES, most))
        self._n_buckets = self._state.get("n_buckets", max(least, -(-n_bytes * 3 // (2 * (self._room // 3)))))
        if self._n_buckets > most:
            raise self._memory_error(n_bytes)
        self._check_records(n_records * record_cost, self._n_buckets)
        portion_bytes = min(_PORTION_BYTES, max(_LEAST_BYTES, n_bytes // (TASKS_A_SLOT * n_slots)))
        portion_bytes = max(portion_bytes, n_bytes // _MOST_PORTIONS, least_portion_bytes(self._n_buckets))
        self._portion_tokens = self._state.get("portion_tokens", portion_bytes // self._item_bytes)

    def _memory_error(self, n_bytes: int) -> UsageError:
        """Return the error for tasks with so little memory that there would be too many buckets. n_bytes: in all buckets."""
        room = LEAST_BYTES
        while most_buckets(room // _RUN_SHARE) < (self._state.get("n_buckets") or -(-n_bytes * 3 // (2 * (room // 3)))):
            room += LEAST_BYTES
        least = -(-(self._task_bytes - self._room + room) // MIB)
        return UsageError(
            f"tasks with {self._task_bytes // MIB:,} MiB would put the documents into {self._n_buckets:,} buckets",
            where="--memory",
            option="--memory",
            allowed=f"at least {least:,} MiB for {n_bytes / 1e9:,.0f} GB",
            suggested=f"{least}MiB",
        )

    def _work(self) -> Counts:
        """Scatter the portions, write the validation side, then the buckets."""
        total_bytes = 2 * self._taken_bytes + self._expected.tokens_val * self._item_bytes
        done_bytes = (self._counts.tokens_val + self._counts.tokens_train) * self._item_bytes
        self._reporter.started(total_bytes, done_bytes)
        self._position_bytes = done_bytes
        for operand in self._operands:
            # Whole documents at both ends; the rest is checked by the tasks.
            self._ids_of(operand, "train")
        # Those of a run on one machine: there is room for one kind of scratch only.
        remove_buckets(self._output.directory)
        if not self._output.segments:
            # From here on, what is in the directory is work that goes on.
            self._commit()
            self._output.settle()
        self._work_digest = save_work(self._output.directory, self._work_is)
        self._scatter_portions()
        self._write_val()
        for first, records in ahead(self._groups()):
            self._write_group(first, records)
        return self._expected

    def _position(self) -> dict[str, int]:
        return {**super()._position(), "portion_tokens": self._portion_tokens}

    def _scatter_portions(self) -> None:
        """Have every portion scattered that is not there."""
        done, sums = self._position_bytes, {}

        def collect(number: int, answer: bytes) -> None:
            sums[number] = int(answer, 16)
            self._position_bytes = done + self._taken_bytes * len(sums) // len(self._portions)
            self._reporter.progress(self._position_bytes, self._counts)

        questions = ((number, self._question(number=number, portion=portion)) for number, portion in enumerate(self._portions))
        self._tasks.do(_NAME.format("scatter_portion"), questions, collect, budget_bytes=self._task_bytes)
        self._position_bytes = done + self._taken_bytes
        self._found.digest = f"{sum(sums.values()) % (1 << 128):032x}"

    def _question(self, **fields: Any) -> bytes:
        question = _Question(directory=str(self._output.directory), work=self._work_digest, **fields)
        return msgspec.json.encode(question)

    # The second pass.

    def _groups(self) -> Iterator[tuple[int, list[NDArray[Any]]]]:
        """Yield the buckets that are left, as many at a time as are written before a commit: number of the first, and records."""
        n_records = max(1, self._arrangement.n_documents // self._n_buckets)
        held = self._room // (_HELD_SHARE * RECORD.itemsize)
        size = max(1, min(TASKS_A_SLOT * self._tasks.n_slots(self._task_bytes), held // n_records))
        for first in range(self._next_bucket, self._n_buckets, size):
            yield first, self._found.records_of(first, min(first + size, self._n_buckets))

    def _write_group(self, first: int, records: Sequence[NDArray[Any]]) -> None:
        """Have buckets written, and commit them."""
        for bucket, of_bucket in enumerate(records, first):
            keys = order_keys(self._arrangement, of_bucket["copy"])
            lengths = of_bucket["n_ids"].astype(np.int64)[np.argsort(keys, kind="stable")]
            ids = self._placed.begin(bucket, int(lengths.sum()))
            self._write(Tokens(is_val=False, ids=ids, ends=np.cumsum(lengths)), len(lengths))
            self._placed.check(self._content.format, str(self._output.directory))
        self._placed.wait()
        self._next_bucket = first + len(records)
        self._commit()

    def _write_placed(self, placed: dict[int, list[Stretch]]) -> None:
        """Have stretches of buckets written."""

        def collect(bucket: int, answer: bytes) -> None:
            for stretch, digest in zip(placed[bucket], msgspec.json.decode(answer, type=list[str]), strict=True):
                stretch.digest = bytes.fromhex(digest)

        questions = (
            (bucket, self._question(number=bucket, places=tuple((s.begin, s.name, s.offset, s.n_bytes) for s in stretches)))
            for bucket, stretches in placed.items()
        )
        self._tasks.do(_NAME.format("write_bucket"), questions, collect, budget_bytes=self._task_bytes)


_NAME = "tokmill.derive.spread.arranging:{}"


class _Task(Arranging):
    """What tasks do as a run on one machine does; without an output of its own."""

    def __init__(self, work: Work, buckets: PortionWriter | PortionBuckets) -> None:
        content = work.content
        assert content.origin
        assert content.origin.arranged
        self._content = content
        self._arrangement = content.origin.arranged
        self._item_bytes = ITEM_BYTES[content.dtype]
        self._digested = np.dtype("<u2" if content.tokenizer.n_ids <= 1 << 16 else "<u4")
        self._buckets = buckets  # type: ignore[assignment]

    def _note(self, n_bytes: int) -> None:
        """Report nothing: a task is short."""

    def scatter_portion(self, operand: Operand, portion: Portion) -> None:
        """Put the documents of a portion into buckets. Raises DamageError where they are not as many as the manifest says."""
        content, reader = operand.source.content, ids_of(operand.source, "train")
        ids = ShiftedIds(reader, content.tokenizer.eot_id, content.eot, self._content.eot)
        token, left = portion.token, portion.n_documents
        for block, ends in ahead(whole_documents(ids, token), waits=lambda block: not len(block[1])):
            document = portion.document + portion.n_documents - left
            if len(ends):
                some = ends[:left]
                self._scatter(operand, self._fitting(operand, block[: some[-1]]), some, document)
                token, left = token + int(some[-1]), left - len(some)
            else:
                token, left = token + self._scatter_long(operand, ids, token, document), left - 1
            if not left or token >= portion.end:
                break
        if left or token != portion.end:
            raise operand.source.count_error("train", portion.document + portion.n_documents - left)
        # So the digests of all segments of the portion are compared.
        ids.read_to(portion.end)
        if portion.end == len(reader):
            operand.source.finish()


def scatter_portion(data: bytes) -> bytes:
    """Scatter a portion, unless its file is there; return the sum of the digests of its documents, hex. Raises TokmillError."""
    question, work, directory = understood(data, _Question, Work)
    portion, identity = question.portion, bytes.fromhex(work.identity)
    assert portion is not None
    there = PortionBuckets(directory, identity, work.n_portions, work.n_buckets).sum_of(question.number)
    if there is not None:
        return f"{there:x}".encode()
    source = load_same(work.places[portion.operand], work.checksums[portion.operand])
    operand = Operand(source, work.numbers[portion.operand], work.firsts[portion.operand])
    held_bytes = (work.budget_bytes - FIXED_BYTES) // _RUN_SHARE
    try:
        with PortionWriter(directory, identity, question.number, work.n_buckets, held_bytes) as writer:
            _Task(work, writer).scatter_portion(operand, portion)
            return f"{writer.finish():x}".encode()
    finally:
        source.close()


def write_bucket(data: bytes) -> bytes:
    """Sort a bucket and write stretches of it; return the digest of each, hex, in order. Raises TokmillError."""
    question, work, directory = understood(data, _Question, Work)
    task = _BucketTask(work, PortionBuckets(directory, bytes.fromhex(work.identity), work.n_portions, work.n_buckets))
    return msgspec.json.encode(task.write(question, directory, (work.budget_bytes - FIXED_BYTES) * 2 // 3))


class _BucketTask(_Task):
    """The writing of one bucket."""

    def write(self, question: _Question, directory: Directory, most_bytes: int) -> list[str]:
        """Write the stretches; return their digests. most_bytes: of a bucket that is held whole."""
        bucket = question.number
        with StretchWriter(directory, question.places) as self._stretch_writer:
            try:
                records, n_bytes = self._buckets.records(bucket), self._buckets.ids_bytes(bucket)
                self._write_bucket(bucket, records, self._read(bucket, 0, n_bytes) if n_bytes <= most_bytes else None)
            except FileNotFoundError as error:
                raise gone_error(str(directory)) from error
            self._stretch_writer.finish(f"bucket {bucket:,}")
            return self._stretch_writer.digests

    def _write(self, tokens: Tokens, n_documents: int) -> None:  # noqa: ARG002  counted elsewhere
        self._stretch_writer.write(tokens.ids.view(np.uint8).data)

    def _wrote_bucket(self, bucket: int, digests: int) -> None:
        self._buckets.check(bucket, digests)
