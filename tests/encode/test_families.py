"""Every family of tokenizer.json gives the ids of Hugging Face tokenizers, in the engine that is chosen for it, cut or whole."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, strategies as st
from support.small_tokenizers import EOT, LLAMA3, MAKERS, PLAIN, PROVEN, TEXTS, path_of, rewritten, true_ids, truth

from tokmill.core.documents import DocumentBuffer
from tokmill.core.errors import EngineError, UsageError
from tokmill.core.protocols import Encoder
from tokmill.core.records import Tokenizer
from tokmill.encode.engines.huggingface import HuggingFaceEncoder
from tokmill.encode.engines.unicode_fallback import NEWER, NEWER_FOR_NFC, NEWER_SYMBOLS, UnicodeFallback
from tokmill.encode.families import FAMILIES, OTHER
from tokmill.encode.loading import cutter_of, is_lossless, load_decoder, load_encoder, load_fastest, most_ids
from tokmill.encode.resolve import engine_of, reference_of, resolve_tokenizer

FRAGMENTS = (
    " ", "  ", "\n", "\r\n", "\n\n", "\t", "\u00a0", "\u3000", "\u0085", "a", "Z", "ß", "ſ", "ж",
    "あ", "ア", "字", "한", "\u1112\u1161\u11ab", "。", "'", "’", "'s", "'LL", "'re", "\u0301", "e\u0301",
    "\u0338", "\u093e", "1", "234", "٣", "½", "Ⅷ", ".", "?", "/", "//\n", "<", ">", "🤖", "\u200d", "ǅ",
    "ª", "ʰ", "\x00", "\x1f", "\ufeff", "CamelCase", " the", "\u088f", "\ua7ce", "\U000323b0", "\u212a",
    "\u2b96", "\u0897", "▁", "<0x41>", "tool", "_call>", *PLAIN,
)  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.characters(codec="utf-8")), min_size=1, max_size=16).map("".join)
SPECIAL = (EOT, "<|im_start|>", "<s>", "</s>", "<unk>", "[SEP]")
with_special = st.lists(st.one_of(st.sampled_from(SPECIAL), texts), min_size=1, max_size=5).map("".join)
families = pytest.mark.parametrize("name", PROVEN)
everyone = pytest.mark.parametrize("name", MAKERS)


@functools.cache
def described(name: str) -> Tokenizer:
    return resolve_tokenizer(str(path_of(name)), "</s>" if name == "wordpiece" else None)


@functools.cache
def fastest(name: str) -> Encoder:
    return load_fastest(described(name))


@functools.cache
def reference(name: str) -> Encoder:
    return load_encoder(described(name), "tokenizers")


def ids_of(encoder: Encoder, text: str) -> list[int]:
    ids: list[int] = encoder.encode([text.encode()])[0].tolist()
    return ids


@families
@given(text=with_special)
@example("\u0344" * 9)
@example("\U0001d160" * 9)
@example(" " * 9 + " ".join(PLAIN))
def test_a_text_has_no_more_ids_than_its_bytes_allow(name: str, text: str) -> None:
    most = most_ids(described(name))
    assert most is not None
    assert len(true_ids(name, text)) <= most * (len(text.encode()) + 1)


def test_how_many_ids_a_byte_becomes_is_not_known_of_every_tokenizer() -> None:
    assert [most_ids(described(name)) for name in ("gpt2", "unigram", "wordpiece")] == [1, None, None]
    assert most_ids(resolve_tokenizer("gpt2")) == 1


@families
def test_a_family_is_known_and_loaded_by_the_fast_engine(name: str) -> None:
    tokenizer = described(name)
    assert tokenizer.encoding == name
    assert engine_of(tokenizer, "gigatoken") == "gigatoken"


@pytest.mark.parametrize("name", ["unigram", "wordpiece"])
def test_what_is_of_no_family_is_encoded_by_the_reference(name: str) -> None:
    tokenizer = described(name)
    assert (tokenizer.encoding, engine_of(tokenizer, "gigatoken"), cutter_of(tokenizer)) == (OTHER, "tokenizers", None)
    with pytest.raises(UsageError, match="gigatoken does not give"):
        load_encoder(tokenizer, "gigatoken")


@everyone
@given(text=texts)
def test_ids_are_those_of_the_reference(name: str, text: str) -> None:
    assert ids_of(fastest(name), text) == true_ids(name, text)


@families
@given(text=with_special)
def test_special_tokens_in_text_stay_text(name: str, text: str) -> None:
    ids = ids_of(fastest(name), text)
    assert ids == true_ids(name, text) == ids_of(reference(name), text)
    assert described(name).eot_id not in ids


@everyone
@pytest.mark.parametrize("special", [*SPECIAL, "a</s>", "a </s> b", "[SEP] [SEP]"])
def test_no_text_gives_the_id_of_a_special_token(name: str, special: str) -> None:
    added = json.loads(path_of(name).read_text())["added_tokens"]
    forged = {token["id"] for token in added if token["special"] and token["content"] not in ("<unk>", "[UNK]")}
    assert described(name).eot_id in forged
    for encoder in (fastest(name), reference(name)):
        assert not forged & set(ids_of(encoder, special))


@everyone
def test_a_corpus_has_the_ids_of_the_reference(name: str) -> None:
    # Where special tokens are entries of the vocabulary, the reference takes them from text even if told not to.
    documents = [text.replace("<s> </s>", "") * n for text in TEXTS for n in (1, 3, 200)]
    ids, offsets = fastest(name).encode([document.encode() for document in documents])
    for i, document in enumerate(documents):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == true_ids(name, document)


@everyone
def test_documents_of_one_buffer_are_those_of_a_list(name: str) -> None:
    separator = b"<|endoftext|>"
    documents = [text.encode() for text in (*TEXTS, "x<|", "", "|>y", "a\u0301", "\u0301", " ", " the", "the ", "\U000323b0", "")]
    lengths = np.array([len(document) for document in documents], np.int64)
    starts = np.cumsum(lengths + len(separator)) - lengths - len(separator)
    slices, _ = DocumentBuffer(separator.join(documents), starts, starts + lengths, separator).without_empty()
    full = [document for document in documents if document]
    lengths = np.array([len(document) for document in full], np.int64)
    starts = np.cumsum(lengths + len(separator)) - lengths - len(separator)
    compact = DocumentBuffer(separator.join(full), starts, starts + lengths, separator).compact()
    assert compact.separator != separator
    for encoder in (fastest(name), reference(name)):
        expected = encoder.encode(full)
        for actual in (encoder.encode(slices), encoder.encode(compact)):
            assert expected[0].tolist() == actual[0].tolist()
            assert expected[1].tolist() == actual[1].tolist()


@pytest.mark.parametrize("name", [name for name in PROVEN if name not in ("sentencepiece", "metaspace")])
@given(text=with_special)
@example("word <tool_call>x</tool_call> a.b1,c")
@example("<tool_call")
def test_ids_of_the_parts_are_those_of_the_whole(name: str, text: str) -> None:
    cutter = cutter_of(described(name))
    assert cutter is not None
    data, at = text.encode(), 0
    whole = true_ids(name, text)
    while at := cutter.first(data, at + 1):
        left, right = data[:at].decode(), data[at:].decode()
        assert true_ids(name, left) + true_ids(name, right) == whole, at
        assert cutter.last(data, at) == at


@given(with_special, st.integers(0, 60), st.integers(0, 90))
def test_a_cut_beside_added_tokens_stays_when_more_of_the_text_is_known(text: str, start: int, known: int) -> None:
    cutter = cutter_of(described("qwen2+nfc"))
    assert cutter is not None
    early = cutter.first(text.encode()[:known], start)
    if early:
        assert cutter.first(text.encode(), start) == early


def test_there_is_no_cut_inside_an_added_token() -> None:
    cutter = cutter_of(described("qwen2+nfc"))
    assert cutter is not None
    assert cutter.first(b"<tool_call>", 1) == 0
    assert cutter.first(b"<think>", 1) == 0
    assert cutter.first(b"tool_call>", 1) == 4


@pytest.mark.parametrize("name", ["sentencepiece", "metaspace", "unigram", "wordpiece"])
def test_without_proven_cuts_documents_stay_whole(name: str) -> None:
    assert cutter_of(described(name)) is None


@families
def test_long_documents_have_the_same_ids_in_the_reference_that_cuts_them(name: str) -> None:
    text = "".join(TEXTS) * 400
    assert ids_of(reference(name), text) == true_ids(name, text)


@everyone
def test_text_comes_back_as_the_reference_gives_it(name: str) -> None:
    text = "It was the best of times, naïve 你好 1859."
    ids = np.array(true_ids(name, text), np.uint32)
    assert load_decoder(described(name)).decode(ids).decode() == truth(name).decode(ids.tolist(), skip_special_tokens=False)
    if is_lossless(described(name)):
        assert load_decoder(described(name)).decode(ids).decode() == text


@everyone
def test_an_id_outside_the_vocabulary_is_an_engine_error(name: str) -> None:
    for encoder in (load_decoder(described(name)), reference(name)):
        with pytest.raises(EngineError):
            encoder.decode(np.array([0, 100_000], np.uint32))


def changed(name: str, directory: Path, **changes: Any) -> str:
    return resolve_tokenizer(str(rewritten(name, directory, **changes))).encoding


def test_anything_that_is_not_proven_belongs_to_no_family(tmp_path: Path) -> None:
    """Each of these decides ids, and the fast engine either refuses it or does not look."""
    split = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

    def steps(*inner: dict[str, Any]) -> dict[str, Any]:
        return {"type": "Sequence", "pretokenizers": list(inner)}

    assert changed("llama3", tmp_path, pre_tokenizer=steps(split, last)) == "llama3"
    for pre_tokenizer in (
        steps(split | {"behavior": "Removed"}, last),
        steps(split | {"invert": True}, last),
        steps(split | {"pattern": {"Regex": LLAMA3[:-1] + "{2}"}}, last),
        steps(split | {"pattern": {"String": LLAMA3}}, last),
        steps(split, last | {"add_prefix_space": True}),
        steps(split, last | {"use_regex": True}),
        steps(split, {"type": "Digits", "individual_digits": True}, last),
        {"type": "Whitespace"},
        None,
    ):
        assert changed("llama3", tmp_path, pre_tokenizer=pre_tokenizer) == OTHER, pre_tokenizer
    for normalizer in ({"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True}):
        assert changed("llama3", tmp_path, normalizer=normalizer) == OTHER, normalizer
    for model in ({"dropout": 0.1}, {"continuing_subword_prefix": "##", "merges": []}, {"end_of_word_suffix": "</w>"}):
        assert changed("llama3", tmp_path, model=model) == OTHER, model
    assert changed("sentencepiece", tmp_path, model={"fuse_unk": False}) == OTHER
    assert changed("sentencepiece", tmp_path, model={"unk_token": None}) == OTHER


@pytest.mark.parametrize("name", ["llama3", "sentencepiece"])
def test_a_vocabulary_that_lacks_a_byte_belongs_to_no_family(tmp_path: Path, name: str) -> None:
    vocabulary = json.loads(path_of(name).read_text())["model"]["vocab"]
    token = "<0x0A>" if name == "sentencepiece" else "\u010a"
    spec = {"vocab": {("\U0010ffff" if t == token else t): i for t, i in vocabulary.items()}, "merges": []}
    assert changed(name, tmp_path, model=spec) == OTHER


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_added_tokens_that_are_matched_otherwise_lead_to_the_reference(tmp_path: Path, flag: str) -> None:
    added = json.loads(path_of("qwen2+nfc").read_text())["added_tokens"]
    added[-1] |= {flag: True}
    path = rewritten("qwen2+nfc", tmp_path, added_tokens=added)
    tokenizer = resolve_tokenizer(str(path))
    assert tokenizer.encoding == OTHER
    made = type(truth("gpt2")).from_file(str(path))
    text = "a <think> b<think>c <think>\u0338"
    assert ids_of(load_fastest(tokenizer), text) == made.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("content", ["\u00e9\u00e9", "abK", "a;b", "a b", "<|endoftext", "oftext|><", "text"])
def test_added_tokens_that_normalization_makes_or_special_tokens_overlap_lead_to_the_reference(
    tmp_path: Path, content: str
) -> None:
    added = json.loads(path_of("qwen2+nfc").read_text())["added_tokens"]
    added[-1] |= {"content": content}
    assert changed("qwen2+nfc", tmp_path, added_tokens=added) == OTHER


def in_context(character: str) -> str:
    """Shows whether it is a letter, mark, digit, white space, punctuation or none of them, and how it combines."""
    c = character
    return (
        f"a{c}a 1{c}1 {c}'s A{c}a a{c}A .{c}. {c}\n\n{c} {c}{c}'ll  {c}\n!{c} !a{c} \r{c}"
        f"a{c}\u0301 a\u0323{c} a\u0301{c} {c}\u0323 \u0345{c} \u0300{c}\u0316{c}\u0300 \u1100{c} {c}\u1161"
    )


guarded = pytest.mark.parametrize("name", [name for name in PROVEN if FAMILIES[name.partition("+")[0]].has_classes])


@guarded
def test_characters_newer_than_the_reference_are_encoded_by_the_reference(name: str) -> None:
    assert isinstance(fastest(name), UnicodeFallback)
    for a, b in (*NEWER, *NEWER_SYMBOLS, *NEWER_FOR_NFC):
        for code in {a, (a + b) // 2, b}:
            assert ids_of(fastest(name), in_context(chr(code))) == true_ids(name, in_context(chr(code))), hex(code)


@pytest.mark.slow
@families
def test_every_character_of_unicode_is_encoded_as_by_the_reference(name: str) -> None:
    codes = [c for c in (*range(0x40000), *range(0xE0000, 0xE0200)) if not 0xD800 <= c < 0xE000]
    for begin in range(0, len(codes), 4096):
        documents = [in_context(chr(code)) for code in codes[begin : begin + 4096]]
        expected = truth(name).encode_batch_fast(documents, add_special_tokens=False)
        ids, offsets = fastest(name).encode([document.encode() for document in documents])
        for i, encoding in enumerate(expected):
            assert ids[offsets[i] : offsets[i + 1]].tolist() == encoding.ids, ascii(documents[i])


def test_words_that_no_merge_makes_are_found_where_merges_are_ignored(tmp_path: Path) -> None:
    spec = json.loads(path_of("llama3").read_text())
    path = rewritten("llama3", tmp_path, model={"merges": spec["model"]["merges"][:50]})
    made = type(truth("llama3")).from_file(str(path))
    for text in TEXTS:
        assert ids_of(load_fastest(resolve_tokenizer(str(path))), text) == made.encode(text, add_special_tokens=False).ids


def test_the_reference_of_a_kind_is_named() -> None:
    assert reference_of(described("gpt2")) == "tokenizers"
    assert reference_of(resolve_tokenizer("gpt2")) == "tiktoken"
    with pytest.raises(UsageError, match="tiktoken cannot load") as caught:
        engine_of(described("gpt2"), "tiktoken")
    assert caught.value.allowed == "gigatoken, tokenizers"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sentencepiece", {"model": {"ignore_merges": True}}, "text could become a special token"),
        ("gpt2", {"model": {"type": "WordLevel"}}, "its model is WordLevel"),
        ("gpt2", {"model": {"merges": 7}}, "its merges cannot be read"),
        ("gpt2", {"model": {"vocab": [1]}}, "its vocabulary cannot be read"),
        ("gpt2", {"added_tokens": [{"id": 5, "content": "<x>"}]}, "has id 5, and the reference gives it 5[0-9][0-9]"),
        ("gpt2", {"added_tokens": [{"id": "a"}]}, "is no tokenizer.json"),
    ],
)
def test_what_cannot_be_promised_is_refused(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_tokenizer(str(rewritten(name, tmp_path, **changes)))
    error = caught.value
    assert all((error.what, error.where, error.allowed, error.next_step))


def without_bytes(directory: Path) -> Path:
    """A BPE over characters: what it has not seen is unknown."""
    return rewritten("sentencepiece", directory, model={"byte_fallback": False})


@pytest.mark.parametrize("name", ["bpe", "unigram", "wordpiece"])
def test_the_token_for_what_is_unknown_does_not_end_documents(tmp_path: Path, name: str) -> None:
    path = without_bytes(tmp_path) if name == "bpe" else path_of(name)
    with pytest.raises(UsageError, match="cannot end documents: it stands for what is not in the vocabulary") as caught:
        resolve_tokenizer(str(path), "[UNK]" if name == "wordpiece" else "<unk>")
    error = caught.value
    assert all((error.what, error.where, error.allowed))
    other = str(error.next_step).split("'")[1]
    assert resolve_tokenizer(str(path), other).eot_id == json.loads(path.read_text())["added_tokens"][1]["id"]


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_a_token_for_the_unknown_ends_documents_where_nothing_is_unknown(tmp_path: Path, name: str) -> None:
    tokenizer = resolve_tokenizer(str(rewritten(name, tmp_path, model={"unk_token": EOT})))
    assert tokenizer.eot_id not in ids_of(load_encoder(tokenizer, "tokenizers"), "".join(TEXTS))


def test_a_special_token_that_is_a_byte_does_not_end_documents(tmp_path: Path) -> None:
    spec = json.loads(path_of("sentencepiece").read_text())
    zero = spec["model"]["vocab"]["<0x00>"]
    added = spec["added_tokens"][0] | {"id": zero, "content": "<0x00>"}
    path = rewritten("sentencepiece", tmp_path, added_tokens=[*spec["added_tokens"], added])
    with pytest.raises(UsageError, match="it stands for a byte") as caught:
        resolve_tokenizer(str(path), "<0x00>")
    assert "</s>" in str(caught.value.next_step)
    assert "<0x00>" not in str(caught.value.next_step)


@pytest.mark.parametrize(("name", "token"), [("gpt2", "!"), ("gpt2", "\u0120"), ("sentencepiece", "e")])
def test_a_special_token_of_one_symbol_is_refused(tmp_path: Path, name: str, token: str) -> None:
    spec = json.loads(path_of(name).read_text())
    added = spec["added_tokens"][0] | {"id": spec["model"]["vocab"][token], "content": token, "special": True}
    with pytest.raises(UsageError, match="is what text with it becomes") as caught:
        resolve_tokenizer(str(rewritten(name, tmp_path, added_tokens=[*spec["added_tokens"], added])))
    assert all((caught.value.what, caught.value.where, caught.value.allowed, caught.value.next_step))


def test_a_special_token_of_one_character_that_no_text_becomes_is_allowed(tmp_path: Path) -> None:
    spec = json.loads(path_of("gpt2").read_text())
    n = len(spec["model"]["vocab"])
    model = {"vocab": spec["model"]["vocab"] | {"\u20ac": n}}
    added = spec["added_tokens"][0] | {"id": n, "content": "\u20ac"}
    tokenizer = resolve_tokenizer(str(rewritten("gpt2", tmp_path, model=model, added_tokens=[added])), "\u20ac")
    for engine in ("gigatoken", "tokenizers"):
        assert n not in ids_of(load_encoder(tokenizer, engine), "5 \u20ac")


def test_merges_that_make_a_special_token_of_text_are_refused(tmp_path: Path) -> None:
    spec = json.loads(path_of("gpt2").read_text())
    n = len(spec["model"]["vocab"])
    vocabulary = spec["model"]["vocab"] | {"<|": n, EOT: n + 1}
    added = [{"id": n + 1, "content": EOT, "special": True}]
    merges = [*spec["model"]["merges"], ["<|", "endoftext|>"]]
    with pytest.raises(UsageError, match="its merges make the special token"):
        changed("gpt2", tmp_path, model={"vocab": vocabulary, "merges": merges}, added_tokens=added)


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_a_special_token_that_is_an_entry_of_the_vocabulary_is_not_made_of_text(tmp_path: Path, name: str) -> None:
    """With `ignore_merges`, a word that is an entry is its id: here the pattern makes a word of the whole token."""
    spec = json.loads(path_of(name).read_text())
    n = len(spec["model"]["vocab"])
    added = [{"id": n, "content": "endoftext", "special": True}]
    model = {"vocab": spec["model"]["vocab"] | {"endoftext": n}}
    tokenizer = resolve_tokenizer(str(rewritten(name, tmp_path, model=model, added_tokens=added)), "endoftext")
    assert (tokenizer.encoding, tokenizer.eot_id, tokenizer.n_ids) == (name, n, n + 1)
    for engine in ("gigatoken", "tokenizers"):
        ids = ids_of(load_encoder(tokenizer, engine), "endoftext endoftext\nendoftext")
        assert n not in ids
        assert ids == true_ids(name, "endoftext endoftext\nendoftext")


def test_the_number_of_ids_is_that_of_the_tokenizer(tmp_path: Path) -> None:
    """A model has a row for each, also for special tokens behind the one that ends documents."""
    n = len(json.loads(path_of("gpt2").read_text())["model"]["vocab"])
    rest = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [rest | {"id": n + i, "content": token, "special": True} for i, token in enumerate([EOT, "<|pad|>", "<|user|>"])]
    path = rewritten("gpt2", tmp_path, added_tokens=added)
    tokenizer = resolve_tokenizer(str(path), EOT)
    assert (tokenizer.eot_id, tokenizer.n_ids) == (n, n + 3)
    assert tokenizer.n_ids == tokenizers.Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=True)


def test_a_panic_of_the_reference_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one: an added token of which the normalizer leaves nothing is found inside characters. Such tokenizers are refused."""
    spec = json.loads(path_of("sentencepiece").read_text())
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    nothing = {"id": len(spec["model"]["vocab"]), "content": "\n\n", "normalized": True, "special": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    data = json.dumps(spec | {"normalizer": strip, "added_tokens": [*spec["added_tokens"], nothing | flags]}).encode()
    with pytest.raises(UsageError, match="leaves nothing of the added token") as caught:
        HuggingFaceEncoder(lambda: data, None)
    assert all((caught.value.what, caught.value.where, caught.value.allowed, caught.value.next_step))
    monkeypatch.setattr(HuggingFaceEncoder, "_check_added", lambda _: None)
    encoder = HuggingFaceEncoder(lambda: data, None)
    with pytest.raises(EngineError, match="Hugging Face tokenizers failed"):
        encoder.encode(["the\u0301 \u0301".encode()])


def test_an_added_token_that_the_normalizer_shortens_is_encoded(tmp_path: Path) -> None:
    spec = json.loads(path_of("unigram").read_text())
    n = len(spec["model"]["vocab"])
    added = [*spec["added_tokens"], {"id": n, "content": "q\ufb01e\u0301", "normalized": True, "special": False}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    path = rewritten("unigram", tmp_path, added_tokens=[flags | token for token in added])
    tokenizer = resolve_tokenizer(str(path))
    assert n in ids_of(load_encoder(tokenizer, "tokenizers"), "a q\ufb01\u00e9 b")


@pytest.mark.parametrize("name", ["gpt2", "sentencepiece"])
def test_merges_are_not_dropped_at_random(tmp_path: Path, name: str) -> None:
    """`dropout` is for training: encoding with it gives other ids each time, and none that could be verified."""
    tokenizer = resolve_tokenizer(str(rewritten(name, tmp_path, model={"dropout": 0.5})))
    for engine in {engine_of(tokenizer, "gigatoken"), "tokenizers"}:
        assert ids_of(load_encoder(tokenizer, engine), TEXTS[0]) == true_ids(name, TEXTS[0])


def test_a_file_that_the_library_does_not_load_is_named(tmp_path: Path) -> None:
    path = rewritten("gpt2", tmp_path, normalizer={"type": "Foo"})
    with pytest.raises(EngineError, match="cannot be loaded") as caught:
        load_encoder(resolve_tokenizer(str(path)), "tokenizers")
    assert caught.value.where == str(path)


@pytest.mark.parametrize(("prefix", "merges"), [("##", ["h e"]), ("##", ["h #"]), ("[", ["h é"]), ("é", ["h ée"])])
def test_merges_that_do_not_fit_their_prefix_are_refused(tmp_path: Path, prefix: str, merges: list[str]) -> None:
    """The library ends the whole process for them."""
    path = rewritten("gpt2", tmp_path, model={"continuing_subword_prefix": prefix, "merges": merges})
    with pytest.raises(UsageError, match="do not fit its continuing_subword_prefix"):
        resolve_tokenizer(str(path))


def test_a_special_token_that_merges_with_a_prefix_make_is_found(tmp_path: Path) -> None:
    token = {"id": 0, "content": "he", "special": True}
    model = {"vocab": {"he": 0, "h": 1, "##e": 2}, "continuing_subword_prefix": "##", "merges": ["h ##e"]}
    path = rewritten("gpt2", tmp_path, model=model, added_tokens=[token])
    with pytest.raises(UsageError, match="its merges make the special token"):
        resolve_tokenizer(str(path))
