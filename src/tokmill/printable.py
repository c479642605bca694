r"""Text that is safe to show on a terminal: whatever a corpus, a file name or a message holds, nothing in it is acted upon.

A document may carry escape sequences that clear the screen, set the title, or (bidirectional controls) show text in another
order than it is stored. They are shown as `\x1b` and the like instead.
"""

from __future__ import annotations

import re

# C0 and C1 controls but tab and newline, DEL, soft hyphen, zero-width and bidirectional controls, line and paragraph
# separators, interlinear marks, tag characters, byte order mark, surrogates (which stand for bytes that are not UTF-8).
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """`text` with every character that a terminal could act upon as an escape; tabs and newlines stay."""
    return _UNSAFE.sub(_escape, text)


def printable_line(text: str) -> str:
    """As `printable`, on one line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def printable_bytes(data: bytes) -> str:
    r"""Bytes of a document as safe text; bytes that are not UTF-8 as `\xNN`."""
    return printable(data.decode("utf-8", "backslashreplace"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
