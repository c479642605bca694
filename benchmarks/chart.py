"""Charts for the documents: bars and lines as plain SVG, legible on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = (
    "<style>text{font:13px sans-serif;fill:#24292f}.b{fill:#0969da}.g{stroke:#8886}.l{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.b{fill:#58a6ff}}</style>"
)
COLOURS = ("#0969da", "#bf8700", "#1a7f37", "#cf222e")


def page(width: int, height: int, parts: Sequence[str], title: str) -> str:
    """The whole picture."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    return "\n".join([head, STYLE, *parts, "</svg>", ""])


def text(x: float, y: float, what: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(what)}</text>'


def bars(values: Sequence[tuple[str, float]], title: str) -> str:
    """Horizontal bars, each with its name and figure."""
    row, left, width = 26, 270, 760
    longest = max((value for _, value in values), default=1) or 1
    parts = [text(8, 20, title)]
    for i, (name, value) in enumerate(values):
        y = 36 + i * row
        length = max(1.0, (width - left - 70) * value / longest)
        parts += [
            text(left - 8, y + 14, name, "end"),
            f'<rect class="b" x="{left}" y="{y}" width="{length:.1f}" height="18" rx="3"/>',
            text(left + length + 6, y + 14, f"{value:,.0f}"),
        ]
    return page(width, 44 + row * len(values), parts, title)


def lines(series: dict[str, Sequence[tuple[float, float]]], title: str, x_unit: str, y_unit: str) -> str:
    """Lines through points, both axes from zero; a legend where there are several."""
    width, height, margin = 760, 360, 64
    points = [point for line in series.values() for point in line]
    end, top = max(x for x, _ in points) or 1, 1.1 * max(y for _, y in points) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        return margin + (width - 2 * margin) * x / end, height - margin - (height - 2 * margin) * y / top

    parts = [text(8, 20, title)]
    for i in range(5):
        x, y = at(end * i / 4, top * i / 4)
        parts += [
            f'<path class="g" d="M{margin} {y:.1f}H{width - margin}"/>',
            text(margin - 6, y + 4, f"{top * i / 4:,.4g}", "end"),
            text(x, height - margin + 20, f"{end * i / 4:,.4g}", "middle"),
        ]
    parts += [text(margin, 44, y_unit), text(width - margin, height - margin + 40, x_unit, "end")]
    for i, (name, line) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in line)
        parts.append(f'<polyline class="l" points="{path}" stroke="{colour}"/>')
        parts += [f'<circle cx="{at(*p)[0]:.1f}" cy="{at(*p)[1]:.1f}" r="3" fill="{colour}"/>' for p in line]
        if len(series) > 1:
            parts.append(
                f'<text x="{width - margin}" y="{44 + 18 * i}" text-anchor="end" style="fill:{colour}">{escape(name)}</text>'
            )
    return page(width, height, parts, title)
