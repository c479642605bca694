"""What tokmill itself wrote is no corpus where a directory or pattern contains it; what lies beside it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.corpora import write_corpus

import tokmill
from tokmill.core.errors import UsageError
from tokmill.read.inputs import FoundInputs, find_inputs

pytestmark = pytest.mark.usefixtures("workers_in_process")


def found_in(*names: object, glob: str | None = None) -> FoundInputs:
    return find_inputs([str(name) for name in names], glob=glob, input_format=None)


def paths(found: FoundInputs, top: Path) -> list[str]:
    return [os.path.relpath(i.path, top) for i in found.inputs]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A text, an output of one directory, one of a directory a side, and a manifest that is not tokmill's."""
    top = tmp_path / "corpus"
    top.mkdir()
    write_corpus(top / "a.txt", ["Some text. " * 50] * 40)
    tokmill.tokenize(top / "a.txt", top / "flat", threads=1)
    tokmill.tokenize(top / "a.txt", top / "sided", threads=1, format="mds", val_fraction=0)
    (top / "flat" / "report.html").write_text("x")
    (top / "flat" / "skipped.jsonl").write_text("{}\n")
    (top / "flat" / "train").mkdir()
    (top / "flat" / "train" / "mine.json").write_text('{"text": "x"}\n')
    (top / "other").mkdir()
    (top / "other" / "manifest.json").write_text('{"format_version": "1"}\n')
    return top


MINE = ["a.txt", "flat/train/mine.json", "other/manifest.json"]


def test_a_directory_gives_nothing_of_the_outputs_in_it_and_says_so(corpus: Path) -> None:
    found = found_in(corpus)
    assert paths(found, corpus) == MINE
    (notice,) = [text for text in found.notices() if "tokmill wrote" in text]
    assert f"{corpus}/flat" in notice
    assert f"{corpus}/sided" in notice
    n_sided = sum(p.is_file() for p in (corpus / "sided").rglob("*") if ".tokmill" not in p.parts)
    n_flat = sum(p.is_file() for p in (corpus / "flat").iterdir() if p.name[0] != ".")
    assert f"passed over {n_flat + n_sided} files" in notice


def test_a_glob_and_a_pattern_give_nothing_of_them_either(corpus: Path) -> None:
    assert paths(found_in(corpus, glob="*.json*"), corpus) == MINE[1:]
    assert paths(found_in(corpus / "**" / "*.json*"), corpus) == MINE[1:]
    with pytest.raises(UsageError, match="only what tokmill wrote"):
        found_in(corpus / "sided" / "*" / "*.json")
    with pytest.raises(UsageError, match="no input"):
        found_in(corpus / "sided" / "train")


def test_a_file_that_is_named_itself_is_an_input(corpus: Path) -> None:
    assert paths(found_in(corpus / "flat" / "manifest.json"), corpus) == ["flat/manifest.json"]
