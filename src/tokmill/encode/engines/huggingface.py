"""Hugging Face tokenizers: the reference for a tokenizer.json, and the engine for those that gigatoken is not proven for.

Special tokens stay text (`encode_special_tokens`), and nothing is added around documents. The difficulty is memory: it takes 40
bytes for each byte of short documents and up to 170 for those of a long one, so documents go in a few at a time, and long ones in
parts where a safe cut is known. Its cache of words is bounded. `tokmill tokenize` runs several of them, so its own threads are off
there (`TOKENIZERS_PARALLELISM`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import tokenizers

from tokmill.core.errors import UsageError
from tokmill.encode.engines import engine_error, unknown_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.protocols import Cutter

_GROUP_BYTES = 256 << 10
"""Text that goes in at once: ten megabytes of memory."""
_PART_BYTES = 64 << 10
"""Parts of a long document that may be cut."""


class HuggingFaceEncoder:
    """Implements `protocols.Encoder`."""

    def __init__(self, load: Callable[[], bytes], cutter: Cutter | None) -> None:
        """load: checks the file and returns it in the form for the reference.

        Raises EngineError; UsageError for a tokenizer that the library cannot work with; and what `load` raises.
        """
        data = load()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except BaseException as error:
            raise _failed(error) from error
        self._tokenizer.encode_special_tokens = True
        self._check_added()
        self._cutter = cutter

    def encode(
        self,
        documents: Sequence[bytes],
        raw: memoryview | None = None,  # noqa: ARG002  the contract's
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """See the contract. Raises EngineError."""
        ids: list[NDArray[np.uint32]] = [np.zeros(0, np.uint32)]
        lengths = np.zeros(len(documents) + 1, np.int64)
        for group in _groups(documents, self._cutter):
            try:
                found = self._tokenizer.encode_batch_fast([part.decode() for _, part in group], add_special_tokens=False)
            except BaseException as error:
                raise _failed(error) from error
            for (document, _), encoding in zip(group, found, strict=True):
                ids.append(np.array(encoding.ids, np.uint32))
                lengths[document + 1] += len(ids[-1])
        return np.concatenate(ids), np.cumsum(lengths)

    def decode(self, ids: NDArray[np.uint32]) -> bytes:
        """See the contract; the text as the reference gives it back, which may be another than the one encoded."""
        largest = int(ids.max()) if len(ids) else 0
        try:
            is_known = self._tokenizer.id_to_token(largest) is not None
            text: str = self._tokenizer.decode(ids.tolist(), skip_special_tokens=False) if is_known else ""
        except BaseException as error:
            raise _failed(error) from error
        if not is_known:
            raise unknown_id(f"no token has the id {largest:,}", f"ids of a vocabulary of {self._tokenizer.get_vocab_size():,}")
        return text.encode()

    def reset_caches(self) -> None:
        """Nothing to give back."""

    def _check_added(self) -> None:
        """The library looks for added tokens in normalized text: an empty one is found everywhere, which ends in panics.

        With some texts it ends in memory without end (0.23: 21 GB for a word). Raises UsageError.
        """
        normalizer = self._tokenizer.normalizer
        for token in self._tokenizer.get_added_tokens_decoder().values():
            if normalizer is not None and token.normalized and not normalizer.normalize_str(token.content):
                raise UsageError(
                    f"its normalizer leaves nothing of the added token {token.content!r}, and the library fails at that",
                    option="--tokenizer",
                    allowed="added tokens that are not normalized, or of which something is left",
                    next_step=f'set "normalized" to false for {token.content!r} in the tokenizer.json, or use another tokenizer',
                )


def _groups(documents: Sequence[bytes], cutter: Cutter | None) -> Iterator[list[tuple[int, bytes]]]:
    """Yield all parts of all documents, each with the index of its document, a few at a time."""
    group: list[tuple[int, bytes]] = []
    n_bytes = 0
    for i, document in enumerate(documents):
        for part in _parts(document, cutter):
            group.append((i, part))
            n_bytes += len(part)
            if n_bytes >= _GROUP_BYTES:
                yield group
                group, n_bytes = [], 0
    if group:
        yield group


def _parts(document: bytes, cutter: Cutter | None) -> Iterator[bytes]:
    """Yield a document in parts whose ids are those of the whole."""
    cuts, start = [0], _PART_BYTES
    while cutter is not None and start < len(document):
        cut = cutter.first(document, start)
        if not cut:
            break
        cuts.append(cut)
        start = cut + _PART_BYTES
    yield from (document[a:b] for a, b in pairwise([*cuts, len(document)]))


def _failed(error: BaseException) -> BaseException:
    """Return what to raise; the library raises Exception itself."""
    allowed = "any text, and ids of the vocabulary"
    return engine_error(error, "Hugging Face tokenizers", (Exception,), allowed, "report the tokenizer and the document")
