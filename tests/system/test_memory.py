"""Memory of all processes stays within --memory, whatever the input. Measured from outside, in a fresh process; a page that several
processes share counts once, as it does for the machine and for control groups.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.commands import clean_environment

MIB = 1 << 20
SEPARATOR = b"<|endoftext|>"
LETTERS = "etaoinshrdlucmfwypvbgk"


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    peak_bytes: int
    """Largest sum of the memory of all processes, looked at every 10 ms."""
    said: dict[str, object]
    errors: str


def run(*arguments: str | Path, memory: str, pipe: Iterable[bytes] = ()) -> Outcome:
    """`tokmill tokenize`, with `pipe` on standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tokmill", "tokenize", *map(str, arguments), "--memory", memory, "--json", "-q", "--threads", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    )
    peak, over = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), peak, over))
    watcher.start()
    assert process.stdin
    assert process.stdout
    assert process.stderr
    try:
        for block in pipe:
            process.stdin.write(block)
        process.stdin.close()
    except BrokenPipeError:
        pass
    said, errors = process.stdout.read(), process.stderr.read()
    exit_code = process.wait()
    over.set()
    watcher.join()
    process.stdout.close()
    process.stderr.close()
    return Outcome(exit_code, peak[0], json.loads(said.splitlines()[0]) if said else {}, errors.decode())


def _watch(root: psutil.Process, peak: list[int], over: threading.Event) -> None:
    while not over.wait(0.01):
        total = 0
        try:
            for process in (root, *root.children(recursive=True)):
                total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
        peak[0] = max(peak[0], total)


def prose(n_bytes: int, *, n_words: int = 30_000, block_bytes: int = 4 * MIB) -> Iterator[bytes]:
    """Words of one language, some more common than others, on one line without end."""
    rng = random.Random(1)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(1, 9))) for _ in range(n_words)]
    chosen = rng.choices(words, cum_weights=list(itertools.accumulate(1 / (i + 3) for i in range(n_words))), k=block_bytes // 5)
    block = (" ".join(chosen) + " ").encode()
    while n_bytes > 0:
        yield block[:n_bytes]
        n_bytes -= len(block)


def unique_words(n_bytes: int) -> Iterator[bytes]:
    """Words of eight letters that do not repeat."""
    letters = np.frombuffer(LETTERS.encode(), np.uint8)
    for begin in itertools.count(0, 100_000):
        if n_bytes <= 0:
            return
        numbers = (np.arange(begin, begin + 100_000) * 129_140_163 % 22**8)[:, None]
        words = np.full((100_000, 9), ord(" "), np.uint8)
        words[:, :8] = letters[numbers // 22 ** np.arange(8) % 22]
        block = words.tobytes()
        yield block
        n_bytes -= len(block)


SIZES = [pytest.param(1, id="quick"), pytest.param(100, id="full", marks=pytest.mark.slow)]
"""A hundredth of what is promised, and all of it."""


def within(outcome: Outcome, mib: int, exit_code: int = 0) -> None:
    assert outcome.exit_code == exit_code, outcome.errors
    assert outcome.peak_bytes <= mib * MIB, f"{outcome.peak_bytes / MIB:.0f} MiB of {mib}"


@pytest.mark.parametrize("scale", SIZES)
def test_one_line_of_ten_gigabytes(tmp_path: Path, scale: int) -> None:
    n_bytes = scale * 100_000_000
    outcome = run("-", "--separator", "none", "--out", tmp_path / "out", memory="512MiB", pipe=prose(n_bytes))
    within(outcome, 512)
    assert outcome.said["bytes_in"] == n_bytes


@pytest.mark.parametrize("scale", SIZES)
def test_ten_million_empty_documents(tmp_path: Path, scale: int) -> None:
    corpus = tmp_path / "empty.txt"
    corpus.write_bytes(SEPARATOR * (scale * 100_000))
    outcome = run(corpus, "--out", tmp_path / "out", memory="512MiB")
    # Nothing but empty documents is an output without a token.
    within(outcome, 512, exit_code=1)
    assert outcome.said["skipped"] == {"empty": scale * 100_000 + 1}


@pytest.mark.parametrize("scale", SIZES)
def test_a_hundred_thousand_tiny_files(tmp_path: Path, scale: int) -> None:
    for i in range(scale * 1000):
        folder = tmp_path / "in" / f"{i // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:06d}.txt").write_bytes(b"file number %d\n" % i)
    outcome = run(tmp_path / "in", "--separator", "none", "--out", tmp_path / "out", memory="1GiB")
    within(outcome, 1024)
    assert outcome.said["documents"] == scale * 1000


@pytest.mark.parametrize(
    ("n_bytes", "mib"),
    [pytest.param(20_000_000, 512, id="quick"), pytest.param(2_000_000_000, 1024, id="full", marks=pytest.mark.slow)],
)
def test_two_gigabytes_without_a_repeated_word(tmp_path: Path, n_bytes: int, mib: int) -> None:
    outcome = run("-", "--out", tmp_path / "out", memory=f"{mib}MiB", pipe=unique_words(n_bytes))
    within(outcome, mib)


@pytest.mark.parametrize("scale", SIZES)
def test_a_decompression_bomb(tmp_path: Path, scale: int) -> None:
    bomb = tmp_path / "bomb.txt.gz"
    member = gzip.compress(b"word " * 20_000_000, 9)
    # Every member is 100 MB of text in 100 kB.
    bomb.write_bytes(member * scale)
    outcome = run(bomb, "--out", tmp_path / "out", memory="512MiB")
    within(outcome, 512)
    assert outcome.said["bytes_in"] == scale * 100_000_000


def test_what_cannot_be_cut_and_does_not_fit_is_refused_within_the_budget(tmp_path: Path) -> None:
    outcome = run("-", "--separator", "none", "--out", tmp_path / "out", memory="512MiB", pipe=itertools.repeat(b"a" * MIB, 60))
    assert outcome.exit_code == 13
    assert "--memory" in outcome.errors
    assert outcome.peak_bytes <= 512 * MIB


@pytest.mark.parametrize(
    "n_bytes", [pytest.param(60_000_000, id="quick"), pytest.param(1_000_000_000, id="full", marks=pytest.mark.slow)]
)
def test_ten_times_the_text_has_the_same_peak(tmp_path: Path, n_bytes: int) -> None:
    peaks = []
    for name, n in (("one", n_bytes // 10), ("ten", n_bytes)):
        outcome = run("-", "--out", tmp_path / name, memory="1GiB", pipe=_documents(n))
        assert outcome.exit_code == 0, outcome.errors
        peaks.append(outcome.peak_bytes)
    # Six megabytes do not fill the caches and queues that sixty do.
    assert peaks[1] <= peaks[0] * (1.05 if n_bytes >= 1_000_000_000 else 1.5)


def _documents(n_bytes: int) -> Iterator[bytes]:
    for block in prose(n_bytes, block_bytes=MIB // 16):
        yield block
        yield SEPARATOR


@pytest.mark.parametrize("memory", ["1MiB", "100MiB"])
def test_the_smallest_budget_that_works_is_named_and_works(tmp_path: Path, memory: str) -> None:
    refused = run("-", "--out", tmp_path / "out", memory=memory)
    assert refused.exit_code == 13
    smallest = refused.errors.split("--memory ")[1].split("MiB")[0]
    outcome = run("-", "--out", tmp_path / "out", memory=f"{smallest}MiB", pipe=prose(20_000_000))
    within(outcome, int(smallest))


@pytest.fixture
def a_cgroup(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new cgroup of that version with a limit of 600 MiB."""
    version: int = request.param
    root = Path("/sys/fs/cgroup") if version == 2 else Path("/sys/fs/cgroup/memory")
    directory = root / f"tokmill-test-{os.getpid()}-{time.monotonic_ns()}"
    missing = f"NOT TESTED: no cgroup v{version} with a memory controller can be made here"
    if version == 2 and "memory" not in _text(root / "cgroup.controllers"):
        pytest.skip(missing)
    try:
        directory.mkdir()
        (directory / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text(str(600 * MIB))
    except OSError:
        pytest.skip(missing)
    yield directory
    directory.rmdir()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.parametrize(("memory", "expected_mib"), [((), 450), (("--memory", "2GiB"), 540), (("--memory", "500MiB"), 500)])
@pytest.mark.parametrize("a_cgroup", [1, 2], indirect=True)
def test_a_budget_heeds_the_limit_of_a_cgroup_and_says_so(
    tmp_path: Path, a_cgroup: Path, memory: tuple[str, ...], expected_mib: int
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(b"".join(_documents(5_000_000)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tokmill", "tokenize", str(corpus), "--out", str(tmp_path / "out")),
            *("--json", "--threads", "2", *memory),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
        preexec_fn=lambda: (a_cgroup / "cgroup.procs").write_text(str(os.getpid())),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["budget_bytes"] == expected_mib * MIB
    assert ("allows 600 MiB" in done.stderr) == (expected_mib != 500)
