"""The figures of a report: what is drawn, in which units, and the caption."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.text import format_duration, format_memory
from tokmill.reports.charts import ONE, TWO, Chart
from tokmill.reports.token_stats import DENSITY_BINS, DENSITY_STEP, LENGTH_BINS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tokmill.core.history import Attempt
    from tokmill.reports.data import ReportData
    from tokmill.reports.token_stats import SideStatistics

_MOST_POINTS = 30
_SHORTEST_S = 0.4
"""Seconds; a rate over less time than this jumps."""
_FEW = 20
"""A second side with fewer documents gets no histogram."""
_LEAST = 3
"""Points of a chart, documents of a histogram: fewer are better read as numbers."""
_MIB = 1 << 20
_UNITS = ((2 * 3600.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
_SIDES = (("train", "train", ONE), ("val", "validation", TWO))


@dataclass(frozen=True, slots=True)
class Table:
    """A table of plain text."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    """Columns that are right-aligned."""
    mono: Sequence[int] = ()
    """Columns in a monospaced font."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its heading, its caption, and its numbers as a table."""

    title: str
    svg: str
    caption: str
    table: Table


@dataclass(frozen=True, slots=True)
class _Curve:
    """Values of one attempt over time: x in seconds since the first attempt began."""

    x: list[float]
    y: list[float]


def history_figures(data: ReportData) -> list[Figure]:
    """Return the figures of speed and memory over time; none without a history, or if the run was too short."""
    attempts = [attempt for attempt in data.history.attempts if len(attempt.elapsed_s) > 1] if data.history else []
    if not attempts:
        return []
    total_s = max(attempt.begin_s + attempt.elapsed_s[-1] for attempt in attempts)
    scale, unit = next((scale, unit) for least, scale, unit in _UNITS if total_s >= least)
    marks = [attempt.begin_s / scale for attempt in attempts[1:]]
    speed = [_speed(attempt, total_s) for attempt in attempts]
    memory = [
        _Curve([attempt.begin_s + s for s in attempt.elapsed_s[1:]], [b / _MIB for b in attempt.rss_bytes[1:]])
        for attempt in attempts
    ]
    budget = attempts[-1].budget_bytes
    is_copy = all(attempt.does == "copy" for attempt in attempts)
    again = f" Dotted: it went on from its last commit, {len(marks)} times." if len(marks) > 1 else ""
    again = " Dotted: it went on from its last commit." if len(marks) == 1 else again
    what = "Output written a second" if is_copy else "Uncompressed input read a second, while processes work"
    peak = max(max(curve.y, default=0.0) for curve in memory)
    limited = f", at most {peak:,.0f} MiB of {format_memory(budget)} that all processes may use" if budget else ""
    figures = []
    if sum(len(curve.y) for curve in speed) >= _LEAST:
        drawn = _over_time("speed", speed, marks, scale, unit, "MB/s")
        drawn_svg = drawn.svg("Speed over time", f"{what}; a line over {unit}.")
        figures.append(Figure("Speed", drawn_svg, f"{what}.{again}", _curve_table(speed, "MB/s")))
    if sum(len(curve.y) for curve in memory) >= _LEAST:
        said = f"Resident memory of the process that does the work{limited}."
        drawn = _over_time("memory", memory, marks, scale, unit, "MiB")
        if budget:
            drawn.limit(budget / _MIB, f"budget, {format_memory(budget)}")
            drawn.y_between(0, 1.15 * max(budget / _MIB, peak))
        figures.append(Figure("Memory", drawn.svg("Memory over time", said), said, _curve_table(memory, "MiB")))
    return figures


def document_figures(data: ReportData) -> list[Figure]:
    """Return the figures of lengths of documents and bytes per token, of both sides and along the corpus."""
    sides = [(label, colour, data.sides[name]) for name, label, colour in _SIDES if name in data.sides]
    return [*size_figures(sides, knows_sizes=data.knows_sizes), *_drift_figures(data)]


def size_figures(sides: Sequence[tuple[str, str, SideStatistics]], *, knows_sizes: bool) -> list[Figure]:
    """Return the figures of lengths of documents and, if they are known, of their bytes per token.

    sides: name, colour and statistics of what is compared.
    """
    sides = [each for each in sides if each[2].n_documents]
    if sum(side.n_documents for _, _, side in sides) < _LEAST:
        return []
    return [_length_figure(sides), *([_density_figure(sides)] if knows_sizes else [])]


def _drift_figures(data: ReportData) -> list[Figure]:
    """Return the figure of bytes per token along the corpus; none if there is too little to see anything."""
    side = data.sides.get("train")
    if side and data.knows_sizes and side.n_tokens:
        y = _window_densities(side)
        x = [100 * (i + 0.5) / len(y) for i in range(len(y))]
        of = "the training side, each three-hundredth of its tokens"
    elif not data.knows_text:
        return []
    else:
        x, y = _segment_densities(data)
        of = "the corpus, commit by commit"
    if len(y) < _LEAST:
        return []
    chart = Chart("drift", x="position in the corpus (%)", y="bytes per token")
    chart.line(x, y)
    low, high = min(y), max(y)
    room = max((high - low) / 3, 0.05 * high, 0.05)
    chart.y_between(max(0.0, low - room), high + room)
    rows = [(f"{a:.1f}", f"{b:.2f}") for a, b in zip(x, y, strict=True)]
    drift = Figure(
        "Bytes per token along the corpus",
        chart.svg("Bytes per token along the corpus", f"From {low:.2f} to {high:.2f} bytes per token."),
        f"Of {of}: {low:.2f} to {high:.2f}. A step shows where another kind of text begins; a fall, text that the tokenizer "
        "does not know, such as another language, or damage.",
        Table("Bytes per token along the corpus", ("position (%)", "bytes per token"), _thin(rows), numbers=(0, 1)),
    )
    return [drift]


def _speed(attempt: Attempt, total_s: float) -> _Curve:
    """Return rates over thirtieths of the time, each at its middle."""
    stretch_s = max(total_s / _MOST_POINTS, _SHORTEST_S)
    chosen = [0]
    for i in range(1, len(attempt.elapsed_s)):
        is_last = i == len(attempt.elapsed_s) - 1
        if attempt.elapsed_s[i] - attempt.elapsed_s[chosen[-1]] >= stretch_s or (is_last and len(chosen) == 1):
            chosen.append(i)
    curve = _Curve([], [])
    for a, b in pairwise(chosen):
        seconds = max(attempt.elapsed_s[b] - attempt.elapsed_s[a], 1e-3)
        curve.x.append(attempt.begin_s + (attempt.elapsed_s[a] + attempt.elapsed_s[b]) / 2)
        curve.y.append((attempt.n_bytes[b] - attempt.n_bytes[a]) / seconds / 1e6)
    return curve


def _over_time(name: str, curves: Sequence[_Curve], marks: Sequence[float], scale: float, unit: str, y: str) -> Chart:
    chart = Chart(name, x=unit, y=y)
    for curve in curves:
        x = [s / scale for s in curve.x]
        chart.area(x, curve.y)
        chart.line(x, curve.y)
    for mark in marks:
        chart.mark(mark)
    chart.y_between(0)
    return chart


def _curve_table(curves: Sequence[_Curve], unit: str) -> Table:
    rows = [(format_duration(s), f"{y:,.1f}") for curve in curves for s, y in zip(curve.x, curve.y, strict=True)]
    return Table(f"{unit} over time", ("time", unit), _thin(rows), numbers=(0, 1))


def _thin(rows: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
    return rows[:: -(-len(rows) // _MOST_POINTS)] if len(rows) > _MOST_POINTS else rows


def _length_figure(sides: Sequence[tuple[str, str, SideStatistics]]) -> Figure:
    lengths = [side.lengths for _, _, side in sides]
    chart, bins, table = _histogram("lengths", "tokens", sides, lengths, [2 ** (i / 2) for i in range(LENGTH_BINS + 1)], 0)
    step = max(2, 2 * round((len(bins) - 1) / 12))
    ticks = [2 ** (i // 2) for i in range(bins.start + bins.start % 2, min(bins.stop + 1, LENGTH_BINS), step)]
    chart.log_x(ticks, [_short(tick) for tick in ticks])
    said = "; ".join(
        f"{name}: {side.n_documents:,} documents, median about {side.quantile(0.5):,.0f} tokens, the longest "
        f"{side.longest:,}" + (f", {side.n_empty:,} empty" if side.n_empty else "")
        for name, _, side in sides
    )
    drawn = chart.svg("Length of documents in tokens", f"A histogram with logarithmic bins. {said}.")
    return Figure("Length of documents", drawn, f"{said}.", table)


def _density_figure(sides: Sequence[tuple[str, str, SideStatistics]]) -> Figure:
    densities = [side.densities for _, _, side in sides]
    edges = [i * DENSITY_STEP for i in range(DENSITY_BINS + 1)]
    chart, _, table = _histogram("density", "bytes per token of a document", sides, densities, edges, 1)
    means = "; ".join(
        f"{name}: {side.window_bytes.sum() / side.n_in_documents:.2f} over all" for name, _, side in sides if side.n_in_documents
    )
    drawn = chart.svg("Bytes per token, document by document", f"A histogram. {means}.")
    caption = f"{means}. Two peaks may be two languages."
    return Figure("Bytes per token of documents", drawn, caption, table)


def _histogram(
    name: str,
    x: str,
    sides: Sequence[tuple[str, str, SideStatistics]],
    counts: Sequence[NDArray[np.int64]],
    edges: Sequence[float],
    decimals: int,
) -> tuple[Chart, range, Table]:
    """Return the documents of each side by bin as a chart and a table, and the bins from the first to the last that is not empty.

    The chart has no outline of a second side with few documents, which would only hide the first.
    """
    filled = np.flatnonzero(sum(counts))
    bins = range(int(filled[0]), int(filled[-1]) + 1) if len(filled) else range(2)
    chart = Chart(name, x=x, y="% of documents")
    shown = [i for i, values in enumerate(counts) if i == 0 or values.sum() >= _FEW]
    for i in shown:
        shares = (100 * counts[i][bins.start : bins.stop] / max(int(counts[i].sum()), 1)).tolist()
        label = sides[i][0] if len(shown) > 1 else None
        chart.bars(edges[bins.start : bins.stop + 1], shares, colour=sides[i][1], label=label)
    chart.y_between(0)
    rows = [
        (f"{edges[i]:,.{decimals}f} to {edges[i + 1]:,.{decimals}f}", *(f"{int(values[i]):,}" for values in counts)) for i in bins
    ]
    return chart, bins, Table(f"Documents by {x}", (x, *(name for name, _, _ in sides)), rows, numbers=(1, 2))


def _short(n: int) -> str:
    if n < 1000:
        return str(n)
    return f"{n / 1000:.0f}k" if n < 1_000_000 else f"{n / 1e6:.0f}M" if n < 1_000_000_000 else f"{n / 1e9:.0f}G"


def _window_densities(side: SideStatistics) -> list[float]:
    """Return bytes per token of the windows; those of a few tokens, as the last may be, are left out."""
    n = -(-side.n_tokens // side.window_tokens)
    sizes = [min(side.window_tokens, side.n_tokens - i * side.window_tokens) for i in range(n)]
    kept = [i for i, size in enumerate(sizes) if size >= min(256, side.window_tokens)]
    return [float(side.window_bytes[i]) / sizes[i] for i in kept] if side.window_tokens >= 16 else []


def _segment_densities(data: ReportData) -> tuple[list[float], list[float]]:
    total = max(data.counts.bytes_text, 1)
    points, before = [], (0, 0)
    for segment in data.segments:
        counts = segment.counts
        n_tokens = counts.tokens_train + counts.tokens_val
        if n_tokens > before[1]:
            points.append((100 * counts.bytes_text / total, (counts.bytes_text - before[0]) / (n_tokens - before[1])))
            before = (counts.bytes_text, n_tokens)
    step = max(1, -(-len(points) // 300))
    return [x for x, _ in points[::step]], [y for _, y in points[::step]]
