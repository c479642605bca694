"""`tokmill plan`: what it says, its exit codes, and the check of the disk that is the first step of every run."""

from __future__ import annotations

import gzip
import inspect
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import called, clean_environment, command
from support.corpora import write_corpus
from support.failures import limit_disk
from support.oracle import EOT, gpt2

import tokmill
from tokmill import api
from tokmill.cli import app
from tokmill.cli.render import plan_lines
from tokmill.core.config import BudgetTerms
from tokmill.core.errors import DiskFullError, MemoryBudgetError, UsageError
from tokmill.core.options import PlanOptions
from tokmill.core.system.budget import divide_budget
from tokmill.core.system.child import Child
from tokmill.output import disk_space
from tokmill.run.estimate import forecast
from tokmill.run.job import make_job

pytestmark = pytest.mark.usefixtures("workers_in_process")

TEXTS = [f"Document {i}. {'Some words, then more. ' * (i % 9)}Ünïcödé\n" for i in range(200)]
N_TOKENS = sum(len(gpt2().encode_ordinary(text)) + 1 for text in TEXTS)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.txt", TEXTS)


def test_json_is_one_object_with_everything_in_it(tmp_path: Path, corpus: Path) -> None:
    done = called("plan", corpus, "--out", tmp_path / "o", "--threads", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["is_exact"] is True
    assert found["totals"]["tokens"] == {"value": N_TOKENS, "low": N_TOKENS, "high": N_TOKENS}
    assert found["totals"]["documents"]["value"] == len(TEXTS)
    assert found["dtype"] == "uint16"
    assert found["output_bytes"]["value"] == 2 * N_TOKENS
    assert abs(found["bytes_per_token"] - sum(len(t.encode()) for t in TEXTS) / N_TOKENS) < 1e-9
    source = found["inputs"][0]
    assert (source["path"], source["size_bytes"]) == (str(corpus), corpus.stat().st_size)
    assert source["disk_bytes"] == corpus.stat().st_blocks * 512
    assert found["disk"]["fits"] is True
    assert found["time"]["n_threads"] == 2
    assert found["time"]["low_s"] <= found["time"]["expected_s"] <= found["time"]["high_s"]
    assert 8 * N_TOKENS < found["list_of_ints_bytes"] < 40 * N_TOKENS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.txt"]


def test_the_table_has_a_line_for_everything(tmp_path: Path, corpus: Path) -> None:
    done = called("plan", corpus, "-o", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    for word in ("corpus.txt", "on disk", f"{N_TOKENS:,}", "bytes per token", "uint16", "it fits", "time", "as a list", "budget"):
        assert word in done.stdout
    assert "not checked (pass --out DIR)" in called("plan", corpus).stdout


def test_a_plan_is_what_the_run_then_does(tmp_path: Path, corpus: Path) -> None:
    planned = tokmill.plan(corpus, tmp_path / "o")
    summary = tokmill.tokenize(corpus, tmp_path / "o")
    assert planned.totals is not None
    assert planned.totals.tokens.value == summary.tokens_train + summary.tokens_val
    assert planned.totals.documents.value == summary.documents
    assert planned.totals.bytes_text.value == summary.bytes_text
    assert api.plan(corpus, tmp_path / "o").is_complete


def test_the_terms_of_memory_are_those_of_the_division_and_add_up_to_the_budget(corpus: Path) -> None:
    memory = api.plan(corpus, memory="700MiB", threads=2).memory
    shares = divide_budget(700 << 20, BudgetTerms(n_threads=2))
    once = ("parent_bytes", "coordinator_bytes", "reference_bytes", "inputs_bytes", "held_whole_bytes", "caches_bytes")
    each = ("worker_bytes", "reader_bytes", "in_flight_bytes")
    assert [getattr(memory, term) for term in (*once, *each)] == [getattr(shares, term) for term in (*once, *each)]
    total = sum(getattr(memory, term) for term in once) + 2 * sum(getattr(memory, term) for term in each)
    assert memory.peak_bytes == total <= memory.budget_bytes == 700 << 20


def test_what_the_caches_may_fill_is_called_the_budget_and_no_peak(corpus: Path) -> None:
    planned = api.plan(corpus, memory="700MiB", threads=2)
    rows = plan_lines(planned).split("  memory\n")[1].splitlines()
    assert [row.split("  ")[2:][0] for row in rows if re.search(r"(?<![\d,])700 MiB", row)] == ["budget (--memory)"]
    assert not [row for row in rows if "peak" in row]


@pytest.mark.parametrize("name", ["plan", "tokenize"])
def test_over_budget_is_exit_code_13_and_force_does_not_help(tmp_path: Path, corpus: Path, name: str) -> None:
    done = called(name, corpus, "--out", tmp_path / "o", "--memory", "100MiB", "--force", "--json")
    assert done.returncode == MemoryBudgetError.exit_code == 13
    assert json.loads(done.stdout)["error"]["type"] == "MemoryBudgetError"
    assert not (tmp_path / "o").exists()


def test_a_disk_that_is_too_small_is_exit_code_14_of_plan_behind_the_table(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit_disk(monkeypatch, free_bytes=10_000)
    assert app.run(["plan", str(corpus), "--out", str(tmp_path / "o")]) == 14
    shown = capsys.readouterr()
    assert "IT DOES NOT FIT" in shown.out
    assert "--force" in shown.err
    assert app.run(["plan", str(corpus), "--out", str(tmp_path / "o"), "--json"]) == 14
    assert json.loads(capsys.readouterr().out)["disk"]["fits"] is False
    assert app.run(["plan", str(corpus), "--out", str(tmp_path / "o"), "--force"]) == 0
    assert not (tmp_path / "o").exists()


def test_tokenize_asks_before_it_writes_and_force_overrides(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit_disk(monkeypatch, free_bytes=10_000)
    assert app.run(["tokenize", str(corpus), "--out", str(tmp_path / "deep" / "o"), "-q"]) == 14
    assert "will not fit on the disk" in capsys.readouterr().err
    assert not (tmp_path / "deep").exists()
    assert app.run(["tokenize", str(corpus), "--out", str(tmp_path / "o"), "-q", "--force"]) == 0
    assert (tmp_path / "o" / "manifest.json").exists()
    # What is complete needs no space.
    assert app.run(["tokenize", str(corpus), "--out", str(tmp_path / "o"), "-q"]) == 0


def test_a_side_that_may_be_empty_is_foretold(tmp_path: Path) -> None:
    few = write_corpus(tmp_path / "few.txt", ["some", "few", "documents"])
    assert "about 0.0 of 3 documents will be for validation" in tokmill.plan(few).notices[0]
    assert tokmill.plan(few, val_fraction=0).notices == []
    many = write_corpus(tmp_path / "many.txt", [f"document {i} " * 50 for i in range(400)])
    assert tokmill.plan(many, val_fraction=0.1).notices == []


def test_an_output_that_will_be_refused_is_foretold(tmp_path: Path, corpus: Path) -> None:
    out, other = tmp_path / "o", write_corpus(tmp_path / "other.txt", TEXTS)
    tokmill.tokenize(corpus, out, threads=1, val_fraction=0)
    assert tokmill.plan(corpus, out, val_fraction=0).notices == []
    for path, options, words in ((corpus, {"seed": 4}, "--seed was 0, is 4"), (other, {}, "complete output of 1 other input")):
        (notice,) = tokmill.plan(path, out, val_fraction=0, **options).notices  # type: ignore[arg-type]
        assert notice.startswith("tokenize will refuse this --out: ")
        assert words in notice
        assert tokmill.plan(path, out, val_fraction=0, fresh=True, **options).notices == []  # type: ignore[arg-type]


def test_a_plan_without_copies_counts_the_second_writing_and_knows_its_output(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "o"
    plain, plan = (tokmill.plan(corpus, out, dedup=dedup) for dedup in (False, True))
    assert (plain.passes, plan.passes) == (1, 2)
    assert plan.scratch_bytes is not None
    assert plan.scratch_bytes.value >= (plan.output_bytes.value if plan.output_bytes else 0) > 0
    assert plan.disk is not None
    assert plain.disk is not None
    assert plan.disk.output_bytes - plain.disk.output_bytes == plan.scratch_bytes.value
    assert "2: tokenized, then without copies; " in called("plan", corpus, "--dedup").stdout
    tokmill.tokenize(corpus, out, dedup=True, threads=1)
    again, other = (tokmill.plan(corpus, out, dedup=dedup) for dedup in (True, False))
    assert (again.is_complete, other.is_complete) == (True, False)
    assert not [said for said in again.notices if "refuse" in said]
    assert [said for said in other.notices if "refuse this --out" in said]
    with pytest.raises(UsageError, match="--shuffle and --dedup do not go together"):
        tokmill.plan(corpus, dedup=True, shuffle=1)
    with pytest.raises(UsageError, match="neither shuffled nor deduplicated"):
        tokmill.plan(corpus, "s3://bucket/x", dedup=True)


def test_plan_has_the_options_of_tokenize() -> None:
    """An option that decides what comes out, or what it takes, must not be refused by the command that foretells it."""
    made, foretold = (inspect.signature(f).parameters for f in (tokmill.tokenize, tokmill.plan))
    assert {*made} - {*foretold} == {"observers", "append", "force", "part", "part_bytes", "ray"}
    assert {name: foretold[name].default for name in foretold if name != "out"} == {
        name: made[name].default for name in foretold if name != "out"
    }


def test_a_disk_without_room_for_more_files_is_refused(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_disk(monkeypatch, free_bytes=10**8, free_files=3)
    with pytest.raises(DiskFullError, match="files and directories"):
        tokmill.tokenize(corpus, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_where_space_is_ample_nothing_is_sampled(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sample(*_: object, **__: object) -> None:
        raise AssertionError("a sample was taken")

    monkeypatch.setattr(forecast, "ask", no_sample)
    forecast.check_disk(make_job([str(corpus)], out=str(tmp_path / "o")).job)
    job = make_job([str(corpus)], out=str(tmp_path / "o")).job
    limit_disk(monkeypatch, free_bytes=disk_space.disk_need(job, *(disk_space.most_tokens(job.content) or (0, 0))).needed_bytes)
    forecast.check_disk(job)
    with pytest.raises(AssertionError, match="a sample was taken"):
        forecast.check_disk(make_job([str(corpus)], PlanOptions(dtype="uint32"), out=str(tmp_path / "o")).job)


def test_a_sample_admits_what_the_upper_bound_alone_would_refuse(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job([str(corpus)], out=str(tmp_path / "o")).job
    limit_disk(monkeypatch, free_bytes=10**8)
    needed = disk_space.disk_need(job, N_TOKENS, corpus.stat().st_size).needed_bytes
    assert disk_space.disk_need(job, *(disk_space.most_tokens(job.content) or (0, 0))).needed_bytes > needed
    limit_disk(monkeypatch, free_bytes=needed)
    forecast.check_disk(job)
    limit_disk(monkeypatch, free_bytes=needed - 1)
    with pytest.raises(DiskFullError):
        forecast.check_disk(job)


def test_what_an_earlier_run_wrote_is_taken_off(tmp_path: Path, corpus: Path) -> None:
    job = make_job([str(corpus)], out=str(tmp_path / "o")).job
    before = disk_space.disk_need(job, 10**9, 10**9)
    state = tmp_path / "o" / ".tokmill"
    state.mkdir(parents=True)
    (state / "train.bin.part").write_bytes(b"\1" * 1_000_000)
    after = disk_space.disk_need(job, 10**9, 10**9)
    assert 1_000_000 <= after.written_bytes < 1_100_000
    assert before.needed_bytes - after.needed_bytes == after.written_bytes
    assert (before.needed_files, after.needed_files) == (9, 0)


def test_the_upper_bound_holds_for_the_shortest_tokens_there_are(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c.txt", ["\x01\x02\x03" * 100, "", "¬"])
    job = make_job([str(path)], out=str(tmp_path / "o")).job
    bound = disk_space.most_tokens(job.content)
    assert bound is not None
    assert bound[0] >= len(gpt2().encode_ordinary("\x01\x02\x03" * 100)) + len(gpt2().encode_ordinary("¬")) + 2
    assert disk_space.most_tokens(make_job(["-"], out=str(tmp_path / "o")).job.content) is None


def test_standard_input_cannot_be_planned_and_is_not_consumed(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m tokmill plan - --json && cat"],
        input=b"text to stay",
        capture_output=True,
        env=clean_environment(),
        check=False,
    )
    first, rest = done.stdout.split(b"\n", 1)
    assert rest == b"text to stay"
    found = json.loads(first)
    assert (found["totals"], found["time"], found["disk"]) == (None, None, None)
    assert found["memory"]["peak_bytes"] > 0


def test_the_parent_process_loads_neither_engine_nor_numpy(tmp_path: Path, corpus: Path) -> None:
    code = (
        f"import sys\nfrom tokmill.cli import app\nassert app.run(['plan', {str(corpus)!r}]) == 0\n"
        "print([m for m in ('numpy', 'gigatoken', 'pyarrow', 'tiktoken') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment(), check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_engine_that_fails_and_a_process_that_dies_are_errors(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "d.txt.gz"
    damaged.write_bytes(b"\x1f\x8b\x08\x00nonsense")
    assert app.run(["plan", str(damaged)]) == 1
    assert str(damaged) in capsys.readouterr().err
    monkeypatch.setattr(forecast, "Child", lambda _module: Child("tokmill.no_such_module"))
    assert app.run(["plan", str(corpus)]) == 1
    assert "the sampling process exited unexpectedly" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.root
def test_a_real_disk_that_is_too_small_is_refused_before_anything_is_written(small_disk: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "large.txt", TEXTS * 200)
    for name in ("plan", "tokenize"):
        assert command(name, corpus, "--out", small_disk / "o").returncode == 14
        assert list(small_disk.iterdir()) == []
    # With --force it is tried, and the disk says the same.
    assert command("tokenize", corpus, "--out", small_disk / "o", "--force").returncode == 14
    assert (small_disk / "o").exists()


def test_ids_of_an_end_are_counted(corpus: Path) -> None:
    with_eot, without = api.plan(corpus).totals, api.plan(corpus, eot="none").totals
    assert with_eot is not None
    assert without is not None
    assert with_eot.tokens.value - without.tokens.value == len(TEXTS)
    assert EOT > 256


@pytest.mark.parametrize("ends", ["alternating", "at random"])
def test_what_is_called_exact_is_exact_however_the_files_end(tmp_path: Path, ends: str) -> None:
    rng = random.Random(5)
    for i in range(300):
        is_ended = i % 2 == 1 if ends == "alternating" else rng.random() < 0.5
        (tmp_path / f"{i:04d}.txt").write_text("hello" + "<|endoftext|>" * is_ended)
    found = json.loads(called("plan", tmp_path, "--json").stdout)
    assert found["is_exact"] is True
    assert found["totals"]["tokens"] == {"value": 600, "low": 600, "high": 600}


def test_a_sample_of_ends_widens_the_interval(tmp_path: Path) -> None:
    rng = random.Random(5)
    n_ended = 0
    for i in range(400):
        is_ended = rng.random() < 0.5
        n_ended += is_ended
        (tmp_path / f"{i:04d}.txt").write_text("hello" + " again and again" * 4000 + "<|endoftext|>" * is_ended)
    found = json.loads(called("plan", tmp_path, "--json").stdout)
    truth = 400 * (len(gpt2().encode_ordinary("hello" + " again and again" * 4000)) + 1)
    assert found["is_exact"] is False
    assert found["totals"]["tokens"]["low"] <= truth <= found["totals"]["tokens"]["high"]
    assert found["totals"]["tokens"]["low"] < found["totals"]["tokens"]["value"]


def test_no_file_is_written_to_plan(tmp_path: Path, corpus: Path) -> None:
    nowhere = tmp_path / "nowhere"
    done = subprocess.run(
        [sys.executable, "-m", "tokmill", "plan", str(corpus)],
        capture_output=True,
        text=True,
        env=clean_environment(TMPDIR=str(nowhere), TMP=str(nowhere), TEMP=str(nowhere)),
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("n_rows", [100, 101, 199, 230])
def test_rows_of_parquet_are_counted_once_whatever_the_size_of_the_last_row_group(tmp_path: Path, n_rows: int) -> None:
    texts = [*(TEXTS[i % len(TEXTS)] for i in range(n_rows - 2)), "", None]
    pq.write_table(pa.table({"text": texts}), tmp_path / "c.parquet", row_group_size=50)
    planned = tokmill.plan(tmp_path / "c.parquet")
    made = tokmill.tokenize(tmp_path / "c.parquet", tmp_path / "o", on_error="skip")
    assert planned.is_exact
    assert planned.totals is not None
    assert planned.totals.documents.value == n_rows == made.documents
    assert planned.totals.tokens.value == made.tokens_train + made.tokens_val


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_texts_under_a_nested_key_are_counted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c{suffix}"
    lines = "".join(json.dumps({"meta": {"body": text}}) + "\n" for text in TEXTS).encode()
    path.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
    planned = tokmill.plan(path, text_key="meta.body")
    assert planned.is_exact
    assert planned.totals is not None
    assert (planned.totals.documents.value, planned.totals.tokens.value) == (len(TEXTS), N_TOKENS)


def test_every_file_takes_its_time(tmp_path: Path) -> None:
    for i in range(500):
        (tmp_path / f"{i}.txt").write_text("x")
    one, all_of_them = (tokmill.plan(path, val_fraction=0).time for path in (tmp_path / "0.txt", tmp_path))
    assert one is not None
    assert all_of_them is not None
    assert all_of_them.expected_s > one.expected_s + 0.1


def test_thousands_of_shards_are_a_notice_beforehand(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words " * 1000)
    (notice,) = tokmill.plan(tmp_path, val_fraction=0, shard_tokens=2).notices
    assert notice.startswith("shards of 2 tokens: about 1,001 files; ")
    assert tokmill.plan(tmp_path, val_fraction=0, shard_tokens=100).notices == []


def test_very_many_small_files_are_made_with_force_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_corpus(tmp_path / "a.txt", ["some words " * 40] * 130)
    whole, out = tmp_path / "whole", tmp_path / "o"
    n_tokens = tokmill.tokenize(path, whole, val_fraction=0, threads=1).tokens_train
    assert f"about {n_tokens:,} files" in " ".join(tokmill.plan(path, val_fraction=0, shard_tokens=1).notices)
    for arguments in (["tokenize", str(path)], ["reshard", str(whole)], ["convert", str(whole), "--format", "llmc"]):
        assert app.run([*arguments, "--out", str(out), "--shard-tokens", "1", "-q"]) == 2
        assert not out.exists()
    with pytest.raises(UsageError, match="shards of 1 token would make about") as caught:
        tokmill.tokenize(path, out, shard_tokens=1, threads=1)
    tokmill.tokenize(path, out, shard_tokens=caught.value.suggested, threads=1)
    tokmill.tokenize(path, out, fresh=True, val_fraction=0, threads=1, shard_tokens=1, shard_documents=True)
    assert len(list(out.glob("*.bin"))) == 130
    monkeypatch.setattr(disk_space, "_MOST_SMALL_FILES", 100)
    with pytest.raises(UsageError, match="about 106 files"):
        tokmill.reshard(whole, tmp_path / "m", shard_tokens=100)
    tokmill.reshard(whole, tmp_path / "m", shard_tokens=100, force=True)
    assert len(list((tmp_path / "m").glob("*.bin"))) == 107
