"""Text to shuffled ids: tokmill and the usual ways, each in an environment of its own, in turns on the same documents.

FILE is text with <|endoftext|> between documents, of which the first --slice-mb are taken, as JSON lines. Time, processor time,
peaks of memory and disk are those of `against_peers.py`. Then the documents are held against those of tiktoken: is each there once,
and is the order random: the correlation of a document's place before and after, which is within 3 / sqrt(n) of 0 for a random
order, and how many neighbours are still neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import machine
import numpy as np
import watch
from against_peers import ENVIRONMENTS, HERE, SEPARATOR, TOKENIZERS, Way, as_json_lines, environment, ids_of, run_once, slice_of
from reference import EOT, gpt2, text_documents


def ways(tokenizer: Path) -> list[Way]:
    """All of them, tokmill first."""

    def script(name: str, *options: str) -> Callable[[Path, Path], list[str]]:
        return lambda file, out: [str(HERE / "peers" / f"{name}.py"), str(file), str(out), "--shuffle", "1", *options]

    def tokmill(file: Path, out: Path) -> list[str]:
        return ["-m", "tokmill", "tokenize", str(file), "--out", str(out), "-q", "--val-fraction", "0", "--shuffle", "1"]

    def shuf(file: Path, out: Path) -> list[str]:
        lines = out.with_suffix(".jsonl")
        tokenize = ["tokenize", str(lines), "--out", str(out), "-q", "--val-fraction", "0"]
        run = "import subprocess as s, sys; s.run(['shuf', sys.argv[1], '-o', sys.argv[2]], check=True); "
        run += "s.run([sys.executable, '-m', 'tokmill', *sys.argv[3:]], check=True)"
        return ["-c", run, str(file), str(lines), *tokenize]

    packages = ("datasets==5.2.0", "tiktoken==0.14.0", "numpy", "xxhash")
    trove = ("datatrove[processing]==0.10.1", "tokenizers", "orjson")
    return [
        Way("tokmill tokenize --shuffle", "jsonl", tokmill, "train.bin"),
        Way("GNU shuf, then tokmill tokenize", "jsonl", shuf, "train.bin"),
        Way("datasets shuffle + map", "jsonl", script("datasets_memmap"), "train.bin", packages),
        Way(
            "datatrove tokenizer + merger",
            "jsonl",
            script("datatrove_documents", "--tokenizer", str(tokenizer)),
            "merged/*.ds",
            trove,
        ),
    ]


def documents_of(ids: np.ndarray) -> list[bytes]:
    ends = (np.flatnonzero(ids == EOT) + 1).tolist()
    return [ids[a:b].tobytes() for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def compared(found: list[bytes], wanted: list[bytes]) -> str:
    """How the documents stand to the reference's, in a few words."""
    missing, extra = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
    if missing or extra:
        return f"**{missing.total():,} documents lost, {extra.total():,} that are not in the text**"
    place = {document: number for number, document in enumerate(wanted)}
    order = np.array([place[document] for document in found])
    correlation = float(np.corrcoef(np.arange(len(order)), order)[0, 1])
    neighbours = int(np.count_nonzero(np.diff(order) == 1))
    is_random = abs(correlation) < 3 / len(order) ** 0.5 and neighbours < 8
    return f"each once, {'random' if is_random else '**not random**'}: correlation {correlation:+.4f}, {neighbours} neighbours"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slice-mb", type=float, default=50)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="ways whose names begin so")
    return parser.parse_args()


def main() -> None:
    args = options()
    watch.become_subreaper()
    about = machine.description()
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    tokenizer = ENVIRONMENTS / "gpt2.json"
    found = [way for way in ways(tokenizer) if not args.only or way.name.startswith(tuple(args.only))]
    if any("datatrove" in way.name for way in found):
        maker = Way("tokenizers", "", lambda *_: [], requirements=TOKENIZERS)
        watch.run([environment(maker), str(HERE / "peers/gpt2_tokenizer_json.py"), str(tokenizer)])
    with tempfile.TemporaryDirectory(prefix="peers-") as directory:
        work = Path(directory)
        text = slice_of(args.file, work / "slice.txt", int(args.slice_mb * 1e6))
        file = as_json_lines(text, work / "slice.jsonl")
        encoding = gpt2()
        documents = [each for each in text_documents(text, SEPARATOR) if each]
        wanted = [np.array([*encoding.encode_ordinary(each.decode()), EOT], np.uint16).tobytes() for each in documents]
        n_bytes = sum(map(len, documents))
        for number in range(args.rounds):
            for way in found[number % len(found) :] + found[: number % len(found)]:
                outcome, disk_bytes, out = run_once(way, file, work)
                if way.failed:
                    continue
                way.rounds.append(outcome)
                way.disk_bytes.append(disk_bytes)
                way.equality = compared(documents_of(ids_of(way, out)), wanted)
                print(f"{way.name}: {outcome.elapsed_s:.2f} s", file=sys.stderr, flush=True)
    print("\n".join(f"- {name}: {value}" for name, value in about.items()))
    print(f"- {n_bytes / 1e6:,.0f} MB of text, {len(wanted):,} documents\n")
    print(
        "| way | s | processor s | peak memory MB | peak disk by text | the documents |", "|---|---:|---:|---:|---:|---|", sep="\n"
    )
    for way in found:
        if way.failed:
            print(f"| {way.name} | failed: {way.failed} | | | | |")
            continue
        cpu_s = statistics.median(outcome.cpu_s for outcome in way.rounds)
        peak = max(outcome.peak_rss_bytes for outcome in way.rounds) / 1e6
        disk = max(way.disk_bytes) / n_bytes
        print(f"| {way.name} | {way.median_s:.1f} | {cpu_s:.1f} | {peak:,.0f} | {disk:.2f} | {way.equality} |")


if __name__ == "__main__":
    main()
