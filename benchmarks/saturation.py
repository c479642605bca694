"""What would saturate first on more cores than this machine has: measured on one core and two, calculated for 8 to 128.

The worker runs in one process, with the engine (`engine`) and with a stand-in that gives ids of the right number at once
(`stand-in`): what is left then is everything that is not the engine. Measured are the processor seconds of each kind of thread: the
reader and the writer are one thread each, so neither can go faster than its own processor time allows; and the stand-in's run by
the clock, on all cores: one interpreter runs one thread of Python at a time, so no number of cores takes the rest of the pipeline
beyond what was left waiting there.

Calculated: rate(n) = the least of n * the engine thread's rate, the reader's, the writer's, and the interpreter's (the processor
time of the stand-in's run that no second core could take away: its clock). Above that, more processes help, each on files or splits
of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import machine
import msgspec
import numpy as np
import watch

import tokmill.run.encoding
from tokmill.core.config import BudgetTerms
from tokmill.core.documents import text_bytes
from tokmill.core.options import PlanOptions
from tokmill.run.job import make_job
from tokmill.run.worker import Worker

CORES = (1, 2, 4, 8, 16, 32, 64, 128)
BYTES_PER_TOKEN = 4


class StandIn:
    """An engine that takes no time: ids of about the right number."""

    name = "stand-in"

    def __init__(self) -> None:
        self._ids = np.arange(1 << 21, dtype=np.uint32) % 50_000

    def encode(self, documents: Sequence[bytes], raw: memoryview | None = None) -> tuple[np.ndarray, np.ndarray]:
        """One id for four bytes of the batch, divided evenly among its documents."""
        n_ids = max(len(documents), text_bytes(documents) // BYTES_PER_TOKEN)
        offsets = np.arange(len(documents) + 1, dtype=np.int64) * n_ids // max(1, len(documents))
        return self._ids[: int(offsets[-1])], offsets


def seconds_by_thread() -> dict[int, float]:
    """Processor seconds of each thread of this process."""
    tick = os.sysconf("SC_CLK_TCK")
    found = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        found[int(thread)] = (int(fields[11]) + int(fields[12])) / tick
    return found


def run_worker(file: Path, out: Path, *, stand_in: bool, n_threads: int) -> dict[str, float]:
    """Seconds by the clock, and processor seconds of reader, encoders and writer (this thread)."""
    job = make_job([str(file)], PlanOptions(val_fraction=0.0005), out=str(out)).job
    unwatched = {"worker_bytes": 1 << 41, "reset_above_bytes": 1 << 40, "terms": BudgetTerms(n_threads=n_threads)}
    resources = msgspec.structs.replace(job.resources, **unwatched, **({"audit_fraction": 0.0} if stand_in else {}))
    if stand_in:
        tokmill.run.encoding.load_encoder = lambda *_: StandIn()  # type: ignore[assignment, attr-defined]
    spent: dict[int, float] = {}
    names: dict[int, str] = {}
    done = threading.Event()

    def look() -> None:
        """Threads end before the run does, so they are looked at while they live."""
        while not done.wait(0.02):
            spent.update(seconds_by_thread())
            names.update({thread.native_id or 0: thread.name for thread in threading.enumerate()})

    looker = threading.Thread(target=look, name="looker")
    looker.start()
    began_s = time.perf_counter()
    Worker(msgspec.structs.replace(job, resources=resources), lambda _: None).run()
    elapsed_s = time.perf_counter() - began_s
    done.set()
    looker.join()

    def of(part: str) -> float:
        return sum(seconds for thread, seconds in spent.items() if part in names.get(thread, ""))

    return {"elapsed_s": elapsed_s, "reader": of("read"), "encoders": of("encode"), "writer": of("MainThread")}


def in_fresh_process(file: Path, work: Path, *, stand_in: bool, n_threads: int) -> dict[str, float]:
    out = work / "out"
    command = [sys.executable, __file__, str(file), "--one", "stand-in" if stand_in else "engine", "--work", str(out)]
    done = subprocess.run([*command, "--threads", str(n_threads)], check=True, capture_output=True, env=watch.checkout_env())
    shutil.rmtree(out)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def table(n_bytes: int, engine: dict[str, float], alone: dict[str, float]) -> str:
    """What was measured, then what is calculated from it."""
    mb = n_bytes / 1e6
    limits = {
        "the reader thread": mb / max(engine["reader"], 1e-9),
        "the writer thread": mb / max(engine["writer"], 1e-9),
        "the interpreter's lock": mb / alone["elapsed_s"],
    }
    thread = mb / engine["encoders"]
    measured = [
        "| measured | reader | encoders | writer | by the clock, s |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {one['reader']:.2f} | {one['encoders']:.2f} | {one['writer']:.2f} | {one['elapsed_s']:.2f} |"
            for name, one in (("engine", engine), ("stand-in", alone))
        ),
        "",
        f"One encoder thread: {thread:,.0f} MB/s. At most: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in limits.items()),
        "",
        "| cores | MB/s, calculated | what bounds it |",
        "|---:|---:|---|",
    ]
    for n in CORES:
        bounds = {"the engine": n * thread, **limits}
        least = min(bounds, key=bounds.__getitem__)
        measured.append(f"| {n} | {bounds[least]:,.0f} | {least} |")
    return "\n".join(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--one", choices=["engine", "stand-in"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_worker(args.file, args.work, stand_in=args.one == "stand-in", n_threads=args.threads)))
        return
    print("\n".join(f"- {name}: {value}" for name, value in machine.description().items()), end="\n\n")
    rounds: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(dir=args.work, prefix="saturation-") as work:
        for _ in range(args.rounds):
            for stand_in, found in rounds.items():
                found.append(in_fresh_process(args.file, Path(work), stand_in=stand_in, n_threads=args.threads))
    print(table(args.file.stat().st_size, medians(rounds[False]), medians(rounds[True])))


if __name__ == "__main__":
    main()
