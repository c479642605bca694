"""Runs a job in a child process and passes its events to the observers.

The child may be killed or abort at any moment (an engine aborts when it runs out of memory). It is then started again with smaller
batches and resumes from the journal, until it has died three times at one place of the corpus. A coordinator that loses a worker
first commits all that lies before the range that it lost: so deaths at different places are told apart by where commits end.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

import msgspec

from tokmill.core.errors import Interrupted, TokmillError, WorkerDiedError
from tokmill.core.events import AnyEvent, Committed, Failed, Finished, Restarted, Started
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import STDIN
from tokmill.core.system.child import Child, start_child
from tokmill.core.system.process import error_of
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.config import Job
    from tokmill.core.protocols import Observer

_ATTEMPTS = 3
"""Deaths at one place of the corpus after which the run ends."""
_SMALLEST_BATCH_BYTES = 64 << 10
_STOPPING = "stopping: what is done so far is committed first (Ctrl-C again ends at once)"


class LocalRunner:
    """Implements `protocols.Runner` on this machine. As a context, it has the first child at once, so that what the child has to
    import (0.2 s) is imported while the job is planned.
    """

    def __init__(self, module: str = "tokmill.run.coordinator") -> None:
        """module: what the child runs."""
        self._module = module
        self._ready: Child | None = None

    def __enter__(self) -> Self:
        self._ready = start_child(self._module)
        return self

    def __exit__(self, *_: object) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.end()

    def run(self, job: Job, observers: Sequence[Observer]) -> Finished:
        """Run the job to its end. Raises TokmillError; KeyboardInterrupt becomes a checkpoint and then Interrupted."""
        decoder, reporter = msgspec.json.Decoder(AnyEvent), ProgressReporter(observers)
        stdin_begin = _stdin_position()
        position = place = deaths = 0
        attempt = 1
        while True:
            child, self._ready = self._ready or Child(self._module), None
            child.on_interrupt = lambda: reporter.notice(_STOPPING)
            started = False
            try:
                child.ask(msgspec.json.encode(job))
                for line in child.lines():
                    event = decoder.decode(line)
                    if isinstance(event, Started):
                        started, position = True, event.resumed_bytes
                    elif isinstance(event, Committed):
                        position = event.counts.bytes_in
                    reporter.emit(event)
                    if isinstance(event, Finished):
                        return event
                    if isinstance(event, Failed):
                        raise error_of(event)
            finally:
                child.end()
            if child.interrupts:
                raise Interrupted(
                    "interrupted",
                    where=job.destination or job.out,
                    allowed="stopping at any time",
                    next_step="run the same command again",
                    resumes=_has_begun(job),
                )
            # What kills within a range may let some of it be committed, more each time as batches become smaller.
            if position >= place + 2 * job.resources.range_bytes:
                place, deaths = position, 0
            deaths += 1
            if deaths >= _ATTEMPTS or not _can_read_again(job, stdin_begin):
                raise _died(child, job, deaths, started=started)
            attempt += 1
            job = _smaller(job, keep_fresh=not started)
            reporter.emit(Restarted(cause=child.cause(), attempt=attempt, batch_bytes=job.resources.batch_bytes))


def _has_begun(job: Job) -> bool:
    """Whether the child left something to continue from, or that cannot be seen."""
    # Here, so that nobody else loads it.
    from tokmill.output import is_begun, output_directory

    try:
        return is_begun(output_directory(job))
    except (OSError, TokmillError):
        return True


def _can_read_again(job: Job, stdin_begin: int | None) -> bool:
    """Whether what a dead process had read can be read again: the bytes of a pipe are gone with it."""
    pipes = [i for i in job.content.inputs if i.size_bytes is None]
    if not pipes:
        return True
    if stdin_begin is None or any(i.path != STDIN for i in pipes):
        return False
    os.lseek(0, stdin_begin, os.SEEK_SET)
    return True


def _stdin_position() -> int | None:
    """Return the position of standard input, which need not be its beginning; None if it cannot be read twice."""
    try:
        return os.lseek(0, 0, os.SEEK_CUR)
    except OSError:
        return None


def _smaller(job: Job, *, keep_fresh: bool) -> Job:
    resources = job.resources
    batch_bytes = max(_SMALLEST_BATCH_BYTES, resources.batch_bytes // 2)
    smaller = msgspec.structs.replace(
        resources,
        batch_bytes=batch_bytes,
        arena_bytes=resources.arena_bytes * batch_bytes // resources.batch_bytes,
        reset_above_bytes=resources.reset_above_bytes * 3 // 4,
    )
    return msgspec.structs.replace(job, resources=smaller, fresh=job.fresh and keep_fresh)


def _died(child: Child, job: Job, deaths: int, *, started: bool) -> WorkerDiedError:
    words = child.last_words
    remedy = "allow more --memory or fewer --threads" if started else "repair what its last words name"
    is_piped = any(source.size_bytes is None for source in job.content.inputs)
    return WorkerDiedError(
        f"a process of the run died ({child.cause()})"
        + (f", {counted(deaths, 'time')} at the same place" if deaths > 1 else "")
        + (f"; its last words: {words}" if words else ""),
        where=job.out,
        allowed="an end of the run in no other way than its own"
        + ("; what came through a pipe cannot be read again, so it was not started again" if is_piped else ""),
        next_step=f"{remedy}, then run the same command again" + (", with the same bytes through the pipe," if is_piped else ""),
        resumes=True,
    )
