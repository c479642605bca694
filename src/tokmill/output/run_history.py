"""Keeps the history of a run beside its journal, so that a resumed run knows the attempts before it.

What it writes is not synced and nothing depends on it: where it cannot be written, the run continues without it. In the end the
history goes into the manifest.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.errors import DamageError
from tokmill.core.events import AnyEvent, CachesReset, Notice, Progress, Started
from tokmill.core.history import (
    MOST_ATTEMPTS,
    MOST_NOTICE_CHARACTERS,
    MOST_NOTICES,
    Attempt,
    Does,
    History,
    Thinned,
    filled,
    is_sane,
    older,
    until,
)
from tokmill.core.manifest import read_state
from tokmill.core.system import durable
from tokmill.output.state_dir import history_of

if TYPE_CHECKING:
    from tokmill.core.system.tree import Directory
    from tokmill.output.directory import Output

SAVE_EVERY_S = 2.0


class RunHistoryRecorder:
    """Records the events of a run, from any thread. Implements `protocols.Observer`."""

    def __init__(self, output: Output) -> None:
        """Continue what earlier attempts recorded, as far as their work is committed."""
        self._directory = output.directory
        self._before = until(load_history(output.directory) or History(attempts=(), n_attempts=0), output.elapsed_before_s)
        self._begin_s = output.elapsed_before_s
        self._base = output.counts
        self._attempt: Attempt | None = None
        self._samples = Thinned()
        self._n_cache_resets = 0
        self._elapsed_s = self._saved_s = 0.0
        self._notices = list(self._before.notices)
        self._failed = False
        self._lock = threading.Lock()

    def on_event(self, event: AnyEvent) -> None:
        """Record an event."""
        with self._lock:
            if isinstance(event, Progress):
                self._on_progress(event)
            elif isinstance(event, Started):
                self._on_started(event)
            elif isinstance(event, Notice):
                self._notices.append((round(self._begin_s + self._elapsed_s, 2), event.text[:MOST_NOTICE_CHARACTERS]))
                del self._notices[:-MOST_NOTICES]
            elif isinstance(event, CachesReset):
                self._n_cache_resets += 1

    def history(self) -> History:
        """Return the history so far."""
        if self._attempt is None:
            return msgspec.structs.replace(self._before, notices=tuple(self._notices))
        attempt = msgspec.structs.replace(filled(self._attempt, self._samples.rows()), n_cache_resets=self._n_cache_resets)
        attempts = (*map(older, self._before.attempts), attempt)
        return History(attempts=attempts[-MOST_ATTEMPTS:], n_attempts=self._before.n_attempts + 1, notices=tuple(self._notices))

    def save(self) -> None:
        """Write the history for the next attempt."""
        self._saved_s = self._elapsed_s
        if self._failed:
            return
        try:
            durable.write_aside(history_of(self._directory), msgspec.json.encode(self.history()))
        except OSError:
            # If the disk takes nothing more, what matters meets that error and reports it.
            self._failed = True

    def _on_started(self, event: Started) -> None:
        does: Does = "tokenize" if event.budget_bytes else "copy"
        self._attempt = Attempt(
            does=does, begin_s=round(self._begin_s, 3), n_threads=event.n_threads, budget_bytes=event.budget_bytes
        )
        base = event.resumed_bytes if does == "tokenize" else event.position_bytes
        n_tokens = self._base.tokens_train + self._base.tokens_val if does == "tokenize" else 0
        self._samples.add(0.0, base, n_tokens, 0)

    def _on_progress(self, event: Progress) -> None:
        if self._attempt is None:
            return
        self._elapsed_s = event.elapsed_s
        is_copy = self._attempt.does == "copy"
        n_tokens = 0 if is_copy else event.counts.tokens_train + event.counts.tokens_val
        self._samples.add(event.elapsed_s, event.position_bytes if is_copy else event.counts.bytes_in, n_tokens, event.rss_bytes)
        if event.elapsed_s - self._saved_s >= SAVE_EVERY_S:
            self.save()


def load_history(directory: Directory) -> History | None:
    """Return the history in the state directory of an interrupted run; None where there is none that can be trusted."""
    try:
        history = msgspec.json.decode(read_state(history_of(directory)), type=History)
    except (OSError, DamageError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return history if is_sane(history) else None
