"""tiktoken behind the Encoder contract: what the fast engine is held against, and the engine to fall back on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tiktoken

from tokmill.encode.vocabulary import ENCODINGS, load_ranks
from tokmill.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tokmill.types import Tokenizer


class ReferenceEncoder:
    """Implements `protocols.Encoder` with `encode_ordinary`'s tokens. It has no caches that grow."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encoding = tiktoken.Encoding(
            tokenizer.encoding,
            pat_str=ENCODINGS[tokenizer.encoding].pattern,
            mergeable_ranks=load_ranks(tokenizer),
            special_tokens={},
        )

    def encode(self, documents: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Encode valid UTF-8 documents."""
        # Without special tokens to look for, this is encode_ordinary without the list of Python ints.
        parts = [self._encoding.encode_to_numpy(document.decode(), disallowed_special=()) for document in documents]
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return np.concatenate(parts).astype(np.uint32, copy=False), offsets

    def decode(self, ids: NDArray[np.uint32]) -> bytes:
        """The bytes of ordinary ids."""
        try:
            return self._encoding.decode_bytes(ids.tolist())
        except KeyError as error:
            raise EngineError(f"no token has the id {error}", next_step="check that the file and the tokenizer belong together") from None

    def renew(self) -> None:
        """Nothing to give back."""
