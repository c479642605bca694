"""Any amount of varied text, fast, to standard output: for measuring what tens of gigabytes through a pipe do.

`make_corpus.py` makes better text, at some 70 MB/s. Here it makes a pool once; the text is the pool's documents in ever new
orders (1.5 GB/s), in which words of eight letters give way to words never seen before, half of them twice: as many as the growth
of the vocabulary foretells (Heaps' law of the seed text, and no fewer than --new-per-1000). So the text repeats itself in phrases,
which a tokenizer does not remember, and not in words, which it does. Deterministic by --seed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import make_corpus
import numpy as np
import pieces
import seed_texts
import unique_words

BLOCK_BYTES = 1 << 20
_WORD = re.compile(rb" [A-Za-z]{%d}(?![0-9A-Za-z\x80-\xff])" % unique_words.LETTERS)
_PIPE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """text: with the separator behind it. places: int64, where a word of eight ASCII letters begins. n_pieces: about."""

    text: bytes
    places: np.ndarray
    n_pieces: int


class VariedText:
    """Makes blocks of about a megabyte."""

    def __init__(self, pool: Iterable[bytes], law: make_corpus.Heaps, floor: float, seed: int) -> None:
        """pool: documents without separator; floor: new words by words, at least."""
        self.documents = [_document(text) for text in pool]
        self.law, self.floor, self.rng = law, floor, np.random.default_rng(seed)
        self.known = law.at(sum(document.n_pieces for document in self.documents))
        self.n_pieces = self.n_new = 0
        self.first = seed * (1 << 30) % (1 << 36)

    def blocks(self, n_bytes: int) -> Iterator[bytes | memoryview]:
        """Text of n_bytes bytes, or up to three fewer: it ends behind a whole character."""
        mean = sum(len(document.text) for document in self.documents) / len(self.documents)
        while n_bytes > 0:
            chosen = [self.documents[i] for i in self.rng.integers(0, len(self.documents), max(1, int(BLOCK_BYTES / mean)))]
            block = self._block(chosen)
            yield block if len(block) <= n_bytes else bytes(block[:n_bytes]).decode("utf-8", "ignore").encode()
            n_bytes -= len(block)

    def _block(self, chosen: list[Document]) -> memoryview:
        text = np.frombuffer(bytearray().join([document.text for document in chosen]), dtype=np.uint8)
        begins = np.cumsum([0, *(len(document.text) for document in chosen[:-1])])
        places = np.concatenate([document.places + begin for document, begin in zip(chosen, begins, strict=True)])
        self.n_pieces += sum(document.n_pieces for document in chosen)
        n_new = int(max(self.law.at(self.n_pieces) - self.known, self.floor * self.n_pieces) - self.n_new)
        n_new = max(0, min(n_new, len(places) * 2 // 3))
        words = np.frombuffer(unique_words.words(self.first, n_new, 0), np.uint8).reshape(n_new, -1)[:, : unique_words.LETTERS]
        words = np.concatenate([words, words[: n_new // 2]])
        at = self.rng.choice(places, len(words), replace=False, shuffle=True)
        text[at[:, None] + np.arange(unique_words.LETTERS)] = words
        self.first += n_new
        self.n_new += n_new
        return text.data


def _document(text: bytes) -> Document:
    places = np.array([match.start() + 1 for match in _WORD.finditer(text)], dtype=np.int64)
    return Document(text + seed_texts.SEPARATOR, places, len(pieces.starts_of(np.frombuffer(text, dtype=np.uint8))))


def learn(seed_text: list[Path], pool_bytes: int, new_per_1000: float, seed: int) -> VariedText:
    """From texts (default: the library's sources) to endless text."""
    seed_points = make_corpus.SeedText(seed_texts.load(seed_text or seed_texts.library_sources(), "text", 100_000_000))
    law = make_corpus.Heaps.fit(seed_points.growth(12))
    chain = make_corpus.Chain(seed_points, law, new_per_1000 / 1000, np.random.default_rng(seed))
    pool = b"".join(make_corpus.corpus(chain, pool_bytes)).split(seed_texts.SEPARATOR)
    return VariedText([text for text in pool if len(text) < BLOCK_BYTES and text], law, new_per_1000 / 1000, seed)


def write(text: VariedText, n_bytes: int) -> None:
    """To standard output."""
    out = sys.stdout.fileno()
    with contextlib.suppress(OSError):  # it may be a file
        fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    for block in text.blocks(n_bytes):
        sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_bytes", type=lambda text: int(float(text)), help="how much, e.g. 20e9")
    parser.add_argument("--seed-text", nargs="+", type=Path, default=[], metavar="FILE", help=".txt, .jsonl, also .gz or .zst")
    parser.add_argument("--pool-mb", type=float, default=64)
    parser.add_argument("--new-per-1000", type=float, default=5.0, help="new words among 1000, at least (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="other text (0 to 63)")
    args = parser.parse_args()
    try:
        write(learn(args.seed_text, int(args.pool_mb * 1e6), args.new_per_1000, args.seed), args.n_bytes)
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
