"""Bare files of ids: what is not stated is not invented, what cannot be so is refused by name, and the advice works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import EOT, gpt2, write_corpus

import tokmill
from tokmill import cli
from tokmill.errors import UsageError
from tokmill.render import inspection_lines

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["First document.", "The second one.", "漢字 and a third"]
IDS = [i for text in TEXTS for i in [*gpt2().encode_ordinary(text), EOT]]
STATED: dict[str, Any] = {"from_format": "raw", "dtype": "uint16", "eot": "after", "eot_id": EOT}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    np.array(IDS, np.uint16).tofile(tmp_path / "some.bin")
    return tmp_path / "some.bin"


@pytest.fixture
def unnamed(bare: Path, tmp_path: Path) -> Path:
    """Converted without a tokenizer."""
    tokmill.convert(bare, tmp_path / "unnamed", format="raw", **STATED)
    return tmp_path / "unnamed"


def whole(error: UsageError) -> str:
    """All four parts, which must be there."""
    assert error.where
    assert error.allowed
    assert error.next_step
    return str(error)


def test_a_tokenizer_that_nobody_named_is_none_and_inspect_needs_none(unnamed: Path) -> None:
    found = tokmill.inspect(unnamed)
    assert (found.tokenizer, found.tokenizer_sha256, found.eot_id, found.previews) == (None, None, EOT, [])
    assert (found.sides[0].documents, found.bytes_text, found.bytes_per_token) == (3, None, None)
    lines = inspection_lines(found)
    assert "not known (pass --tokenizer for a preview)" in lines
    assert "per token" not in lines
    with pytest.raises(UsageError, match="which tokenizer made these ids is not known") as caught:
        tokmill.inspect(unnamed, documents=[0])
    assert "--tokenizer gpt2" in whole(caught.value)


def test_it_may_be_named_when_the_output_is_opened(unnamed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(unnamed), "--tokenizer", "gpt2", "--document", "2"]) == 0
    assert TEXTS[2] in capsys.readouterr().out
    with tokmill.open(unnamed, tokenizer="gpt2") as data:
        assert [data.decode(ids) for ids in data.documents("train")] == TEXTS
    with tokmill.open(unnamed / "train.bin") as data:
        assert (data.tokenizer, data.eot_id) == (None, EOT)
    with pytest.raises(UsageError, match="for bare files"):
        tokmill.open(unnamed, dtype="uint16")


def test_a_tokenizer_with_fewer_ids_than_were_met_is_refused(tmp_path: Path) -> None:
    np.array([70_000, 9], np.uint32).tofile(tmp_path / "wide.bin")
    tokmill.convert(tmp_path / "wide.bin", tmp_path / "o", format="raw", **STATED | {"dtype": "uint32", "eot_id": 9})
    with pytest.raises(UsageError, match=r"ids go up to 70,000, those of gpt2 only up to 50,256") as caught:
        tokmill.open(tmp_path / "o", tokenizer="gpt2")
    whole(caught.value)


def test_a_known_tokenizer_is_not_replaced(bare: Path, tmp_path: Path) -> None:
    tokmill.convert(bare, tmp_path / "named", format="raw", tokenizer="gpt2", **STATED)
    with pytest.raises(UsageError, match="for bare files"):
        tokmill.open(tmp_path / "named", tokenizer="gpt2")


def test_repair_of_an_output_without_a_tokenizer_finds_nothing_or_says_what_to_do(unnamed: Path) -> None:
    assert tokmill.repair(unnamed).repaired == []
    with (unnamed / "train.bin").open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(UsageError, match="bare files"):
        tokmill.repair(unnamed)


def test_merging_with_a_named_one_advises_to_convert_with_the_tokenizer(unnamed: Path, tmp_path: Path) -> None:
    tokmill.tokenize(write_corpus(tmp_path / "c.txt", TEXTS), tmp_path / "named", val_fraction=0)
    with pytest.raises(UsageError, match=r"the tokenizer is not known, not gpt2 \(sha256") as caught:
        tokmill.merge([tmp_path / "named", unnamed], tmp_path / "m")
    assert "tokmill convert --tokenizer NAME" in whole(caught.value)


def test_merged_without_a_tokenizer_the_largest_id_of_all_is_in_range(unnamed: Path, tmp_path: Path) -> None:
    np.array([60_000, EOT], np.uint16).tofile(tmp_path / "more.bin")
    tokmill.convert(tmp_path / "more.bin", tmp_path / "more", format="raw", **STATED)
    tokmill.merge([unnamed, tmp_path / "more"], tmp_path / "m")
    assert tokmill.verify(tmp_path / "m").ok
