"""Tokenizers: what a name means, the engines behind the Encoder contract, and where text may be cut."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tokmill.encode.cuts import cutter_for
from tokmill.encode.vocabulary import engine_of, pattern_of, ranks_path, resolve_tokenizer
from tokmill.errors import UsageError

if TYPE_CHECKING:
    from tokmill.protocols import Encoder
    from tokmill.types import Tokenizer

__all__ = ["ENGINES", "cutter_for", "hand_over_plainly", "load_encoder", "load_fastest", "resolve_tokenizer"]

ENGINES = {"gigatoken": "tokmill.encode.gigatoken:GigatokenEncoder", "tiktoken": "tokmill.encode.reference:ReferenceEncoder"}
"""Where each engine is; its key is also the name of the package that it needs."""
_GUARDS = {"gigatoken": "tokmill.encode.newer:ReferenceForNewer"}
"""What stands before an engine whose tables of Unicode are not the reference's."""


def load_encoder(tokenizer: Tokenizer, engine: str) -> Encoder:
    """The tokenizer in an engine, a key of `ENGINES`; one for each thread.

    Raises UsageError for an engine that is unknown, not installed, or cannot hold this tokenizer; ChangedError when the
    tokenizer's file is not the one that was resolved.
    """
    if engine not in ENGINES:
        raise UsageError(
            f"there is no engine {engine!r}", where="--engine", allowed=", ".join(ENGINES), next_step="leave --engine out"
        )
    try:
        load = _imported(ENGINES[engine])
    except ImportError as error:
        raise UsageError(
            f"the engine {engine} cannot be imported: {error}",
            where="--engine",
            allowed="an engine whose package is installed",
            next_step=f"pip install {engine}, or run again with --engine {' or '.join(e for e in ENGINES if e != engine)}",
        ) from error
    encoder: Encoder = load(tokenizer.encoding, pattern_of(tokenizer), partial(ranks_path, tokenizer))
    if engine in _GUARDS:
        encoder = _imported(_GUARDS[engine])(encoder, partial(load_encoder, tokenizer, "tiktoken"))
    return encoder


def hand_over_plainly() -> None:
    """In this process, let gigatoken hand over its arrays as they are. For processes that run nothing but tokmill."""
    if "awkward" in sys.modules:
        return
    stand_in = ModuleType("awkward")
    # All that gigatoken 0.10.0 uses of it: what an argument is compared with, and what makes the result.
    stand_in.Array = type("Array", (), {})  # type: ignore[attr-defined]
    stand_in.unflatten = lambda ids, lengths: (ids, lengths)  # type: ignore[attr-defined]
    sys.modules["awkward"] = stand_in


def load_fastest(tokenizer: Tokenizer) -> Encoder:
    """The tokenizer in the fastest engine that can load it. Raises as `load_encoder`."""
    return load_encoder(tokenizer, engine_of(tokenizer, "gigatoken"))


def _imported(name: str) -> Any:
    """What `module:attribute` names. Raises ImportError."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
