"""gigatoken behind the Encoder contract: the fast engine.

One tokenizer a thread and `parallel=False`: each has a cache of its own, and two of them together are a third faster than the
engine's own thread pool on one. The cache has no bound in 0.10.0; dropping the tokenizer gives the memory back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gigatoken import Tokenizer as Engine

from tokmill.encode.vocabulary import ENCODINGS, check_file
from tokmill.errors import EngineError, UsageError
from tokmill.types import text_to_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tokmill.types import Tokenizer


class GigatokenEncoder:
    """Implements `protocols.Encoder`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pattern = ENCODINGS[tokenizer.encoding].engine_pattern
        if pattern is None:
            raise UsageError(
                f"the fast engine cannot load {tokenizer.encoding}",
                where="--engine",
                allowed="tiktoken",
                next_step="run again with --engine tiktoken (exact, slower)",
            )
        check_file(tokenizer)
        self._path = text_to_path(tokenizer.path)
        self._pattern = pattern
        self._engine = self._load()

    def _load(self) -> Engine:
        # Without special tokens no text can become one.
        return Engine.from_tiktoken(self._path, pretokenizer=self._pattern, special_tokens={})

    def encode(self, documents: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Encode valid UTF-8 documents. The arrays are views of the engine's result, not touched by the next call."""
        try:
            layout = self._engine.encode_batch(list(documents), parallel=False).layout
        except (ValueError, TypeError, RuntimeError) as error:
            raise EngineError(f"the engine failed: {error}", next_step="run again with --engine tiktoken: it resumes") from error
        return np.asarray(layout.content.data), np.asarray(layout.offsets.data)

    def decode(self, ids: NDArray[np.uint32]) -> bytes:
        """The bytes of ordinary ids."""
        try:
            return bytes(self._engine.decode(np.ascontiguousarray(ids, np.uint32)))
        except (ValueError, IndexError, KeyError) as error:
            raise EngineError(f"the ids cannot be decoded: {error}", next_step="check that the file and the tokenizer belong together") from None

    def renew(self) -> None:
        """Drop the tokenizer with its cache and load it again (40 ms; the next 60 MB run at about a quarter of the speed)."""
        del self._engine
        self._engine = self._load()
