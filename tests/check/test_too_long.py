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
from tokmill.core.spans import RecordRanges
from tokmill.run.summary import notices_of

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
    manifest = load_manifest(out)
    assert manifest.counts.skipped == {"too_long": 4}
    (notice,) = notices_of(manifest.content, manifest.counts, manifest.files)
    assert notice.startswith(
        "4 records left out, too long for this --memory: to have all, run again with --fresh and a larger --memory;"
    )
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


@pytest.mark.parametrize("n_records", [20_000_000, 1 << 60])
def test_a_list_of_skipped_records_that_a_stranger_wrote_takes_no_memory(tmp_path: Path, n_records: int) -> None:
    corpus, out = made(tmp_path, 5000)
    manifest = load_manifest(out)
    line = {"path": str(corpus), "record": 2, "offset": 0, "reason": "too_long", "records": n_records}
    (out / "skipped.jsonl").write_text(json.dumps(line) + "\n")
    manifest = msgspec.structs.replace(manifest, counts=msgspec.structs.replace(manifest.counts, skipped={"too_long": n_records}))
    found = compare.long_records(manifest, out)
    assert found is not None
    assert len(found) == 1
    assert [(0, record) in found for record in (1, 2, 1 + n_records, 2 + n_records)] == [False, True, True, False]
    assert (1, 2) not in found


def test_ranges_of_records_hold_what_a_set_would() -> None:
    ranges = [(7, 9), (2, 3), (3, 5), (8, 8), (8, 12), (20, 21), (2, 4)]
    found = RecordRanges({1: ranges})
    wanted = {record for begin, end in ranges for record in range(begin, end)}
    assert {record for record in range(30) if (1, record) in found} == wanted
    assert len(found) == 3
    assert not RecordRanges({1: []})


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
