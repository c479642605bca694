"""The list of skipped records says of each which one it is, and under which key there was no text."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from support.failures import flip
from support.outputs import collect_data
from support.runs import TINY, make_parts, repair_in_process, tokenize_in_small_segments

import tokmill
from tokmill.core import skipping
from tokmill.core.errors import TooManySkippedError
from tokmill.core.manifest import load_manifest
from tokmill.reports.reporting import make_page

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("workers_in_process")

TEXTS = ["one", None, "two", "three", None, None, "four"]
NULL = {2, 5, 6}


def skipped(corpus: Path, out: Path, **options: Any) -> list[tuple[int, str, str | None]]:
    """Record, reason and key of each."""
    tokmill.tokenize(corpus, out, on_error="skip", threads=1, **options)
    skips = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {skip["path"] for skip in skips} == {str(corpus)}
    return [(skip["record"], skip["reason"], skip.get("text_key")) for skip in skips]


def test_of_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"body": text}) for text in TEXTS] + ["{", '{"text": "x"}', '{"body": 5}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    nulls = [(n, "null_text", "body") for n in sorted(NULL)]
    assert skipped(tmp_path / "a.jsonl", tmp_path / "o", text_key="body") == [
        *nulls, (8, "invalid_json", None), (9, "missing_text", "body"), (10, "not_a_string", "body"),
    ]  # fmt: skip
    page = make_page(collect_data(tmp_path / "o"))
    assert "missing_text, under body" in page
    assert "invalid_json, under" not in page


def test_of_parquet_whose_rows_are_in_several_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"m": pa.array([{"text": text} for text in TEXTS])}), tmp_path / "a.parquet", row_group_size=2)
    expected = [(n, "null_text", "m.text") for n in sorted(NULL)]
    assert skipped(tmp_path / "a.parquet", tmp_path / "o", text_key="m.text") == expected


def test_of_arrow(tmp_path: Path) -> None:
    pyarrow.feather.write_feather(pa.table({"text": TEXTS}), str(tmp_path / "a.feather"), chunksize=3)
    assert skipped(tmp_path / "a.feather", tmp_path / "o") == [(n, "null_text", "text") for n in sorted(NULL)]


def test_of_csv_rows_of_several_lines_are_one(tmp_path: Path) -> None:
    rows = ['"many\nlines"' if i + 1 not in NULL else "too,many" for i in range(len(TEXTS))]
    (tmp_path / "a.csv").write_text("\n".join(["text", *rows]) + "\n")
    assert skipped(tmp_path / "a.csv", tmp_path / "o") == [(n, "invalid_csv", None) for n in sorted(NULL)]


def test_of_a_run_that_was_stopped_by_them_and_goes_on_none_is_listed_twice(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{}\n{"text": "x"}\n{}\n{}\n')
    for on_error, most in (("stop", None), ("skip", 1), ("skip", 2)):
        with pytest.raises(tokmill.TokmillError):
            tokmill.tokenize(tmp_path / "a.jsonl", tmp_path / "o", on_error=on_error, max_skipped=most, threads=1)
    expected = [(n, "missing_text", "text") for n in (1, 3, 4)]
    assert skipped(tmp_path / "a.jsonl", tmp_path / "o") == expected


def corpus_of_faults(path: Path) -> Path:
    """JSON lines in which faults follow each other, some for longer than a batch, a segment or a part."""
    good, null, broken = '{"text": "some words of a good record"}', '{"text": null}', "{"
    runs = [
        (good, 3),
        (null, 1),
        (broken, 2),
        (good, 1),
        (null, 150),
        (broken, 5),
        (null, 90),
        (good, 40),
        (broken, 200),
        (null, 3),
    ]
    path.write_text("".join(f"{line}\n" * n for line, n in runs))
    return path


def test_records_of_one_fault_that_follow_each_other_are_two_lines_in_every_kind_of_run(tmp_path: Path) -> None:
    corpus = corpus_of_faults(tmp_path / "a.jsonl")
    settings: dict[str, Any] = {"on_error": "skip", "val_fraction": 0.2}
    tokmill.tokenize(corpus, tmp_path / "one", **settings)
    listed = (tmp_path / "one" / "skipped.jsonl").read_bytes()
    lines = [json.loads(line) for line in listed.splitlines()]
    assert sum(line.get("records", 1) for line in lines) == 1 + 2 + 150 + 5 + 90 + 200 + 3
    assert [(line["record"], line.get("records")) for line in lines] == [
        (4, None), (5, None), (6, None), (8, None), (9, 149), (158, None), (159, 4), (163, None), (164, 89),
        (293, None), (294, 199), (493, None), (494, 2),
    ]  # fmt: skip
    assert "164 to 252" in make_page(collect_data(tmp_path / "one"))

    tokenize_in_small_segments([corpus], tmp_path / "small", TINY, **settings)
    assert len(load_manifest(tmp_path / "small").segments) > 5
    assert (tmp_path / "small" / "skipped.jsonl").read_bytes() == listed
    make_parts([corpus], tmp_path / "parts", 4, TINY, **settings)
    tokmill.finalize(tmp_path / "parts")
    assert (tmp_path / "parts" / "skipped.jsonl").read_bytes() == listed
    tokmill.merge([tmp_path / "small"], tmp_path / "merged")
    for name in ("small", "parts", "merged"):
        for at in (0, len(listed) // 2, len(listed) - 2):
            flip(tmp_path / name / "skipped.jsonl", at)
            repair_in_process(tmp_path / name, TINY)
            assert (tmp_path / name / "skipped.jsonl").read_bytes() == listed, (name, at)


def test_a_run_that_was_stopped_inside_a_run_of_faults_goes_on_with_the_same_list(tmp_path: Path) -> None:
    corpus = corpus_of_faults(tmp_path / "a.jsonl")
    tokmill.tokenize(corpus, tmp_path / "one", on_error="skip")
    for most in (50, 100, 200, 240, 300, 400, None):
        with suppress(TooManySkippedError):
            tokenize_in_small_segments([corpus], tmp_path / "out", TINY | {"max_skipped": most}, on_error="skip")
    assert (tmp_path / "out" / "skipped.jsonl").read_bytes() == (tmp_path / "one" / "skipped.jsonl").read_bytes()


def test_the_list_ends_where_it_is_long_enough_and_counts_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skipping, "MOST_LISTED_BYTES", 300)
    corpus = corpus_of_faults(tmp_path / "a.jsonl")
    tokenize_in_small_segments([corpus], tmp_path / "out", TINY, on_error="skip")
    assert 300 <= (tmp_path / "out" / "skipped.jsonl").stat().st_size < 500
    assert sum(load_manifest(tmp_path / "out").counts.skipped.values()) == 451
    assert tokmill.verify(tmp_path / "out", sources=str(corpus)).ok


def test_millions_of_nulls_are_a_few_lines(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(500_000, pa.string())}), tmp_path / "nulls.parquet")
    summary = tokmill.tokenize(tmp_path / "nulls.parquet", tmp_path / "out", on_error="skip")
    assert summary.skipped == {"null_text": 500_000}
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["record"], line.get("records", 1)) for line in lines] == [(1, 1), (2, 499_999)]
