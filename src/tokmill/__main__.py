"""The entry point of the command, also as `python -m tokmill`: answers Ctrl-C in one line while all else is still being loaded."""

from __future__ import annotations

import os
import signal

_INTERRUPTED = 130
_MESSAGE = b"""tokmill: error: interrupted
  where:   tokmill
  allowed: an end at any time
  next:    run the same command again
"""


def main() -> None:
    """Load the command line, and hand over to it."""
    # Half a module cannot be unloaded, and an exception in the middle of one is a traceback of ours, or an error of somebody's C.
    # Where Ctrl-C is ignored, as behind nohup, it stays so.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, _leave)
    from tokmill import cli

    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


def _leave(_signum: int, _frame: object) -> None:
    os.write(2, _MESSAGE)
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
