"""A record that was skipped as too long depends on the budget of the run; the check asks the output, not its own budget."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from support.failures import flip
from support.runs import repair_in_process, run_in_process

import tokmill
from tokmill.check import compare
from tokmill.core.errors import MemoryBudgetError
from tokmill.core.manifest import load_manifest

LONG = "some words and more of them " * 60
SIZES = {"batch_bytes": 64, "max_piece_bytes": 500, "segment_bytes": 200}


def made(tmp_path: Path, *budgets: int) -> tuple[Path, Path]:
    """Return a corpus with long records and an output of it, made with a budget of which a record may take a tenth."""
    lines = ["before", LONG, "between", LONG, LONG, LONG, "after"]
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "out"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    for budget in budgets:
        run_in_process([corpus], out, {**SIZES, "budget_bytes": budget}, tokenizer="gpt2", on_error="skip", val_fraction=0.0)
    return corpus, out


@pytest.mark.parametrize("checked_with", [5000, 1 << 30])
def test_a_record_that_was_skipped_is_skipped_by_the_check(
    tmp_path: Path, checked_with: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = made(tmp_path, 5000)
    assert load_manifest(out).counts.skipped == {"too_long": 4}
    assert len((out / "skipped.jsonl").read_text().splitlines()) == 3
    small = msgspec.structs.replace(compare.USUAL, batch_bytes=64, max_piece_bytes=500, budget_bytes=checked_with)
    monkeypatch.setattr(compare, "USUAL", small)
    report = tokmill.verify(out, sources=[str(corpus)])
    assert report.ok
    assert report.compared_documents == 3
    whole = (out / "train.bin").read_bytes()
    flip(out / "train.bin", 2)
    assert repair_in_process(out, {**SIZES, "budget_bytes": checked_with})
    assert (out / "train.bin").read_bytes() == whole


def test_a_record_that_was_read_and_does_not_fit_the_check_names_the_budget_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = made(tmp_path, 1 << 30)
    assert not load_manifest(out).counts.skipped
    small = msgspec.structs.replace(compare.USUAL, batch_bytes=64, max_piece_bytes=500, budget_bytes=5000)
    with monkeypatch.context() as patch:
        patch.setattr(compare, "USUAL", small)
        with pytest.raises(MemoryBudgetError) as caught:
            tokmill.verify(out, sources=[str(corpus)])
    assert caught.value.suggested == "1024MiB"
    assert tokmill.verify(out, sources=[str(corpus)]).ok
