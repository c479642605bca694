"""Windows per second: tokmill's batches beside nanoGPT's get_batch and the same with numpy, interleaved, on one file of uint16 ids.

get_batch        nanoGPT's function: a new map each batch, random starts, torch.stack of from_numpy of astype(int64), for x and y
get_batch, kept  the same with the map kept open
numpy stack      the same without torch: np.stack of astype(int64) from a map that is kept open
tokmill ...      next() of `tokmill.open(FILE).batches(...)`; with torch, x and y go through torch.from_numpy

All give x and y, int64, shape (batch, block). Every round runs each of them for --seconds, in turn; a ratio is that of one round,
and the table shows the median with the lowest and highest. The file should lie in the page cache: it is read once before.
Without torch installed, the numpy rows alone are shown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np

import tokmill

try:
    import torch
except ImportError:
    torch = None


def tokmill_batches(args: argparse.Namespace, order: str, *, as_tensors: bool) -> Callable[[], Any]:
    """The way that is measured."""
    batches = tokmill.open(args.file, dtype="uint16").batches(batch=args.batch, block=args.block, order=order)
    if not as_tensors:
        return lambda: next(batches)

    def take() -> Any:
        x, y = next(batches)
        return torch.from_numpy(x), torch.from_numpy(y)

    return take


def get_batch(args: argparse.Namespace, *, kept: bool) -> Callable[[], Any]:
    """nanoGPT's, as in its train.py (CPU)."""
    block_size, batch_size = args.block, args.batch
    one = np.memmap(args.file, dtype=np.uint16, mode="r")

    def take() -> Any:
        data = one if kept else np.memmap(args.file, dtype=np.uint16, mode="r")
        ix = torch.randint(len(data) - block_size, (batch_size,))
        x = torch.stack([torch.from_numpy((data[i : i + block_size]).astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy((data[i + 1 : i + 1 + block_size]).astype(np.int64)) for i in ix])
        return x, y

    return take


def numpy_stack(args: argparse.Namespace) -> Callable[[], Any]:
    """get_batch without torch."""
    data = np.memmap(args.file, dtype=np.uint16, mode="r")
    rng = np.random.default_rng(0)

    def take() -> Any:
        starts = rng.integers(0, len(data) - args.block, args.batch)
        x = np.stack([data[i : i + args.block].astype(np.int64) for i in starts])
        y = np.stack([data[i + 1 : i + 1 + args.block].astype(np.int64) for i in starts])
        return x, y

    return take


def ways(args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Those that can run here; peers are compared with the row of tokmill above them."""
    found = {
        "tokmill shuffled": tokmill_batches(args, "shuffled", as_tensors=False),
        "tokmill random": tokmill_batches(args, "random", as_tensors=False),
        "numpy stack": numpy_stack(args),
    }
    if torch is not None:
        found |= {
            "tokmill shuffled, tensors": tokmill_batches(args, "shuffled", as_tensors=True),
            "get_batch": get_batch(args, kept=False),
            "get_batch, kept": get_batch(args, kept=True),
        }
    return found


def rate(take: Callable[[], Any], args: argparse.Namespace) -> float:
    """Windows per second, for --seconds."""
    n_batches = 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < args.seconds:
        for _ in range(20):
            take()
        n_batches += 20
    return n_batches * args.batch / elapsed


def check(found: dict[str, Callable[[], Any]], args: argparse.Namespace) -> None:
    """Every way gives what it should: shapes, dtype, and y one id behind x."""
    for name, take in found.items():
        x, y = (np.asarray(part) for part in take())
        if x.shape != (args.batch, args.block) or x.dtype != np.int64 or not np.array_equal(x[:, 1:], y[:, :-1]):
            raise SystemExit(f"{name} does not give batches of windows")


def table(rates: dict[str, list[float]]) -> Iterator[str]:
    """Markdown; ratios: the shuffled row above, without or with tensors, to this row."""
    yield "| way | windows/s, median | tokmill shuffled is ... times as fast: median (lowest to highest of the rounds) |"
    yield "|---|---:|---|"
    base = ""
    for name, found in rates.items():
        if name.startswith("tokmill shuffled"):
            base = name
        ratios = [ours / theirs for ours, theirs in zip(rates[base], found, strict=True)]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if name != base else ""
        yield f"| {name} | {statistics.median(found):,.0f} | {shown} |"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="uint16 ids without a header, such as train.bin")
    parser.add_argument("--batch", type=int, default=12, help="windows a batch (nanoGPT's default: 12)")
    parser.add_argument("--block", type=int, default=1024, help="ids a window (nanoGPT's default: 1024)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each way in each round")
    return parser.parse_args()


def main() -> None:
    args = options()
    about = machine.description() | {"torch": torch.__version__ if torch is not None else "not installed"}
    np.fromfile(args.file, np.uint8)
    found = ways(args)
    check(found, args)
    rates: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(args.rounds):
        for name, take in found.items():
            rates[name].append(rate(take, args))
    print("\n".join(f"- {name}: {value}" for name, value in about.items()))
    print(f"- batch {args.batch}, block {args.block}, {args.file.stat().st_size / 2e6:.0f} M ids\n")
    print("\n".join(table(rates)))


if __name__ == "__main__":
    main()
