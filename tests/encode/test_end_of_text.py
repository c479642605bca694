"""The end-of-text id is found where it is beyond doubt, and asked for otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.small_tokenizers import EOT, path_of, rewritten

import tokmill
from tokmill.core.errors import ChangedError, UsageError
from tokmill.core.options import PlanOptions
from tokmill.encode.end_of_text import NAMES, find_eot
from tokmill.encode.resolve import resolve_tokenizer
from tokmill.run.job import make_job

DEEPSEEK = NAMES[2]


def beside(directory: Path, eos: object) -> str:
    """The path of a tokenizer.json that has this tokenizer_config.json beside it."""
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "model_max_length": 1e30}))
    return str(directory / "tokenizer.json")


@pytest.mark.parametrize("eos", ["</s>", {"content": "</s>", "lstrip": False}])
def test_it_is_what_the_configuration_says(tmp_path: Path, eos: object) -> None:
    assert find_eot({"<s>": 1, "</s>": 2, "<pad>": 3}, beside(tmp_path, eos), None) == 2


@pytest.mark.parametrize("eos", ["[END]"])
def test_a_name_of_its_own_will_do_when_the_configuration_says_it(tmp_path: Path, eos: str) -> None:
    assert find_eot({"[END]": 7, "[PAD]": 8}, beside(tmp_path, eos), None) == 7


@pytest.mark.parametrize("name", NAMES)
def test_without_a_configuration_it_is_the_one_token_of_a_known_name(tmp_path: Path, name: str) -> None:
    assert find_eot({"<x>": 1, name: 2, "<|im_end|>": 3}, str(tmp_path / "tokenizer.json"), None) == 2


@pytest.mark.parametrize(
    ("special", "eos"),
    [
        ({EOT: 1, "<|im_end|>": 2}, "<|im_end|>"),  # the end of a turn, in the files of a chat model
        ({"<|end_of_text|>": 1, "<|eot_id|>": 2}, "<|eot_id|>"),
        ({EOT: 1, "</s>": 2}, EOT),
        ({EOT: 1, "</s>": 2}, None),
        ({"<|im_end|>": 1, "<pad>": 2}, None),
        ({"<|im_end|>": 1, "<pad>": 2}, "<eos>"),
        ({"<|im_end|>": 1}, 7),
        ({EOT: 1}, "<eos>"),  # which the tokenizer does not have
        ({}, None),
    ],
)
def test_it_is_asked_for_where_it_is_not_clear(tmp_path: Path, special: dict[str, int], eos: object) -> None:
    with pytest.raises(UsageError, match="which token ends a document is not clear") as caught:
        find_eot(special, beside(tmp_path, eos), None)
    error = caught.value
    assert all((error.where, error.allowed, error.next_step))
    assert all(f"{token} ({i})" in (error.allowed or "") for token, i in special.items())
    assert not special or "--eot-token '" in (error.next_step or "")


@pytest.mark.parametrize("wanted", ["<|im_end|>", "2"])
def test_what_is_asked_for_is_taken(tmp_path: Path, wanted: str) -> None:
    assert find_eot({EOT: 1, "<|im_end|>": 2}, beside(tmp_path, EOT), wanted) == 2


@pytest.mark.parametrize("wanted", ["the", "3", "-1", "", "²"])
def test_a_token_that_text_could_make_is_refused(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(UsageError, match="is no special token"):
        find_eot({EOT: 1, "<|im_end|>": 2}, beside(tmp_path, EOT), wanted)


def test_a_token_that_is_not_there_is_said_not_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--eot-token '\[FOO\]' is no special token of this tokenizer"):
        find_eot({EOT: 1}, beside(tmp_path, EOT), "[FOO]")


@pytest.mark.parametrize(
    ("special", "example"),
    [
        (["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"], "[SEP]"),
        (["<s>", "</s>", EOT], EOT),
        (["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        (["[CLS]", "[MASK]", "<|x|>"], "<|x|>"),
    ],
)
def test_the_token_that_is_offered_first_is_the_likeliest_end(tmp_path: Path, special: list[str], example: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_eot({token: i for i, token in enumerate(special)}, beside(tmp_path, None), "[FOO]", {"[UNK]"})
    assert caught.value.next_step == f"--eot-token '{example}'"
    assert "[UNK]" not in (caught.value.allowed or "")


@pytest.mark.parametrize(("maker", "unknown"), [("wordpiece", "[UNK]"), ("unigram", "<unk>")])
def test_the_token_for_what_is_unknown_is_not_offered(maker: str, unknown: str) -> None:
    with pytest.raises(UsageError, match="is no special token") as caught:
        resolve_tokenizer(str(path_of(maker)), "[FOO]")
    assert unknown not in (caught.value.allowed or "") + (caught.value.next_step or "")
    assert caught.value.next_step in ("--eot-token '[SEP]'", "--eot-token '</s>'")


@pytest.mark.parametrize("broken", [b"", b"[]", b"{", b'{"eos_token": "\xff"}', None])
def test_a_configuration_that_cannot_be_read_says_nothing(tmp_path: Path, broken: bytes | None) -> None:
    if broken is None:
        (tmp_path / "tokenizer_config.json").mkdir()
    else:
        (tmp_path / "tokenizer_config.json").write_bytes(broken)
    assert find_eot({"</s>": 2}, str(tmp_path / "tokenizer.json"), None) == 2


def test_a_published_encoding_has_its_own() -> None:
    assert resolve_tokenizer("gpt2", EOT) == resolve_tokenizer("gpt2", "50256") == resolve_tokenizer("gpt2")
    with pytest.raises(UsageError, match="documents of r50k_base end with") as caught:
        resolve_tokenizer("gpt2", "</s>")
    assert caught.value.next_step == "leave --eot-token out"


def test_another_end_of_text_token_is_another_output(tmp_path: Path) -> None:
    path = str(path_of("llama3"))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one two three")
    tokmill.tokenize(corpus, tmp_path / "out", tokenizer=path, val_fraction=0)
    with pytest.raises(ChangedError, match="--eot-token was 515, is 516"):
        tokmill.tokenize(corpus, tmp_path / "out", tokenizer=path, eot_token="<|im_start|>", val_fraction=0)


def test_the_error_of_a_chat_models_files_names_what_to_type(tmp_path: Path) -> None:
    path = rewritten("llama3", tmp_path)
    beside(tmp_path, "<|im_start|>")
    with pytest.raises(UsageError, match="ends with '<|im_start|>'".replace("|", r"\|")) as caught:
        resolve_tokenizer(str(path))
    assert caught.value.next_step == f"--eot-token '{EOT}'"
    assert resolve_tokenizer(str(path), EOT).eot_id == 515
    np.array([72, 515, 73, 515], np.uint16).tofile(tmp_path / "bare.bin")
    with tokmill.open(tmp_path / "bare.bin", dtype="uint16", tokenizer=str(path), eot_id=515) as data:
        assert data.n_documents("train") == 2
        assert len(data.decode(data.train[:])) == 2


@pytest.mark.parametrize("wanted", ["9" * 5000, "\u0663", "x" * 5000])
def test_what_is_no_token_and_no_id_is_refused_and_shown_in_short(wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no special token") as caught:
        find_eot({"<eos>": 3}, str(tmp_path / "tokenizer.json"), wanted)
    assert len(caught.value.what) < 300


def clip(path: Path, lacking: str = "") -> Path:
    """A tokenizer.json in CLIP's layout: words end in </w>, and the unknown token is the one that ends documents."""
    spec = json.loads(path_of("gpt2").read_text())
    letters = [token for token in spec["model"]["vocab"] if len(token) == 1]
    tokens = [*letters, *(letter + "</w>" for letter in letters if letter not in lacking), EOT, "<|startoftext|>"]
    model = {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": [], "unk_token": EOT, "end_of_word_suffix": "</w>"}
    added = [{"id": len(tokens) - 2 + i, "content": token, "special": True} for i, token in enumerate(tokens[-2:])]
    return rewritten("gpt2", path, model=model, added_tokens=added)


def test_an_unknown_token_cannot_end_documents_where_a_word_may_end_in_what_is_unknown(tmp_path: Path) -> None:
    path = str(clip(tmp_path, lacking="z"))
    with pytest.raises(UsageError, match="cannot end documents") as caught:
        resolve_tokenizer(path, EOT)
    assert (caught.value.option, caught.value.suggested) == ("--eot-token", "<|startoftext|>")
    assert resolve_tokenizer(path, "<|startoftext|>").kind == "huggingface"


def test_an_unknown_token_may_end_documents_where_nothing_is_unknown(tmp_path: Path) -> None:
    assert resolve_tokenizer(str(clip(tmp_path)), EOT).n_ids == 514


def test_which_of_several_special_tokens_was_found_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")

    def said(tokenizer: str, **options: str) -> list[str]:
        job = make_job([str(tmp_path / "a.txt")], PlanOptions(tokenizer=tokenizer, **options), out=str(tmp_path / "o"))  # type: ignore[arg-type]
        return [notice for notice in job.notices if "documents end with" in notice]

    (notice,) = said(str(path_of("sentencepiece")))
    assert notice.startswith("documents end with </s> (id 2); ")
    assert "<s>" in notice
    assert not said(str(path_of("sentencepiece")), eot_token="</s>")
    assert not said("gpt2")
