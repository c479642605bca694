"""What more cores than this machine has would give: measured with 1, 2, 4 and 8 workers here, calculated for 16 to 128.

Whole runs of `tokmill tokenize FILE`, in interleaved rounds, whose processes are watched while they live. A run has a parent,
which shows progress, a coordinator, which hands out ranges and commits, and workers, which do the rest, each with a range of its
own. Told are the processor seconds of each kind without those of a run of small files with as many workers (starting and ending;
it does not grow with the corpus). The share of the parent and of the coordinator's main thread is what no further core takes away.
The coordinator's other threads look at memory ten times a second and commit: they work beside it, and most of what they take grows
with time and not with the corpus.

Calculated: a run on n cores is at least 1 / (serial + (1 - serial) / n) times as fast as on one, by Amdahl; it is faster where the
coordinator works beside the workers, and never faster than the coordinator's own rate.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import machine
import watch

CORES = (2, 4, 8, 16, 32, 64, 128)
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds by the clock, and processor seconds of the processes of a run."""

    elapsed_s: float = 0.0
    parent_s: float = 0.0
    coordinator_s: float = 0.0
    """Of its main thread."""
    beside_s: float = 0.0
    """Of its other threads."""
    workers_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Processor seconds of all."""
        return self.parent_s + self.coordinator_s + self.beside_s + self.workers_s

    def without(self, start: Spent) -> Spent:
        """What remains when a run of nothing is taken away."""
        return Spent(*(max(0.0, getattr(self, f) - getattr(start, f)) for f in self.__slots__))


def processor_s(pid: int, *, main_thread: bool = False) -> float:
    """Processor seconds of a process, or of its main thread, so far, without its children; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/task/{pid}/stat" if main_thread else f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def run(file: Path, out: Path, n_workers: int) -> Spent:
    """One run; its processes are looked at every 10 ms, so that of each its last hundredth is missing."""
    command = [sys.executable, "-m", "tokmill", "tokenize", str(file), "--out", str(out), "-q", "--threads", str(n_workers)]
    command += ["--memory", f"{max(1, n_workers) * 512}MiB"]
    spent: list[dict[int, float]] = [{}, {}, {}, {}]
    os.sync()
    began_s = time.perf_counter()
    process = subprocess.Popen(command, env=watch.checkout_env())
    while process.poll() is None:
        coordinators = list(watch.children(process.pid))
        workers = [worker for coordinator in coordinators for worker in watch.children(coordinator)]
        for kind, pids in enumerate(([process.pid], coordinators, coordinators, workers)):
            for pid in pids:
                spent[kind][pid] = max(processor_s(pid, main_thread=kind == 1), spent[kind].get(pid, 0.0))
        time.sleep(0.01)
    elapsed_s = time.perf_counter() - began_s
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    shutil.rmtree(out)
    parent_s, coordinator_s, whole_s, workers_s = (sum(pids.values()) for pids in spent)
    return Spent(elapsed_s, parent_s, coordinator_s, max(0.0, whole_s - coordinator_s), workers_s)


def median(rounds: list[Spent]) -> Spent:
    return Spent(*(statistics.median(getattr(one, field) for one in rounds) for field in Spent.__slots__))


def report(n_bytes: int, found: dict[int, Spent], starts: dict[int, Spent]) -> str:
    """What was measured, then what is calculated from it."""
    lines = [
        "| workers | clock s | parent | coordinator | its other threads | workers | all, cpu s | beside one worker | serial |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    net = {n: found[n].without(starts[n]) for n in found}
    serial: dict[int, float] = {}
    for n, one in net.items():
        serial[n] = (one.parent_s + one.coordinator_s) / one.total_s
        cells = (one.parent_s, one.coordinator_s, one.beside_s, one.workers_s, one.total_s, one.total_s / net[min(net)].total_s)
        lines.append(f"| {n} | {one.elapsed_s:.2f} | " + " | ".join(f"{cell:.2f}" for cell in cells) + f" | {serial[n]:.2%} |")
    start = starts[min(starts)]
    share, most = max(serial.values()), max(net)
    core_mb_s = n_bytes / 1e6 / net[min(net)].total_s
    bound = n_bytes / 1e6 / max(net[most].coordinator_s, 1e-3)
    told = (
        f"Starting and ending: {start.elapsed_s:.2f} s by the clock, {start.total_s:.2f} of processors. "
        f"One core: {core_mb_s:,.0f} MB/s. The coordinator alone could hand out {bound:,.0f} MB/s."
    )
    lines += [
        "",
        told,
        "",
        f"| cores | times one core, at least (serial share {share:.2%}) | MB/s |",
        "|---:|---:|---:|",
    ]
    for n in CORES:
        times = 1 / (share + (1 - share) / n)
        lines.append(f"| {n} | {times:.1f} | {min(bound, times * core_mb_s):,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="or a directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--work", type=Path, help="directory for outputs (default: a temporary one)")
    args = parser.parse_args()
    print("\n".join(f"- {name}: {value}" for name, value in machine.description().items()), end="\n\n")
    found: dict[int, list[Spent]] = {n: [] for n in args.workers}
    starts: dict[int, list[Spent]] = {n: [] for n in args.workers}
    with tempfile.TemporaryDirectory(dir=args.work, prefix="saturation-") as work:
        # As many inputs as there may be workers, each worth one.
        tiny = Path(work) / "tiny"
        tiny.mkdir()
        for i in range(max(args.workers)):
            (tiny / f"{i}.txt").write_bytes(b"a few words " * 100_000)
        for _ in range(args.rounds):
            for n in args.workers:
                found[n].append(run(args.file, Path(work) / "out", n))
                starts[n].append(run(tiny, Path(work) / "out", n))
    files = [args.file, *args.file.rglob("*")]
    n_bytes = sum(file.stat().st_size for file in files if file.is_file())
    print(report(n_bytes, {n: median(r) for n, r in found.items()}, {n: median(r) for n, r in starts.items()}))


if __name__ == "__main__":
    main()
