"""`tokmill dedup --near` beside datasketch, rensa and datatrove, on the documents of JSON lines: time, memory, right or not.

    python benchmarks/near_peers.py docs.jsonl
    python benchmarks/near_peers.py corpus.txt

Of a text file (`<|endoftext|>` between documents) the first 2,000 documents are taken, and for half of them a near copy, in which
up to a tenth of the words is another.

Each gets what it takes: tokmill, datasketch and rensa the ids of GPT-2, of which the last two make sets of 5-grams; datatrove the
text, of which it takes words. 14 bands of 8 rows for all. What is right is computed from all pairs: the Jaccard similarity of sets
of 5-grams of ids. A document was removed wrongly if none that stays has a similarity of 0.8 with it, and left if one that stays
and comes before has. Environments are made below benchmarks/data and kept.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import watch

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / "data" / "peers"
THRESHOLD = 0.8
MOST_SHARING = 100
"""An n-gram that more documents have finds no pairs: pairs so alike share rarer ones."""
PEERS = {
    "datasketch": ("datasketch==2.0.0", "numpy"),
    "rensa": ("rensa==0.5.0", "numpy"),
    "datatrove": ("datatrove[io,processing]==0.10.1",),
}


def environment(name: str) -> Path:
    """The interpreter of a peer, in an environment of its own."""
    folder = ENVIRONMENTS / f"near-{name}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS[name]], check=True)
    return python


def alike(ids: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> dict[int, set[int]]:
    """For each document those whose similarity with it reaches the threshold."""
    grams = [{ids[i : i + 5].tobytes() for i in range(b, e - 4)} for b, e in zip(begins.tolist(), ends.tolist(), strict=True)]
    having: dict[bytes, list[int]] = defaultdict(list)
    for number, each in enumerate(grams):
        for gram in each:
            having[gram].append(number)
    pairs = {(a, b) for those in having.values() if 1 < len(those) <= MOST_SHARING for a in those for b in those if a < b}
    found: dict[int, set[int]] = defaultdict(set)
    for a, b in pairs:
        small, large = sorted((len(grams[a]), len(grams[b])))
        if small < THRESHOLD * large:
            continue
        shared = len(grams[a] & grams[b])
        if shared >= THRESHOLD * (small + large - shared):
            found[a].add(b)
            found[b].add(a)
    return found


def judged(removed: set[int], truth: dict[int, set[int]], n: int) -> tuple[int, int]:
    """Documents that were removed wrongly, and that were left."""
    stay = set(range(n)) - removed
    wrong = sum(not truth[number] & stay for number in removed)
    left = sum(any(other < number and other in stay for other in truth[number]) for number in stay)
    return wrong, left


def made_lines(file: Path, n: int = 2000) -> str:
    """JSON lines of the first documents of a text file, and of near copies of half of them."""
    rng = random.Random(1)
    with file.open(errors="replace") as source:
        texts = [text for text in source.read(20_000_000).split("<|endoftext|>")[:n] if len(text) > 200]
    for text in texts[::2]:
        words, share = text.split(" "), rng.uniform(0, 0.1)
        texts.append(" ".join(f"{rng.randrange(10**6)}" if rng.random() < share else word for word in words))
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def tokmill(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tokmill", *map(str, arguments)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines, or text")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "in").mkdir()
        lines = work / "in" / "docs.jsonl"
        if args.file.suffix == ".jsonl":
            lines.symlink_to(args.file.resolve())
        else:
            lines.write_text(made_lines(args.file))
        options = ("--val-fraction", 0, "--keep-empty", "--quiet")
        subprocess.run(tokmill("tokenize", lines, "--out", work / "tokens", *options), check=True)
        ids = np.fromfile(work / "tokens" / "train.bin", "<u2")
        ends = np.flatnonzero(ids == 50256)
        begins = np.concatenate([[0], ends[:-1] + 1])
        truth, n = alike(ids, begins, ends), len(ends)
        ways: dict[str, Callable[[Path], list[str]]] = {
            "tokmill": lambda out: tokmill("dedup", work / "tokens", "--out", out / "u", "--near", THRESHOLD, "--quiet")
        }
        for peer in PEERS:
            script = HERE / "peers" / f"{peer}_near.py"
            source = work / "in" if peer == "datatrove" else work / "tokens" / "train.bin"
            more = lambda out, peer=peer: [str(out / "w")] if peer == "datatrove" else []  # noqa: E731
            ways[peer] = lambda out, p=peer, s=script, i=source, m=more: [
                str(environment(p)),
                str(s),
                str(i),
                str(out / "removed.json"),
                *m(out),
            ]
        print(f"{n:,} documents, {len(ids):,} tokens, {sum(map(len, truth.values())) // 2:,} pairs from {THRESHOLD} on")
        print("| | seconds | of processors | MiB | removed | wrongly | left |\n|---|---:|---:|---:|---:|---:|---:|")
        for way, command in ways.items():
            rounds = []
            for i in range(args.rounds):
                out = work / f"{way}{i}"
                out.mkdir()
                rounds.append(watch.run(command(out)))
            if way == "tokmill":
                listed = map(json.loads, (out / "u" / "removed.jsonl").read_text().splitlines())
                removed = {line["document"] for line in listed}
            else:
                removed = set(json.loads((out / "removed.json").read_text()))
            wrong, left = judged(removed, truth, n)
            best = min(rounds, key=lambda each: each.cpu_s)
            print(
                f"| {way} | {best.elapsed_s:.1f} | {best.cpu_s:.1f} | {best.peak_rss_bytes / 2**20:.0f} "
                f"| {len(removed):,} | {wrong:,} | {left:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
