"""What a command over complete outputs did, and how it tells of it while it works."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tokmill.core.events import AnyEvent, Notice, Progress, Started
from tokmill.core.records import Counts, FileEntry
from tokmill.core.system.memory import rss_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.protocols import Observer

AnyObserver = TypeVar("AnyObserver", bound="Observer")

_TELL_EVERY_S = 0.2


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a merge, a conversion or a reshard did; the object that `--json` prints."""

    out: str
    """Output directory, absolute."""
    format: str
    dtype: str
    tokenizer: str
    sources: list[str]
    """What it was made from, absolute, in order."""
    documents_train: int
    documents_val: int
    tokens_train: int
    tokens_val: int
    bytes_out: int
    """Of all files of the output."""
    elapsed_s: float
    """Of this call."""
    bytes_per_s: float
    """Output that this call wrote, by its time."""
    peak_rss_bytes: int
    resumed: bool
    already_complete: bool
    files: dict[str, FileEntry]
    notices: list[str]


class Teller:
    """Tells observers how far the work is, a few times a second."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers
        self._began_s = self._told_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._began_s

    def tell(self, event: AnyEvent) -> None:
        """Tell everyone; from any thread."""
        for observer in self._observers:
            observer.on_event(event)

    def also(self, observer: AnyObserver) -> AnyObserver:
        """Tell this one, too."""
        self._observers = [*self._observers, observer]
        return observer

    def notice(self, text: str) -> None:
        """Say something to a person."""
        self.tell(Notice(text=text))

    def started(self, total_bytes: int, done_bytes: int) -> None:
        """The work begins, or goes on behind what an earlier run did."""
        self.tell(
            Started(
                total_bytes=total_bytes,
                resumed_bytes=done_bytes,
                position_bytes=done_bytes,
                n_threads=1,
                batch_bytes=0,
                budget_bytes=0,
            )
        )

    def progress(self, position_bytes: int, *, is_last: bool = False) -> None:
        """So much is done."""
        now = time.monotonic()
        if is_last or now - self._told_s >= _TELL_EVERY_S:
            self._told_s = now
            elapsed_s = now - self._began_s
            self.tell(Progress(elapsed_s=elapsed_s, position_bytes=position_bytes, counts=Counts(), rss_bytes=rss_bytes()))
