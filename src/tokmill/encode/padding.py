"""The id that fills sequences up: one that the tokenizer has, so that a model has an embedding for it, and that no text becomes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokmill.core.errors import EngineError
from tokmill.encode.families import byte_characters
from tokmill.encode.loading import is_lossless, load_decoder
from tokmill.encode.tokenizer_json import load_tokenizer_json

if TYPE_CHECKING:
    from tokmill.core.records import Tokenizer

_NEVER = 0xFF
"""A byte that UTF-8 does not have. Every vocabulary of bytes has a token for it all the same."""
_NAMED = re.compile(r"[<\[|]+(?:\|?(?:finetune_right_)?pad(?:ding)?(?:_id|_token)?)[>\]|]+", re.IGNORECASE)
"""Special tokens whose name says that they are padding."""


def padding_id(tokenizer: Tokenizer) -> int | None:
    """Return an id for padding: a special token for it, else that of a byte that no text has; None where there is neither.

    Raises UsageError, ChangedError if the tokenizer is not here.
    """
    if tokenizer.kind == "tiktoken":
        return _id_of_byte(tokenizer)
    file = load_tokenizer_json(tokenizer)
    named = (i for token, i in sorted(file.special.items()) if _NAMED.fullmatch(token) and token not in file.unfit)
    found = next((i for i in named if i != tokenizer.eot_id), None)
    if found is None and is_lossless(tokenizer):
        found = file.tokens.get(byte_characters()[_NEVER])
    return found if found is not None else file.tokens.get(f"<0x{_NEVER:02X}>")


def _id_of_byte(tokenizer: Tokenizer) -> int | None:
    """Return the id whose text is that byte alone."""
    import numpy as np

    decoder = load_decoder(tokenizer)
    for i in range(tokenizer.n_ids):
        try:
            if i != tokenizer.eot_id and decoder.decode(np.array([i], np.uint32)) == bytes([_NEVER]):
                return i
        except EngineError:
            continue
    return None
