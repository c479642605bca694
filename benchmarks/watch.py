"""Starts a command and watches all of its processes: resident memory over time, processor time, the kill of a whole family.

The caller becomes a subreaper (Linux), so that a process whose parent died is still found: everything below the caller is
the family. Resident memory is summed in two ways: RSS counts a shared page once per process, PSS divides it among them. PSS
costs the watched process time in proportion to its size, so it is sampled only when asked for.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PAGE_BYTES = resource.getpagesize()
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory of the family at one moment."""

    elapsed_s: float
    rss_bytes: int
    pss_bytes: int | None
    n_processes: int
    fed_bytes: int = 0
    """What the feeder had written to the command's standard input."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A command that ended. cpu_s: user and system time of all its processes that were waited for."""

    exit_code: int
    elapsed_s: float
    cpu_s: float
    samples: list[Sample]
    stdout: str

    @property
    def peak_rss_bytes(self) -> int:
        return max((sample.rss_bytes for sample in self.samples), default=0)

    @property
    def peak_pss_bytes(self) -> int | None:
        return max((sample.pss_bytes for sample in self.samples if sample.pss_bytes is not None), default=None)


def become_subreaper() -> None:
    """Orphans below this process become its children."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def children(pid: int) -> Iterator[int]:
    """Processes whose parent is `pid`, whichever of its threads started them."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            yield from map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return


def family(root: int | None = None, without: frozenset[int] = frozenset()) -> list[int]:
    """All processes below `root` (default: this process, itself not among them), those below `without` left out."""
    found: list[int] = []
    pending = [os.getpid()] if root is None else [root]
    while pending:
        below = [pid for pid in children(pending.pop()) if pid not in without]
        found += below
        pending += below
    return found


def _rss_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _written_bytes(pid: int) -> int:
    """What a process has handed to `write`."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("wchar:")), 0)


def sample(start_s: float, *, pss: bool, without: frozenset[int] = frozenset()) -> Sample:
    """The memory of the family now. without: feeders of the command, which do not count."""
    pids = family(without=without)
    pss_bytes = sum(map(_pss_bytes, pids)) if pss else None
    fed_bytes = sum(map(_written_bytes, without))
    return Sample(time.perf_counter() - start_s, sum(map(_rss_bytes, pids)), pss_bytes, len(pids), fed_bytes)


def kill_family(without: frozenset[int] = frozenset()) -> int:
    """SIGKILL to every process of the family until none is left; how many there were."""
    killed: set[int] = set()
    while pids := [pid for pid in family(without=without) if not _is_zombie(pid)]:
        for pid in pids:
            kill_one(pid)
        killed.update(pids)
        time.sleep(0.001)
    return len(killed)


def kill_one(pid: int) -> None:
    """SIGKILL, if it still lives."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def reap_orphans(without: frozenset[int] = frozenset()) -> None:
    """Collect the dead among adopted children."""
    for pid in children(os.getpid()):
        if pid not in without and _is_zombie(pid):
            os.waitpid(pid, os.WNOHANG)


class _Sampler(threading.Thread):
    """Samples the family until stopped."""

    def __init__(self, start_s: float, interval_s: float, *, pss: bool, without: frozenset[int]) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self.stopped = threading.Event()
        self._start_s, self._pss, self._without = start_s, pss, without
        self._interval_s = interval_s

    def run(self) -> None:
        while not self.stopped.wait(self._interval_s):
            self.samples.append(sample(self._start_s, pss=self._pss, without=self._without))


def run(
    command: Sequence[str],
    *,
    interval_s: float = 0.02,
    pss: bool = False,
    stdin: IO[bytes] | None = None,
    without: frozenset[int] = frozenset(),
    env: dict[str, str] | None = None,
    stderr: int | None = None,
) -> Outcome:
    """Run a command to its end, sampling every interval_s. Standard output is kept (it must be small: one pipe's worth)."""
    start_s = time.perf_counter()
    process = subprocess.Popen(command, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=env)
    sampler = _Sampler(start_s, interval_s, pss=pss, without=without)
    sampler.start()
    _, status, usage = os.wait4(process.pid, 0)
    elapsed_s = time.perf_counter() - start_s
    sampler.stopped.set()
    sampler.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    stdout = _read_all(process.stdout)
    reap_orphans(without)
    return Outcome(process.returncode, elapsed_s, usage.ru_utime + usage.ru_stime, sampler.samples, stdout)


def _read_all(stream: IO[bytes] | None) -> str:
    if stream is None:
        return ""
    with stream:
        return stream.read().decode(errors="replace")


def checkout_env() -> dict[str, str]:
    """The environment with this checkout's package first on Python's path."""
    source = str(Path(__file__).resolve().parent.parent / "src")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}
