"""What the second process costs: the usual run (a process that watches, a worker that tokenizes) beside the worker in one process.

two   `python -m tokmill tokenize FILE --out DIR -q`
one   a fresh interpreter that plans the same job and calls the worker in itself, with the environment that a worker gets

In interleaved rounds, the order turned each time. Times are those of whole processes, from spawn to exit; processor time is user
and system of all of them. What two costs beyond one contains the start of a second interpreter, which does not grow with the
file: it is measured too, on a file of one line. Prints a table and the ratios two / one, with the start and without it; above
--most percent of processor time, start included, the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import machine
import watch

_IN_ONE = """
import sys
from tokmill.core.options import PlanOptions
from tokmill.run.job import make_job
from tokmill.run.worker import Worker

file, out, *threads = sys.argv[1:]
job = make_job([file], PlanOptions(threads=int(threads[0]) if threads else None), out=out).job
Worker(job, lambda _event: None).run()
"""
_ENVIRONMENT = "import json, tokmill.core.system.process as c; print(json.dumps(c._ENVIRONMENT))"


@dataclass(slots=True)
class Way:
    """One way to run it."""

    name: str
    command: Callable[[Path], list[str]]
    """For an input file."""
    env: dict[str, str]
    rounds: list[watch.Outcome] = field(default_factory=list)
    starts: list[watch.Outcome] = field(default_factory=list)
    """Of the file of one line."""

    @property
    def elapsed_s(self) -> list[float]:
        return [outcome.elapsed_s for outcome in self.rounds]

    @property
    def cpu_s(self) -> list[float]:
        return [outcome.cpu_s for outcome in self.rounds]

    @property
    def start_s(self) -> float:
        """Processor time of the file of one line."""
        return statistics.median(outcome.cpu_s for outcome in self.starts)


def worker_environment() -> dict[str, str]:
    """The environment that tokmill gives its worker."""
    import json

    env = watch.checkout_env()
    printed = subprocess.run([sys.executable, "-c", _ENVIRONMENT], capture_output=True, text=True, check=True, env=env).stdout
    return {**json.loads(printed), **env}


def ways(args: argparse.Namespace, out: Path) -> list[Way]:
    threads = [str(args.threads)] if args.threads else []
    option = ["--threads", *threads] if threads else []
    two = [sys.executable, "-m", "tokmill", "tokenize", "--out", str(out), "-q", *option]
    one = [sys.executable, "-c", _IN_ONE]
    return [
        Way("two", lambda file: [*two, str(file)], watch.checkout_env()),
        Way("one", lambda file: [*one, str(file), str(out), *threads], worker_environment()),
    ]


def run_once(way: Way, file: Path, out: Path) -> watch.Outcome:
    """One run with a fresh output. Exits when it fails."""
    os.sync()
    # One sample every few seconds: the sampling itself takes processor time.
    outcome = watch.run(way.command(file), interval_s=5, env=way.env)
    if outcome.exit_code:
        raise SystemExit(f"{way.name}: exit code {outcome.exit_code}")
    shutil.rmtree(out)
    return outcome


def ratios(two: list[float], one: list[float]) -> str:
    """Of the medians, and of each round."""
    each = " ".join(f"{a / b:.3f}" for a, b in zip(two, one, strict=True))
    return f"{statistics.median(two) / statistics.median(one):.4f} of the medians; of the rounds {each}"


def table(found: list[Way]) -> str:
    lines = ["| way | seconds of each round | median s | CPU s of each round | median CPU s |", "|---|---|---:|---|---:|"]
    for way in found:
        walls, cpus = (" ".join(f"{value:.2f}" for value in values) for values in (way.elapsed_s, way.cpu_s))
        lines.append(
            f"| {way.name} | {walls} | {statistics.median(way.elapsed_s):.2f} | {cpus} | {statistics.median(way.cpu_s):.2f} |"
        )
    return "\n".join(lines)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="text with <|endoftext|> between documents, e.g. from make_corpus.py")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--most", type=float, default=3.0, metavar="PERCENT", help="of processor time that the second may cost")
    parser.add_argument("--work", type=Path, help="directory for outputs (default: a temporary one)")
    return parser.parse_args()


def main() -> None:
    args = options()
    watch.become_subreaper()
    with tempfile.TemporaryDirectory(dir=args.work, prefix="isolation-") as work:
        out = Path(work) / "out"
        found = ways(args, out)
        with args.file.open("rb") as file:
            while file.read(16 << 20):
                pass
        line = Path(work) / "line.txt"
        line.write_text("one line\n")
        for way in found:
            run_once(way, args.file, out)
        for number in range(args.rounds):
            for way in found if number % 2 else found[::-1]:
                way.rounds.append(run_once(way, args.file, out))
                way.starts.append(run_once(way, line, out))
                print(f"round {number + 1}: {way.name} {way.rounds[-1].elapsed_s:.2f} s", file=sys.stderr, flush=True)
    two, one = found
    print(" · ".join(f"{name} {value}" for name, value in machine.description().items()))
    print(table(found))
    print(f"wall time, two / one: {ratios(two.elapsed_s, one.elapsed_s)}")
    print(f"processor time, two / one: {ratios(two.cpu_s, one.cpu_s)}")
    print(f"processor time of the start alone: two {two.start_s:.2f} s, one {one.start_s:.2f} s")
    without = [[value - way.start_s for value in way.cpu_s] for way in found]
    print(f"processor time without the start, two / one: {ratios(*without)}")
    sys.exit(statistics.median(two.cpu_s) > (1 + args.most / 100) * statistics.median(one.cpu_s))


if __name__ == "__main__":
    main()
