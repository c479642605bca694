"""Draws docs/near-copies.svg: how likely a pair of documents is found by `dedup --near`, over its similarity, for several settings.

    python benchmarks/near_copies.py docs/near-copies.svg

Lines are calculated. Dots are measured, with FineWeb's 14 bands of 8 rows: shares of made pairs that have a band in common.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

import chart
import numpy as np

from tokmill.core.deduplication import NearRule
from tokmill.derive.deduplication.signatures import Signer

SETTINGS = ((14, 8, "14 x 8 (usual)"), (20, 5, "20 x 5"), (9, 13, "9 x 13"), (26, 11, "26 x 11"))
MEASURED = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
N_PAIRS = 3000
WIDTH, HEIGHT, MARGIN = 760, 400, 64


def measured(similarity: float, n_grams: int = 300) -> tuple[float, float]:
    """The true similarity of made pairs, and the share that is found."""
    rng, signer = np.random.default_rng(round(similarity * 100)), Signer(NearRule(threshold=0.8), 1)
    n_shared = round(2 * n_grams * similarity / (1 + similarity))
    length = n_grams + 4
    first, second = (rng.integers(0, 50_000, (N_PAIRS, length), dtype=np.uint16) for _ in range(2))
    second[:, : n_shared + 4] = first[:, : n_shared + 4]
    ids = np.stack([first, second], axis=1).reshape(-1)
    ends = np.arange(1, 2 * N_PAIRS + 1) * length
    keys = signer.bands(signer.signatures(ids, ends - length, ends))
    true = n_shared / (2 * n_grams - n_shared)
    return true, float((keys[::2] == keys[1::2]).any(axis=1).mean())


def at(similarity: float, share: float) -> tuple[float, float]:
    x = MARGIN + (WIDTH - 2 * MARGIN) * (similarity - 0.4) / 0.6
    return x, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share


def picture() -> str:
    title = "How likely a pair is found, over its similarity: bands x rows"
    parts = [chart.text(8, 20, title)]
    for i in range(5):
        x, y = at(0.4 + 0.15 * i, 0.25 * i)
        parts += [
            f'<path class="g" d="M{MARGIN} {y:.1f}H{WIDTH - MARGIN}"/>',
            chart.text(MARGIN - 6, y + 4, f"{25 * i} %", "end"),
            chart.text(x, HEIGHT - MARGIN + 20, f"{0.4 + 0.15 * i:.2f}", "middle"),
        ]
    parts.append(chart.text(WIDTH - MARGIN, HEIGHT - MARGIN + 40, "Jaccard similarity of the n-grams", "end"))
    for (bands, rows, name), colour in zip(SETTINGS, chart.COLOURS, strict=True):
        points = [at(s, 1 - (1 - s**rows) ** bands) for s in np.linspace(0.4, 1, 61)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="l" points="{path}" stroke="{colour}"/>')
        y = 44 + 18 * SETTINGS.index((bands, rows, name))
        parts.append(f'<text x="{MARGIN + 8}" y="{y}" style="fill:{colour}">{escape(name)}</text>')
    for similarity in MEASURED:
        true, share = measured(similarity)
        x, y = at(true, share)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{chart.COLOURS[0]}"/>')
        print(f"{true:.3f} {share:.4f} {1 - (1 - true**8) ** 14:.4f}")
    return chart.page(WIDTH, HEIGHT, parts, title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svg", type=Path)
    parser.parse_args().svg.write_text(picture())


if __name__ == "__main__":
    main()
