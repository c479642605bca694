"""Makes an output of complete outputs, step by step, without tokenizing: commits as a run of tokenize does, and resumes like one.

Cursors and counts of the output are those of one run over all inputs, so whatever works on such a run (resume, append, verify with
the sources) works on this output. The cursor of the last commit alone says where to go on.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tokmill.core.config import Provenance
from tokmill.core.errors import ChangedError, DamageError
from tokmill.core.events import Committed, Finished
from tokmill.core.manifest import FORMAT_VERSION, Manifest, published
from tokmill.core.outcome import Outcome, already_finished, outcome_of
from tokmill.core.output_spec import SIDES
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Counts, Cursor, FileEntry, path_to_text
from tokmill.core.system.memory import peak_rss_bytes
from tokmill.core.version import __version__
from tokmill.derive.arguments import Target
from tokmill.derive.copiers import ByteCopier, TokenCopier
from tokmill.formats import short_notices
from tokmill.output import (
    Output,
    RunHistoryRecorder,
    check_n_files,
    is_made,
    left_behind,
    open_output,
    rewriting_need,
    waiting_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tokmill.core.config import Content, How
    from tokmill.core.protocols import Observer
    from tokmill.derive.source import Source

    Maker = Callable[[Output, ProgressReporter], tuple[Manifest, int]]

_LOOK_S = 0.1
COMMIT_BYTES = 64 << 20
"""Output of one segment, at least: a commit costs an fsync (20 to 100 ms on a disk), copying so much takes about as long."""


class CopyRun:
    """Copies sources into an open output, with commits."""

    def __init__(
        self, sources: Sequence[Source], copier: ByteCopier | TokenCopier, output: Output, reporter: ProgressReporter
    ) -> None:
        self._sources = sources
        self._copier = copier
        self._output = output
        self._reporter = reporter
        self._n_inputs = 0
        """Inputs, as below counts, of the sources before the current one."""
        self._counts = Counts()
        self._position_bytes = 0
        self._uncommitted_bytes = 0
        self.written_bytes = 0
        """By this call."""

    def run(self) -> None:
        """Copy and commit everything that is not in the output yet. Raises DamageError, ChangedError, StorageError."""
        first, step = _find_step(self._sources, self._output)
        self._position_bytes = sum(source.size_bytes for source in self._sources[:first])
        self._reporter.started(sum(source.size_bytes for source in self._sources), self._position_bytes)
        for i, source in enumerate(self._sources):
            if i >= first:
                self._copy(source, step if i == first else 0, self._sources[:i])
            self._n_inputs += source.n_inputs
            self._counts += source.manifest.counts
        self._reporter.progress(self._position_bytes, is_last=True)

    def _copy(self, source: Source, first: int, before: Sequence[Source]) -> None:
        try:
            self._position_bytes += self._copier.begin_source(source, first, before)
            for number, step in enumerate(source.steps[first:], first):
                n_bytes = self._copier.copy_step(source, number)
                self._position_bytes += n_bytes
                self._uncommitted_bytes += n_bytes
                self.written_bytes += n_bytes
                if number == len(source.steps) - 1:
                    self._copier.end_source(source)
                if self._uncommitted_bytes >= COMMIT_BYTES:
                    self._commit(_shifted(step.after, self._n_inputs), self._counts + step.counts)
                self._reporter.progress(self._position_bytes)
        finally:
            source.close()

    def finish(self, *, complete: bool) -> Mapping[str, FileEntry]:
        """Commit the rest. complete: no other run goes on from here; returns the files, by name."""
        entries = self._copier.finish() if complete else {}
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
            self._copier.state(),
            self._output.elapsed_before_s + elapsed_s,
            lambda segment: self._reporter.emit(Committed(elapsed_s=elapsed_s, segment=segment, counts=counts)),
        )
        wait_for_stage(self._output, lambda: self._reporter.progress(self._position_bytes, is_last=True))


def _shifted(after: Cursor, n_inputs: int) -> Cursor:
    """Return a cursor of a source as one in a corpus in which so many inputs lie before it."""
    return msgspec.structs.replace(after, input_index=after.input_index + n_inputs)


def _find_step(sources: Sequence[Source], output: Output) -> tuple[int, int]:
    """Return source and step with which the output goes on. Raises ChangedError if its last commit is not of these sources."""
    if not output.segments:
        return 0, 0
    n_inputs = 0
    for i, source in enumerate(sources):
        for number, step in enumerate(source.steps, 1):
            if _shifted(step.after, n_inputs) == output.cursor:
                return i, number
        n_inputs += source.n_inputs
    raise ChangedError(
        "the work in this directory was begun with other outputs, or they were made again since",
        where=str(output.directory),
        allowed="the same outputs as when it was begun",
        next_step="restore them, choose another --out, or start over with --fresh",
    )


def derive_output(
    sources: Sequence[Source],
    content: Content,
    out: Path | Target,
    how: How,
    *,
    make: Maker,
    counts: Counts | None = None,
    scratch_bytes: int = 0,
    fresh: bool,
    force: bool,
    observers: Sequence[Observer],
    notices: Sequence[str],
) -> Outcome:
    """Make a complete output of `content` in `out` from the sources, or go on with it. Raises TokmillError.

    Args:
        sources: What it is made from, in order.
        content: Of the output.
        out: The output directory, or where else it is to be.
        how: The command, as the manifest says it.
        make: Makes it and publishes it.
        counts: Of the output; None: those of the sources added up.
        scratch_bytes: Needed on the disk while it is made, beside the output.
        fresh: As of `merge`.
        force: As of `merge`.
        observers: As of `merge`.
        notices: What a person should know first.
    """
    target = out if isinstance(out, Target) else Target(out)
    if not content.shards:
        # A side of one file is sent when it is complete.
        target = replace(target, stage_bytes=0)
    counts = sum((source.manifest.counts for source in sources), Counts()) if counts is None else counts
    reporter = ProgressReporter(observers)
    with target.place() as place:
        manifest, finished, written_bytes = place.begin(content, fresh=fresh, stage_bytes=target.stage_bytes), None, 0
        if manifest is None:
            if not force:
                _check_disk(target, content, counts, scratch_bytes, fresh=fresh)
            for notice in notices:
                reporter.notice(notice)
            for observer in place.observers:
                reporter.add(observer)
            manifest, finished, written_bytes = _make(target, content, make, reporter, fresh=fresh)
            finished = place.publish(finished, observers)
        finished = finished or already_finished(manifest)
    elapsed_s = reporter.elapsed_s
    # Not to the place: what it staged is gone.
    ProgressReporter(observers).emit(msgspec.structs.replace(finished, elapsed_s=elapsed_s))
    return outcome_of(
        manifest,
        place.url or str(target.name),
        [str(source.directory) for source in sources],
        elapsed_s,
        resumed=finished.resumed,
        already_complete=finished.already_complete,
        written_bytes=written_bytes,
        notices=[*notices, *short_notices(content, manifest.files, how), *_left_behind(target)],
    )


def _left_behind(target: Target) -> list[str]:
    return [] if isinstance(target.name, str) else left_behind(target.name)


def _check_disk(target: Target, content: Content, counts: Counts, scratch_bytes: int, *, fresh: bool) -> None:
    """Raise DiskFullError, UsageError for an output that will not fit where it is made."""
    path = Path(str(target.directory))
    if is_made(path, content, fresh=fresh):
        return
    need = rewriting_need(path, content, counts, fresh=fresh, scratch_bytes=scratch_bytes, stage_bytes=target.stage_bytes)
    need.check(is_staged=target.is_remote)
    if not need.written_bytes:
        n_documents = counts.documents_train + counts.documents_val
        check_n_files(content, counts.tokens_train + counts.tokens_val, n_documents, str(target.name))


def _make(
    target: Target, content: Content, make: Maker, reporter: ProgressReporter, *, fresh: bool
) -> tuple[Manifest, Finished, int]:
    """Make the output, or find it complete; return its manifest, how that ended, and the bytes that were written."""
    output = open_output(target.directory, content, __version__, fresh=fresh, segment_bytes=COMMIT_BYTES)
    resumed, written_bytes = False, 0
    if isinstance(output, Manifest):
        manifest = output
    else:
        output.stage_bytes = target.stage_bytes
        try:
            resumed = bool(output.segments)
            manifest, written_bytes = make(output, reporter)
        finally:
            output.close()
    finished = Finished(
        elapsed_s=reporter.elapsed_s,
        counts=manifest.counts,
        peak_rss_bytes=peak_rss_bytes(),
        resumed=resumed,
        already_complete=isinstance(output, Manifest),
        files=manifest.files,
    )
    return manifest, finished, written_bytes


def wait_for_stage(output: Output, tick: Callable[[], None]) -> None:
    """Wait until so few complete files wait here for a store as may; call it after a commit. tick: called now and then."""
    if output.stage_bytes:
        output.settle()
        while waiting_bytes(output.directory, output.committed()) > output.stage_bytes:
            tick()
            time.sleep(_LOOK_S)


def copied(
    sources: Sequence[Source],
    content: Content,
    how: How,
    output: Output,
    reporter: ProgressReporter,
    *,
    copies_bytes: bool = False,
) -> tuple[Manifest, int]:
    """Make an output of the documents of the sources, in order, and publish it: a Maker, all but the last two arguments given.

    copies_bytes: the sources are ids and nothing else, and so is the output. The rest as of `derive_output`. Returns the manifest
    and the bytes that were written.
    """
    copier = ByteCopier(output, content) if copies_bytes else TokenCopier(output, content)
    recorder = reporter.add(RunHistoryRecorder(output))
    run = CopyRun(sources, copier, output, reporter)
    try:
        run.run()
        entries = dict(run.finish(complete=True))
    except BaseException:
        recorder.save()
        raise
    # What was made of one output in its order, by convert or reshard.
    keeps_order = bool(content.origin and (content.origin.arranged or content.origin.deduplicated))
    manifest = publish(
        output,
        content,
        entries,
        output.counts,
        reporter,
        recorder,
        made_from=tuple(provenance(source, how) for source in sources),
        documents_digest=sources[0].manifest.documents_digest if keeps_order else msgspec.UNSET,
        removal=sources[0].manifest.removal if keeps_order else msgspec.UNSET,
        cut_short=sources[0].manifest.cut_short if len(sources) == 1 else msgspec.UNSET,
    )
    return manifest, run.written_bytes


def publish(
    output: Output,
    content: Content,
    entries: Mapping[str, FileEntry],
    counts: Counts,
    reporter: ProgressReporter,
    recorder: RunHistoryRecorder,
    **more: Any,
) -> Manifest:
    """Publish an output whose files are complete. more: further fields of its manifest, which is returned. Raises TokmillError."""
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        tokmill_version=__version__,
        fingerprint=content.fingerprint(),
        content=content,
        files=dict(entries),
        segments=published(output.segments, entries),
        counts=counts,
        elapsed_s=round(output.elapsed_before_s + reporter.elapsed_s, 3),
        peak_rss_bytes=peak_rss_bytes(),
        history=recorder.history(),
        **more,
    )
    output.publish(manifest)
    return manifest


def check_counts(output: Output, written: Counts, expected: Counts) -> None:
    """Raise DamageError unless as much was written as there must be."""
    for side in SIDES:
        for unit in ("documents", "tokens"):
            found, wanted = (getattr(counts, f"{unit}_{side}") for counts in (written, expected))
            if found != wanted:
                raise DamageError(
                    f"work in progress is damaged: {found:,} {unit} of {side} were written",
                    where=str(output.directory),
                    allowed=f"{wanted:,}",
                    next_step="run the same command again with --fresh",
                )


def provenance(source: Source, how: How, name: str = "") -> Provenance:
    """Return what the manifest of an output says of one that it was made from. name: what a recipe calls it."""
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
        is_arranged=is_arranged(source),
        made_from=manifest.made_from or (),
        name=name,
    )


def is_arranged(source: Source) -> bool:
    """Return whether the documents of a source are in another order than those of its inputs."""
    origin = source.content.origin
    return bool(origin and (origin.arranged or origin.packed))
