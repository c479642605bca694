"""Every system call of a repair fails, once or for ever: no file is worse than it was, and the next repair makes them whole."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.faults import CALLS, RESULTS, Fault, Outcome, Scene, cases, is_complete, needs, run, run_here, run_with, write_prose

pytestmark = needs("strace")


@dataclass(frozen=True)
class Damaged(Scene):
    """An output of which one file is damaged and one is missing, and the command that repairs it."""

    def command(self, out: Path) -> list[str]:
        return [sys.executable, "-m", "tokmill", "verify", str(out), "--repair", "--quiet", "--threads", "1"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    top = tmp_path_factory.mktemp("scene")
    made = Scene(top / "corpus.txt", write_prose(top / "corpus.txt"))
    assert run(made.command(top / "out")).code == 0
    data = bytearray((top / "out" / "train.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (top / "out" / "train.bin").write_bytes(data)
    (top / "out" / "val.bin").unlink()
    return Damaged(made.corpus, made.expected, before=top / "out")


def problems(fault: Fault, outcome: Outcome, scene: Damaged, out: Path, run: Callable[[Sequence[str]], Outcome] = run) -> list[str]:
    """What is wrong with how the repair ended; then repairs without the fault, and what is wrong with that."""
    found = []
    # Where the process that was typed is the one that is killed, nobody is left to say so.
    allowed = {"EINTR": (0,), "SIGKILL": (0, 1, -9)}.get(fault.error, (0, 1, 14))
    if outcome.code not in allowed:
        found.append(f"exit code {outcome.code}: {outcome.said}")
    if outcome.code > 0 and (
        outcome.said.count("tokmill: error:") != 1 or "unforeseen" in outcome.said or "next:" not in outcome.said
    ):
        found.append(f"no message of four parts: {outcome.said}")
    if outcome.code == 0 and not is_complete(out, scene.expected):
        found.append("exit code 0 and not whole")
    assert scene.before is not None
    for name, expected in zip(("train.bin", "val.bin"), scene.expected, strict=True):
        before, now = (p.read_bytes() if p.exists() else None for p in (scene.before / name, out / name))
        if now not in (before, expected):
            found.append(f"{name} is neither as damaged as it was nor whole")
    again = run(scene.command(out))
    if again.code or not is_complete(out, scene.expected):
        found.append(f"repaired again: exit code {again.code}: {again.said}")
    shutil.rmtree(out)
    return found


@pytest.mark.parametrize(
    "fault",
    [
        Fault("openat", "EIO", 6),
        Fault("write", "ENOSPC", 2),
        Fault("fsync", "EIO", 2, for_ever=True),
        Fault("rename", "EROFS", 2),
        Fault("rename", "SIGKILL", 2),
    ],
    ids=lambda fault: str(fault).replace(" ", "-"),
)
def test_a_failing_call_makes_nothing_worse(fault: Fault, scene: Damaged, tmp_path: Path) -> None:
    scene.prepare(tmp_path / "out")
    outcome = run_with(fault, scene, tmp_path / "out")
    assert outcome.hits
    assert problems(fault, outcome, scene, tmp_path / "out", run_here) == []


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_every_failing_call_makes_nothing_worse(call: str, scene: Damaged, tmp_path: Path) -> None:
    wanted = [(error, for_ever) for error in ("EIO", "ENOSPC", "EROFS") for for_ever in (False, True)]
    wanted += [("EINTR", False), ("SIGKILL", False)]

    def try_all(case: tuple[str, bool]) -> list[str]:
        error, for_ever = case
        out, bad = tmp_path / f"{error}-{for_ever}", []
        counts = RESULTS[call, error, f"repair, {'for ever' if for_ever else 'once'}"]
        for fault, outcome in cases(scene, call, error, out, for_ever=for_ever):
            found = problems(fault, outcome, scene, out)
            counts[0] += 1
            counts[1] += bool(found)
            bad += [f"{fault}: {problem}\n    {outcome.hits[0]}" for problem in found]
        return bad

    with ThreadPoolExecutor(2) as pool:
        bad = [line for lines in pool.map(try_all, wanted) for line in lines]
    assert not bad, "\n".join(bad)
