"""From a resolved tokenizer to an engine that holds it, and to the safe cuts of its texts."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import EngineError, UsageError
from tokmill.core.text import shortened
from tokmill.encode.families import family_of
from tokmill.encode.resolve import engine_of, known_encoding, ranks_path, reference_of
from tokmill.encode.safe_cuts import AddedTokenCuts, cutter_for
from tokmill.encode.tokenizer_json import TokenizerFile, load_tokenizer_json

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from tokmill.core.protocols import Cutter, Encoder
    from tokmill.core.records import Tokenizer

_MOST_NORMALIZED = 8
"""Ids of a byte of text, and of where a document begins, for families that normalize: more than any does."""
_MOST_OTHERS = 5
"""Special tokens that a notice names."""
ENGINES = {
    "gigatoken": "tokmill.encode.engines.gigatoken:GigatokenEncoder",
    "tiktoken": "tokmill.encode.engines.tiktoken:TiktokenEncoder",
    "tokenizers": "tokmill.encode.engines.huggingface:HuggingFaceEncoder",
}
"""Where each engine is. The key is also the name of the package that it needs."""
_FOR_JSON = {"gigatoken": "tokmill.encode.engines.gigatoken:GigatokenJsonEncoder", "tokenizers": ENGINES["tokenizers"]}
"""Where each engine for a tokenizer.json is."""


def load_encoder(tokenizer: Tokenizer, engine: str) -> Encoder:
    """Load a tokenizer into an engine. An encoder is for one thread.

    Args:
        tokenizer: As `resolve_tokenizer` returned it.
        engine: A key of `ENGINES`.

    Raises:
        UsageError: The engine is unknown, not installed, or cannot hold this tokenizer.
        ChangedError: The tokenizer's file is not the one that was resolved.
    """
    if engine not in ENGINES:
        raise UsageError(
            f"there is no engine {engine!r}", option="--engine", allowed=", ".join(ENGINES), next_step="leave --engine out"
        )
    try:
        encoder = _loaded(tokenizer, engine)
        return _wrapped(encoder, tokenizer) if engine == "gigatoken" else encoder
    except ImportError as error:
        others = [e for e in ("gigatoken", reference_of(tokenizer)) if e != engine]
        raise UsageError(
            f"the engine {engine} cannot be imported: {error}",
            option="--engine",
            allowed="an engine whose package is installed",
            next_step=f"pip install {engine}, or run again with --engine {' or '.join(others)}",
        ) from error


def cutter_of(tokenizer: Tokenizer) -> Cutter | None:
    """Return what finds the safe cuts of a tokenizer's texts; None where none are proven, so that documents stay whole.

    Raises ChangedError if the tokenizer's file is not the one that was resolved.
    """
    cutter = cutter_for(tokenizer.encoding)
    if cutter is None or tokenizer.kind == "tiktoken":
        return cutter
    return _cutter_beside(load_tokenizer_json(tokenizer), cutter)


def is_lossless(tokenizer: Tokenizer) -> bool:
    """Return whether decoding gives the text back, byte for byte."""
    family = family_of(tokenizer.encoding)
    return tokenizer.kind == "tiktoken" or (family is not None and family.is_lossless)


def most_ids(tokenizer: Tokenizer) -> int | None:
    """Return how many ids a byte of text can become at most, and a document beside those of its bytes; None: that is not known.

    Byte-level merges begin with one for each byte. NFC makes three bytes of one at most; a space is three bytes as U+2581, and one
    may come before what follows each added token.
    """
    if is_lossless(tokenizer):
        return 1
    return None if family_of(tokenizer.encoding) is None else _MOST_NORMALIZED


def eot_notice(tokenizer: Tokenizer) -> str | None:
    """Return which of several special tokens was found to end documents; None where there is no other. Raises as `cutter_of`."""
    if tokenizer.kind == "tiktoken":
        return None
    file = load_tokenizer_json(tokenizer)
    chosen = next((token for token, i in file.special.items() if i == tokenizer.eot_id), "")
    others = [token for token in file.special if token != chosen and token not in file.unfit]
    if not others:
        return None
    other = ", ".join(shortened(others, _MOST_OTHERS))
    return f"documents end with {chosen} (id {tokenizer.eot_id:,}); --eot-token chooses another special token: {other}"


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id for text that the vocabulary lacks; None where it lacks none. Raises as `cutter_of`."""
    return None if is_lossless(tokenizer) else load_tokenizer_json(tokenizer).unknown_id


def load_decoder(tokenizer: Tokenizer) -> Encoder:
    """Load a tokenizer into the engine that decodes as the reference does. Raises as `load_encoder`."""
    return load_fastest(tokenizer) if _depends_on_unicode(tokenizer) else load_encoder(tokenizer, reference_of(tokenizer))


def text_lengths(encoder: Encoder, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the bytes of text of each id, int64, shape (n_ids,); 0 for the end-of-text id and ids without text."""
    import numpy as np

    lengths = np.zeros(tokenizer.n_ids, np.int64)
    for i in range(tokenizer.n_ids):
        if i != tokenizer.eot_id:
            with suppress(EngineError):
                lengths[i] = len(encoder.decode(np.array([i], np.uint32)))
    return lengths


def disable_awkward() -> None:
    """Let gigatoken return its arrays without awkward, and Hugging Face tokenizers use only the thread that calls it.

    For processes that run nothing but tokmill: awkward is replaced for all of them.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "awkward" in sys.modules:
        return
    stand_in = ModuleType("awkward")
    # All that gigatoken 0.10.0 uses of it: a class that arguments are compared with, and the function that makes the result.
    stand_in.Array = type("Array", (), {})  # type: ignore[attr-defined]
    stand_in.unflatten = lambda ids, lengths: (ids, lengths)  # type: ignore[attr-defined]
    sys.modules["awkward"] = stand_in


def load_fastest(tokenizer: Tokenizer) -> Encoder:
    """Load a tokenizer into the fastest engine that can hold it. Raises as `load_encoder`."""
    return load_encoder(tokenizer, engine_of(tokenizer, "gigatoken"))


def _loaded(tokenizer: Tokenizer, engine: str) -> Encoder:
    """Load the engine alone. Raises ImportError, and as `load_encoder`."""
    if engine_of(tokenizer, engine) != engine:
        raise UsageError(
            f"{engine} does not give the ids of {tokenizer.name}",
            option="--engine",
            allowed=reference_of(tokenizer),
            next_step=f"run again with --engine {reference_of(tokenizer)} (slower)",
        )
    if tokenizer.kind == "tiktoken":
        pattern = known_encoding(tokenizer).pattern
        return _imported(ENGINES[engine])(tokenizer.encoding, pattern, partial(ranks_path, tokenizer))  # type: ignore[no-any-return]
    try:
        return _loaded_json(tokenizer, engine)
    except EngineError as error:
        error.what, error.where = f"the tokenizer {tokenizer.name} cannot be loaded: {error.what}", tokenizer.path
        error.allowed = f"a tokenizer.json that {engine} loads"
        error.next_step = "make the file again with the package tokenizers that is installed, or use another tokenizer"
        raise


def _loaded_json(tokenizer: Tokenizer, engine: str) -> Encoder:
    load: Callable[..., Encoder] = _imported(_FOR_JSON[engine])
    if engine == "gigatoken":
        return load(lambda: load_tokenizer_json(tokenizer).for_engine(), is_byte_level=_depends_on_unicode(tokenizer))
    file = load_tokenizer_json(tokenizer)
    cutter = cutter_for(tokenizer.encoding)
    return load(file.for_reference, _cutter_beside(file, cutter) if cutter else None)


def _wrapped(encoder: Encoder, tokenizer: Tokenizer) -> Encoder:
    """Return gigatoken with short documents joined, and with newer characters left to the reference."""
    from tokmill.encode.engines.short_documents import BETWEEN, JoinedShortDocuments
    from tokmill.encode.engines.unicode_fallback import UnicodeFallback

    if tokenizer.encoding in BETWEEN:
        encoder = JoinedShortDocuments(encoder, tokenizer.encoding)
    if not _depends_on_unicode(tokenizer):
        return encoder
    return UnicodeFallback(encoder, partial(load_encoder, tokenizer, reference_of(tokenizer)), tokenizer.encoding)


def _cutter_beside(file: TokenizerFile, cutter: Cutter) -> Cutter:
    """Return the cutter, or one that does not cut inside the added tokens that are found in text."""
    return AddedTokenCuts(token.content for token in file.plain) if file.plain else cutter


def _depends_on_unicode(tokenizer: Tokenizer) -> bool:
    family = family_of(tokenizer.encoding)
    return tokenizer.kind == "tiktoken" or (family is not None and family.has_classes)


def _imported(name: str) -> Any:
    """Return what `module:attribute` names. Raises ImportError."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
