"""Runs a job in a child process and brings its events to the observers.

The child may be killed or abort at any moment (the engine aborts when it runs out of memory): it is started again, with smaller
batches, and resumes from the journal, as long as each attempt commits something new.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from tokmill.child import Child, error_of
from tokmill.errors import Interrupted, WorkerDiedError
from tokmill.types import STDIN, AnyEvent, Committed, Failed, Finished, Restarted, Started

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.config import Job
    from tokmill.protocols import Observer

_ATTEMPTS = 3
"""Deaths in a row without a commit in between after which the run gives up."""
_SMALLEST_BATCH_BYTES = 64 << 10


class LocalRunner:
    """Implements `protocols.Runner` on this machine."""

    def run(self, job: Job, observers: Sequence[Observer]) -> Finished:
        """Run the job to its end. Raises TokmillError; KeyboardInterrupt becomes a checkpoint and then Interrupted."""
        decoder = msgspec.json.Decoder(AnyEvent)
        deaths = 0
        attempt = 1
        while True:
            child = Child("tokmill.worker", msgspec.json.encode(job))
            committed = started = False
            try:
                for line in child.lines():
                    event = decoder.decode(line)
                    started |= isinstance(event, Started)
                    committed |= isinstance(event, Committed)
                    _tell(observers, event)
                    if isinstance(event, Finished):
                        return event
                    if isinstance(event, Failed):
                        raise error_of(event)
            finally:
                child.end()
            if child.interrupts:
                raise _interrupted(job)
            deaths = 1 if committed else deaths + 1
            if deaths >= _ATTEMPTS or not _can_read_again(job):
                raise _died(child, job, deaths)
            attempt += 1
            job = _smaller(job, keep_fresh=not started)
            _tell(observers, Restarted(cause=child.cause(), attempt=attempt, batch_bytes=job.resources.batch_bytes))


def _can_read_again(job: Job) -> bool:
    """Whether what a dead worker had read can be had once more: a pipe's bytes are gone with it."""
    if all(i.path != STDIN for i in job.content.inputs):
        return True
    try:
        os.lseek(0, 0, os.SEEK_SET)
    except OSError:
        return False
    return True


def _interrupted(job: Job) -> Interrupted:
    return Interrupted("interrupted", where=job.out, next_step="run the same command again: it resumes")


def _tell(observers: Sequence[Observer], event: AnyEvent) -> None:
    for observer in observers:
        observer.on_event(event)


def _smaller(job: Job, *, keep_fresh: bool) -> Job:
    resources = job.resources
    batch_bytes = max(_SMALLEST_BATCH_BYTES, resources.batch_bytes // 2)
    smaller = msgspec.structs.replace(
        resources,
        batch_bytes=batch_bytes,
        in_flight_bytes=resources.in_flight_bytes // 2,
        renew_above_bytes=resources.renew_above_bytes * 3 // 4,
    )
    return msgspec.structs.replace(job, resources=smaller, fresh=job.fresh and keep_fresh)


def _died(child: Child, job: Job, deaths: int) -> WorkerDiedError:
    words = child.last_words
    return WorkerDiedError(
        f"the worker process died ({child.cause()}), {deaths} times without getting any further"
        + (f"; its last words: {words}" if words else ""),
        where=job.out,
        next_step="run the same command again with more --memory or fewer --threads: it resumes",
    )
