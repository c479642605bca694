"""The events of a run as JSON lines in a file, for programs that watch it: `--events FILE`.

A line is one event of `types.py`, with its name under `type` and the time of day under `at`. Lines are appended and handed to the
system one by one. Where the file takes no more (a full disk, a pipe whose reader is gone), the run goes on without, and says so
once.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import msgspec

from tokmill import durable
from tokmill.errors import UsageError
from tokmill.progress import make_progress
from tokmill.types import AnyEvent, Notice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokmill.protocols import Observer


class EventLog:
    """Implements `protocols.Observer`. Close it, or use it as a context."""

    def __init__(self, path: str, teller: Observer) -> None:
        """teller: hears of it when lines are lost. Raises UsageError when the file cannot be opened for appending."""
        self._path = path
        self._teller = teller
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UsageError(
                f"the file for events cannot be opened: {error.strerror}",
                where=f"--events {path}",
                allowed="a file that this user may write, a pipe that is read, or /dev/fd/N",
                next_step="choose another file, or leave --events out",
            ) from None

    def on_event(self, event: AnyEvent) -> None:
        """Append one line."""
        if self._fd < 0:
            return
        line = b'{"at":%.3f,' % time.time() + msgspec.json.encode(event)[1:] + b"\n"
        try:
            durable.write_all(self._fd, line)
        except OSError as error:
            self.close()
            self._teller.on_event(
                Notice(text=f"events are no longer written to {self._path} ({error.strerror}); the run goes on without them")
            )

    def close(self) -> None:
        """Close the file; can be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def observing(*, verb: str, quiet: bool, verbose: bool, events: str | None) -> Iterator[list[Observer]]:
    """The observers of a command: a person's, and the file for events, if there is to be one. Raises UsageError."""
    with make_progress(verb=verb, quiet=quiet, verbose=verbose) as progress:
        if events is None:
            yield [progress]
            return
        with EventLog(events, progress) as log:
            yield [progress, log]
