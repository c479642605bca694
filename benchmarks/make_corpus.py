"""Makes a text corpus of any size whose words vary as those of real text do; documents end with `<|endoftext|>`.

The hard thing: text that repeats itself flatters any tokenizer with a cache of words, so copying a small text many times
measures the cache. Here the text is a chain over the seed: some words of a seed passage, then the passage goes on behind
another occurrence of the last word (word pairs are those of the seed, longer phrases are new). On top of this come words
that the seed does not have, as many as the growth of the seed's own vocabulary foretells (Heaps' law, V = K * n**b), and no
fewer than --new-per-1000: books alone are poorer in new words than the web. Lengths of documents are log-normal. Prints the
curve of distinct words beside the seed's, so that the likeness can be judged. Deterministic by --seed.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pieces
import seed_texts
from novel_words import NovelWords
from numpy.typing import NDArray

LANES, STEPS = 8192, 32
MEAN_RUN_PIECES = 6
LONGEST_RUN_PIECES = 24
SLOT_BYTES = 8 << 20
"""Room behind the seed text for the novel words of one block."""
MEMORY_WORDS = 400_000
"""Novel words that may come back later."""


@dataclass(frozen=True, slots=True)
class Heaps:
    """V(n) = k * n**b: distinct pieces after n pieces."""

    k: float
    b: float

    @classmethod
    def fit(cls, points: list[tuple[int, int, int]]) -> Heaps:
        """Least squares in logarithms over the later half of a growth curve; b from 0.5 to 0.75, as large corpora have it."""
        late = np.log(np.array(points[max(1, len(points) // 2) :], dtype=float)[:, 1:])
        slope = np.polyfit(late[:, 0], late[:, 1], 1)[0] if len(late) > 1 else 0.6
        b = float(np.clip(slope, 0.5, 0.75))
        return cls(float(np.exp(late[-1, 1] - b * late[-1, 0])), b)

    def at(self, n_pieces: float) -> float:
        return float(self.k * max(n_pieces, 0.0) ** self.b)


class SeedText:
    """The seed as pieces, with the places where each piece occurs."""

    def __init__(self, text: bytes) -> None:
        self.buffer = np.zeros(len(text) + SLOT_BYTES, dtype=np.uint8)
        self.buffer[: len(text)] = np.frombuffer(text, dtype=np.uint8)
        self.n_bytes = len(text)
        starts, hashes = self._pieces(text)
        self.starts = np.append(starts, len(text)).astype(np.int32)
        # The index in the low bits: one plain sort gives the order too, 14 times as fast as argsort (34 M pieces). The 38 bits
        # of hash that are left may take two rare words for one, which the chain can bear.
        low = np.uint64((1 << len(hashes).bit_length()) - 1)
        keys = np.sort((hashes & ~low) | np.arange(len(hashes), dtype=np.uint64))
        self.places = (keys & low).astype(np.int32)
        keys &= ~low
        begins = np.concatenate([[True], keys[1:] != keys[:-1]])
        self.ids = np.empty(len(hashes), dtype=np.int32)
        self.ids[self.places] = np.cumsum(begins, dtype=np.int32) - 1
        self.first_place = np.append(np.flatnonzero(begins), len(hashes)).astype(np.int32)
        self.counts = np.diff(self.first_place)
        self._sizes, self._how_many = np.unique(self.counts, return_counts=True)

    @staticmethod
    def _pieces(text: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        hasher, offset, starts, hashes = pieces.PieceHasher(), 0, [], []
        for block in pieces.blocks_at_lines([text[i : i + (1 << 20)] for i in range(0, len(text), 1 << 20)]):
            block_starts, block_hashes = hasher.block(np.frombuffer(block, dtype=np.uint8))
            starts.append(block_starts + offset)
            hashes.append(block_hashes)
            offset += len(block)
        return np.concatenate(starts), np.concatenate(hashes)

    def growth(self, n_points: int) -> list[tuple[int, int, int]]:
        """(bytes, pieces, distinct pieces) at equal steps of pieces, from (0, 0, 0) to the whole."""
        met_first = np.sort(self.places[self.first_place[:-1]])
        steps = np.linspace(0, len(self.ids), n_points + 1).astype(int)
        return [(int(self.starts[n]), int(n), int(np.searchsorted(met_first, n))) for n in steps]

    def expected_distinct(self, n_pieces: float) -> float:
        """Distinct seed pieces among n drawn with replacement by their frequency."""
        return float(np.sum(self._how_many * -np.expm1(-self._sizes * (n_pieces / len(self.ids)))))

    def some_words(self, n: int, rng: np.random.Generator) -> list[str]:
        """ASCII words of the vocabulary, without their space."""
        firsts = self.places[self.first_place[rng.integers(0, len(self.counts), n)]]
        texts = (self.buffer[self.starts[i] : self.starts[i + 1]].tobytes() for i in firsts.tolist())
        return [text.strip().decode() for text in texts if text.strip().isalpha() and text.isascii()]


class Chain:
    """Makes blocks of text. `seen` and `made` keep the account of new words against the law."""

    def __init__(self, seed: SeedText, law: Heaps, floor: float, rng: np.random.Generator) -> None:
        self.seed, self.law, self.floor, self.rng = seed, law, floor, rng
        self.at = rng.integers(0, len(seed.ids), LANES)
        self.novel = NovelWords(seed.some_words(100_000, rng), random.Random(int(rng.integers(2**62))))
        self.lengths = random.Random(int(rng.integers(2**62)))
        self.memory: list[bytes] = []
        self.n_pieces = self.made = 0
        self.until_separator = self._document_bytes()

    def _document_bytes(self) -> int:
        """Median 3 kB, mean about 5 kB."""
        return int(min(max(self.lengths.lognormvariate(math.log(3000), 1.0), 40), 20e6))

    def block(self) -> bytes:
        """The next block: some eight megabytes."""
        begin, length = self._spans()
        where, begin_new, length_new = self._insertions(begin, length)
        begin, length = np.insert(begin, where, begin_new), np.insert(length, where, length_new)
        return self._gather(*self._with_separators(begin, length))

    def _spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Byte spans of the seed in the order of the text: (begin, length), int64, shape (LANES * STEPS,)."""
        seed, rng = self.seed, self.rng
        first = np.empty((LANES, STEPS), dtype=np.int64)
        last = np.empty((LANES, STEPS), dtype=np.int64)
        for step in range(STEPS):
            run = np.minimum(rng.geometric(1 / MEAN_RUN_PIECES, LANES), LONGEST_RUN_PIECES)
            first[:, step] = self.at
            last[:, step] = end = np.minimum(self.at + run, len(seed.ids))
            word = seed.ids[end - 1]
            pick = (rng.random(LANES) * seed.counts[word]).astype(np.int64)
            self.at = (seed.places[seed.first_place[word] + pick].astype(np.int64) + 1) % len(seed.ids)
        self.n_pieces += int((last - first).sum())
        begin = seed.starts[first.ravel()].astype(np.int64)
        return begin, seed.starts[last.ravel()] - begin

    def _insertions(self, begin: NDArray[np.int64], length: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Novel words and where they go: (index of the span they stand before, begin, length)."""
        target = max(self.law.at(self.n_pieces), self.floor * self.n_pieces)
        missing = target - self.seed.expected_distinct(self.n_pieces) - self.made
        n_new = int(np.clip(missing, 0, len(begin) // 4))
        again = random.Random(int(self.rng.integers(2**62))).choices(self.memory, k=n_new) if self.memory else []
        words = [*self.novel.take(n_new), *again]
        self.memory = (self.memory + words[:n_new])[-MEMORY_WORDS:]
        self.made += n_new
        where = self.rng.integers(0, len(begin), len(words))
        close_by = np.minimum(where[: n_new // 2] + self.rng.integers(1, 60, n_new // 2), len(begin) - 1)
        where = np.concatenate([where, close_by])
        # A word is never put into the middle of another: only before a span that begins with white space.
        opens = self.seed.buffer[begin[where]] <= ord(" ")
        begin_new, length_new = self._store(words)
        begin_new = np.concatenate([begin_new, begin_new[: n_new // 2]])
        length_new = np.concatenate([length_new, length_new[: n_new // 2]])
        order = np.argsort(where[opens], kind="stable")
        self.n_pieces += int(opens.sum())
        return where[opens][order], begin_new[opens][order], length_new[opens][order]

    def _store(self, words: list[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Put the words and the separator behind the seed text; where they lie."""
        text = b"".join([seed_texts.SEPARATOR, *words])
        self.seed.buffer[self.seed.n_bytes : self.seed.n_bytes + len(text)] = np.frombuffer(text, dtype=np.uint8)
        length = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        begin = self.seed.n_bytes + len(seed_texts.SEPARATOR) + np.cumsum(length) - length
        return begin, length

    def _with_separators(self, begin: NDArray[np.int64], length: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ends = np.cumsum(length)
        places, at = [], self.until_separator
        while at < ends[-1]:
            places.append(at)
            at += self._document_bytes()
        self.until_separator = int(at - ends[-1])
        where = np.searchsorted(ends, np.array(places, dtype=np.int64)) + 1
        separator = len(seed_texts.SEPARATOR)
        return np.insert(begin, where, self.seed.n_bytes), np.insert(length, where, separator)

    def _gather(self, begin: NDArray[np.int64], length: NDArray[np.int64]) -> bytes:
        ends = np.cumsum(length)
        index = np.repeat((begin - ends + length).astype(np.int32), length)
        index += np.arange(len(index), dtype=np.int32)
        return self.seed.buffer[index].tobytes()


def corpus(chain: Chain, n_bytes: int) -> Iterator[bytes]:
    """The corpus in blocks, n_bytes in all (the last is cut behind a whole character)."""
    while n_bytes > 0:
        block = chain.block()[:n_bytes]
        yield block if len(block) < n_bytes else block.decode("utf-8", "ignore").encode()
        n_bytes -= len(block)


def curve_table(name: str, points: list[tuple[int, int, int]]) -> str:
    """A markdown table of a growth curve."""
    lines = [f"{name}:", "| MB | pieces, M | distinct, k | new per 1000 pieces here |", "|---:|---:|---:|---:|"]
    for before, here in pairwise(points):
        rate = 1000 * (here[2] - before[2]) / max(1, here[1] - before[1])
        lines.append(f"| {here[0] / 1e6:.0f} | {here[1] / 1e6:.1f} | {here[2] / 1e3:.0f} | {rate:.1f} |")
    return "\n".join(lines)


def read_chunks(path: Path) -> Iterator[bytes]:
    """A file, 8 MB at a time."""
    with path.open("rb") as file:
        while chunk := file.read(8 << 20):
            yield chunk


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--gb", type=float, default=1.2, help="size in GB (10**9 bytes)")
    parser.add_argument("--seed-text", nargs="+", type=Path, metavar="FILE", help=".txt, .jsonl, also .gz or .zst")
    parser.add_argument("--text-key", default="text", help="of .jsonl files")
    parser.add_argument(
        "--new-per-1000",
        type=float,
        default=5.0,
        help="new words among 1000, at least (default 5, as web text has at 1 GB; 0: the law alone)",
    )
    parser.add_argument("--seed-limit-mb", type=float, default=250, help="of text to learn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-curve", action="store_true", help="do not measure the corpus that was made")
    return parser.parse_args()


def main() -> None:
    args = options()
    start_s = time.perf_counter()
    text = seed_texts.load(args.seed_text or seed_texts.library_sources(), args.text_key, int(args.seed_limit_mb * 1e6))
    learnt = SeedText(text)
    seed_points = learnt.growth(12)
    law = Heaps.fit(seed_points)
    chain = Chain(learnt, law, args.new_per_1000 / 1000, np.random.default_rng(args.seed))
    print(curve_table(f"seed text, {len(text) / 1e6:.0f} MB", seed_points))
    print(f"law: distinct = {law.k:.2f} * pieces ** {law.b:.3f}; {time.perf_counter() - start_s:.1f} s to learn", flush=True)
    start_s = time.perf_counter()
    with args.out.open("wb") as out:
        for block in corpus(chain, int(args.gb * 1e9)):
            out.write(block)
        n_bytes = out.tell()
    elapsed_s = time.perf_counter() - start_s
    print(f"{args.out}: {n_bytes} bytes in {elapsed_s:.1f} s, {n_bytes / elapsed_s / 1e6:.0f} MB/s", flush=True)
    if not args.no_curve:
        print(curve_table(str(args.out), pieces.growth(read_chunks(args.out), 100_000_000)))


if __name__ == "__main__":
    main()
