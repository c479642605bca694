"""The child's end of the line: reads its question, answers in lines of JSON, and dies with its parent."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from typing import IO, TYPE_CHECKING

import msgspec

from tokmill.core.errors import MemoryBudgetError, TokmillError
from tokmill.core.events import PARTS_OF_ERROR, Failed
from tokmill.core.system.memory import mark_for_oom_killer

if TYPE_CHECKING:
    from collections.abc import Callable


class Line:
    """The two pipes to the parent."""

    def __init__(self, job_fd: int, event_fd: int) -> None:
        # Ctrl-C reaches every process of the terminal; the parent decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        mark_for_oom_killer()
        self._lifeline: IO[bytes] = os.fdopen(job_fd, "rb")
        self._events = os.fdopen(event_fd, "wb", buffering=0)
        self._writing = threading.Lock()

    def question(self) -> bytes:
        """What the parent asks. Does not return when the parent has nothing to ask."""
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
        """From now on: `on_stop` when the parent asks for the end, in a thread of its own; the end at once when it is dead."""
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
    line = Line(int(sys.argv[1]), int(sys.argv[2]))
    question = line.question()
    line.watch(lambda: os._exit(1))
    try:
        line.emit(answer(question))
    except BaseException as error:  # noqa: BLE001  the parent is told of whatever it is, panics of engines too
        line.emit(failed_event(error))
    sys.stderr.flush()
    os._exit(0)


def failed_event(error: BaseException) -> Failed:
    """The event that carries an error to the parent."""
    if isinstance(error, MemoryError):
        error = MemoryBudgetError(
            "the worker ran out of memory",
            where="the process that tokenizes",
            allowed="what --memory and the machine allow",
            next_step="raise --memory and run the same command again",
            resumes=True,
        )
    if not isinstance(error, TokmillError):
        traceback.print_exception(error)
        error = TokmillError(
            f"unforeseen {type(error).__name__}: {error}",
            where="the process that works",
            allowed="no error of this kind: it is a fault of tokmill, or of what it stands on",
            next_step="report it if it happens twice; run the same command again",
            resumes=True,
        )
    parts = {name: _sendable(getattr(error, name)) for name in PARTS_OF_ERROR}
    return Failed(error=type(error).__name__, **{**parts, "what": parts["what"] or ""}, resumes=error.resumes)  # type: ignore[arg-type]


def _sendable(text: str | None) -> str | None:
    r"""Text that JSON can hold: a path's bytes that are not UTF-8 become `\xHH`."""
    return None if text is None else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
