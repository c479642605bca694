"""Waits until there is room where an output is staged: complete shards leave it as they are sent, by the process that was typed.

What is complete is told from what is open by the journal: only a file that no segment adds to any more can leave. So a commit comes
before the wait, and where none is possible (inside a document) nobody waits. The disk is the messenger: it says what is there.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tokmill.state import part_of, staged_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.commit import Output
    from tokmill.recorder import Recorder

_LOOK_S = 0.05
_TICK_S = 0.2


def wait_for_room(
    output: Output, recorder: Recorder, limit_bytes: int, on_tick: Callable[[], None], is_stopped: Callable[[], bool]
) -> None:
    """Returns when files of the run take at most `limit_bytes`, or none of them will leave. Raises what a commit raises."""
    if not limit_bytes or not recorder.can_commit or staged_bytes(output.directory) <= limit_bytes:
        return
    recorder.commit()
    output.settle()
    next_tick = time.monotonic()
    while staged_bytes(output.directory) > limit_bytes and _leaving(output) and not is_stopped():
        if time.monotonic() >= next_tick:
            next_tick = time.monotonic() + _TICK_S
            on_tick()
        time.sleep(_LOOK_S)


def _leaving(output: Output) -> bool:
    """Whether there is a file that is complete and still here."""
    return any(part_of(output.directory, name).exists() for name in reversed(list(output.completed())))
