"""How far tokmill is from the least that this machine could do with the same reader, engine and disk, part by part.

reading    the kind's reader in one thread, batches thrown away: bytes, decompression, parsing, UTF-8, documents found
encoding   the text's batches from RAM, in as many threads as there are cores, a tokenizer each, ids thrown away
writing    as many bytes as the output has, from one buffer, in pieces of 4 MiB to one file, then fsync
tokmill    `python -m tokmill tokenize FILE --out DIR`, from the start of the process to its end

Each part runs alone in a fresh process, in the same minute as the others, in interleaved rounds; its clock and its processor time
begin when it has loaded what it needs. The floor is the processor time of the three parts added up and divided by the cores: what
would remain if nothing else were done and no core ever waited. A run of an empty file (two interpreters, the tokenizer's tables, a
manifest) is measured as well, and the share of the floor is told without it too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import inputs
import machine
import watch

MIB = 1 << 20
PARTS = ("reading", "encoding", "writing")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of the clock, and of all processors together."""

    elapsed_s: float
    cpu_s: float


def _now() -> Cost:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Cost(time.perf_counter(), usage.ru_utime + usage.ru_stime)


def _since(began: Cost) -> Cost:
    now = _now()
    return Cost(now.elapsed_s - began.elapsed_s, now.cpu_s - began.cpu_s)


def read(path: Path) -> Cost:
    batches = inputs.reader(path)
    began = _now()
    for _ in batches:
        pass
    return _since(began)


def encode(path: Path, passes: int = 1) -> Cost:
    """The batches are taken from the reader some at a time, so that a corpus larger than the memory fits; that is not counted."""
    encoders = inputs.encoders()
    spent = [Cost(0.0, 0.0)]
    for batches in inputs.in_parts(path, 512 * MIB):
        began = _now()
        threads = [
            threading.Thread(target=inputs.encode_all, args=(one, batches[i :: len(encoders)])) for i, one in enumerate(encoders)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent.append(_since(began))
    return Cost(sum(one.elapsed_s for one in spent), sum(one.cpu_s for one in spent))


def write(path: Path, n_bytes: int) -> Cost:
    piece = os.urandom(4 * MIB)
    began = _now()
    with path.open("wb", buffering=0) as file:
        for at in range(0, n_bytes, len(piece)):
            file.write(memoryview(piece)[: n_bytes - at])
        os.fsync(file.fileno())
    spent = _since(began)
    path.unlink()
    return spent


def part(name: str, path: Path, work: Path, n_bytes: int) -> Cost:
    """One part in a process of its own."""
    command = [sys.executable, __file__, str(path), "--part", name, "--work", str(work), "--bytes", str(n_bytes)]
    done = subprocess.run(command, check=True, capture_output=True, env=watch.checkout_env())
    return Cost(*json.loads(done.stdout))


def tokmill(path: Path, work: Path, options: list[str]) -> tuple[Cost, int]:
    """A whole run, and the bytes of its token files."""
    out = work / "out"
    command = [sys.executable, "-m", "tokmill", "tokenize", str(path), "--out", str(out), "-q", "--fresh", *options]
    os.sync()
    outcome = watch.run(command, interval_s=0.2, env=watch.checkout_env())
    if outcome.exit_code:
        raise SystemExit(f"exit code {outcome.exit_code}: {' '.join(command)}")
    n_bytes = sum((out / name).stat().st_size for name in ("train.bin", "val.bin"))
    shutil.rmtree(out)
    return Cost(outcome.elapsed_s, outcome.cpu_s), n_bytes


def empty_file(work: Path) -> Path:
    """Nearly empty: a run without a token is an error."""
    path = work / "empty.txt"
    path.write_bytes(b"a word")
    return path


def median(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(c.elapsed_s for c in costs), statistics.median(c.cpu_s for c in costs))


def measure(path: Path, work: Path, rounds: int, options: list[str]) -> dict[str, Cost]:
    """Medians of interleaved rounds."""
    found: dict[str, list[Cost]] = {name: [] for name in ("tokmill", "start", *PARTS)}
    empty = empty_file(work)
    for _ in range(rounds):
        run, n_bytes = tokmill(path, work, options)
        found["tokmill"].append(run)
        for name in PARTS:
            found[name].append(part(name, path, work, n_bytes))
        found["start"].append(tokmill(empty, work, [])[0])
    return {name: median(costs) for name, costs in found.items()}


def report(path: Path, found: dict[str, Cost]) -> str:
    """Markdown, and the share of the floor in words."""
    cores = len(os.sched_getaffinity(0))
    floor_s = sum(found[name].cpu_s for name in PARTS) / cores
    run, start = found["tokmill"], found["start"]
    lines = ["| part, alone | seconds | processor seconds |", "|---|---:|---:|"]
    lines += [f"| {name} | {found[name].elapsed_s:.2f} | {found[name].cpu_s:.2f} |" for name in PARTS]
    lines += [
        f"| **floor**: processor seconds by {cores} cores | {floor_s:.2f} | |",
        f"| start and end of a run (an empty file) | {start.elapsed_s:.2f} | {start.cpu_s:.2f} |",
        f"| **tokmill** | {run.elapsed_s:.2f} | {run.cpu_s:.2f} |",
    ]
    most = max(PARTS, key=lambda name: found[name].cpu_s)
    slowest = max(PARTS, key=lambda name: found[name].elapsed_s)
    busy, share = run.cpu_s / run.elapsed_s / cores, floor_s / run.elapsed_s
    without_start = floor_s / (run.elapsed_s - start.elapsed_s)
    lines += [
        "",
        f"{path.name}: {share:.2f} of the floor; {without_start:.2f} without start and end; cores busy {busy:.0%};",
        f"the parts' processor time is {floor_s * cores / run.cpu_s:.2f} of tokmill's.",
        f"{most} takes most of the processor; {slowest} alone takes longest by the clock.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="text, JSON lines, compressed or not, or Parquet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokmill-options", default="", metavar="'--threads 2 ...'")
    parser.add_argument("--work", type=Path, help="directory for outputs (default: a temporary one)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        doing = {"reading": lambda: read(args.file), "encoding": lambda: encode(args.file)}
        cost = doing[args.part]() if args.part in doing else write(args.work / "written", args.bytes)
        print(json.dumps([cost.elapsed_s, cost.cpu_s]))
        return
    watch.become_subreaper()
    print("\n".join(f"- {name}: {value}" for name, value in machine.description().items()), end="\n\n")
    with tempfile.TemporaryDirectory(dir=args.work, prefix="floor-") as work:
        print(report(args.file, measure(args.file, Path(work), args.rounds, args.tokmill_options.split())))


if __name__ == "__main__":
    main()
