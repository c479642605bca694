"""A child process that answers one question in lines of JSON, seen from both sides: `python -m MODULE JOB_FD EVENT_FD`.

The pipe that carries the question stays open as a lifeline: the line `stop` asks for an orderly end, and its end ends the child.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING

import msgspec

from tokmill.core.errors import TokmillError, error_classes
from tokmill.core.events import PARTS_OF_ERROR, Failed
from tokmill.core.system.durable import write_all
from tokmill.core.system.refusals import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_ENVIRONMENT = {
    # Arrays of a batch come from the heap and are used again: with the default threshold each is mapped and faulted again
    # (splitting 2 MB chunks: 1.1 GB/s against 2.0).
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    # A thread's heap that ends where a batch begins would otherwise be mapped and unmapped with each batch.
    "MALLOC_TOP_PAD_": str(16 << 20),
    # numpy is used for copies and masks only; a BLAS thread pool would cost memory for nothing.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


_LAST_BYTES, _LAST_LINES = 2000, 4
"""How much of the end of what a child wrote to standard error is shown in a message."""
_PATIENCE_S = 60.0
"""A child that was asked to end tells of its last commit within some seconds; one that is silent for so long is stuck."""


class Child:
    """A child process, as its parent sees it. `end` it."""

    def __init__(self, module: str) -> None:
        """Start it: it imports what it needs, and waits for a question."""
        # Here, so that the child does not load it.
        import subprocess

        self.interrupts = 0
        """How often a person asked for the end; the first time is passed on to the child."""
        self.on_interrupt: Callable[[], None] = lambda: None
        """Called the first time, when it was passed on."""
        self.last_words = ""
        """The end of what it wrote to standard error, once it has ended."""
        self._is_asked = False
        with ExitStack() as ours, ExitStack() as its:
            job_read, self._job_write = _pipe(its, ours)
            event_write, self._event_read = reversed(_pipe(ours, its))
            self._stderr = ours.enter_context(_scratch())
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(job_read), str(event_write)],
                pass_fds=(job_read, event_write),
                stderr=self._stderr,
                stdout=subprocess.DEVNULL,
                env={**_ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(_module_path())},
            )
            # From now on `end` closes them.
            ours.pop_all()

    def ask(self, question: bytes) -> None:
        """Ask it, once. question: one line of JSON."""
        self._is_asked = True
        self._send(question)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of its answer, until it ends."""
        tail = b""
        while chunk := self._read():
            *lines, tail = (tail + chunk).split(b"\n")
            yield from lines

    def _read(self) -> bytes:
        while True:
            try:
                if self.interrupts and not _has_input(self._event_read, _PATIENCE_S):
                    # It was asked to end and says nothing any more: what is committed stays.
                    self._process.kill()
                return os.read(self._event_read, 1 << 16)
            except KeyboardInterrupt:
                self.interrupts += 1
                if self.interrupts > 1:
                    raise
                self._send(b"stop")
                self.on_interrupt()

    def _send(self, line: bytes) -> None:
        try:
            write_all(self._job_write, line + b"\n")
        except BrokenPipeError:
            # The child is dead; what is read from it next says so.
            return

    def end(self) -> None:
        """Make sure that the process is gone, and close everything."""
        import subprocess

        if not self._is_asked:
            # It has nothing to lose, and need not import to the end what it will not use.
            self._process.kill()
        os.close(self._job_write)
        os.close(self._event_read)
        try:
            self._process.wait(timeout=10)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _LAST_BYTES))
        words = self._stderr.read().decode("utf-8", "replace").strip()
        # Of a traceback, what says what happened: the last line; of an engine's, those that name no place in code.
        lines = [line for line in words.splitlines() if not line.startswith(" ")]
        self.last_words = "\n".join(lines[-1:] if "Traceback (most recent call last)" in words else lines[-_LAST_LINES:])
        self._stderr.close()

    def cause(self) -> str:
        """Return how the process ended, for a message."""
        code = self._process.returncode
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


def _pipe(of_reading: ExitStack, of_writing: ExitStack) -> tuple[int, int]:
    """Return the ends of a new pipe; each is closed by its stack."""
    ends = os.pipe()
    for stack, end in zip((of_reading, of_writing), ends, strict=True):
        stack.callback(os.close, end)
    return ends


def _scratch() -> IO[bytes]:
    """A file for what the child writes to standard error: in memory, since a disk may be read-only; else on a disk, or nowhere."""
    try:
        return open(os.memfd_create("tokmill-stderr"), "w+b")
    except (OSError, AttributeError):
        pass
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.devnull, "w+b")


def _has_input(fd: int, patience_s: float) -> bool:
    """Return whether something can be read, or the other end is gone, within so many seconds. Any number of files may be open."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(patience_s * 1000))


def _module_path() -> list[str]:
    """Where the child finds its modules: where this process does, but not among the files of the directory it was started in or
    of the script: a corpus may well have a `tokenize.py`.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    first = [] if sys.flags.safe_path else sys.path[:1]
    found = [path for path in sys.path if path and path not in first]
    return found if package in found else [*found, package]


def error_of(event: Failed) -> TokmillError:
    """Return the error that a child reported."""
    cls = error_classes().get(event.error, TokmillError)
    error = cls(event.what, where=event.where, allowed=event.allowed, next_step=event.next_step, resumes=event.resumes)
    error.option, error.suggested, error.path = event.option, event.suggested, event.path
    return error


class Parent:
    """The parent process, as its child sees it: the pipe of the job, and the pipe of the answers."""

    def __init__(self, job_fd: int, event_fd: int) -> None:
        # Here, so that the parent does not load it.
        from tokmill.core.system.memory import mark_for_oom_killer

        # Ctrl-C reaches every process of the terminal; the parent decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        mark_for_oom_killer()
        self._lifeline: IO[bytes] = os.fdopen(job_fd, "rb")
        self._events = os.fdopen(event_fd, "wb", buffering=0)
        self._writing = threading.Lock()

    def question(self) -> bytes:
        """Return the parent's question; end the process when it has none."""
        question = self._lifeline.readline()
        if not question.endswith(b"\n"):
            os._exit(0)
        return question

    def emit(self, answer: msgspec.Struct) -> None:
        """Send one line; from any thread."""
        data = memoryview(msgspec.json.encode(answer) + b"\n")
        with self._writing:
            while data:
                data = data[self._events.write(data) or 0 :]

    def watch(self, on_stop: Callable[[], None]) -> None:
        """From now on, call `on_stop` (in a thread) when the parent asks for the end, and exit at once when the parent is dead."""
        threading.Thread(target=self._watch, args=(on_stop,), name="lifeline", daemon=True).start()

    def _watch(self, on_stop: Callable[[], None]) -> None:
        for line in self._lifeline:
            if line.strip() == b"stop":
                on_stop()
        os._exit(1)


def serve_once(answer: Callable[[bytes], msgspec.Struct]) -> None:
    """Answer the parent's one question and end the process; called by `__main__` of a module that `Child` starts.

    answer: takes the question, one line of JSON; what it raises is reported to the parent.
    """
    parent = Parent(int(sys.argv[1]), int(sys.argv[2]))
    question = parent.question()
    try:
        parent.watch(lambda: os._exit(1))
        parent.emit(answer(question))
    except BaseException as error:  # noqa: BLE001  the parent is told of whatever it is, panics of engines too
        # Such a process commits nothing that the same command could continue from.
        parent.emit(msgspec.structs.replace(failed_event(error), resumes=False))
    sys.stderr.flush()
    os._exit(0)


def failed_event(error: BaseException) -> Failed:
    """Return the event that carries an error to the parent."""
    if not isinstance(error, TokmillError):
        traceback.print_exception(error)
        next_step = "report it if it happens twice; run the same command again"
        error = explained(error, "the process that works", next_step=next_step)
        error.resumes = True
    parts = {name: _sendable(getattr(error, name)) for name in PARTS_OF_ERROR}
    return Failed(error=type(error).__name__, **{**parts, "what": parts["what"] or ""}, resumes=error.resumes)  # type: ignore[arg-type]


def _sendable(text: str | None) -> str | None:
    r"""Text that JSON can hold: a path's bytes that are not UTF-8 become `\xHH`."""
    return None if text is None else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
