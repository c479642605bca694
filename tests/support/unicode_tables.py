"""Which characters the fast engine and a reference treat otherwise, found by asking both.

`make unicode` writes `encode/engines/unicode_tables.py` by it. Neither engine gives away its tables, so all code points are encoded
in contexts that show their class, and normalized in contexts that show how they decompose, in which order they stand after a mark,
and what they compose with. NFC follows from these three: two that agree on them for all characters of a text agree on the text.
"""

from __future__ import annotations

import base64
import functools
import itertools
import re
import tempfile
import textwrap
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gigatoken import Tokenizer as Engine
from support.small_tokenizers import DEEPSEEK, LLAMA3, O200K, QWEN2, byte_level
from tokenizers import Tokenizer, models, normalizers

from tokmill.core.protocols import Encoder
from tokmill.encode.engines import unicode_tables
from tokmill.encode.engines.gigatoken import GigatokenEncoder, GigatokenJsonEncoder
from tokmill.encode.engines.huggingface import HuggingFaceEncoder
from tokmill.encode.engines.tiktoken import TiktokenEncoder
from tokmill.encode.families import byte_characters
from tokmill.encode.published import ENCODINGS
from tokmill.encode.tokenizer_json import TokenizerFile

CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
SYMBOLS = "deepseek_v3"
"""The family whose pattern names symbols and punctuation, which the others do not tell from what is not assigned."""
PATTERNS = {"gpt2": (), "llama3": (LLAMA3,), "qwen2": (QWEN2,), "o200k": (O200K,), SYMBOLS: DEEPSEEK}
"""Of the families of tokenizer.json."""
PUBLISHED = [name for name, encoding in ENCODINGS.items() if encoding.engine == "gigatoken"]
_CLASSES = (0x334, 0x316, 0x345)
"""Marks of the combining classes 1, 220 and 240, between which nearly all others lie."""
_BASE = "\u25cc"
"""Composes with nothing."""
_NEAR = 0x80
"""Two characters that compose are of one block, so this near each other, or the second is a mark of any script."""
_CHUNK = 20_000


def in_context(character: str) -> str:
    """Shows its class, in every pattern: letter (of which case), mark, digit, white space, punctuation, symbol or none of them."""
    c = character
    return f"a{c}a 1{c}1 {c}'s A{c}a a{c}A A{c}Aa .{c}. !{c}a {c}\n\n{c} {c}{c}'ll  {c}\n \r{c}\u0301a {c}/\n"


def _tokens() -> list[bytes]:
    """Every byte, and every pair across an edge of a character in a context: wherever two pieces meet, the ids show it."""
    ascii_bytes, lead, tail = sorted({*b"a1'sAl.! \n\r/"}), range(0xC2, 0xF5), range(0x80, 0xC0)
    pairs = [(ascii_bytes, ascii_bytes), (ascii_bytes, lead), (tail, ascii_bytes), (tail, lead)]
    return [bytes([i]) for i in range(256)] + [bytes(pair) for some in pairs for pair in itertools.product(*some)]


def pair_of(name: str) -> tuple[Encoder, Encoder]:
    """The engine alone, and the reference, of a family or of a published encoding, with those tokens."""
    tokens = _tokens()
    if name in ENCODINGS:
        path = Path(tempfile.mkdtemp(prefix="tokmill-small-")) / "ranks"
        path.write_bytes(b"".join(b"%b %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)))
        pattern = ENCODINGS[name].pattern
        return GigatokenEncoder(name, pattern, lambda: str(path)), TiktokenEncoder(name, pattern, lambda: str(path))
    shown = ["".join(byte_characters()[byte] for byte in token) for token in tokens]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(shown)}, merges=[(t[0], t[1]) for t in shown[256:]]))
    made.pre_tokenizer = byte_level(*PATTERNS[name])
    file = TokenizerFile(made.to_str().encode(), name)
    assert file.family() == name
    return GigatokenJsonEncoder(file.for_engine, is_byte_level=True), HuggingFaceEncoder(file.for_reference, None)


def differing(engine: Encoder, reference: Encoder, documents: Sequence[str]) -> list[int]:
    """The documents to which both give other ids."""
    texts = [document.encode() for document in documents]
    (ids, ends), (other, other_ends) = engine.encode(texts), reference.encode(texts)
    if np.array_equal(ids, other) and np.array_equal(ends, other_ends):
        return []
    rows = zip(np.split(ids, ends[1:-1]), np.split(other, other_ends[1:-1]), strict=True)
    return [i for i, (a, b) in enumerate(rows) if not np.array_equal(a, b)]


def of_other_class(name: str, codes: Sequence[int] = CODES) -> set[int]:
    """Characters that a family's pattern takes for another class in the engine than in the reference."""
    engine, reference = pair_of(name)
    found: set[int] = set()
    for begin in range(0, len(codes), _CHUNK):
        some = codes[begin : begin + _CHUNK]
        found |= {some[i] for i in differing(engine, reference, [in_context(chr(code)) for code in some])}
        engine.reset_caches()
    return found


@functools.cache
def _normalizing_file() -> bytes:
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(byte_characters())}, merges=[]))
    made.normalizer, made.pre_tokenizer = normalizers.NFC(), byte_level()
    return made.to_str().encode()


def engine_nfc(texts: Sequence[str]) -> list[str]:
    """The texts as the engine normalizes them. They hold no newline."""
    engine = Engine.from_json(_normalizing_file())
    result = engine.encode_batch(["\n".join(texts).encode()], parallel=False)
    # Awkward arrays, unless an earlier test has put something else in their place.
    ids = result[0] if isinstance(result, tuple) else result.layout.content.data
    return np.asarray(ids).astype(np.uint8).tobytes().decode().split("\n")


def reference_nfc(texts: Sequence[str]) -> list[str]:
    """The texts as the reference normalizes them. They hold no newline."""
    normalized: str = normalizers.NFC().normalize_str("\n".join(texts))
    return normalized.split("\n")


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == 6_000:
            yield chunk
            chunk = []
    yield chunk


def differs(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts that are normalized otherwise."""
    for chunk in _chunks(texts):
        a, b = engine_nfc(chunk), reference_nfc(chunk)
        if a != b:
            yield from (text for text, x, y in zip(chunk, a, b, strict=True) if x != y)


def of_other_decomposition(codes: Sequence[int]) -> set[int]:
    """Characters that alone are normalized otherwise."""
    return set(map(ord, differs(map(chr, codes))))


def non_starters(codes: Sequence[int], normalize: Callable[[Sequence[str]], list[str]]) -> list[int]:
    """Characters that move before or after a mark, so that they have a combining class."""
    found = []
    for begin in range(0, len(codes), 4_000):
        some = codes[begin : begin + 4_000]
        texts = [order for c in map(chr, some) for m in map(chr, _CLASSES) for order in (_BASE + c + m, _BASE + m + c)]
        moved = [a != b for a, b in zip(normalize(texts), texts, strict=True)]
        n = 2 * len(_CLASSES)
        found += [code for i, code in enumerate(some) if any(moved[i * n : (i + 1) * n])]
    return found


def of_other_class_of_marks(codes: Sequence[int], marks: Sequence[int]) -> set[int]:
    """Characters whose combining class is another: that stand elsewhere beside a mark of some class."""
    beside = list({unicodedata.combining(chr(mark)): chr(mark) for mark in marks if unicodedata.combining(chr(mark))}.values())
    near = [chr(mark) for mark in _CLASSES]
    wide = (text for code in codes for m in near for text in (_BASE + chr(code) + m, _BASE + m + chr(code)))
    found = {max(map(ord, text[1:]), key=lambda c: (c not in _CLASSES, c)) for text in differs(wide)}
    narrow = (text for code in marks for m in beside for text in (_BASE + chr(code) + m, _BASE + m + chr(code)))
    for text in differs(narrow):
        if not found & set(map(ord, text)):
            found.add(max(map(ord, text[1:])))
    return found


def of_other_composition(codes: Iterable[int], marks: Sequence[int], known: Collection[int] = ()) -> set[int]:
    """Characters of pairs that only one of both composes; of each pair the one with the larger number, which is the rarer.

    known: Characters without which a pair is looked at. codes: Those looked at: NFC is stable, so of a pair that only newer tables
    compose, one character is itself new.
    """

    def pairs() -> Iterator[str]:
        for code in codes:
            character = chr(code)
            for other in map(chr, _valid(range(code - _NEAR, code + _NEAR))):
                yield character + other
                yield other + character
            yield from (character + chr(mark) for mark in marks)

    return {max(map(ord, text)) for text in differs(pairs()) if not {*map(ord, text)} & {*known}}


def _valid(codes: Iterable[int]) -> list[int]:
    """Those that are characters, and no newline, which stands between texts."""
    return [code for code in codes if 0 <= code < 0x110000 and not 0xD800 <= code < 0xE000 and code != 0x0A]


def young_codes() -> list[int]:
    """Characters assigned since Unicode 3.2, on which every later NFC agrees for the others; planes of ideographs have no pairs."""
    return _valid(code for code in range(0x20000) if unicodedata.ucd_3_2_0.category(chr(code)) == "Cn")


def ranges_of(codes: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run."""
    found: list[tuple[int, int]] = []
    for code in sorted(codes):
        if found and found[-1][1] == code - 1:
            found[-1] = (found[-1][0], code)
        else:
            found.append((code, code))
    return found


def for_nfc() -> set[int]:
    """Characters, or the rarer of two, that only one of both knows how to normalize."""
    codes = _valid(CODES)
    moving = sorted({*non_starters(codes, engine_nfc), *non_starters(codes, reference_nfc)})
    marks = [code for code in moving if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me", "Cn")]
    known = of_other_decomposition(codes) | of_other_class_of_marks(codes, moving)
    return known | of_other_composition(young_codes(), marks, known)


def shown(codes: Iterable[int]) -> str:
    """Ranges as the table has them."""
    words = (f"{a:X}" if a == b else f"{a:X}-{b:X}" for a, b in ranges_of(codes))
    return textwrap.fill(" ".join(words), 124, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def main() -> None:
    """Write the table anew: half an hour."""
    newer = set().union(*(of_other_class(name) for name in (*PUBLISHED, *PATTERNS) if name != SYMBOLS))
    sets = {"NEWER": newer, "NEWER_SYMBOLS": of_other_class(SYMBOLS) - newer, "NEWER_FOR_NFC": for_nfc() - newer}
    text = Path(unicode_tables.__file__).read_text()
    for name, codes in sets.items():
        text = re.sub(rf'^{name} = """.*?"""', f'{name} = """\n{shown(codes)}\n"""', text, flags=re.DOTALL | re.MULTILINE)
    for name in unicode_tables.VERSIONS:
        text = re.sub(rf'"{name}": "[^"]*"', f'"{name}": "{version(name)}"', text)
    Path(unicode_tables.__file__).write_text(text)


if __name__ == "__main__":
    main()
