"""Any text may be the key of the text: names that JSON writes with escapes, with dots, and in every format that has names."""

from __future__ import annotations

import csv
import io
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, strategies as st
from pyarrow import feather
from support.reading import read_all, write

from tokmill.core.errors import BadRecordError, UsageError
from tokmill.core.options import PlanOptions

TEXTS = ["one", 'a "text"\twith\\escapes\n', "", "é"]
NAMES = st.text(
    st.one_of(st.sampled_from("\"\\\x00\x01\t\n\x1f\x7f. a{}[]:,'"), st.characters(exclude_categories=["Cs"])), max_size=6
)


def json_lines(texts: list[str], path: list[str]) -> bytes:
    lines = []
    for text in texts:
        value: Any = text
        for name in reversed(path):
            value = {"before": 1, name: value, "after": [name]}
        lines.append(json.dumps(value))
    return "\n".join(lines).encode()


@given(key=NAMES)
@example(key='a"b')
@example(key="a\\b")
@example(key="a\tb")
@example(key='a.b"c')
def test_any_name_is_a_key_of_json_lines(key: str) -> None:
    if key in ("before", "after"):
        return
    with tempfile.TemporaryDirectory() as where:
        reading = read_all(write(Path(where), {"a.jsonl": json_lines(TEXTS, [key])}), text_key=key)
    assert reading.texts == [text.encode() for text in TEXTS]


@given(
    path=st.lists(NAMES.filter(lambda name: name and "." not in name and name not in ("before", "after")), min_size=2, max_size=4)
)
@example(path=["a", 'b"c'])
@example(path=['"', "\\", "\n"])
def test_a_key_with_dots_leads_through_names_of_any_kind(path: list[str]) -> None:
    with tempfile.TemporaryDirectory() as where:
        reading = read_all(write(Path(where), {"a.jsonl": json_lines(TEXTS, path)}), text_key=".".join(path))
    assert reading.texts == [text.encode() for text in TEXTS]


@given(key=NAMES.filter(lambda name: "\r" not in name and name not in ("", "id")))
def test_any_name_is_a_column_of_a_table(key: str) -> None:
    out = io.StringIO()
    csv.writer(out).writerows([["id", key], *([str(i), text] for i, text in enumerate(TEXTS))])
    table = pa.table([pa.array(range(len(TEXTS))), pa.array(TEXTS)], names=["id", key])
    nested = pa.table({"s": pa.StructArray.from_arrays([pa.array(range(len(TEXTS))), pa.array(TEXTS)], names=["id", key])})
    with tempfile.TemporaryDirectory() as where:
        directory = Path(where)
        pq.write_table(table, directory / "a.parquet")
        feather.write_feather(table, directory / "a.feather")
        pq.write_table(nested, directory / "nested.parquet")
        want = [text.encode() for text in TEXTS]
        for name in ("a.parquet", "a.feather"):
            assert read_all(write(directory, {name: (directory / name).read_bytes()}), text_key=key).texts == want, name
        assert read_all(write(directory, {"a.csv": out.getvalue().encode()}), text_key=key).texts == want
        if "." not in key:
            inputs = write(directory, {"nested.parquet": (directory / "nested.parquet").read_bytes()})
            assert read_all(inputs, text_key=f"s.{key}").texts == want


def test_the_key_that_is_proposed_can_be_pasted(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.jsonl": json_lines(["a long text"], ['it\'s "the" text'])})
    with pytest.raises(BadRecordError) as caught:
        read_all(inputs)
    words = shlex.split(str(caught.value.next_step).partition(", or")[0])
    assert words == ["pass", "--text-key", 'it\'s "the" text']


def test_a_key_that_is_not_utf8_is_refused_by_the_option() -> None:
    with pytest.raises(UsageError, match="not UTF-8") as caught:
        PlanOptions(text_key="a\udcff")
    assert caught.value.option == "--text-key"
