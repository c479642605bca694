"""The process that repairs: `python -m tokmill.check.repairing.worker JOB_FD EVENT_FD`.

It reads the damaged ranges of the corpus again and gives what they become to the files that are rebuilt. A range begins at a cursor
where the run that made the output committed, and so does what follows it: what lies between becomes the bytes that it became then,
whatever the size of batches. The last batch may reach beyond the range; what is too much is cut off.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tokmill.check.compare import long_records
from tokmill.check.repairing.damage import Repair, open_repair, other_corpus
from tokmill.core.config import Job, how_not_of_corpus, is_of_corpus
from tokmill.core.documents import text_bytes
from tokmill.core.errors import ChangedError, DamageError, UsageError
from tokmill.core.events import Finished, Notice, Repaired, Started
from tokmill.core.manifest import MANIFEST_NAME, SKIPPED_NAME
from tokmill.core.records import STDIN, Counts, Cursor, Tokens, text_to_path
from tokmill.core.skipping import SkippedList
from tokmill.core.system.budget import COORDINATOR_BYTES, CacheReset, reference_bytes
from tokmill.core.system.memory import give_way, peak_rss_bytes
from tokmill.dataset import find_tokenizer
from tokmill.encode import cutter_of, load_encoder, unknown_id
from tokmill.formats import make_writer, spec_of
from tokmill.read import CorpusReader
from tokmill.run import EncodeStage, EncodingProcess, TokenLimits, auditor_of, limit_growth, serve, take_memory_sample, watched
from tokmill.store import register_urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tokmill.check.repairing.damage import DamagedRange
    from tokmill.core.config import Content
    from tokmill.core.protocols import Cutter, Reader
    from tokmill.core.records import Batch, EncodedBatch, Input
    from tokmill.core.system.process import Parent
    from tokmill.run import MemorySample

_TICK_S = 0.2


class RepairProcess(EncodingProcess):
    """Repairs one output in this process."""

    RESUMES = False
    _is_paused = _is_reset_asked = False

    def run(self) -> None:
        """Rebuild what is damaged, publish it, and emit Finished. Raise TokmillError."""
        repair = open_repair(Path(text_to_path(self._job.out)))
        try:
            self._find_damage(repair)
            counts = self._fill(repair) if repair.ranges else Counts()
            repair.publish()
        finally:
            repair.close()
        for name, file in repair.files.items():
            for begin, end in file.rebuilt or [(file.length, file.length)]:
                self._emit(Repaired(file=name, begin_byte=begin, end_byte=end))
        self._emit(Finished(elapsed_s=self._elapsed_s, counts=counts, peak_rss_bytes=peak_rss_bytes(), resumed=False))

    def _find_damage(self, repair: Repair) -> None:
        """Find the damaged ranges. Raise Interrupted if somebody asks for the end."""
        total = sum(entry.size_bytes for entry in repair.manifest.files.values())
        position, next_tick = 0, time.monotonic()

        def on_bytes(n_bytes: int) -> None:
            nonlocal position, next_tick
            position += n_bytes
            if self._stopped:
                raise self._ended(repair.directory)
            if time.monotonic() >= next_tick:
                next_tick += _TICK_S
                self._tell(self._elapsed_s, position, Counts())

        self._emit(Notice(text="looking for damage"))
        self._emit(Started(total_bytes=total))
        repair.find_damage(on_bytes)

    def _fill(self, repair: Repair) -> Counts:
        """Make the bytes of the damaged ranges again. Return counts of what was encoded. Raise what tokenizing it raises."""
        content = self._job.content
        check_sources(repair.ranges, content)
        # The output may have been made on another machine, where the tokenizer's file was elsewhere.
        content = msgspec.structs.replace(content, tokenizer=find_tokenizer(content.tokenizer))
        self._job = msgspec.structs.replace(self._job, content=content)
        self._emit(Notice(text=f"damage in {', '.join(repair.files)}: that part of the corpus is read again"))
        resources, began_s = self._job.resources, time.monotonic()
        self._emit(
            Started(
                total_bytes=sum(damaged.bytes_in for damaged in repair.ranges),
                n_threads=resources.n_threads,
                batch_bytes=resources.batch_bytes,
                budget_bytes=resources.budget_bytes,
            )
        )
        cutter = cutter_of(content.tokenizer)
        corpus = CorpusReader(content, resources, cutter)
        if SKIPPED_NAME not in repair.files:
            corpus.skip_long(long_records(repair.manifest, repair.directory))
        reader, counts = RangeReader(corpus, repair.ranges), Counts()
        # What was skipped is recorded under its old path, wherever the corpus is now.
        paths = {now.path: then.path for now, then in zip(content.inputs, repair.manifest.content.inputs, strict=True)}

        def on_tick() -> None:
            self._tell(time.monotonic() - began_s, counts.bytes_in, counts)

        results = self._encoded(reader, repair.ranges[0].begin, cutter, on_tick)
        with self._guarded():
            for damaged in repair.ranges:
                filler = RangeFiller(damaged, repair, paths)
                limits = TokenLimits(content, damaged.before, damaged.begin)
                for encoded in results:
                    limited, is_last = limits.applied(encoded)
                    filler.add(limited)
                    counts += limited.counts
                    if is_last or _reaches(encoded.after, damaged.end):
                        break
                if self._is_ending:
                    raise self._ended(repair.directory)
                filler.finish()
        return counts

    def _encoded(
        self, reader: RangeReader, start: Cursor, cutter: Cutter | None, on_tick: Callable[[], None]
    ) -> Iterator[EncodedBatch]:
        """Yield what becomes of each batch, until somebody asks for the end."""
        content, resources = self._job.content, self._job.resources
        encoder, auditor = load_encoder(content.tokenizer, resources.engine), auditor_of(self._job, cutter)
        stage = EncodeStage(content, encoder, auditor, unknown_id(content.tokenizer))
        alone = resources.reset_above_bytes + COORDINATOR_BYTES + reference_bytes(resources.terms)
        caches, next_tick = CacheReset(encoder, alone), time.monotonic()
        for batch in reader.batches(start):
            while self._is_paused and not self._is_ending:
                time.sleep(_TICK_S)
            if self._is_ending:
                return
            encoded = stage.run(batch)
            for sample in encoded.samples:
                auditor.check(sample)
            caches.after_batch(text_bytes(batch.documents), is_asked=self._is_reset_asked)
            self._is_reset_asked = False
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + _TICK_S
                on_tick()
            yield encoded

    def pause(self, *, paused: bool) -> None:
        """See EncodingProcess."""
        super().pause(paused=paused)
        self._is_paused = paused

    def reset_caches(self) -> None:
        """See EncodingProcess."""
        self._is_reset_asked = True


class RangeReader:
    """Reads the damaged ranges of a corpus and nothing between them. Implements `protocols.Reader`."""

    def __init__(self, reader: Reader, ranges: Sequence[DamagedRange]) -> None:
        self._reader = reader
        self._ranges = ranges

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """Yield the batches of all ranges. start: where the first range begins."""
        index = 0
        for damaged in self._ranges:
            for batch in self._reader.batches(damaged.begin if index else start):
                yield msgspec.structs.replace(batch, index=index)
                index += 1
                if _reaches(batch.after, damaged.end):
                    break


class RangeFiller:
    """Writes the encoded batches of one damaged range, in order."""

    def __init__(self, damaged: DamagedRange, repair: Repair, paths: Mapping[str, str]) -> None:
        """Open the range. paths: of the inputs when the output was made, by where they are now."""
        repair.open_range(damaged)
        spec = msgspec.structs.replace(spec_of(repair.manifest.content), part=damaged.part)
        self._writer = make_writer(repair, damaged.writer, spec)
        self._damaged = damaged
        self._repair = repair
        self._paths = paths
        self._skipped = SkippedList(lambda: repair.file(SKIPPED_NAME), repair.manifest.content, damaged.listed)
        self._tokens, self._documents = list(damaged.tokens), list(damaged.documents)

    def add(self, encoded: EncodedBatch) -> None:
        """Write what one batch became. Raise StorageError, DiskFullError, or ChangedError if the bytes differ from before."""
        for run in encoded.runs:
            self._writer.append(self._cut(run))
        for skip in encoded.skips:
            self._skipped.add(msgspec.structs.replace(skip, path=self._paths[skip.path]))

    def finish(self) -> None:
        """End the range. Raise ChangedError if the corpus gave less than before."""
        is_short = any(self._tokens) or any(self._documents)
        if self._damaged.is_last and not is_short:
            self._writer.finish()
        if self._damaged.last == len(self._repair.manifest.segments) - 1:
            self._skipped.end()
        self._repair.close_range()
        if is_short:
            raise other_corpus(f"the documents of segment {self._damaged.last + 1:,}", self._repair.directory)

    def _cut(self, run: Tokens) -> Tokens:
        """Return what of a run belongs to the range; the rest is sound, and the writer must not begin files with it."""
        side = int(run.is_val)
        n = min(len(run.ids), self._tokens[side])
        ends = run.ends[: min(int(np.searchsorted(run.ends, n, side="right")), self._documents[side])]
        self._tokens[side] -= n
        self._documents[side] -= len(ends)
        return Tokens(run.is_val, run.ids[:n], ends)


def check_sources(ranges: Sequence[DamagedRange], content: Content) -> None:
    """Check that what is damaged can be made again.

    Raise ChangedError for an input that is not as it was, DamageError for one that cannot be read twice, UsageError for an output
    that no run with one set of options can make.
    """
    inputs = content.inputs
    needed = {
        i
        for damaged in ranges
        for i in range(damaged.begin.input_index, damaged.end.input_index + bool(damaged.end.offset or damaged.end.record))
    }
    if needed and not is_of_corpus(content):
        raise UsageError(
            f"the damage cannot be repaired: {how_not_of_corpus(content)}",
            where=MANIFEST_NAME,
            allowed="an output of tokmill tokenize, or one made of such outputs with the same settings",
            next_step="make it again from what it was made from (made_from in its manifest): the same command with --fresh",
        )
    for i in sorted(needed):
        source = inputs[i]
        if source.size_bytes is None:
            raise DamageError(
                "the damaged range was made from a pipe, which cannot be read again",
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
                next_step="put it back, or say where all inputs are now: --source INPUT...",
            )


def _difference(source: Input) -> str:
    """Return how a file differs from what was tokenized, or nothing. A remote one is compared when it is read."""
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
    """Return whether all before `end` was read. after: where the last batch ends; None inside a document."""
    return after is not None and (after.input_index, after.offset, after.record) >= (end.input_index, end.offset, end.record)


def _carry_out(parent: Parent) -> None:
    job = msgspec.json.decode(parent.question(), type=Job)
    if job.resources.nice:
        give_way()
    register_urls(job.urls)

    def look() -> MemorySample:
        limit_growth(job.resources.child_bytes)
        return take_memory_sample()

    watched(RepairProcess(job, parent.emit, look), parent)


if __name__ == "__main__":
    serve(_carry_out, int(sys.argv[1]), int(sys.argv[2]))
