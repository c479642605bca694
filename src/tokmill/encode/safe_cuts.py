r"""Safe cuts: where a text can be divided so that its tokens are those of the parts, one after the other.

A byte-level BPE divides text into pieces by a pattern, then merges inside each piece. So a cut is safe where the pattern ends a
piece whatever stands on either side. In the patterns of r50k_base (which p50k_base shares), cl100k_base and o200k_base

- a piece with a letter continues only with letters, marks (o200k) or an apostrophe (contractions): so it ends between a
  letter and any other character;
- a piece with a digit continues only with digits: so it ends between a digit and any other character (only what may
  follow a letter, too, is used: one search then finds both).

The matcher looks at nothing before a piece, so the right part is divided as it was; it looks ahead only after white space
(`\s+(?!\S)`, `\s++$`), and the left part ends in a letter or a digit, so that is divided as it was, too.

Not used: inside and after white space (its last character goes to the next word), before a newline after punctuation (cl100k
and o200k glue them), between punctuation and a letter (glued too), inside digits (in threes from the left), every
n characters. What is a letter differs between versions of Unicode: only ranges that have held nothing but letters since Unicode
6.1 count as such here, and beyond ASCII only assigned punctuation may follow. A text that has none of these places is not cut.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from tokmill.encode.families import family_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# First and last code point, both included. The tests check each character's category.
LETTERS = (
    *((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x2B8), (0x1E00, 0x1F15)),  # Latin, IPA, Vietnamese
    *((0x391, 0x3A1), (0x3A3, 0x3F5), (0x3F7, 0x481), (0x48A, 0x527), (0x531, 0x556), (0x561, 0x587)),  # Greek to Armenian
    *((0x5D0, 0x5EA), (0x620, 0x64A), (0x671, 0x6D3)),  # Hebrew, Arabic
    *((0x904, 0x939), (0x993, 0x9A8), (0xA13, 0xA28), (0xA93, 0xAA8)),  # Devanagari, Bengali, Gurmukhi, Gujarati
    *((0xBAE, 0xBB9), (0xC12, 0xC28), (0xC92, 0xCA8), (0xD12, 0xD3A)),  # Tamil, Telugu, Kannada, Malayalam
    *((0xE01, 0xE30), (0xE40, 0xE46), (0x10D0, 0x10FA), (0x1200, 0x1248)),  # Thai, Georgian, Ethiopic
    *((0x3041, 0x3096), (0x30A1, 0x30FA), (0x30FC, 0x30FE)),  # hiragana, katakana
    *((0x3400, 0x4DB5), (0x4E00, 0x9FCB), (0xAC00, 0xD7A3)),  # ideographs, Hangul
)
PUNCTUATION = (
    *((0x60C, 0x60C), (0x61B, 0x61B), (0x61F, 0x61F), (0x6D4, 0x6D4), (0x964, 0x965)),  # Arabic, dandas
    *((0x2010, 0x2027), (0x3000, 0x3003), (0x3008, 0x3011), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20)),  # general, CJK, fullwidth
)
"""Neither letter, mark nor digit; ASCII is apart."""

_REACH = 3
"""Bytes of the longest character in these ranges: so many after a cut decide whether it is one."""
_FIRST_WINDOW = 256
"""Bytes that `last` looks at first; prose has a cut every five or six."""
_PROVEN = frozenset({"r50k_base", "p50k_base", "cl100k_base", "o200k_base"})


class PatternCuts:
    """The places above. Implements `protocols.Cutter`."""

    def last(self, text: bytes | bytearray, limit: int) -> int:
        """Return the largest safe cut that is at most `limit`, or 0. Looks backwards in growing windows."""
        end, window = limit, _FIRST_WINDOW
        while end > 0:
            begin = max(0, end - window)
            cut = 0
            for match in _places().finditer(text, begin, end + _REACH):
                if match.start() > end:
                    break
                cut = match.start()
            if cut:
                return cut
            end, window = begin - 1, window * 8
        return 0

    def first(self, text: bytes | bytearray, start: int) -> int:
        """Return the smallest safe cut that is at least `start`, or 0 if there is none yet."""
        match = _places().search(text, max(0, start))
        return match.start() if match else 0


class AddedTokenCuts:
    """The places above, without those inside what may be one of the tokens that are taken from text as a whole.

    Implements `protocols.Cutter`. Such a token can only begin left of a cut and end right of it where the left part ends with a
    beginning of the token, so one look to the left decides, however the text goes on.
    """

    def __init__(self, contents: Iterable[str]) -> None:
        """contents: the texts of those tokens."""
        tokens = [content.encode() for content in contents]
        self._inner = PatternCuts()
        self._beginnings = {token[:n] for token in tokens for n in range(1, len(token))}
        self._lengths = sorted({len(beginning) for beginning in self._beginnings})

    def last(self, text: bytes | bytearray, limit: int) -> int:
        """See the contract."""
        at = self._inner.last(text, limit)
        while at and self._is_inside(text, at):
            at = self._inner.last(text, at - 1)
        return at

    def first(self, text: bytes | bytearray, start: int) -> int:
        """See the contract."""
        at = self._inner.first(text, start)
        while at and self._is_inside(text, at):
            at = self._inner.first(text, at + 1)
        return at

    def _is_inside(self, text: bytes | bytearray, at: int) -> bool:
        return any(n <= at and bytes(text[at - n : at]) in self._beginnings for n in self._lengths)


def cutter_for(encoding: str) -> PatternCuts | None:
    """Return the cutter of a published encoding or a family; None where no cuts are proven, so that documents stay whole."""
    family = family_of(encoding)
    return PatternCuts() if encoding in _PROVEN or (family is not None and family.has_cuts) else None


@cache
def _places() -> re.Pattern[bytes]:
    """Return a pattern that matches the first byte after each cut.

    UTF-8 has no character inside another, so bytes can be searched. The byte after the cut comes first, because one set of
    bytes at the start of a pattern is searched for 30 times faster than a choice of letters (64 MB of one letter: 0.4 s, not 12).
    """
    starts = sorted({chr(a).encode()[0] for a, _ in PUNCTUATION})
    after = rb"[\x00-&(-@\[-`{-\x7f" + b"".join(rb"\x%02x" % start for start in starts) + b"]"
    ascii_before = rb"(?<=[A-Za-z]%b)|(?<=[0-9][^0-9])" % after
    by_length = [_utf8(r for r in LETTERS if len(chr(r[0]).encode()) == n) for n in (2, 3)]
    before = b"|".join(b"(?<=(?:%b)%b)" % (letters, after) for letters in by_length)
    before = rb"%b|(?<=[\x80-\xbf]%b)(?:%b)" % (ascii_before, after, before)
    # The rest of a punctuation mark: look at all of it from its first byte on.
    whole = rb"(?<=[\x00-\x7f])|" + b"|".join(rb"(?<=\x%02x)(?:%b)" % (start, _tails(start)) for start in starts)
    # What no place has before it is asked first, and at once: a gigabyte of newlines has none.
    may_end = rb"(?<=[A-Za-z0-9\x80-\xbf]%b)" % after
    return re.compile(after + may_end + b"(?:%b)(?:%b)" % (before, whole))


def _utf8(ranges: Iterable[tuple[int, int]]) -> bytes:
    """Return a pattern for the bytes of one character in the ranges; both ends of a range have the same number of bytes."""
    return b"|".join(part for a, b in ranges for part in _between(chr(a).encode(), chr(b).encode()))


def _tails(start: int) -> bytes:
    """Return a pattern for what follows `start` in the punctuation that begins with this byte."""
    ends = [(chr(a).encode(), chr(b).encode()) for a, b in PUNCTUATION]
    return b"|".join(part for low, high in ends if low[0] == start for part in _between(low[1:], high[1:]))


def _between(low: bytes, high: bytes) -> Iterator[bytes]:
    """Yield patterns for the byte strings from `low` to `high`, both of one length and included, whose tails are 0x80 to 0xbf."""
    tail = len(low) - 1
    if low[1:] == b"\x80" * tail and high[1:] == b"\xbf" * tail:
        yield rb"[\x%02x-\x%02x]" % (low[0], high[0]) + rb"[\x80-\xbf]" * tail
    elif low[0] == high[0]:
        yield from (rb"\x%02x" % low[0] + rest for rest in _between(low[1:], high[1:]))
    elif low[1:] != b"\x80" * tail:
        yield from _between(low, low[:1] + b"\xbf" * tail)
        yield from _between(bytes([low[0] + 1]) + b"\x80" * tail, high)
    else:
        yield from _between(low, bytes([high[0] - 1]) + b"\xbf" * tail)
        yield from _between(high[:1] + b"\x80" * tail, high)
