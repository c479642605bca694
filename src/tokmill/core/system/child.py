"""A child process that answers one question in lines of JSON, as its parent sees it: `python -m MODULE JOB_FD EVENT_FD`.

The pipe that carries the question stays open as a lifeline: the line `stop` asks for an orderly end, and its end ends the child
(`core/system/process.py`).

A command starts its child before it imports anything, so that both import at the same time. So nothing is imported here but what
Python itself has loaded.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

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
_LOOK_S = 1.0
"""Between two looks whether a person has asked for the end, while the child is silent."""
_END_S = 10.0
"""How long a child may take to end when its answer is complete or no longer wanted."""


class Child:
    """A child process, as its parent sees it. `end` it."""

    def __init__(self, module: str) -> None:
        """Start it: it imports what it needs, and waits for a question."""
        self.module = module
        self.interrupts = 0
        """How often a person asked for the end; the first time is passed on to the child."""
        self.on_interrupt: Callable[[], None] = lambda: None
        """Called once, soon after it was passed on."""
        self.last_words = ""
        """The end of what it wrote to standard error, once it has ended."""
        self._is_asked = False
        self._has_told = False
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        """The earlier handler of each signal that is passed on."""
        self._status = 0
        opened: list[int] = []
        try:
            opened += os.pipe()
            opened += os.pipe()
            opened.append(_for_last_words())
            job_read, self._job_write, self._event_read, event_write, self._stderr = opened
            # It inherits its ends as copies, under the numbers of ours, which it does not inherit.
            its_job, its_event = self._job_write, self._event_read
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", module, str(its_job), str(its_event)],
                {**_ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(_module_path())},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, self._stderr, 2),
                    (os.POSIX_SPAWN_DUP2, job_read, its_job),
                    (os.POSIX_SPAWN_DUP2, event_write, its_event),
                ],
            )
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        os.close(job_read)
        os.close(event_write)

    def ask(self, question: bytes) -> None:
        """Ask it, once. question: one line of JSON.

        Until its end, the first signal that would raise KeyboardInterrupt asks it to stop: none cuts short what its answers cause.
        """
        self._is_asked = True
        self._send(question)
        import signal

        for signum in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(signum)
            if not callable(before) or isinstance(before, signal.Handlers):
                continue
            self._handlers[signum] = before
            try:
                signal.signal(signum, self._on_signal)
            except ValueError:
                # Not in the main thread, which alone is told of signals.
                self._handlers.clear()
                return

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        try:
            self._handlers[signum](signum, frame)
        except KeyboardInterrupt:
            self.interrupts += 1
            if self.interrupts > 1:
                raise
            self._send(b"stop")

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of its answer, until it ends."""
        tail = b""
        while chunk := self._read():
            *lines, tail = (tail + chunk).split(b"\n")
            yield from lines

    def _read(self) -> bytes:
        silent_s = 0.0
        while not _has_input(self._event_read, _LOOK_S):
            self._tell_of_interrupt()
            silent_s += _LOOK_S if self.interrupts else 0
            if silent_s >= _PATIENCE_S:
                # It was asked to end and says nothing any more: what is committed stays.
                self._kill()
        self._tell_of_interrupt()
        return os.read(self._event_read, 1 << 16)

    def _tell_of_interrupt(self) -> None:
        if self.interrupts and not self._has_told:
            self._has_told = True
            self.on_interrupt()

    def _send(self, line: bytes) -> None:
        data = memoryview(line + b"\n")
        try:
            while data:
                data = data[os.write(self._job_write, data) :]
        except BrokenPipeError:
            # The child is dead; what is read from it next says so.
            return

    def _kill(self) -> None:
        import signal

        # It is waited for only once, so the number is still its own.
        os.kill(self._pid, signal.SIGKILL)

    def end(self) -> None:
        """Make sure that the process is gone, and close everything."""
        if self._handlers:
            import signal

            for signum, before in self._handlers.items():
                signal.signal(signum, before)
        os.close(self._job_write)
        # Without a question, it has nothing to lose, and need not import to the end what it will not use.
        if not self._is_asked or not self._has_ended():
            self._kill()
        os.close(self._event_read)
        self._status = os.waitpid(self._pid, 0)[1]
        size = os.fstat(self._stderr).st_size
        words = os.pread(self._stderr, _LAST_BYTES, max(0, size - _LAST_BYTES)).decode("utf-8", "replace").strip()
        # Of a traceback, what says what happened: the last line; of an engine's, those that name no place in code.
        lines = [line for line in words.splitlines() if not line.startswith(" ")]
        self.last_words = "\n".join(lines[-1:] if "Traceback (most recent call last)" in words else lines[-_LAST_LINES:])
        os.close(self._stderr)

    def _has_ended(self) -> bool:
        """Wait a while for the end of its answer, whatever that is: with it, the process and those it started end."""
        try:
            while _has_input(self._event_read, _END_S):
                if not os.read(self._event_read, 1 << 16):
                    return True
        except KeyboardInterrupt:
            pass
        return False

    def cause(self) -> str:
        """Return how the process ended, for a message."""
        import signal

        code = os.waitstatus_to_exitcode(self._status)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


_early: list[Child] = []


def start_early(module: str) -> None:
    """Start the child that a command will need, if the system allows it now."""
    try:
        _early.append(Child(module))
    except OSError:
        # It says why when the child is needed.
        return


def start_child(module: str) -> Child:
    """Return the child that was started early, or a new one."""
    return _early.pop() if _early and _early[0].module == module else Child(module)


def end_early() -> None:
    """End the child that was started early, if nobody needed it."""
    while _early:
        _early.pop().end()


def _for_last_words() -> int:
    """Open a file for what a child writes to standard error, which is nowhere if no file can be made."""
    from tokmill.core.system.current import SYSTEM

    try:
        return SYSTEM.scratch_file()
    except OSError:
        return os.open(os.devnull, os.O_RDWR)


def _has_input(fd: int, patience_s: float) -> bool:
    """Return whether something can be read, or the other end is gone, within so many seconds. Any number of files may be open."""
    import select

    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(patience_s * 1000))


def _module_path() -> list[str]:
    """Where the child finds its modules: where this process does, but not among the files of the directory it was started in or
    of the script: a corpus may well have a `tokenize.py`.
    """
    # The directory of the package's directory.
    package = __file__
    for _ in range(4):
        package = os.path.dirname(os.path.abspath(package))
    first = [] if sys.flags.safe_path else sys.path[:1]
    found = [path for path in sys.path if path and path not in first]
    return found if package in found else [*found, package]
