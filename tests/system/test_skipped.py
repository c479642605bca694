"""The list of skipped records says of each which one it is, and under which key there was no text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from support.outputs import collect_data

import tokmill
from tokmill.reports.reporting import make_page

if TYPE_CHECKING:
    from pathlib import Path

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
