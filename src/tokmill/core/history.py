"""How a run went: a few hundred samples of its progress, however long it takes, and its notices.

The interval between samples doubles whenever there are too many of them, and every second one is then dropped: the history of a
week is as long as that of a minute. Every event, at five a second, would outgrow the manifest.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import msgspec

from tokmill.core.bounded import Natural, Seconds

MOST_SAMPLES = 200
"""Limit for the current attempt."""
MOST_OLDER_SAMPLES = 40
"""Limit for each earlier attempt."""
MOST_ATTEMPTS = 12
MOST_NOTICES = 20
MOST_NOTICE_CHARACTERS = 500
_FIRST_INTERVAL_S = 0.2


Does = Literal["tokenize", "copy"]


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One process that worked on the output, from its start to its end or loss. The four lists are of one length."""

    does: Does = "tokenize"
    """`copy`: what was tokenized before was carried over (merge, convert, reshard, append)."""
    begin_s: Seconds
    """Seconds that earlier attempts put into what they committed."""
    n_threads: Natural = 1
    budget_bytes: Natural = 0
    """Memory of all processes; 0: there was no budget."""
    elapsed_s: tuple[Seconds, ...] = ()
    """Since the attempt began, growing."""
    n_bytes: tuple[Natural, ...] = ()
    """Input done so far, decompressed, by this attempt and those before; of `copy`, bytes of the output."""
    n_tokens: tuple[Natural, ...] = ()
    """Tokens so far, of this attempt and those before; 0 of `copy`."""
    rss_bytes: tuple[Natural, ...] = ()
    """Resident memory of the process, the largest since the previous sample."""
    n_cache_resets: Natural = 0
    """How often a worker dropped its engine's caches."""


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All attempts of an output that are still known."""

    attempts: tuple[Attempt, ...]
    n_attempts: Natural
    """Including those that are not kept."""
    notices: tuple[tuple[Seconds, str], ...] = ()
    """The last few: seconds since the first attempt began, and the text."""


def until(history: History, committed_s: float) -> History:
    """Return the part of a history that is in the output. committed_s: seconds put into what is committed."""
    attempts = [_cut(attempt, committed_s - attempt.begin_s) for attempt in history.attempts if attempt.begin_s < committed_s]
    notices = tuple(each for each in history.notices if each[0] <= committed_s)
    return History(attempts=tuple(attempts), n_attempts=history.n_attempts - len(history.attempts) + len(attempts), notices=notices)


def is_sane(history: History) -> bool:
    """Return whether a run can have written this."""
    if not len(history.attempts) <= min(history.n_attempts, MOST_ATTEMPTS) or len(history.notices) > MOST_NOTICES:
        return False
    return all(map(_is_sane_attempt, history.attempts))


class Thinned:
    """The samples of the attempt that is under way."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, int, int, int]] = []
        self._interval_s = _FIRST_INTERVAL_S
        self._last: tuple[float, int, int, int] | None = None
        self._most_rss = 0

    def add(self, elapsed_s: float, n_bytes: int, n_tokens: int, rss_bytes: int) -> None:
        """Add a sample; it may be dropped for a later one."""
        self._most_rss = max(self._most_rss, rss_bytes)
        row = (round(elapsed_s, 2), n_bytes, n_tokens, self._most_rss)
        # A tick comes a little early at times.
        if self._rows and elapsed_s < self._rows[-1][0] + 0.9 * self._interval_s:
            self._last = row
            return
        self._rows.append(row)
        self._last, self._most_rss = None, 0
        if len(self._rows) >= MOST_SAMPLES:
            self._rows = _every_second(self._rows)
            self._interval_s *= 2

    def rows(self) -> list[tuple[float, int, int, int]]:
        """Return the samples: elapsed seconds, bytes, tokens, resident bytes; the last one is the latest."""
        return [*self._rows, self._last] if self._last else list(self._rows)


def filled(attempt: Attempt, rows: list[tuple[float, int, int, int]]) -> Attempt:
    """The attempt with these samples."""
    elapsed_s, n_bytes, n_tokens, rss_bytes = zip(*rows, strict=True) if rows else ((), (), (), ())
    return msgspec.structs.replace(attempt, elapsed_s=elapsed_s, n_bytes=n_bytes, n_tokens=n_tokens, rss_bytes=rss_bytes)


def older(attempt: Attempt) -> Attempt:
    """The attempt when another follows it: with fewer samples."""
    rows = _rows(attempt)
    while len(rows) > MOST_OLDER_SAMPLES:
        rows = _every_second(rows)
    return filled(attempt, rows)


def _rows(attempt: Attempt) -> list[tuple[float, int, int, int]]:
    return list(zip(attempt.elapsed_s, attempt.n_bytes, attempt.n_tokens, attempt.rss_bytes, strict=False))


def _cut(attempt: Attempt, elapsed_s: float) -> Attempt:
    # A commit is timed when it begins, a sample when it is taken.
    return filled(attempt, [row for row in _rows(attempt) if row[0] <= elapsed_s + _FIRST_INTERVAL_S])


def _every_second(rows: list[tuple[float, int, int, int]]) -> list[tuple[float, int, int, int]]:
    """Return the first row and then one of each two, with the larger memory; the last one stays."""
    kept = rows[:1]
    for i in range(1, len(rows), 2):
        pair = rows[i : i + 2]
        kept.append((*pair[-1][:3], max(row[3] for row in pair)))
    return kept


def _is_sane_attempt(attempt: Attempt) -> bool:
    columns = (attempt.elapsed_s, attempt.n_bytes, attempt.n_tokens, attempt.rss_bytes)
    n = len(attempt.elapsed_s)
    growing = all(a <= b for column in columns[:3] for a, b in pairwise(column))
    return growing and n <= MOST_SAMPLES + 1 and all(len(column) == n for column in columns)
