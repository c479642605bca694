r"""Short documents, many as one text: the engine takes 190 ns for each text beyond what its pieces take, as long as for 100 bytes.

Between two documents stands white space, where the first ends and the second begins with a character that is none. In the pattern
of r50k_base that is a vertical tab: no piece with other characters goes on with one or begins with one. In those of cl100k_base and
o200k_base a newline may end a piece of punctuation and anything but a newline begin a piece of letters: there it is a space, a
vertical tab and a newline, of which no piece but one of white space takes more than the space, and that one ends at the newline.
The second document begins as if nothing stood before it; white space inside of a document is followed by another character of it,
so what looks ahead (`\s+(?!\S)`, `\s++$`) never looks beyond the document. So what stands between has ids of its own, always the
same; and as no document holds a vertical tab, the id that has it says where documents end.

A special token between them would cost the engine as much as another text does. Documents with a vertical tab, and all
of them where they are long, are encoded as they were.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.documents import NO_BYTE, DocumentBuffer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tokmill.core.protocols import Encoder

BETWEEN = {"r50k_base": b"\v", "cl100k_base": b" \v\n", "o200k_base": b" \v\n"}
"""What stands between documents, for the encodings for which the above is proven."""
_MARK = b"\v"
_SHORT_BYTES = 128
"""Documents up to here, on average, are joined."""
_FEW_DOCUMENTS = 64
_WHITE = "".join(map(chr, (*range(0x21), 0x7F, 0x85, 0xA0, 0x1680, 0x180E, *range(0x2000, 0x2010), 0x2028, 0x2029, 0x202F)))
_WHITE += "\u205f\u2060\u3000\ufeff"
"""White space of any version of Unicode, and what may be taken for it."""


class JoinedShortDocuments:
    """Implements `protocols.Encoder` for valid UTF-8, by another one."""

    def __init__(self, engine: Encoder, encoding: str) -> None:
        """encoding: that of the engine, a key of `BETWEEN`."""
        self._engine = engine
        self._between = BETWEEN[encoding]
        self._n_ids = 0
        """Number of ids of the text between documents; 0: not encoded yet, so that decoding does not wait for it."""
        self._mark_at = self._mark_id = 0

    def encode(self, documents: Sequence[bytes], raw: memoryview | None = None) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """See the contract. Raises EngineError."""
        if len(documents) >= _FEW_DOCUMENTS:
            lengths = _lengths(documents)
            if int(lengths.sum()) <= _SHORT_BYTES * len(documents):
                data = self._joined(documents)
                if data.count(_MARK) == len(documents) - 1:
                    return self._together(data, lengths)
        return self._engine.encode(documents, raw)

    def decode(self, ids: NDArray[np.uint32]) -> bytes:
        """See the contract. Raises EngineError."""
        return self._engine.decode(ids)

    def reset_caches(self) -> None:
        """Give back the caches."""
        self._engine.reset_caches()

    def _learn(self) -> None:
        ids, _ = self._engine.encode([self._between])
        self._mark_at = next(i for i in range(len(ids)) if _MARK in self._engine.decode(ids[i : i + 1]))
        self._mark_id, self._n_ids = int(ids[self._mark_at]), len(ids)

    def _joined(self, documents: Sequence[bytes]) -> bytearray:
        n_between = len(self._between)
        if isinstance(documents, DocumentBuffer) and n_between == len(documents.separator) and not documents.starts[0]:
            ends = documents.ends[:-1]
            if (documents.starts[1:] - ends == n_between).all():
                # They lie there as they should, with something else between them.
                data = bytearray(memoryview(documents.data)[: int(documents.ends[-1])])
                text = np.frombuffer(data, np.uint8)
                for i, byte in enumerate(self._between):
                    text[ends + i] = byte
                return data
        return bytearray(self._between).join(documents)

    def _together(self, data: bytearray, lengths: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        if not self._n_ids:
            self._learn()
        n_between = len(self._between)
        ends = np.cumsum(lengths + n_between) - n_between
        text = np.frombuffer(data, np.uint8)
        is_joined = _may_be_joined(text, ends, n_between)
        apart = np.flatnonzero(~is_joined)
        text[ends[apart][:, None] + np.arange(n_between)] = NO_BYTE[0]
        group_ends = np.append(ends[apart], len(data))
        group_starts = np.concatenate(([0], group_ends[:-1] + n_between))
        ids, edges = self._engine.encode(DocumentBuffer(bytes(data), group_starts, group_ends, NO_BYTE * n_between))
        marks = np.flatnonzero(ids == self._mark_id) - self._mark_at
        # The ids in front of the end of each document, those between documents still among them; then without them.
        bounds = np.empty(len(lengths), np.int64)
        bounds[:-1][is_joined] = marks
        bounds[:-1][apart], bounds[-1] = edges[1:-1], edges[-1]
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(is_joined, out=offsets[2:])
        offsets[2:] *= -self._n_ids
        offsets[1:] += bounds
        is_text = np.ones(len(ids), np.bool_)
        for i in range(self._n_ids):
            is_text[marks + i] = False
        return ids[is_text], offsets


def _lengths(documents: Sequence[bytes]) -> NDArray[np.int64]:
    if isinstance(documents, DocumentBuffer):
        return documents.ends - documents.starts
    return np.fromiter(map(len, documents), np.int64, len(documents))


def _may_be_joined(text: NDArray[np.uint8], ends: NDArray[np.int64], n_between: int) -> NDArray[np.bool_]:
    """Return which documents end, and the next begins, with a character that is not white space: shape (n_documents - 1,)."""
    no_last, no_first = _tables()
    ends, begins = ends[:-1], ends[:-1] + n_between
    # The last of all may be one byte long: what follows it does not matter then.
    seconds = text[np.minimum(begins + 1, len(text) - 1)]
    return ~(no_last[_pair(text[ends - 2], text[ends - 1])] | no_first[_pair(text[begins], seconds)])


def _pair(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.intp]:
    return first.astype(np.intp) << 8 | second


@cache
def _tables() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return, by two bytes, whether white space may end with them, and begin with them: bool, shape (65536,)."""
    last, first = np.zeros((256, 256), np.bool_), np.zeros((256, 256), np.bool_)
    for data in map(str.encode, _WHITE):
        if len(data) == 1:
            last[:, data[0]] = first[data[0]] = True
        else:
            last[data[-2], data[-1]] = first[data[0], data[1]] = True
    return last.ravel(), first.ravel()
