"""`shuffle` and `mix` on several machines: the passes of `derive/arranging.py`, in tasks that run anywhere.

The tasks share the directory in which the output is made, and nothing else. One scatters a portion of a source into a file of its
own (`derive/portions.py`), another sorts a bucket and writes its ids where they belong in the files of the output. This process
reads the records of each bucket: it sorts them, lets the writer of the format say which stretch of it goes to which file and place,
and commits, as a run on one machine does. So the files are those of such a run, in any format. Every task can be done again, and
twice at once: it writes the same bytes. A portion that is there is not made again, and no bucket that is committed.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import xxhash

from tokmill.core.bounded import Natural
from tokmill.core.config import Content
from tokmill.core.document_order import order_keys
from tokmill.core.errors import DamageError, LockedError, UsageError
from tokmill.core.manifest import read_state
from tokmill.core.records import ITEM_BYTES, Tokens, is_url
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.core.system.tree import tree_of
from tokmill.core.text import counted
from tokmill.derive.arranging import Arranging
from tokmill.derive.bucket_run import FIXED_BYTES, LEAST_BYTES, MIB, Operand
from tokmill.derive.buckets import RECORD, remove_buckets
from tokmill.derive.copiers import ids_of
from tokmill.derive.document_stream import ahead, whole_documents
from tokmill.derive.loading import load_source
from tokmill.derive.portions import Portion, PortionBuckets, PortionWriter, cut_portions, least_portion_bytes, most_buckets
from tokmill.derive.source import ShiftedIds
from tokmill.output import growing_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.progress import ProgressReporter
    from tokmill.core.records import Counts
    from tokmill.core.system.tree import Directory
    from tokmill.output import GrowingFile, Output

_PORTION_BYTES = 256 << 20
"""Of ids, in one portion, about: some seconds of work, so that little is lost with a machine."""
TASKS_A_SLOT = 4
"""Portions, and buckets, for each task that can run at a time, where there is so much: so all end at about the same time."""
_LEAST_BYTES = 8 << 20
_HELD_SHARE = 8
"""Part of the memory that the records of a group take: those of two are held, each twice for a moment."""
_RUN_SHARE = 2
"""Part of the memory of a task that a run of a portion takes."""
_MOST_PORTIONS = 1 << 12
"""Each is opened for each bucket: of a large corpus they are larger."""


class Tasks(Protocol):
    """Does tasks on several machines."""

    def n_slots(self, budget_bytes: int) -> int:
        """Return how many tasks with so much memory can run at a time. Raises UsageError where none can."""

    def do(
        self, function: str, questions: Iterable[tuple[int, bytes]], collect: Callable[[int, bytes], None], *, budget_bytes: int
    ) -> None:
        """Return when every question is answered. A task whose machine dies is done again.

        Args:
            function: `module:name` of a function from question to answer, bytes both.
            questions: Each with a number, taken one by one as there is room.
            collect: Given number and answer, in any order.
            budget_bytes: Memory of a task.

        Raises what a task raises, TokmillError.
        """


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


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What one task is to do."""

    directory: str
    """In which the output is made."""
    work: str
    """Digest of the work, hex."""
    number: Natural
    """Of the portion, or the bucket."""
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
        self._placed = _Placed(self._write_placed)
        output.elsewhere = self._placed
        super().__init__(operands, content, output, budget_bytes, reporter, counts)
        self._portions = cut_portions(operands, self._portion_tokens)
        identity = xxhash.xxh3_128_digest(f"{content.fingerprint()} {self._n_buckets} {self._portion_tokens}".encode())
        work = Work(
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
        self._work_data = msgspec.json.encode(work)
        self._found = PortionBuckets(output.directory, identity, len(self._portions), self._n_buckets)
        self._buckets = self._found  # type: ignore[assignment]
        self._virtual = np.empty(0, np.dtype(content.dtype).newbyteorder("<"))

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
        with storage_errors(self._output.directory):
            durable.replace_file(growing_path(self._output.directory, _WORK_NAME), self._work_data)
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
        work = xxhash.xxh3_128_hexdigest(self._work_data)
        question = Question(directory=str(self._output.directory), work=work, **fields)
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
            self._placed.begin(bucket, ids := self._room_for(int(lengths.sum())))
            self._write(Tokens(is_val=False, ids=ids, ends=np.cumsum(lengths)), len(lengths))
            self._placed.check(self._content.format, str(self._output.directory))
        self._placed.wait()
        self._next_bucket = first + len(records)
        self._commit()

    def _room_for(self, n_ids: int) -> Any:
        """Return an array of so many ids that stands for those of a bucket; it is never looked at, so that it takes no memory."""
        if len(self._virtual) < n_ids:
            self._virtual = np.empty(n_ids, self._virtual.dtype)
        return self._virtual[:n_ids]

    def _write_placed(self, placed: dict[int, list[_Stretch]]) -> None:
        """Have stretches of buckets written."""

        def collect(bucket: int, answer: bytes) -> None:
            for stretch, digest in zip(placed[bucket], msgspec.json.decode(answer, type=list[str]), strict=True):
                stretch.digest = bytes.fromhex(digest)

        questions = (
            (bucket, self._question(number=bucket, places=tuple((s.begin, s.name, s.offset, s.n_bytes) for s in stretches)))
            for bucket, stretches in placed.items()
        )
        self._tasks.do(_NAME.format("write_bucket"), questions, collect, budget_bytes=self._task_bytes)


class _Stretch:
    """Bytes of a bucket that a task writes. Implements `WrittenPiece`."""

    def __init__(self, begin: int, name: str, offset: int, n_bytes: int) -> None:
        self.begin = begin
        self.name = name
        self.offset = offset
        self.n_bytes = n_bytes
        self.digest = b""


class _Placed:
    """Takes note of which stretch of a bucket goes where. Implements `Elsewhere`."""

    def __init__(self, send: Callable[[dict[int, list[_Stretch]]], None]) -> None:
        """send: has stretches written, by bucket, and sets their digests."""
        self._send = send
        self._bucket = -1
        self._address = self._n_bytes = self._at = 0
        self._waiting: dict[int, list[_Stretch]] = {}

    def begin(self, bucket: int, ids: Any) -> None:
        """The next bytes are those of a bucket, for which this array stands."""
        self._bucket, self._at = bucket, 0
        self._address, self._n_bytes = ids.ctypes.data, ids.nbytes

    def check(self, format_name: str, where: str) -> None:
        """Raise UsageError unless all of the bucket has its place."""
        if self._at != self._n_bytes:
            raise UsageError(
                f"files of the format {format_name} cannot be written by several machines",
                where=where,
                allowed="--ray with another --format",
                next_step="leave --ray out",
            )
        self._bucket, self._address, self._n_bytes = -1, 0, 0

    def takes(self, view: memoryview) -> bool:
        """See Elsewhere."""
        if not len(view) or self._bucket < 0:
            return False
        return 0 <= np.frombuffer(view, np.uint8).ctypes.data - self._address < self._n_bytes

    def write(self, file: GrowingFile, view: memoryview, offset: int) -> _Stretch:
        """See Elsewhere."""
        stretch = _Stretch(self._at, Path(str(file.path)).name, offset, len(view))
        self._at += len(view)
        self._waiting.setdefault(self._bucket, []).append(stretch)
        return stretch

    def wait(self) -> None:
        """See Elsewhere."""
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self._send(waiting)

    def close_file(self, file: GrowingFile) -> None:
        """See Elsewhere: nothing is held for a file."""


_WORK_NAME = "work"
_NAME = "tokmill.derive.spreading:{}"


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
        # The last id too, so that the digests of all segments of the portion are compared.
        reader.read(portion.end - 1, portion.end)
        if portion.end == len(reader):
            operand.source.finish()


def scatter_portion(data: bytes) -> bytes:
    """Scatter a portion, unless its file is there; return the sum of the digests of its documents, hex. Raises TokmillError."""
    question, work, directory = _understood(data)
    portion, identity = question.portion, bytes.fromhex(work.identity)
    assert portion is not None
    there = PortionBuckets(directory, identity, work.n_portions, work.n_buckets).sum_of(question.number)
    if there is not None:
        return f"{there:x}".encode()
    place = work.places[portion.operand]
    source = load_source(place if is_url(place) else Path(place))
    if source.manifest.checksum != work.checksums[portion.operand]:
        raise replaced_source(place)
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
    question, work, directory = _understood(data)
    task = _BucketTask(work, PortionBuckets(directory, bytes.fromhex(work.identity), work.n_portions, work.n_buckets))
    return msgspec.json.encode(task.write(question, directory, (work.budget_bytes - FIXED_BYTES) * 2 // 3))


class _BucketTask(_Task):
    """The writing of one bucket."""

    def write(self, question: Question, directory: Directory, most_bytes: int) -> list[str]:
        """Write the stretches; return their digests. most_bytes: of a bucket that is held whole."""
        self._left = list(question.places)
        self._directory = directory
        self._at = 0
        self._digests: list[str] = []
        self._hash = xxhash.xxh3_128()
        self._files: dict[str, int] = {}
        bucket = question.number
        try:
            records, n_bytes = self._buckets.records(bucket), self._buckets.ids_bytes(bucket)
            self._write_bucket(bucket, records, self._read(bucket, 0, n_bytes) if n_bytes <= most_bytes else None)
            for fd in self._files.values():
                durable.sync_file(fd)
        except FileNotFoundError as error:
            raise _gone(str(directory)) from error
        finally:
            for fd in self._files.values():
                os.close(fd)
        return self._digests

    def _write(self, tokens: Tokens, n_documents: int) -> None:  # noqa: ARG002  counted elsewhere
        view = tokens.ids.view(np.uint8).data
        begin, self._at = self._at, self._at + len(view)
        while self._left:
            first, name, offset, n_bytes = self._left[0]
            a, b = max(first, begin), min(first + n_bytes, self._at)
            if a >= b:
                return
            part = view[a - begin : b - begin]
            self._hash.update(part)
            with storage_errors(self._directory):
                durable.write_all_at(self._file(name), part, offset + a - first)
            if b < first + n_bytes:
                return
            self._digests.append(self._hash.hexdigest())
            self._hash = xxhash.xxh3_128()
            del self._left[0]

    def _file(self, name: str) -> int:
        if name not in self._files:
            self._files[name] = (growing_path(self._directory, "x").parent / name).open(os.O_RDWR)
        return self._files[name]

    def _wrote_bucket(self, bucket: int, digests: int) -> None:
        self._buckets.check(bucket, digests)
        if self._left:
            raise DamageError(
                f"work in progress is damaged: bucket {bucket:,} ends at byte {self._at:,}",
                where=str(self._directory),
                allowed=f"{counted(self._left[-1][0] + self._left[-1][3], 'byte')}",
                next_step="run the same command again with --fresh",
            )


def _understood(data: bytes) -> tuple[Question, Work, Directory]:
    """Return a question, what it is about, and the directory. Raises UsageError, LockedError."""
    question = msgspec.json.decode(data, type=Question)
    directory = tree_of(Path(question.directory))
    found = b""
    with suppress(OSError, DamageError):
        found = read_state(growing_path(directory, _WORK_NAME))
    if not found:
        raise UsageError(
            f"the node {socket.gethostname()} does not see the directory in which the output is made",
            where=question.directory,
            allowed="a directory that all nodes of the cluster share: of an s3:// output, --stage",
            next_step="choose another --out (or --stage), or leave --ray out",
        )
    if xxhash.xxh3_128_hexdigest(found) != question.work:
        raise _gone(question.directory)
    return question, msgspec.json.decode(found, type=Work), directory


def _gone(where: str) -> LockedError:
    return LockedError(
        "another run has taken the place of the one that asked for this task",
        where=where,
        allowed="one run at a time",
        next_step="wait for it to end",
    )


def replaced_source(place: str) -> UsageError:
    """Return the error for a source that is not the one that the task was asked about."""
    return UsageError(
        "a source was replaced while it was read",
        where=place,
        allowed="an output that stays as it is, at one path on all nodes",
        next_step="run the same command again",
    )
