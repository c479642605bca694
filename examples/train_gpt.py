"""Train a small GPT on the CPU from what `tokmill tokenize` wrote: `python examples/train_gpt.py data`. Needs torch.

The loss of training and of the validation side goes to standard output, and to a table and a drawing with --csv and --svg. With
--checkpoint it can be interrupted: the same command goes on with the batch that would have come next.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import tokmill


class Block(nn.Module):  # type: ignore[misc]
    """Attention to what came before, then a small network, each added to its input."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_heads, self.from_heads = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.to_heads(self.before_attention(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.from_heads(mixed.transpose(1, 2).flatten(-2))
        return x + self.network(self.before_network(x))


class Gpt(nn.Module):  # type: ignore[misc]
    """A GPT whose last layer is its embedding."""

    def __init__(self, n_ids: int, n_context: int, width: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.ids, self.places = nn.Embedding(n_ids, width), nn.Embedding(n_context, width)
        self.blocks = nn.Sequential(*(Block(width, n_heads) for _ in range(n_layers)))
        self.last = nn.LayerNorm(width)
        for embedding in (self.ids, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x, y: int64, shape (batch, n_context). Returns the mean loss in nats a token."""
        hidden = self.blocks(self.ids(x) + self.places.weight[: x.shape[1]])
        logits = self.last(hidden) @ self.ids.weight.T
        return functional.cross_entropy(logits.flatten(0, 1), y.flatten())


@torch.no_grad()  # type: ignore[untyped-decorator]
def validate(model: Gpt, data: tokmill.Dataset, args: argparse.Namespace) -> float:
    """Mean loss over the first windows of the validation side, the same ones each time."""
    if len(data.val) <= args.context:
        return math.nan
    batches = data.batches("val", batch=args.batch, block=args.context, order="sequential", epochs=1)
    losses: list[float] = [
        model(torch.from_numpy(x), torch.from_numpy(y)).item() for _, (x, y) in zip(range(10), batches, strict=False)
    ]
    return sum(losses) / len(losses)


def train(data: tokmill.Dataset, args: argparse.Namespace) -> list[tuple[int, float, float]]:
    """Returns step, loss of training since the row before, loss of validation; a row every --every steps."""
    torch.manual_seed(args.seed)
    n_ids = data.tokenizer.n_ids if data.tokenizer else int(data.train[:].max()) + 1
    model = Gpt(n_ids, args.context, args.width, args.layers, args.heads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.95), weight_decay=0.1)
    batches = data.batches("train", batch=args.batch, block=args.context, seed=args.seed)
    rows: list[tuple[int, float, float]] = []
    first = 1
    if args.checkpoint and args.checkpoint.exists():
        saved: dict[str, Any] = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        batches.restore(saved["batches"])
        rows, first = saved["rows"], saved["step"] + 1
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {batches.n_windows:,} windows an epoch, from step {first}")
    losses: list[float] = []
    began = time.perf_counter()
    for step in range(first, args.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, step / 20)
        x, y = next(batches)
        loss = model(torch.from_numpy(x), torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % args.every == 0 or step == args.steps:
            rows.append((step, sum(losses) / len(losses), validate(model, data, args)))
            losses.clear()
            print("step {}: train {:.3f}, val {:.3f}".format(*rows[-1]), f"({time.perf_counter() - began:.0f} s)", flush=True)
            if args.checkpoint:
                save(args.checkpoint, model, optimizer, {"batches": batches.state(), "rows": rows, "step": step})
    return rows


def save(path: Path, model: Gpt, optimizer: torch.optim.Optimizer, more: dict[str, Any]) -> None:
    """Everything to go on from, under its name only when it is complete."""
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), **more}, f"{path}.part")
    os.replace(f"{path}.part", path)


def drawing(rows: list[tuple[int, float, float]]) -> str:
    """The two curves as SVG."""
    left, bottom, width, height = 50, 250, 540, 220
    highest = math.ceil(max(max(row[1:]) for row in rows))
    lowest = math.floor(min(min(row[1:]) for row in rows))

    def place(step: float, loss: float) -> str:
        return f"{left + width * step / rows[-1][0]:.1f},{bottom - height * (loss - lowest) / (highest - lowest):.1f}"

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 300" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="620" height="300" fill="white"/>')
    for loss in range(lowest, highest + 1):
        y = float(place(0, loss).split(",")[1])
        parts.append(
            f'<path d="M{left} {y}h{width}" stroke="#ddd"/><text x="{left - 8}" y="{y + 4}" text-anchor="end">{loss}</text>'
        )
    for step in range(0, rows[-1][0] + 1, max(1, rows[-1][0] // 5)):
        x = place(step, lowest).split(",")[0]
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{step}</text>')
    for column, name, color in ((1, "train", "#1f77b4"), (2, "val", "#d62728")):
        points = " ".join(place(row[0], row[column]) for row in rows)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="560" y="{30 + 16 * column}" fill="{color}" text-anchor="end">{name}</text>')
    parts.append(f'<text x="{left + width / 2}" y="290" text-anchor="middle">step</text>')
    parts.append('<text x="8" y="18">loss, nats a token</text>')
    return "\n".join([*parts, "</svg>", ""])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="what was --out of tokmill tokenize")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=20, help="steps between two rows")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--svg", type=Path)
    return parser.parse_args()


def main() -> None:
    args = options()
    with tokmill.open(args.data) as data:
        rows = train(data, args)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["step", "train_loss", "val_loss"])
            table.writerows((step, f"{loss:.4f}", f"{val:.4f}") for step, loss, val in rows)
    if args.svg:
        args.svg.write_text(drawing(rows))


if __name__ == "__main__":
    try:
        main()
    except tokmill.TokmillError as error:
        sys.exit(f"{error}")
