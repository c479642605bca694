"""`verify --source` asks the reference tokenizer, not only the engine that it checks, and says of how many documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.corpora import write_corpus
from support.oracle import gpt2
from support.outputs import write_output
from support.small_tokenizers import path_of

import tokmill
from tokmill.cli import app
from tokmill.core.errors import AuditError

PLAIN = [f"Text {i} of some words that nobody looks at twice, naïve or not" for i in range(900)]
RARE = "\U000105d2\u0307"
LONG = "Some words of a long document, and more. " * 8000


class WrongIds:
    """GPT-2, with byte after byte for texts that are chosen: ids that give the text back and are not GPT-2's."""

    def __init__(self, is_wrong: Callable[[str], bool]) -> None:
        self._is_wrong = is_wrong

    def encode_ordinary(self, text: str) -> list[int]:
        if not self._is_wrong(text):
            return gpt2().encode_ordinary(text)
        return [gpt2().encode_single_token(bytes([byte])) for byte in text.encode()]


def wrong_output(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, is_wrong: Callable[[str], bool]
) -> tuple[Path, str]:
    corpus = write_corpus(tmp_path / "corpus.txt", texts)
    monkeypatch.setattr("support.outputs.gpt2", lambda: WrongIds(is_wrong))
    write_output(tmp_path / "out", corpus, documents_per_segment=500)
    return tmp_path / "out", str(corpus)


@pytest.mark.parametrize("at", [0, 777, 899])
def test_wrong_ids_of_one_document_with_a_rare_character_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    texts = [*PLAIN]
    texts[at] = f"see {RARE} here"
    out, corpus = wrong_output(tmp_path, texts, monkeypatch, lambda text: RARE in text)
    with pytest.raises(AuditError, match="the reference") as caught:
        tokmill.verify(out, sources=corpus)
    assert f"document {at + 1}" in str(caught.value.where)
    assert "--engine tiktoken" in (caught.value.next_step or "")


@pytest.mark.parametrize("place", [0, 100_000, len(LONG)])
def test_a_rare_character_in_a_long_document_is_looked_at_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    texts = ["first", LONG[:place] + RARE + LONG[place:]]
    out, corpus = wrong_output(tmp_path, texts, monkeypatch, lambda text: RARE in text)
    with pytest.raises(AuditError):
        tokmill.verify(out, sources=corpus, audit=1e-9)


def test_with_audit_1_every_document_is_encoded_by_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*PLAIN[:300], LONG]
    out, corpus = wrong_output(tmp_path, texts, monkeypatch, lambda _: False)
    report = tokmill.verify(out, sources=corpus, audit=1)
    assert (report.by_reference_documents, report.compared_documents, report.reference) == (301, 301, "tiktoken")
    assert report.gives_text_back
    assert tokmill.verify(out, sources=corpus, audit=0).by_reference_documents == 0
    assert 0 < tokmill.verify(out, sources=corpus).by_reference_documents < 30


def test_with_audit_1_wrong_ids_anywhere_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, corpus = wrong_output(tmp_path, PLAIN, monkeypatch, lambda text: text == PLAIN[567])
    with pytest.raises(AuditError):
        tokmill.verify(out, sources=corpus, audit=1)


@pytest.mark.parametrize(("name", "is_all"), [("sentencepiece", False), ("qwen2+nfc", False), ("unigram", True)])
def test_of_tokenizers_that_do_not_give_the_text_back_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, is_all: bool
) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt", [*PLAIN, "한국어"])
    out = str(tmp_path / "out")
    assert app.run(["tokenize", str(corpus), "--out", out, "--tokenizer", str(path_of(name)), "--val-fraction", "0.2"]) == 0
    report = tokmill.verify(out, sources=str(corpus))
    assert not report.gives_text_back
    assert (report.by_reference_documents == len(PLAIN) + 1) == is_all
    assert report.by_reference_documents > 1
    capsys.readouterr()
    assert app.run(["verify", out, "--source", str(corpus), "--audit", "1"]) == 0
    said = capsys.readouterr().out
    assert "901 of them by tokenizers: the same ids; this tokenizer does not give the text back" in said
    assert app.run(["verify", out, "--source", str(corpus), "--audit", "1.1"]) == 2
