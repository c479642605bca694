"""Train the smallest of language models, with numpy alone: `python examples/train_bigram.py data`. A few seconds on any machine.

It guesses each id from the one before it, through 32 numbers an id. Only the most frequent ids are told apart, the rest are one.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

import tokmill

WIDTH, RATE = 32, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="--out of tokmill tokenize")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--ids", type=int, default=1000, help="how many of the most frequent ids are told apart")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tokmill.open(options.directory) as data:
        counts = np.bincount(data.train[:1_000_000])
        frequent = np.argsort(counts)[::-1][: options.ids]
        known = np.full(1 << 17, len(frequent))
        known[frequent] = np.arange(len(frequent))
        n_ids = len(frequent) + 1
        into, out = rng.normal(0, 0.1, (n_ids, WIDTH)), rng.normal(0, 0.1, (WIDTH, n_ids))
        batches = data.batches("train", batch=8, block=32, seed=0)
        losses = []
        for step in range(options.steps):
            x, y = (known[part].ravel() for part in next(batches))
            hidden = into[x]
            logits = hidden @ out
            logits -= logits.max(axis=1, keepdims=True)
            chances = np.exp(logits)
            chances /= chances.sum(axis=1, keepdims=True)
            losses.append(-np.log(chances[np.arange(len(y)), y]).mean())
            chances[np.arange(len(y)), y] -= 1
            gradient = chances / len(y)
            change = gradient @ out.T
            out -= RATE * hidden.T @ gradient
            np.subtract.at(into, x, 10 * RATE * change)
            if step % max(1, options.steps // 6) == 0 or step == options.steps - 1:
                print(f"step {step:4d}: loss {np.mean(losses[-20:]):.3f}")
    print(f"the loss fell from {np.mean(losses[:20]):.3f} to {np.mean(losses[-20:]):.3f}")


if __name__ == "__main__":
    try:
        main()
    except tokmill.TokmillError as error:
        sys.exit(str(error))
