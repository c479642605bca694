"""What the coordinator of a run and the process that repairs share: the memory guard, the end, and the entry of the process.

The process is `python -m MODULE JOB_FD EVENT_FD`. It reads its job as one line of JSON from JOB_FD and writes events as JSON lines
to EVENT_FD. JOB_FD stays open as a lifeline: the line `stop` asks for an orderly end, and its end (the parent is dead) ends the
process at once, so that no orphan goes on writing. It touches neither standard output nor, unless the engine itself does, standard
error.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tokmill.core.config import MIB
from tokmill.core.errors import Interrupted, MemoryBudgetError, TokmillError
from tokmill.core.events import AnyEvent, Notice, Progress
from tokmill.core.system.memory import cgroup_limit_bytes, machine_bytes, rss_bytes
from tokmill.core.system.process import Parent, failed_event, name_process
from tokmill.core.system.refusals import optional
from tokmill.encode import disable_awkward, load_encoder, reference_of
from tokmill.run.audit import Auditor
from tokmill.run.memory_guard import Guard, Limits, MemorySample, reserve_bytes, take_memory_sample
from tokmill.run.pool import LostWorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokmill.core.config import Job
    from tokmill.core.protocols import Cutter
    from tokmill.core.records import Counts
    from tokmill.core.system.tree import Directory

_STACK_BYTES = 2 * MIB
"""Stack of a thread; the usual 8 MiB are never used, but count against the limit on data."""

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
        self._leaving: str | None = None
        self._stopped = False
        self._started_s = time.monotonic()

    def run(self) -> None:
        """Carry out the job and emit Finished. Raise TokmillError."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ask for a checkpoint and an orderly end; from any thread."""
        self._stopped = True

    def reset_caches(self) -> None:
        """Let engines drop their caches."""
        raise NotImplementedError

    def pause(self, *, paused: bool) -> None:
        """Pause reading, or continue."""
        self._tell_all(Notice(text="memory is short: reading is paused" if paused else "reading goes on"))

    def leave(self, why: str) -> None:
        """Commit and end, for lack of memory."""
        self._leaving = why

    @property
    def _is_ending(self) -> bool:
        return self._stopped or self._leaving is not None

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

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let the guard watch memory meanwhile."""
        reserve = reserve_bytes(min(machine_bytes(), cgroup_limit_bytes() or 1 << 60))
        limits = Limits(child_bytes=self._job.resources.child_bytes, reserve_bytes=reserve)
        guard = Guard(limits, self, self._look_at_memory)
        guard.start()
        try:
            yield
        finally:
            guard.stop()

    def _tell(self, elapsed_s: float, position_bytes: int, counts: Counts) -> None:
        self._tell_all(Progress(elapsed_s=elapsed_s, position_bytes=position_bytes, counts=counts, rss_bytes=self._rss_bytes()))

    def _rss_bytes(self) -> int:
        """Return the memory of all that works here."""
        return rss_bytes()

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _tell_all(self, event: AnyEvent) -> None:
        """Emit an event of the work itself, from any thread."""
        self._emit(event)


def auditor_of(job: Job, cutter: Cutter | None) -> Auditor:
    """Return what chooses the samples of a run and compares them; its fraction is 0 where the engine is the reference."""
    tokenizer = job.content.tokenizer
    reference = reference_of(tokenizer)
    fraction = job.resources.audit_fraction if job.resources.engine != reference else 0.0
    return Auditor(lambda: load_encoder(tokenizer, reference), cutter, fraction, reference)


def serve(carry_out: Callable[[Parent], None], job_fd: int, event_fd: int) -> None:
    """Carry out a job and exit: the whole life of a process of this kind. carry_out: takes the job from the parent."""
    parent = Parent(job_fd, event_fd)
    try:
        name_process("tokmill-coord")
        with optional():
            threading.stack_size(_STACK_BYTES)
        disable_awkward()
        carry_out(parent)
    except LostWorkerError as error:
        # The parent starts again, as if it had been this process.
        os.write(2, f"{error}\n".encode())
        _end_as(error.status)
    except BaseException as error:  # noqa: BLE001  the parent is told of whatever it is, panics of engines too
        parent.emit(failed_event(error))
    sys.stderr.flush()
    # Threads may still wait for something; everything durable is done.
    os._exit(0)


def _end_as(status: int) -> None:
    """End this process as another one ended. status: as of `os.waitpid`."""
    if os.WIFSIGNALED(status):
        with suppress(OSError):
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status) or 1)


def watched(process: EncodingProcess, parent: Parent) -> None:
    """Run it; signals, and the parent, may ask for its end."""
    # Ctrl-C ends the program that feeds standard input, too: seen here, its end is not taken for the end of the corpus.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda _signum, _frame: process.stop())
    parent.watch(process.stop)
    process.run()
