"""Elements of a page that holds everything it needs: no script, no font, no image from elsewhere.

Whatever comes from a corpus, a path or a tokenizer goes through `text`, which makes controls and bidirectional marks visible and
escapes what HTML would act upon; elements are put together of elements only, so nothing is escaped twice or not at all.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tokmill.core.text import printable, printable_line

if TYPE_CHECKING:
    from collections.abc import Sequence

_CSS = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #1b1f24; --soft: #59636e; --grid: #d8dde3;
  --one: #2563a8; --two: #b4560f; --warn: #b3261e; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1d2127; --ink: #e8eaed; --soft: #a3acb7;
  --grid: #39414b; --one: #6cb0f5; --two: #f0a35e; --warn: #ff8a80; --good: #5fd07a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
a { color: var(--one); }
code, pre, .mono { font: .875em/1.5 ui-monospace, monospace; }
pre { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; padding: .75rem; overflow-x: auto; }
.soft { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .75rem; margin: 1.25rem 0 0; }
.facts div { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; padding: .6rem .75rem; }
.facts dt { color: var(--soft); font-size: .8125rem; }
.facts dd { margin: 0; font-size: 1.2rem; font-weight: 600; overflow-wrap: anywhere; }
.facts .note { display: block; font-size: .8125rem; font-weight: 400; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; padding: .75rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; font-family: system-ui, sans-serif; }
figure svg * { stroke-linejoin: round; }
figcaption { font-size: .875rem; color: var(--soft); }
.notice { border: 1px solid var(--grid); border-left: 4px solid var(--warn); border-radius: .5rem; padding: .6rem .75rem;
  margin: 1rem 0; }
.notice ul { margin: .25rem 0; padding-left: 1.2rem; }
.good { color: var(--good); }
.bad { color: var(--warn); }
.wide { overflow-x: auto; border: 1px solid var(--grid); border-radius: .5rem; }
.wide:focus-visible, summary:focus-visible, pre:focus-visible { outline: 2px solid var(--one); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
caption { text-align: left; color: var(--soft); padding: .5rem .75rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem; border-top: 1px solid var(--grid);
  overflow-wrap: break-word; }
td:first-child:not(.number) { min-width: 9rem; overflow-wrap: anywhere; }
th { font-weight: 600; background: var(--card); white-space: nowrap; }
tbody th { background: none; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.mono { white-space: pre-wrap; min-width: 12rem; unicode-bidi: isolate; }
.bar { display: block; width: 6rem; height: .6rem; margin-top: .4rem; background: var(--grid); border-radius: .2rem;
  overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--one); }
details { margin-top: .5rem; }
summary { cursor: pointer; color: var(--soft); font-size: .875rem; }
@media (max-width: 34rem) { main { padding: 1rem .75rem 2rem; } .facts { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .facts dd { font-size: 1.05rem; } }
@media print { .charts figure, tr { break-inside: avoid; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What the page may load, in the words of a browser: nothing, and no script runs, whatever stands in it."""


def text(value: object) -> str:
    """Any text, on one line, as it may stand in an element or an attribute."""
    return escape(printable_line(str(value)))


def block(value: str) -> str:
    """Text of several lines, likewise."""
    return escape(printable(value))


def page(title: str, body: Sequence[str]) -> str:
    """The whole page. title: plain text; body: elements."""
    head = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<style>{_CSS}</style>\n</head>\n'
    )
    return head + "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"


def section(title: str, *elements: str) -> str:
    """A part with a heading; empty when it has no elements."""
    inside = "\n".join(filter(None, elements))
    return f"<section>\n<h2>{text(title)}</h2>\n{inside}\n</section>" if inside else ""


def facts(rows: Sequence[tuple[str, str, str]]) -> str:
    """Numbers at a glance. rows: what it is, the value, a note to it; plain text."""
    cells = [
        f'<div><dt>{text(name)}</dt><dd>{text(value)}{f"""<span class="note">{text(note)}</span>""" if note else ""}</dd></div>'
        for name, value, note in rows
    ]
    return f'<dl class="facts">{"".join(cells)}</dl>'


def figure(title: str, svg: str, caption: str, table: str = "") -> str:
    """A chart with its heading, what it shows, and its numbers for those who want or need them. svg, table: elements."""
    numbers = f"<details><summary>Numbers</summary>{table}</details>" if table else ""
    return f"<figure><h3>{text(title)}</h3>{svg}<figcaption>{text(caption)}</figcaption>{numbers}</figure>"


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table that scrolls by itself on a narrow screen. heads: plain text; rows: elements; numbers: columns set to the right."""

    def cell(kind: str, i: int, inside: str, extra: str = "") -> str:
        kind_of = ' class="number"' if i in numbers else ""
        return f"<{kind}{extra}{kind_of}>{inside}</{kind}>"

    head = "".join(cell("th", i, text(name), ' scope="col"') for i, name in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(inside if inside.startswith("<td") else cell("td", i, inside) for i, inside in enumerate(row)) + "</tr>"
        for row in rows
    )
    # Focusable, so that it can be scrolled without a mouse.
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{text(caption)}"><table><caption>{text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def bar(share: float) -> str:
    """A length from 0 to 1 beside a number."""
    return f'<span class="bar" aria-hidden="true"><i style="width:{100 * min(max(share, 0), 1):.1f}%"></i></span>'


def notice(title: str, sentences: Sequence[str]) -> str:
    """Something that must not be missed; empty without sentences."""
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f'<div class="notice" role="note"><strong>{text(title)}</strong><ul>{items}</ul></div>' if sentences else ""
