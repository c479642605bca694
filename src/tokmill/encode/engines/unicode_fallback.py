"""Text with characters that an engine's Unicode knows and the reference's does not yet.

gigatoken 0.10.0 has the tables of Unicode 17, tiktoken 0.14 and Hugging Face tokenizers 0.23 those of 16: the 4,699 characters
assigned between them are letters, marks or digits to one and symbols to the other, so the text around them falls into other pieces.
The tables for NFC of the latter are older still. The reference is what is promised; documents with such a character are encoded
by it. Without this, the audit would stop the run at the first of them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.documents import DocumentBuffer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tokmill.core.protocols import Encoder

Ranges = tuple[tuple[int, int], ...]

# Found by encoding every code point in a dozen contexts with both engines; the slow test does it again.
NEWER = (
    *((0x88F, 0x88F), (0xC5C, 0xC5C), (0xCDC, 0xCDC), (0x1ACF, 0x1ADD), (0x1AE0, 0x1AEB), (0xA7CE, 0xA7CF), (0xA7D2, 0xA7D2)),
    *((0xA7D4, 0xA7D4), (0xA7F1, 0xA7F1), (0x10940, 0x10959), (0x10EC5, 0x10EC7), (0x10EFA, 0x10EFB), (0x11B60, 0x11B67)),
    *((0x11DB0, 0x11DDB), (0x11DE0, 0x11DE9), (0x16EA0, 0x16EB8), (0x16EBB, 0x16ED3), (0x16FF2, 0x16FF6), (0x187F8, 0x187FF)),
    *((0x18D09, 0x18D1E), (0x18D80, 0x18DF2), (0x1E6C0, 0x1E6DE), (0x1E6E0, 0x1E6F5), (0x1E6FE, 0x1E6FF)),
    *((0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD), (0x323B0, 0x33479)),
)
"""First and last code point, both included."""
NEWER_SYMBOLS = (
    *(
        (0x20C1, 0x20C1),
        (0x2B96, 0x2B96),
        (0xFBC3, 0xFBD2),
        (0xFD90, 0xFD91),
        (0xFDC8, 0xFDCE),
        (0x10ED0, 0x10ED8),
        (0x1CCFA, 0x1CCFC),
    ),
    *(
        (0x1CEBA, 0x1CED0),
        (0x1CEE0, 0x1CEF0),
        (0x1F6D8, 0x1F6D8),
        (0x1F777, 0x1F77A),
        (0x1F8D0, 0x1F8D8),
        (0x1FA54, 0x1FA57),
        (0x1FA8A, 0x1FA8A),
    ),
    *((0x1FA8E, 0x1FA8E), (0x1FAC8, 0x1FAC8), (0x1FACD, 0x1FACD), (0x1FAEA, 0x1FAEA), (0x1FAEF, 0x1FAEF), (0x1FBFA, 0x1FBFA)),
)
"""Further characters, for patterns that name symbols and punctuation (deepseek_v3)."""
NEWER_FOR_NFC = (
    *((0x7FD, 0x7FD), (0x897, 0x89F), (0x8CA, 0x8D3), (0x9FE, 0x9FE), (0xC3C, 0xC3C), (0xD3B, 0xD3C), (0xEBA, 0xEBA)),
    *(
        (0x1715, 0x1715),
        (0x1ABF, 0x1ACE),
        (0x1DF6, 0x1DFA),
        (0xA82C, 0xA82C),
        (0x10D24, 0x10D27),
        (0x10D69, 0x10D6D),
        (0x10EAB, 0x10EAC),
    ),
    *(
        (0x10EFD, 0x10EFF),
        (0x10F46, 0x10F50),
        (0x10F82, 0x10F85),
        (0x11070, 0x11070),
        (0x1133B, 0x1133B),
        (0x11380, 0x113FF),
        (0x1145E, 0x1145E),
    ),
    *(
        (0x11839, 0x1183A),
        (0x11900, 0x1195F),
        (0x119E0, 0x119E0),
        (0x11A34, 0x11A34),
        (0x11A47, 0x11A47),
        (0x11A99, 0x11A99),
        (0x11D42, 0x11D42),
    ),
    *(
        (0x11D44, 0x11D45),
        (0x11D97, 0x11D97),
        (0x11F41, 0x11F42),
        (0x16100, 0x1613F),
        (0x16D40, 0x16D7F),
        (0x16FF0, 0x16FF1),
        (0x1E08F, 0x1E08F),
    ),
    *((0x1E130, 0x1E136), (0x1E2AE, 0x1E2AE), (0x1E2EC, 0x1E2EF), (0x1E4EC, 0x1E4EF), (0x1E5EE, 0x1E5EF)),
)
"""Marks whose combining class is not in the reference's older tables, and the blocks with newer compositions, for NFC."""

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
