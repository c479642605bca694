"""Draw training batches from what `tokmill tokenize` wrote, as nanoGPT does: `python examples/batches.py data`."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

import tokmill

Ids = NDArray[np.uint16] | NDArray[np.uint32]
N_CONTEXT = 64


def batch(ids: Ids, n_rows: int, n_context: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random windows and, for each place, the id that comes next. Returns two arrays, int64, shape (n_rows, n_context)."""
    starts = rng.integers(0, len(ids) - n_context, n_rows)
    windows = np.stack([ids[i : i + n_context + 1] for i in starts]).astype(np.int64)
    return windows[:, :-1], windows[:, 1:]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/batches.py DIR, where DIR was --out of tokmill tokenize")
    with tokmill.open(sys.argv[1]) as data:
        for side in ("train", "val"):
            ids = data.side(side)
            if len(ids) <= N_CONTEXT:
                # A small corpus may have no validation side at all.
                print(f"{side}: {len(ids)} tokens are too few for a window of {N_CONTEXT + 1}")
                continue
            x, y = batch(ids, n_rows=4, n_context=N_CONTEXT, rng=np.random.default_rng(0))
            print(f"{side}: x {x.shape}, y {y.shape}")
            print(data.decode(x[0].tolist()))


if __name__ == "__main__":
    try:
        main()
    except tokmill.TokmillError as error:
        sys.exit(f"{error}")
