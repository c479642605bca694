"""The power fails, 20 times: what stands under its final name is complete, and the same command resumes to the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest
from support.faults import FOUND, Scene, is_complete, mounted, run, write_prose
from support.outputs import written
from support.virtual_machine import DISK, MARKS, guest_command, machine, make_disk

from tokmill.check.verification import verify

pytestmark = [pytest.mark.power, *MARKS]
N_CUTS = 20


def look(out: Path, scene: Scene) -> str:
    """What the power left; fails for anything incomplete under a final name."""
    if not out.exists():
        return "nothing yet"
    for side, name in enumerate(("train.bin", "val.bin")):
        if (out / name).exists():
            assert (out / name).read_bytes() == scene.expected[side], name
    if (out / "manifest.json").exists():
        assert verify(str(out)).ok
        assert written(out) == scene.expected
        return "complete"
    if any((out / name).exists() for name in ("train.bin", "val.bin")):
        return "in the middle of publishing"
    return _segments(out / ".tokmill" / "journal")


def _segments(journal: Path) -> str:
    n_lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
    return f"{max(0, n_lines - 1)} segments"


def test_after_every_power_cut_what_has_a_name_is_complete_and_the_run_resumes(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path / "corpus.txt", write_prose(tmp_path / "corpus.txt", n_documents=3000), ("--memory", "400MiB"))
    # The guest sees times of the host's files in whole seconds.
    os.utime(scene.corpus, (1_000_000_000, 1_000_000_000))
    make_disk(tmp_path / "disk.img", 64 << 20)
    out = Path(DISK) / "out"
    # Most of the time goes into starting up: a watcher says when the first segment is on the disk. A new journal has one line.
    size = f" (wc -l < {out}/.tokmill/journal) 2>/dev/null || echo 1"
    moved = f'[ "$({size})" -gt "$before" ] || [ -e {out}/manifest.json ]'
    watch = f"before=$({size}); until {moved}; do sleep 0.02; done; echo WORKING"
    script = f"({watch}) & {guest_command(scene.command(out))}; echo CODE $?; sleep 60"
    rng = random.Random(8)
    with machine(tmp_path, script, memory="768M") as booted:
        booted.wait_for("WORKING")
        began_s = time.monotonic()
        booted.wait_for("CODE 0", 120)
        working_s = time.monotonic() - began_s
    make_disk(tmp_path / "disk.img", 64 << 20)
    left = []
    for i in range(N_CUTS):
        with machine(tmp_path, script, memory="768M") as booted:
            booted.wait_for("WORKING")
            time.sleep(rng.uniform(0, 1.1) * working_s)
        with mounted("-o", "loop", str(tmp_path / "disk.img")) as top:
            out = top / "out"
            left.append(look(out, scene))
            # Every other time the state is left for the next boot, which resumes and is cut again.
            if i % 2 or i == N_CUTS - 1 or left[-1] == "complete":
                assert_resumes(scene, top)
    FOUND.append(f"{N_CUTS} power cuts in the {working_s:.1f} s behind the start; left behind: {', '.join(left)}")
    assert sum(what not in {"nothing yet", "0 segments", "complete"} for what in left) >= N_CUTS // 4


def assert_resumes(scene: Scene, top: Path) -> None:
    out = top / "out"
    outcome = run(scene.command(out))
    assert outcome.code == 0, outcome.said
    assert is_complete(out, scene.expected)
    shutil.rmtree(out)
