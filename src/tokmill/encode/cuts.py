"""Safe cuts: where a text can be divided so that its tokens are those of the parts, one behind the other.

A byte-level BPE first splits text into pieces by a pattern and then merges inside each piece. A cut is safe where the pattern ends
a piece whatever stands further left, and begins one whatever stands further right. Three kinds of places are used, all of them
decided by the two characters at the cut and one more:

- behind a letter, before a single space and a letter: letters never reach over a space, and the space belongs to what follows;
- behind a newline that stands alone between something visible and a letter: punctuation may take the newline with it, but
  nothing reaches from there to the letter, and a lone newline is a piece however the text before it ends;
- behind an ideograph, kana or syllable, before an ideographic comma or full stop: so that Chinese and Japanese without spaces have cuts.

Refused: before a newline (punctuation takes it in cl100k and o200k), inside white space (`\\s+(?!\\S)` gives its last character to the
next word), between punctuation and a letter (cl100k glues them), inside digits (groups of three are counted from the left). Only
ranges that hold nothing but assigned letters count as letters; marks never do, because o200k reaches over them.
"""

from __future__ import annotations

import re

_CJK = (
    rb"\xe3\x81[\x81-\xbf]|\xe3\x82[\x80-\x96\xa1-\xbf]|\xe3\x83[\x80-\xba]"  # hiragana U+3041-3096, katakana U+30A1-30FA
    rb"|\xe4[\xb8-\xbf][\x80-\xbf]|[\xe5-\xe8][\x80-\xbf]{2}|\xe9[\x80-\xbe][\x80-\xbf]"  # ideographs U+4E00-9FBF
    rb"|\xea[\xb0-\xbf][\x80-\xbf]|[\xeb-\xec][\x80-\xbf]{2}"  # Hangul syllables U+AC00-CFFF
)
_LETTER = (
    rb"[A-Za-z]"
    rb"|\xc3[\x80-\x96\x98-\xb6\xb8-\xbf]|[\xc4-\xc8][\x80-\xbf]"  # Latin U+00C0-023F without the signs of multiplication, division
    rb"|\xce[\xb1-\xbf]|\xcf[\x80-\x8f]"  # Greek U+03B1-03CF
    rb"|[\xd0-\xd1][\x80-\xbf]"  # Cyrillic U+0400-047F
    rb"|" + _CJK
)
_STOP = rb"\xe3\x80[\x81\x82]|\xef\xbc\x8c"  # U+3001, U+3002, U+FF0C
_PLACES = re.compile(
    rb"(?:%(letter)s)(?= (?:%(letter)s))|(?:[!-~]|%(letter)s)\n(?=%(letter)s)|(?:%(cjk)s)(?=%(stop)s)"
    % {b"letter": _LETTER, b"cjk": _CJK, b"stop": _STOP}
)
_REACH = 8
"""Bytes on either side of a cut that decide whether it is one: at most 4 before, 4 behind."""
_FIRST_WINDOW = 4096
_PROVEN = frozenset({"r50k_base", "p50k_base", "cl100k_base", "o200k_base"})


class PatternCuts:
    """The places above. Implements `protocols.Cutter`."""

    def last(self, text: bytes | bytearray, limit: int) -> int:
        """The largest safe cut that is at most `limit`, or 0; looks backwards in growing windows."""
        limit = min(limit, len(text) - 1)
        window = _FIRST_WINDOW
        while limit > 0:
            begin = max(0, limit - window)
            found = 0
            for match in _PLACES.finditer(text, begin, limit + _REACH):
                if match.end() > limit:
                    break
                found = match.end()
            if found or not begin:
                return found
            window *= 8
        return 0

    def first(self, text: bytes | bytearray, start: int) -> int:
        """The smallest safe cut that is at least `start`, or 0 if there is none yet."""
        for match in _PLACES.finditer(text, max(0, start - _REACH)):
            if match.end() >= start:
                return match.end()
        return 0


def cutter_for(encoding: str) -> PatternCuts | None:
    """The cutter of a published encoding; None where no cuts are proven and documents stay whole."""
    return PatternCuts() if encoding in _PROVEN else None
