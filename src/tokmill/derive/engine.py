"""Makes one output of sources, step by step, without tokenizing: commits as a run of tokenize does, and resumes like one.

Cursors and counts of the output are those of one run over all inputs, so whatever works on such a run (resume, append, verify with
the sources) works on what was merged. The place to go on is found by the cursor of the last commit alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from tokmill.core.errors import ChangedError
from tokmill.core.events import Committed, Finished
from tokmill.core.manifest import FORMAT_VERSION, Manifest, published
from tokmill.core.outcome import Outcome, outcome_of
from tokmill.core.progress import ProgressReporter
from tokmill.core.provenance import Provenance
from tokmill.core.records import Counts, Cursor, FileEntry, path_to_text
from tokmill.core.system.memory import peak_rss_bytes
from tokmill.core.version import __version__
from tokmill.formats import tail_notices
from tokmill.output import Output, RunHistoryRecorder, is_made, open_output, rewriting_need

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tokmill.core.config import Content
    from tokmill.core.protocols import Observer
    from tokmill.core.provenance import How
    from tokmill.derive.source import Source

COMMIT_BYTES = 64 << 20
"""Output of one segment, at least: a commit costs an fsync (20 to 100 ms on a disk), copying so much takes about as long."""


class Carrier(Protocol):
    """Takes a source's steps into the output."""

    def begin(self, source: Source, step: int, before: Sequence[Source]) -> int:
        """A source's turn begins, at a step; `before` it came others. Returns the bytes of the source that lie before."""

    def carry(self, source: Source, step: int) -> int:
        """Append what one step has. Returns its bytes. Raises DamageError, StorageError, DiskFullError."""

    def end(self, source: Source) -> None:
        """All steps of a source were carried. Raises DamageError when they do not add up."""

    def state(self) -> dict[str, int]:
        """State of the writer, for the journal."""

    def finish(self) -> dict[str, FileEntry]:
        """Append what can be known only at the end; describe the files, by name."""


class Replay:
    """Carries sources into an output that was opened for them."""

    def __init__(self, sources: Sequence[Source], carrier: Carrier, output: Output, reporter: ProgressReporter) -> None:
        self._sources = sources
        self._carrier = carrier
        self._output = output
        self._reporter = reporter
        self._n_inputs = 0
        """Of the sources before the current one."""
        self._counts = Counts()
        """Likewise."""
        self._position_bytes = 0
        self._uncommitted_bytes = 0
        self.written_bytes = 0
        """By this call."""

    def run(self) -> None:
        """Carry everything that is not in the output yet, and commit it. Raises DamageError, ChangedError, StorageError."""
        first, step = find_place(self._sources, self._output)
        self._position_bytes = sum(source.size_bytes for source in self._sources[:first])
        self._reporter.started(sum(source.size_bytes for source in self._sources), self._position_bytes)
        for i, source in enumerate(self._sources):
            if i >= first:
                self._carry(source, step if i == first else 0, self._sources[:i])
            self._n_inputs += source.n_inputs
            self._counts += source.manifest.counts
        self._reporter.progress(self._position_bytes, is_last=True)

    def _carry(self, source: Source, first: int, before: Sequence[Source]) -> None:
        try:
            self._position_bytes += self._carrier.begin(source, first, before)
            for number in range(first, len(source.steps)):
                n_bytes = self._carrier.carry(source, number)
                self._position_bytes += n_bytes
                self._uncommitted_bytes += n_bytes
                self.written_bytes += n_bytes
                is_last = number == len(source.steps) - 1
                if is_last:
                    self._carrier.end(source)
                if self._uncommitted_bytes >= COMMIT_BYTES:
                    self._commit(shifted(source.steps[number].after, self._n_inputs), self._counts + source.steps[number].counts)
                self._reporter.progress(self._position_bytes)
        finally:
            source.close()

    def finish(self, *, complete: bool) -> dict[str, FileEntry]:
        """Commit the rest, behind which the output is complete, or another run goes on. Returns the files, by name, if complete."""
        entries = self._carrier.finish() if complete else {}
        after = Cursor(input_index=self._n_inputs)
        self._output.settle()
        if after != self._output.cursor or self._output.is_ahead:
            self._commit(after, self._counts)
        self._output.settle()
        return entries

    def _commit(self, after: Cursor, counts: Counts) -> None:
        elapsed_s = self._reporter.elapsed_s
        self._uncommitted_bytes = 0
        self._output.commit(
            after,
            counts,
            self._carrier.state(),
            self._output.elapsed_before_s + elapsed_s,
            lambda segment: self._reporter.emit(Committed(elapsed_s=elapsed_s, segment=segment, counts=counts)),
        )


def shifted(after: Cursor, n_inputs: int) -> Cursor:
    """A cursor of a source in a corpus in which so many inputs lie before it."""
    return msgspec.structs.replace(after, input_index=after.input_index + n_inputs)


def find_place(sources: Sequence[Source], output: Output) -> tuple[int, int]:
    """The source and its step with which the output goes on. Raises ChangedError when its last commit is not of these sources."""
    if not output.segments:
        return 0, 0
    n_inputs = 0
    for i, source in enumerate(sources):
        for number, step in enumerate(source.steps, 1):
            if shifted(step.after, n_inputs) == output.cursor:
                return i, number
        n_inputs += source.n_inputs
    raise ChangedError(
        "the work in this directory was begun with other outputs, or they were made again since",
        where=str(output.directory),
        allowed="the same outputs as when it was begun",
        next_step="restore them, choose another --out, or start over with --fresh",
    )


def carry_all(
    sources: Sequence[Source],
    content: Content,
    out: Path,
    how: How,
    make_carrier: Callable[[Output], Carrier],
    *,
    fresh: bool,
    force: bool,
    observers: Sequence[Observer],
    notices: Sequence[str],
) -> Outcome:
    """Make a complete output of `content` in `out`. notices: what a person should know first; force: also where it will not fit.

    Raises TokmillError.
    """
    if not force and not is_made(out, content, fresh=fresh):
        rewriting_need(out, content, sum((source.manifest.counts for source in sources), Counts()), fresh=fresh).check()
    reporter = ProgressReporter(observers)
    for notice in notices:
        reporter.notice(notice)
    work = _Work(sources, content, out, how, reporter, notices)
    output = open_output(out, content, __version__, fresh=fresh)
    if isinstance(output, Manifest):
        return work.outcome(output, already_complete=True)
    try:
        resumed = bool(output.segments)
        recorder = reporter.add(RunHistoryRecorder(output))
        replay = Replay(sources, make_carrier(output), output, reporter)
        try:
            replay.run()
            entries = replay.finish(complete=True)
        except BaseException:
            recorder.save()
            raise
        manifest = work.manifest(output, entries, recorder)
        output.publish(manifest)
    finally:
        output.close()
    return work.outcome(manifest, resumed=resumed, written_bytes=replay.written_bytes)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be made of what."""

    sources: Sequence[Source]
    content: Content
    out: Path
    how: How
    reporter: ProgressReporter
    notices: Sequence[str]

    def manifest(self, output: Output, entries: dict[str, FileEntry], recorder: RunHistoryRecorder) -> Manifest:
        """The manifest of the complete output."""
        return Manifest(
            format_version=FORMAT_VERSION,
            tokmill_version=__version__,
            fingerprint=self.content.fingerprint(),
            content=self.content,
            files=entries,
            segments=published(output.segments, entries),
            counts=output.counts,
            elapsed_s=round(output.elapsed_before_s + self.reporter.elapsed_s, 3),
            peak_rss_bytes=peak_rss_bytes(),
            made_from=tuple(provenance(source, self.how) for source in self.sources),
            history=recorder.history(),
        )

    def outcome(
        self, manifest: Manifest, *, resumed: bool = False, written_bytes: int = 0, already_complete: bool = False
    ) -> Outcome:
        """What is to be said of it."""
        elapsed_s = self.reporter.elapsed_s
        finished = Finished(
            elapsed_s=elapsed_s,
            counts=manifest.counts,
            peak_rss_bytes=peak_rss_bytes(),
            resumed=resumed,
            already_complete=already_complete,
            files=manifest.files,
        )
        self.reporter.emit(finished)
        return outcome_of(
            manifest,
            str(self.out),
            [str(source.directory) for source in self.sources],
            elapsed_s,
            resumed=resumed,
            already_complete=already_complete,
            written_bytes=written_bytes,
            notices=[*self.notices, *tail_notices(self.content, manifest.files, self.how)],
        )


def provenance(source: Source, how: How) -> Provenance:
    """What the manifest of an output says of one that it was made from."""
    manifest, counts = source.manifest, source.manifest.counts
    return Provenance(
        how=how,
        path=path_to_text(str(source.directory)),
        format=source.content.format,
        fingerprint=manifest.fingerprint,
        tokmill_version=manifest.tokmill_version,
        n_inputs=source.n_inputs,
        tokens_train=counts.tokens_train,
        tokens_val=counts.tokens_val,
        documents_train=counts.documents_train,
        documents_val=counts.documents_val,
        made_from=manifest.made_from or (),
    )
