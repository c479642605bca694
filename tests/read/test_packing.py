"""Small files become one batch, whatever their formats, and what is known of one is not taken for known of its neighbour."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from support.reading import a_reader, write
from support.records import a_content
from support.small_tokenizers import path_of, true_ids

from tokmill.core.records import Cursor, Input
from tokmill.encode.loading import load_fastest
from tokmill.encode.resolve import resolve_tokenizer
from tokmill.read.utf8 import first_invalid
from tokmill.run.audit import Auditor
from tokmill.run.encode_batch import EncodeStage

FORMATS = ("text", "jsonl", "csv", "parquet", "arrow", "tar")
PLAIN, NEWER = "plain text one", "x 1\U00011de0345 y"
"""The second has a digit of Unicode 17, which the engines part otherwise."""


def both(directory: Path, one: str, other: str) -> tuple[Input, ...]:
    return (*written(directory / "1", one, PLAIN), *written(directory / "2", other, NEWER))


def written(directory: Path, format_: str, text: str) -> tuple[Input, ...]:
    data = io.BytesIO()
    if format_ == "text":
        data.write(text.encode())
    elif format_ == "jsonl":
        data.write(json.dumps({"text": text}).encode())
    elif format_ == "csv":
        data.write(f"text\n{text}\n".encode())
    elif format_ == "parquet":
        pq.write_table(pa.table({"text": [text]}), data)
    elif format_ == "arrow":
        pyarrow.feather.write_feather(pa.table({"text": [text]}), data)
    else:
        with tarfile.open(fileobj=data, mode="w") as archive:
            member = tarfile.TarInfo("a.txt")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return write(directory, {f"a.{'txt' if format_ == 'text' else format_}": data.getvalue()})


@pytest.mark.parametrize(("one", "other"), list(itertools.product(FORMATS, FORMATS)))
def test_every_pair_of_formats_in_one_batch_has_the_ids_of_the_reference(tmp_path: Path, one: str, other: str) -> None:
    tokenizer = resolve_tokenizer(str(path_of("llama3")))
    engine = load_fastest(tokenizer)
    pair = both(tmp_path, one, other)
    for inputs, texts in ((pair, (PLAIN, NEWER)), (pair[::-1], (NEWER, PLAIN))):
        content = a_content(inputs=inputs, tokenizer=tokenizer, eot="none", val_fraction=0.0)
        (batch,) = a_reader(content).batches(Cursor())
        encoded = EncodeStage(content, engine, Auditor(lambda: engine, None, 0.0)).run(batch)
        assert [i for run in encoded.runs for i in run.ids.tolist()] == [i for t in texts for i in true_ids("llama3", t)]


def test_a_text_that_is_not_utf8_is_found_beside_a_file_of_another_format(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.txt": b"bad \xff byte", "b.jsonl": json.dumps({"text": NEWER}).encode()})
    (batch,) = a_reader(a_content(inputs=inputs)).batches(Cursor())
    assert batch.raw is not None
    assert first_invalid(batch.raw) == 4
    assert list(batch.documents) == [b"bad \xff byte", NEWER.encode()]
