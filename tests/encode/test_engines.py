"""Both engines give the tokens of tiktoken's encode_ordinary, for every pattern and every character."""

from __future__ import annotations

import base64
import itertools
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from support.contracts import EncoderContract
from support.oracle import gpt2
from support.turns import in_turns

from tokmill.core.documents import DocumentBuffer
from tokmill.core.errors import EngineError, UsageError
from tokmill.core.protocols import Encoder
from tokmill.encode.engines.gigatoken import GigatokenEncoder
from tokmill.encode.engines.short_documents import BETWEEN, JoinedShortDocuments
from tokmill.encode.engines.tiktoken import TiktokenEncoder
from tokmill.encode.engines.unicode_fallback import NEWER, UnicodeFallback
from tokmill.encode.loading import load_encoder
from tokmill.encode.published import ENCODINGS
from tokmill.encode.resolve import resolve_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FRAGMENTS = (
    " ", "  ", "\n", "\r\n", "\n\n", "\t", "\u00a0", "\u3000", "\u0085", "a", "Z", "ß", "ſ", "ж",
    "あ", "字", "한", "。", "'", "’", "'s", "'LL", "'ſ", "'re", "\u0301", "\u093e", "1", "234", "٣",
    "½", "Ⅷ", ".", "?", "/", "//\n", "<|endoftext|>", "🤖", "\u200d", "ǅ", "ª", "ʰ", "\x00",
    "\x1f", "\ufeff", "CamelCase", " the", "\u088f", "\ua7ce", "\U000323b0",
)  # fmt: skip
texts = st.lists(
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.characters(codec="utf-8")), min_size=1, max_size=16).map("".join), min_size=1
)


class TestGigatoken(EncoderContract):
    def make(self) -> Encoder:
        return load_encoder(resolve_tokenizer("gpt2"), "gigatoken")


class TestTiktoken(EncoderContract):
    def make(self) -> Encoder:
        return load_encoder(resolve_tokenizer("gpt2"), "tiktoken")


@pytest.fixture(scope="module", params=["gigatoken", "tiktoken"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return load_encoder(resolve_tokenizer("gpt2"), request.param)


@pytest.fixture(scope="module")
def small_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every byte, and every pair of 80 bytes: wherever two pieces meet, the ids show it."""
    paired = sorted({*b" \n\r\t\v'.?/sStTlLrReEvVmMdDaAzZ0123456789!<|>", *"éßжあ字한。\u0301\u00a0\U0001f916".encode()})
    tokens = [*(bytes([i]) for i in range(256)), *(bytes(pair) for pair in itertools.product(paired, paired))]
    path = tmp_path_factory.mktemp("ranks") / "small.tiktoken"
    path.write_bytes(b"".join(b"%b %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)))
    return path


def both(encoding: str, path: Path) -> tuple[Encoder, Encoder]:
    """The reference, and gigatoken as it is used; with ranks of their own, so that no published file is needed."""
    pattern = ENCODINGS[encoding].pattern
    reference = TiktokenEncoder(encoding, pattern, lambda: str(path))
    return reference, UnicodeFallback(together_and_apart(encoding, path)[0], lambda: reference, encoding)


def together_and_apart(encoding: str, path: Path) -> tuple[Encoder, Encoder]:
    """gigatoken that joins short documents, and gigatoken that does not."""
    engine = GigatokenEncoder(encoding, ENCODINGS[encoding].pattern, lambda: str(path))
    return JoinedShortDocuments(engine, encoding), engine


def assert_same(reference: Encoder, engine: Encoder, documents: list[bytes]) -> None:
    expected, actual = reference.encode(documents), engine.encode(documents)
    if np.array_equal(expected[0], actual[0]) and np.array_equal(expected[1], actual[1]):
        return
    for document in documents:
        assert engine.encode([document])[0].tolist() == reference.encode([document])[0].tolist(), document
    pytest.fail("the documents differ only when they are encoded together")


@given(
    st.lists(st.sampled_from([b"", b"a", b" the", b"x<|", b"|>y", b"1234", "\u00e9 \u4f60".encode()]), max_size=9), st.booleans()
)
def test_documents_of_one_buffer_are_those_of_a_list(
    encoder: Encoder, documents: list[bytes], with_empty_ones_left_out: bool
) -> None:
    separator = b"<|x|>"
    lengths = np.array([len(d) for d in documents], np.int64)
    starts = np.cumsum(lengths + len(separator)) - lengths - len(separator)
    slices, kept = DocumentBuffer(separator.join(documents), starts, starts + lengths, separator).without_empty()
    full = [d for d in documents if d]
    assert list(slices) == full
    assert [documents[i] for i in kept] == full
    assert slices.n_bytes == sum(map(len, full))
    expected, actual = encoder.encode(full), encoder.encode(slices)
    assert expected[0].tolist() == actual[0].tolist()
    assert expected[1].tolist() == actual[1].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", BETWEEN)
def test_short_documents_are_joined_at_every_character_as_if_each_were_encoded_alone(small_ranks: Path, encoding: str) -> None:
    together, apart = together_and_apart(encoding, small_ranks)
    characters = [chr(i).encode() for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    for context in (b"%b", b"a%b", b"!%b", b"%bs", b"1%b1", b" %b", b"%b/\n"):
        documents = [context % character for character in characters]
        documents = [document for document in documents if b"\v" not in document]
        for begin in range(0, len(documents), 200_000):
            part = documents[begin : begin + 200_000]
            expected, actual = apart.encode(part), together.encode(part)
            assert np.array_equal(expected[0], actual[0]), (context, begin)
            assert np.array_equal(expected[1], actual[1]), (context, begin)


@in_turns(2)
@pytest.mark.parametrize("encoding", BETWEEN)
@settings(max_examples=50)
@given(data=st.data())
def test_short_documents_that_are_joined_have_the_references_ids(
    turn: int, small_ranks: Path, encoding: str, data: st.DataObject
) -> None:
    reference, engine = both(encoding, small_ranks)
    documents = [text.encode() for text in data.draw(texts)]
    # As many as are joined, each beside others than before.
    documents = [*documents, *documents[::-1], b"x", *documents, b"don't", *documents[::2], *[b"y"] * 64]
    expected = reference.encode(documents)
    for given_as in (documents, one_buffer(documents, b"\xff"), one_buffer(documents, b"<|endoftext|>" * 2).compact()):
        ids, offsets = engine.encode(given_as)
        assert ids.tolist() == expected[0].tolist()
        assert offsets.tolist() == expected[1].tolist()


@pytest.mark.parametrize("encoding", BETWEEN)
def test_short_documents_reach_the_engine_as_a_few_texts(small_ranks: Path, encoding: str) -> None:
    class Counting(GigatokenEncoder):
        n_texts = 0

        def encode(self, documents: Sequence[bytes], raw: memoryview | None = None) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
            self.n_texts = len(documents)
            return super().encode(documents, raw)

    engine = Counting(encoding, ENCODINGS[encoding].pattern, lambda: str(small_ranks))
    together = JoinedShortDocuments(engine, encoding)
    for documents, n_texts in (([b"a b."] * 100, 1), ([b"a", b" b"] * 50, 51), ([b"a\v"] * 100, 100), ([b"long " * 99] * 64, 64)):
        together.encode(documents)
        assert engine.n_texts == n_texts


def one_buffer(documents: list[bytes], separator: bytes) -> DocumentBuffer:
    ends = np.cumsum([len(document) + len(separator) for document in documents]) - len(separator)
    starts = ends - [len(document) for document in documents]
    return DocumentBuffer(separator.join(documents) + separator, starts, ends, separator)


def test_the_engines_arrays_are_the_same_without_awkward() -> None:
    code = (
        "import sys; from tokmill.encode import disable_awkward, load_encoder, resolve_tokenizer\n"
        "if '-' in sys.argv: disable_awkward()\n"
        "ids, offsets = load_encoder(resolve_tokenizer('gpt2'), 'gigatoken').encode([b'Hello world', b'x', b'\\xc3\\xa9' * 9])\n"
        "print(ids.tolist(), offsets.tolist(), ids.dtype, offsets.dtype, 'awkward.contents' in sys.modules)"
    )
    usually, plainly = (
        subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True).stdout.split()
        for words in ([], ["-"])
    )
    assert plainly == [*usually[:-1], "False"]
    assert usually[-3:] == ["uint32", "int64", "True"]


@given(texts)
def test_ids_are_those_of_encode_ordinary(encoder: Encoder, texts: list[str]) -> None:
    ids, offsets = encoder.encode([text.encode() for text in texts])
    for i, text in enumerate(texts):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == gpt2().encode_ordinary(text)


@pytest.mark.parametrize("encoding", ["r50k_base", "cl100k_base", "o200k_base"])
def test_gigatoken_agrees_with_the_reference_on_random_text(encoding: str, small_ranks: Path) -> None:
    draw = random.Random(encoding)
    pools = [*FRAGMENTS, *map(chr, range(0x20, 0x7F))]
    planes = [chr(c) for c in draw.sample([c for c in range(0x110000) if not 0xD800 <= c < 0xE000], 20_000)]
    documents = [
        "".join(draw.choice(planes if draw.random() < 0.2 else pools) for _ in range(draw.randint(1, 24))).encode()
        for _ in range(20_000)
    ]
    assert_same(*both(encoding, small_ranks), documents)


def in_context(character: str) -> bytes:
    """Shows whether it is a letter (of which case), mark, digit, white space or none of them."""
    c = character
    return f"a{c}a 1{c}1 {c}'s A{c}a a{c}A .{c}. {c}\n\n{c} {c}{c}'ll  {c}{c}  {c}\n".encode()


@pytest.mark.parametrize("encoding", ["r50k_base", "cl100k_base", "o200k_base"])
def test_characters_newer_than_the_reference_are_encoded_by_the_reference(encoding: str, small_ranks: Path) -> None:
    documents = [in_context(chr(c)) for a, b in NEWER for c in range(a, b + 1)]
    assert_same(*both(encoding, small_ranks), documents)


def test_gigatoken_alone_would_split_newer_characters_otherwise(small_ranks: Path) -> None:
    pattern = ENCODINGS["o200k_base"].pattern
    alone = GigatokenEncoder("o200k_base", pattern, lambda: str(small_ranks))
    reference = TiktokenEncoder("o200k_base", pattern, lambda: str(small_ranks))
    same = [
        np.array_equal(alone.encode([text])[0], reference.encode([text])[0])
        for text in (in_context(chr(c)) for ends in NEWER for c in ends)
    ]
    assert not any(same), "a range of NEWER is not needed any more"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["r50k_base", "cl100k_base", "o200k_base"])
def test_every_character_of_unicode_is_encoded_as_by_the_reference(encoding: str, small_ranks: Path) -> None:
    engines = both(encoding, small_ranks)
    for begin in range(0, 0x110000, 0x4000):
        characters = [chr(c) for c in range(begin, begin + 0x4000) if not 0xD800 <= c < 0xE000]
        if characters:
            assert_same(*engines, [in_context(c) for c in characters])


def test_documents_with_and_without_newer_characters_keep_their_places() -> None:
    encoder = load_encoder(resolve_tokenizer("gpt2"), "gigatoken")
    texts = ["plain", "\U000323b0's first", "é", "in the \ua7ce's middle", "\U000323b0", "last"]
    ids, offsets = encoder.encode([text.encode() for text in texts])
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == [gpt2().encode_ordinary(t) for t in texts]


def test_newer_characters_are_seen_in_documents_of_one_buffer() -> None:
    encoder = load_encoder(resolve_tokenizer("gpt2"), "gigatoken")
    texts = ["plain", "in the \ua7ce's middle", "last"]
    data = "\0".join(texts).encode()
    ends = np.cumsum([len(text.encode()) + 1 for text in texts]) - 1
    starts = np.array([0, *(ends[:-1] + 1)], np.int64)
    ids, offsets = encoder.encode(DocumentBuffer(data, starts, ends, b"\0"))
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == [gpt2().encode_ordinary(t) for t in texts]


def test_an_engine_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match="no engine 'magic'") as caught:
        load_encoder(resolve_tokenizer("gpt2"), "magic")
    assert caught.value.allowed == "gigatoken, tiktoken, tokenizers"


def test_an_engine_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    monkeypatch.delitem(sys.modules, "tokmill.encode.engines.gigatoken", raising=False)
    with pytest.raises(UsageError) as caught:
        load_encoder(resolve_tokenizer("gpt2"), "gigatoken")
    assert "pip install gigatoken" in (caught.value.next_step or "")
    assert "--engine tiktoken" in (caught.value.next_step or "")


def test_an_encoding_that_gigatoken_cannot_load_points_to_the_other_engine(small_ranks: Path) -> None:
    with pytest.raises(UsageError, match="p50k_base") as caught:
        GigatokenEncoder("p50k_base", "", lambda: str(small_ranks))
    assert "--engine tiktoken" in (caught.value.next_step or "")


def test_ranks_that_gigatoken_refuses_are_an_engine_error(tmp_path: Path) -> None:
    path = tmp_path / "gap.tiktoken"
    path.write_bytes(b"YQ== 0\nYg== 7\n")
    with pytest.raises(EngineError, match="gigatoken failed"):
        GigatokenEncoder("r50k_base", "", lambda: str(path))


def test_what_an_engine_cannot_take_is_an_engine_error(small_ranks: Path) -> None:
    with pytest.raises(EngineError, match="gigatoken failed"):
        GigatokenEncoder("r50k_base", "", lambda: str(small_ranks)).encode([b"a", 1])  # type: ignore[list-item]
    with pytest.raises(EngineError, match="tiktoken failed"):
        load_encoder(resolve_tokenizer("gpt2"), "tiktoken").encode([b"\xff"])


def test_white_space_too_long_for_the_reference_is_an_engine_error_and_no_crash() -> None:
    text = b" " * 2_000_000 + b"a"
    with pytest.raises(EngineError, match="Max stack size"):
        load_encoder(resolve_tokenizer("gpt2"), "tiktoken").encode([text])
    ids, _ = load_encoder(resolve_tokenizer("gpt2"), "gigatoken").encode([text])
    assert len(ids) == 2_000_000
