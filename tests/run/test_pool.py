"""The workers: whatever their number, the size of ranges and the memory for results, the bytes and counts are those of one loop."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st
from support.commands import PATIENCE_S, ends_in_time
from support.engines import lent_engines
from support.oracle import plain_tokens
from support.outputs import written
from support.poisoned_coordinator import MARK, PATIENT, POISON, UNWRITTEN
from support.runs import UNWATCHED, ThreadedPool, carry_out, run_in_process
from support.turns import in_turns

from tokmill.core.config import Job
from tokmill.core.errors import BadTextError, DiskFullError, Interrupted, WorkerDiedError
from tokmill.core.events import AnyEvent, Committed, Finished, Restarted, Started
from tokmill.core.manifest import load_manifest
from tokmill.core.options import PlanOptions
from tokmill.core.records import Cursor
from tokmill.core.system import durable
from tokmill.output.directory import Output
from tokmill.read import CorpusReader, input_range
from tokmill.read.splitter import LongRecord
from tokmill.run import segment_writer, worker
from tokmill.run.coordinator import Coordinator, start_workers
from tokmill.run.job import make_job
from tokmill.run.pool import Pool
from tokmill.run.supervisor import LocalRunner

SEP = b"<|endoftext|>"
DOCUMENTS = st.lists(st.text(st.sampled_from("ab\u00e9\u4e2d \n"), max_size=60).map(str.encode), min_size=1, max_size=60)
SIZES = st.fixed_dictionaries(
    {
        "batch_bytes": st.integers(20, 300),
        "range_bytes": st.integers(10, 600),
        "segment_bytes": st.integers(100, 3000),
        "n_workers": st.integers(1, 4),
        "arena_bytes": st.sampled_from([4096, 1 << 14, 1 << 20]),
        "n_long": st.sampled_from([1, 2]),
        "spare_bytes": st.just(1 << 20),
    }
)
KINDS = st.sampled_from(["text", "jsonl", "files", "mixed", "parquet"])


def write_corpus(directory: Path, documents: list[bytes], kind: str) -> list[Path]:
    """The documents as one file, or as some of several kinds."""
    if kind == "jsonl":
        path = directory / "a.jsonl"
        path.write_bytes(b"".join(json.dumps({"text": d.decode()}).encode() + b"\n" for d in documents))
        return [path]
    if kind == "parquet":
        pq.write_table(pa.table({"text": [d.decode() for d in documents]}), directory / "a.parquet", row_group_size=3)
        return [directory / "a.parquet"]
    half = len(documents) // 2
    if kind == "files":
        paths = [directory / f"{i:03}.txt" for i in range(len(documents))]
        for path, document in zip(paths, documents, strict=True):
            path.write_bytes(document)
        return paths
    if kind == "mixed":
        (directory / "a.txt").write_bytes(SEP.join(documents[:half]) + SEP * bool(half))
        (directory / "b.txt.gz").write_bytes(gzip.compress(SEP.join(documents[half:])))
        return [directory / "a.txt", directory / "b.txt.gz"]
    (directory / "a.txt").write_bytes(SEP.join(documents))
    return [directory / "a.txt"]


@in_turns(2)
@settings(deadline=None, max_examples=30)
@given(DOCUMENTS, SIZES, KINDS)
def test_the_bytes_are_those_of_one_loop(turn: int, documents: list[bytes], sizes: dict[str, Any], kind: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        run_in_process(write_corpus(Path(directory), documents, kind), out, sizes, val_fraction=0.3)
        assert written(out) == plain_tokens(documents, val_fraction=0.3)
        manifest = load_manifest(out)
        n_empty = manifest.counts.skipped.get("empty", 0)
        assert manifest.counts.documents_train + manifest.counts.documents_val == sum(map(bool, documents))
        assert manifest.counts.documents - n_empty == sum(map(bool, documents))


@in_turns(2)
@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=8), SIZES, st.sampled_from(["text", "jsonl"]))
def test_a_document_that_is_divided_is_read_whole_wherever_ranges_are_cut(
    turn: int, n_words: list[int], sizes: dict[str, Any], kind: str
) -> None:
    documents = [b" ".join(b"%d" % (i * n) for i in range(n)) for n in n_words]
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "CorpusReader", partial(CorpusReader, divide_above_bytes=900, block_bytes=200))
        patch.setattr(input_range, "BLOCK_BYTES", 100)
        corpus = write_corpus(Path(directory), documents, kind)
        for name, changed in (("one", {"range_bytes": 1 << 30}), ("some", {})):
            run_in_process(corpus, Path(directory) / name, sizes | changed, val_fraction=0.3)
        assert written(Path(directory) / "some") == written(Path(directory) / "one")
        counts = [load_manifest(Path(directory) / name).counts for name in ("one", "some")]
        assert counts[0] == counts[1]
        assert counts[0].bytes_in == sum(path.stat().st_size for path in corpus)


def test_a_pipe_is_read_when_nothing_before_it_may_have_to_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error whose record number is not known yet is made again, with all ranges behind it."""
    documents = [b"document %d" % i for i in range(200)]
    (tmp_path / "a.txt").write_bytes(SEP.join(documents[:150]))
    (tmp_path / "b").write_bytes(SEP.join(documents[150:]))
    os.mkfifo(tmp_path / "pipe")
    give, n_given = Pool._give_range, 0

    def checked(pool: Pool, number: int) -> bool:
        nonlocal n_given
        given = give(pool, number)
        assert all(source.size_bytes is not None for reading in list(pool._readings)[1:] for source in reading.range.inputs)
        n_given += given
        return given

    monkeypatch.setattr(Pool, "_give_range", checked)
    with subprocess.Popen(["sh", "-c", f"cat '{tmp_path}/b' > '{tmp_path}/pipe'"]):
        run_in_process([tmp_path / "a.txt", tmp_path / "pipe"], tmp_path / "out", {"range_bytes": 200, "n_workers": 3})
    assert n_given > 5
    assert written(tmp_path / "out") == plain_tokens(documents)


def run_until(n_commits: int, paths: list[Path], out: Path, sizes: dict[str, Any]) -> None:
    """A run that is asked to stop at a commit, and puts none off for the one before."""
    job = make_job([str(path) for path in paths], PlanOptions(val_fraction=0.3), out=str(out)).job
    coordinators: list[Coordinator] = []
    commits: list[AnyEvent] = []

    def stop_after_some(event: AnyEvent) -> None:
        commits.extend([event] * isinstance(event, Committed))
        if len(commits) >= n_commits:
            coordinators[0].stop()

    small = msgspec.structs.replace(job.resources, **(UNWATCHED | sizes))
    with contextlib.suppress(Interrupted), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "is_settled", property(lambda output: output.settle() is None))
        carry_out(msgspec.structs.replace(job, resources=small), stop_after_some, coordinators.append)


@in_turns(2)
@settings(deadline=None, max_examples=15)
@given(DOCUMENTS, SIZES, SIZES, KINDS, st.integers(1, 5))
def test_a_run_that_ends_anywhere_goes_on_with_other_ranges(
    turn: int, documents: list[bytes], sizes: dict[str, Any], later: dict[str, Any], kind: str, n_commits: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        out, paths = Path(directory) / "out", write_corpus(Path(directory), documents, kind)
        run_until(n_commits, paths, out, sizes)
        run_in_process(paths, out, later, val_fraction=0.3)
        assert written(out) == plain_tokens(documents, val_fraction=0.3)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_a_run_goes_on_in_the_middle_of_a_file_of_many_ranges(kind: str, tmp_path: Path) -> None:
    documents = [b"document %d, and more words of it" % i for i in range(300)]
    sizes = {"batch_bytes": 300, "range_bytes": 1000, "segment_bytes": 300, "arena_bytes": 1 << 14, "spare_bytes": 1 << 20}
    paths, n_resumed = write_corpus(tmp_path, documents, kind), 0
    for n_commits in (1, 3, 6, 9, 15):
        out = tmp_path / f"out{n_commits}"
        run_until(n_commits, paths, out, sizes | {"n_workers": 2})
        n_resumed += (out / ".tokmill" / "journal").exists()
        run_in_process(paths, out, sizes | {"n_workers": 3}, val_fraction=0.3)
        assert written(out) == plain_tokens(documents, val_fraction=0.3)
    assert n_resumed > 2


@in_turns(2)
@settings(deadline=None, max_examples=15)
@given(DOCUMENTS, SIZES, st.data())
def test_an_error_names_the_record_as_one_reader_would(
    turn: int, documents: list[bytes], sizes: dict[str, Any], data: st.DataObject
) -> None:
    bad = data.draw(st.integers(0, len(documents) - 1))
    documents = [*documents[:bad], b"broken \xff text", *documents[bad + 1 :]]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.txt"
        path.write_bytes(SEP.join(documents))
        offset = len(SEP.join(documents[: bad + 1])) - len(documents[bad]) + 7
        with pytest.raises(BadTextError) as caught:
            run_in_process([path], Path(directory) / "out", sizes)
        assert caught.value.where == f"{path}, document {bad + 1}, byte {offset:,}"


@in_turns(2)
@settings(deadline=None, max_examples=15)
@given(DOCUMENTS, SIZES, st.data())
def test_skipped_records_are_numbered_as_one_reader_would(
    turn: int, documents: list[bytes], sizes: dict[str, Any], data: st.DataObject
) -> None:
    is_bad = data.draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents)))
    lines = [b"{broken" if b else json.dumps({"text": d.decode()}).encode() for b, d in zip(is_bad, documents, strict=True)]
    with tempfile.TemporaryDirectory() as directory:
        path, out = Path(directory) / "a.jsonl", Path(directory) / "out"
        path.write_bytes(b"\n".join(lines) + b"\n")
        run_in_process([path], out, sizes, on_error="skip", val_fraction=0.3)
        assert written(out) == plain_tokens([d for b, d in zip(is_bad, documents, strict=True) if not b], val_fraction=0.3)
        listed: list[int] = []
        if any(is_bad):
            for line in (out / "skipped.jsonl").read_bytes().splitlines():
                skip = json.loads(line)
                listed += range(skip["record"], skip["record"] + skip.get("records", 1))
        assert listed == [i for i, b in enumerate(is_bad, 1) if b]


def test_texts_of_some_size_without_a_separator_are_named_also_where_they_were_cut(tmp_path: Path) -> None:
    long = b"word " * 300_000
    for name, data in {"a.txt": long, "b.txt": long + SEP, "c.txt": b"short", "d.txt": long}.items():
        (tmp_path / name).write_bytes(data)
    job = make_job([str(tmp_path)], PlanOptions(), out=str(tmp_path / "out")).job
    events: list[AnyEvent] = []
    small = msgspec.structs.replace(job.resources, n_workers=2, range_bytes=1 << 18, child_bytes=1 << 41, reset_above_bytes=1 << 40)
    carry_out(msgspec.structs.replace(job, resources=small), events.append)
    finished = next(event for event in events if isinstance(event, Finished))
    (notice,) = finished.notices
    assert "<|endoftext|> does not occur in 2 of 3 text files" in notice
    assert f"{tmp_path}/a.txt, {tmp_path}/d.txt;" in notice


def test_workers_read_no_further_than_their_memory_for_results_allows(tmp_path: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_bytes(SEP.join(b"a few words %d" % i for i in range(20_000)))
    job = make_job([str(corpus)], PlanOptions(), out=str(tmp_path / "out")).job
    small = {"n_workers": 2, "batch_bytes": 1000, "segment_bytes": 1000, "range_bytes": 50_000, "arena_bytes": 8192}
    job = msgspec.structs.replace(job, resources=msgspec.structs.replace(job.resources, **{**UNWATCHED, **small}))
    with lent_engines():
        pool = start_workers(job, ThreadedPool)
        assert isinstance(pool, ThreadedPool)
        try:
            results = pool.results(job.content, Cursor(), job.resources.range_bytes, lambda: None)
            first = next(results)
            # The coordinator takes no more results; soon no worker has room for another one.
            while not all(worker._unstored for worker in pool.workers):
                pool.threads[0].join(0.001)
            read = [worker._reading.n_read for worker in pool.workers if worker._reading]
            # Half an arena for results, in 16 bits an id; one batch is held beside it.
            assert 1 < sum(read) <= 2 * (1 + job.resources.arena_bytes // 2 // 64)
            assert first.counts.documents + sum(r.counts.documents for r in results) == 20_000
        finally:
            pool.close()


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_pause_before_a_range_begins_is_over_when_it_ends(is_stopped: bool, tmp_path: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_bytes(SEP.join(b"a few words %d" % i for i in range(2000)))
    job = make_job([str(corpus)], PlanOptions(), out=str(tmp_path / "out")).job
    small = {"n_workers": 2, "batch_bytes": 1000, "range_bytes": 5000}
    job = msgspec.structs.replace(job, resources=msgspec.structs.replace(job.resources, **{**UNWATCHED, **small}))
    with lent_engines(), ends_in_time(PATIENCE_S):
        pool = start_workers(job, ThreadedPool)
        assert isinstance(pool, ThreadedPool)
        try:
            pool.pause(paused=True)

            def go_on() -> None:
                if not all(worker._ranges for worker in pool.workers):
                    return
                if is_stopped:
                    pool.stop()
                else:
                    pool.pause(paused=False)

            results = list(pool.results(job.content, Cursor(), job.resources.range_bytes, go_on))
            assert sum(result.counts.documents for result in results) == (0 if is_stopped else 2000)
        finally:
            pool.close()


def test_a_source_that_gives_little_at_a_time_makes_no_more_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [b"document %d, and more words of it" % i for i in range(300)]
    corpus, out = tmp_path / "a.txt", tmp_path / "out"
    corpus.write_bytes(SEP.join(documents))
    monkeypatch.setattr(ThreadedPool, "LEAST_WRITTEN_BYTES", Pool.LEAST_WRITTEN_BYTES)
    # Every batch is told of by itself, and committed.
    monkeypatch.setattr(worker, "_TOLD_S", -1.0)
    monkeypatch.setattr(segment_writer, "SEGMENT_S", 0.0)
    monkeypatch.setattr(Output, "is_settled", property(lambda output: output.settle() is None))
    run_in_process([corpus], out, {"batch_bytes": 100, "range_bytes": 1000}, val_fraction=0.3)
    (segment,) = load_manifest(out).segments
    assert [span.pieces for span in segment.files.values()] == ["", ""]
    assert written(out) == plain_tokens(documents, val_fraction=0.3)


def test_a_worker_that_is_full_helps_until_it_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [b"document %d, and more words of it" % i for i in range(6000)]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(SEP.join(documents[:3000])))
    (tmp_path / "b.txt").write_bytes(SEP.join(documents[3000:]))
    helped: list[int] = []
    encode = worker.Worker._encode_other

    def noting(self: worker.Worker, number: int, index: int, owner: int, *of: Any) -> None:
        if self._number != owner and not number:
            helped.append(index)
        encode(self, number, index, owner, *of)

    monkeypatch.setattr(worker.Worker, "_encode_other", noting)
    sizes = {"batch_bytes": 1000, "range_bytes": 20_000, "arena_bytes": 1 << 14, "n_workers": 2, "segment_bytes": 1 << 20}
    run_in_process([tmp_path / "a.txt.gz", tmp_path / "b.txt"], tmp_path / "out", sizes, val_fraction=0.3)
    # Two to five, where it helps no more after the first time.
    assert len(helped) > 8


def test_no_more_long_documents_are_held_than_there_is_memory_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[int, int] = {}
    most = [0]
    grow, take = LongRecord.grow, LongRecord.take

    def note(document: LongRecord) -> None:
        held[threading.get_ident()] = len(document.buffer)
        most.append(sum(held.values()))

    def noted_grow(self: LongRecord) -> None:
        grow(self)
        note(self)

    def noted_take(self: LongRecord, n_bytes: int) -> bytes:
        taken = take(self, n_bytes)
        note(self)
        return taken

    monkeypatch.setattr(LongRecord, "grow", noted_grow)
    monkeypatch.setattr(LongRecord, "take", noted_take)
    monkeypatch.setattr(worker, "CorpusReader", partial(CorpusReader, divide_above_bytes=100_000, block_bytes=2000))
    documents = [b" ".join(b"%d" % (j * i) for j in range(30_000)) for i in range(6)]
    corpus = write_corpus(tmp_path, documents, "files")
    sizes = {"batch_bytes": 4000, "range_bytes": 150_000, "arena_bytes": 1 << 15, "n_workers": 4, "n_long": 2}
    run_in_process(corpus, tmp_path / "out", sizes, val_fraction=0.3)
    # Of others, what is not yet long.
    assert 100_000 < max(most) < 2 * 110_000 + 2 * 30_000


class Watch:
    """The events of a run whose workers die, and what was committed when each of its processes ended."""

    def __init__(self) -> None:
        self.restarts: list[Restarted] = []
        self.committed = [0]
        self.resumed: list[int] = []

    def on_event(self, event: AnyEvent) -> None:
        if isinstance(event, Started):
            self.resumed.append(event.resumed_bytes)
        elif isinstance(event, Committed):
            self.committed[-1] = event.counts.bytes_in
        elif isinstance(event, Restarted):
            self.restarts.append(event)
            self.committed.append(self.committed[-1])


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalRunner:
    # A child does not look for modules where its parent's script is, which comes first.
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setenv(MARK, str(tmp_path / "somebody died"))
    return LocalRunner("support.poisoned_coordinator")


def job_of_small_ranges(path: Path, out: Path, n_workers: int) -> Job:
    job = make_job([str(path)], PlanOptions(val_fraction=0.3), out=str(out)).job
    sizes = {"batch_bytes": 4000, "range_bytes": 10_000, "segment_bytes": 8000, "arena_bytes": 1 << 16}
    return msgspec.structs.replace(job, resources=msgspec.structs.replace(job.resources, n_workers=n_workers, **sizes))


def documents_with(**special: bytes) -> list[bytes]:
    """Some, with others at places: `at_2500=b"..."`."""
    documents = [b"document %d, and more words of it" % i for i in range(4000)]
    for place, document in special.items():
        documents[int(place.removeprefix("at_"))] = document
    return documents


@pytest.mark.parametrize(("kind", "n_workers"), [("text", 1), ("text", 2), ("text", 4), ("gz", 2)])
def test_three_deaths_on_one_range_stop_the_run_and_name_it(kind: str, n_workers: int, deadly: LocalRunner, tmp_path: Path) -> None:
    documents = documents_with(at_2500=POISON)
    text = SEP.join(documents)
    path, place = tmp_path / {"text": "a.txt", "gz": "a.txt.gz"}[kind], text.index(POISON)
    path.write_bytes(text if kind == "text" else gzip.compress(text))
    watch, job = Watch(), job_of_small_ranges(path, tmp_path / "out", n_workers)
    with pytest.raises(WorkerDiedError) as caught:
        deadly.run(job, [watch])
    # Smaller batches let some more of the range be committed each time.
    # And where little was committed at the first death, the next one, nearer to the range, counts as one at another place.
    assert len(watch.restarts) in (2, 3)
    assert "(killed by SIGABRT), 3 times at the same place" in caught.value.what
    named = re.search(rf"while it worked on {re.escape(str(path))}(?:, bytes ([\d,]+) to ([\d,]+))?$", caught.value.what)
    assert named, caught.value.what
    if kind == "text":
        begin, end = (int(number.replace(",", "")) for number in named.groups())
        assert begin <= place < end <= begin + 30_000
    assert not (tmp_path / "out" / "train.bin").exists()
    LocalRunner().run(job, [])
    assert written(tmp_path / "out") == plain_tokens(documents, val_fraction=0.3)


def test_what_lies_before_the_range_of_a_worker_that_dies_is_committed_and_not_done_again(
    deadly: LocalRunner, tmp_path: Path
) -> None:
    # The first range is over only when the worker of the second one is dead.
    documents = documents_with(at_1=PATIENT, at_300=POISON)
    path, text = tmp_path / "a.txt", SEP.join(documents)
    path.write_bytes(text)
    assert 10_000 < text.index(POISON) < 20_000
    watch, job = Watch(), job_of_small_ranges(path, tmp_path / "out", 2)
    with pytest.raises(WorkerDiedError):
        deadly.run(job, [watch])
    assert watch.resumed == [0, *watch.committed[:-1]]
    assert all(10_000 <= n_bytes <= text.index(POISON) for n_bytes in watch.committed)
    assert len(watch.restarts) == 2


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_what_a_dead_worker_was_to_write_is_written(n_workers: int, deadly: LocalRunner, tmp_path: Path) -> None:
    documents = documents_with(at_900=UNWRITTEN)
    path, text = tmp_path / "a.txt", SEP.join(documents)
    path.write_bytes(text)
    watch, job = Watch(), job_of_small_ranges(path, tmp_path / "out", n_workers)
    deadly.run(job, [watch])
    assert len(watch.restarts) == 1
    assert watch.resumed == [0, watch.committed[0]]
    assert 0 < watch.committed[0] < len(text)
    assert written(tmp_path / "out") == plain_tokens(documents, val_fraction=0.3)


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize("n_before", [0, 3, 20])
def test_what_a_worker_cannot_write_ends_the_run_before_its_memory_is_full(
    n_before: int, n_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [b"document %d, and more words of it" % i for i in range(2000)]
    (tmp_path / "a.txt").write_bytes(SEP.join(documents))
    sizes = {"batch_bytes": 300, "range_bytes": 1000, "arena_bytes": 4096, "segment_bytes": 1 << 30, "n_workers": n_workers}
    real, n_calls = durable.write_all_at, 0

    def failing(fd: int, data: memoryview, offset: int) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls > n_before:
            raise OSError(errno.ENOSPC, "no space")
        real(fd, data, offset)

    with monkeypatch.context() as patch, ends_in_time(PATIENCE_S):
        patch.setattr(durable, "write_all_at", failing)
        with pytest.raises(DiskFullError):
            run_in_process([tmp_path / "a.txt"], tmp_path / "out", sizes, val_fraction=0.3)
    run_in_process([tmp_path / "a.txt"], tmp_path / "out", sizes, val_fraction=0.3)
    assert written(tmp_path / "out") == plain_tokens(documents, val_fraction=0.3)
