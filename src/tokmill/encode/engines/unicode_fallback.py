"""Text with characters that an engine's Unicode knows and the reference's does not yet.

gigatoken 0.10.0 has the tables of Unicode 17, tiktoken 0.14 and Hugging Face tokenizers 0.23 those of 16: the 4,699 characters
assigned between them are letters, marks or digits to one and symbols to the other, so the text around them falls into other pieces.
The tables for NFC of the latter are older still: what only newer ones reorder or compose is normalized otherwise. All these
characters were found by asking both libraries (`unicode_tables.py`). The reference is what is promised; documents with such a
character are encoded by it. Without this, the audit would stop the run at the first of them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.documents import DocumentBuffer
from tokmill.encode.engines import unicode_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tokmill.core.protocols import Encoder

Ranges = tuple[tuple[int, int], ...]
"""First and last code point of each range, both included."""


def _ranges(text: str) -> Ranges:
    """Return what a list of hexadecimal code points and ranges of them says."""
    ends = (word.partition("-") for word in text.split())
    return tuple((int(first, 16), int(last or first, 16)) for first, _, last in ends)


NEWER, NEWER_SYMBOLS, NEWER_FOR_NFC = map(
    _ranges, (unicode_tables.NEWER, unicode_tables.NEWER_SYMBOLS, unicode_tables.NEWER_FOR_NFC)
)

_BYTES_PER_HIT = 2048
"""Where a first byte is more common than one in so many bytes, numpy looks at all of them at once (1 ms for 2 MB)."""


class UnicodeFallback:
    """The reference where a document holds a newer character, else the engine. Implements `protocols.Encoder`."""

    def __init__(self, engine: Encoder, load_reference: Callable[[], Encoder], encoding: str) -> None:
        """encoding: a published one, or a family of tokenizer.json."""
        self._newer = newer_for(encoding)
        self._engine = engine
        self._load_reference = load_reference
        self._reference: Encoder | None = None

    def encode(self, documents: Sequence[bytes], raw: memoryview | None = None) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """See the contract. Raises EngineError."""
        is_newer = None if raw is not None and not _holds_newer(raw.obj, self._newer) else _which_hold_newer(documents, self._newer)
        if is_newer is None:
            return self._engine.encode(documents)
        if self._reference is None:
            self._reference = self._load_reference()
        newer = self._reference.encode([documents[i] for i in np.flatnonzero(is_newer).tolist()])
        others = self._engine.encode([documents[i] for i in np.flatnonzero(~is_newer).tolist()])
        return _merge(newer, others, is_newer)

    def decode(self, ids: NDArray[np.uint32]) -> bytes:
        """See the contract. Raises EngineError."""
        return self._engine.decode(ids)

    def reset_caches(self) -> None:
        """Drop the caches, and the reference."""
        self._reference = None
        self._engine.reset_caches()


def _which_hold_newer(documents: Sequence[bytes], newer: Ranges) -> NDArray[np.bool_] | None:
    """Return which documents hold a newer character, bool, shape (n_documents,), or None. May name one that does not."""
    # A separator, NUL or a byte that UTF-8 has not, does no harm: it is part of no character.
    if not _holds_newer(documents.data if isinstance(documents, DocumentBuffer) else b"".join(documents), newer):
        return None
    return np.array([_holds_newer(document, newer) for document in documents], np.bool_)


def _holds_newer(data: object, newer: Ranges) -> bool:
    """Return whether a newer character is in the text. May be wrong for one that differs in its fourth byte. data: bytes."""
    assert isinstance(data, bytes)
    if data.isascii():
        return False
    # A byte is searched for at 20 GB/s, and prose in most scripts has none of the first bytes of newer characters.
    return any(_holds(data, lead, table) for lead, table in _tables(newer) if lead in data)


def _holds(data: bytes, lead: bytes, table: NDArray[np.bool_] | None) -> bool:
    """Return whether `lead`, which is in the text, is followed anywhere by two bytes that the table has."""
    if table is None:
        return True
    at = data.find(lead)
    for _ in range(len(data) // _BYTES_PER_HIT):
        if at < 0:
            return False
        after = data[at + 1 : at + 3]
        if len(after) == 2 and table[(after[0] & 63) << 6 | (after[1] & 63)]:
            return True
        at = data.find(lead, at + 1)
    text = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(text[:-2] == lead[0])
    return bool(table[_index(text[places + 1], text[places + 2])].any())


def newer_for(encoding: str) -> Ranges:
    """Return the characters that gigatoken must not encode. encoding: a published one, or a family of tokenizer.json."""
    base, _, normalizer = encoding.partition("+")
    symbols = NEWER_SYMBOLS if base == "deepseek_v3" else ()
    return (*NEWER, *symbols, *(NEWER_FOR_NFC if normalizer == "nfc" else ()))


@cache
def _tables(newer: Ranges) -> tuple[tuple[bytes, NDArray[np.bool_] | None], ...]:
    """Return, by first byte, which two bytes after it begin a newer character: bool, shape (4096,). A fourth is not looked at.

    None: any, for characters of two bytes.
    """
    tables: dict[int, NDArray[np.bool_]] = {}
    short = set()
    for first, last in newer:
        for character in map(chr, range(first, last + 1)):
            data = np.frombuffer(character.encode(), np.uint8)
            if len(data) == 2:
                short.add(int(data[0]))
                continue
            table = tables.setdefault(int(data[0]), np.zeros(4096, np.bool_))
            table[_index(data[1:2], data[2:3])] = True
    return tuple((bytes([lead]), table) for lead, table in [*tables.items(), *((lead, None) for lead in short)])


def _index(second: NDArray[np.uint8], third: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return twelve bits of two bytes 80 to bf."""
    return (second & 63).astype(np.intp) << 6 | (third & 63)


def _merge(
    newer: tuple[NDArray[np.uint32], NDArray[np.int64]],
    others: tuple[NDArray[np.uint32], NDArray[np.int64]],
    is_newer: NDArray[np.bool_],
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the ids of both in the order of the documents. is_newer: bool, shape (n_documents,)."""
    lengths = np.zeros(len(is_newer), np.int64)
    lengths[is_newer], lengths[~is_newer] = np.diff(newer[1]), np.diff(others[1])
    offsets = np.zeros(len(is_newer) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    ids = np.empty(int(offsets[-1]), np.uint32)
    from_newer = np.repeat(is_newer, lengths)
    ids[from_newer], ids[~from_newer] = newer[0], others[0]
    return ids, offsets
