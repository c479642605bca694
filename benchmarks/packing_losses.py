"""Train a small GPT at equal tokens on windows end to end, packed documents, and rows that begin with a document and are cropped.

    python benchmarks/packing_losses.py books.txt --work DIR --csv docs/packing_losses.csv --svg docs/packing_losses.svg

Needs torch; some ten minutes of processor time. Documents are stretches of paragraphs, in length like those of the web; the ids
are those of the 2,047 most frequent tokens, for a small last layer. Each way has the same model and first weights, and sees as many
tokens in as many steps; the seeds change weights and order. Cropped rows are filled best-fit from a buffer, then with the beginning
of the shortest document, whose rest is lost, as nanochat does. Two losses are told, on the same validation documents: each document
by itself from its beginning, and windows end to end.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import tokmill

N = 256
BATCH = 8
WIDTH, LAYERS, HEADS = 128, 2, 4
N_IDS = 2048
WAYS = ("windows", "cropped", "packed")
COLORS = {"windows": "#d62728", "cropped": "#ff7f0e", "packed": "#1f77b4"}


class Gpt(nn.Module):  # type: ignore[misc]
    """Ids, places and which document each is of; logits."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.places = nn.Embedding(N_IDS, WIDTH), nn.Embedding(N, WIDTH)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "a": nn.LayerNorm(WIDTH),
                    "qkv": nn.Linear(WIDTH, 3 * WIDTH),
                    "out": nn.Linear(WIDTH, WIDTH),
                    "b": nn.LayerNorm(WIDTH),
                    "mlp": nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)),
                }
            )
            for _ in range(LAYERS)
        )
        self.last = nn.LayerNorm(WIDTH)
        for embedding in (self.ids, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, x: torch.Tensor, places: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden = self.ids(x) + self.places(places)
        for layer in self.layers:
            q, k, v = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in layer["qkv"](layer["a"](hidden)).chunk(3, -1))
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            hidden = hidden + layer["out"](mixed.transpose(1, 2).flatten(-2))
            hidden = hidden + layer["mlp"](layer["b"](hidden))
        return self.last(hidden) @ self.ids.weight.T


Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
"""x, labels, places, and the document of each; None: attention ends nowhere."""


def tensors(batch: Batch, table: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x, y, places, document = batch
    mask = None
    if document is not None:
        which = torch.from_numpy(document)
        mask = (which[:, :, None] == which[:, None, :]).tril()[:, None]
    labels = np.where(y < 0, y, table[y])
    return torch.from_numpy(table[x]), torch.from_numpy(labels), torch.from_numpy(places), mask


def windows(data: tokmill.Dataset, side: str, **options: Any) -> Iterator[Batch]:
    for x, y in data.batches(side, batch=BATCH, block=N, **options):
        yield x, y, np.broadcast_to(np.arange(N), x.shape).copy(), None


def packed(data: tokmill.Dataset, side: str, **options: Any) -> Iterator[Batch]:
    for batch in data.packed(side, batch=BATCH, **options):
        yield batch.input_ids, batch.labels, batch.position_ids, documents_of(batch)


def documents_of(batch: Any) -> np.ndarray:
    lengths = np.diff(batch.cu_seqlens)
    return np.repeat(np.arange(len(lengths)), lengths).reshape(batch.input_ids.shape)


def cropped(data: tokmill.Dataset, seed: int, lost: list[int]) -> Iterator[Batch]:
    """Rows of N + 1 ids that begin with a document. lost: ids taken, ids thrown away."""
    eot = np.array([data.eot_id])
    documents = itertools.chain.from_iterable(data.documents("train") for _ in itertools.count())
    for _ in range(1000 * seed):
        next(documents)
    buffer = [np.concatenate([eot, next(documents)]) for _ in range(1000)]

    def row() -> np.ndarray:
        parts, room = [], N + 1
        while room:
            fitting = [i for i, each in enumerate(buffer) if len(each) <= room]
            i = max(fitting, key=lambda i: len(buffer[i])) if fitting else min(range(len(buffer)), key=lambda i: len(buffer[i]))
            document = buffer.pop(i)
            buffer.append(np.concatenate([eot, next(documents)]))
            lost[0], lost[1] = lost[0] + len(document), lost[1] + max(0, len(document) - room)
            parts.append(document[:room])
            room -= len(parts[-1])
        return np.concatenate(parts).astype(np.int64)

    while True:
        rows = np.stack([row() for _ in range(BATCH)])
        yield rows[:, :-1], rows[:, 1:], np.broadcast_to(np.arange(N), (BATCH, N)).copy(), None


@torch.no_grad()  # type: ignore[untyped-decorator]
def validate(model: Gpt, plain: tokmill.Dataset, rows: tokmill.Dataset, table: np.ndarray) -> tuple[float, float]:
    """Mean loss of documents from their beginning, each by itself, and of windows end to end; the same ones each time."""
    found = []
    for batches in (packed(rows, "val", order="sequential", epochs=1), windows(plain, "val", order="sequential", epochs=1)):
        total = n = 0.0
        for x, all_labels, places, document in itertools.islice(batches, 6):
            y = all_labels
            if document is not None:
                # Not what goes on from another sequence: it has no beginning.
                firsts = x.ravel()[np.unique(document, return_index=True)[1]]
                y = np.where((firsts == rows.eot_id)[document], y, -100)
            inputs, labels, at, mask = tensors((x, y, places, document), table)
            total += float(cross_entropy(model(inputs, at, mask).flatten(0, 1), labels.flatten(), reduction="sum"))
            n += int((labels >= 0).sum())
        found.append(total / n)
    return found[0], found[1]


def train(way: str, seed: int, steps: int, every: int, work: Path) -> Iterator[tuple[int, float, float]]:
    """Yield step, and both losses of validation."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    plain, rows = tokmill.open(work / "shuffled"), tokmill.open(work / "packed")
    counts = np.bincount(np.asarray(plain.train), minlength=50257)
    table = np.full(50258, N_IDS - 1)
    table[np.argsort(-counts, kind="stable")[: N_IDS - 1]] = np.arange(N_IDS - 1)
    lost = [0, 0]
    make: dict[str, Callable[[], Iterator[Batch]]] = {
        "windows": lambda: windows(plain, "train", seed=seed),
        "cropped": lambda: cropped(plain, seed, lost),
        "packed": lambda: packed(rows, "train", seed=seed),
    }
    model = Gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for step, batch in enumerate(itertools.islice(make[way](), steps), 1):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, step / 30, (steps - step + 1) / (steps / 3))
        x, y, places, mask = tensors(batch, table)
        loss = cross_entropy(model(x, places, mask).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % every == 0:
            yield (step, *validate(model, plain, rows, table))
    if lost[0]:
        print(f"lost by cropping: {lost[1] / lost[0]:.4f}", file=sys.stderr)


def prepare(books: Path, work: Path) -> None:
    """Documents of paragraphs, tokenized, shuffled and packed."""
    rng = random.Random(0)
    paragraphs = [p for p in books.read_text(errors="replace")[:20_000_000].split("\n\n") if p.strip()]
    documents, at = [], 0
    while at < len(paragraphs):
        n = max(1, round(rng.lognormvariate(0.7, 1)))
        documents.append("\n\n".join(paragraphs[at : at + n]))
        at += n
    (work / "corpus.txt").write_text("<|endoftext|>".join(documents))
    tokmill.tokenize(work / "corpus.txt", work / "tokens", eot="before", val_fraction=0.02)
    tokmill.shuffle(work / "tokens", work / "shuffled", seed=1)
    outcome = tokmill.pack(work / "tokens", work / "packed", sequence=N, seed=1)
    print(outcome.packed, file=sys.stderr)


def drawing(rows: list[tuple[str, int, int, float, float]]) -> str:
    """The mean loss of documents over the seeds, and the range, as SVG."""
    left, bottom, width, height = 50, 250, 540, 220
    steps = sorted({row[2] for row in rows})[1:]
    values = [row[3] for row in rows if row[2] >= steps[0]]
    low, high = min(values), max(values)

    def place(step: float, loss: float) -> str:
        x = left + width * (step - steps[0]) / (steps[-1] - steps[0])
        return f"{x:.1f},{bottom - height * (loss - low) / (high - low):.1f}"

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 300" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="620" height="300" fill="white"/>')
    for loss in np.linspace(low, high, 5):
        y = float(place(steps[0], loss).split(",")[1])
        parts.append(f'<path d="M{left} {y}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{loss:.2f}</text>')
    for step in (steps[0], steps[len(steps) // 2], steps[-1]):
        x = place(step, low).split(",")[0]
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{step}</text>')
    for number, way in enumerate(WAYS):
        losses = [[row[3] for row in rows if row[0] == way and row[2] == step] for step in steps]
        band = [place(s, max(each)) for s, each in zip(steps, losses, strict=True)]
        band += [place(s, min(each)) for s, each in zip(steps[::-1], losses[::-1], strict=True)]
        line = " ".join(place(s, statistics.mean(each)) for s, each in zip(steps, losses, strict=True))
        parts.append(f'<polygon points="{" ".join(band)}" fill="{COLORS[way]}" opacity="0.2"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLORS[way]}" stroke-width="2"/>')
        parts.append(f'<text x="560" y="{30 + 16 * number}" fill="{COLORS[way]}" text-anchor="end">{way}</text>')
    parts.append(f'<text x="{left + width / 2}" y="290" text-anchor="middle">step</text>')
    parts.append('<text x="8" y="18">loss of validation documents, nats a token</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SEED"), help="train one, and print its rows")
    args = parser.parse_args()
    if args.one:
        for row in train(args.one[0], int(args.one[1]), args.steps, args.every, args.work):
            print(",".join(map(str, (args.one[0], args.one[1], *row))), flush=True)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    prepare(args.books, args.work)
    rows: list[tuple[str, int, int, float, float]] = []
    again = [sys.executable, __file__, str(args.books), "--work", str(args.work), "--steps", str(args.steps)]
    again += ["--every", str(args.every)]
    jobs = [[*again, "--one", way, str(seed)] for seed in range(args.seeds) for way in WAYS]
    for two in zip(jobs[::2], [*jobs[1::2], None], strict=False):
        # Two at a time, each in one thread.
        running = [subprocess.Popen(job, stdout=subprocess.PIPE, text=True) for job in two if job]
        for process in running:
            out, _ = process.communicate()
            rows += [(w, int(s), int(n), float(a), float(b)) for w, s, n, a, b in (line.split(",") for line in out.split())]
            print(out, end="", flush=True)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["way", "seed", "step", "loss_of_documents", "loss_of_windows"])
            table.writerows((w, s, n, f"{a:.4f}", f"{b:.4f}") for w, s, n, a, b in rows)
    if args.svg:
        args.svg.write_text(drawing(rows))


if __name__ == "__main__":
    main()
