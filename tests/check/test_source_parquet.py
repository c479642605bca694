"""`verify --source` of tables without a budget."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tokmill

pytestmark = pytest.mark.usefixtures("workers_in_process")


def test_a_parquet_file_is_compared_within_the_usual_budget(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["hello world", "two"]}), tmp_path / "a.parquet")
    tokmill.tokenize(tmp_path / "a.parquet", tmp_path / "out", val_fraction=0.0)
    assert tokmill.verify(tmp_path / "out", sources=[str(tmp_path / "a.parquet")]).ok
