"""The whole run, as a user calls it: bytes, options, resuming, refusing."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.commands import PATIENCE_S, clean_environment, command, killed_worker, n_committed, wait_until
from support.corpora import SEP, some_documents, some_text
from support.in_process import workers_in_process
from support.oracle import EOT, gpt2, plain_tokens
from support.outputs import written
from support.runs import run_in_process

import tokmill
from tokmill.core.errors import (
    AuditError,
    BadTextError,
    ChangedError,
    DamagedInputError,
    Interrupted,
    LockedError,
    TooManySkippedError,
)
from tokmill.core.events import Started
from tokmill.encode import loading
from tokmill.output import Output
from tokmill.run.coordinator import Coordinator
from tokmill.run.job import make_job
from tokmill.run.segment_writer import SegmentWriter


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    documents = [*some_documents(400, 4000), b"", b"near copy " * 30, b"near copy " * 30, b" ", b"\n"]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_bytes(SEP.encode().join(documents))
    return path, documents


@pytest.fixture(scope="module")
def expected(corpus: tuple[Path, list[bytes]]) -> tuple[bytes, bytes]:
    """What the reference makes of it."""
    return plain_tokens(corpus[1])


def test_train_and_val_are_the_references_bytes(corpus: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    path, documents = corpus
    summary = tokmill.tokenize(str(path), str(tmp_path / "out"), val_fraction=0.1)
    train, val = plain_tokens(documents, val_fraction=0.1)
    assert written(tmp_path / "out") == (train, val)
    assert len(val) > 0
    assert summary.tokens_train == len(train) // 2
    assert summary.tokens_val == len(val) // 2
    assert summary.documents == len(documents)
    assert summary.documents_train + summary.documents_val + sum(summary.skipped.values()) == summary.documents
    assert summary.skipped == {"empty": 1}
    assert summary.bytes_in == path.stat().st_size
    assert summary.audited_documents >= 1


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    documents = [*some_documents(120, 300, 8), b"", b"", *some_documents(3, 8000, 9), b" "]
    path = tmp_path_factory.mktemp("corpus") / "small.txt"
    path.write_bytes(SEP.encode().join(documents))
    return path, documents


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_bytes=st.integers(64, 20_000),
    n_workers=st.integers(1, 4),
    arena_bytes=st.integers(4096, 400_000),
    eot=st.sampled_from(["before", "after", "none"]),
    val_fraction=st.sampled_from([0.0, 0.3]),
    keep_empty=st.booleans(),
    dtype=st.sampled_from(["uint16", "uint32"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_the_bytes_do_not_depend_on_batches_workers_or_budget(
    small_corpus: tuple[Path, list[bytes]],
    tmp_path_factory: pytest.TempPathFactory,
    batch_bytes: int,
    n_workers: int,
    arena_bytes: int,
    **options: object,
) -> None:
    path, documents = small_corpus
    out = tmp_path_factory.mktemp("run")
    resources = {"batch_bytes": batch_bytes, "n_workers": n_workers, "arena_bytes": arena_bytes}
    run_in_process([path], out, resources, **options)
    assert written(out) == plain_tokens(documents, **options)  # type: ignore[arg-type]


unicode_text = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(list(" \t\n\r'’sdmtlvreSTLL0123456789\u00a0\u3000\u200b\u0301\u0b83\U0001f3fd,.!?")),
    ),
    max_size=60,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.lists(unicode_text, max_size=30), batch_bytes=st.integers(64, 300))
def test_random_strings_over_all_planes_of_unicode(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], batch_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("unicode")
    kept = [d.replace(SEP, "") for d in documents]
    (folder / "a.txt").write_bytes(SEP.join(kept).encode())
    run_in_process([folder / "a.txt"], folder / "out", {"batch_bytes": batch_bytes}, val_fraction=0.2)
    assert written(folder / "out") == plain_tokens([d.encode() for d in kept], val_fraction=0.2)


@pytest.mark.parametrize("batch_bytes", [1000, 50_000])
def test_a_file_without_separator_gives_the_tokens_of_the_whole_text(tmp_path: Path, batch_bytes: int) -> None:
    text = some_text(300_000, 5)
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    run_in_process([tmp_path / "one.txt"], tmp_path / "out", {"batch_bytes": batch_bytes}, separator="none", val_fraction=0.0)
    assert written(tmp_path / "out") == plain_tokens([text.encode()], val_fraction=0)


def test_json_lines_with_near_copies(tmp_path: Path) -> None:
    documents = [d.decode() for d in some_documents(100, 2000, 3)]
    documents += [d + "!" for d in documents] + documents[:10]
    lines = "".join(
        json.dumps({"id": i, "body": d, "meta": {"x": [1, None]}}, ensure_ascii=i % 2 == 0) + "\n" for i, d in enumerate(documents)
    )
    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress(lines[: len(lines) // 2].encode()) + gzip.compress(lines[len(lines) // 2 :].encode())
    )
    run_in_process([tmp_path / "a.jsonl.gz"], tmp_path / "out", text_key="body", val_fraction=0.2)
    assert written(tmp_path / "out") == plain_tokens([d.encode() for d in documents], val_fraction=0.2)


def test_text_never_becomes_a_special_token(tmp_path: Path) -> None:
    documents = [f"before {SEP} after", SEP, f"{SEP}{SEP}", "<|endof", "text|>", "<|fim_prefix|>"]
    (tmp_path / "a.txt").write_text("\n====\n".join(documents))
    run_in_process([tmp_path / "a.txt"], tmp_path / "out", {"batch_bytes": 64}, separator=r"\n====\n", val_fraction=0.0)
    train, _ = written(tmp_path / "out")
    assert (train, b"") == plain_tokens([d.encode() for d in documents], val_fraction=0)
    assert sum(1 for i in range(0, len(train), 2) if train[i : i + 2] == EOT.to_bytes(2, "little")) == len(documents)


def test_several_inputs_in_the_order_given_and_a_directory_sorted(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / "b").mkdir(parents=True)
    for name in ("z.txt", "b/a.txt", "a.txt"):
        (folder / name).write_text(f"text of {name}")
    (tmp_path / "first.txt").write_text("first")
    run_in_process([tmp_path / "first.txt", folder], tmp_path / "out", val_fraction=0.0)
    documents = [b"first", b"text of a.txt", b"text of b/a.txt", b"text of z.txt"]
    assert written(tmp_path / "out") == plain_tokens(documents, val_fraction=0)


def test_an_output_directory_inside_the_input_directory_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    out = tmp_path / "out"
    run_in_process([tmp_path], out, val_fraction=0.0)
    run_in_process([tmp_path], out, val_fraction=0.0)
    assert written(out) == plain_tokens([b"text"], val_fraction=0)


class Long(NamedTuple):
    """More text than a batch has, and its tokens."""

    text: bytes
    expected: tuple[bytes, bytes]


@pytest.fixture(scope="module")
def long(corpus: tuple[Path, list[bytes]], expected: tuple[bytes, bytes]) -> Long:
    train, val = expected
    return Long(SEP.encode().join(corpus[1] * 5), (train * 5, val * 5))


def test_standard_input_and_its_resume(long: Long, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(out), "-q"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, env=clean_environment()) as process:
        assert process.stdin is not None
        process.stdin.write(long.text[: len(long.text) // 2])
        process.stdin.flush()
        part = out / ".tokmill" / "train.bin.part"
        wait_until(lambda: part.exists() and part.stat().st_size > 0, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    changed = subprocess.run(arguments, input=b"other " + long.text, env=clean_environment(), capture_output=True, check=False)
    assert changed.returncode == 12, changed.stderr
    again = subprocess.run([*arguments, "--json"], input=long.text, env=clean_environment(), capture_output=True, check=True)
    assert json.loads(again.stdout)["resumed"] is True
    assert written(out) == long.expected


@pytest.mark.parametrize("n_written_bytes", [0, 1])
def test_an_interrupt_that_also_ends_the_program_before_the_pipe_is_not_the_end_of_the_corpus(
    long: Long, tmp_path: Path, n_written_bytes: int
) -> None:
    out, text = tmp_path / "out", long.text
    arguments = [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(out), "-q"]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=clean_environment(), start_new_session=True
    ) as process:
        assert process.stdin is not None
        process.stdin.write(text[: len(text) // 2])
        process.stdin.flush()
        # At work, and with something written: both are moments of an interrupt, and neither is one of the start.
        wait_until((out / ".tokmill" / "journal").exists, process)
        wait_until(lambda: sum(path.stat().st_size for path in out.rglob("train.bin.part")) >= n_written_bytes, process)
        os.killpg(process.pid, signal.SIGINT)
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 130
    assert not (out / "manifest.json").exists()
    again = subprocess.run(arguments, input=text, env=clean_environment(), check=False)
    assert again.returncode == 0
    assert written(out) == long.expected


def test_the_end_of_a_pipe_is_not_committed_where_the_run_is_stopped_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may have ended the program before the pipe: what stands at the end of the pipe may be half a document."""
    begun, wait, begin = list[Coordinator](), SegmentWriter.wait_for_stdin_end, Coordinator._started

    def stop_behind_it(writer: SegmentWriter) -> None:
        wait(writer)
        begun[0].stop()

    def started(worker: Coordinator, output: Output) -> Started:
        begun.append(worker)
        return begin(worker, output)

    monkeypatch.setattr(SegmentWriter, "wait_for_stdin_end", stop_behind_it)
    monkeypatch.setattr(Coordinator, "_started", started)
    (tmp_path / "half").write_bytes(b"one<|endoftext|>tw")
    before = os.dup(0)
    with (tmp_path / "half").open("rb") as half:
        os.dup2(half.fileno(), 0)
        try:
            with pytest.raises(Interrupted):
                run_in_process(["-"], tmp_path / "out", val_fraction=0.0)
        finally:
            os.dup2(before, 0)
            os.close(before)
    assert n_committed(tmp_path / "out") == 0


def test_the_same_command_again_changes_nothing(corpus: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_in_process([corpus[0]], out)
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in out.iterdir()}
    run_in_process([corpus[0]], out)
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in out.iterdir()} == before


def test_a_changed_input_or_configuration_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one<|endoftext|>two")
    run_in_process([path], tmp_path / "out")
    with pytest.raises(ChangedError, match=r"--val-fraction was 0\.0005, is 0\.5"):
        run_in_process([path], tmp_path / "out", val_fraction=0.5)
    path.write_text("one<|endoftext|>TWO")
    with pytest.raises(ChangedError, match=r"a\.txt"):
        run_in_process([path], tmp_path / "out")
    run_in_process([path], tmp_path / "out", fresh=True)
    assert written(tmp_path / "out") == plain_tokens([b"one", b"TWO"])


def test_work_before_a_bad_document_is_kept_and_the_run_goes_on_when_the_file_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good")
    (tmp_path / "b.txt").write_bytes(b"x" + SEP.encode() + b"caf\xe9")
    with pytest.raises(BadTextError) as caught:
        run_in_process([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out")
    assert "b.txt" in str(caught.value.where)
    assert "document 2" in str(caught.value.where)
    run_in_process([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "skip", on_error="skip", val_fraction=0.0)
    assert written(tmp_path / "skip") == plain_tokens([b"good", b"x"], val_fraction=0)
    assert json.loads((tmp_path / "skip" / "skipped.jsonl").read_text())["reason"] == "invalid_utf8"
    with pytest.raises(TooManySkippedError):
        run_in_process([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "most", on_error="skip", max_skipped=0)


def test_truncated_input_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    data = gzip.compress(some_text(100_000).encode())
    (tmp_path / "a.txt.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedInputError) as caught:
        run_in_process([tmp_path / "a.txt.gz"], tmp_path / "out")
    assert "a.txt.gz" in str(caught.value.where)


def test_two_runs_on_one_output_directory(corpus: tuple[Path, list[bytes]], expected: tuple[bytes, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(out), "-q"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, env=clean_environment()) as process:
        wait_until((out / ".tokmill" / "journal").exists, process)
        with pytest.raises(LockedError), workers_in_process():
            tokmill.tokenize("-", str(out))
        process.kill()
    # The worker notices that its parent is gone, and gives the directory up.
    wait_until(lambda: command("tokenize", corpus[0], "--out", out, "-q", "--fresh").returncode != 11)
    assert written(out) == expected


def test_the_worker_that_aborts_is_resumed_even_from_a_redirected_file(
    corpus: tuple[Path, list[bytes]], expected: tuple[bytes, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(SEP.encode().join(corpus[1] * 10))
    expected = (expected[0] * 10, expected[1] * 10)
    done = killed_worker([path], tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["restarts"] == 1
    assert written(tmp_path / "out") == expected
    with path.open("rb") as file:
        done = killed_worker(["-"], tmp_path / "redirected", file.fileno())
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "redirected") == expected


def test_what_a_dead_worker_read_from_a_pipe_is_never_left_out(corpus: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    with subprocess.Popen(["cat", str(corpus[0]), "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        done = killed_worker(["-"], tmp_path / "out", cat.stdout.fileno())
        cat.kill()
    assert done.returncode == 1
    assert b"died" in done.stderr
    assert not (tmp_path / "out" / "train.bin").exists()


def test_the_audit_stops_a_run_whose_engine_is_wrong(
    corpus: tuple[Path, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        def encode(self, documents: Sequence[bytes], raw: memoryview | None = None) -> object:
            ids, offsets = real.encode(documents, raw)
            ids = ids.copy()
            ids[0] ^= 1
            return ids, offsets

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    load = loading.load_encoder
    job_tokenizer = make_job([str(corpus[0])], out=str(tmp_path)).job.content.tokenizer
    real = load(job_tokenizer, "gigatoken")
    monkeypatch.setattr(
        "tokmill.run.coordinator.load_encoder",
        lambda tokenizer, engine: Wrong() if engine == "gigatoken" else load(tokenizer, engine),
    )
    with pytest.raises(AuditError) as caught:
        run_in_process([corpus[0]], tmp_path / "out")
    assert "corpus.txt" in str(caught.value.where)
    assert not (tmp_path / "out" / "train.bin").exists()


def test_the_fallback_engine_gives_the_same_bytes(
    corpus: tuple[Path, list[bytes]], expected: tuple[bytes, bytes], tmp_path: Path
) -> None:
    run_in_process([corpus[0]], tmp_path / "out", engine="tiktoken")
    assert written(tmp_path / "out") == expected


def test_no_network_and_no_cache_are_needed(corpus: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    done = command("tokenize", corpus[0], "--out", tmp_path / "out", "--json", HOME=str(tmp_path / "nobody"), TIKTOKEN_CACHE_DIR="")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == len(corpus[1])
    assert not (tmp_path / "nobody").exists()


def test_gpt2_is_what_tiktoken_calls_gpt2() -> None:
    assert gpt2().encode_ordinary("hello world, it's 2024") == [31373, 995, 11, 340, 338, 48609]


def test_small_files_that_end_as_a_separator_begins_keep_their_documents(tmp_path: Path) -> None:
    documents = [word * 400 for word in ("one ", "two ", "three ")] * 2
    documents[2] += "\n"
    documents[5] += "\n"
    (tmp_path / "in").mkdir()
    for name, some in (("a", documents[:3]), ("b", documents[3:])):
        (tmp_path / "in" / f"{name}.txt").write_text("\n\n".join(some))
    run_in_process([tmp_path / "in"], tmp_path / "out", separator="\n\n", val_fraction=0.0)
    assert written(tmp_path / "out") == plain_tokens([each.encode() for each in documents], val_fraction=0.0)
