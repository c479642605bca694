r"""For which tokenizer.json the fast engine gives the reference's ids, and which have safe cuts: a list of what was proven.

A tokenizer.json can say far more than a fast engine honours, and what it does not honour gives wrong ids silently. So a file
belongs to a family only if everything in it that decides ids is, term by term, what the tests compare with the reference
(`tests/encode/test_families.py`). Any other file is `OTHER`: encoded by the reference, its documents kept whole.

The patterns divide text as `safe_cuts.py` says, so the proof there holds for them: a piece with a letter or a digit ends before
anything else. deepseek_v3 divides in three steps, each of which ends a piece there too. NFC does not change these places, because
the character after a cut (ASCII or punctuation) never combines with what is before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tokmill.encode.published import ENCODINGS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OTHER = "other"
"""A tokenizer.json of no family."""
_NFC = "+nfc"


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of all tokenizers of a family."""

    has_cuts: bool = True
    is_lossless: bool = True
    """Decoding gives the text back."""
    has_classes: bool = True
    """Its pattern names classes of characters, so the engine's version of Unicode matters."""


FAMILIES = {
    "gpt2": Family(),
    "llama3": Family(),
    "qwen2": Family(),
    "o200k": Family(),
    "deepseek_v3": Family(),
    "sentencepiece": Family(has_cuts=False, is_lossless=False, has_classes=False),
    "metaspace": Family(has_cuts=False, is_lossless=False, has_classes=False),
}

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD, _PUNCTUATION = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    "\r\n"
    r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["
    "\r\n"
    r"]*|\s*["
    "\r\n"
    r"]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    (rf"{_ENGLISH}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACE}",): "llama3",
    (rf"{_ENGLISH}|{_WORD}|\p{{N}}|{_PUNCTUATION}|{_SPACE}",): "qwen2",
    (ENCODINGS["o200k_base"].pattern,): "o200k",
    (r"\p{N}{1,3}", "[一-龥\u3040-ゟ\u30a0-ヿ]+", _DEEPSEEK_WORDS): "deepseek_v3",
}
"""Patterns of the Splits before ByteLevel, in order, as published with the models that the families are named after."""

_PREPEND = [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
]
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


def family_of(name: str) -> Family | None:
    """Return the family of a name, such as `qwen2+nfc`; None for `OTHER` and for encodings of tiktoken."""
    base = name.removesuffix(_NFC)
    family = FAMILIES.get(base)
    return msgspec.structs.replace(family, is_lossless=False) if family and base != name else family


def classify(settings: Mapping[str, Any], tokens: Mapping[str, int]) -> str:
    """Return the family of a tokenizer.json with a BPE model, or `OTHER`.

    settings: normalizer, pre_tokenizer, and the model's settings without vocabulary and merges; tokens: the vocabulary.
    """
    if any(settings.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        return OTHER
    normalizers = _steps(settings.get("normalizer"), "normalizers")
    pre_tokenizer = settings.get("pre_tokenizer")
    if settings.get("byte_fallback"):
        return _sentencepiece(settings, normalizers, pre_tokenizer, tokens)
    base = _byte_level(_steps(pre_tokenizer, "pretokenizers"))
    if base is None or not all(character in tokens for character in byte_characters()):
        return OTHER
    if normalizers == [{"type": "NFC"}]:
        return base + _NFC
    return OTHER if normalizers else base


def byte_characters() -> Sequence[str]:
    """Return the 256 characters that mean bytes in a byte-level vocabulary, in the order of the bytes."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


def is_byte_token(token: str) -> bool:
    """Return whether a token means one byte of a character that is not in the vocabulary: `<0x0A>`."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _steps(part: Any, key: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer; an empty one for what is none, so that the file is of no family."""
    steps: list[dict[str, Any]] = []
    left = [] if part is None else [part]
    while left:
        step = left.pop()
        inner = step.get(key, []) if isinstance(step, dict) and step.get("type") == "Sequence" else None
        if isinstance(inner, list):
            left.extend(reversed(inner))
        else:
            steps.append(step if isinstance(step, dict) else {})
    return steps


def _byte_level(steps: list[dict[str, Any]]) -> str | None:
    """Return the family of a byte-level pre-tokenizer; None if it is of none."""
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return None
    uses_regex = steps[-1].get("use_regex", True)
    patterns = tuple(_pattern(step) for step in steps[:-1])
    if uses_regex:
        return None if patterns else "gpt2"
    return _SPLITS.get(patterns)  # type: ignore[arg-type]


def _pattern(step: dict[str, Any]) -> str | None:
    is_plain = step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert")
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if is_plain and isinstance(pattern, dict) else None
    return regex if isinstance(regex, str) else None


def _sentencepiece(settings: Mapping[str, Any], normalizers: list[Any], pre_tokenizer: Any, tokens: Mapping[str, int]) -> str:
    is_known = settings.get("fuse_unk") and not settings.get("ignore_merges") and settings.get("unk_token") in tokens
    if not is_known or not all(f"<0x{byte:02X}>" in tokens for byte in range(256)):
        return OTHER
    if normalizers == _PREPEND and pre_tokenizer is None:
        return "sentencepiece"
    return "metaspace" if not normalizers and pre_tokenizer == _METASPACE else OTHER
