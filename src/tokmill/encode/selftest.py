"""The self-test of the engine: a fixed text, encoded by the engine and by the reference, and compared.

In a process of its own, because a broken compiled module may end the process that loads it.
"""

from __future__ import annotations

import msgspec
import numpy as np

from tokmill.core.system.process import serve_once
from tokmill.encode.loading import disable_awkward, load_encoder
from tokmill.encode.resolve import resolve_tokenizer

TEXTS = (
    "The quick brown fox jumps over the lazy dog. It's 1984, isn't it?\n",
    "  Spaces,\ttabs\n\n\nand 12345678 digits; naïve café, Zürich, ß\n",
    "日本語のテキスト、中文、한국어. Привет, мир! مرحبا 👩‍👩‍👧‍👦\n",
    "<|endoftext|> is text here, and so is <|im_start|>.\n",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}  # comment\r\n",
)


class Tried(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The result of the self-test."""

    n_tokens: int
    differs_in: int | None
    """Index of the first of `TEXTS` whose ids differ; None if all are the same."""


def try_engine() -> Tried:
    """Encode the texts with both. Raises TokmillError, ImportError."""
    tokenizer = resolve_tokenizer("gpt2")
    documents = [text.encode() for text in TEXTS]
    ids, offsets = load_encoder(tokenizer, "gigatoken").encode(documents)
    wanted, wanted_offsets = load_encoder(tokenizer, "tiktoken").encode(documents)
    differing = (
        i
        for i in range(len(documents))
        if not np.array_equal(ids[offsets[i] : offsets[i + 1]], wanted[wanted_offsets[i] : wanted_offsets[i + 1]])
    )
    return Tried(n_tokens=len(wanted), differs_in=next(differing, None))


if __name__ == "__main__":
    disable_awkward()
    serve_once(lambda _question: try_engine())
