"""Every system call that touches output or input fails, once or for ever: one message, the right exit code, and it resumes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from support.faults import CALLS, ERRORS, RESULTS, Fault, Scene, cases, needs, problems, run, run_here, run_with, write_prose

pytestmark = needs("strace")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    """A new output; one over an earlier output; one that resumes; one of two workers."""
    top = tmp_path_factory.mktemp("scenes")
    expected = write_prose(top / "corpus.txt")
    new = Scene(top / "corpus.txt", expected)
    earlier = Scene(top / "earlier.txt", write_prose(top / "earlier.txt", 5, seed=1))
    assert run(earlier.command(top / "earlier")).code == 0
    over = replace(new, options=("--fresh",), before=top / "earlier", earlier=earlier.expected)
    killed = run_with(Fault("fsync", "EIO", 5), new, top / "half")
    assert killed.code == 1
    assert (top / "half" / ".tokmill" / "journal").read_bytes().count(b"\n") > 1
    (top / "half" / ".tokmill" / "manifest.json.part").unlink(missing_ok=True)
    return {"new": new, "over": over, "resume": replace(new, before=top / "half"), "two": replace(new, options=("--threads", "2"))}


# One of each kind, at a place in the middle; all places: `make faults`.
SAMPLE = [
    ("new", Fault("openat", "EMFILE", 4)),
    ("new", Fault("mkdir", "ENOSPC", 1)),
    ("new", Fault("write", "EINTR", 2)),
    ("resume", Fault("write", "EDQUOT", 1, for_ever=True)),
    ("over", Fault("fsync", "EIO", 6, for_ever=True)),
    ("over", Fault("rename", "EIO", 2)),
    ("new", Fault("rename", "EROFS", 3)),
    ("new", Fault("read", "EIO", 1)),
    ("resume", Fault("write", "SIGKILL", 1)),
    ("new", Fault("pwrite", "ENOSPC", 3)),
    ("over", Fault("pwrite", "EIO", 2, for_ever=True)),
    ("resume", Fault("pwrite", "EINTR", 1)),
    ("new", Fault("pwrite", "SIGKILL", 2)),
    ("two", Fault("pwrite", "ENOSPC", 2, for_ever=True)),
    ("two", Fault("pwrite", "SIGKILL", 1)),
    ("two", Fault("fsync", "EIO", 5)),
    ("two", Fault("fsync", "ENOSPC", 7, for_ever=True)),
]


@pytest.mark.parametrize(("scene", "fault"), SAMPLE, ids=lambda value: str(value).replace(" ", "-"))
def test_a_failing_call_is_one_message_and_the_run_resumes(
    scene: str, fault: Fault, scenes: dict[str, Scene], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    scenes[scene].prepare(out)
    outcome = run_with(fault, scenes[scene], out)
    assert outcome.hits
    assert problems(fault, outcome, scenes[scene], out, run_here) == []


# Repeated for ever, an interrupted call and a killed worker never end; a fault in a resumed run or over an earlier output
# is tried with one error of each consequence.
EVERY = [
    *(("new", call, error, for_ever) for call in CALLS for error in ERRORS for for_ever in (False, True)),
    *((scene, call, error, False) for scene in ("over", "resume") for call in CALLS for error in ("EIO", "ENOSPC")),
    *((scene, call, "SIGKILL", False) for scene in ("new", "over", "resume") for call in ("write", "pwrite", "fsync", "rename")),
]


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_every_failing_call_is_one_message_and_the_run_resumes(call: str, scenes: dict[str, Scene], tmp_path: Path) -> None:
    wanted = [case for case in EVERY if case[1] == call and not (case[2] == "EINTR" and case[3])]

    def try_all(case: tuple[str, str, str, bool]) -> list[str]:
        name, _, error, for_ever = case
        scene, out, bad = scenes[name], tmp_path / "-".join(map(str, case)), []
        counts = RESULTS[call, error, f"{name}, {'for ever' if for_ever else 'once'}"]
        for fault, outcome in cases(scene, call, error, out, for_ever=for_ever):
            found = problems(fault, outcome, scene, out)
            counts[0] += 1
            counts[1] += bool(found)
            bad += [f"{name}: {fault}: {problem}\n    {outcome.hits[0]}" for problem in found]
        return bad

    with ThreadPoolExecutor(2) as pool:
        bad = [line for lines in pool.map(try_all, wanted) for line in lines]
    assert not bad, "\n".join(bad)
