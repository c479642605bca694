"""Draw training batches from what `tokmill tokenize` wrote: `python examples/batches.py data`."""

from __future__ import annotations

import json
import sys

import tokmill

N_CONTEXT = 64


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/batches.py DIR, where DIR was --out of tokmill tokenize")
    with tokmill.open(sys.argv[1]) as data:
        for side in ("train", "val"):
            n_tokens = len(data.side(side))
            if n_tokens <= N_CONTEXT:
                # A small corpus may have no validation side at all.
                print(f"{side}: {n_tokens} tokens are too few for a window of {N_CONTEXT + 1}")
                continue
            # x and y: int64, shape (4, N_CONTEXT), y one id further on; torch.from_numpy takes them as they are.
            batches = data.batches(side, batch=4, block=N_CONTEXT, seed=0)
            x, y = next(batches)
            print(f"{side}: x {x.shape}, y {y.shape}, {batches.n_windows} windows an epoch")
            print(data.decode(x[0].tolist()))

            # The state goes into the checkpoint; whoever restores it gets the batch that would have come next.
            checkpoint = json.dumps(batches.state())
            expected, _ = next(batches)
            again = data.batches(side, batch=4, block=N_CONTEXT, seed=0)
            again.restore(json.loads(checkpoint))
            print("the same after restoring:", (next(again)[0] == expected).all())


if __name__ == "__main__":
    try:
        main()
    except tokmill.TokmillError as error:
        sys.exit(f"{error}")
