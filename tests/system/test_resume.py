"""Dying anywhere and running again: nothing lost, nothing doubled, nothing believed that is not there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support.commands import PATIENCE_S, clean_environment, command, killed_worker, wait_until
from support.corpora import SEP, some_documents
from support.failures import Died, dying_at
from support.oracle import plain_tokens
from support.outputs import written
from support.runs import UNWATCHED, carry_out, run_in_process

import tokmill
from tokmill.core.config import BudgetTerms
from tokmill.core.errors import BadRecordError, ChangedError, DamageError, Interrupted, StorageError, TooManySkippedError
from tokmill.core.events import AnyEvent, Started
from tokmill.core.options import PlanOptions
from tokmill.output.directory import open_output
from tokmill.run.coordinator import Coordinator
from tokmill.run.job import make_job
from tokmill.run.supervisor import LocalRunner


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fresh_over_old", [False, True])
def test_died_before_any_call_that_changes_the_disk_the_next_run_makes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_over_old: bool, stride: int
) -> None:
    documents = some_documents(30, 400, 3)
    path = tmp_path / "a.txt"
    path.write_bytes(SEP.encode().join(documents) + b"\n")
    documents[-1] += b"\n"
    old = tmp_path / "old.txt"
    old.write_bytes(b"caf\xe9" + SEP.encode() + b"other text")
    small = {"batch_bytes": 1000, "segment_bytes": 2000, "terms": BudgetTerms(n_threads=1)}
    for n in range(1, 500, stride):
        out = tmp_path / f"out{n}"
        if fresh_over_old:
            run_in_process([old], out, on_error="skip")
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                run_in_process([path], out, small, fresh=fresh_over_old)
        if calls() < n:
            break
        try:
            run_in_process([path], out, small)
        except ChangedError:
            # Nothing of the new run was there yet: the old one is complete, and says so.
            assert fresh_over_old
            run_in_process([path], out, small, fresh=True)
        assert written(out) == plain_tokens(documents), n
        assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "train.bin", "val.bin"], n
    assert n > 15


def test_a_file_of_a_complete_output_that_is_gone_is_not_called_complete(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    run_in_process([tmp_path / "a.txt"], tmp_path / "out")
    (tmp_path / "out" / "train.bin").unlink()
    with pytest.raises(DamageError, match="missing"):
        run_in_process([tmp_path / "a.txt"], tmp_path / "out")


def test_max_skipped_holds_when_the_command_is_given_again(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\nbad\n')
    for _ in range(2):
        with pytest.raises(TooManySkippedError):
            run_in_process([tmp_path / "a.jsonl"], tmp_path / "out", on_error="skip", max_skipped=0)
    run_in_process([tmp_path / "a.jsonl"], tmp_path / "out", on_error="skip", max_skipped=1)
    assert written(tmp_path / "out") == plain_tokens([b"good"])


def test_advice_given_before_anything_was_committed_can_be_followed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "good"}\n')
    with pytest.raises(BadRecordError):
        run_in_process([tmp_path / "a.jsonl"], tmp_path / "out")
    run_in_process([tmp_path / "a.jsonl"], tmp_path / "out", text_key="body")
    assert written(tmp_path / "out") == plain_tokens([b"good"])


def test_skips_are_recorded_in_the_order_of_the_corpus_for_any_batch_size(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine" + SEP.encode() + b"caf\xe9")
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\nbad\n')
    (tmp_path / "c.txt").write_bytes(b"\xff")
    records = []
    for batch_bytes in (8, 4096):
        out = tmp_path / str(batch_bytes)
        run_in_process([tmp_path / n for n in ("a.txt", "b.jsonl", "c.txt")], out, {"batch_bytes": batch_bytes}, on_error="skip")
        records.append([Path(json.loads(line)["path"]).name for line in (out / "skipped.jsonl").read_text().splitlines()])
    assert records[0] == ["a.txt", "b.jsonl", "c.txt"]
    assert records[0] == records[1]


def test_files_named_one_by_one_are_read_even_from_the_output_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    # In sight, they would be refused: a directory for an output has nothing else in it.
    (out / ".inputs").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("one")
    (out / ".inputs" / "more.txt").write_text("two")
    run_in_process([tmp_path / "a.txt", out / ".inputs" / "more.txt"], out, val_fraction=0.0)
    assert written(out) == plain_tokens([b"one", b"two"], val_fraction=0)


def test_standard_input_that_was_begun_by_another_program_is_read_from_there(tmp_path: Path) -> None:
    documents = some_documents(200, 4000, 5) * 10
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"a first line\n" + SEP.encode().join(documents))
    with path.open("rb", buffering=0) as file:
        file.read(len(b"a first line\n"))
        done = killed_worker(["-"], tmp_path / "out", file.fileno())
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "out") == plain_tokens(documents)


def test_nothing_is_left_out_when_the_worker_dies_on_a_named_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.txt"
    os.mkfifo(fifo)
    with subprocess.Popen(
        [sys.executable, "-c", f"import time; f = open({str(fifo)!r}, 'w'); f.write('x' * 9); f.flush(); time.sleep(60)"]
    ) as feeder:
        done = killed_worker([fifo], tmp_path / "out")
        feeder.kill()
    assert done.returncode == 1
    assert b"died" in done.stderr
    assert not (tmp_path / "out" / "train.bin").exists()


def feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


@pytest.mark.parametrize("writes", [(b"some text<|endoftext|>",), (b"some text<|endof", b"text|>")])
def test_a_slow_pipe_is_committed_while_it_flows(tmp_path: Path, writes: tuple[bytes, ...]) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(out), "-q"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
    ) as process:
        part = out / ".tokmill" / "train.bin.part"

        def more_is_written() -> bool:
            for data in writes:
                feed(process, data)
                # The separator arrives in two reads.
                time.sleep(0.3 * (len(writes) - 1))
            return part.exists() and part.stat().st_size > 0

        wait_until(more_is_written, process)
        process.send_signal(signal.SIGINT)
        # The pipe stays open: only the signal can end the run.
        assert process.wait(PATIENCE_S) == 130
    assert (out / ".tokmill" / "journal").read_bytes().count(b"\n") >= 2


def test_what_a_pipe_brought_is_committed_while_it_brings_nothing(tmp_path: Path) -> None:
    # So many short documents that what is said of a batch does not fit into a socket at once.
    data, journal = b"".join(b"word%d\n" % i for i in range(900_000)), tmp_path / "out" / ".tokmill" / "journal"
    options = ["--threads", "2", "--memory", "900MiB", "--separator", "\\n", "-q"]
    with subprocess.Popen(
        [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(tmp_path / "out"), *options],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
    ) as process:
        feed(process, data)

        def most_is_committed() -> bool:
            lines = journal.read_bytes().split(b"\n")[1:-1] if journal.exists() else []
            done = json.loads(lines[-1][17:])["segment"]["counts"]["bytes_in"] if lines else 0
            # All but what does not fill a batch.
            return bool(len(data) - done < 5 << 19)

        wait_until(most_is_committed, process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0


def test_verify_with_the_sources_passes_over_the_output_inside_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert command("tokenize", tmp_path, "--out", tmp_path / "out", "-q").returncode == 0
    done = command("verify", tmp_path / "out", "--source", tmp_path)
    assert done.returncode == 0, done.stderr


BAD_LAST = [json.dumps({"text": text.decode()}).encode() for text in some_documents(30, 400, 5)]
BAD_LAST += [b'{"text": "\xff"}', b'{"text": 1}']


@pytest.mark.parametrize("stride", [8, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"encoding_errors": "replace"}, {"encoding_errors": "replace", "on_error": "skip"}),
        ({}, {"on_error": "skip"}),
        ({}, {"encoding_errors": "replace", "on_error": "skip"}),
    ],
)
def test_a_run_that_a_bad_record_stopped_goes_on_with_a_policy_that_leaves_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, str], then: dict[str, str], stride: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(BAD_LAST))
    small = {"batch_bytes": 1000, "segment_bytes": 2000, "terms": BudgetTerms(n_threads=1)}
    run_in_process([path], tmp_path / "at once", small, **then)
    for n in range(1, 60, stride):
        out = tmp_path / f"out{n}"
        with pytest.raises(BadRecordError):
            run_in_process([path], out, small, **first)
        committed = (out / ".tokmill" / "journal").read_bytes().count(b"\n")
        assert committed > 1, "what was done so far is there"
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                run_in_process([path], out, small, **then)
        if calls() < n:
            break
        journal = out / ".tokmill" / "journal"
        assert not journal.exists() or journal.read_bytes().count(b"\n") >= committed
        run_in_process([path], out, small, **then)
        assert written(out) == written(tmp_path / "at once")
        assert {p.name for p in out.iterdir()} == {p.name for p in (tmp_path / "at once").iterdir()}


def test_a_policy_that_would_have_changed_what_is_done_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([b'{"text": "\xff"}', *BAD_LAST[:-2], b'{"text": 1}']))
    small = {"batch_bytes": 1000, "segment_bytes": 2000, "terms": BudgetTerms(n_threads=1)}
    with pytest.raises(TooManySkippedError):
        run_in_process([path], tmp_path / "out", small | {"max_skipped": 1}, on_error="skip")
    for now in ({"on_error": "skip", "encoding_errors": "replace"}, {"on_error": "stop"}):
        with pytest.raises(ChangedError):
            run_in_process([path], tmp_path / "out", small, **now)


def test_what_ended_before_its_first_commit_does_not_speak_of_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    job = make_job([str(tmp_path / "a.txt")], PlanOptions(), out=str(tmp_path / "out")).job
    resources = msgspec.structs.replace(job.resources, **UNWATCHED)
    stopped: list[Coordinator] = []
    with pytest.raises(Interrupted) as caught:
        carry_out(
            msgspec.structs.replace(job, resources=resources),
            lambda event: stopped[0].stop() if isinstance(event, Started) else None,
            stopped.append,
        )
    assert caught.value.what == "interrupted; nothing was committed"
    assert caught.value.details()[-1] == ("next", "run the same command again")
    assert not (tmp_path / "out").exists()
    with pytest.raises(StorageError) as refused:
        open_output(Path("/proc/nowhere/out"), job.content, "0", fresh=False)
    assert "continue" not in str(refused.value)


class Gone:
    """A child that Ctrl-C ended before it said anything."""

    interrupts = 1

    def __init__(self, module: str) -> None: ...

    def ask(self, question: bytes) -> None: ...

    def lines(self) -> Iterator[bytes]:
        return iter(())

    def end(self) -> None: ...


@pytest.mark.parametrize("is_begun", [False, True])
def test_only_where_something_was_left_an_interrupted_run_is_told_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_begun: bool
) -> None:
    (tmp_path / "a.txt").write_text("some text")
    job = make_job([str(tmp_path / "a.txt")], PlanOptions(), out=str(tmp_path / "out")).job
    if is_begun:
        (tmp_path / "out" / ".tokmill").mkdir(parents=True)
        for name in ("journal", "train.bin.part"):
            (tmp_path / "out" / ".tokmill" / name).touch()
    monkeypatch.setattr("tokmill.run.supervisor.Child", Gone)
    with pytest.raises(Interrupted) as caught:
        LocalRunner().run(job, ())
    assert caught.value.resumes == is_begun


def test_a_signal_while_an_event_is_told_of_asks_for_the_same_end(tmp_path: Path) -> None:
    corpus, out = tmp_path / "a.txt", tmp_path / "out"
    corpus.write_bytes(SEP.encode().join(some_documents(2000, 2000, 5)))

    class Interrupting:
        def on_event(self, event: AnyEvent) -> None:
            if isinstance(event, Started):
                os.kill(os.getpid(), signal.SIGINT)

    # The child may be done before it is asked; then all is well, too.
    with contextlib.suppress(Interrupted):
        tokmill.tokenize(corpus, out, observers=[Interrupting()])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    tokmill.tokenize(corpus, out)
    assert tokmill.verify(out, sources=True).ok
