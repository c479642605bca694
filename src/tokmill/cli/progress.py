"""Progress of a run on standard error: a bar on a terminal, otherwise a line now and then, or nothing.

Rates are averages since this process began, since a number that jumps cannot be read. The time left is estimated from the last
minute, so that it follows a disk that has become slow, and is marked "about" while only a few seconds were seen.

The bar is one line with the cursor left at its beginning. If a terminal is made narrower and breaks the line, everything after the
cursor is erased, so nothing stale stays (rich goes up as many lines as it drew, not as many as there are now). What does not fit is
left out phrase by phrase, the least important first.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Self, TextIO

from tokmill.core.events import AnyEvent, CachesReset, Detail, Failed, Finished, Notice, Progress, Restarted, Started
from tokmill.core.secrets import shown
from tokmill.core.text import counted, format_bytes, format_duration, format_memory, printable_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BAR_EVERY_S = 0.2
LINES_EVERY_S = ((4.0, 4.0), (10 * 60.0, 30.0), (2 * 3600.0, 60.0), (float("inf"), 300.0))
"""(until seconds after the beginning, seconds between lines): the log of a week stays readable."""
FIRST_LINE_S = 1.0
_WINDOW_S = 60.0
_SURE_S = 5.0
"""The time left is a guess until so many seconds were seen."""
_STALLED_S = 10.0
_GIB = 1 << 30
_MIB = 1 << 20


class Phrase(NamedTuple):
    """A few words of a line."""

    text: str
    rank: int
    """The largest is left out first if there is no room; 0 never is."""


class ProgressObserver:
    """An observer that puts events into words. Close it, or use it as a context."""

    def __init__(self, display: Lines, *, verb: str, verbose: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._display = display
        self._verb = verb
        self._verbose = verbose
        self._clock = clock
        self._started = Started(total_bytes=None)
        self._base: Progress | None = None
        self._has_finished = False
        self._shown_notices: set[str] = set()
        self._pace = Pace()
        self._began_s = self._shown_s = clock()

    def on_event(self, event: AnyEvent) -> None:
        if isinstance(event, Progress):
            self._on_progress(event)
        elif isinstance(event, Started):
            self._on_started(event)
        elif isinstance(event, Notice):
            # Notices of the result are in the summary too, which comes next.
            if not self._has_finished:
                self._shown_notices.add(event.text)
                self._display.message(event.text)
        elif isinstance(event, Detail):
            if self._verbose:
                self._display.message(event.text)
        elif isinstance(event, Restarted):
            cause = f"a process of the run was lost ({event.cause})"
            self._display.message(f"{cause}: continuing from the last commit, attempt {event.attempt}")
        elif isinstance(event, CachesReset) and self._verbose:
            before, after = event.rss_before_bytes / _MIB, event.rss_after_bytes / _MIB
            self._display.message(f"gave back caches: {before:,.0f} MiB to {after:,.0f} MiB")
        elif isinstance(event, Finished | Failed):
            self._has_finished = isinstance(event, Finished)
            self.close()

    def close(self) -> None:
        """Remove the bar; can be called again."""
        self._display.close()

    def not_yet_told(self, notices: Sequence[str]) -> list[str]:
        """Return the notices of a result that were not shown yet to a person who sees both standard streams."""
        is_seen = (sys.stdout.isatty() and sys.stderr.isatty()) or _is_one_file()
        return [notice for notice in notices if not (is_seen and notice in self._shown_notices)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_started(self, event: Started) -> None:
        self._started, self._base, self._pace, self._has_finished = event, None, Pace(), False
        what = "standard input" if event.total_bytes is None else format_bytes(event.total_bytes)
        budget = f", at most {format_memory(event.budget_bytes)} of memory" if event.budget_bytes else ""
        threads = f", {counted(event.n_threads, 'thread')}" if event.budget_bytes else ""
        how = " (decompressed)" if event.is_packed else ""
        resumed = f"; {format_bytes(event.resumed_bytes)}{how} are in the output already" if event.resumed_bytes else ""
        self._display.message(f"{event.verb or self._verb} {what}{threads}{budget}{resumed}")
        self._display.update((), event.position_bytes, event.total_bytes)

    def _on_progress(self, event: Progress) -> None:
        if self._base is None or not self._pace.has_moved:
            # Until there is output, there is no rate.
            self._base = event if self._base is None or event.position_bytes <= self._base.position_bytes else self._base
        self._pace.add(event.elapsed_s, event.position_bytes)
        now = self._clock()
        if now - self._shown_s < self._display.every_s(self._shown_s - self._began_s):
            return
        if self._display.needs_output and not self._pace.has_moved and self._pace.stalled_s < _STALLED_S:
            return
        self._shown_s = now
        self._display.update(self._words(event), event.position_bytes, self._started.total_bytes)

    def _words(self, event: Progress) -> list[Phrase]:
        total = self._started.total_bytes
        parts = [Phrase(format_bytes(event.position_bytes) + (f" of {format_bytes(total)}" if total is not None else ""), 3)]
        if self._base is not None and event.elapsed_s > self._base.elapsed_s:
            parts += self._rates(event, self._base)
        elif (waited_s := self._pace.stalled_s) >= _STALLED_S:
            parts.append(Phrase(f"no output for {format_duration(waited_s)}", 1))
        if self._started.budget_bytes and event.rss_bytes:
            parts.append(Phrase(f"{format_memory(event.rss_bytes)} of {format_memory(self._started.budget_bytes)}", 5))
        return parts

    def _rates(self, event: Progress, base: Progress) -> list[Phrase]:
        elapsed_s = event.elapsed_s - base.elapsed_s
        position = event.position_bytes - base.position_bytes
        read = max(event.counts.bytes_in - base.counts.bytes_in, 0) or position
        parts = [Phrase(f"{read / elapsed_s / 1e6:,.0f} MB/s", 2)]
        counts, before = event.counts, base.counts
        if tokens := counts.tokens_train + counts.tokens_val - before.tokens_train - before.tokens_val:
            parts.append(Phrase(f"{tokens / elapsed_s / 1e6:,.1f} Mtokens/s", 6))
        if (stalled_s := self._pace.stalled_s) >= _STALLED_S:
            parts.append(Phrase(f"nothing new for {format_duration(stalled_s)}", 1))
        elif self._started.total_bytes is not None and (left_s := self._pace.left_s(self._started.total_bytes)) is not None:
            about = "" if self._pace.is_sure else "about "
            parts.append(Phrase(f"{about}{format_duration(left_s)} left", 1))
        return parts


class Pace:
    """The speed of the last minute."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()
        """(seconds, bytes), a second apart except for the last."""
        self._moved_s = 0.0
        self._first_s: float | None = None

    def add(self, elapsed_s: float, position_bytes: int) -> None:
        """Add a measurement."""
        points = self._points
        if not points or position_bytes > points[-1][1]:
            self._moved_s = elapsed_s
            if points and self._first_s is None:
                self._first_s = points[-1][0]
        if not self.has_moved:
            # Time before the first bytes says nothing about the speed.
            points.clear()
        if len(points) > 1 and elapsed_s - points[-2][0] < 1.0:
            points.pop()
        points.append((elapsed_s, position_bytes))
        while points[0][0] < elapsed_s - _WINDOW_S:
            points.popleft()

    @property
    def has_moved(self) -> bool:
        """Whether there was any output."""
        return self._first_s is not None

    @property
    def is_sure(self) -> bool:
        """Whether enough was seen for an estimate."""
        return self._first_s is not None and self._points[-1][0] - self._first_s >= _SURE_S

    @property
    def stalled_s(self) -> float:
        """Seconds since the last output."""
        return self._points[-1][0] - self._moved_s if self._points else 0.0

    def left_s(self, total_bytes: int) -> float | None:
        """Return the seconds to the end at this pace, or None before there is output."""
        if len(self._points) < 2:
            return None
        (begin_s, begin), (end_s, end) = self._points[0], self._points[-1]
        return max(total_bytes - end, 0) * (end_s - begin_s) / (end - begin) if end > begin else None


class Lines:
    """A display for files and pipes: a line now and then. `update` may be skipped at will, `message` may not."""

    needs_output = True
    """Whether an update waits for output, or until there was none for so long that this is worth a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def every_s(self, shown_s: float) -> float:
        """Return the seconds between two updates: longer and longer; the first comes soon and says how long the run will take.

        shown_s: seconds from the beginning to the last update, 0 before the first.
        """
        return next(every for until, every in LINES_EVERY_S if shown_s < until) if shown_s else FIRST_LINE_S

    def update(self, parts: Sequence[Phrase], done: int, total: int | None) -> None:
        """Write a line, with the share in percent if it is known."""
        if parts:
            self.message(" · ".join([*_share(done, total), *(part.text for part in parts)]))

    def message(self, text: str) -> None:
        """Write a line."""
        _say(self._stream, f"tokmill: {printable_line(shown(text))}\n")

    def close(self) -> None:
        """Do nothing."""


_CELLS = 10
_ERASE = "\r\x1b[J"
"""Erases from the beginning of the line to the end of the screen, so all lines it was broken into."""


class Bar(Lines):
    """A display for terminals: a bar, or counters alone if the total is not known."""

    needs_output = False
    """It shows the memory, too."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._shown = ""
        self._is_coloured = not os.environ.get("NO_COLOR")
        self._full, self._empty, self._between = ("━", "─", " · ") if _can_write(stream, "━─·") else ("#", "-", " | ")

    def every_s(self, _shown_s: float) -> float:
        """Return a fifth of a second."""
        return BAR_EVERY_S

    def update(self, parts: Sequence[Phrase], done: int, total: int | None) -> None:
        """Redraw the bar."""
        # The last column stays free: some terminals go on in the next line when it is written.
        room = max(self._columns() - 3, 0)
        texts = [Phrase(p.text.replace(" of ", "/").replace("Mtokens", "Mtok"), p.rank) for p in parts]
        texts = [*(Phrase(share, 0) for share in _share(done, total)), *texts]
        if total:
            texts.insert(0, Phrase("", 4))
        while len(texts) > 1 and self._length(texts) > room:
            texts.remove(max(texts, key=lambda part: part.rank))
        words = self._between.join(part.text for part in texts if part.text)[:room]
        bar = f"{self._drawn(done / total)} " if total and any(not part.text for part in texts) else ""
        self._shown = f"  {bar}{words}"
        _say(self._stream, f"{_ERASE}{self._shown}\r")

    def message(self, text: str) -> None:
        """Write a line above the bar."""
        if self._shown:
            _say(self._stream, _ERASE)
        super().message(text)
        if self._shown:
            _say(self._stream, f"{self._shown}\r")

    def close(self) -> None:
        """Remove the bar."""
        if self._shown:
            self._shown = ""
            _say(self._stream, _ERASE)

    def _length(self, texts: Sequence[Phrase]) -> int:
        words = [part.text for part in texts if part.text]
        return len(self._between.join(words)) + (_CELLS + 1 if len(words) < len(texts) else 0)

    def _drawn(self, share: float) -> str:
        n = min(int(_CELLS * share + 0.5), _CELLS)
        if not self._is_coloured:
            return self._full * n + self._empty * (_CELLS - n)
        return f"\x1b[32m{self._full * n}\x1b[0;2m{self._empty * (_CELLS - n)}\x1b[0m"

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return shutil.get_terminal_size().columns


class Nothing(Lines):
    """A display that shows nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""


def make_progress(*, verb: str, quiet: bool, verbose: bool, stream: TextIO | None = None) -> ProgressObserver:
    """Return the observer that suits `stream` (None: standard error). verb: what is done, `tokenizing`."""
    stream = stream or sys.stderr
    display = Nothing(stream) if quiet else Bar(stream) if is_terminal(stream) else Lines(stream)
    return ProgressObserver(display, verb=verb, verbose=verbose)


def is_terminal(stream: TextIO) -> bool:
    """Return whether a cursor can be moved on `stream`."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def _share(done: int, total: int | None) -> list[str]:
    """Return the share in percent, if it is known; 100 only when all is done."""
    return [f"{min(100 * done // total, 100)} %"] if total else []


def _say(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        # The terminal is gone, or the disk with the log is full: the run goes on. Python would otherwise try to write what it
        # still holds while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _can_write(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _is_one_file() -> bool:
    """Return whether both standard streams go to the same place (`2>&1`)."""
    try:
        return os.path.samestat(os.fstat(1), os.fstat(2))
    except OSError:
        return False
