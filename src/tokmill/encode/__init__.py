"""Tokenizers: what a name means, the engines behind the Encoder contract, and where text may be cut."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tokmill.encode.cuts import cutter_for
from tokmill.encode.vocabulary import resolve_tokenizer

if TYPE_CHECKING:
    from tokmill.protocols import Encoder
    from tokmill.types import Tokenizer

__all__ = ["ENGINES", "cutter_for", "load_encoder", "resolve_tokenizer"]

ENGINES = {"gigatoken": "tokmill.encode.gigatoken:GigatokenEncoder", "tiktoken": "tokmill.encode.reference:ReferenceEncoder"}


def load_encoder(tokenizer: Tokenizer, engine: str) -> Encoder:
    """The tokenizer in an engine, a key of `ENGINES`. Raises UsageError, ChangedError."""
    module, _, cls = ENGINES[engine].partition(":")
    encoder: Encoder = getattr(import_module(module), cls)(tokenizer)
    return encoder
