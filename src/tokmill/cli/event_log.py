"""The events of a run as JSON lines in a file, for programs that watch it: `--events FILE`.

Each line is one event of `core/events.py`, with its name under `type` and the Unix time under `at`, written at once. If the file
takes no more (a full disk, a pipe whose reader is gone), the run continues without it and says so once.
"""

from __future__ import annotations

import errno
import glob
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from tokmill.cli.progress import make_progress
from tokmill.core.errors import UsageError
from tokmill.core.events import AnyEvent, Notice
from tokmill.core.system import durable
from tokmill.output import why_protected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokmill.core.protocols import Observer

_LONGEST_LINE_BYTES = 1 << 20


class EventLog:
    """An observer that writes events. Close it, or use it as a context."""

    def __init__(self, path: str, progress: Observer, *, outputs: Iterable[Path] = (), inputs: Iterable[str] = ()) -> None:
        """Open the file. progress: is told if lines are lost. outputs, inputs: what must not be written to.

        Raises UsageError if the file cannot be opened for appending, or holds anything but events.
        """
        self._path = path
        self._progress = progress
        taken = why_protected(path, outputs, inputs) or _other_content(path)
        if taken:
            raise _unusable(path, f"the file for events is {taken}")
        try:
            # Opening a pipe that nobody reads fails at once instead of waiting.
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            reason = "nobody reads this pipe" if error.errno == errno.ENXIO else error.strerror
            raise _unusable(path, f"the file for events cannot be opened: {reason}") from None
        os.set_blocking(self._fd, True)

    def on_event(self, event: AnyEvent) -> None:
        """Append one line."""
        if self._fd < 0:
            return
        line = b'{"at":%.3f,' % time.time() + msgspec.json.encode(event)[1:] + b"\n"
        try:
            durable.write_all(self._fd, line)
        except OSError as error:
            self.close()
            self._progress.on_event(
                Notice(text=f"events are no longer written to {self._path} ({error.strerror}); the run continues without them")
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


def _other_content(path: str) -> str | None:
    """Return what a regular file holds if not events; None for events, for an empty file, and for what is no regular file."""
    try:
        if not os.path.isfile(path) or not os.path.getsize(path):
            return None
        with open(path, "rb") as file:
            line = file.readline(_LONGEST_LINE_BYTES)
        msgspec.json.decode(line, type=AnyEvent)
    except OSError:
        # Opening it for writing will say why.
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "a file that holds something other than events"
    return None


def _unusable(path: str, what: str) -> UsageError:
    return UsageError(
        what,
        where=f"--events {path}",
        allowed="a new file or one of earlier events that this user may write, a pipe that is being read, or /dev/fd/N",
        next_step="choose another file, or leave --events out",
    )


@contextmanager
def observing(
    *,
    verb: str,
    quiet: bool,
    verbose: bool,
    events: str | None,
    outputs: Iterable[str] = (),
    inputs: Iterable[str] = (),
) -> Iterator[list[Observer]]:
    """Yield the observers of a command: progress, and the file for events if there is one. Raises UsageError.

    outputs: directories that are or will be outputs. inputs: as typed, so patterns and URLs too.
    """
    with make_progress(verb=verb, quiet=quiet, verbose=verbose) as progress:
        if events is None:
            yield [progress]
            return
        files = [found for name in inputs for found in (glob.glob(name, recursive=True) or [name])]
        with EventLog(events, progress, outputs=[Path(each) for each in outputs], inputs=files) as log:
            yield [progress, log]
