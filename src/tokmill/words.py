"""Numbers with their nouns, for messages: `1 file`, `2,000 files`; and the word that was meant."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """`n` and the noun that goes with it. plural: where it is not the noun with an s."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word that is most like a mistyped one, or the first of them."""
    return [*difflib.get_close_matches(word.lower(), known, 1), known[0]][0]
