"""Characters on which engine and reference differ are known, in every family; whatever holds one is encoded by the reference."""

from __future__ import annotations

import functools
import random
from importlib.metadata import version

import pytest
from hypothesis import example, given, strategies as st
from support import unicode_tables as asked
from support.small_tokenizers import PROVEN, path_of, true_ids

from tokmill.core.protocols import Encoder
from tokmill.encode.engines import unicode_tables as table
from tokmill.encode.engines.unicode_fallback import NEWER, NEWER_FOR_NFC, NEWER_SYMBOLS, Ranges, newer_for
from tokmill.encode.loading import load_fastest
from tokmill.encode.resolve import resolve_tokenizer


def codes_of(*ranges: Ranges) -> set[int]:
    return {code for some in ranges for first, last in some for code in range(first, last + 1)}


ALL = codes_of(NEWER, NEWER_SYMBOLS, NEWER_FOR_NFC)
_RANGES = (*NEWER, *NEWER_SYMBOLS, *NEWER_FOR_NFC)
EDGES = sorted({edge + by for edges in _RANGES for edge in edges for by in (-1, 0, 1)})
PARTNERS = [chr(code) for code in (*range(0x300, 0x346), 0x3099, 0x9BE, 0x1100, 0x1161, 0x11A8, 0xAC00, 0x11930, 0x113B8, 0x16D63)]
near = st.integers(0, len(EDGES) - 1).map(EDGES.__getitem__).map(lambda code: range(max(0x80, code - 40), code + 40))
neighbours = near.flatmap(st.sampled_from).filter(lambda code: not 0xD800 <= code < 0xE000).map(chr)
pieces = st.one_of(st.sampled_from(EDGES).map(chr), neighbours, st.sampled_from(PARTNERS), st.sampled_from("aA1 .'s\n\t!\u212a"))
texts = st.lists(pieces, min_size=1, max_size=12).map("".join)


@functools.cache
def fastest(name: str) -> Encoder:
    return load_fastest(resolve_tokenizer(str(path_of(name))))


@pytest.mark.parametrize("name", table.VERSIONS)
def test_the_table_is_of_the_versions_that_are_installed(name: str) -> None:
    asked_version, installed = table.VERSIONS[name].split("."), version(name).split(".")
    assert asked_version[:2] == installed[:2], "make unicode"


@pytest.mark.parametrize("name", PROVEN)
@given(text=texts)
@example("see \U000105d2\u0307 here")
@example("\U000105da\u0307")
@example("a\u0897\u0316")
@example("\U0001611e\U0001611e\U00016129\U00016d67\U00016d67")
def test_text_of_such_characters_and_their_neighbours_has_the_ids_of_the_reference(name: str, text: str) -> None:
    assert fastest(name).encode([text.encode()])[0].tolist() == true_ids(name, text)


@pytest.mark.parametrize("name", [*asked.PUBLISHED, *asked.PATTERNS])
def test_at_the_edges_of_each_range_the_table_says_what_the_libraries_do(name: str) -> None:
    known = codes_of(newer_for(name))
    assert asked.of_other_class(name, [code for code in EDGES if code in known or code % 8 == 0]) <= known
    firsts = [first for first, _ in NEWER if not 0x1A00 <= first < 0x1B00]
    assert asked.of_other_class("o200k_base", firsts) == {*firsts}, "a range is not needed any more: make unicode"


def test_sequences_that_are_normalized_otherwise_hold_a_character_of_the_table() -> None:
    known = codes_of(NEWER, NEWER_FOR_NFC)
    marks = [mark for mark in PARTNERS if mark < "\u0400"]
    composing = [chr(code + by) for code in sorted(codes_of(NEWER_FOR_NFC)) for by in (-9, -3, -1, 0, 1, 2, 9)]
    partners = (*marks[::4], "\u0307")
    pairs = {first + second for c in composing for other in (*partners, c) for first, second in ((c, other), (other, c))}
    nearby = {chr(a) + chr(b) for edge in EDGES if edge > 0x10000 for a in (edge,) for b in range(edge - 16, edge + 16)}
    differing = list(asked.differs(sorted(pairs | nearby)))
    assert len(differing) > 20
    assert [ascii(text) for text in differing if not known & {*map(ord, text)}] == []


def test_sequences_of_scripts_with_newer_compositions_hold_a_character_of_the_table() -> None:
    known, rng = codes_of(NEWER, NEWER_FOR_NFC), random.Random(3)
    blocks = [
        range(0x105C0, 0x10600),
        range(0x11380, 0x11400),
        range(0x11900, 0x11960),
        range(0x16100, 0x16140),
        range(0x16D40, 0x16D80),
    ]
    texts = ["\U0001138b\U000113c5"]
    for block in blocks:
        some = [*map(chr, block), "\u0307", "\u0316", "\u0345", "\u0334", "a"]
        texts += ["".join(rng.choices(some, k=rng.randint(2, 6))) for _ in range(6000)]
    differing = [*asked.differs(texts)]
    assert len(differing) > 100
    assert [ascii(text) for text in differing if not known & {*map(ord, text)}] == []


def test_hangul_and_every_pair_that_python_knows_are_normalized_alike() -> None:
    texts = [chr(c) for c in range(0xAC00, 0xD7A4, 7)] + [
        chr(a) + chr(b) for a in range(0x1100, 0x1113) for b in range(0x1161, 0x1176)
    ]
    texts += [chr(c) + chr(t) for c in range(0xAC00, 0xD7A4, 28) for t in (0x11A7, 0x11A8, 0x11C2)]
    rng = random.Random(5)
    texts += [chr(rng.randrange(0xC0, 0x2000)) + chr(rng.randrange(0x300, 0x345)) for _ in range(20_000)]
    assert not [text for text in asked.differs(texts) if not ALL & {*map(ord, text)}]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*asked.PUBLISHED, *asked.PATTERNS])
def test_no_other_character_is_of_another_class(name: str) -> None:
    assert asked.of_other_class(name) <= codes_of(newer_for(name))


@pytest.mark.slow
def test_no_other_sequence_is_normalized_otherwise() -> None:
    assert asked.for_nfc() <= codes_of(NEWER, NEWER_FOR_NFC)
