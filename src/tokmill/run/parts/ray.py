"""Makes the parts of an output on a Ray cluster, and does other tasks there. The only file that imports ray.

A task makes one part: a run like any other, in a child process with a memory limit of its own, with the lock and the journal of its
part on the storage that all nodes share. Ray only provides the place, and only how the part ended goes through it. So a node that
dies loses the work since its last commits, and a driver that is killed and run again continues. Retries are counted here, because
Ray would not report them.

A task may live on after Ray believes it dead. The part's lock then keeps the next one waiting until it is gone; and if both make
the part, they make the same bytes.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import time
from collections import Counter, deque
from contextlib import ExitStack, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, Self

import msgspec

from tokmill.core.config import Job
from tokmill.core.errors import Interrupted, LockedError, TokmillError, UsageError, WorkerDiedError
from tokmill.core.events import AnyEvent, Failed, Finished, Notice, Progress, Restarted, Started
from tokmill.core.partition import part_sizes
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Counts
from tokmill.core.skipping import check_skipped
from tokmill.core.system.process import error_of, failed_event
from tokmill.core.text import counted
from tokmill.output import n_parts, part_contents, skipped_lists
from tokmill.run.parts.tokenize import make_part, part_job
from tokmill.run.supervisor import LocalRunner

# Before ray is imported, which reads it then.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Of a cluster that is started here: its workers would have niceness 15, and get next to nothing beside whatever else runs (--nice).
os.environ.setdefault("RAY_worker_niceness", "0")

try:
    import ray
    from ray import exceptions
except ImportError:
    raise UsageError(
        "Ray is not installed",
        option="--ray",
        allowed="Python packages of the extra ray",
        next_step="pip install 'tokmill[ray]', or leave --ray out",
    ) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tokmill.core.protocols import Observer

_STORE_BYTES = 80 << 20
"""Object store of a cluster that is started here: nearly the least that Ray accepts; the tasks put nothing into it."""
_MOST_DEATHS = 5
"""Deaths of workers and nodes after which a part is given up."""
_PATIENCE_S = 120.0
"""Longest wait for the lock of a part whose worker is dead, or soon will be, and for a node where there is none."""
_BOARD = "tokmill"
"""Name of the board, among those of one driver."""
_POLL_S = 0.5
_KNOCK_S = 10.0
_CHECKPOINT_S = 10.0
"""Time for the parts to commit, when the run ends early."""
_TELL_EVERY_S = 1.0
_DEATHS = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.OutOfMemoryError,
    exceptions.ObjectLostError,
)
"""Failures of a task that are not its own fault."""
HERE = "here"
"""The cluster that this machine is part of, or else a new one of this machine alone."""


class RayRunner:
    """A connection to a cluster. A context: leaving it disconnects."""

    def __init__(self, address: str, stage: str | None = None) -> None:
        """address: of the cluster, `auto`, `local` for a new one of this machine, or `here`. stage: of an output in a store, the
        directory on each node in which parts are made; None: the usual one there. Raises UsageError.
        """
        self._address = address
        self._stage = None if stage is None else os.path.abspath(stage)
        self._said = ExitStack()

    def __enter__(self) -> Self:
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _connect(self._address)
        finally:
            # Ray puts one of its own there, which would end this process without a checkpoint.
            if handler is not None:
                signal.signal(signal.SIGTERM, handler)
        # Ray reports lost nodes on standard output, where the result belongs, and has no option against it.
        self._said.enter_context(redirect_stdout(sys.stderr))
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()
        self._said.close()

    def make_parts(self, job: Job, indexes: Sequence[int], observers: Sequence[Observer]) -> None:
        """Make parts of a whole. Raises TokmillError when one fails; the others then commit and end."""
        work = _Work(job, indexes, self._stage, observers)
        try:
            work.run()
        except KeyboardInterrupt:
            work.cancel()
            raise Interrupted(
                "interrupted; every part keeps what it committed",
                where=job.destination or job.out,
                allowed="all parts, made to their end",
                next_step="run the same command again: it continues",
            ) from None
        except BaseException:
            work.cancel()
            raise

    def n_slots(self, budget_bytes: int) -> int:
        """Return how many tasks of one core and so much memory can run at a time. Raises UsageError where none can."""
        return _slots(1, budget_bytes)

    def do(
        self, function: str, questions: Iterable[tuple[int, bytes]], collect: Callable[[int, bytes], None], *, budget_bytes: int
    ) -> None:
        """Have every question answered by a function, named `module:name`, on some node; a task that dies is done again.

        Args:
            function: From bytes to bytes. It may be called again with a question, also while it is called with it elsewhere.
            questions: Each with a number, taken one by one as there is room.
            collect: Given number and answer, in any order.
            budget_bytes: Memory of a task.

        Raises what the function raises, TokmillError; WorkerDiedError for a question that cost too many workers or nodes.
        """
        tasks = _Tasks(function, iter(questions), budget_bytes)
        try:
            tasks.run(collect)
        except BaseException:
            tasks.cancel()
            raise


class _Tasks:
    """The questions that wait, and those that are being answered."""

    def __init__(self, function: str, questions: Iterator[tuple[int, bytes]], budget_bytes: int) -> None:
        self._function = function
        self._questions = questions
        self._slots = _Slots(1, budget_bytes)
        self._again: deque[tuple[int, bytes]] = deque()
        self._running: dict[Any, tuple[int, bytes]] = {}
        self._deaths: Counter[int] = Counter()
        self._task = ray.remote(num_cpus=1, memory=budget_bytes, max_retries=0)(_answer)

    def run(self, collect: Callable[[int, bytes], None]) -> None:
        """Have all answered."""
        while True:
            n_slots = self._slots.now()
            # A few more than there is room for, so that no node waits.
            while len(self._running) < n_slots + max(2, n_slots // 4) and (item := self._next()) is not None:
                self._running[self._task.remote(self._function, item[1])] = item
            if not self._running:
                return
            for reference in ray.wait(list(self._running), num_returns=1, timeout=_POLL_S)[0]:
                item = self._running.pop(reference)
                try:
                    is_answer, data = ray.get(reference)
                except _DEATHS as death:
                    self._on_death(item, type(death).__name__)
                    continue
                if not is_answer:
                    raise error_of(msgspec.json.decode(data, type=Failed))
                collect(item[0], data)

    def _next(self) -> tuple[int, bytes] | None:
        return self._again.popleft() if self._again else next(self._questions, None)

    def _on_death(self, item: tuple[int, bytes], cause: str) -> None:
        self._deaths[item[0]] += 1
        if self._deaths[item[0]] > _MOST_DEATHS:
            raise WorkerDiedError(
                f"a task cost {counted(self._deaths[item[0]], 'worker or node', 'workers or nodes')} ({cause})",
                where=f"{self._function}, task {item[0]:,}",
                allowed=f"{_MOST_DEATHS} a task",
                next_step="see what kills them (memory of the nodes, Ray's logs), then run the same command again: it continues",
            )
        self._again.append(item)

    def cancel(self) -> None:
        """End what is running."""
        for reference in self._running:
            ray.cancel(reference, force=True)


def _answer(function: str, question: bytes) -> tuple[bool, bytes]:
    """Return whether a question was answered, and the answer, or else the error: the task that a worker of Ray runs."""
    module, _, name = function.partition(":")
    try:
        return True, getattr(importlib.import_module(module), name)(question)
    except Exception as error:  # noqa: BLE001  a full disk or memory of a node is told as one of this machine is
        return False, msgspec.json.encode(failed_event(error))


class _Work:
    """The parts that wait, those that are being made, and their common progress."""

    def __init__(self, job: Job, indexes: Sequence[int], stage: str | None, observers: Sequence[Observer]) -> None:
        self._job = job
        self._stage = stage
        self._tell = ProgressReporter(observers).emit
        self._waiting = deque(indexes)
        wanted = set(indexes)
        self._contents = {index: content for index, content in enumerate(part_contents(job.content)) if index in wanted}
        self._running: dict[Any, int] = {}
        self._deaths: Counter[int] = Counter()
        resources = job.resources
        self._task = ray.remote(num_cpus=resources.n_threads, memory=resources.budget_bytes, max_retries=0)(_make_part)
        self._slots = _Slots(resources.n_threads, resources.budget_bytes)
        self._board: Any = None
        self._read: Any = None
        """The pending answer of the board."""
        self._view = _View(job, indexes)

    def run(self) -> None:
        """Make all parts. Raises what a part raises; WorkerDiedError for one that lost too many workers or nodes."""
        self._tell(self._view.started(self._job))
        while self._waiting or self._running:
            n_slots = self._slots.now()
            # Submit a few more than there is room for, so that no node waits.
            while self._waiting and len(self._running) < n_slots + max(2, n_slots // 4):
                self._submit(self._waiting.popleft())
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_S)
            for reference in done:
                self._collect(reference, self._running.pop(reference))
            self._look()
        if self._board is not None:
            self._look(_POLL_S)

    def cancel(self) -> None:
        """Let running parts commit and end."""
        for reference in self._running:
            ray.cancel(reference)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=_CHECKPOINT_S)

    def _submit(self, index: int) -> None:
        job = part_job(self._job, index, self._contents[index])
        paths = {source.path for source in job.content.inputs}
        job = msgspec.structs.replace(job, fresh=False, urls={path: url for path, url in job.urls.items() if path in paths})
        self._running[self._task.remote(msgspec.json.encode(job), index, self._stage)] = index

    def _collect(self, reference: Any, index: int) -> None:
        try:
            event = msgspec.json.decode(ray.get(reference), type=AnyEvent)
        except _DEATHS as death:
            self._on_worker_death(index, type(death).__name__)
            return
        if isinstance(event, Failed):
            error = error_of(event)
            error.what = f"part {index} of {self._job.content.n_parts}: {error.what}"
            raise error
        if isinstance(event, Finished):
            self._view.finish(index, event.counts)

    def _on_worker_death(self, index: int, cause: str) -> None:
        """Make the part of a dead worker or node again, from its last commit."""
        self._deaths[index] += 1
        if self._deaths[index] > _MOST_DEATHS:
            raise WorkerDiedError(
                f"part {index} cost {counted(self._deaths[index], 'worker or node', 'workers or nodes')} ({cause})",
                where=self._job.out,
                allowed=f"{_MOST_DEATHS} a part",
                next_step="see what kills them (memory of the nodes, Ray's logs), then run the same command again: it continues",
            )
        self._waiting.appendleft(index)
        self._tell(Restarted(cause=f"{cause}, part {index}", attempt=self._deaths[index] + 1, batch_bytes=0))

    def _look(self, patience_s: float = 0.0) -> None:
        """Take what the board has answered, report it, and ask again."""
        states, notes = self._answer(patience_s)
        for note in notes:
            self._tell(Notice(text=note))
        progress = self._view.progress(states)
        self._tell(progress)
        lists = skipped_lists(self._job.out, self._job.destination)
        check_skipped(progress.counts, self._job.resources.max_skipped, lists)

    def _answer(self, patience_s: float) -> tuple[dict[int, tuple[int, bytes]], list[str]]:
        if self._board is None:
            # After the first tasks are submitted: the board is one more process to start.
            self._board = ray.remote(num_cpus=0, max_restarts=-1)(Board).options(name=_BOARD).remote()
        if self._read is None:
            self._read = self._board.read.remote()
        if not ray.wait([self._read], timeout=patience_s)[0]:
            return {}, []
        asked, self._read = self._read, None
        try:
            found: tuple[dict[int, tuple[int, bytes]], list[str]] = ray.get(asked)
        except exceptions.RayActorError:
            # Its node may have died. Ray makes it again, and the tasks report to it again.
            return {}, []
        return found


class _View:
    """The progress of all parts together."""

    def __init__(self, job: Job, indexes: Sequence[int]) -> None:
        self._began_s = time.monotonic()
        content = job.content
        self._sizes = part_sizes(content.inputs, content.separator, n_parts(content))
        self._left = set(indexes)
        self._counts = Counts()
        self._states: dict[int, tuple[int, bytes]] = {}
        """Position and counts of the parts that are being made."""

    def started(self, job: Job) -> Started:
        """Return the event with the work that is to be done, and what is done already."""
        resources = job.resources
        done = sum(size for index, size in enumerate(self._sizes) if index not in self._left)
        return Started(
            total_bytes=sum(self._sizes),
            resumed_bytes=done,
            position_bytes=done,
            n_threads=resources.n_threads * min(len(self._left), _slots(resources.n_threads, resources.budget_bytes)),
            batch_bytes=resources.batch_bytes,
            budget_bytes=0,
        )

    def finish(self, index: int, counts: Counts) -> None:
        """A part is complete."""
        self._left.discard(index)
        self._states.pop(index, None)
        self._counts += counts

    def progress(self, states: dict[int, tuple[int, bytes]]) -> Progress:
        """Return the progress. states: position and counts of each part that reported since the last call."""
        self._states |= {index: state for index, state in states.items() if index in self._left}
        position = sum(size for index, size in enumerate(self._sizes) if index not in self._left)
        counts = self._counts
        for index, (part_position, part_counts) in self._states.items():
            position += min(part_position, self._sizes[index])
            counts += msgspec.json.decode(part_counts, type=Counts)
        elapsed_s = time.monotonic() - self._began_s
        return Progress(elapsed_s=elapsed_s, position_bytes=position, counts=counts, rss_bytes=0)


class Board:
    """Collects the progress of the tasks. An actor; whatever is lost with it is reported again."""

    def __init__(self) -> None:
        self._states: dict[int, tuple[int, bytes]] = {}
        self._notes: list[str] = []

    def tell(self, index: int, position_bytes: int, counts: bytes, notes: list[str]) -> None:
        """Take the progress of a part, and notices for the user."""
        self._states[index] = (position_bytes, counts)
        self._notes += notes

    def read(self) -> tuple[dict[int, tuple[int, bytes]], list[str]]:
        """Return progress and notices since the last call."""
        (states, notes), (self._states, self._notes) = (self._states, self._notes), ({}, [])
        return states, notes


class _Reporter:
    """Reports the progress of a part to the board, from the node of the task. Implements `protocols.Observer`."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._board: Any = None
        self._told_s = 0.0
        self._notes: list[str] = []

    def on_event(self, event: AnyEvent) -> None:
        """Report to the board now and then, without waiting for an answer."""
        if isinstance(event, Restarted):
            self._told_s = 0.0
            self._notes.append(f"part {self._index}: a process of it was lost ({event.cause}), attempt {event.attempt}")
        if isinstance(event, Progress) and time.monotonic() - self._told_s >= _TELL_EVERY_S:
            self._told_s = time.monotonic()
            if self._board is None:
                with suppress(ValueError):
                    self._board = ray.get_actor(_BOARD)
            if self._board is not None:
                notes, self._notes = self._notes, []
                self._board.tell.remote(self._index, event.position_bytes, msgspec.json.encode(event.counts), notes)


def _make_part(question: bytes, index: int, stage: str | None) -> bytes:
    """Make one part and return how it ended: the task that a worker of Ray runs."""
    job = msgspec.json.decode(question, type=Job)
    give_up_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            runner, reporters = LocalRunner(), [_Reporter(index)]
            return msgspec.json.encode(make_part(job, stage, runner, reporters))
        except LockedError as error:
            if time.monotonic() > give_up_s:
                return msgspec.json.encode(failed_event(error))
            time.sleep(_POLL_S)
        except TokmillError as error:
            return msgspec.json.encode(failed_event(error))


def _connect(address: str) -> None:
    _knock(address)
    if address != "local":
        try:
            ray.init(address="auto" if address == HERE else address, log_to_driver=False, logging_level="error")
            return
        except (ConnectionError, ValueError, RuntimeError, exceptions.RayError) as error:
            if address != HERE:
                raise _silent(address, str(error).splitlines()[0]) from error
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        log_to_driver=False,
        logging_level="error",
    )


def _knock(address: str) -> None:
    """Raise UsageError if nothing listens at the address: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
        except OSError as error:
            raise _silent(address, error.strerror or str(error)) from error


def _silent(address: str, why: str) -> UsageError:
    return UsageError(
        f"no Ray cluster answers: {why}",
        where=f"--ray {address}",
        option="--ray",
        allowed="the address of a cluster (HOST:6379), auto, or local for a new one of this machine alone",
        next_step="ray start --head there, or leave the address out",
    )


class _Slots:
    """How many tasks can run at a time, while nodes come and go."""

    def __init__(self, n_threads: int, budget_bytes: int) -> None:
        self._n_threads = n_threads
        self._budget_bytes = budget_bytes
        self._last, self._seen_s = 0, 0.0

    def now(self) -> int:
        """Return the number, for some time the last one where there is no node: the last may be about to be replaced.

        Raises UsageError.
        """
        try:
            self._last = _slots(self._n_threads, self._budget_bytes)
        except UsageError:
            if not self._last or time.monotonic() - self._seen_s > _PATIENCE_S:
                raise
        else:
            self._seen_s = time.monotonic()
        return self._last


def _slots(n_threads: int, budget_bytes: int) -> int:
    """Return how many tasks the cluster can do at a time. Raises UsageError when no node has room for one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n_slots = sum(min(int(node.get("CPU", 0) // n_threads), int(node.get("memory", 0) // budget_bytes)) for node in nodes)
    if n_slots:
        return n_slots
    largest: dict[str, float] = max(nodes, key=lambda node: node.get("memory", 0), default={})
    raise UsageError(
        f"no node of the cluster has {counted(n_threads, 'core')} and {budget_bytes >> 20:,} MiB of memory",
        option="--ray",
        allowed=f"what a node has: {int(largest.get('CPU', 0))} cores, {int(largest.get('memory', 0)) >> 20:,} MiB",
        next_step="fewer --threads, or less --memory",
    )
