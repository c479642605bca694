"""Is time linear in bytes, and memory flat? Runs of growing size, on one and two threads or those asked for, in fresh processes.

The text is made by varied_text.py; each run's is the beginning of the next one's. Start and end of a run weigh on the small ones: a
line through the two largest gives the seconds a GB and the seconds that any run takes; how far the others lie from that line is
printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import chart
import machine
import watch
from speed import warm

HERE = Path(__file__).resolve().parent


def make(file: Path, n_bytes: int, seed_texts: list[str]) -> None:
    command = [sys.executable, str(HERE / "varied_text.py"), str(n_bytes), *(["--seed-text", *seed_texts] if seed_texts else [])]
    with file.open("wb") as out:
        subprocess.run(command, check=True, stdout=out)


def run_once(file: Path, out: Path, n_threads: int) -> watch.Outcome:
    command = [sys.executable, "-m", "tokmill", "tokenize", str(file), "--out", str(out), "-q", "--threads", str(n_threads)]
    os.sync()
    outcome = watch.run(command, interval_s=0.05, env=watch.checkout_env())
    if outcome.exit_code:
        raise SystemExit(f"exit code {outcome.exit_code}: {' '.join(command)}")
    shutil.rmtree(out)
    return outcome


def fitted(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Seconds a GB, and seconds of any run, of the two largest runs."""
    (x0, y0), (x1, y1) = points[-2:]
    slope = (y1 - y0) / (x1 - x0)
    return slope, y1 - slope * x1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, nargs="+", default=[0.1, 0.3, 1, 3, 10])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed-text", nargs="+", default=[], metavar="FILE")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--svg", type=Path, help="seconds over GB; the same with -memory in its name has MiB over GB")
    args = parser.parse_args()
    watch.become_subreaper()
    print("\n".join(f"- {name}: {value}" for name, value in machine.description().items()))
    print("\n| GB | threads | seconds | MB/s | processor s | peak RSS MiB |\n|---:|---:|---:|---:|---:|---:|", flush=True)
    seconds: dict[str, list[tuple[float, float]]] = {f"{n} threads" if n > 1 else "1 thread": [] for n in args.threads}
    memory: dict[str, list[tuple[float, float]]] = {name: [] for name in seconds}
    with tempfile.TemporaryDirectory(dir=args.work, prefix="scaling-") as work:
        file = Path(work) / "corpus.txt"
        for gb in sorted(args.gb):
            make(file, int(gb * 1e9), args.seed_text)
            warm(file)
            for name, n in zip(seconds, args.threads, strict=True):
                found = [run_once(file, Path(work) / "out", n) for _ in range(args.rounds)]
                took_s = statistics.median(one.elapsed_s for one in found)
                peak_mib = max(one.peak_rss_bytes for one in found) / (1 << 20)
                cpu_s = statistics.median(one.cpu_s for one in found)
                seconds[name].append((gb, took_s))
                memory[name].append((gb, peak_mib))
                print(f"| {gb:g} | {n} | {took_s:.2f} | {gb * 1e3 / took_s:.0f} | {cpu_s:.1f} | {peak_mib:.0f} |", flush=True)
    for name, points in seconds.items():
        slope, start = fitted(points)
        off = max(abs(y - (start + slope * x)) for x, y in points)
        print(f"\n{name}: {slope:.2f} s a GB and {start:.2f} s; the furthest of the others lies {off:.2f} s beside that line.")
    if args.svg:
        args.svg.write_text(chart.lines(seconds, "Seconds of a whole run over size of the text", "GB", "seconds"))
        beside = args.svg.with_name(f"{args.svg.stem}-memory{args.svg.suffix}")
        beside.write_text(chart.lines(memory, "Peak memory of all processes over size of the text", "GB", "MiB"))


if __name__ == "__main__":
    main()
