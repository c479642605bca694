"""N bytes of text in which no word occurs twice, to standard output: the worst case for a tokenizer that caches words.

A word is a counter sent through a bijection of [0, 26**8) (so none repeats before 208 billion words) and spelled as eight
letters; whole blocks at a time in numpy. `--line-words 0` writes one line without end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np

LETTERS = 8
N_WORDS = 26**LETTERS
MULTIPLIER = 129_140_163_127  # odd and not divisible by 13: prime to 26**8, so that multiplication permutes
BLOCK_WORDS = 1 << 17


def words(first: int, n_words: int, line_words: int) -> bytes:
    """Words number first to first + n_words - 1, each with a space (or at the end of a line, a newline) behind it."""
    index = np.arange(first, first + n_words, dtype=np.uint64)
    value = _times_mod(index, MULTIPLIER, N_WORDS)
    out = np.full((n_words, LETTERS + 1), ord(" "), dtype=np.uint8)
    for column in range(LETTERS):
        value, letter = np.divmod(value, np.uint64(26))
        out[:, column] = letter.astype(np.uint8) + ord("a")
    if line_words:
        out[(index % np.uint64(line_words)) == line_words - 1, LETTERS] = ord("\n")
    return out.tobytes()


def _times_mod(index: np.ndarray, factor: int, modulus: int) -> np.ndarray:
    """index * factor % modulus without overflow, for index < 2**36 and modulus < 2**38, 18 bits of the index at a time."""
    low, high = index & np.uint64((1 << 18) - 1), index >> np.uint64(18)
    high_part = (high * np.uint64(factor % modulus)) % np.uint64(modulus)
    return (((high_part << np.uint64(18)) % np.uint64(modulus)) + low * np.uint64(factor % modulus)) % np.uint64(modulus)


def blocks(n_bytes: int, line_words: int, seed: int = 0) -> Iterator[bytes]:
    """Text of n_bytes bytes in blocks of about 1 MB."""
    first = seed * (1 << 30) % (1 << 36)
    while n_bytes > 0:
        block = words(first, BLOCK_WORDS, line_words)[:n_bytes]
        yield block
        n_bytes -= len(block)
        first += BLOCK_WORDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_bytes", type=lambda text: int(float(text)), help="how much, e.g. 200e6")
    parser.add_argument("--line-words", type=int, default=12, help="words in a line; 0: one line (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="other words (0 to 63)")
    args = parser.parse_args()
    try:
        for block in blocks(args.n_bytes, args.line_words, args.seed):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
