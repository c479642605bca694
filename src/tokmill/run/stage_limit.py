"""Waits until there is room where an output is staged: complete shards leave it as they are sent, by the process that was typed.

What is complete is told from what is open by the journal: only a file that no segment adds to any more can leave. So a commit comes
before the wait, and what no commit speaks of (inside a document) is not waited for. The disk is the messenger: it says what is
there. The wait is before a batch is written, not behind it, so that the limit is one and not a mean.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tokmill.output import growing_files, growing_path, staged_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.core.records import EncodedBatch
    from tokmill.output import Output
    from tokmill.run.segment_writer import SegmentWriter

_LOOK_S = 0.05
_TICK_S = 0.2
_DOCUMENT_BYTES = 64
"""What a format may note of a document in a file beside the ids, at most."""


def wait_for_room(
    output: Output,
    writer: SegmentWriter,
    encoded: EncodedBatch,
    limit_bytes: int,
    on_tick: Callable[[], None],
    is_stopped: Callable[[], bool],
) -> bool:
    """Whether the batch is to be written: files of the run and it take at most `limit_bytes` then, or none of them will leave.

    limit_bytes: 0 for no limit. False when the run is stopped before. Raises what a commit raises.
    """
    if not limit_bytes:
        return True
    limit_bytes -= sum(run.ids.nbytes + _DOCUMENT_BYTES * len(run.ends) for run in encoded.runs)
    if staged_bytes(output.directory) <= limit_bytes:
        return True
    if writer.can_commit:
        writer.commit()
    output.settle()
    next_tick = time.monotonic()
    while staged_bytes(output.directory) > limit_bytes and _is_leaving(output):
        if is_stopped():
            return False
        if time.monotonic() >= next_tick:
            next_tick = time.monotonic() + _TICK_S
            on_tick()
        time.sleep(_LOOK_S)
    return True


def _is_leaving(output: Output) -> bool:
    """Whether there is a file that is complete, as the journal says, and still here."""
    here = set(growing_files(output.directory))
    return any(growing_path(output.directory, name) in here for name in output.committed())
