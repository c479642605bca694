"""What it costs to put documents into another order: `tokenize --shuffle` beside `tokenize`, `shuffle` and `mix` beside copies.

    python benchmarks/arranging.py FILE [--repeat 6] [--rounds 3] [--memory 1GiB] [--work DIR]

FILE is text with <|endoftext|> between documents; it is read through a pipe, so often. What is mixed is a third of it and the rest,
each document once. Every command is a fresh process, the kinds
take turns. A copy is that of the ids, and fsync. Prints a table: medians of seconds and of processor seconds, peaks of resident
memory of all processes and of disk (output and whatever lies beside it), and how often the reference's time it took.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import machine
import watch
from against_peers import Disk

MIB = 1 << 20
COPY = """\
import os, shutil, sys
for _ in range(int(sys.argv[3])):
    shutil.copyfile(*sys.argv[1:3])
    fd = os.open(sys.argv[2], os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
"""


@dataclass(slots=True)
class Row:
    """One command, and the one that it is measured by."""

    name: str
    command: list[str]
    is_fed: bool = False
    reference: str = ""
    outcomes: list[watch.Outcome] = field(default_factory=list)
    disk_bytes: list[int] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return statistics.median(outcome.elapsed_s for outcome in self.outcomes)


def parts_of(repeat: int) -> tuple[int, int]:
    """How often the file is in each of two outputs that are mixed: not as often, or they were the same output."""
    return repeat // 3, repeat - repeat // 3


def rows(work: Path, memory: str, repeat: int) -> list[Row]:
    """All of them; `tokens` and what is mixed is made beforehand, `run` is empty before each."""
    out, tokens = str(work / "run" / "out"), str(work / "tokens")
    tokmill = [sys.executable, "-m", "tokmill"]
    options = ["--out", out, "-q", "--memory", memory]
    copy = [sys.executable, "-c", COPY, f"{tokens}/train.bin", f"{out}.bin"]
    mix = ["mix", *(f"{work}/tokens-{n}={n}" for n in parts_of(repeat)), "--max-epochs", "1", "--seed", "1"]
    return [
        Row("tokenize", [*tokmill, "tokenize", "-", *options], is_fed=True),
        Row("tokenize --shuffle", [*tokmill, "tokenize", "-", "--shuffle", "1", *options], is_fed=True, reference="tokenize"),
        Row("cp + fsync, twice", [*copy, "2"]),
        Row("shuffle", [*tokmill, "shuffle", tokens, "--seed", "1", *options], reference="cp + fsync, twice"),
        Row("cp + fsync", [*copy, "1"]),
        Row("mix", [*tokmill, *mix, *options], reference="cp + fsync"),
    ]


def measure(row: Row, file: Path, repeat: int, work: Path) -> None:
    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    subprocess.run(["sync"], check=True)
    disk = Disk(folder)
    disk.start()
    if row.is_fed:
        with subprocess.Popen(["cat", *[str(file)] * repeat], stdout=subprocess.PIPE) as feeder:
            outcome = watch.run(row.command, env=watch.checkout_env(), stdin=feeder.stdout, without=frozenset([feeder.pid]))
    else:
        outcome = watch.run(row.command, env=watch.checkout_env())
    row.disk_bytes.append(disk.stop())
    if outcome.exit_code:
        raise SystemExit(f"{row.name}: exit code {outcome.exit_code}")
    row.outcomes.append(outcome)
    print(f"{row.name}: {outcome.elapsed_s:.1f} s", file=sys.stderr, flush=True)


def table(found: list[Row], ids_bytes: int) -> str:
    lines = [
        "| command | s | processor s | peak memory MiB | peak disk by ids | by the reference |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    by_name = {row.name: row for row in found}
    for row in found:
        cpu_s = statistics.median(outcome.cpu_s for outcome in row.outcomes)
        peak_mib = max(outcome.peak_rss_bytes for outcome in row.outcomes) / MIB
        times = f"{row.median_s / by_name[row.reference].median_s:.2f} of {row.reference}" if row.reference else ""
        lines.append(
            f"| {row.name} | {row.median_s:.1f} | {cpu_s:.1f} | {peak_mib:,.0f} | {max(row.disk_bytes) / ids_bytes:.2f} | {times} |"
        )
    return "\n".join(lines)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--repeat", type=int, default=6, help="how often the file is read, at least 3 times (default 6)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--work", type=Path, help="directory to work in (default: a temporary one)")
    return parser.parse_args()


def main() -> None:
    args = options()
    watch.become_subreaper()
    about = machine.description()
    with tempfile.TemporaryDirectory(dir=args.work, prefix="arranging-") as directory:
        work = Path(directory)
        found = rows(work, args.memory, args.repeat)
        for name, repeat in [("tokens", args.repeat), *((f"tokens-{n}", n) for n in parts_of(args.repeat))]:
            measure(found[0], args.file, repeat, work)
            (work / "run" / "out").rename(work / name)
        found[0].outcomes.clear()
        found[0].disk_bytes.clear()
        ids_bytes = (work / "tokens" / "train.bin").stat().st_size
        for number in range(args.rounds):
            shift = number % len(found)
            for row in found[shift:] + found[:shift]:
                measure(row, args.file, args.repeat, work)
    print("\n".join(f"- {name}: {value}" for name, value in about.items()))
    print(
        f"- {args.file.stat().st_size * args.repeat / 1e9:.2f} GB of text, {ids_bytes / 1e9:.2f} GB of ids, --memory {args.memory}"
    )
    print(f"\n{table(found, ids_bytes)}")


if __name__ == "__main__":
    main()
