"""Runs a job in a child process and brings its events to the observers.

The child may be killed or abort at any moment (the engine aborts when it runs out of memory): it is started again, with smaller
batches, and resumes from the journal, as long as each attempt commits something new.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from typing import IO, TYPE_CHECKING

import msgspec

from tokmill.errors import TokmillError, WorkerDiedError, error_classes
from tokmill.types import AnyEvent, Committed, Failed, Finished, Restarted, Started

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokmill.config import Job
    from tokmill.protocols import Observer

_ATTEMPTS = 3
"""Deaths in a row without a commit in between after which the run gives up."""
_SMALLEST_BATCH_BYTES = 64 << 10
_ENVIRONMENT = {
    # Arrays of a batch come from the heap and are used again: with the default threshold each is mapped and faulted anew
    # (splitting 2 MB chunks: 1.1 GB/s against 2.0).
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    # numpy is used for copies and masks only; a BLAS thread pool would cost memory for nothing.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class LocalRunner:
    """Implements `protocols.Runner` on this machine."""

    def run(self, job: Job, observers: Sequence[Observer]) -> Finished:
        """Run the job to its end. Raises TokmillError; KeyboardInterrupt becomes a checkpoint and then Interrupted."""
        deaths = 0
        attempt = 1
        while True:
            child = _Child(job)
            committed = started = False
            try:
                for event in child.events():
                    started |= isinstance(event, Started)
                    committed |= isinstance(event, Committed)
                    _tell(observers, event)
                    if isinstance(event, Finished):
                        return event
                    if isinstance(event, Failed):
                        raise _error(event)
            finally:
                child.end()
            deaths = 1 if committed else deaths + 1
            if deaths >= _ATTEMPTS:
                raise _died(child, job, deaths)
            attempt += 1
            job = _smaller(job, keep_fresh=not started)
            _tell(observers, Restarted(cause=child.cause(), attempt=attempt, batch_bytes=job.resources.batch_bytes))


class _Child:
    """One worker process."""

    def __init__(self, job: Job) -> None:
        job_read, self._job_write = os.pipe()
        self._event_read, event_write = os.pipe()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed in end()
        self._interrupts = 0
        self.last_words = ""
        """The end of what it wrote to standard error, once it has ended."""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tokmill.worker", str(job_read), str(event_write)],
                pass_fds=(job_read, event_write),
                stderr=self._stderr,
                stdout=subprocess.DEVNULL,
                env={**_ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        finally:
            os.close(job_read)
            os.close(event_write)
        self._send(msgspec.json.encode(job))

    def events(self) -> Iterator[AnyEvent]:
        """Events until the worker ends."""
        decoder = msgspec.json.Decoder(AnyEvent)
        tail = b""
        while chunk := self._read():
            *lines, tail = (tail + chunk).split(b"\n")
            for line in lines:
                yield decoder.decode(line)

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._event_read, 1 << 16)
            except KeyboardInterrupt:
                self._interrupts += 1
                if self._interrupts > 1:
                    raise
                self._send(b"stop")

    def _send(self, line: bytes) -> None:
        try:
            data = memoryview(line + b"\n")
            while data:
                data = data[os.write(self._job_write, data) :]
        except BrokenPipeError:
            # The worker is dead; what is read from its events next says so.
            return

    def end(self) -> None:
        """Make sure that the process is gone, and close everything."""
        os.close(self._job_write)
        os.close(self._event_read)
        try:
            self._process.wait(timeout=10)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 2000))
        self.last_words = self._stderr.read().decode("utf-8", "replace").strip()
        self._stderr.close()

    def cause(self) -> str:
        """How the process ended, for a message."""
        code = self._process.returncode
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


def _tell(observers: Sequence[Observer], event: AnyEvent) -> None:
    for observer in observers:
        observer.on_event(event)


def _error(event: Failed) -> TokmillError:
    cls = error_classes().get(event.error, TokmillError)
    return cls(event.what, where=event.where, allowed=event.allowed, next_step=event.next_step)


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


def _died(child: _Child, job: Job, deaths: int) -> WorkerDiedError:
    words = child.last_words
    return WorkerDiedError(
        f"the worker process died {deaths} times without getting any further ({child.cause()})"
        + (f"; its last words: {words}" if words else ""),
        where=job.out,
        next_step="run the same command again with more --memory or fewer --threads: it resumes",
    )
