"""Text with characters that an engine's Unicode knows and the reference's does not yet.

gigatoken 0.10.0 has the tables of Unicode 17, tiktoken 0.14 those of 16: the 4,699 characters assigned between them are
letters, marks or digits to one and symbols to the other, so the text around them falls into other pieces. The reference is what
is promised; documents with such a character are encoded by it. Refused: to let the audit stop the run at the first of them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tokmill.protocols import Encoder

# Found by encoding every code point in a dozen contexts with both engines; the slow test does it again.
NEWER = (
    *((0x88F, 0x88F), (0xC5C, 0xC5C), (0xCDC, 0xCDC), (0x1ACF, 0x1ADD), (0x1AE0, 0x1AEB), (0xA7CE, 0xA7CF), (0xA7D2, 0xA7D2)),
    *((0xA7D4, 0xA7D4), (0xA7F1, 0xA7F1), (0x10940, 0x10959), (0x10EC5, 0x10EC7), (0x10EFA, 0x10EFB), (0x11B60, 0x11B67)),
    *((0x11DB0, 0x11DDB), (0x11DE0, 0x11DE9), (0x16EA0, 0x16EB8), (0x16EBB, 0x16ED3), (0x16FF2, 0x16FF6), (0x187F8, 0x187FF)),
    *((0x18D09, 0x18D1E), (0x18D80, 0x18DF2), (0x1E6C0, 0x1E6DE), (0x1E6E0, 0x1E6F5), (0x1E6FE, 0x1E6FF)),
    *((0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD), (0x323B0, 0x33479)),
)
"""First and last code point, both included."""


_BYTES_PER_HIT = 2048
"""Where a first byte is more common than one in so many bytes, numpy looks at all of them at once (1 ms for 2 MB)."""


class ReferenceForNewer:
    """Implements `protocols.Encoder`: the reference where a document holds a newer character, else the engine."""

    def __init__(self, engine: Encoder, load_reference: Callable[[], Encoder]) -> None:
        self._engine = engine
        self._load_reference = load_reference
        self._reference: Encoder | None = None

    def encode(self, documents: Sequence[bytes], raw: memoryview | None = None) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """See the contract. Raises EngineError."""
        is_newer = None if raw is not None and not _holds_newer(raw.obj) else _which_hold_newer(documents)
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

    def renew(self) -> None:
        """Give back the caches, and the reference."""
        self._reference = None
        self._engine.renew()


def _which_hold_newer(documents: Sequence[bytes]) -> NDArray[np.bool_] | None:
    """Which documents hold a newer character, bool, shape (n_documents,); None: none does. May name one that does not."""
    if not _holds_newer(b"".join(documents)):
        return None
    return np.array([_holds_newer(document) for document in documents], np.bool_)


def _holds_newer(data: object) -> bool:
    """Whether a newer character is in the text. May say yes to one that differs in its fourth byte. data: bytes."""
    assert isinstance(data, bytes)
    if data.isascii():
        return False
    # A byte is searched for at 20 GB/s, and prose in most scripts has none of the first bytes of newer characters.
    return any(_holds(data, lead, table) for lead, table in _tables() if lead in data)


def _holds(data: bytes, lead: bytes, table: NDArray[np.bool_]) -> bool:
    """Whether `lead` stands anywhere with two bytes behind it that the table has."""
    at = data.find(lead)
    for _ in range(len(data) // _BYTES_PER_HIT):
        if at < 0:
            return False
        behind = data[at + 1 : at + 3]
        if len(behind) == 2 and table[(behind[0] & 63) << 6 | (behind[1] & 63)]:
            return True
        at = data.find(lead, at + 1)
    text = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(text[:-2] == lead[0])
    return bool(table[_index(text[places + 1], text[places + 2])].any())


@cache
def _tables() -> tuple[tuple[bytes, NDArray[np.bool_]], ...]:
    """By first byte, which two bytes behind it begin a newer character: bool, shape (4096,). A fourth is not looked at."""
    tables: dict[int, NDArray[np.bool_]] = {}
    for first, last in NEWER:
        for character in map(chr, range(first, last + 1)):
            data = np.frombuffer(character.encode(), np.uint8)
            table = tables.setdefault(int(data[0]), np.zeros(4096, np.bool_))
            table[_index(data[1:2], data[2:3])] = True
    return tuple((bytes([lead]), table) for lead, table in tables.items())


def _index(second: NDArray[np.uint8], third: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Twelve bits of two bytes 80 to bf."""
    return (second & 63).astype(np.intp) << 6 | (third & 63)


def _merge(
    newer: tuple[NDArray[np.uint32], NDArray[np.int64]],
    others: tuple[NDArray[np.uint32], NDArray[np.int64]],
    is_newer: NDArray[np.bool_],
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The ids of both in the order of the documents. is_newer: bool, shape (n_documents,)."""
    lengths = np.zeros(len(is_newer), np.int64)
    lengths[is_newer], lengths[~is_newer] = np.diff(newer[1]), np.diff(others[1])
    offsets = np.zeros(len(is_newer) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    ids = np.empty(int(offsets[-1]), np.uint32)
    from_newer = np.repeat(is_newer, lengths)
    ids[from_newer], ids[~from_newer] = newer[0], others[0]
    return ids, offsets
