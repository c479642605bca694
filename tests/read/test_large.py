"""What is large is not held before there is memory for it, whatever format it comes in."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from support.reading import write
from support.records import a_content, some_resources

from tokmill.core.errors import MemoryBudgetError
from tokmill.core.records import Cursor
from tokmill.read.corpus import CorpusReader


def a_tar(name: str, data: bytes) -> bytes:
    with io.BytesIO() as made:
        with tarfile.open(fileobj=made, mode="w") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        return made.getvalue()


def a_table(kind: str) -> bytes:
    made, table = io.BytesIO(), pa.table({"text": [LONG.decode()]})
    if kind == "parquet":
        pq.write_table(table, made)
    else:
        pyarrow.feather.write_feather(table, made)
    return made.getvalue()


LONG = b"words and words " * 100_000
LINE = json.dumps({"text": LONG.decode()}).encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", LONG),
        ("a.jsonl", LINE + b"\n"),
        ("a.csv", b"text,n\n" + LONG + b",1\n"),
        ("a.tar", a_tar("b.json", LINE)),
        ("a.parquet", a_table("parquet")),
        ("a.arrow", a_table("arrow")),
    ],
)
def test_a_reader_asks_before_it_holds_what_is_large(name: str, data: bytes, tmp_path: Path) -> None:
    inputs = write(tmp_path, {name: data})
    n_asked = [0]

    def ask(_alone: bool) -> None:
        n_asked[0] += 1

    resources = some_resources(batch_bytes=1000, max_piece_bytes=1_000_000)
    reader = CorpusReader(a_content(inputs=inputs), resources, None, on_large=ask)
    # There is no tokenizer that says where it can be cut.
    with pytest.raises(MemoryBudgetError):
        list(reader.batches(Cursor()))
    assert n_asked[0] > 0
