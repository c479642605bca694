"""The terminal of one command: what was typed, what settings say, and the only place that prints results and errors."""

from __future__ import annotations

import errno
import os
import signal
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import DiskFullError, StorageError, UsageError
from tokmill.core.secrets import learn, redacted, shown
from tokmill.core.text import printable, printable_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tokmill.cli.settings import Origin, Settings
    from tokmill.core.errors import TokmillError

PROGRAM = "tokmill"
_DECIDING = ("--out", "--fresh", "--force", "--append", "--events", "--stage", "--to")
"""Options that decide where is written, or what is discarded."""
_WRITES_NOTHING = (f"{PROGRAM} plan", f"{PROGRAM} doctor")
_YES = {"1", "true", "t", "yes", "y", "on"}
"""Values with which the environment sets a flag, as the parser reads them."""
_TAKES_VALUE = "o"
"""Letter of an option with a value: the rest of its word is the value."""


class Console:
    """What the commands of one call share; the parser's `obj`."""

    def __init__(self, arguments: Sequence[str], load: Callable[[], Settings]) -> None:
        """arguments: as typed, without the program. load: reads the files of settings."""
        learn([*arguments, *(value for name, value in os.environ.items() if name.startswith(f"{PROGRAM}_".upper()))])
        self.arguments = [*map(redacted, arguments)]
        """As typed, but for what must not be shown."""
        self.has_secrets = self.arguments != list(arguments)
        self._load = load
        self.context: Any = None
        """The parser's context of the innermost command that was reached."""
        self.is_config_asked = False
        """Whether the command is only to show the values of its options."""
        self.values: dict[str, Any] = {}
        """Values of the command's options, by parameter, once they are parsed."""
        self.deciding: list[str] = []
        """Such options that decide where is written or what is discarded, in words."""
        self.origins: dict[str, Origin] = {}
        """By option, where its value stands if it was not typed."""

    @cached_property
    def settings(self) -> Settings:
        """What the files say. Raises UsageError if they are wrong."""
        return self._load()

    @property
    def before_operands(self) -> list[str]:
        """The words before `--`; after it nothing is an option."""
        return self.arguments[: self.arguments.index("--")] if "--" in self.arguments else self.arguments

    def is_typed(self, *options: str) -> bool:
        """Return whether one of these long options was typed."""
        return any(word.partition("=")[0] in options for word in self.before_operands)

    def unused(self, rules: Iterable[tuple[str, bool, str]]) -> list[str]:
        """Return a notice for each option that was typed and does nothing. Settings and variables are meant for other runs too.

        rules: options, whether each does nothing, and why.
        """
        return [f"{option} has no effect {why}" for option, is_unused, why in rules if is_unused and self.is_typed(option)]

    def has_flag(self, option: str, *, short: str = "") -> bool:
        """Return whether a flag of all commands is set, also if the command line could not be parsed."""
        name = option.removeprefix("--")
        if name in self.values:
            return bool(self.values[name])
        if any(word == option or (short and _in_bundle(short, word)) for word in self.before_operands):
            return True
        if said := os.environ.get(f"{PROGRAM}_{name}".upper()):
            return said.lower() in _YES
        try:
            return bool(self.settings.of_command(self.arguments, is_loose=True).get(name))
        except UsageError:
            return False

    def print_result(self, text: str) -> None:
        """Print what a command ends with. Raises StorageError or DiskFullError if standard output does not take it."""
        if not text:
            return
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        safe = printable(shown(text, is_ours=False)).encode(encoding, "backslashreplace").decode(encoding)
        try:
            print(safe, flush=True)
        except BrokenPipeError:
            # The reader has what it wanted, and the work is done: the exit code says how well.
            silence()
        except OSError as error:
            silence()
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise (DiskFullError if is_full else StorageError)(
                f"cannot write to standard output: {error.strerror}",
                where="standard output",
                allowed="a terminal, a pipe, or a file on a disk with room for it",
                next_step="send standard output elsewhere, or free disk space, then run the same command again",
            ) from error
        ignore_signals()

    def print_error(self, error: TokmillError) -> None:
        """Print an error on standard error."""
        from tokmill.cli import render

        self.say(render.error_lines(error))

    def tell_origins(self, command: str) -> None:
        """Say what of where is written, and of what is discarded, was not typed here."""
        if command in _WRITES_NOTHING:
            return
        told = {name: origin for name, origin in self.origins.items() if name in _DECIDING and self.values[name[2:]]}
        self.deciding = [
            f"{name}{'' if self.values[name[2:]] is True else f' {self.values[name[2:]]}'} (from {origin.named})"
            for name, origin in told.items()
        ]
        for each in self.deciding:
            self.say(f"{PROGRAM}: {printable_line(each)}")

    def say(self, text: str) -> None:
        """Print what is no result on standard error."""
        print(printable(shown(text)), file=sys.stderr, flush=True)


def on_signal(_signum: int, _frame: object) -> None:
    """Handle SIGINT and SIGTERM alike: the run commits what it has and ends."""
    signals_seen.append(_signum)
    raise KeyboardInterrupt


signals_seen: list[int] = []


def ignore_signals() -> None:
    """From now on ignore signals: the result is printed, and Python would answer them by dying while it shuts down."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is on_signal:
            signal.signal(signum, signal.SIG_IGN)


def silence() -> None:
    """Send standard output to nobody: Python would otherwise try to write what it still holds while it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_bundle(letter: str, word: str) -> bool:
    """Return whether a word such as `-qv` holds the flag."""
    return word.startswith("-") and not word.startswith("--") and letter in word[1:].partition(_TAKES_VALUE)[0]
