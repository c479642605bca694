"""The events of a run as JSON lines in a file, for programs that watch it: `--events FILE`.

A line is one event of `core/events.py`, with its name under `type` and the time of day under `at`, given to the system one by one.
Where the file takes no more (a full disk, a pipe whose reader is gone), the run goes on without, and says so once.
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
    """Implements `protocols.Observer`. Close it, or use it as a context."""

    def __init__(self, path: str, teller: Observer, *, outputs: Iterable[Path] = (), inputs: Iterable[str] = ()) -> None:
        """teller: hears of it when lines are lost. outputs, inputs: what must not be written to.

        Raises UsageError when the file cannot be opened for appending, or holds something else than events.
        """
        self._path = path
        self._teller = teller
        taken = why_protected(path, outputs, inputs) or _other_content(path)
        if taken:
            raise _unusable(path, f"the file for events is {taken}")
        try:
            # A pipe without a reader is refused at once, instead of being waited for.
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


def _other_content(path: str) -> str | None:
    """What a regular file holds, where that is not events; None for events, nothing, and what is no regular file."""
    try:
        if not os.path.isfile(path) or not os.path.getsize(path):
            return None
        with open(path, "rb") as file:
            line = file.readline(_LONGEST_LINE_BYTES)
        msgspec.json.decode(line, type=AnyEvent)
    except OSError:
        # Whether it can be written is another question.
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "a file that holds something else than events"
    return None


def _unusable(path: str, what: str) -> UsageError:
    return UsageError(
        what,
        where=f"--events {path}",
        allowed="a file of its own, new or of earlier events, that this user may write; a pipe that is read; or /dev/fd/N",
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
    """The observers of a command: a person's, and the file for events, if there is to be one. Raises UsageError.

    outputs: directories that are or will be outputs. inputs: as typed, so patterns and URLs too.
    """
    with make_progress(verb=verb, quiet=quiet, verbose=verbose) as progress:
        if events is None:
            yield [progress]
            return
        files = [found for name in inputs for found in (glob.glob(name, recursive=True) or [name])]
        with EventLog(events, progress, outputs=[Path(each) for each in outputs], inputs=files) as log:
            yield [progress, log]
