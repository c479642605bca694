"""Draws the pictures of the way of the data: `python docs/pictures.py` writes docs/way-*.svg.

Boxes and arrows in plain SVG, light or dark as the reader's page is, narrow enough to be read on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

WIDTH = 520
_STYLE = (
    "<style>text{font:14px system-ui,sans-serif;fill:#24292f}.s{font-size:12px;fill:#57606a}.t{font-weight:600}"
    ".b{fill:#f6f8fa;stroke:#8c959f}.k{fill:#ddf4ff;stroke:#0969da}.d{fill:none;stroke:#8c959f;stroke-dasharray:5 4}"
    ".a{fill:none;stroke:#0969da;stroke-width:2}.c{fill:none;stroke:#8c959f;stroke-width:1.5;stroke-dasharray:4 3}"
    "#h path{fill:#0969da}#g path{fill:#8c959f}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.b{fill:#1c2128;stroke:#6e7681}.k{fill:#10253f;"
    "stroke:#58a6ff}.a{stroke:#58a6ff}#h path{fill:#58a6ff}}</style>"
)
_HEADS = (
    '<defs><marker id="h" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto-start-reverse">'
    '<path d="M0 0L8 4L0 8z"/></marker><marker id="g" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" '
    'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z"/></marker></defs>'
)
_LINE = 17


def box(x: int, y: int, width: int, height: int, title: str, lines: Sequence[str] = (), kind: str = "b") -> str:
    """Return a box with a title and lines below it, in its middle."""
    top = y + height / 2 - _LINE * len(lines) / 2 + 5
    middle = x + width / 2
    parts = [f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="7"/>']
    parts.append(f'<text class="t" x="{middle:g}" y="{top:g}" text-anchor="middle">{escape(title)}</text>')
    parts += [
        f'<text class="s" x="{middle:g}" y="{top + _LINE * (i + 1):g}" text-anchor="middle">{escape(line)}</text>'
        for i, line in enumerate(lines)
    ]
    return "".join(parts)


def arrow(path: str, *, faint: bool = False, both: bool = False) -> str:
    """Return an arrow along a path of SVG: of data, or faint, of what is only said."""
    head = "g" if faint else "h"
    start = f' marker-start="url(#{head})"' if both else ""
    return f'<path class="{"c" if faint else "a"}" d="{path}" marker-end="url(#{head})"{start}/>'


def note(x: int, y: int, text: str, anchor: str = "middle") -> str:
    """Return small text."""
    return f'<text class="s" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def picture(height: int, parts: Sequence[str], title: str) -> str:
    """Return the whole picture. title: what it says, for those who cannot see it."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return "\n".join([head, _STYLE, _HEADS, *parts, "</svg>", ""])


def run() -> str:
    """Return the picture of a run of tokenize."""
    workers = [(y, f"worker {n}") for y, n in ((118, 1), (180, 2), (242, 3))]
    return picture(
        318,
        [
            box(180, 12, 160, 62, "coordinator", ("order, commits, memory",), "k"),
            *(box(180, y, 160, 50, name, ("read, encode, write",)) for y, name in workers),
            box(6, 118, 112, 174, "corpus", ("text, JSON lines,", "Parquet, ...;", "files, buckets,", "a pipe")),
            box(402, 118, 112, 174, "output", ("train.bin", "val.bin", "", "at the end:", "manifest.json")),
            *(arrow(f"M118 {y + 25}H178") for y, _ in workers),
            *(arrow(f"M340 {y + 25}H400") for y, _ in workers),
            note(149, 162, "text"),
            note(371, 162, "ids"),
            arrow("M260 76V116", faint=True, both=True),
            note(266, 100, "ranges, counts", "start"),
            arrow("M340 43H458V116", faint=True),
            note(398, 36, "commit: journal"),
            note(260, 310, "one worker for each core; no text passes through the coordinator"),
        ],
        "A run: workers read ranges of the corpus, encode them and write the ids; the coordinator orders and commits",
    )


def order() -> str:
    """Return the picture of the two passes of shuffle and its like."""
    buckets = [(y, f"bucket {n}") for y, n in ((30, "00"), (92, "01"), (154, "10"), (216, "11"))]
    sources = [(52, "source A"), (170, "source B")]
    return picture(
        324,
        [
            *(box(6, y, 112, 72, name, ("documents,", "verified")) for y, name in sources),
            *(box(200, y, 120, 46, name, ("on the disk",)) for y, name in buckets),
            box(402, 96, 112, 104, "output", ("documents in", "random order,", "shards")),
            *(arrow(f"M118 {y + 36}L198 {to + 23}") for y, _ in sources for to, _ in buckets),
            *(arrow(f"M320 {y + 23}L400 {148 + (i - 1.5) * 16:g}") for i, (y, _) in enumerate(buckets)),
            note(158, 20, "pass 1"),
            note(360, 20, "pass 2"),
            note(260, 284, "Pass 1 gives each document a number, from seed and place, not from content;"),
            note(260, 300, "its leading bits name the bucket."),
            note(260, 316, "Pass 2 sorts one bucket after the other in memory."),
        ],
        "Shuffle and mix: every document goes into a bucket by a number, then one bucket after the other is sorted and written",
    )


def commands() -> str:
    """Return the picture of which command leads where."""
    made = ("merge, reshard, append", "convert", "shuffle, mix", "dedup", "pack")
    return picture(
        356,
        [
            box(6, 112, 96, 60, "text", ("any kind",)),
            box(206, 112, 108, 60, "output", ("token files",), "k"),
            box(418, 112, 96, 60, "training", ("any trainer",)),
            arrow("M102 142H204"),
            note(153, 134, "tokenize"),
            arrow("M314 142H416"),
            note(365, 134, "np.memmap,"),
            note(365, 160, "tokmill.open"),
            '<rect class="d" x="150" y="212" width="220" height="136" rx="7"/>',
            note(260, 232, "from outputs to an output:"),
            *(f'<text x="260" y="{254 + 20 * i}" text-anchor="middle">{each}</text>' for i, each in enumerate(made)),
            arrow("M238 172V210"),
            arrow("M282 210V174"),
            arrow("M54 172V290H148", faint=True),
            note(60, 308, "build: all of it,", "start"),
            note(60, 324, "from a recipe", "start"),
            box(150, 12, 220, 56, "verify, inspect, report", ("look, and change nothing",)),
            arrow("M260 70V110", faint=True, both=True),
            arrow("M54 110V40H148", faint=True),
            note(60, 34, "plan", "start"),
        ],
        "Commands: tokenize makes an output of text; others make outputs of outputs; training reads them; verify looks",
    )


PICTURES = {"way-run.svg": run, "way-order.svg": order, "way-commands.svg": commands}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / name).write_text(draw())
