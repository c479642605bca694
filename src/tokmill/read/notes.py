"""What a reader noticed of the inputs, for a person: separators that do not occur, and bytes that are hardly text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import typed_separator
from tokmill.core.local_struct import MutableStruct
from tokmill.core.text import counted, shortened

if TYPE_CHECKING:
    from tokmill.core.config import Content
    from tokmill.core.records import Location

_UNDIVIDED_BYTES = 1 << 20
"""A text of so many bytes without a separator is worth a word."""
_MOST_NAMED = 3


class InputNotes(MutableStruct):
    """Notes by the number of the input."""

    texts: dict[int, tuple[bool, int, int]] = msgspec.field(default_factory=dict)
    """Of text files: whether they were read from their beginning on, how many documents, and how many bytes."""
    zeros: dict[int, Location] = msgspec.field(default_factory=dict)
    """Of inputs of which many bytes are zero: where that begins."""

    def add(self, after: InputNotes, first: int, shift: int) -> None:
        """Add the notes of what follows. first: number of its first input; shift: records of that one before it."""
        for i, (is_beginning, n_documents, n_bytes) in after.texts.items():
            before = (True, 0, 0) if is_beginning else self.texts.get(first + i, (False, 0, 0))
            self.texts[first + i] = (before[0], before[1] + n_documents, before[2] + n_bytes)
        for i, where in after.zeros.items():
            record = None if where.record is None else where.record + (shift if not i else 0)
            self.zeros.setdefault(first + i, msgspec.structs.replace(where, record=record))

    def notices(self, content: Content) -> list[str]:
        """Return what is to be said."""
        found = []
        if self.zeros:
            names = "; ".join(shortened([str(place) for place in self.zeros.values()][:_MOST_NAMED], _MOST_NAMED, len(self.zeros)))
            found.append(f"many of the bytes are zero, as in UTF-16 or in what is no text, from here on: {names}")
        large = {i: n for i, (is_whole, n, n_bytes) in self.texts.items() if is_whole and n_bytes >= _UNDIVIDED_BYTES}
        undivided = [content.inputs[i].path for i in sorted(large) if large[i] == 1]
        if undivided:
            n, separator = len(undivided), typed_separator(content.separator)
            names = ", ".join(shortened(undivided[:_MOST_NAMED], _MOST_NAMED, n))
            files = f"{n:,} of {counted(len(large), 'text file')} of more than 1 MiB, each of which is one document: {names}"
            where = names if n == 1 else files
            found.append(f"the separator {separator} does not occur in {where}; say with --separator where documents end")
        return found
