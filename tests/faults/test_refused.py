"""Calls that a sandbox, container or file system refuses from the first to the last, in every process of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.faults import Scene, is_complete, needs, run, write_prose, wrong_message

pytestmark = [needs("strace"), pytest.mark.slow]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    return Scene(corpus, write_prose(corpus, 700))


ADVANTAGES = [
    *(("fadvise64", error) for error in ("EINVAL", "ENOSYS")),
    *(("memfd_create", error) for error in ("ENOSYS", "EPERM")),
    *(("statfs,fstatfs", error) for error in ("ENOSYS", "EACCES")),
    *(("sched_setscheduler,sched_getaffinity,setpriority,ioprio_set", error) for error in ("EPERM", "ENOSYS")),
    *(("setrlimit,prlimit64", error) for error in ("EPERM", "ENOSYS")),
    *(("copy_file_range,link,linkat", error) for error in ("EPERM", "ENOSYS", "EOPNOTSUPP")),
    *(("flock", "ENOLCK"), ("flock,link,linkat", "ENOSYS")),
    ("mincore", "EPERM"),
]


def refusing(calls: str, error: str) -> list[str]:
    """How a command begins in which these system calls fail."""
    return f"strace -f -q --seccomp-bpf -o /dev/null -e trace={calls} -e inject={calls}:error={error}".split()


@pytest.mark.parametrize(("calls", "error"), ADVANTAGES)
def test_what_is_only_an_advantage_may_be_refused(calls: str, error: str, scene: Scene, tmp_path: Path) -> None:
    outcome = run([*refusing(calls, error), *scene.command(tmp_path / "out"), "--nice"])
    assert (outcome.code, outcome.said) == (0, "")
    assert is_complete(tmp_path / "out", scene.expected)


@pytest.mark.parametrize(("calls", "error"), [("flock", "EPERM"), ("flock", "EIO"), ("fsync", "EIO"), ("pipe2", "EMFILE")])
def test_what_is_needed_and_refused_is_one_message(calls: str, error: str, scene: Scene, tmp_path: Path) -> None:
    outcome = run([*refusing(calls, error), *scene.command(tmp_path / "out")])
    assert outcome.code == 1
    assert wrong_message(outcome) == []
    assert run(scene.command(tmp_path / "out")).code == 0
