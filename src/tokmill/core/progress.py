"""Progress of work in this process, as events for observers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from tokmill.core.errors import UsageError
from tokmill.core.events import AnyEvent, Notice, Progress, Started
from tokmill.core.records import Counts
from tokmill.core.system.memory import rss_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

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
            next_step="give it a class with that method",
        )


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
