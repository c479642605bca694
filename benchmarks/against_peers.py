"""tokmill and every peer that installs, each in an environment of its own, in interleaved rounds on the same documents.

The documents are those of FILE (text, `<|endoftext|>` between them), as text for those who read text and as JSON lines for those
who read these. Peers that need minutes for a gigabyte get the first --slice-mb only; rates are bytes of text a second of what each
read. First each one runs on the slice, untimed, and its ids are held against those of tiktoken, document by document, with the
end-of-text id behind each. Then timed rounds, the order turned by one each time: from the start of the process to its end, with the
processor time, the peak of resident memory and of disk (its output and whatever it leaves beside it) of all its processes.

Environments are made below benchmarks/data and kept. Writes a markdown table; with --svg a chart, with --json everything.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import chart
import machine
import numpy as np
import watch
from reference import EOT, gpt2, text_documents
from speed import warm

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / "data" / "peers"
SEPARATOR = b"<|endoftext|>"
TOKENIZERS = ("tokenizers==0.23.3", "numpy")


@dataclass(slots=True)
class Way:
    """One way to do it. is_slow: gets the slice. requirements: of its environment; none: that of this script. ids: glob of the
    files below its output that hold uint16 ids, in the order of their names.
    """

    name: str
    reads: str
    command: Callable[[Path, Path], list[str]]
    ids: str = ""
    requirements: tuple[str, ...] = ()
    is_slow: bool = False
    remark: str = ""
    equality: str = ""
    failed: str = ""
    rounds: list[watch.Outcome] = field(default_factory=list)
    disk_bytes: list[int] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return statistics.median(outcome.elapsed_s for outcome in self.rounds)


def environment(way: Way) -> str:
    """The interpreter of its environment, made if it is not there."""
    if not way.requirements:
        return sys.executable
    folder = ENVIRONMENTS / way.name.split()[0].lower()
    stamp, wanted = folder / ".installed", "\n".join(way.requirements)
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *way.requirements], check=True)
        stamp.write_text(wanted)
    return str(folder / "bin/python")


def ways(tokenizer: Path) -> list[Way]:
    """All of them, tokmill first."""

    def script(name: str, *options: str) -> Callable[[Path, Path], list[str]]:
        return lambda file, out: [str(HERE / "peers" / f"{name}.py"), str(file), str(out), *options]

    def tokmill(file: Path, out: Path) -> list[str]:
        return ["-m", "tokmill", "tokenize", str(file), "--out", str(out), "-q", "--val-fraction", "0"]

    def tokbin(file: Path, out: Path) -> list[str]:
        options = ["--tokenizer", str(tokenizer), "--eos-token", SEPARATOR.decode()]
        return [str(ENVIRONMENTS / "tokbin/bin/tokbin"), "build", str(out / "x"), "--from-jsonl", str(file), *options]

    json_of = ("--tokenizer", str(tokenizer))
    return [
        Way("tokmill", "txt", tokmill, "train.bin"),
        Way("tokmill", "jsonl", tokmill, "train.bin"),
        Way("gigatoken encode_files + tofile", "txt", script("gigatoken_encode_files"), remark="no end-of-text ids"),
        Way("gigatoken encode_files + tofile", "jsonl", script("gigatoken_encode_files"), remark="no end-of-text ids"),
        Way("streaming tiktoken", "txt", script("streaming_tiktoken"), is_slow=True, remark="cuts every million characters"),
        Way(
            "datasets + memmap (nanoGPT)",
            "jsonl",
            script("datasets_memmap"),
            "train.bin",
            ("datasets==5.2.0", "tiktoken==0.14.0", "numpy", "xxhash"),
            is_slow=True,
        ),
        Way("tokenizers batches", "jsonl", script("hf_batches", *json_of), "", TOKENIZERS, is_slow=True),
        Way(
            "datatrove",
            "jsonl",
            script("datatrove_documents", *json_of),
            "tokens/*.ds",
            ("datatrove[processing]==0.10.1", "tokenizers", "orjson"),
            is_slow=True,
        ),
        Way("tokbin", "jsonl", tokbin, "x/train-*.bin", ("tokbin==0.1.0",), is_slow=True),
    ]


class Disk(threading.Thread):
    """The most bytes on disk below a directory while it runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.most_bytes = 0
        self._folder, self._done = folder, threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.2):
            self.look()

    def look(self) -> None:
        total = 0
        for folder, _, names in os.walk(self._folder):
            for name in names:
                try:
                    total += os.lstat(Path(folder, name)).st_blocks * 512
                except FileNotFoundError:
                    continue
        self.most_bytes = max(self.most_bytes, total)

    def stop(self) -> int:
        self.look()
        self._done.set()
        self.join()
        return self.most_bytes


def run_once(way: Way, file: Path, work: Path) -> tuple[watch.Outcome, int, Path]:
    """One fresh process with a fresh output in an otherwise empty directory."""
    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    disk = Disk(folder)
    os.sync()
    disk.start()
    env = watch.checkout_env() if not way.requirements else dict(os.environ)
    env |= {"TMPDIR": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    command = way.command(file, folder / "out")
    command = command if command[0].startswith(str(ENVIRONMENTS)) else [environment(way), *command]
    with (work / "stderr").open("w+b") as said:
        outcome = watch.run(command, env=env, stderr=said.fileno())
        said.seek(0)
        last = said.read().decode(errors="replace").strip().splitlines()[-1:]
    if outcome.exit_code:
        way.failed = f"exit code {outcome.exit_code}: {' '.join(last)[:160]}"
    return outcome, disk.stop(), folder / "out"


def ids_of(way: Way, out: Path) -> np.ndarray:
    files = sorted(out.glob(way.ids)) if way.ids else [out]
    return np.concatenate([np.fromfile(file, dtype=np.uint16) for file in files])


def compared(found: np.ndarray, reference: np.ndarray) -> str:
    """How the ids stand to the reference's, in a few words."""
    if np.array_equal(found, reference):
        return "equal"
    if np.array_equal(found[found != EOT], reference[reference != EOT]):
        return f"equal but for end-of-text ids ({len(reference) - len(found):+,} fewer)".replace("+", "")
    same = min(len(found), len(reference))
    first = np.flatnonzero(found[:same] != reference[:same])[:1]
    where = f"from token {int(first[0]):,} on" if len(first) else "at the end"
    return f"**differs** {where}; {len(found):,} of {len(reference):,} tokens"


def check(found: list[Way], files: dict[str, Path], work: Path) -> None:
    """Each way once on the slice; its ids against tiktoken's."""
    encoding = gpt2()
    parts = [[*encoding.encode_ordinary(one.decode()), EOT] for one in text_documents(files["txt"], SEPARATOR) if one]
    reference = np.fromiter((i for part in parts for i in part), np.uint16)
    for way in found:
        *_, out = run_once(way, files[way.reads], work)
        way.equality = way.failed or compared(ids_of(way, out), reference)
        print(f"{way.name} ({way.reads}): {way.equality}", file=sys.stderr, flush=True)


def documents(file: Path) -> Iterator[bytes]:
    return (one for one in text_documents(file, SEPARATOR) if one)


def as_json_lines(file: Path, out: Path) -> Path:
    with out.open("w", encoding="utf-8") as lines:
        for one in documents(file):
            lines.write(json.dumps({"text": one.decode()}, ensure_ascii=False) + "\n")
    return out


def slice_of(file: Path, out: Path, n_bytes: int) -> Path:
    """The first documents, of about so many bytes."""
    size = 0
    with out.open("wb") as part:
        for one in documents(file):
            part.write((SEPARATOR if size else b"") + one)
            size += len(one)
            if size >= n_bytes:
                break
    return out


def text_size(file: Path) -> int:
    return sum(map(len, documents(file)))


def measure(found: list[Way], files: dict[bool, dict[str, Path]], n_rounds: int, work: Path) -> None:
    for number in range(n_rounds):
        shift = number % len(found)
        for way in [way for way in found[shift:] + found[:shift] if not way.failed]:
            outcome, disk_bytes, _ = run_once(way, files[way.is_slow][way.reads], work)
            if way.failed:
                continue
            way.rounds.append(outcome)
            way.disk_bytes.append(disk_bytes)
            print(f"round {number + 1}: {way.name} ({way.reads}) {outcome.elapsed_s:.2f} s", file=sys.stderr, flush=True)


def rows(found: list[Way], sizes: dict[bool, int]) -> list[dict[str, object]]:
    """What is told of each way that ran."""
    return [
        {
            "name": way.name,
            "reads": way.reads,
            "text_bytes": sizes[way.is_slow],
            "elapsed_s": [round(outcome.elapsed_s, 3) for outcome in way.rounds],
            "mb_per_s": sizes[way.is_slow] / way.median_s / 1e6,
            "cpu_s": statistics.median(outcome.cpu_s for outcome in way.rounds),
            "peak_rss_bytes": max(outcome.peak_rss_bytes for outcome in way.rounds),
            "peak_disk_bytes": max(way.disk_bytes),
            "ids": way.equality,
            "remark": way.remark,
        }
        for way in found
        if way.rounds
    ]


def table(found: list[dict[str, object]], failed: list[Way]) -> str:
    lines = [
        "| way | reads | MB of text | MB/s | processor s per GB | peak memory MB | peak disk by text | ids beside tiktoken's |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in found:
        size = float(row["text_bytes"])  # type: ignore[arg-type]
        figures = f"{size / 1e6:,.0f} | {row['mb_per_s']:,.0f} | {float(row['cpu_s']) / size * 1e9:.1f}"  # type: ignore[arg-type]
        sizes = f"{int(row['peak_rss_bytes']) / 1e6:,.0f} | {int(row['peak_disk_bytes']) / size:.2f}"  # type: ignore[call-overload]
        ids = "; ".join(filter(None, [str(row["ids"]), str(row["remark"])]))
        lines.append(f"| {row['name']} | {row['reads']} | {figures} | {sizes} | {ids} |")
    lines += [f"| {way.name} | {way.reads} | failed: {way.failed} | | | | | |" for way in failed]
    return "\n".join(lines)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="text with <|endoftext|> between documents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slice-mb", type=float, default=50)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="ways whose names begin so")
    parser.add_argument("--work", type=Path, help="directory for inputs and outputs (default: a temporary one)")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = options()
    watch.become_subreaper()
    about = machine.description()
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    tokenizer = ENVIRONMENTS / "gpt2.json"
    found = [way for way in ways(tokenizer) if not args.only or way.name.startswith(tuple(args.only))]
    maker = Way("tokenizers", "", lambda *_: [], requirements=TOKENIZERS)
    subprocess.run([environment(maker), HERE / "peers/gpt2_tokenizer_json.py", tokenizer], check=True)
    for way in found:
        environment(way)
    with tempfile.TemporaryDirectory(dir=args.work, prefix="peers-") as directory:
        work = Path(directory)
        part = slice_of(args.file, work / "slice.txt", int(args.slice_mb * 1e6))
        whole = {"txt": args.file, "jsonl": as_json_lines(args.file, work / "whole.jsonl")}
        files = {False: whole, True: {"txt": part, "jsonl": as_json_lines(part, work / "slice.jsonl")}}
        for file in (*whole.values(), *files[True].values()):
            warm(file)
        check(found, files[True], work)
        measure(found, files, args.rounds, work)
        told = rows(found, {is_slow: text_size(files[is_slow]["txt"]) for is_slow in files})
    print("\n".join(f"- {name}: {value}" for name, value in about.items()))
    print(f"\n{table(told, [way for way in found if way.failed])}")
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "file": args.file.name, "ways": told}, indent=1))
    if args.svg:
        bars = [(f"{row['name']} ({row['reads']})", float(row["mb_per_s"])) for row in told]  # type: ignore[arg-type]
        args.svg.write_text(chart.bars(bars, "MB of text a second"))


if __name__ == "__main__":
    main()
