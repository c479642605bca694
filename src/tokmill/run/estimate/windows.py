"""Windows of files that can be read anywhere: what of the text belongs to each.

A file is a grid of `PLACE_BYTES`. A window goes from the first boundary after one grid point to the first boundary after the next,
so every byte belongs to exactly one window, and windows drawn at random count without bias. A boundary is a safe cut or the end of
a separator in text, the beginning of a line in JSON lines.

The difficulty is a line longer than a window. If it belonged to the window it begins in, a few lines would decide everything. So a
line of more than `REACH_BYTES` belongs to all the windows it lies in, a part to each, and a part's text is read without the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokmill.read import NotARecordError, RecordParser

if TYPE_CHECKING:
    from tokmill.core.config import Content
    from tokmill.core.protocols import Cutter

PLACE_BYTES = 64 << 10
REACH_BYTES = 128 << 10
"""How far around a window its cut looks."""
_QUOTE = re.compile(rb'(?<!\\)(?:\\\\)*"')
_LONGEST_ESCAPE = 13
r"""Bytes of `\ud83d\ude00`, and one."""


@dataclass(slots=True)
class Excerpt:
    """The text of one window, and what was counted in it."""

    chance: float = 1.0
    """See `statistics.Window`."""
    raw_bytes: int = 0
    texts: list[bytes] = field(default_factory=list)
    """None of them empty; not checked to be UTF-8."""
    documents: int = 0
    """That end here."""
    n_eot: int = 0
    """End-of-text ids that a run writes for them."""
    n_bad: int = 0
    """Records without a text."""
    text_bytes: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """A window with what lies around it."""

    data: bytes
    begin: int
    """The grid point it begins at, as an index of `data`."""
    end: int
    at_start: bool
    """`data` begins where the file does."""
    at_end: bool
    """`data` ends where the file does."""


Cut = Callable[[View], Excerpt]


def cut_of(content: Content, input_format: str, cutter: Cutter | None, *, reach_bytes: int) -> Cut:
    """Return what takes a window's text out of a view. reach_bytes: lines longer than this are shared between windows."""
    if input_format == "jsonl":
        parser = RecordParser(content.text_key)
        return lambda view: _cut_lines(view, content, parser, reach_bytes)
    return lambda view: _cut_text(view, content, cutter)


def _cut_text(view: View, content: Content, cutter: Cutter | None) -> Excerpt:
    """Return the text between two boundaries. A document is counted where its separator ends; the last of a file is not counted."""
    data, separator = view.data, (content.separator or "").encode()
    is_last = view.at_end and view.end == len(data)
    begin = 0 if view.at_start and not view.begin else _boundary(data, view.begin, separator, cutter)
    end = len(data) if is_last else _boundary(data, view.end, separator, cutter)
    pieces = data[begin:end].split(separator) if separator else [data[begin:end]]
    # Between documents, an empty piece is an empty document; elsewhere it is the end of one that began before.
    is_open = not (begin == 0 and view.at_start) and not (separator and data.endswith(separator, 0, begin))
    ended = pieces if is_last else pieces[:-1]
    n_eot = sum(1 for i, piece in enumerate(ended) if piece or content.keep_empty or (is_open and i == 0))
    return Excerpt(raw_bytes=end - begin, texts=[p for p in pieces if p], documents=len(pieces) - 1, n_eot=n_eot)


def _boundary(data: bytes, place: int, separator: bytes, cutter: Cutter | None) -> int:
    cut = cutter.first(data, place) if cutter else 0
    if not cut:
        # Without a safe cut, at a character's first byte: a token more or less does not matter.
        cut = next((i for i in range(place, min(place + 4, len(data))) if data[i] & 0xC0 != 0x80), place)
    n = len(separator)
    inside = data.find(separator, max(0, cut - n + 1), cut + n - 1) if n > 1 else -1
    return inside + n if inside >= 0 else cut


def _cut_lines(view: View, content: Content, parser: RecordParser, reach_bytes: int) -> Excerpt:
    """Return the lines that begin in a window, and what lies in it of lines that are too long."""
    found, data = Excerpt(), view.data
    at = data.rfind(b"\n", 0, view.begin) + 1
    while at < view.end:
        newline = data.find(b"\n", at)
        stop = newline if newline >= 0 else len(data)
        is_seen = (at > 0 or view.at_start) and (newline >= 0 or view.at_end)
        if not is_seen or stop - at > reach_bytes:
            _add_part(found, data[max(at, view.begin) : min(stop, view.end)])
            if (newline >= 0 and stop < view.end) or (newline < 0 and view.at_end and stop <= view.end):
                found.documents += 1
                found.n_eot += 1
                found.raw_bytes += newline >= 0
        elif at >= view.begin:
            _add_line(found, data[at:stop], content, parser, at_start=view.at_start and at == 0)
            found.raw_bytes += stop - at + (newline >= 0)
        at = stop + 1
    return found


def _add_line(found: Excerpt, line: bytes, content: Content, parser: RecordParser, *, at_start: bool) -> None:
    if not line or line.isspace():
        return
    found.documents += 1
    try:
        text, _ = parser.parse(line, content.encoding_errors, at_start=at_start)
    except NotARecordError:
        found.n_bad += 1
        return
    if text:
        found.texts.append(text)
    found.n_eot += bool(text) or content.keep_empty


def _add_part(found: Excerpt, part: bytes) -> None:
    """Add a part of a line: its longest string, which is the text wherever texts make lines long."""
    found.raw_bytes += len(part)
    text = _unescaped(max(_QUOTE.split(part), key=len))
    if text:
        found.texts.append(text)


def _unescaped(part: bytes) -> bytes:
    """Return the text of a part of a JSON string, without an escape that was cut at either end."""
    text = part.decode("utf-8", "ignore")
    for front in range(_LONGEST_ESCAPE):
        for back in range(_LONGEST_ESCAPE):
            try:
                value: str = json.loads(f'"{text[front : len(text) - back]}"', strict=False)
            except ValueError:
                continue
            return value.encode("utf-8", "ignore")
    return part
