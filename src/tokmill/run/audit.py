"""The audit: while a run goes on, the reference tokenizer encodes a sample of the documents again, and the ids are compared.

The sample is chosen by content (the hash that also decides the validation side), so it does not depend on order, threads or
interruption; longer documents are likelier to be in it. Long documents are compared in a window between two safe cuts, because the
reference is thirty times slower and one book would use up the share of a hundred megabytes. The first document of a run is always
audited, so that a wrong engine is found in the first second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokmill.core.errors import AuditError
from tokmill.core.records import Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tokmill.core.protocols import Cutter, Encoder
    from tokmill.core.records import Location

_WINDOW_BYTES = 32 << 10
_BYTES_PER_TOKEN = 4
"""English text; used only to weigh long documents without asking each for its length."""


class Auditor:
    """Chooses the samples, and compares them with the reference."""

    def __init__(
        self,
        load_reference: Callable[[], Encoder],
        cutter: Cutter | None,
        fraction: float,
        engine: str = "tiktoken",
        *,
        is_all: bool = False,
    ) -> None:
        """fraction: of the bytes to encode again; 0: none. engine: name of the reference. is_all: also of long ones."""
        self._load_reference = load_reference
        self._cutter = cutter
        self._fraction = fraction
        self._engine = engine
        self._is_all = is_all
        self._reference: Encoder | None = None

    def choose(self, hashes: NDArray[np.uint64], offsets: NDArray[np.int64], *, first: bool) -> list[int]:
        """Return the indices of the documents to compare.

        hashes: uint64, shape (n_documents,); offsets: int64, shape (n_documents + 1,), in tokens; first: at the start of a run.
        """
        if self._fraction <= 0 or not len(hashes):
            return []
        windows = np.maximum(1.0, np.diff(offsets) * (_BYTES_PER_TOKEN / _WINDOW_BYTES))
        chosen = np.flatnonzero((hashes & np.uint64(0xFFFFFFFF)) < self._fraction * windows * 2.0**32).tolist()
        return [0, *chosen] if first and 0 not in chosen else chosen

    def compare(
        self,
        document: bytes,
        ids: NDArray[np.uint32],
        encoder: Encoder,
        location: Location,
        excerpt: tuple[int, int] | None = None,
    ) -> int:
        """Compare one document's ids with the reference's. Returns the bytes compared. Raises AuditError.

        ids: uint32, shape (n_tokens,), without EOT, no longer written by the encoder. excerpt: as `excerpt` returned it.
        """
        sample = self.sample(document, ids, encoder, location, excerpt)
        if sample is None:
            return 0
        self.check(sample)
        return len(sample.text)

    def sample(
        self,
        document: bytes,
        ids: NDArray[np.uint32],
        encoder: Encoder,
        location: Location,
        excerpt: tuple[int, int] | None = None,
    ) -> Sample | None:
        """Return what is to be compared of a document, arguments as of `compare`; None if that is nothing."""
        begin, end = excerpt or self.excerpt(document, int(ids[-1]) if len(ids) else 0)
        if begin == end:
            return None
        # A safe cut: the ids before it are those of the text before it alone.
        n_before = len(encoder.encode([document[:begin]])[0]) if begin else 0
        text, is_end = document[begin:end], end == len(document)
        # No token is shorter than a byte.
        ids = ids[n_before:] if is_end else ids[n_before : n_before + len(text)]
        return Sample(text, ids, n_before, begin, is_end, location)

    def prepare(self) -> None:
        """Load the reference, if anything will be compared with it."""
        if self._reference is None and self._fraction > 0:
            self._reference = self._load_reference()

    def check(self, sample: Sample) -> None:
        """Raise AuditError if the reference makes other ids of a sample."""
        if self._reference is None:
            self._reference = self._load_reference()
        expected = self._reference.encode([sample.text])[0]
        actual = sample.ids[: len(expected)]
        if not np.array_equal(actual, expected) or (sample.is_end and len(expected) != len(sample.ids)):
            raise _mismatch(expected, actual, sample, self._engine)

    def excerpt(self, document: bytes, salt: int, around: int | None = None) -> tuple[int, int]:
        """Return the bytes to compare: all of a short document, a window between safe cuts of a long one, or nothing.

        salt: Any number, which chooses the window. around: A place that is to be in it.
        """
        if len(document) <= _WINDOW_BYTES or self._is_all:
            return 0, len(document)
        if self._cutter is None:
            return (0, len(document)) if len(document) <= 4 * _WINDOW_BYTES else (0, 0)
        start = (len(document) * 2654435761 + salt * 40503) % (len(document) - _WINDOW_BYTES)
        if around is not None:
            start = self._cutter.last(document, max(0, around - _WINDOW_BYTES // 2))
        begin = self._cutter.first(document[: start + 2 * _WINDOW_BYTES], start) if start else 0
        end = self._cutter.last(document[: begin + 2 * _WINDOW_BYTES], begin + _WINDOW_BYTES)
        return (begin, end) if end > begin else (0, 0)


def _mismatch(expected: NDArray[np.uint32], actual: NDArray[Any], sample: Sample, engine: str) -> AuditError:
    n = min(len(expected), len(actual))
    different = np.flatnonzero(expected[:n] != actual[:n])
    at = int(different[0]) if len(different) else n
    shown = slice(max(0, at - 2), at + 3)
    return AuditError(
        "the fast engine and the reference tokenizer disagree: "
        f"at token {sample.n_before + at:,} of the document (from its byte {sample.begin:,} on) the engine has "
        f"{actual[shown].tolist()}, the reference {expected[shown].tolist()}",
        where=str(sample.location),
        allowed="the same ids from both",
        next_step=f"run again with --engine {engine} --fresh (slow, exact), and report this document",
    )
