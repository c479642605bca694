"""Plan sequences for millions of documents from their lengths alone, and give each its place: time, memory, padding.

    python benchmarks/packing.py --documents 100_000_000 --sequence 2048 8192

Lengths are log-normal, like those of web pages in tokens. For a million of them, best-fit decreasing is also done by hand, document
by document, and the number of sequences compared.
"""

from __future__ import annotations

import argparse
import resource
import time
from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np

from tokmill.core.keys import key_of, keys_at
from tokmill.core.permutation import permute
from tokmill.derive.bins import Bins

CHUNK = 1 << 20


def lengths(n: int, sequence: int) -> Iterator[np.ndarray]:
    """Pieces of n documents: those longer than a sequence as full sequences and a rest."""
    rng = np.random.default_rng(0)
    for begin in range(0, n, CHUNK):
        found = np.exp(rng.normal(6.3, 1.2, min(CHUNK, n - begin))).astype(np.int64) + 2
        full = np.repeat(sequence, int((found // sequence).sum()))
        yield np.concatenate([full, found[found % sequence > 0] % sequence])


def by_hand(items: np.ndarray, size: int) -> int:
    rooms: list[int] = []
    n = 0
    for length in np.sort(items)[::-1].tolist():
        at = bisect_left(rooms, length)
        room = rooms.pop(at) if at < len(rooms) else size
        n += room == size
        if room > length:
            insort(rooms, room - length)
    return n


def measure(n: int, sequence: int, *, places: bool) -> str:
    counts, n_pieces = np.zeros(sequence + 1, np.int64), 0
    for some in lengths(n, sequence):
        counts += np.bincount(some, minlength=sequence + 1)
    began, began_cpu = time.perf_counter(), time.process_time()
    bins = Bins(counts)
    planned, planned_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    n_pieces = int(counts.sum())
    padding = 1 - float((counts * np.arange(sequence + 1)).sum()) / (bins.n_bins * sequence)
    placed = "-"
    if places:
        taken, spent = np.zeros(sequence + 1, np.int64), 0.0
        for some in lengths(n, sequence):
            began_cpu = time.process_time()
            order = np.argsort(some, kind="stable")
            ordered = some[order]
            firsts = np.searchsorted(ordered, ordered)
            ranks = np.arange(len(some)) - firsts + taken[ordered]
            taken += np.bincount(some, minlength=sequence + 1)
            chosen = permute(
                ranks.astype(np.uint64), counts[ordered].astype(np.uint64), keys_at(ordered.astype(np.uint64), key_of(1, 4, 0))
            )
            found = bins.places(ordered, chosen.astype(np.int64))
            permute(found.bins.astype(np.uint64), bins.n_bins, np.repeat(key_of(1, 5, 0), len(some)))
            spent += time.process_time() - began_cpu
        placed = f"{spent / n_pieces * 1e6:.2f}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    row = (
        f"{n:,}",
        f"{sequence:,}",
        f"{bins.n_bins:,}",
        f"{padding:.4%}",
        f"{planned:.2f} ({planned_cpu:.2f})",
        placed,
        f"{peak:,}",
    )
    return f"| {' | '.join(row)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000_000)
    parser.add_argument("--sequence", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--places", action="store_true", help="also give each its place")
    args = parser.parse_args()
    for sequence in args.sequence:
        items = np.concatenate(list(lengths(1_000_000, sequence)))
        hand, planned = by_hand(items, sequence), Bins(np.bincount(items, minlength=sequence + 1)).n_bins
        print(f"a million documents, sequences of {sequence:,}: {hand:,} by hand, {planned:,} planned")
    print("| documents | sequence | sequences | padding | plan, s (of processor) | a piece's place, us | peak, MiB |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for sequence in args.sequence:
        print(measure(args.documents, sequence, places=args.places), flush=True)


if __name__ == "__main__":
    main()
