"""The charts of a report: static SVG by matplotlib, in colours that the page decides.

Each chart is drawn in placeholder colours, which are then replaced by the names of CSS variables: so one SVG suits light and dark
pages. Letters stay text. No script draws in the page: a report opens from a mail, too, with scripts off.
"""

from __future__ import annotations

import io
import logging
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import UsageError
from tokmill.core.extras import install_hint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_IN, _HEIGHT_IN = 4.2, 2.4
"""Inches; a phone shows them about as large as its screen, so 10 pt can be read there."""
_COLOURS = {"#010101": "ink", "#020202": "soft", "#030303": "grid", "#040404": "one", "#050505": "two", "#060606": "warn"}
"""Placeholder colours, and the CSS variable that each becomes: a chart has no other colour."""
INK, SOFT, GRID, ONE, TWO, WARN = _COLOURS
_MOST_FLAT, _LONGEST_FLAT = 4, 10
"""Names below columns, and letters of one, that fit beside each other."""
_LEAST_NAMED = 6
"""Per cent; a name is not higher than such an area."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tokmill",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
}


class Chart:
    """One chart. Raises UsageError if matplotlib is not installed."""

    def __init__(self, name: str, *, x: str, y: str) -> None:
        """name: one word, its id in the page. x, y: what the axes measure."""
        self._name = name
        with _styled():
            from matplotlib.figure import Figure

            self._figure: Figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
            self._axes: Axes = self._figure.subplots()
        self._axes.set_xlabel(x)
        self._axes.set_ylabel(y)
        self._axes.grid(axis="y")
        self._axes.tick_params(length=0)
        self._axes.locator_params(nbins=5)

    def line(self, x: Sequence[float], y: Sequence[float], *, colour: str = ONE, label: str | None = None) -> None:
        """Draw a line; a single point is a dot."""
        self._axes.plot(x, y, color=colour, label=label, marker="o" if len(x) == 1 else None, solid_joinstyle="round")

    def area(self, x: Sequence[float], y: Sequence[float], *, colour: str = ONE) -> None:
        """Fill the area under a line, faintly."""
        self._axes.fill_between(x, y, color=colour, alpha=0.15, linewidth=0)

    def bars(self, edges: Sequence[float], heights: Sequence[float], *, colour: str = ONE, label: str | None = None) -> None:
        """Draw a histogram: bar i from edges[i] to edges[i + 1]."""
        self._axes.stairs(heights, edges, color=colour, fill=label is None, label=label, linewidth=1.8)

    def columns(self, names: Sequence[str], heights: Sequence[float], *, colour: str, label: str, place: int) -> None:
        """Draw a column for each name, at the left (place 0) or right (1) of two."""
        at = [i + 0.38 * (place - 0.5) for i in range(len(names))]
        self._axes.bar(at, heights, width=0.36, color=colour, label=label)
        turned = len(names) > _MOST_FLAT or max(map(len, names)) > _LONGEST_FLAT
        self._axes.set_xticks(
            range(len(names)), labels=names, rotation=30 if turned else 0, ha="right" if turned else "center", parse_math=False
        )

    def layers(self, x: Sequence[float], heights: Sequence[Sequence[float]], names: Sequence[str]) -> None:
        """Draw areas on top of each other, the first at the bottom, each with its name where there is room."""
        below = [0.0] * len(x)
        for i, (layer, name) in enumerate(zip(heights, names, strict=True)):
            above = [a + b for a, b in zip(below, layer, strict=True)]
            self._axes.fill_between(x, below, above, color=(ONE, TWO)[i % 2], alpha=(0.55, 0.3)[i // 2 % 2], linewidth=0)
            middle = len(x) // 2
            if layer[middle] > _LEAST_NAMED:
                self._axes.text(
                    x[middle],
                    below[middle] + layer[middle] / 2,
                    name,
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=INK,
                    parse_math=False,
                )
            below = above

    def limit(self, y: float, label: str) -> None:
        """Draw a horizontal line that nothing should reach."""
        self._axes.axhline(y, color=WARN, linewidth=1.2, linestyle=(0, (4, 3)))
        self._axes.annotate(
            label,
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=SOFT,
        )

    def mark(self, x: float) -> None:
        """Draw a vertical line where something happened."""
        self._axes.axvline(x, color=SOFT, linewidth=0.8, linestyle=(0, (1, 2)))

    def log_x(self, ticks: Sequence[float], labels: Sequence[str]) -> None:
        """Make the x axis logarithmic, with these ticks."""
        self._axes.set_xscale("log")
        self._axes.set_xticks(ticks, labels=labels, minor=False)
        self._axes.minorticks_off()

    def y_between(self, low: float, high: float | None = None) -> None:
        """Let the y axis go from low to high, or to the largest value, and the x axis begin where the data does."""
        self._axes.set_ylim(low, high)
        self._axes.margins(x=0.01)

    def svg(self, title: str, description: str) -> str:
        """Return the chart as an element of a page. title, description: plain text for those who cannot see it."""
        from html import escape

        handles, _ = self._axes.get_legend_handles_labels()
        with _styled():
            if handles:
                self._axes.legend(loc="best", fontsize=9)
            file = io.StringIO()
            self._figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        drawn = file.getvalue()
        drawn = drawn[drawn.index("<svg") :]
        drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
        for colour, style in _COLOURS.items():
            drawn = drawn.replace(colour, f"var(--{style})")
        # Several charts are in one page: ids get the name of their chart.
        drawn = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{self._name}-", drawn)
        # The page chooses the font; a style element in a chart would apply to the whole page.
        drawn = re.sub(r"font-family: [^;\"]*; ", "", drawn)
        drawn = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawn, flags=re.DOTALL)
        view = re.search(r'viewBox="[^"]*"', drawn)
        head = (
            f'<svg {view[0] if view else ""} xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            'role="img" '
            f'aria-labelledby="{self._name}-title {self._name}-desc">'
            f'<title id="{self._name}-title">{escape(title)}</title><desc id="{self._name}-desc">{escape(description)}</desc>'
        )
        return head + drawn[drawn.index(">") + 1 :].rstrip()


def check_extra() -> None:
    """Raise UsageError if a package of the extra `report` is not installed: before anything is read for nothing."""
    with _styled():
        try:
            import jinja2  # noqa: F401  whether it is there
        except ImportError:
            raise _missing("the page of a report needs jinja2") from None


def _missing(what: str) -> UsageError:
    allowed = "tokmill with its extra 'report'"
    return UsageError(what, where="tokmill report", allowed=allowed, next_step=install_hint("report"))


@contextmanager
def _styled() -> Iterator[None]:
    """Apply the style of these charts and no setting of the user. Raise UsageError if matplotlib is not installed."""
    try:
        # It logs about its caches in the home directory.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        import matplotlib as mpl
    except ImportError:
        raise _missing("the charts of a report need matplotlib") from None
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield
