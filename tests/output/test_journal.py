"""A run of any length keeps little: commits join segments, and the journal grows with the segments."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from support.records import a_content

from tokmill.core.manifest import Segment
from tokmill.core.partition import Part
from tokmill.core.records import Counts, Cursor
from tokmill.core.spans import SpanChecker, add_up, iter_spans
from tokmill.core.system import durable
from tokmill.output import directory as output_directory, journal as output_journal
from tokmill.output.directory import Output, open_output
from tokmill.output.journal import JournalFollower, add_commit, read_journal
from tokmill.output.state_dir import state_of


def opened(directory: Path, segment_bytes: int = output_directory.SEGMENT_BYTES) -> Output:
    output = open_output(directory, a_content(), "0", fresh=False, segment_bytes=segment_bytes)
    assert isinstance(output, Output)
    return output


def add(output: Output, data: bytes, name: str = "train.bin") -> None:
    output.file(name).append(data)
    at = output.cursor.offset + len(data)
    output.commit(Cursor(offset=at), Counts(bytes_in=at), {"at": at}, float(at))
    output.settle()


def test_many_commits_take_no_memory_and_are_resumed_at_once(tmp_path: Path) -> None:
    output = opened(tmp_path)
    for _ in range(100):
        add(output, b"some")
    tracemalloc.start()
    for _ in range(5_000):
        add(output, b"some")
    grown, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    output.close()
    assert grown < 50_000
    assert most < 1_000_000
    assert (tmp_path / ".tokmill" / "journal").stat().st_size < 1_000_000
    again = opened(tmp_path)
    assert again.cursor == Cursor(offset=20_400)
    assert again.elapsed_before_s == 20_400
    assert len(again.segments) == 1
    again.close()


def ends_of_segments(least_bytes: int, count: int, steps: Iterable[int]) -> list[int]:
    content = a_content()
    if count > 1:
        content = a_content(part=Part(index=0, count=count, plan=""))
    size, done, ends = output_directory._SegmentSize(least_bytes, content, 0, 0), 0, []
    for step in steps:
        done += step
        size.add(done, step // 2)
        if size.is_full:
            size.cut()
            ends.append(done)
    return ends


@pytest.mark.parametrize(("count", "most"), [(1, 9000), (1000, 20), (50_000, 3)])
def test_a_corpus_of_any_size_has_a_few_thousand_segments(count: int, most: int) -> None:
    total = 60_000_000_000_000 // count
    step = 64 << 20
    ends = ends_of_segments(64 << 20, count, (step for _ in range(total // step)))
    assert len(ends) <= most
    assert all(end - begin <= max(step, begin * count // 1000) + step for begin, end in pairwise([0, *ends]))


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from(["train.bin", "val.bin", "reopen"])), max_size=40))
@settings(deadline=None, max_examples=60)
def test_every_span_of_joined_commits_is_that_of_its_bytes(steps: list[tuple[bytes, str]]) -> None:
    with tempfile.TemporaryDirectory() as there, pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_journal, "_MOST_JOINED", 3)
        out, wanted = Path(there) / "out", {"train.bin": b"", "val.bin": b""}
        output, follower, followed = opened(out, 100), JournalFollower(state_of(out) / "journal"), list[Segment]()
        for data, name in steps:
            if name == "reopen":
                output.close()
                output = opened(out, 100)
                continue
            add(output, data, name)
            wanted[name] += data
            commits, is_new = follower.read()
            followed = [] if is_new else followed
            for commit in commits:
                add_commit(followed, commit)
            assert followed == output.segments
        output.close()
        found = read_journal(state_of(out) / "journal")
        if not output.segments:
            assert found is None
            return
        assert found is not None
        assert found[1] == output.segments
        for name, spans in iter_spans(output.segments, {}).items():
            assert add_up(spans, len(wanted[name]))
            assert SpanChecker(spans).update(wanted[name]) == []
        n_reopened = sum(name == "reopen" for _, name in steps)
        assert len(output.segments) <= sum(len(data) for data, _ in steps) // 100 + 1 + n_reopened


def test_a_journal_that_cannot_be_written_again_is_whole_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_journal, "_MOST_JOINED", 2)
    output = opened(tmp_path)
    add(output, b"a")
    add(output, b"b")

    def failing(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "replace_file", failing)
    output.file("train.bin").append(b"c")
    output.commit(Cursor(offset=3), Counts(bytes_in=3), {}, 3.0)
    with pytest.raises(Exception, match="the disk is full"):
        output.settle()
    output.close()
    monkeypatch.undo()
    again = opened(tmp_path)
    assert again.cursor == Cursor(offset=3)
    again.close()
