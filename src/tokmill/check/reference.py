"""Documents that the reference tokenizer encodes again, so that a check does not ask the engine that it checks.

The reference is tens of times slower than the engine, so by default it gets a sample: a share of the text, drawn by content, and
every document that has a character which the reference was not asked about before. Where engine and reference differ it is in what
they know of characters, and a random share would miss the one document in a million that has the rare one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.errors import AuditError
from tokmill.encode import cutter_of, load_encoder, reference_of
from tokmill.run import Auditor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tokmill.core.protocols import Encoder
    from tokmill.core.records import Location, Tokenizer

_N_CODES = 0x110000


class ReferenceSample:
    """The documents chosen, and their comparison with the reference."""

    def __init__(self, tokenizer: Tokenizer, fraction: float) -> None:
        """fraction: of the text to draw; 1: all of it."""
        self.documents = 0
        """Compared so far."""
        self.engine = reference_of(tokenizer)
        self._auditor = Auditor(
            lambda: load_encoder(tokenizer, self.engine), cutter_of(tokenizer), fraction, self.engine, is_all=fraction >= 1
        )
        self._fraction = fraction
        self._is_known = np.zeros(_N_CODES, np.bool_)
        self._is_known[:0x80] = True
        self._is_begun = False

    def compare(
        self,
        documents: Sequence[bytes],
        hashes: NDArray[np.uint64],
        encoder: Encoder,
        ids_of: Callable[[int], NDArray[np.uint32]],
        locate: Callable[[int], Location],
    ) -> None:
        """Choose among documents and compare.

        Args:
            documents: Their texts.
            hashes: Of the texts, uint64, shape (n_documents,).
            encoder: The one that encoded them.
            ids_of: The ids that were written for a document, without the end-of-text id.
            locate: Where a document is.

        Raises:
            AuditError: The ids differ.
        """
        if self._fraction <= 0 or not documents:
            return
        offsets = np.zeros(len(documents) + 1, np.int64)
        np.cumsum([len(document) // 4 for document in documents], out=offsets[1:])
        drawn = {*self._auditor.choose(hashes, offsets, first=not self._is_begun)}
        self._is_begun = True
        is_ascii = all(map(bytes.isascii, documents))
        for i, document in enumerate(documents):
            around = None if is_ascii else self._first_unknown(document)
            if i in drawn or around is not None:
                self._compare(document, ids_of(i), encoder, locate(i), around)

    def _compare(self, document: bytes, ids: NDArray[np.uint32], encoder: Encoder, location: Location, around: int | None) -> None:
        begin, end = self._auditor.excerpt(document, int(ids[-1]) if len(ids) else 0, around)
        try:
            self.documents += self._auditor.compare(document, ids, encoder, location, (begin, end)) > 0
        except AuditError as error:
            error.next_step = f"tokenize again with --engine {self.engine} --fresh (slow, exact), and report this document"
            raise
        self._is_known[_codes(document[begin:end])] = True

    def _first_unknown(self, document: bytes) -> int | None:
        """Return where the first character is that the reference was not asked about, in bytes."""
        if document.isascii():
            return None
        codes = _codes(document)
        unknown = np.flatnonzero(~self._is_known[codes])
        if not len(unknown):
            return None
        return len(codes[: unknown[0]].tobytes().decode("utf-32-le").encode())


def _codes(text: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(text.decode().encode("utf-32-le"), np.dtype("<u4"))
