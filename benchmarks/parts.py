"""One run against parts: in two tasks side by side, and on a Ray cluster of this machine. Needs the extra ray.

    python benchmarks/parts.py CORPUS [--rounds 3] [--out DIR]

Seconds of whole commands, the best of some rounds, the kinds taking turns; beside them the load of the machine, and the seconds of
processors that the commands took (what Ray's own processes took, the tasks among them, is not in it). Every output is compared with
that of the plain run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's workers give way to everything else by themselves, which on a shared machine is what would be measured.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  so Ray spells it

TOKMILL = [sys.executable, "-m", "tokmill"]


def run(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*TOKMILL, *map(str, arguments), "-q"], stdout=subprocess.DEVNULL)


def wait(*processes: subprocess.Popen[bytes]) -> None:
    if any(process.wait() for process in processes):
        sys.exit("a run failed")


def plain(corpus: Path, out: Path, threads: int) -> None:
    wait(run("tokenize", corpus, "--out", out, "--threads", threads))


def by_hand(corpus: Path, out: Path, n_tasks: int) -> None:
    wait(*(run("tokenize", corpus, "--out", out, "--threads", 1, "--part", f"{i}/{n_tasks}") for i in range(n_tasks)))
    wait(run("finalize", out))


def on_ray(corpus: Path, out: Path, address: str, part_bytes: int) -> None:
    wait(run("tokenize", corpus, "--out", out, "--ray", address, "--part-bytes", part_bytes))


def digest(out: Path) -> str:
    found = hashlib.sha256()
    for side in ("train", "val"):
        for path in sorted(out.glob(f"{side}*.bin")):
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    found.update(block)
    return found.hexdigest()


def processor_s() -> float:
    """Of all processes that were started here and have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def kinds(corpus: Path, address: str) -> dict[str, Callable[[Path], None]]:
    size = corpus.stat().st_size
    return {
        "one run, 1 thread": lambda out: plain(corpus, out, 1),
        "one run, 2 threads": lambda out: plain(corpus, out, 2),
        "1 task by hand": lambda out: by_hand(corpus, out, 1),
        "2 tasks by hand": lambda out: by_hand(corpus, out, 2),
        "Ray, 2 tasks, cluster there": lambda out: on_ray(corpus, out, address, size // 2 + 1),
        "Ray, 2 tasks, cluster started": lambda out: on_ray(corpus, out, "local", size // 2 + 1),
        "Ray, 8 tasks, cluster there": lambda out: on_ray(corpus, out, address, size // 8 + 1),
    }


def measure(corpus: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "memory": 4 << 30, "include_dashboard": False, **store})
    best: dict[str, float] = {}
    loads: dict[str, float] = {}
    processors: dict[str, float] = {}
    expected = ""
    try:
        for _ in range(rounds):
            for name, kind in kinds(corpus, cluster.address).items():
                out = scratch / "parts-benchmark"
                shutil.rmtree(out, ignore_errors=True)
                began_s, began_processor_s = time.monotonic(), processor_s()
                kind(out)
                elapsed_s, used_s = time.monotonic() - began_s, processor_s() - began_processor_s
                processors[name] = min(used_s, processors.get(name, used_s))
                if elapsed_s < best.get(name, float("inf")):
                    best[name], loads[name] = elapsed_s, os.getloadavg()[0]
                expected = expected or digest(out)
                if digest(out) != expected:
                    sys.exit(f"{name}: other bytes than the plain run's")
                shutil.rmtree(out)
                print(f"{name:<30} {elapsed_s:6.2f} s, {used_s:6.2f} s of processors, load {os.getloadavg()[0]:.1f}", flush=True)
    finally:
        cluster.shutdown()
    return {"bytes": corpus.stat().st_size, "seconds": best, "processor_seconds": processors, "load": loads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build"))
    options = parser.parse_args()
    print(json.dumps(measure(options.corpus.resolve(), options.out.resolve(), options.rounds), indent=1))


if __name__ == "__main__":
    main()
