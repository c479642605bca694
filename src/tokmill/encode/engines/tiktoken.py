"""tiktoken: the reference for published encodings, and the engine to fall back on.

The encoding is built from the file of ranks with the published pattern and no special tokens, so nothing is fetched, and no
text can become a special token. It has no caches that grow. Its pattern matcher gives up inside white space of about a million
characters that a word follows; that is an EngineError here, and gigatoken has no such limit.
"""

from __future__ import annotations

from binascii import a2b_base64
from typing import TYPE_CHECKING

import numpy as np
import tiktoken

from tokmill.core.errors import EngineError
from tokmill.encode.engines import unknown_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


class TiktokenEncoder:
    """Implements `protocols.Encoder` with the tokens of `encode_ordinary`."""

    def __init__(self, encoding: str, pattern: str, ranks: Callable[[], str]) -> None:
        """ranks: checks the file of ranks and returns its path. Raises what `ranks` raises."""
        self._encoding = tiktoken.Encoding(encoding, pat_str=pattern, mergeable_ranks=_load(ranks()), special_tokens={})

    def encode(
        self,
        documents: Sequence[bytes],
        raw: memoryview | None = None,  # noqa: ARG002  the contract's
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """See the contract. Raises EngineError."""
        try:
            # With no special tokens to look for, this is encode_ordinary without its list of Python ints.
            parts = [self._encoding.encode_to_numpy(document.decode(), disallowed_special=()) for document in documents]
        except ValueError as error:
            raise EngineError(
                f"tiktoken failed: {error}",
                where="a batch of the engine",
                allowed="what tiktoken can encode: a run of about a million letters is too long for it",
                next_step="run again with --engine gigatoken, which has no such limit",
            ) from error
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return np.concatenate([np.zeros(0, np.uint32), *parts]), offsets

    def decode(self, ids: NDArray[np.uint32]) -> bytes:
        """See the contract. Raises EngineError."""
        try:
            return self._encoding.decode_bytes(ids.tolist())
        except (KeyError, OverflowError) as error:
            raise unknown_id(f"an id is not in the vocabulary: {error}", f"ordinary ids of {self._encoding.name}") from error

    def reset_caches(self) -> None:
        """Nothing to give back."""


def _load(path: str) -> dict[bytes, int]:
    """Return token bytes and their ranks; each line of the file is base64, a space, and the rank."""
    with open(path, "rb") as file:
        words = file.read().split()
    return dict(zip(map(a2b_base64, words[::2]), map(int, words[1::2]), strict=True))
