"""Whole commands with the plain form of the system's calls, as where there is no Linux: bytes and promises are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.commands import children_of, command, is_alive, started, wait_for_commit, wait_until, workers_of
from support.faults import Scene, is_complete, write_prose
from support.outputs import files_in, written

from tokmill.core.system.current import PLAIN_VARIABLE


def plainly(*words: object) -> subprocess.CompletedProcess[str]:
    """Run tokmill with the plain form."""
    return command(*words, TOKMILL_PLAIN_POSIX="1")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    return Scene(corpus, write_prose(corpus, n_documents=1500, size=2000))


@pytest.fixture(scope="module")
def made(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of the plain form."""
    out = tmp_path_factory.mktemp("made") / "out"
    done = plainly("tokenize", scene.corpus, "--out", out, "--val-fraction", "0.2", "--threads", "2")
    assert done.returncode == 0, done.stderr
    return out


def test_what_is_tried_here_is_the_plain_form() -> None:
    rows = {row["name"]: row for row in json.loads(plainly("doctor", "--json").stdout)["checks"]}
    assert rows["system"]["status"] == "note"
    assert "plain POSIX" in rows["system"]["next_step"]
    assert rows["file system"]["value"] == "not known"
    assert PLAIN_VARIABLE not in rows


def test_tokenize_makes_the_same_bytes_and_verify_proves_them(scene: Scene, made: Path) -> None:
    assert written(made) == scene.expected
    checked = plainly("verify", made, "--source", scene.corpus)
    assert checked.returncode == 0, checked.stderr
    assert command("verify", made).returncode == 0


@pytest.mark.parametrize("victim", ["parent", "coordinator", "worker"])
def test_a_run_whose_process_is_killed_is_continued(scene: Scene, victim: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(scene.command(out), TOKMILL_PLAIN_POSIX="1") as process:
        wait_for_commit(process, out)
        coordinators, workers = children_of(process.pid), workers_of(process)
        os.kill({"parent": process.pid, "coordinator": coordinators[0], "worker": workers[0]}[victim], signal.SIGKILL)
        if victim == "parent":
            process.wait()
            # It takes the lock as soon as the last process that holds it has seen that its parent is gone.
            assert plainly(*scene.command(out)[3:]).returncode == 0
            wait_until(lambda: not any(map(is_alive, [*coordinators, *workers])))
        else:
            _, said = process.communicate()
            assert process.returncode == 0, said
    assert is_complete(out, scene.expected)


def test_a_worker_ends_with_its_coordinator(scene: Scene, tmp_path: Path) -> None:
    with started(scene.command(tmp_path / "out"), TOKMILL_PLAIN_POSIX="1") as process:
        wait_for_commit(process, tmp_path / "out")
        workers = workers_of(process)
        for coordinator in children_of(process.pid):
            os.kill(process.pid, signal.SIGSTOP)
            os.kill(coordinator, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, workers)))


def test_plan_shuffle_pack_and_inspect(scene: Scene, made: Path, tmp_path: Path) -> None:
    planned = plainly("plan", scene.corpus, "--json")
    assert planned.returncode == 0, planned.stderr
    for name, tokmill in (("plain", plainly), ("linux", command)):
        for words in (("shuffle", made, "--seed", "3"), ("dedup", made), ("pack", made, "--sequence", "256", "--seed", "3")):
            done = tokmill(*words, "--out", tmp_path / name / str(words[0]))
            assert done.returncode == 0, done.stderr
    for each in ("shuffle", "dedup", "pack"):
        assert files_in(tmp_path / "plain" / each) == files_in(tmp_path / "linux" / each)
    assert plainly("inspect", tmp_path / "plain" / "shuffle").returncode == 0
