"""The other side of `core/system/child.py`: the child, as it sees its parent, and errors on their way between them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import IO, TYPE_CHECKING

import msgspec

from tokmill.core.errors import TokmillError, error_classes
from tokmill.core.events import PARTS_OF_ERROR, Failed
from tokmill.core.system.refusals import explained, optional

if TYPE_CHECKING:
    from collections.abc import Callable


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


_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def end_with_parent(parent: int) -> None:
    """Let the kernel, where it can, kill this process as soon as its parent is dead: even a stopped one writes nothing more.

    parent: its id. It must have forked this process in its main thread: for the kernel, the thread that forked is the parent.
    """
    import ctypes

    with optional():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It was dead before.
        os._exit(1)


def name_process(name: str) -> None:
    """Let `top` and `ps -o comm` show this process by a name of at most 15 bytes, where the kernel can."""
    import ctypes

    with optional():
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


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
        import traceback

        traceback.print_exception(error)
        next_step = "report it if it happens twice; run the same command again"
        error = explained(error, "the process that works", next_step=next_step)
        error.resumes = True
    parts = {name: _sendable(getattr(error, name)) for name in PARTS_OF_ERROR}
    return Failed(error=type(error).__name__, **{**parts, "what": parts["what"] or ""}, resumes=error.resumes)  # type: ignore[arg-type]


def _sendable(text: str | None) -> str | None:
    r"""Text that JSON can hold: a path's bytes that are not UTF-8 become `\xHH`."""
    return None if text is None else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
