"""What every process that tokenizes is made of: batches read and encoded under the memory guard, and the entry of the process.

The process is `python -m MODULE JOB_FD EVENT_FD`. It reads its job as one line of JSON from JOB_FD and writes events as JSON lines
to EVENT_FD. JOB_FD stays open as a lifeline: the line `stop` asks for an orderly end, and its end (the parent is dead) ends the
process at once, so that no orphan goes on writing. It touches neither standard output nor, unless the engine itself does, standard
error.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import MIB, Job
from tokmill.core.errors import Interrupted, MemoryBudgetError, TokmillError
from tokmill.core.events import AnyEvent, CachesReset, Notice, Progress
from tokmill.core.system.budget import CacheReset
from tokmill.core.system.memory import cgroup_limit_bytes, data_bytes, give_way, machine_bytes, rss_bytes
from tokmill.core.system.process import Parent, failed_event
from tokmill.core.system.refusals import optional
from tokmill.encode import cutter_of, disable_awkward, load_encoder, reference_of, unknown_id
from tokmill.read import CorpusReader
from tokmill.run.audit import Auditor
from tokmill.run.encode_batch import EncodeStage
from tokmill.run.memory_guard import Guard, Limits, MemorySample, reserve_bytes, take_memory_sample
from tokmill.run.pipeline import Flow, Pipeline
from tokmill.store import register_urls

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tokmill.core.protocols import Cutter, Reader
    from tokmill.core.records import Counts, Cursor, EncodedBatch
    from tokmill.core.system.tree import Directory

_STACK_BYTES = 2 * MIB
"""Stack of a thread; the usual 8 MiB are never used, but count against the limit on data."""
_ROOM_BYTES = 12 * MIB
"""How far data may grow beyond the budget before the next sample: stacks of threads."""

_TICK_S = 0.2

COMMITTED = "everything so far is committed"


class EncodingProcess:
    """One job, carried out in this process. Implements `memory_guard.Actions`."""

    RESUMES: bool
    """Whether work that ends early is committed, and continued by the same command; otherwise nothing was replaced."""

    def __init__(self, job: Job, emit: Callable[[AnyEvent], None], look: Callable[[], MemorySample] = take_memory_sample) -> None:
        """job: what to do. emit: takes events, from any thread. look: how the guard samples memory."""
        self._job = job
        self._emit = emit
        self._look_at_memory = look
        self._flow = Flow(job.resources.in_flight_bytes)
        self._cache_reset = CacheReset(job.resources.reset_above_bytes, self._on_caches_reset)
        self._leaving: str | None = None
        self._stopped = False
        self._started_s = time.monotonic()

    def run(self) -> None:
        """Carry out the job and emit Finished. Raise TokmillError."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ask for a checkpoint and an orderly end; from any thread."""
        self._stopped = True
        self._flow.stop()

    def reset_caches(self) -> None:
        """Let the encoder threads drop their caches."""
        self._cache_reset.ask()

    def shrink(self) -> None:
        """Halve the bytes that may be between reader and writer."""
        self._flow.shrink()
        self._tell_all(Notice(text="memory is short: fewer batches on their way"))

    def pause(self, *, paused: bool) -> None:
        """Pause reading, or continue."""
        self._flow.pause(paused=paused)
        self._tell_all(Notice(text="memory is short: reading is paused" if paused else "reading goes on"))

    def leave(self, why: str) -> None:
        """Commit and end, for lack of memory."""
        self._leaving = why
        self._flow.stop()

    def _ended(self, directory: Directory) -> TokmillError:
        """Return the error that says why the work ended early."""
        state = COMMITTED if self.RESUMES else "nothing was replaced"
        again = "run the same command again" if self.RESUMES else "run the command again"
        if self._leaving is None:
            what, allowed = f"interrupted; {state}", "stopping at any time"
            return Interrupted(what, where=str(directory), allowed=allowed, next_step=again, resumes=self.RESUMES)
        return MemoryBudgetError(
            f"memory ran low: {self._leaving}; {state}",
            where=str(directory),
            allowed="the budget (--memory), and a reserve that the machine keeps",
            next_step=f"end other programs, or change --memory; then {again}",
            resumes=self.RESUMES,
        )

    @cached_property
    def _cutter(self) -> Cutter | None:
        return cutter_of(self._job.content.tokenizer)

    def _reader(self) -> CorpusReader:
        content = self._job.content
        return CorpusReader(content, self._job.resources, self._cutter)

    @contextmanager
    def _encoded(self, reader: Reader, start: Cursor, on_tick: Callable[[], None]) -> Iterator[Generator[EncodedBatch, None, None]]:
        """Yield encoded batches from `start` on while the guard watches memory. on_tick: called often, to tell the progress."""
        results = self._pipeline(reader, on_tick).results(start, _TICK_S)
        reserve = reserve_bytes(min(machine_bytes(), cgroup_limit_bytes() or 1 << 60))
        limits = Limits(worker_bytes=self._job.resources.worker_bytes, reserve_bytes=reserve)
        guard = Guard(limits, self, self._look_at_memory)
        guard.start()
        try:
            yield results
        finally:
            guard.stop()
            results.close()

    def _pipeline(self, reader: Reader, on_tick: Callable[[], None]) -> Pipeline:
        content, resources = self._job.content, self._job.resources
        reference = reference_of(content.tokenizer)
        fraction = resources.audit_fraction if resources.engine != reference else 0.0
        auditor = Auditor(lambda: load_encoder(content.tokenizer, reference), self._cutter, fraction, reference)
        unknown = unknown_id(content.tokenizer)
        return Pipeline(
            reader,
            lambda: EncodeStage(content, load_encoder(content.tokenizer, resources.engine), auditor, unknown),
            n_threads=resources.n_threads,
            flow=self._flow,
            cache_reset=self._cache_reset,
            on_tick=on_tick,
        )

    def _tell(self, elapsed_s: float, position_bytes: int, counts: Counts) -> None:
        self._tell_all(Progress(elapsed_s=elapsed_s, position_bytes=position_bytes, counts=counts, rss_bytes=rss_bytes()))

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _tell_all(self, event: AnyEvent) -> None:
        """Emit an event of the work itself, from any thread."""
        self._emit(event)

    def _on_caches_reset(self, before: int, after: int) -> None:
        self._tell_all(CachesReset(elapsed_s=self._elapsed_s, rss_before_bytes=before, rss_after_bytes=after))


def serve(process: type[EncodingProcess], job_fd: int, event_fd: int) -> None:
    """Read a job, carry it out and exit: the whole life of a process of this kind."""
    parent = Parent(job_fd, event_fd)
    try:
        _carry_out(process, parent)
    except BaseException as error:  # noqa: BLE001  the parent is told of whatever it is, panics of engines too
        parent.emit(failed_event(error))
    sys.stderr.flush()
    # Threads may still wait for standard input or hold the engine; everything durable is done.
    os._exit(0)


def _carry_out(process: type[EncodingProcess], parent: Parent) -> None:
    with optional():
        threading.stack_size(_STACK_BYTES)
    disable_awkward()
    job = msgspec.json.decode(parent.question(), type=Job)
    if job.resources.nice:
        give_way()
    register_urls(job.urls)
    _limit_growth(job.resources.worker_bytes)

    def look() -> MemorySample:
        _limit_growth(job.resources.worker_bytes)
        return take_memory_sample()

    worker = process(job, parent.emit, look)
    # Ctrl-C ends the program that feeds standard input, too: seen here, its end is not taken for the end of the corpus.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda _signum, _frame: worker.stop())
    parent.watch(worker.stop)
    worker.run()


def _limit_growth(budget_bytes: int) -> None:
    """Let an allocation beyond the budget fail here, in a process that can be resumed, before the machine runs out of memory.

    The system limits data, touched or not, and memory that was given back to it may still count (up to 400 MiB measured): so the
    limit is what counts now and what resident memory may still grow by, and is set again with every sample of the guard.
    """
    resident, data = rss_bytes(), data_bytes()
    if data is None:
        return
    most = data + max(0, budget_bytes - resident) + _ROOM_BYTES
    with optional():
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
