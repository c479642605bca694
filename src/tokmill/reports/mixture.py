"""The figures of a mixture: what each source was to become and became, and where its documents lie along the stream."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.document_order import copies_by_stretch
from tokmill.core.outcome import mixture_of, val_ranges
from tokmill.core.text import printable_line
from tokmill.reports.charts import ONE, TWO, Chart
from tokmill.reports.figures import Figure, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.manifest import Manifest
    from tokmill.core.outcome import SourceShare

_STRETCHES = 64
_LONGEST = 16
"""Letters of a name below columns."""
_MOST = 12
"""Sources that are drawn; there may be thousands."""


def mixture_figures(manifest: Manifest | None) -> list[Figure]:
    """Return the figures of a mixture; none of another output."""
    shares = mixture_of(manifest) if manifest else []
    if manifest is None or not shares:
        return []
    names = _names([each.name or each.path for each in shares])
    return [_shares(shares, names), _stream(manifest, names)]


def val_table(manifest: Manifest | None) -> Table:
    """Return where each source's documents lie on the validation side; without rows where they are of one, or mingled."""
    ranges = val_ranges(manifest) if manifest else []
    ranges = ranges if len(ranges) > 1 else []
    rows = [(each.name or each.path, f"{each.begin:,}", f"{each.end:,}", f"{each.end - each.begin:,}") for each in ranges]
    caption = "The validation side, source by source, in tokens: a loss of each can be computed over its own range"
    return Table(caption, ("source", "from", "to", "tokens"), rows, numbers=(1, 2, 3))


def _names(paths: Sequence[str]) -> list[str]:
    """Return the last parts of paths, with a number where two are alike."""
    found: list[str] = []
    for path in paths:
        name = printable_line(os.path.basename(path.rstrip("/")) or path)
        found.append(name if name not in found else f"{name} ({len(found) + 1})")
    return found


def _shares(shares: Sequence[SourceShare], names: Sequence[str]) -> Figure:
    chart = Chart("shares", x="source", y="% of the tokens")
    wished, reached = ([100 * getattr(each, f"{kind}_share") for each in shares[:_MOST]] for kind in ("wished", "reached"))
    drawn = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names[:_MOST]]
    chart.columns(drawn, wished, colour=TWO, label="wished", place=0)
    chart.columns(drawn, reached, colour=ONE, label="reached", place=1)
    chart.y_between(0)
    furthest = max(abs(each.wished_share - each.reached_share) for each in shares)
    said = f"Share of each source in the tokens of the training side: wished, and reached within {100 * furthest:.4f} %."
    rows = [
        (
            name,
            f"{100 * each.wished_share:.4f}",
            f"{100 * each.reached_share:.4f}",
            f"{each.tokens:,}",
            f"{each.documents:,}",
            f"{each.least_times} to {each.most_times}" if each.most_times > each.least_times else f"{each.least_times}",
            f"{each.epochs:.3f}",
        )
        for name, each in zip(names, shares, strict=True)
    ]
    heads = ("source", "% wished", "% reached", "tokens", "documents", "times each", "on average")
    return Figure("Shares", chart.svg("Shares of the sources", said), said, Table(said, heads, rows, numbers=(1, 2, 3, 4, 5, 6)))


def _stream(manifest: Manifest, names: Sequence[str]) -> Figure:
    assert manifest.content.origin
    assert manifest.content.origin.arranged
    counted = copies_by_stretch(manifest.content.origin.arranged, _STRETCHES)
    percent = 100 * counted / np.maximum(1, counted.sum(axis=0))
    chart = Chart("stream", x="position in the stream (%)", y="% of the documents")
    chart.layers([100 * (i + 0.5) / _STRETCHES for i in range(_STRETCHES)], percent[:_MOST].tolist(), names[:_MOST])
    chart.y_between(0, 100)
    said = (
        "Which source the documents are of, along the training side: each sixty-fourth of the numbers that they are sorted by. "
        "Worked out from the seed; tokmill verify proves that the files have this order."
    )
    rows = [
        (name, f"{low:.2f}", f"{mean:.2f}", f"{high:.2f}")
        for name, low, mean, high in zip(names, percent.min(axis=1), percent.mean(axis=1), percent.max(axis=1), strict=True)
    ]
    heads = ("source", "least % of a stretch", "mean", "most")
    return Figure(
        "Sources along the stream", chart.svg("Sources along the stream", said), said, Table(said, heads, rows, (1, 2, 3))
    )
