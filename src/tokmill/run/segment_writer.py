"""Takes encoded batches in order: writes them, counts them, commits them segment by segment.

The end of standard input may be the end of the corpus, or Ctrl-C may just have ended the program that writes it. So it is neither
committed nor published before a moment has passed in which nobody asked this run to stop.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from tokmill.core.errors import UsageError
from tokmill.core.events import Committed
from tokmill.core.manifest import SKIPPED_NAME
from tokmill.core.output_spec import Shards
from tokmill.core.records import STDIN, Cursor
from tokmill.core.skipping import SkippedList, check_skipped
from tokmill.core.text import counted
from tokmill.formats import make_writer, spec_of
from tokmill.output import growing_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.core.config import Job
    from tokmill.core.events import AnyEvent
    from tokmill.core.records import EncodedBatch, FileEntry
    from tokmill.output import Output

SEGMENT_S = 1.0
"""A commit comes at least this often, however slow the input is."""
_GRACE_S = 0.15
"""A signal reaches this process a few milliseconds before or after the others in the pipe."""
_LOOK_S = 0.05
_TICK_S = 0.2
_DOCUMENT_BYTES = 64
"""Most bytes that a format notes of a document in a file beside the ids."""


class SegmentWriter:
    """Writes encoded batches to the output. Used by one thread."""

    def __init__(self, job: Job, output: Output, emit: Callable[[AnyEvent], None], position_bytes: int) -> None:
        """position_bytes: of the inputs on disk, before the cursor. Raises TooManySkippedError, StorageError."""
        self._job = job
        self._output = output
        self._emit = emit
        self._started_s = time.monotonic()
        content = job.content
        state = output.segments[-1].writer if output.segments else {}
        self._writer = make_writer(output, state, spec_of(content))
        self._skipped = SkippedList(lambda: output.file(SKIPPED_NAME), content, state)
        self._stdin_index = max((i for i, source in enumerate(content.inputs) if source.path == STDIN), default=None)
        self._stdin_ended_s: float | None = None
        self.counts = output.counts
        self.position_bytes = position_bytes
        self.reached = output.cursor
        """Where reading would continue after all that was added."""
        self.is_at_cursor = True
        """Whether that is the end of all that was added: no cursor names a place inside a document."""
        self._after: Cursor | None = None
        self._committed_bytes = self.counts.bytes_in
        self._committed_s = self._started_s
        self._check_skipped()

    @property
    def elapsed_s(self) -> float:
        """Seconds since this attempt began."""
        return time.monotonic() - self._started_s

    def add(self, encoded: EncodedBatch) -> None:
        """Write one batch; commit when a segment is full. Raises StorageError, DiskFullError, TooManySkippedError."""
        # Until this batch is written whole, the files hold more than any cursor says.
        self._after = None
        for run in encoded.runs:
            self._writer.append(run)
        for skip in encoded.skips:
            self._skipped.add(skip)
        self.counts += encoded.counts
        self.position_bytes = encoded.position_bytes
        self._check_skipped()
        self._after = encoded.after
        self.is_at_cursor = encoded.after is not None
        if encoded.after is not None:
            self.reached = encoded.after
            if self._stdin_ended_s is None and self._stdin_index is not None and encoded.after.input_index > self._stdin_index:
                self._stdin_ended_s = time.monotonic()
            self.commit_if_due()

    def commit_if_due(self) -> None:
        """Commit when a segment is full, or after a while: also what was added before an input had nothing more for now."""
        if self._after is not None and self._is_due():
            self.commit()

    def wait_for_stage(self, encoded: EncodedBatch, on_tick: Callable[[], None], is_stopped: Callable[[], bool]) -> bool:
        """Wait until the batch fits where an output for a store is staged: the parent process sends complete shards away.

        Only a file that the journal says is complete can leave, so this commits before it waits, and does not wait for what no
        commit can mention (inside a document). It waits before a batch is written: the limit is a limit and not a mean. Returns
        False when the run is stopped before. Raises what a commit raises.
        """
        limit_bytes = self._job.resources.stage_bytes
        if not limit_bytes:
            return True
        limit_bytes -= sum(run.ids.nbytes + _DOCUMENT_BYTES * len(run.ends) for run in encoded.runs)
        if self._output.staged_bytes <= limit_bytes:
            return True
        if self._after is not None and not self._is_withheld:
            self.commit()
        self._output.settle()
        next_tick = time.monotonic()
        while self._output.staged_bytes > limit_bytes and self._output.is_leaving:
            if is_stopped():
                return False
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + _TICK_S
                on_tick()
            time.sleep(_LOOK_S)
        return True

    @property
    def _is_withheld(self) -> bool:
        """Whether standard input ended just now, so that an interrupt may have ended it."""
        return self._stdin_ended_s is not None and time.monotonic() - self._stdin_ended_s < _GRACE_S

    def wait_for_stdin_end(self) -> None:
        """Wait until the end of standard input is no longer in doubt."""
        while self._is_withheld:
            time.sleep(_GRACE_S / 10)

    def doubt_stdin_end(self) -> None:
        """Never commit the end of standard input: the run was asked to stop, and whoever asked may have ended it, too."""
        if self._stdin_ended_s is not None:
            self._stdin_ended_s = math.inf

    def _is_due(self) -> bool:
        if not self._output.is_settled:
            return False
        full = self.counts.bytes_in - self._committed_bytes >= self._job.resources.segment_bytes
        return full or time.monotonic() - self._committed_s >= SEGMENT_S

    def commit(self) -> None:
        """Begin to commit up to the last batch, if a run can be resumed after it and there is something new."""
        after, self._after = self._after, None
        if after is None or self._is_withheld or (after == self._output.cursor and not self._output.is_ahead):
            return
        counts, elapsed_s = self.counts, self.elapsed_s
        self._committed_bytes, self._committed_s = counts.bytes_in, time.monotonic()
        self._output.commit(
            after,
            counts,
            self._writer.state() | self._skipped.state(),
            self._output.elapsed_before_s + elapsed_s,
            lambda segment: self._emit(Committed(elapsed_s=elapsed_s, segment=segment, counts=counts)),
        )

    def finish(self, *, is_cut: bool = False) -> dict[str, FileEntry]:
        """Let the writer end its files, commit, and return all files by name. Raises StorageError, DiskFullError.

        is_cut: the corpus may go on after what was added.
        """
        self._writer.finish()
        self._check_left()
        self._skipped.end()
        if SKIPPED_NAME in self._output.names - set(self._output.completed()):
            self._output.file(SKIPPED_NAME)
            self._output.complete(SKIPPED_NAME)
        self._output.settle()
        # A part may end inside its last input.
        end = self.reached if self._job.content.part or is_cut else Cursor(input_index=len(self._job.content.inputs))
        self._after = self._after or end
        self.commit()
        self._output.settle()
        return dict(self._output.completed())

    def _check_left(self) -> None:
        """Raise UsageError when all shards were dropped because they are too small."""
        shards, n_tokens = self._job.content.shards, self.counts.tokens_train + self.counts.tokens_val
        if isinstance(shards, Shards) and n_tokens and not any(entry.tokens for entry in self._output.completed().values()):
            raise UsageError(
                f"nothing would be left: --drop-tail leaves out all {counted(n_tokens, 'token')}, for they fill no shard",
                where=str(self._output.directory),
                allowed=f"at least {counted(shards.tokens, 'token')} on one side",
                next_step="leave --drop-tail out or choose a smaller --shard-tokens, with --fresh",
            )

    def _check_skipped(self) -> None:
        check_skipped(self.counts, self._job.resources.max_skipped, str(growing_path(self._output.directory, SKIPPED_NAME)))
