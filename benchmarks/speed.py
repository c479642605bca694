"""Speed and memory of tokmill beside two other ways, in interleaved rounds of fresh processes.

tokmill          `python -m tokmill tokenize FILE --out DIR --json`: separators, EOT ids, validation, journal, fsync
encode_files     gigatoken's `encode_files(parallel=True)` and one `astype(uint16).tofile`: ids alone, no EOT, no fsync
streaming        tiktoken `encode_ordinary` of a million characters at a time, one thread, on the first --slice-mb of the file
                 only: its rate is compared per MB of its own slice

Times are those of whole processes, interpreter start included, from spawn to exit. The file is read once before (warm page
cache); the last output is removed and the disk synced before each run. In timed rounds RSS is sampled every 20 ms; PSS
slows a large process, so it comes from one further round that is not timed. Writes a markdown table to standard output and,
with --json-out, everything.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
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

HERE = Path(__file__).resolve().parent


@dataclass(slots=True)
class Contender:
    """One way to do it. command: gives the command for an output path that does not exist yet."""

    name: str
    n_bytes: int
    command: Callable[[Path], list[str]]
    rounds: list[watch.Outcome] = field(default_factory=list)
    untimed: watch.Outcome | None = None

    @property
    def median_s(self) -> float:
        return statistics.median(outcome.elapsed_s for outcome in self.rounds)

    @property
    def mb_per_s(self) -> float:
        return self.n_bytes / self.median_s / 1e6


def contenders(args: argparse.Namespace, work: Path) -> list[Contender]:
    """Those asked for, tokmill first."""
    size = args.file.stat().st_size
    peers = HERE / "peers"
    ranks = ["--ranks", str(args.ranks)] if args.ranks else []
    tokmill = [sys.executable, "-m", "tokmill", "tokenize", str(args.file), "--json", "-q", *shlex.split(args.tokmill_options)]
    encode_files = [sys.executable, str(peers / "gigatoken_encode_files.py"), str(args.file)]
    found = [
        Contender("tokmill", size, lambda out: [*tokmill, "--out", str(out)]),
        Contender("encode_files + tofile", size, lambda out: [*encode_files, str(out), *ranks]),
    ]
    if args.slice_mb:
        part = make_slice(args.file, work / "slice.txt", int(args.slice_mb * 1e6))
        streaming = [sys.executable, str(peers / "streaming_tiktoken.py"), str(part)]
        found.append(Contender("streaming tiktoken", part.stat().st_size, lambda out: [*streaming, str(out), *ranks]))
    return found[1:] if args.peers_only else found


def make_slice(file: Path, part: Path, n_bytes: int) -> Path:
    """The first bytes of a file, up to a newline."""
    with file.open("rb") as source:
        data = source.read(n_bytes)
    part.write_bytes(data[: data.rfind(b"\n") + 1] or data)
    return part


def warm(file: Path) -> None:
    """Read the file so that it lies in the page cache, as far as it fits."""
    with file.open("rb") as source:
        while source.read(16 << 20):
            pass


def run_once(contender: Contender, work: Path, *, pss: bool) -> watch.Outcome:
    """One fresh process with a fresh output. Exits when it fails."""
    out = work / "out"
    os.sync()
    outcome = watch.run(contender.command(out), pss=pss, env=watch.checkout_env())
    if outcome.exit_code:
        command = shlex.join(contender.command(out))
        raise SystemExit(f"{contender.name} failed with exit code {outcome.exit_code}: {command}")
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return outcome


def measure(found: list[Contender], n_rounds: int, work: Path) -> None:
    """Timed rounds, each contender once a round, the order turned by one each time; then one round for PSS."""
    for number in range(n_rounds):
        shift = number % len(found)
        for contender in found[shift:] + found[:shift]:
            outcome = run_once(contender, work, pss=False)
            contender.rounds.append(outcome)
            print(f"round {number + 1}: {contender.name} {outcome.elapsed_s:.2f} s", file=sys.stderr, flush=True)
    for contender in found:
        contender.untimed = run_once(contender, work, pss=True)


def table(found: list[Contender]) -> str:
    """Markdown; ratios are of rates, to the first contender."""
    lines = [
        "| way | MB | seconds of each round | median s | MB/s | slower by | CPU s | peak RSS MB | peak PSS MB |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        rounds = " ".join(f"{outcome.elapsed_s:.2f}" for outcome in one.rounds)
        cpu_s = statistics.median(outcome.cpu_s for outcome in one.rounds)
        rss = max(outcome.peak_rss_bytes for outcome in one.rounds)
        pss = (one.untimed.peak_pss_bytes if one.untimed else None) or 0
        ratio = found[0].mb_per_s / one.mb_per_s
        times = f"{rounds} | {one.median_s:.2f} | {one.mb_per_s:.0f} | {ratio:.2f} | {cpu_s:.1f}"
        lines.append(f"| {one.name} | {one.n_bytes / 1e6:.0f} | {times} | {rss / 1e6:.0f} | {pss / 1e6:.0f} |")
    return "\n".join(lines)


def as_json(found: list[Contender], about: dict[str, str], file: Path) -> str:
    """Everything that was measured, except single samples."""
    ways = [
        {
            "name": one.name,
            "bytes": one.n_bytes,
            "elapsed_s": [round(outcome.elapsed_s, 4) for outcome in one.rounds],
            "cpu_s": [round(outcome.cpu_s, 3) for outcome in one.rounds],
            "median_s": one.median_s,
            "mb_per_s": one.mb_per_s,
            "peak_rss_bytes": [outcome.peak_rss_bytes for outcome in one.rounds],
            "peak_pss_bytes": one.untimed.peak_pss_bytes if one.untimed else None,
            "last_stdout": one.rounds[-1].stdout,
        }
        for one in found
    ]
    return json.dumps({"machine": about, "file": str(file), "ways": ways}, indent=1)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="text with <|endoftext|> between documents, e.g. from make_corpus.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slice-mb", type=float, default=50, help="for streaming tiktoken; 0 leaves it out")
    parser.add_argument("--peers-only", action="store_true", help="leave tokmill out")
    parser.add_argument("--tokmill-options", default="", metavar="'--threads 2 ...'", help="further options of tokmill tokenize")
    parser.add_argument("--ranks", type=Path, help="r50k_base.tiktoken, when it is not in the package")
    parser.add_argument("--work", type=Path, help="directory for outputs (default: a temporary one)")
    parser.add_argument("--json-out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = options()
    watch.become_subreaper()
    about = machine.description()
    if not args.peers_only:
        version = [sys.executable, "-c", "import tokmill; print(getattr(tokmill, '__version__', '?'))"]
        about["tokmill"] = subprocess.run(
            version, capture_output=True, text=True, check=False, env=watch.checkout_env()
        ).stdout.strip()
    with tempfile.TemporaryDirectory(dir=args.work, prefix="speed-") as work:
        found = contenders(args, Path(work))
        warm(args.file)
        measure(found, args.rounds, Path(work))
    print("\n".join(f"- {name}: {value}" for name, value in about.items()))
    print(f"\n{table(found)}")
    if args.json_out:
        args.json_out.write_text(as_json(found, about, args.file))


if __name__ == "__main__":
    main()
