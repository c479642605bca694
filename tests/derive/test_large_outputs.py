"""merge, convert, shuffle, mix and pack at sizes where memory, time and kills show: a gigabyte of ids in fresh processes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.commands import clean_environment
from support.corpora import some_documents
from support.oracle import EOT
from support.outputs import files_in, written
from support.runs import tokenize_documents

import tokmill

MIB = 1 << 20
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Complete outputs of about 0.1 and 1 GB: a small real run, merged with itself."""
    base = tmp_path_factory.mktemp("large")
    tokenize_documents(base / "seed", some_documents(500, 4000, 1), {"batch_bytes": MIB, "segment_bytes": 64 * MIB})
    n_bytes = sum(map(len, written(base / "seed")))
    tokmill.merge([base / "seed"] * (10 * MIB // n_bytes), base / "10")
    tokmill.merge([base / "10"] * 10, base / "100")
    tokmill.merge([base / "100"] * 10, base / "1000")
    return base


def figures(*arguments: object) -> dict[str, float]:
    """What a command in a fresh process says of itself."""
    command = [sys.executable, "-m", "tokmill", *map(str, arguments), "--json", "-q", "--fresh"]
    done = subprocess.run(command, check=True, capture_output=True, env=clean_environment(), timeout=600)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "arguments", [["merge"], ["convert", "--format", "llmc"], ["convert", "--format", "megatron"]], ids=" ".join
)
def test_ten_times_the_ids_take_the_same_memory(base: Path, tmp_path: Path, arguments: list[str]) -> None:
    small, large = (figures(*arguments, base / size, "--out", tmp_path / "out") for size in ("100", "1000"))
    assert large["bytes_out"] > 9e8
    assert large["peak_rss_bytes"] < small["peak_rss_bytes"] + 16 * MIB
    assert large["peak_rss_bytes"] < 128 * MIB


@pytest.mark.parametrize("arguments", [["merge"], ["convert", "--format", "megatron"]], ids=" ".join)
def test_killed_at_random_moments_and_run_again_the_bytes_are_the_same(base: Path, tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "tokmill", *arguments, str(base / "1000"), "-q", "--out"]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=clean_environment())
    whole_s = time.monotonic() - began
    rng, n_killed = random.Random(5), 0
    for _ in range(12):
        with subprocess.Popen([*command, str(tmp_path / "out")], env=clean_environment()) as process:
            time.sleep(rng.uniform(0.1, 0.7) * whole_s)
            process.send_signal(signal.SIGKILL)
            n_killed += process.wait() == -signal.SIGKILL
    subprocess.run([*command, str(tmp_path / "out")], check=True, env=clean_environment())
    assert n_killed > 2
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole")
    assert tokmill.verify(tmp_path / "out").ok


def bare(path: Path, ids: np.ndarray[tuple[int], np.dtype[np.uint16]]) -> Path:
    """A complete output of ids."""
    ids.tofile(path.with_suffix(".ids"))
    options = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": EOT, "from_tokenizer": "gpt2"}
    tokmill.convert(path.with_suffix(".ids"), path, format="raw", **options)  # type: ignore[arg-type]
    return path


def test_ten_million_tiny_documents_and_one_larger_than_the_budget_take_no_more_memory(tmp_path: Path) -> None:
    tiny = np.random.default_rng(0).integers(0, EOT, 30_000_000, dtype=np.uint16)
    tiny[2::3] = EOT
    long = np.random.default_rng(1).integers(0, EOT, 120_000_000, dtype=np.uint16)
    long[[10, 90_000_000, -1]] = EOT
    for ids in (tiny, long):
        # What fills sequences up is in no document.
        ids[ids == 187] = 188
    for name, ids in (("tiny", tiny), ("long", long)):
        source = bare(tmp_path / name, ids)
        for arguments in (
            ["shuffle", source],
            ["mix", f"{source}=1", "--max-epochs", "1.5"],
            ["pack", source, "--sequence", "2048"],
        ):
            made = figures(*arguments, "--seed", "1", "--memory", "128MiB", "--out", tmp_path / "out")
            assert made["peak_rss_bytes"] < 128 * MIB, (name, arguments[0])
            assert tokmill.verify(tmp_path / "out", memory="128MiB").order_checked
