"""Windows of a corpus: where they lie, and what of the text belongs to each.

Every file is a grid of places, and what lies between the first boundary behind one place and the first boundary behind the next
belongs to that window: every byte to exactly one, so that what is counted in windows drawn at random is without bias. A boundary is
a safe cut or the end of a separator in text, the beginning of a line in JSON lines.

The hard one is a line longer than a window. Given to the window in which it begins, a few lines would decide everything; so lines
of more than `REACH_BYTES` belong, a part each, to all the windows they lie in, and the part's text is read without the whole line.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokmill.read import NotARecordError, RecordParser

if TYPE_CHECKING:
    from tokmill.core.config import Content
    from tokmill.core.protocols import ByteStream, Cutter

PLACE_BYTES = 64 << 10
"""Between two places of the grid."""
REACH_BYTES = 128 << 10
"""How far text around a window is looked at."""
_READ_BYTES = 1 << 20
_TAIL_BYTES = 256
_QUOTE = re.compile(rb'(?<!\\)(?:\\\\)*"')


@dataclass(slots=True)
class Excerpt:
    """The text of one window."""

    chance: float = 1.0
    """See `estimate.Window`."""
    raw_bytes: int = 0
    texts: list[bytes] = field(default_factory=list)
    """None of them empty; not checked to be UTF-8."""
    documents: int = 0
    """That end here."""
    n_eot: int = 0
    """Of which an end-of-text id is written."""
    n_bad: int = 0
    """Lines that are no records."""
    n_parts: int = 0
    """Parts of lines that were too long to be taken whole."""


@dataclass(frozen=True, slots=True)
class View:
    """A window with what lies around it."""

    data: bytes
    begin: int
    end: int
    """The places, as indices of `data`."""
    at_start: bool
    """`data` begins where the file does."""
    at_end: bool
    """`data` ends where the file does."""


Cut = Callable[[View], Excerpt]


def cut_of(content: Content, input_format: str, cutter: Cutter | None, *, reach_bytes: int = REACH_BYTES) -> Cut:
    """What takes a window's text out of a view. reach_bytes: lines above are shared; no line is, where a file is taken whole."""
    if input_format == "jsonl":
        return LineCut(content, reach_bytes)
    return TextCut(content, cutter)


class TextCut:
    """Windows of a text file."""

    def __init__(self, content: Content, cutter: Cutter | None) -> None:
        self._separator = content.separator.encode() if content.separator is not None else b""
        self._cutter = cutter
        self._keeps_empty = content.keep_empty

    def __call__(self, view: View) -> Excerpt:
        """The text between two boundaries. Its last document is counted by the window in which its separator ends."""
        data, separator = view.data, self._separator
        begin = 0 if view.at_start and not view.begin else self._boundary(data, view.begin)
        end = len(data) if view.at_end and view.end == len(data) else self._boundary(data, view.end)
        pieces = data[begin:end].split(separator) if separator else [data[begin:end]]
        ended = pieces[:-1]
        # Between documents, an empty piece is an empty document; elsewhere it is the end of one that was cut.
        is_open = not (begin == 0 and view.at_start) and not (separator and data.endswith(separator, 0, begin))
        n_eot = sum(1 for i, piece in enumerate(ended) if piece or self._keeps_empty or (is_open and i == 0))
        return Excerpt(raw_bytes=end - begin, texts=[p for p in pieces if p], documents=len(ended), n_eot=n_eot)

    def _boundary(self, data: bytes, place: int) -> int:
        cut = self._cutter.first(data, place) if self._cutter else 0
        if not cut:
            # No safe cut in reach: at a character's first byte a token more or less is of no account.
            cut = next((i for i in range(place, min(place + 4, len(data))) if data[i] & 0xC0 != 0x80), place)
        n = len(self._separator)
        inside = data.find(self._separator, max(0, cut - n + 1), cut + n - 1) if n > 1 else -1
        return inside + n if inside >= 0 else cut


class LineCut:
    """Windows of JSON lines."""

    def __init__(self, content: Content, reach_bytes: int) -> None:
        self._parser = RecordParser(content.text_key)
        self._policy = content.encoding_errors
        self._keeps_empty = content.keep_empty
        self._reach = reach_bytes

    def __call__(self, view: View) -> Excerpt:
        """The lines that begin here, and the part that lies here of those that are too long."""
        found = Excerpt()
        at = self._behind_first(view, found)
        while at < view.end:
            newline = view.data.find(b"\n", at)
            stop = newline if newline >= 0 else len(view.data)
            if stop - at > self._reach or (newline < 0 and not view.at_end):
                self._add_part(found, view.data[at : view.end])
                break
            self._add_line(found, view.data[at:stop], at_start=view.at_start and at == 0)
            found.raw_bytes += stop - at + (newline >= 0)
            at = stop + 1
        return found

    def _behind_first(self, view: View, found: Excerpt) -> int:
        """Where the first line begins; of a longer one that began before, its part is taken."""
        data, begin = view.data, view.begin
        if begin == 0 or data[begin - 1 : begin] == b"\n":
            return begin
        newline = data.find(b"\n", begin)
        stop = newline if newline >= 0 else len(data)
        started = data.rfind(b"\n", 0, begin) + 1
        is_cut = (started == 0 and not view.at_start) or (newline < 0 and not view.at_end)
        if is_cut or stop - started > self._reach:
            self._add_part(found, data[begin : min(stop, view.end)])
            if stop < view.end or (newline < 0 and view.at_end):
                # The document ends here.
                found.documents += 1
                found.n_eot += 1
                found.raw_bytes += newline >= 0
        return stop + 1

    def _add_line(self, found: Excerpt, line: bytes, *, at_start: bool) -> None:
        if not line or line.isspace():
            return
        found.documents += 1
        try:
            text, _ = self._parser.parse(line, self._policy, at_start=at_start)
        except NotARecordError:
            found.n_bad += 1
            return
        if text:
            found.texts.append(text)
        found.n_eot += bool(text) or self._keeps_empty

    def _add_part(self, found: Excerpt, part: bytes) -> None:
        """A part of a line: its longest string, which is the text wherever texts make lines long."""
        found.raw_bytes += len(part)
        found.n_parts += 1
        text = _unescaped(max(_QUOTE.split(part), key=len))
        if text:
            found.texts.append(text)


def _unescaped(part: bytes) -> bytes:
    """What a part of a JSON string stands for, without an escape that was cut at either end."""
    text = part.decode("utf-8", "ignore")
    for front in range(13):
        for back in range(13):
            try:
                value: str = json.loads(f'"{text[front : len(text) - back]}"', strict=False)
            except ValueError:
                continue
            return value.encode("utf-8", "ignore")
    return part


def reach_of(input_format: str) -> int:
    """Bytes before and behind a window that its cut needs."""
    return REACH_BYTES if input_format == "jsonl" else PLACE_BYTES // 4


@dataclass(slots=True)
class Decoded:
    """What was seen of a stream."""

    excerpts: list[Excerpt]
    n_bytes: int
    """Decompressed."""
    n_raw: int
    """Compressed."""
    is_complete: bool
    is_whole: bool
    """The excerpts are all of it."""
    tail: bytes
    """Its last bytes."""


def sample_stream(stream: ByteStream, cut: Cut, reach: int, *, until_s: float, most: int) -> Decoded:
    """Decompress as far as the time reaches (`until_s` of the monotonic clock) and keep every n-th window, at most `most`."""
    kept: list[tuple[int, Excerpt]] = []
    buffer, base, place, stride, ended = bytearray(), 0, 0, 1, False
    while not ended:
        chunk = stream.read(_READ_BYTES)
        ended = not chunk
        buffer += chunk
        while place < base + len(buffer) and (ended or place + PLACE_BYTES + reach <= base + len(buffer)):
            begin = max(base, place - reach)
            end = min(place + PLACE_BYTES, base + len(buffer))
            data = bytes(memoryview(buffer)[begin - base : end + reach - base])
            is_last = ended and begin + len(data) == base + len(buffer)
            kept.append((place, cut(View(data, place - begin, end - begin, begin == 0, is_last))))
            if len(kept) > most:
                stride *= 2
                kept = kept[::2]
            place = kept[-1][0] + stride * PLACE_BYTES
        n_done = max(0, min(len(buffer) - _TAIL_BYTES, place - reach - base))
        del buffer[:n_done]
        base += n_done
        if time.monotonic() > until_s:
            break
    for _, excerpt in kept:
        excerpt.chance = 1 / stride
    return Decoded(
        excerpts=[excerpt for _, excerpt in kept],
        n_bytes=base + len(buffer),
        n_raw=stream.raw_position(),
        is_complete=ended,
        is_whole=ended and stride == 1,
        tail=bytes(buffer[-_TAIL_BYTES:]),
    )


def skip_policy_text(content: Content, *, text: bool = False) -> str:
    """What tokenize will do with bad records. text: with text that is not UTF-8."""
    if text and content.encoding_errors != "strict":
        return f"--encoding-errors {content.encoding_errors} will mend it"
    if content.on_error == "skip":
        return "tokenize will skip such documents, and count them"
    instead = "--encoding-errors replace mends it" if text else "--on-error skip leaves such records out"
    return f"tokenize will stop at the first, and name it; {instead}"
