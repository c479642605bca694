"""Kills a run at random moments, runs the same command again, and compares the output with that of a run left alone.

A case: a new output directory; the command is started and its processes get SIGKILL after a random time; the same command
again, killed again or not, until one run ends with exit code 0. Then the SHA-256 of every token file must be that of the
uninterrupted run, no process may be left, and nothing unfinished may lie in the directory. The work lost by a kill is told
in two ways: seconds of all runs of a case beyond the time of an uninterrupted one (interpreter starts included), and bytes
of tokens on disk behind the last commit when the kill struck. Half of the kills of case 2, 4, ... come within the first
quarter of a run, where recovery is youngest.

    python benchmarks/kill.py corpus.txt --kills 200
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import machine
import watch

STATE = ".tokmill"
LEFT_GRACE_S = 2.0
"""A process that outlives the end of the command by more than this counts as left behind."""


@dataclass(slots=True)
class Case:
    """What happened to one output directory."""

    number: int
    killed_at_s: list[float] = field(default_factory=list)
    lost_bytes: list[int] = field(default_factory=list)
    elapsed_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of each token file by name."""
    return {path.name: _sha256(path) for path in sorted(out.glob("*.bin"))}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def uncommitted_bytes(out: Path) -> int:
    """Token bytes on disk that no complete line of the journal speaks of; 0 when there is no journal."""
    try:
        lines = (out / STATE / "journal").read_bytes().split(b"\n")[1:-1]
    except FileNotFoundError:
        return 0
    committed: dict[str, int] = {}
    for line in lines:
        committed |= _lengths(line)
    parts = {path.name.removesuffix(".part"): path.stat().st_size for path in (out / STATE).glob("*.bin.part")}
    return sum(max(0, size - committed.get(name, 0)) for name, size in parts.items())


def _lengths(journal_line: bytes) -> dict[str, int]:
    """Lengths of files behind a segment, wherever in the line's JSON (behind its checksum) its `files` are."""
    pending = [json.loads(journal_line[journal_line.index(b"{") :])]
    while pending:
        record = pending.pop()
        if isinstance(record, dict):
            if isinstance(record.get("files"), dict):
                return {name: span["end"] for name, span in record["files"].items()}
            pending += record.values()
        elif isinstance(record, list):
            pending += record
    return {}


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """The command with its output in a log file."""
    with log.open("ab") as sink:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=watch.checkout_env())


def run_until(process: subprocess.Popen[bytes], kill_after_s: float | None, victim: str) -> bool:
    """Wait for the end of a run, or kill it then; whether it was killed."""
    try:
        process.wait(kill_after_s)
    except subprocess.TimeoutExpired:
        _strike(process, victim)
        return True
    return False


def _strike(process: subprocess.Popen[bytes], victim: str) -> None:
    below = watch.family(process.pid)
    if victim == "worker" and below:
        watch.kill_one(below[0])
        process.wait()
    elif victim == "parent":
        process.kill()
        process.wait()
        _wait_for_none()
    else:
        watch.kill_family()
        process.wait()
    watch.reap_orphans()


def _wait_for_none() -> bool:
    """Give what is left LEFT_GRACE_S to go by itself; whether all went."""
    end_s = time.monotonic() + LEFT_GRACE_S
    while time.monotonic() < end_s:
        watch.reap_orphans()
        if not watch.family():
            return True
        time.sleep(0.02)
    return False


def moments(rng: random.Random, case: int, whole_s: float) -> list[float]:
    """When the runs of a case are killed: one to three times, anywhere up to the time of a whole run."""
    early = case % 2 == 0
    return [rng.uniform(0, whole_s / 4 if early and rng.random() < 0.5 else whole_s) for _ in range(rng.randint(1, 3))]


def play(case: Case, command: list[str], out: Path, kill_after: list[float], victim: str) -> None:
    """Carry out one case; what is wrong goes to its faults. A run that is done before its kill ends the case."""
    log = out.with_suffix(".log")
    begin_s = time.perf_counter()
    for kill_after_s in [*kill_after, None]:
        process = start(command, log)
        killed = run_until(process, kill_after_s, victim)
        if victim != "tree" and not _wait_for_none():
            case.faults.append(f"{watch.kill_family()} processes left behind")
        if killed and kill_after_s is not None:
            case.killed_at_s.append(kill_after_s)
            case.lost_bytes.append(uncommitted_bytes(out))
        if process.returncode == 0:
            break
        if not killed:
            case.faults.append(f"exit code {process.returncode}: {log.read_text(errors='replace')[-600:]}")
            break
    case.elapsed_s = time.perf_counter() - begin_s


def check(case: Case, out: Path, expected: dict[str, str]) -> None:
    """Compare the output of a finished case."""
    found = digests(out)
    case.faults += [f"{name} differs" for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    if not (out / "manifest.json").exists():
        case.faults.append("no manifest")
    if left := list((out / STATE).glob("*.part")) + list((out / STATE).glob("journal")):
        case.faults.append(f"left in the directory: {', '.join(path.name for path in left)}")


def report(cases: list[Case], whole_s: float) -> str:
    """Figures of all cases, then the faults."""
    kills = [lost for case in cases for lost in case.lost_bytes]
    failed = [case for case in cases if case.faults]
    beyond_s = sum(case.elapsed_s - whole_s for case in cases if case.killed_at_s)
    lines = [f"cases {len(cases)}, kills {len(kills)}, failed {len(failed)}; uninterrupted run {whole_s:.2f} s"]
    if kills:
        lines.append(
            f"lost per kill: {beyond_s / len(kills):.2f} s on average (starts included); token bytes behind the last commit:"
        )
        lines[-1] += f" median {sorted(kills)[len(kills) // 2] / 1e6:.1f} MB, most {max(kills) / 1e6:.1f} MB"
    lines += [f"case {case.number}, killed at {case.killed_at_s}: {'; '.join(case.faults)}" for case in failed]
    return "\n".join(lines)


def play_all(args: argparse.Namespace, work: Path) -> list[str]:
    """The whole session; returns the report and the number of failed cases as text."""

    def command(out: Path) -> list[str]:
        options = shlex.split(args.tokmill_options)
        return [sys.executable, "-m", "tokmill", "tokenize", str(args.file), "--out", str(out), "--json", *options]

    begin_s = time.perf_counter()
    reference = start(command(work / "whole"), work / "whole.log")
    if reference.wait():
        raise SystemExit(f"the uninterrupted run failed:\n{(work / 'whole.log').read_text(errors='replace')}")
    whole_s = time.perf_counter() - begin_s
    expected, rng, cases = digests(work / "whole"), random.Random(args.seed), list[Case]()
    while sum(len(case.killed_at_s) for case in cases) < args.kills:
        case = Case(len(cases) + 1)
        out = work / f"case{case.number}"
        victim = rng.choice(["tree", "parent", "worker"]) if args.victim == "mixed" else args.victim
        play(case, command(out), out, moments(rng, case.number, whole_s), victim)
        check(case, out, expected)
        cases.append(case)
        state = "; ".join(case.faults) or "same bytes"
        killed = ", ".join(f"{at_s:.2f}" for at_s in case.killed_at_s)
        print(f"case {case.number} ({victim}) killed at [{killed}] s: {state}", file=sys.stderr, flush=True)
        if not case.faults:
            shutil.rmtree(out)
            out.with_suffix(".log").unlink()
    return [report(cases, whole_s), str(sum(bool(case.faults) for case in cases))]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--kills", type=int, default=20, help="at least this many (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--victim", choices=["tree", "parent", "worker", "mixed"], default="tree", help="which processes are killed"
    )
    parser.add_argument("--tokmill-options", default="", metavar="'--memory 300MiB ...'")
    parser.add_argument("--work", type=Path, help="directory to work in, kept (default: a temporary one)")
    return parser.parse_args()


def main() -> None:
    args = options()
    watch.become_subreaper()
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        text, n_failed = play_all(args, work)
    print(" · ".join(f"{name} {value}" for name, value in machine.description().items()))
    print(text)
    sys.exit(n_failed != "0")


if __name__ == "__main__":
    main()
