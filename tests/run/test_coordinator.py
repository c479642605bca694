"""The worker as the system sees it while it runs: the first to be killed, the last to be served where that was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.commands import PATIENCE_S, clean_environment, wait_until
from support.oracle import plain_tokens
from support.outputs import written

_TEXT = b"some text<|endoftext|>" * 1000


@contextmanager
def at_work(out: Path, *options: str, **environment: str) -> Iterator[psutil.Process]:
    """The coordinator of a run that has begun and waits for more of its standard input; the run is completed after it."""
    command = [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(out), "-q", "--val-fraction", "0", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=clean_environment(**environment)) as process:
        assert process.stdin is not None
        process.stdin.write(_TEXT)
        process.stdin.flush()
        wait_until((out / ".tokmill" / "journal").exists, process)
        (coordinator,) = psutil.Process(process.pid).children()
        # Itself, its lifeline, the guard; of a worker, itself and its attendant.
        wait_until(lambda: coordinator.num_threads() >= 3, process)
        yield coordinator
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
    assert written(out) == plain_tokens([b"some text"] * 1000, val_fraction=0)


def threads(coordinator: psutil.Process) -> list[tuple[int, int]]:
    """Niceness and scheduling policy of every thread of it and its workers."""
    found = []
    workers = coordinator.children()
    assert workers
    for path in (path for process in (coordinator, *workers) for path in Path(f"/proc/{process.pid}/task").iterdir()):
        fields = (path / "stat").read_text().rpartition(")")[2].split()
        found.append((int(fields[16]), int(fields[38])))
    return found


def test_coordinator_and_workers_are_the_first_that_the_kernel_kills(tmp_path: Path) -> None:
    with at_work(tmp_path / "out") as coordinator:
        for process in (coordinator, *coordinator.children()):
            assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000"
        assert Path(f"/proc/{coordinator.ppid()}/oom_score_adj").read_text() == Path("/proc/self/oom_score_adj").read_text()


@pytest.mark.parametrize(("options", "environment"), [(["--nice"], {}), ([], {"TOKMILL_NICE": "1"})])
def test_a_nice_worker_gives_way_with_all_of_its_threads(tmp_path: Path, options: list[str], environment: dict[str, str]) -> None:
    with at_work(tmp_path / "out", *options, **environment) as coordinator:
        assert len(threads(coordinator)) >= 5
        assert set(threads(coordinator)) == {(19, os.SCHED_IDLE)}
        assert coordinator.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
        assert psutil.Process(coordinator.ppid()).nice() == psutil.Process().nice()


def test_a_worker_is_as_nice_as_it_was_started_and_no_nicer(tmp_path: Path) -> None:
    with at_work(tmp_path / "out") as coordinator:
        assert set(threads(coordinator)) == {(psutil.Process().nice(), os.sched_getscheduler(0))}


def test_data_that_is_not_resident_does_not_count_against_the_budget() -> None:
    program = """
import mmap
from tokmill.core.system import memory
from tokmill.run import memory_guard
untouched = mmap.mmap(-1, 400 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory_guard.limit_growth(memory.rss_bytes() + (200 << 20))
within = bytearray(150 << 20)
try:
    beyond = bytearray(200 << 20)
except MemoryError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "refused\n"
