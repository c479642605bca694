"""The command line: parse, call, print, exit code.

Results go to standard output, all else to standard error. What a command needs is imported inside it, so that `--help` starts fast.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from typing import TYPE_CHECKING

import click

from tokmill.cli import building, console as consoles, derive, settings, support, tokenizing  # noqa: F401  they add the commands
from tokmill.cli.check import AS_RECORDED
from tokmill.cli.command import root
from tokmill.cli.console import PROGRAM
from tokmill.core.errors import DiskFullError, Interrupted, StorageError, TokmillError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.cli.console import Console

_INTERRUPTED = 130
_COMPLETE = "_TOKMILL_COMPLETE"
_ADDRESS = re.compile(r"auto|local|here|ray://.+|[\w.\-]+:\d+|\[[0-9a-fA-F:]+\]:\d+")
_VAL_INPUT = "--val-input"
_STDIN = "-"
"""As `core/records.py` has it, which `--help` need not load."""
for _name in ("plan", "tokenize"):
    # The first in the help.
    root.commands = {_name: root.commands[_name], **root.commands}


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line and return the exit code. Raises nothing but for faults of Python itself."""
    console = consoles.Console(arguments, lambda: settings.load(root))
    try:
        return _carry_out(arguments, console)
    except TokmillError as error:
        return _fail(error, console)
    except KeyboardInterrupt:
        return _fail(_interrupted(), console)
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say, and Python must not say it while it shuts down.
        consoles.silence()
        return 1
    except Exception as error:  # noqa: BLE001  the last resort of a program: one line instead of a traceback
        return _fail_unforeseen(error, console)


def _carry_out(arguments: Sequence[str], console: Console) -> int:
    if instruction := os.environ.get(_COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(root, {"obj": console}, PROGRAM, _COMPLETE, instruction)
    # A group of commands alone asks what is in it.
    words = [*arguments, "--help"] if list(arguments) in ([], ["vocab"]) else completed(arguments)
    try:
        with root.make_context(PROGRAM, words, obj=console) as context:
            code = root.invoke(context)
    except click.exceptions.Exit as asked:
        return asked.exit_code
    except click.UsageError as error:
        from tokmill.cli.usage_errors import usage_error

        raise usage_error(error, console) from None
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def main() -> None:
    """Run as the command `tokmill`."""
    # SIGTERM asks for what Ctrl-C asks for: a commit, then the end.
    signal.signal(signal.SIGTERM, consoles.on_signal)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, consoles.on_signal)
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # A second one, while the first was reported.
        code = _INTERRUPTED
    consoles.ignore_signals()
    # Python would look for garbage at its exit: 15 ms for what was imported alone.
    gc.freeze()
    sys.exit(code)


def completed(arguments: Sequence[str]) -> list[str]:
    """Return what was typed, with what `--ray` or `--source` without a value stands for, and an option for each `--val-input`."""
    filled = list[str]()
    is_of_val = False
    for i, argument in enumerate(arguments):
        following = arguments[i + 1] if i + 1 < len(arguments) else "--"
        if argument == "--":
            return [*filled, *arguments[i:]]
        is_value = not argument.startswith("-") or argument == _STDIN
        if argument == "--ray" and not _ADDRESS.fullmatch(following):
            filled.append("--ray=here")
        elif argument == "--source" and following.startswith("-") and following != _STDIN:
            filled.append(f"--source={AS_RECORDED}")
        elif is_of_val and is_value:
            filled.append(f"{_VAL_INPUT}={argument}")
        elif argument != _VAL_INPUT or (following.startswith("-") and following != _STDIN):
            filled.append(argument)
        is_of_val = argument == _VAL_INPUT or (is_of_val and is_value)
    return filled


def _fail(error: TokmillError, console: Console) -> int:
    """Print an error, with `--json` also as an object on standard output. Return the exit code."""
    from tokmill.cli import render
    from tokmill.cli.usage_errors import as_typed

    error = as_typed(error, console.arguments, console.origins)
    if console.deciding and error.option not in console.origins:
        error.where = "; ".join([error.where or PROGRAM, *console.deciding])
    if console.has_secrets and (error.next_step or "").startswith(f"{PROGRAM} "):
        error.next_step = f"{error.next_step}\nwith the user, password or query of the URL, which are not shown"
    try:
        console.print_error(error)
        if console.has_flag("--json"):
            console.print_result(render.json_line(render.error_object(error)))
    except (OSError, StorageError, DiskFullError):
        # Nobody reads it; the exit code still says it.
        consoles.silence()
    return error.exit_code


def _interrupted() -> Interrupted:
    return Interrupted(
        "interrupted", where=PROGRAM, allowed="stopping at any time", next_step="run the same command again", resumes=True
    )


def _fail_unforeseen(error: Exception, console: Console) -> int:
    if consoles.signals_seen:
        # It came of the signal, in the middle of a module that was being loaded (numpy says that it is broken).
        return _fail(_interrupted(), console)
    from tokmill.core.system.refusals import explained

    is_verbose = console.has_flag("--verbose", short="v")
    if is_verbose:
        import traceback

        console.say("".join(traceback.format_exception(error)).rstrip())
    return _fail(
        explained(error, PROGRAM, next_step="report it" if is_verbose else "run again with -v for the traceback, and report it"),
        console,
    )
