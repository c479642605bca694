"""The process that tokenizes: `python -m tokmill.run.worker JOB_FD EVENT_FD`.

It reads its job as one line of JSON from JOB_FD and writes events as JSON lines to EVENT_FD. JOB_FD stays open as a lifeline: the
line `stop` asks for a checkpoint and an orderly end, and its end (the parent is dead) ends the worker at once, so that no orphan
goes on writing. It touches neither standard output nor, unless the engine itself does, standard error.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.check import GapReader, Mender, check_sources, open_repair
from tokmill.core.config import MIB
from tokmill.core.errors import Interrupted, MemoryBudgetError, TokmillError
from tokmill.core.events import AnyEvent, CachesReset, Finished, Notice, Progress, Repaired, Started
from tokmill.core.manifest import FORMAT_VERSION, Manifest, published
from tokmill.core.partition import outside_bytes
from tokmill.core.records import STDIN, Counts, Cursor, is_packed, text_to_path
from tokmill.core.system.budget import CacheReset
from tokmill.core.system.memory import cgroup_limit_bytes, data_bytes, give_way, machine_bytes, peak_rss_bytes, rss_bytes
from tokmill.core.system.process_child import Line, failed_event
from tokmill.core.version import __version__
from tokmill.encode import cutter_of, disable_awkward, load_encoder, reference_of
from tokmill.output import Output, RunHistoryRecorder, open_output
from tokmill.read import CorpusReader
from tokmill.run.audit import Auditor
from tokmill.run.encode_batch import EncodeStage
from tokmill.run.memory_guard import Guard, Limits, MemorySample, reserve_bytes, take_memory_sample
from tokmill.run.pipeline import Flow, Pipeline
from tokmill.run.segment_writer import SegmentWriter
from tokmill.run.stage_limit import wait_for_room
from tokmill.store import restore

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tokmill.check import Repair
    from tokmill.core.config import Job
    from tokmill.core.protocols import Cutter, Reader
    from tokmill.core.records import EncodedBatch

_STACK_BYTES = 2 * MIB
"""Of a thread; the usual 8 MiB are never used, but count against the limit on data."""
_ROOM_BYTES = 12 * MIB
"""Beyond what the budget leaves, that data may grow by before the next look: stacks of threads."""

_TICK_S = 0.2
_COMMITTED = ("everything so far is committed", "run the same command without --fresh again")
_NOTHING_REPLACED = ("nothing was replaced", "run the command again")
"""What becomes of the work when a run ends early, and what to do then."""


class Worker:
    """Carries out one job in this process."""

    def __init__(self, job: Job, emit: Callable[[AnyEvent], None], look: Callable[[], MemorySample] = take_memory_sample) -> None:
        """look: what the guard knows of memory."""
        self._job = job
        self._emit = emit
        self._look_at_memory = look
        self._flow = Flow(job.resources.in_flight_bytes)
        self._cache_reset = CacheReset(job.resources.reset_above_bytes, self._on_caches_reset)
        self._leaving: str | None = None
        self._stopped = False
        self._recorder: RunHistoryRecorder | None = None
        self._started_s = time.monotonic()

    def stop(self) -> None:
        """Ask for a checkpoint and an orderly end; from any thread."""
        self._stopped = True
        self._flow.stop()

    # What the guard may do: `guard.Actions`.

    def reset_caches(self) -> None:
        """Let the encoder threads give back their caches."""
        self._cache_reset.ask()

    def shrink(self) -> None:
        """Halve what is on its way."""
        self._flow.shrink()
        self._tell_all(Notice(text="memory is short: fewer batches on their way"))

    def pause(self, *, paused: bool) -> None:
        """Stop reading, or go on."""
        self._flow.pause(paused=paused)
        self._tell_all(Notice(text="memory is short: reading is paused" if paused else "reading goes on"))

    def leave(self, why: str) -> None:
        """Checkpoint and end, for lack of memory."""
        self._leaving = why
        self._flow.stop()

    def run(self) -> None:
        """Tokenize, or mend; publish, and emit Finished. Raises TokmillError."""
        directory = Path(text_to_path(self._job.out))
        job = self._job
        if job.mends:
            self._mend(directory)
            return
        output = open_output(directory, job.content, __version__, fresh=job.fresh, replacing=job.replacing)
        if isinstance(output, Manifest):
            self._emit(_already_complete(output))
            return
        try:
            self._run(output)
        finally:
            output.close()

    def _run(self, output: Output) -> None:
        resumed = bool(output.segments)
        recorder = self._recorder = RunHistoryRecorder(output)
        writer = SegmentWriter(self._job, output, self._tell_all, self._position(output.cursor))
        self._tell_all(self._started(output))
        reader = self._reader()
        with self._encoded(reader, output.cursor, writer) as results:
            try:
                for encoded in results:
                    if not self._has_room(output, writer, encoded):
                        raise self._ended(output.directory, _COMMITTED)
                    writer.add(encoded)
                writer.wait_for_stdin_end()
                if self._is_to_end(writer, reader):
                    raise self._ended(output.directory, _COMMITTED)
            except BaseException:
                # What was written before is kept, whatever went wrong behind it.
                writer.commit()
                output.settle()
                recorder.save()
                raise
        manifest = self._manifest(output, writer, recorder)
        output.publish(manifest)
        self._emit(_finished(manifest, writer.elapsed_s, resumed=resumed))

    def _has_room(self, output: Output, writer: SegmentWriter, encoded: EncodedBatch) -> bool:
        """Wait until there is; False when the run is to end instead."""
        limit_bytes, is_ending = self._job.resources.stage_bytes, lambda: self._stopped or self._leaving is not None
        on_tick = lambda: self._tell(writer.elapsed_s, writer.position_bytes, writer.counts)  # noqa: E731  short
        return wait_for_room(output, writer, encoded, limit_bytes, on_tick, is_ending)

    def _is_to_end(self, writer: SegmentWriter, reader: CorpusReader) -> bool:
        """Whether the run ends here: before the corpus does, or by a signal that may have ended standard input, too."""
        inputs, reached = self._job.content.inputs, writer.reached
        is_behind = reached.input_index >= len(inputs) or reached == reader.end
        return not is_behind or (self._stopped and any(i.path == STDIN for i in inputs))

    def _mend(self, directory: Path) -> None:
        repair = open_repair(directory)
        try:
            self._look(repair)
            mender = Mender(self._job, repair)
            if repair.gaps:
                self._fill(repair, mender)
            repair.publish()
        finally:
            repair.close()
        for name, file in repair.files.items():
            for begin, end in file.mended or [(file.length, file.length)]:
                self._emit(Repaired(file=name, begin_byte=begin, end_byte=end))
        self._emit(Finished(elapsed_s=self._elapsed_s, counts=mender.counts, peak_rss_bytes=peak_rss_bytes(), resumed=False))

    def _look(self, repair: Repair) -> None:
        """Find the gaps. Raises Interrupted."""
        total = sum(entry.size_bytes for entry in repair.manifest.files.values())
        position, next_tick = 0, time.monotonic()

        def on_bytes(n_bytes: int) -> None:
            nonlocal position, next_tick
            position += n_bytes
            if self._stopped:
                raise self._ended(repair.directory, _NOTHING_REPLACED)
            if time.monotonic() >= next_tick:
                next_tick += _TICK_S
                self._tell(self._elapsed_s, position, Counts())

        self._emit(Notice(text="looking for damage"))
        self._emit(Started(total_bytes=total))
        repair.look(on_bytes)

    def _fill(self, repair: Repair, mender: Mender) -> None:
        """Make the gaps' bytes again. Raises what tokenizing them raises."""
        from tokmill.dataset import find_tokenizer

        content = self._job.content
        check_sources(repair.gaps, content)
        # The output may have been made on another machine, where the tokenizer's file was elsewhere.
        content = msgspec.structs.replace(content, tokenizer=find_tokenizer(content.tokenizer))
        self._job = msgspec.structs.replace(self._job, content=content)
        self._emit(Notice(text=f"damage in {', '.join(repair.files)}: that part of the corpus is read again"))
        self._emit(mender.started())
        with self._encoded(GapReader(self._reader(), repair.gaps), repair.gaps[0].begin, mender) as results:
            for encoded in results:
                mender.add(encoded)
        if self._stopped or self._leaving:
            raise self._ended(repair.directory, _NOTHING_REPLACED)
        mender.finish()

    def _ended(self, directory: Path, so_far: tuple[str, str]) -> TokmillError:
        return _low_memory(self._leaving, directory, so_far) if self._leaving else _interrupted(directory, so_far)

    def _position(self, cursor: Cursor) -> int:
        """Bytes on disk before the cursor; of a compressed input that was begun, none."""
        inputs = self._job.content.inputs
        before = sum(i.size_bytes or 0 for i in inputs[: cursor.input_index])
        before -= self._outside()[0] if before or cursor.offset else 0
        is_plain = cursor.input_index < len(inputs) and not is_packed(inputs[cursor.input_index])
        return before + (cursor.offset if is_plain else 0)

    def _outside(self) -> tuple[int, int]:
        """Bytes of the inputs before and behind what the job has a share in."""
        return outside_bytes(self._job.content.part, self._job.content.inputs)

    @cached_property
    def _cutter(self) -> Cutter | None:
        return cutter_of(self._job.content.tokenizer)

    def _reader(self) -> CorpusReader:
        content = self._job.content
        return CorpusReader(content, self._job.resources, self._cutter)

    @contextmanager
    def _encoded(
        self, reader: Reader, start: Cursor, done: SegmentWriter | Mender
    ) -> Iterator[Generator[EncodedBatch, None, None]]:
        """Encoded batches from `start` on, under the guard's eye. done: says how far they were taken."""
        results = self._pipeline(reader, done).results(start, _TICK_S)
        guard = Guard(_limits(self._job), self, self._look_at_memory)
        guard.start()
        try:
            yield results
        finally:
            guard.stop()
            results.close()

    def _pipeline(self, reader: Reader, done: SegmentWriter | Mender) -> Pipeline:
        content, resources = self._job.content, self._job.resources
        reference = reference_of(content.tokenizer)
        fraction = resources.audit_fraction if resources.engine != reference else 0.0
        auditor = Auditor(lambda: load_encoder(content.tokenizer, reference), self._cutter, fraction, reference)
        return Pipeline(
            reader,
            lambda: EncodeStage(content, load_encoder(content.tokenizer, resources.engine), auditor),
            n_threads=resources.n_threads,
            flow=self._flow,
            cache_reset=self._cache_reset,
            on_tick=lambda: self._tell(done.elapsed_s, done.position_bytes, done.counts),
        )

    def _tell(self, elapsed_s: float, position_bytes: int, counts: Counts) -> None:
        self._tell_all(Progress(elapsed_s=elapsed_s, position_bytes=position_bytes, counts=counts, rss_bytes=rss_bytes()))

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _tell_all(self, event: AnyEvent) -> None:
        self._emit(event)
        if self._recorder is not None:
            self._recorder.on_event(event)

    def _on_caches_reset(self, before: int, after: int) -> None:
        self._tell_all(CachesReset(elapsed_s=self._elapsed_s, rss_before_bytes=before, rss_after_bytes=after))

    def _started(self, output: Output) -> Started:
        inputs, resources = self._job.content.inputs, self._job.resources
        sizes = [i.size_bytes for i in inputs]
        return Started(
            total_bytes=sum(s for s in sizes if s is not None) - sum(self._outside()) if None not in sizes else None,
            resumed_bytes=output.counts.bytes_in,
            position_bytes=self._position(output.cursor),
            n_threads=resources.n_threads,
            batch_bytes=resources.batch_bytes,
            budget_bytes=resources.budget_bytes,
            is_packed=any(map(is_packed, inputs)),
        )

    def _manifest(self, output: Output, writer: SegmentWriter, recorder: RunHistoryRecorder) -> Manifest:
        entries = writer.finish()
        self._tell(writer.elapsed_s, writer.position_bytes, writer.counts)
        return Manifest(
            format_version=FORMAT_VERSION,
            tokmill_version=__version__,
            fingerprint=self._job.content.fingerprint(),
            content=self._job.content,
            files=entries,
            segments=published(output.segments, entries),
            counts=writer.counts,
            elapsed_s=round(output.elapsed_before_s + writer.elapsed_s, 3),
            peak_rss_bytes=peak_rss_bytes(),
            made_from=self._job.made_from or msgspec.UNSET,
            history=recorder.history(),
        )


def _already_complete(manifest: Manifest) -> Finished:
    finished = _finished(manifest, manifest.elapsed_s, resumed=False)
    return msgspec.structs.replace(finished, already_complete=True, peak_rss_bytes=manifest.peak_rss_bytes)


def _finished(manifest: Manifest, elapsed_s: float, *, resumed: bool) -> Finished:
    return Finished(
        elapsed_s=elapsed_s, counts=manifest.counts, peak_rss_bytes=peak_rss_bytes(), resumed=resumed, files=manifest.files
    )


def _limits(job: Job) -> Limits:
    resources = job.resources
    return Limits(
        worker_bytes=resources.worker_bytes, reserve_bytes=reserve_bytes(min(machine_bytes(), cgroup_limit_bytes() or 1 << 60))
    )


def _low_memory(why: str, directory: Path, so_far: tuple[str, str]) -> MemoryBudgetError:
    state, next_step = so_far
    return MemoryBudgetError(
        f"memory ran low: {why}; {state}",
        where=str(directory),
        allowed="the budget (--memory), and a reserve that the machine keeps",
        next_step=f"end other programs, or change --memory; then {next_step}",
        resumes=so_far is _COMMITTED,
    )


def _interrupted(directory: Path, so_far: tuple[str, str]) -> Interrupted:
    state, next_step = so_far
    return Interrupted(
        f"interrupted; {state}",
        where=str(directory),
        allowed="stopping at any time",
        next_step=next_step,
        resumes=so_far is _COMMITTED,
    )


def main(job_fd: int, event_fd: int) -> None:
    """Entry point of the process."""
    from tokmill.core.config import Job

    threading.stack_size(_STACK_BYTES)
    disable_awkward()
    line = Line(job_fd, event_fd)
    job = msgspec.json.decode(line.question(), type=Job)
    if job.resources.nice:
        give_way()
    restore(job.urls)
    _limit_growth(job.resources.worker_bytes)
    worker = Worker(job, line.emit, _watchful_look(job.resources.worker_bytes))
    # Ctrl-C ends the program that feeds standard input, too: seen here, its end is not taken for the end of the corpus.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda _signum, _frame: worker.stop())
    line.watch(worker.stop)
    try:
        worker.run()
    except BaseException as error:  # noqa: BLE001  the parent is told of whatever it is, panics of engines too
        line.emit(failed_event(error))
    sys.stderr.flush()
    # Threads may still wait for standard input or hold the engine; everything durable is done.
    os._exit(0)


def _limit_growth(budget_bytes: int) -> None:
    """Let an allocation beyond the budget fail here, in a process that can be resumed, before the machine runs out of memory.

    The system limits data, touched or not, and memory that was given back to it may still count (up to 400 MiB measured): so the
    limit is what counts now and what resident memory may still grow by, and is set anew with every look of the guard.
    """
    resident, data = rss_bytes(), data_bytes()
    most = data + max(0, budget_bytes - resident) + _ROOM_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _watchful_look(budget_bytes: int) -> Callable[[], MemorySample]:
    def look() -> MemorySample:
        _limit_growth(budget_bytes)
        return take_memory_sample()

    return look


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
