"""What commands that make an output have in common: observers, the result; and `--events FILE`, the events as JSON lines.

Each line is one event of `core/events.py`, with its name under `type` and the Unix time under `at`, written at once. If the file
takes no more (a full disk, a pipe whose reader is gone), the run continues without it and says so once.
"""

from __future__ import annotations

import errno
import glob
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from tokmill.cli.command import REPORTING
from tokmill.cli.progress import make_progress
from tokmill.core.errors import UsageError
from tokmill.core.events import AnyEvent, Notice
from tokmill.core.outcome import NOTHING, Outcome, emptiness
from tokmill.core.secrets import shown_in
from tokmill.core.system import durable
from tokmill.output import why_protected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokmill.cli.console import Console
    from tokmill.core.protocols import Observer
    from tokmill.run import Summary

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
        line = b'{"at":%.3f,' % time.time() + msgspec.json.encode(shown_in(msgspec.to_builtins(event)))[1:] + b"\n"
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


def carry_out(
    console: Console,
    verb: str,
    make: Callable[..., Outcome | Summary],
    options: dict[str, Any],
    *,
    outputs: Iterable[str],
    inputs: Iterable[str] = (),
    made_of: str = "output",
) -> None:
    """Call `make` with the options and the observers that they ask for, and print what it returns. Raises TokmillError.

    options: of the command, those of messages among them. outputs: directories that are or will be outputs. inputs: as typed, so
    patterns and URLs too. made_of: what the sources are called.
    """
    from msgspec.structs import replace

    from tokmill.cli import render

    events, json, quiet, verbose = (options.pop(each.name) for each in REPORTING)
    with ExitStack() as stack:
        progress = stack.enter_context(make_progress(verb=verb, quiet=quiet, verbose=verbose))
        observers: list[Observer] = [progress]
        if events is not None:
            files = [found for name in inputs for found in (glob.glob(name, recursive=True) or [name])]
            log = EventLog(events, progress, outputs=[Path(each) for each in outputs], inputs=files)
            observers.append(stack.enter_context(log))
        made = make(observers=observers, **options)
    notices, empty = made.notices, None
    # A part of a corpus may well be without text.
    if isinstance(made, Outcome) or not made.part:
        before = None if isinstance(made, Outcome) else made.appended_to
        n_before = before.tokens_train + before.tokens_val if before else 0
        empty = emptiness(made.files, made.out, notices, tokens_before=n_before)
    if isinstance(made, Outcome) and made.dry_run:
        empty = None
    if json or quiet:
        console.print_result(render.json_line(made) if json else "")
    else:
        made = replace(made, notices=[each for each in progress.not_yet_told(notices) if not each.startswith(NOTHING)])
        is_empty = empty is not None
        lines = render.outcome_lines(made, made_of, is_empty=is_empty) if isinstance(made, Outcome) else ""
        console.print_result(lines if isinstance(made, Outcome) else render.summary_lines(made, is_empty=is_empty))
    if empty is not None:
        raise empty
