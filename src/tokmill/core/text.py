r"""Text for people: numbers with units and nouns, the nearest known word, and text that is safe to print on a terminal.

A document may carry escape sequences that clear the screen, set the title, or (bidirectional controls) show text in another
order than it is stored. They are shown as `\x1b` and the like instead.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# C0 and C1 controls but tab and newline, DEL, soft hyphen, zero-width and bidirectional controls, line and paragraph
# separators, interlinear marks, tag characters, byte order mark, surrogates (which stand for bytes that are not UTF-8).
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)

_LONGEST = 4096
"""A line of more characters is no path: it comes from a file that somebody else made."""
_EXTENSION = re.compile(r"\.[a-z][a-z0-9]*$")
_LONG = 5
"""Shorter names differ by a letter and are of different things."""
_GIB = 1 << 30
_MIB = 1 << 20


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """Return `n` and the noun that goes with it. plural: if it is not the noun with an s."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def shortened(texts: Sequence[str], most: int, n: int | None = None) -> list[str]:
    """Return the first `most` texts and, if there are others, how many. n: of all, if not `texts` has them."""
    n_more = (len(texts) if n is None else n) - most
    return [*texts[:most], *([f"and {n_more:,} more"] if n_more > 0 else [])]


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the known word that is most like a mistyped one, or the first of them."""
    import difflib

    return [*difflib.get_close_matches(word.lower(), known, 1), known[0]][0]


def quoted(word: str) -> str:
    r"""Return a word for the shell, on one line: characters that a terminal may act upon are written as `$'\n'`."""
    if not _UNSAFE.search(word) and not {"\n", "\t"} & {*word}:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return f"$'{_UNSAFE.sub(_escape_bytes, escaped)}'"


def joined(words: Sequence[str]) -> str:
    """Return a command of these words for the shell, on one line."""
    return " ".join(map(quoted, words))


def misspelt(name: str, known: Sequence[str]) -> str | None:
    """Return the name of a file for which this one was surely typed; None where that may be another file, or one of several."""
    near = [each for each in known if _is_slip(name, each)]
    return near[0] if len(near) == 1 else None


def _is_slip(typed: str, name: str) -> bool:
    """Whether the names differ by case, by what is behind a dot, or, if they are long, by one letter or two that changed places."""
    a, b = typed.lower(), name.lower()
    stems = [_EXTENSION.sub("", each) for each in (a, b)]
    if {a, stems[0]} & {b, stems[1]}:
        return True
    # Another number is another file.
    if max(map(len, stems)) < _LONG or re.sub(r"\D", "", a) != re.sub(r"\D", "", b):
        return False
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    a, b = a[n:], b[n:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def printable(text: str) -> str:
    """Return `text` with every character that a terminal could act upon as an escape; tabs and newlines stay."""
    return _UNSAFE.sub(_escape, text)


def printable_line(text: str, most: int = _LONGEST) -> str:
    """Return `text` as `printable` does, on one line; of a longer one the first `most` characters, and how many there are."""
    more = f"... ({counted(len(text), 'character')})" if len(text) > most else ""
    return printable(text[:most]).replace("\n", "\\n").replace("\t", "\\t") + more


def printable_bytes(data: bytes) -> str:
    r"""Return bytes of a document as safe text; bytes that are not UTF-8 as `\xNN`."""
    return printable(data.decode("utf-8", "backslashreplace"))


def _escape_bytes(match: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in match[0].encode("utf-8", "surrogateescape"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def format_bytes(n: float) -> str:
    """Return `119.7 MB`: powers of 1000, as for disks and rates."""
    if n < 1000:
        return f"{n:,.0f} B"
    for unit in ("kB", "MB", "GB"):
        n /= 1000
        if n < 999.95:
            return f"{n:,.1f} {unit}"
    return f"{n / 1000:,.1f} TB"


def format_rate(bytes_per_s: float) -> str:
    """Return `337 MB/s`, with more digits for small numbers; `0.02 kB/s` for the smallest."""
    n = bytes_per_s / 1e6
    if n < 0.01:
        return f"{bytes_per_s / 1e3:.2g} kB/s"
    return f"{n:,.0f} MB/s" if n >= 10 else f"{n:.2g} MB/s"


def format_memory(n: float) -> str:
    """Return `1.0 GiB`: powers of 1024, as for memory."""
    return f"{n / _GIB:,.1f} GiB" if n >= _GIB else f"{n / _MIB:,.0f} MiB"


def format_duration(seconds: float) -> str:
    """Return `1:02:03`, or `0:45`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
