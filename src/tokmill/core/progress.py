"""Progress of work in this process, as events for observers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from tokmill.core.errors import UsageError
from tokmill.core.events import AnyEvent, Notice, Progress, Started
from tokmill.core.records import Counts
from tokmill.core.system.memory import rss_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.core.protocols import Observer

AnyObserver = TypeVar("AnyObserver", bound="Observer")

_EVERY_S = 0.2


def check_observers(observers: object) -> None:
    """Raise UsageError for what is no sequence of observers."""
    wrong = (
        [each for each in observers if not callable(getattr(each, "on_event", None))]
        if isinstance(observers, list | tuple)
        else [observers]
    )
    if wrong:
        raise UsageError(
            f"{wrong[0]!r} is no observer",
            where="observers",
            allowed="a list of objects with a method on_event(event)",
            next_step="give it a class with that method, or a function as tokmill.on_progress(function)",
        )


def on_progress(call: Callable[[int, int | None], object]) -> Observer:
    """Return an observer that calls `call(done, total)` a few times a second, for a bar or a log.

    Args:
        call: Gets the bytes of the inputs (as they lie on the disk) that are done, and those of all, None where nobody knows:
            standard input. A new step of the same work begins again at its own first byte, with a total of its own. What it
            raises ends the run, as an interrupt does; the next call continues from the last commit.

    Returns:
        For `observers=[...]` of any function that takes them.
    """
    return _Call(call)


class _Call:
    """Tells a function of two numbers how far the work is. Implements `protocols.Observer`."""

    def __init__(self, call: Callable[[int, int | None], object]) -> None:
        if not callable(call):
            raise UsageError(
                f"{call!r} cannot be called",
                where="on_progress",
                allowed="a function of two numbers, done and total",
                next_step="give it a function",
            )
        self._call = call
        self._total: int | None = None

    def on_event(self, event: AnyEvent) -> None:
        """See protocols.Observer."""
        if isinstance(event, Started):
            self._total = event.total_bytes
        if isinstance(event, Started | Progress):
            self._call(event.position_bytes, self._total)


class ProgressReporter:
    """Sends events to observers; progress at most a few times a second. Times begin when it is made."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        check_observers(observers)
        self._observers = observers
        self._began_s = self._sent_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._began_s

    def emit(self, event: AnyEvent) -> None:
        """Send an event to all observers. Can be called from any thread."""
        for observer in self._observers:
            observer.on_event(event)

    def add(self, observer: AnyObserver) -> AnyObserver:
        """Add an observer and return it."""
        self._observers = [*self._observers, observer]
        return observer

    def notice(self, text: str) -> None:
        """Send a notice for a person to read."""
        self.emit(Notice(text=text))

    def started(self, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Send the event that work begins, `done_bytes` of it done by an earlier run."""
        self.emit(Started(total_bytes=total_bytes, resumed_bytes=done_bytes, position_bytes=done_bytes))

    def progress(self, position_bytes: int, counts: Counts | None = None, *, is_last: bool = False) -> None:
        """Send how many bytes are done, unless the last such event is less than 0.2 s old; `is_last` always sends."""
        elapsed_s = self.elapsed_s
        if is_last or elapsed_s + self._began_s - self._sent_s >= _EVERY_S:
            self._sent_s = self._began_s + elapsed_s
            counts = counts or Counts()
            self.emit(Progress(elapsed_s=elapsed_s, position_bytes=position_bytes, counts=counts, rss_bytes=rss_bytes()))
