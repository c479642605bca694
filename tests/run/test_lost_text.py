"""A tokenizer that loses text is said to: nothing of the first documents stops the run, something of many is in the result."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.corpora import write_corpus
from support.small_tokenizers import path_of, rewritten

import tokmill
from tokmill.core.errors import UsageError
from tokmill.core.manifest import load_manifest

pytestmark = pytest.mark.usefixtures("workers_in_process")

WORDS = "It was the best of times, it was the worst of times"


def a_tokenizer(name: str, tmp_path: Path, **model: object) -> str:
    return str(rewritten(name, tmp_path, model=model))


@pytest.mark.parametrize("fuse_unk", [True, False])
def test_a_tokenizer_that_knows_no_character_stops_the_run(tmp_path: Path, fuse_unk: bool) -> None:
    # What a failed conversion leaves: three tokens, of which no text can be made.
    tokenizer = a_tokenizer("sentencepiece", tmp_path, vocab={"<unk>": 0, "<s>": 1, "</s>": 2}, merges=[], fuse_unk=fuse_unk)
    corpus = write_corpus(tmp_path / "c.txt", [WORDS, "more"])
    with pytest.raises(UsageError, match="loses the text") as caught:
        tokmill.tokenize(str(corpus), str(tmp_path / "out"), tokenizer=tokenizer)
    assert "c.txt" in str(caught.value.where)
    assert caught.value.option == "--tokenizer"


def test_a_tokenizer_without_an_unknown_token_that_makes_no_ids_stops_the_run(tmp_path: Path) -> None:
    tokenizer = a_tokenizer("sentencepiece", tmp_path, vocab={"<s>": 0, "</s>": 1}, merges=[], unk_token=None, byte_fallback=False)
    spec = Path(tokenizer).read_text().replace('"id": 1,', '"id": 0,').replace('"id": 2,', '"id": 1,')
    Path(tokenizer).write_text(spec)
    corpus = write_corpus(tmp_path / "c.txt", [WORDS])
    with pytest.raises(UsageError):
        tokmill.tokenize(str(corpus), str(tmp_path / "out"), tokenizer=tokenizer)


def test_unknown_ids_and_documents_without_ids_are_counted_and_said(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.txt", [*[WORDS] * 20, "ϟϟϟ ϡϡϡ", "\u0301", "  "])
    options = {"tokenizer": str(path_of("wordpiece")), "eot_token": "</s>", "val_fraction": 0}
    made = tokmill.tokenize(str(corpus), str(tmp_path / "out"), **options)  # type: ignore[arg-type]
    counts = load_manifest(tmp_path / "out").counts
    assert counts.unknown_ids >= 2
    assert counts.documents_without_ids == 1
    assert any("of the unknown token" in notice for notice in made.notices)


@pytest.mark.parametrize("name", ["gpt2", "qwen2+nfc", "sentencepiece"])
def test_where_nothing_is_lost_nothing_is_said(tmp_path: Path, name: str) -> None:
    corpus = write_corpus(tmp_path / "c.txt", [WORDS, "ϟϟϟ ϡϡϡ", " "])
    made = tokmill.tokenize(str(corpus), str(tmp_path / "out"), tokenizer=str(path_of(name)), val_fraction=0)
    assert not [notice for notice in made.notices if "the tokenizer makes" in notice or "unknown token" in notice]
