"""Safe cuts: the tokens of a text are those of its parts, for every pattern that has cuts."""

from __future__ import annotations

import pytest
import regex
from hypothesis import example, given, strategies as st
from support.oracle import gpt2

from tokmill.encode.published import ENCODINGS
from tokmill.encode.safe_cuts import cutter_for

NASTY = (
    " ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u0085", "\u2028", "a", "b", "Z",
    "é", "ß", "Ω", "ж", "あ", "ア", "字", "한", "。", "，", "、", "'", "’", "'s", "'t", "'LL", "'re",
    "\u0301", "\u0e31", "\u093e", "1", "22", "٣", "½", "²", ".", "?", "/", "\\", "-", "_", "🤖",
    "\u200d", "\U0001f3fd", "ª", "ʰ", "ǅ", "Ⅷ", "×", "÷", "\x00", "\x7f", "\ufeff", "i", "s",
    "T",
)  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(NASTY), st.characters(codec="utf-8")), min_size=2, max_size=24).map("".join)
CUTTER = cutter_for("r50k_base")
assert CUTTER is not None


def cuts(data: bytes) -> list[int]:
    """Every safe cut of a text."""
    assert CUTTER is not None
    found, at = [], 0
    while at := CUTTER.first(data, at + 1):
        found.append(at)
    return found


def pieces(encoding: str, text: str) -> list[str]:
    return [m.group() for m in regex.finditer(ENCODINGS[encoding].pattern, text)]


@given(texts)
@example("a b")
@example("x!\nb")
@example("don't go\nHe'S 字。かな、한，")
def test_gpt2_tokens_of_the_parts_are_those_of_the_whole(text: str) -> None:
    data = text.encode()
    whole = gpt2().encode_ordinary(text)
    for at in cuts(data):
        left, right = data[:at].decode(), data[at:].decode()
        assert gpt2().encode_ordinary(left) + gpt2().encode_ordinary(right) == whole, at


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if cutter_for(name)])
@given(text=texts)
def test_no_pattern_joins_what_a_cut_parts(encoding: str, text: str) -> None:
    data = text.encode()
    whole = pieces(encoding, text)
    for at in cuts(data):
        assert pieces(encoding, data[:at].decode()) + pieces(encoding, data[at:].decode()) == whole, at


@given(texts, st.integers(0, 80), st.integers(0, 80))
def test_first_gives_the_same_cut_when_more_of_the_text_is_known(text: str, start: int, known: int) -> None:
    assert CUTTER is not None
    data = text.encode()
    early = CUTTER.first(data[:known], start)
    if early:
        assert CUTTER.first(data, start) == early


@given(texts, st.integers(0, 120))
def test_last_is_the_largest_cut_up_to_the_limit(text: str, limit: int) -> None:
    assert CUTTER is not None
    data = text.encode()
    assert CUTTER.last(data, limit) == max((at for at in cuts(data) if at <= limit), default=0)
    assert CUTTER.last(bytearray(data), limit) == CUTTER.last(data, limit)


def test_last_looks_far_back() -> None:
    assert CUTTER is not None
    data = b"one two" + b"!" * 1_000_000 + b" x"
    assert CUTTER.last(data, len(data)) == 7


@pytest.mark.parametrize(
    "text",
    [
        "He said so. Then he left.\nAnd she",
        "彼は言った。そして、去った。",
        "他说，好。她走了。",
        "사과 배 감",
        "Это было так. Потом",
        "η άλλη μέρα",
    ],
)
def test_ordinary_text_of_many_scripts_has_cuts(text: str) -> None:
    assert cuts(text.encode())


@pytest.mark.parametrize(
    "text", ["aaaa", "1234", "a'b", "? b", "\nb", " b", "e\u0301 b", "。字", "!\n\nb", "字々", "a\u0301", "ก\u0e31"]
)
def test_places_that_are_not_proven_are_not_cut(text: str) -> None:
    assert cuts(text.encode()) == []


@pytest.mark.parametrize(("text", "places"), [("a  b", [1]), ("12,34\n5", [2, 5]), ("a1b", [1]), ("don't.", [5]), ("字、b", [3])])
def test_a_letter_or_digit_ends_before_what_cannot_follow_it(text: str, places: list[int]) -> None:
    assert cuts(text.encode()) == places


@given(texts, st.binary(min_size=1, max_size=3))
def test_a_character_that_is_not_whole_yet_is_no_place(text: str, tail: bytes) -> None:
    for at in cuts((text + "字").encode() + tail):
        known = ((text + "字").encode() + tail)[at : at + 3]
        assert known[0] < 0x80 or known.decode()


def test_every_character_that_counts_as_a_letter_is_a_letter_for_the_patterns() -> None:
    assert CUTTER is not None
    for code in range(0x80, 0x11000):
        character = chr(code)
        if 0xD800 <= code < 0xE000:
            continue
        if CUTTER.first(f"{character} a".encode(), 1):
            assert regex.fullmatch(r"\p{L}", character), hex(code)
            assert not regex.fullmatch(r"\p{M}", character), hex(code)
