"""Has something made tokmill slower? Ratios against reference work of the same minute, held against those that are recorded.

For each kind of input: the processor time of a whole run (less that of a run of nothing), by that of reading, encoding
and writing alone (floor.py).
Both slow down alike when the machine is busy or slow, and processor time does not count waiting, so the ratio is steadier than any
time. The best of some rounds counts. --record writes the ratios to recorded.json, which belongs to the repository: a change that
makes tokmill slower on purpose records anew, in the same commit. Exit code 1 where a ratio is more than --most percent above.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import floor
import inputs
import watch

RECORDED = Path(__file__).resolve().parent / "recorded.json"
TWEET_BYTES = 40


def tweets(corpus: Path, out: Path, n_bytes: int) -> None:
    """Documents of about forty bytes, made of the corpus's words."""
    rng = random.Random(0)
    words = [word for word in corpus.read_text("utf-8").split() if "<|" not in word]
    size = 0
    with out.open("w", encoding="utf-8") as file:
        while size < n_bytes:
            at = rng.randrange(len(words) - 16)
            size += file.write(
                " ".join(words[at : at + 16])[: rng.randrange(TWEET_BYTES // 2, 3 * TWEET_BYTES // 2)] + "<|endoftext|>"
            )


def ratio(path: Path, work: Path) -> float:
    """Processor time of a run, without its start and end, by that of its parts alone, once."""
    start, _ = floor.tokmill(floor.empty_file(work), work, [])
    run, n_bytes = floor.tokmill(path, work, [])
    parts = sum(floor.part(name, path, work, n_bytes).cpu_s for name in floor.PARTS)
    return (run.cpu_s - start.cpu_s) / parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="text of 0.1 GB and more, `<|endoftext|>` between documents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=float, default=20.0, metavar="PERCENT")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    watch.become_subreaper()
    recorded: dict[str, float] = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="gate-") as directory:
        work = Path(directory)
        inputs.make(args.corpus, work)
        tweets(args.corpus, work / "tweets.txt", 50_000_000)
        for _ in range(args.rounds):
            for kind, name in {**inputs.KINDS, "tweets": "tweets.txt"}.items():
                best[kind] = min(best.get(kind, 1e9), ratio(work / name, work))
    slower = report(best, recorded, args.most)
    if args.record:
        RECORDED.write_text(json.dumps({kind: round(found, 3) for kind, found in best.items()}, indent=1) + "\n")
    elif slower:
        print(f"slower than recorded: {', '.join(slower)}", file=sys.stderr)
        sys.exit(1)


def report(best: dict[str, float], recorded: dict[str, float], most_percent: float) -> list[str]:
    """Prints a table; the kinds that became slower."""
    is_slower: Callable[[str], bool] = lambda kind: best[kind] > recorded.get(kind, 1e9) * (1 + most_percent / 100)  # noqa: E731
    print("| input | processor time by that of its parts | recorded | |\n|---|---:|---:|---|")
    for kind, found in best.items():
        print(f"| {kind} | {found:.3f} | {recorded.get(kind, float('nan')):.3f} | {'**slower**' if is_slower(kind) else ''} |")
    return [kind for kind in best if is_slower(kind)]


if __name__ == "__main__":
    main()
