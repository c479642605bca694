"""Killed and interrupted, any process or all, at any moment: no orphan, and the same command again gives the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import PATIENCE_S, children_of, is_alive, n_committed, started, wait_for_commit, wait_until, workers_of
from support.faults import SEPARATOR, Outcome, Scene, is_complete, prose, run, write_prose
from support.oracle import plain_tokens
from support.outputs import written


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    return Scene(corpus, write_prose(corpus, n_documents=3000, size=2000))


def kill_now(process: subprocess.Popen[bytes], victim: str) -> None:
    coordinators = children_of(process.pid)
    for pid in {"parent": [process.pid], "coordinator": coordinators, "both": [process.pid, *coordinators]}[victim]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_at_random(scene: Scene, out: Path, n_kills: int) -> int:
    """Starts and kills runs; the next one resumes. Returns how many were killed in the middle."""
    rng = random.Random(5)
    n_met = 0
    for _ in range(n_kills):
        with started(scene.command(out)) as process:
            with suppress(subprocess.TimeoutExpired):
                # Half of the moments lie in the start, half after the first commit of this run.
                process.wait(rng.uniform(0.05, 1.0))
            if rng.random() < 0.5 and process.poll() is None:
                wait_for_any(process, out)
                time.sleep(rng.uniform(0, 0.3))
            n_met += process.poll() is None
            kill_now(process, victim := rng.choice(("parent", "coordinator", "both")))
            if victim == "coordinator":
                assert process.wait(PATIENCE_S) == 0, process.stderr.read() if process.stderr else ""
            assert process.wait(PATIENCE_S) in (0, -signal.SIGKILL)
        if (out / "manifest.json").exists():
            # Killed after the manifest, a run leaves its state directory to the next one; the output is whole.
            assert written(out) == scene.expected
            scene.prepare(out)
    return n_met


def wait_for_any(process: subprocess.Popen[bytes], out: Path) -> None:
    before = n_committed(out)
    wait_until(lambda: process.poll() is not None or n_committed(out) != before)


def finish(scene: Scene, out: Path) -> None:
    """The same command once more; a killed run's worker may need a moment to see that its parent is gone."""
    outcome = Outcome(11, "")

    def ended() -> bool:
        nonlocal outcome
        outcome = run(scene.command(out))
        return outcome.code != 11

    wait_until(ended)
    assert outcome.code == 0, outcome.said
    assert is_complete(out, scene.expected)


def test_killed_at_some_random_moments(scene: Scene, tmp_path: Path) -> None:
    assert kill_at_random(scene, tmp_path / "out", 8) >= 5
    finish(scene, tmp_path / "out")


@pytest.mark.slow
def test_killed_at_200_random_moments(scene: Scene, tmp_path: Path) -> None:
    assert kill_at_random(scene, tmp_path / "out", 200) >= 100
    finish(scene, tmp_path / "out")


def open_files(pid: int) -> set[str]:
    """What a process has open; it may close some meanwhile."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(fd))
    return found


def test_a_killed_parent_leaves_no_orphan(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(scene.command(out)) as process:
        wait_for_commit(process, out)
        others = [*children_of(process.pid), *workers_of(process)]
        assert len(others) == 2
        wait_until(lambda: str(out / ".tokmill" / "lock") in open_files(others[1]), process)
        # One that could go on later with what it was told to write must be dead before another run begins.
        os.kill(others[1], signal.SIGSTOP)
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, others)))
    finish(scene, out)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    """The same documents in inputs of every kind that is read in a way of its own."""
    top, documents = tmp_path_factory.mktemp("kinds"), prose(1500)
    lines = b"".join(json.dumps({"text": document.decode()}).encode() + b"\n" for document in documents)
    data = {"text.txt": SEPARATOR.join(documents), "json.jsonl": lines, "gz.jsonl.gz": gzip.compress(lines, 1)}
    for i in range(0, 1500, 100):
        data[f"many/{i:04}.txt.gz"] = gzip.compress(SEPARATOR.join(documents[i : i + 100]), 1)
    for name, content in data.items():
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_bytes(content)
    table = pa.table({"text": [document.decode() for document in documents]})
    pq.write_table(table, top / "table.parquet", row_group_size=50)
    names = ("text.txt", "json.jsonl", "gz.jsonl.gz", "many", "table.parquet")
    expected = plain_tokens(documents, val_fraction=0.2)
    return {name: Scene(top / name, expected) for name in names}


KINDS = ("text.txt", "json.jsonl", "gz.jsonl.gz", "many", "table.parquet")
VICTIMS = ("the coordinator", "a worker", "all workers", "a worker that aborts")
DEATHS = [
    pytest.param(kind, victim, n, marks=[] if (i + j) % 2 == 0 and n == (1, 2, 4)[(i + j) % 3] else pytest.mark.slow)
    for i, kind in enumerate(KINDS)
    for j, victim in enumerate(VICTIMS)
    for n in (1, 2, 4)
]


@pytest.mark.parametrize(("kind", "victim", "n_workers"), DEATHS)
def test_a_process_that_dies_is_replaced_and_the_bytes_are_the_same(
    kind: str, victim: str, n_workers: int, kinds: dict[str, Scene], tmp_path: Path
) -> None:
    scene = replace(kinds[kind], options=("--memory", "3GiB", "--threads", f"{n_workers}"))
    rng = random.Random(f"{kind} {victim} {n_workers}")
    for attempt in range(5):
        out = tmp_path / f"out{attempt}"
        with started(scene.command(out)) as process:
            wait_for_commit(process, out)
            time.sleep(rng.uniform(0, 0.1))
            workers = workers_of(process)
            targets = {"the coordinator": children_of(process.pid), "all workers": workers}.get(victim, workers[:1])
            for pid in targets:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGABRT if victim.endswith("aborts") else signal.SIGKILL)
            is_met = bool(targets) and process.poll() is None
            _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
        assert is_complete(out, scene.expected)
        # On a busy machine the run may be over before the signal comes.
        if is_met:
            assert len(workers) == n_workers
            return
    raise AssertionError("every run was over before a process of it was killed")


@pytest.mark.parametrize(
    ("signum", "to_group"),
    [
        (signal.SIGINT, True),
        (signal.SIGTERM, False),
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_commits_says_so_and_resumes(
    signum: signal.Signals, to_group: bool, scene: Scene, tmp_path: Path
) -> None:
    for attempt in range(5):
        out = tmp_path / f"out{attempt}"
        with started(scene.command(out)) as process:
            wait_for_commit(process, out)
            (os.killpg if to_group else os.kill)(process.pid, signum)
            _, said = process.communicate(timeout=PATIENCE_S)
        # On a busy machine the run may be over before the signal comes.
        if process.returncode != 0:
            break
    assert process.returncode == 130, said
    assert said.count(b"tokmill:") == 1
    assert b"interrupted" in said
    assert b"next:" in said
    assert n_committed(out) > 0
    assert {p.name for p in out.iterdir()} == {".tokmill"}
    finish(scene, out)


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_while_it_starts_stops(scene: Scene, tmp_path: Path) -> None:
    for moment_s in (0.3, 0.45, 0.6, 0.75):
        out = tmp_path / f"out{moment_s}"
        with started(scene.command(out)) as process:
            time.sleep(moment_s)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE_S)
        # A run that is over before the signal comes is whole; `finish` sees to that.
        assert process.returncode in (0, 130, -signal.SIGINT), said
        assert b"Traceback" not in said
        finish(scene, out)
