"""Inputs that are large, or become large, stay within the budget: measured in fresh processes, made on the fly."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import clean_environment

from tokmill.core.config import BudgetTerms
from tokmill.core.system.budget import divide_budget

GIB = 1 << 30
LINE = "The same sentence of some words and of no end, "


def tokenized(path: str, out: Path, *options: str, feed: str | None = None) -> subprocess.CompletedProcess[bytes]:
    """feed: a program for Python whose standard output is piped in."""
    command = [sys.executable, "-m", "tokmill", "tokenize", path, "--out", str(out), "--json", "-q", "--force", *options]
    if feed is None:
        return subprocess.run(command, env=clean_environment(), capture_output=True, check=False)
    with subprocess.Popen([sys.executable, "-c", feed], stdout=subprocess.PIPE) as feeding:
        done = subprocess.run(command, env=clean_environment(), stdin=feeding.stdout, capture_output=True, check=False)
        feeding.kill()
    return done


@pytest.mark.slow
def test_one_row_group_of_600_mb_stays_within_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"{i} {LINE * 60}" for i in range(210_000)]
    pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), path, row_group_size=len(texts), use_dictionary=False)
    assert pq.ParquetFile(path).metadata.num_row_groups == 1
    done = tokenized(str(path), tmp_path / "out")
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout)
    assert summary["bytes_in"] > 590e6
    assert summary["peak_rss_bytes"] < GIB


def test_rows_that_do_not_fit_together_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"{i} {LINE * 400_000}" for i in range(8)]
    options = {"row_group_size": 20, "write_batch_size": 1, "use_dictionary": False}
    pq.write_table(pa.table({"text": texts}), path, **options)
    done = tokenized(str(path), tmp_path / "out", "--memory", "400MiB", "--threads", "1")
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout)
    assert (summary["documents"], summary["bytes_text"]) == (8, sum(map(len, texts)))
    assert summary["peak_rss_bytes"] < 400 << 20


@pytest.mark.slow
@pytest.mark.parametrize("n_short", [0, 3000])
def test_a_dictionary_that_becomes_a_gigabyte_stays_within_the_budget(tmp_path: Path, n_short: int) -> None:
    path = tmp_path / "a.parquet"
    texts = ["x"] * n_short + ["word " * 200_000] * 1000
    pq.write_table(pa.table({"text": texts}), path, dictionary_pagesize_limit=10 << 20)
    assert path.stat().st_size < 100_000
    done = tokenized(str(path), tmp_path / "out")
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout)
    assert summary["documents"] == n_short + 1000
    assert summary["peak_rss_bytes"] < GIB


@pytest.mark.slow
def test_one_line_of_ten_gigabytes_stays_within_the_budget(tmp_path: Path) -> None:
    feed = f"import sys\nline = ({LINE!r} * 20000).encode()\nfor _ in range(10**10 // len(line)): sys.stdout.buffer.write(line)"
    done = tokenized("-", tmp_path / "out", "--input-format", "text", feed=feed)
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout)
    assert summary["bytes_in"] > 9.9e9
    assert summary["peak_rss_bytes"] < GIB


@pytest.mark.slow
@pytest.mark.parametrize("character", ["a", "7", " "])
def test_fifty_megabytes_of_one_character_do_not_fit_and_the_error_says_what_would_do(tmp_path: Path, character: str) -> None:
    (tmp_path / "a.txt").write_text(character * 50_000_000)
    done = tokenized(str(tmp_path / "a.txt"), tmp_path / "out", "--memory", "1GiB", "--threads", "2")
    assert done.returncode == 13
    assert b"this has 50,000,000" in done.stderr
    named = re.search(rb"--memory (\d+)MiB", done.stderr)
    assert named
    assert 50_000_000 <= divide_budget(int(named[1]) << 20, BudgetTerms(n_threads=2)).max_piece_bytes < 51_000_000


@pytest.mark.parametrize(("name", "data", "policy"), [("a.jsonl", b'{"text": "', "stop"), ("a.csv", b'text\n"', "skip")])
def test_a_line_beyond_the_budget_is_exit_13_and_named(tmp_path: Path, name: str, data: bytes, policy: str) -> None:
    (tmp_path / name).write_bytes(data + b"a" * 60_000_000)
    done = tokenized(str(tmp_path / name), tmp_path / "out", "--memory", "512MiB", "--threads", "1", "--on-error", policy)
    assert done.returncode == 13
    assert name.encode() in done.stderr


def test_too_many_bad_rows_are_exit_15_and_the_file_names_each(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", None, "three", None]}), tmp_path / "a.parquet")
    done = tokenized(str(tmp_path / "a.parquet"), tmp_path / "out", "--on-error", "skip", "--max-skipped", "1")
    assert done.returncode == 15
    done = tokenized(str(tmp_path / "a.parquet"), tmp_path / "out", "--on-error", "skip", "--max-skipped", "2")
    assert done.returncode == 0
    assert json.loads(done.stdout)["skipped"] == {"null_text": 2}
    skips = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(Path(skip["path"]).name, skip["record"], skip["reason"]) for skip in skips] == [
        ("a.parquet", 2, "null_text"),
        ("a.parquet", 4, "null_text"),
    ]
