"""Reads the parts of the corpus that a damaged output lacks, and gives what they become to the files that are made anew.

A gap begins at a cursor where the run that made the output committed, and so does what lies behind it: what lies between becomes
the bytes that it became then, whatever the size of batches. The last batch may reach beyond; what is too much is cut off.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tokmill.check.repairing.rebuilt_file import other_corpus
from tokmill.core.config import is_of_corpus
from tokmill.core.errors import ChangedError, DamageError, UsageError
from tokmill.core.events import Started
from tokmill.core.manifest import MANIFEST_NAME, SKIPPED_NAME
from tokmill.core.records import STDIN, Counts, Cursor, Tokens, text_to_path
from tokmill.formats import make_writer, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokmill.check.repairing.damage import Repair
    from tokmill.check.repairing.rebuilt_file import Gap
    from tokmill.core.config import Content, Job
    from tokmill.core.protocols import Reader, Writer
    from tokmill.core.records import Batch, EncodedBatch, Input


class GapReader:
    """Reads the gaps of a corpus and nothing between them. Implements `protocols.Reader`."""

    def __init__(self, reader: Reader, gaps: Sequence[Gap]) -> None:
        self._reader = reader
        self._gaps = gaps

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """Batches of all gaps. start: where the first begins."""
        index = 0
        for gap in self._gaps:
            for batch in self._reader.batches(gap.begin if index else start):
                yield replace(batch, index=index)
                index += 1
                if _reaches(batch.after, gap.end):
                    break


class Mender:
    """Takes encoded batches of the gaps in order. Used by one thread."""

    def __init__(self, job: Job, repair: Repair) -> None:
        self.counts = Counts()
        """Of what was encoded again."""
        self._content = job.content
        self._resources = job.resources
        self._repair = repair
        self._gaps = iter(repair.gaps)
        self._gap: Gap | None = None
        self._writer: Writer | None = None
        self._tokens = [0, 0]
        self._documents = [0, 0]
        self._started_s = time.monotonic()
        # What was skipped is recorded under the path of then, wherever the corpus is now.
        self._paths = {now.path: then.path for now, then in zip(job.content.inputs, repair.manifest.content.inputs, strict=True)}
        self._open_next()

    @property
    def elapsed_s(self) -> float:
        """Since the gaps are known."""
        return time.monotonic() - self._started_s

    @property
    def position_bytes(self) -> int:
        """Of all gaps together."""
        return self.counts.bytes_in

    def started(self) -> Started:
        """The event that says how much is to be read."""
        resources = self._resources
        return Started(
            total_bytes=sum(gap.bytes_in for gap in self._repair.gaps),
            n_threads=resources.n_threads,
            batch_bytes=resources.batch_bytes,
            budget_bytes=resources.budget_bytes,
        )

    def add(self, encoded: EncodedBatch) -> None:
        """Write what one batch became. Raises StorageError, DiskFullError; ChangedError for other bytes than before."""
        if self._gap is None or self._writer is None:
            return
        for run in encoded.runs:
            self._writer.append(self._cut(run))
        for skip in encoded.skips:
            as_then = msgspec.structs.replace(skip, path=self._paths[skip.path])
            self._repair.file(SKIPPED_NAME).append(msgspec.json.encode(as_then) + b"\n")
        self.counts += encoded.counts
        if _reaches(encoded.after, self._gap.end):
            self._open_next()

    def finish(self) -> None:
        """The corpus has ended, or the last gap. Raises ChangedError when something is missing."""
        while self._gap is not None:
            self._open_next()

    def _cut(self, run: Tokens) -> Tokens:
        """What of a run belongs to the gap; the rest is sound, and the writer must not begin files with it."""
        side = int(run.is_val)
        n = min(len(run.ids), self._tokens[side])
        ends = run.ends[: min(int(np.searchsorted(run.ends, n, side="right")), self._documents[side])]
        self._tokens[side] -= n
        self._documents[side] -= len(ends)
        return Tokens(run.is_val, run.ids[:n], ends)

    def _open_next(self) -> None:
        if self._gap is not None and self._writer is not None:
            self._close(self._gap, self._writer)
        self._gap = next(self._gaps, None)
        if self._gap is not None:
            self._repair.open_gap(self._gap)
            self._tokens, self._documents = list(self._gap.tokens), list(self._gap.documents)
            spec = msgspec.structs.replace(spec_of(self._content), part=self._gap.part)
            self._writer = make_writer(self._repair, self._gap.writer, spec)

    def _close(self, gap: Gap, writer: Writer) -> None:
        """Raises ChangedError when the corpus gave less than before."""
        is_short = any(self._tokens) or any(self._documents)
        if gap.is_last and not is_short:
            writer.finish()
        self._repair.close_gap()
        if is_short:
            raise other_corpus(f"the documents of segment {gap.last + 1:,}", self._repair.directory)


def check_sources(gaps: Sequence[Gap], content: Content) -> None:
    """Raises ChangedError when an input that is to be read again is not as it was, DamageError when it cannot be read again.

    UsageError for an output that no run with one set of options can make again.
    """
    inputs = content.inputs
    needed = {i for gap in gaps for i in range(gap.begin.input_index, gap.end.input_index + bool(gap.end.offset or gap.end.record))}
    if needed and not is_of_corpus(content):
        raise UsageError(
            "what is damaged cannot be made again: this output was put together from runs with other settings, or from bare files",
            where=MANIFEST_NAME,
            allowed="an output of tokmill tokenize, or made of such with the same settings",
            next_step="make it again from what it was made from (made_from in its manifest): the same command with --fresh",
        )
    for i in sorted(needed):
        source = inputs[i]
        if source.size_bytes is None:
            raise DamageError(
                "the output is damaged where it was made from what came through a pipe, which cannot be read again",
                where="standard input" if source.path == STDIN else source.path,
                allowed="inputs that are files",
                next_step="give a file with the same bytes in its place, --source INPUT..., or make the output again with --fresh",
            )
        what = _difference(source)
        if what:
            raise ChangedError(
                f"an input of the damaged range {what}",
                where=source.path,
                allowed="the inputs as they were when the output was made",
                next_step="put it back, or give the places of all inputs: --source INPUT...",
            )


def _difference(source: Input) -> str:
    """In what a file is not as it was; empty when it is. What is remote its store is asked when it is read."""
    if source.is_remote:
        return ""
    try:
        now = os.stat(text_to_path(source.path))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if now.st_size != source.size_bytes:
        return f"had {source.size_bytes:,} bytes, has {now.st_size:,}"
    if now.st_mtime_ns != source.mtime_ns:
        return "was modified (same size, another modification time)"
    return ""


def _reaches(after: Cursor | None, end: Cursor) -> bool:
    """Whether all that lies before `end` was read. after: behind a batch; None inside a document."""
    return after is not None and (after.input_index, after.offset, after.record) >= (end.input_index, end.offset, end.record)
