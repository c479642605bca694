"""The entry point of the command, also as `python -m tokmill`. Ctrl-C during the imports is answered with one message."""

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, which loads ten modules more, as `__future__` is one
import os

_INTERRUPTED = 130
_MESSAGE = b"""tokmill: error: interrupted
  where:   tokmill
  allowed: stopping at any time
  next:    run the same command again
"""


def _leave(_signum: int, _frame: object) -> None:
    os.write(2, _MESSAGE)
    os._exit(_INTERRUPTED)


# Before anything else is imported: an exception in the middle of an import is a traceback, or an error in C code. If Ctrl-C is
# ignored, as under nohup, it stays ignored.
_IS_OURS = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
if _IS_OURS:
    _signal.signal(_signal.SIGINT, _leave)

import sys  # noqa: E402


def main() -> None:
    """Import the command line and run it."""
    _open_what_is_closed()
    from tokmill.core.system.child import end_early, start_early

    if sys.argv[1:2] == ["tokenize"] and not any(word.startswith(("--help", "--ray", "-h")) for word in sys.argv):
        start_early("tokmill.run.coordinator")
    from tokmill.cli import main as run_command

    if _IS_OURS:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    try:
        run_command()
    finally:
        end_early()


def _open_what_is_closed() -> None:
    """Open each standard stream that was closed (`>&-`) as /dev/null, before a file or a pipe takes its number.

    Standard input is opened for writing alone: reading it stays an error.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number is this one. A child must find it open too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR if fd else os.O_WRONLY), True)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


if __name__ == "__main__":
    main()
