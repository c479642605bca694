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
from tokmill.core.system.current import SYSTEM
from tokmill.core.system.refusals import explained

if TYPE_CHECKING:
    from collections.abc import Callable

end_with_parent, name_process = SYSTEM.end_with_parent, SYSTEM.name_process


def error_of(event: Failed) -> TokmillError:
    """Return the error that a child reported."""
    cls = error_classes().get(event.error, TokmillError)
    error = cls(event.what, where=event.where, allowed=event.allowed, next_step=event.next_step, resumes=event.resumes)
    error.option, error.suggested, error.path = event.option, event.suggested, event.path
    return error


class Parent:
    """The parent process, as its child sees it: the pipe of the job, and the pipe of the answers."""

    def __init__(self, job_fd: int, event_fd: int) -> None:
        # Ctrl-C reaches every process of the terminal; the parent decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        SYSTEM.mark_for_oom_killer()
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
