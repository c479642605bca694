"""Shows a run to a person, on standard error: a bar on a terminal, a line now and then elsewhere, or nothing.

Rates are those of this process since it began, not of the last second: a number that jumps cannot be read.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from tokmill.printable import printable_line
from tokmill.types import AnyEvent, Counts, Detail, Failed, Finished, Notice, Progress, Renewed, Restarted, Started
from tokmill.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable

BAR_EVERY_S = 0.2
LINE_EVERY_S = 30.0
_GIB = 1 << 30
_MIB = 1 << 20


class Display(Protocol):
    """Where text goes. `update` may be left out at will, `message` may not."""

    every_s: float

    def update(self, text: str, done: int, total: int | None) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...


class ProgressObserver:
    """Puts events into words. Implements `protocols.Observer`; close it, or use it as a context."""

    def __init__(self, display: Display, *, verb: str, verbose: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._display = display
        self._verb = verb
        self._verbose = verbose
        self._clock = clock
        self._started = Started(total_bytes=None, resumed_bytes=0, position_bytes=0, n_threads=1, batch_bytes=0, budget_bytes=0)
        self._base: Progress | None = None
        self._shown_s = clock()

    def on_event(self, event: AnyEvent) -> None:
        """Show one event."""
        if isinstance(event, Progress):
            self._on_progress(event)
        elif isinstance(event, Started):
            self._on_started(event)
        elif isinstance(event, Notice):
            self._display.message(printable_line(event.text))
        elif isinstance(event, Detail):
            if self._verbose:
                self._display.message(printable_line(event.text))
        elif isinstance(event, Restarted):
            self._display.message(
                f"the worker was lost ({printable_line(event.cause)}): going on from the last commit, attempt {event.attempt}"
            )
        elif isinstance(event, Renewed) and self._verbose:
            before, after = event.rss_before_bytes / _MIB, event.rss_after_bytes / _MIB
            self._display.message(f"gave back caches: {before:,.0f} MiB to {after:,.0f} MiB")
        elif isinstance(event, Finished | Failed):
            self.close()

    def close(self) -> None:
        """Take the bar away; can be called again."""
        self._display.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_started(self, event: Started) -> None:
        self._started, self._base = event, None
        what = "standard input" if event.total_bytes is None else format_bytes(event.total_bytes)
        budget = f", at most {format_memory(event.budget_bytes)} of memory" if event.budget_bytes else ""
        threads = f", {counted(event.n_threads, 'thread')}" if event.budget_bytes else ""
        resumed = f"; going on behind {format_bytes(event.resumed_bytes)} of an earlier run" if event.resumed_bytes else ""
        self._display.message(f"{self._verb} {what}{threads}{budget}{resumed}")
        self._display.update("", event.position_bytes, event.total_bytes)

    def _on_progress(self, event: Progress) -> None:
        self._base = self._base or event
        now = self._clock()
        if now - self._shown_s < self._display.every_s:
            return
        self._shown_s = now
        self._display.update(self._words(event), event.position_bytes, self._started.total_bytes)

    def _words(self, event: Progress) -> str:
        total = self._started.total_bytes
        parts = [format_bytes(event.position_bytes) + (f" of {format_bytes(total)}" if total is not None else "")]
        if self._base is not None and event.elapsed_s > self._base.elapsed_s:
            parts += self._rates(event, self._base)
        if self._started.budget_bytes and event.rss_bytes:
            parts.append(f"{format_memory(event.rss_bytes)} of {format_memory(self._started.budget_bytes)}")
        return " · ".join(parts)

    def _rates(self, event: Progress, base: Progress) -> list[str]:
        elapsed_s = event.elapsed_s - base.elapsed_s
        position = event.position_bytes - base.position_bytes
        read = max(event.counts.bytes_in - base.counts.bytes_in, 0) or position
        parts = [f"{read / elapsed_s / 1e6:,.0f} MB/s"]
        if tokens := _tokens(event.counts) - _tokens(base.counts):
            parts.append(f"{tokens / elapsed_s / 1e6:,.1f} Mtokens/s")
        if self._started.total_bytes is not None and position > 0:
            left_s = max(self._started.total_bytes - event.position_bytes, 0) * elapsed_s / position
            parts.append(f"{format_duration(left_s)} left")
        return parts


class Lines:
    """A line now and then, for files and pipes. Implements `Display`."""

    every_s = LINE_EVERY_S

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def update(self, text: str, done: int, total: int | None) -> None:
        """A line, with the share in percent where it is known."""
        if text:
            self.message(f"{_share(done, total)}{text}")

    def message(self, text: str) -> None:
        """A line."""
        print(f"tokmill: {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to take away."""


class Bar:
    """A bar on a terminal; counters alone where the total is not known. Implements `Display`."""

    every_s = BAR_EVERY_S

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)
        # One column of text, so that a narrow terminal cuts what stands last and nothing else.
        text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._with_bar = RichProgress(
            BarColumn(bar_width=10, table_column=Column(min_width=10)),
            text,
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._without = RichProgress(text, console=self._console, auto_refresh=False, transient=True)
        self._live: RichProgress | None = None

    def update(self, text: str, done: int, total: int | None) -> None:
        """Draw it anew."""
        if self._live is None:
            self._live = self._with_bar if total else self._without
            self._live.start()
        if not self._live.tasks:
            self._live.add_task("", total=total)
        text = text.replace(" of ", "/").replace("Mtokens", "Mtok")
        text = f"{_share(done, total)}{text}"
        self._live.update(self._live.tasks[0].id, description=text, completed=done, total=total, refresh=True)

    def message(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(f"tokmill: {text}")

    def close(self) -> None:
        """Take the bar away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class Nothing:
    """Shows nothing. Implements `Display`."""

    every_s = float("inf")

    def update(self, text: str, done: int, total: int | None) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def make_progress(*, verb: str, quiet: bool, verbose: bool, stream: TextIO | None = None) -> ProgressObserver:
    """The observer that suits `stream` (standard error when None). verb: what is being done, `tokenizing`."""
    stream = stream or sys.stderr
    display: Display = Nothing() if quiet else Bar(stream) if is_terminal(stream) else Lines(stream)
    return ProgressObserver(display, verb=verb, verbose=verbose)


def is_terminal(stream: TextIO) -> bool:
    """Whether a cursor can be moved on `stream`."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def format_bytes(n: float) -> str:
    """`119.7 MB`: powers of 1000, as disks and rates are counted."""
    if n < 1000:
        return f"{n:,.0f} B"
    for unit in ("kB", "MB", "GB"):
        n /= 1000
        if n < 999.95:
            return f"{n:,.1f} {unit}"
    return f"{n / 1000:,.1f} TB"


def format_memory(n: float) -> str:
    """`1.0 GiB`: powers of 1024, as memory is counted."""
    return f"{n / _GIB:,.1f} GiB" if n >= _GIB else f"{n / _MIB:,.0f} MiB"


def format_duration(seconds: float) -> str:
    """`1:02:03`, or `0:45`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def _share(done: int, total: int | None) -> str:
    return f"{100 * min(done / total, 1):.0f} % · " if total else ""


def _tokens(counts: Counts) -> int:
    return counts.tokens_train + counts.tokens_val
