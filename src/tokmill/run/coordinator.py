"""The coordinator of a run: `python -m tokmill.run.coordinator JOB_FD EVENT_FD`.

It starts the workers, opens the output, says where results go, commits and publishes. The workers are forked before this process
has a second thread or has decoded the list of inputs, and after it has loaded what all of them need.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import Job
from tokmill.core.errors import InputError, MemoryBudgetError, TokmillError
from tokmill.core.events import AnyEvent, Finished, Started
from tokmill.core.manifest import FORMAT_VERSION, Manifest, published
from tokmill.core.outcome import already_finished
from tokmill.core.partition import outside_bytes
from tokmill.core.records import STDIN, Cursor, is_packed
from tokmill.core.system.memory import give_way, peak_rss_bytes, trim
from tokmill.core.version import __version__
from tokmill.encode import cutter_of, load_encoder, unknown_id
from tokmill.output import Output, RunHistoryRecorder, open_output, output_directory
from tokmill.read import READERS, load_readers
from tokmill.run.encoding import COMMITTED, EncodingProcess, auditor_of, serve, watched
from tokmill.run.memory_guard import MemorySample, SharedPages, limit_growth, take_memory_sample
from tokmill.run.pool import Pool
from tokmill.run.segment_writer import SegmentWriter
from tokmill.run.token_limits import LastPlace, TokenLimits, cut_notices, has_limits
from tokmill.run.worker import Worker
from tokmill.store import register_urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokmill.core.records import EncodedBatch
    from tokmill.core.system.process import Parent


class Coordinator(EncodingProcess):
    """Makes one output."""

    RESUMES = True
    _recorder: RunHistoryRecorder | None = None
    _is_cut = False
    """Whether the output ended where `--max-tokens` were reached."""

    def __init__(self, job: Job, emit: Callable[[AnyEvent], None], pool: Pool) -> None:
        """job: what to do. emit: takes events, from any thread. pool: the workers."""
        self._now_bytes = self._peak_bytes = peak_rss_bytes()
        shared = SharedPages()

        def look() -> MemorySample:
            limit_growth(job.resources.child_bytes)
            sample = take_memory_sample(shared.own_bytes(pool.pids()))
            self._now_bytes = sample.own_bytes
            self._peak_bytes = max(self._peak_bytes, sample.own_bytes)
            return sample

        super().__init__(job, emit, look)
        self._pool = pool
        pool.on_event = self._tell_all

    def stop(self) -> None:
        """See EncodingProcess."""
        super().stop()
        self._pool.stop()

    def leave(self, why: str) -> None:
        """See EncodingProcess."""
        super().leave(why)
        self._pool.stop()

    def pause(self, *, paused: bool) -> None:
        """See EncodingProcess."""
        super().pause(paused=paused)
        self._pool.pause(paused=paused)

    def reset_caches(self) -> None:
        """See EncodingProcess."""
        self._pool.reset_caches()

    def _rss_bytes(self) -> int:
        return self._now_bytes

    def run(self) -> None:
        """Tokenize, publish, and emit Finished. Raises TokmillError."""
        job = self._job
        segment_bytes = job.resources.segment_bytes
        output = open_output(
            output_directory(job),
            job.content,
            __version__,
            fresh=job.fresh,
            replacing=job.replacing,
            segment_bytes=segment_bytes,
            can_append=not (job.destination or has_limits(job.content) or job.content.val_tail),
        )
        if isinstance(output, Manifest):
            self._emit(already_finished(output))
            return
        self._limits = TokenLimits(job.content, output.counts, output.cursor)
        try:
            self._run(output)
        except TokmillError as error:
            if not output.segments:
                error.resumes, error.what = False, error.what.replace(COMMITTED, "nothing was committed")
            raise
        finally:
            # They hold its lock, too.
            self._pool.close()
            output.close()

    def _run(self, output: Output) -> None:
        resumed = bool(output.segments)
        recorder = self._recorder = RunHistoryRecorder(output)
        writer = SegmentWriter(self._job, output, self._tell_all, self._position(output.cursor))
        self._tell_all(self._started(output))
        output.elsewhere = self._pool
        self._pool.share_lock(output.lock)
        with self._guarded():
            try:
                for encoded in self._results(writer):
                    if not writer.wait_for_stage(encoded, lambda: self._tell_of(writer), lambda: self._is_ending):
                        raise self._ended(output.directory)
                    writer.add(encoded)
                writer.wait_for_stdin_end()
                if self._is_to_end():
                    raise self._ended(output.directory)
            except BaseException:
                if self._stopped:
                    writer.doubt_stdin_end()
                # What was written before the error, or before the place at which a worker died, is kept.
                writer.commit()
                output.settle()
                recorder.save()
                raise
        manifest = self._manifest(output, writer, recorder)
        # Before the parent hears that all is done, so that none of them outlives it.
        self._pool.close()
        output.publish(manifest)
        finished = _finished(manifest, writer.elapsed_s, resumed=resumed)
        notices = self._pool.notes.notices(self._job.content)
        self._emit(msgspec.structs.replace(finished, notices=[*notices, *cut_notices(manifest)]))

    def _results(self, writer: SegmentWriter) -> Iterator[EncodedBatch]:
        """Yield what became of the corpus from the last commit on, up to where the output ends."""
        limits, content = self._limits, self._job.content
        # What was read of a pipe is gone, so its records must be told apart wherever the output may end.
        one_by_one = is_piped = bool(content.max_tokens) and any(source.size_bytes is None for source in content.inputs)
        last = LastPlace(writer)
        if limits.is_reached:
            yield from self._rest(self._read(writer.reached, writer, one_by_one=True), is_piped=is_piped)
            return
        batches = self._read(writer.reached, writer, one_by_one=one_by_one, n_left=limits.n_left)
        while True:
            try:
                encoded = next(batches, None)
            except (InputError, MemoryBudgetError):
                if one_by_one or not content.max_tokens or not writer.is_at_cursor:
                    raise
                # The record may lie behind the end, in a batch with the last document.
                one_by_one = True
                batches = self._read(last.cursor, writer, one_by_one=True)
                continue
            if encoded is None:
                return
            limited, is_last = limits.applied(encoded)
            if limits.is_val_full:
                self._pool.end_validation()
            if is_last:
                ones = batches
                if not one_by_one:
                    ones = self._read(last.cursor, writer, one_by_one=True)
                    ended = last.ended(limited, ones)
                    if ended is None:
                        return
                    limited = ended
                yield limited
                yield from self._rest(ones, is_piped=is_piped)
                return
            last.add(limited)
            yield limited
            last.update()

    def _rest(self, ones: Iterator[EncodedBatch], *, is_piped: bool) -> Iterator[EncodedBatch]:
        """Yield the end of the corpus if no record comes before it; else note that the output ends sooner. Waits for no pipe."""
        rest: list[EncodedBatch] = []
        try:
            for each in ones if not is_piped else ():
                self._is_cut = bool(each.counts.documents or each.skips)
                if self._is_cut:
                    return
                rest.append(each)
        except (InputError, MemoryBudgetError):
            self._is_cut = True
            return
        self._is_cut = is_piped
        yield from rest

    def _read(self, start: Cursor, writer: SegmentWriter, *, one_by_one: bool, n_left: int | None = None) -> Iterator[EncodedBatch]:
        content, n_bytes = self._job.content, self._job.resources.range_bytes
        return self._pool.results(content, start, n_bytes, lambda: self._tick(writer), one_by_one=one_by_one, n_left=n_left)

    def _tick(self, writer: SegmentWriter) -> None:
        writer.commit_if_due()
        self._tell_of(writer)

    def _tell_of(self, writer: SegmentWriter) -> None:
        self._tell(writer.elapsed_s, writer.position_bytes, writer.counts)

    def _is_to_end(self) -> bool:
        """Whether the run ends here: before the corpus does, or by a signal that may have ended standard input, too."""
        if self._is_cut:
            return False
        return not self._pool.is_at_end or (self._stopped and any(i.path == STDIN for i in self._job.content.inputs))

    def _is_short(self, cursor: Cursor) -> bool:
        """Return whether the output ended before the corpus did."""
        return self._is_cut and cursor.input_index < len(self._job.content.inputs)

    def _position(self, cursor: Cursor) -> int:
        """Bytes of the inputs on disk before the cursor, without those of a compressed input that was begun."""
        inputs = self._job.content.inputs
        before = sum(i.size_bytes or 0 for i in inputs[: cursor.input_index])
        before -= self._outside()[0] if before or cursor.offset else 0
        is_plain = cursor.input_index < len(inputs) and not is_packed(inputs[cursor.input_index])
        return before + (cursor.offset if is_plain else 0)

    def _outside(self) -> tuple[int, int]:
        """Bytes of the inputs before and after the part that the job makes."""
        return outside_bytes(self._job.content.part, self._job.content.inputs)

    def _tell_all(self, event: AnyEvent) -> None:
        super()._tell_all(event)
        if self._recorder is not None:
            self._recorder.on_event(event)

    def _started(self, output: Output) -> Started:
        inputs, resources = self._job.content.inputs, self._job.resources
        sizes = [i.size_bytes for i in inputs]
        return Started(
            total_bytes=sum(s for s in sizes if s is not None) - sum(self._outside()) if None not in sizes else None,
            resumed_bytes=output.counts.bytes_in,
            position_bytes=self._position(output.cursor),
            n_threads=resources.n_workers,
            batch_bytes=resources.batch_bytes,
            budget_bytes=resources.budget_bytes,
            is_packed=any(map(is_packed, inputs)),
        )

    def _manifest(self, output: Output, writer: SegmentWriter, recorder: RunHistoryRecorder) -> Manifest:
        entries = writer.finish(is_cut=self._is_cut)
        self._tell_of(writer)
        return Manifest(
            format_version=FORMAT_VERSION,
            tokmill_version=__version__,
            fingerprint=self._job.content.fingerprint(),
            content=self._job.content,
            files=entries,
            segments=published(output.segments, entries),
            counts=writer.counts,
            elapsed_s=round(output.elapsed_before_s + writer.elapsed_s, 3),
            peak_rss_bytes=self._peak_bytes,
            made_from=self._job.made_from or msgspec.UNSET,
            cut_short=self._is_short(writer.reached) or msgspec.UNSET,
            history=recorder.history(),
        )


def _finished(manifest: Manifest, elapsed_s: float, *, resumed: bool) -> Finished:
    return Finished(
        elapsed_s=elapsed_s, counts=manifest.counts, peak_rss_bytes=manifest.peak_rss_bytes, resumed=resumed, files=manifest.files
    )


def _carry_out(parent: Parent) -> None:
    """Take the job, start the workers, and run."""
    question = parent.question()
    inputs, job = _without_inputs(question)
    if job.resources.nice:
        give_way()
    register_urls(job.urls)
    limit_growth(job.resources.child_bytes)
    load_readers([name for name in READERS if b'"format":"%s"' % name.encode() in inputs])
    pool = start_workers(job)
    del inputs
    try:
        job = msgspec.json.decode(question, type=Job)
        del question
        watched(Coordinator(job, parent.emit, pool), parent)
    finally:
        pool.close()


def _without_inputs(question: bytes) -> tuple[bytes, Job]:
    """Return the inputs of a job as JSON, and the job without them: workers need none but those of their ranges."""
    job = msgspec.json.decode(question, type=dict[str, msgspec.Raw])
    content = msgspec.json.decode(job["content"], type=dict[str, msgspec.Raw])
    inputs, content["inputs"] = bytes(content["inputs"]), msgspec.Raw(b"[]")
    job["content"] = msgspec.Raw(msgspec.json.encode(content))
    return inputs, msgspec.json.decode(msgspec.json.encode(job), type=Job)


def start_workers(job: Job, kind: type[Pool] = Pool) -> Pool:
    """Start the workers of a job; its inputs are not needed. Raises UsageError, ChangedError for its tokenizer."""
    content, resources = job.content, job.resources
    encoders, cutter = [load_encoder(content.tokenizer, resources.engine)], cutter_of(content.tokenizer)
    unknown, auditor = unknown_id(content.tokenizer), auditor_of(job, cutter)
    pool = kind(
        resources.n_workers,
        resources.arena_bytes,
        resources.n_long,
        lambda number: Worker(number, job, encoders[0], auditor, cutter, unknown),
    )
    # The workers have it now.
    encoders.clear()
    trim()
    return pool


if __name__ == "__main__":
    serve(_carry_out, int(sys.argv[1]), int(sys.argv[2]))
