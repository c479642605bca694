"""Parquet: what the footer says, what it takes, and what it leaves out."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from support.reading import a_reader, read_all, write
from support.records import a_content, some_resources

from tokmill.core.config import BudgetTerms
from tokmill.core.errors import BadRecordError, DamagedInputError, MemoryBudgetError
from tokmill.core.options import parse_size
from tokmill.core.records import Cursor
from tokmill.core.system.budget import divide_budget, index_too_large
from tokmill.read import CorpusReader
from tokmill.read.arrow_columns import ColumnReader

TEXTS = ["one", "two", "", "one", "é" * 500, "six"]


def packed(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


class KeyService(pe.KmsClient):  # type: ignore[misc]
    def __init__(self, _config: object) -> None:
        super().__init__()

    def wrap_key(self, key_bytes: bytes, _name: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, _name: str) -> bytes:
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plaintext_footer", [False, True])
@pytest.mark.parametrize("column", ["text", "other"])
def test_an_encrypted_file_is_called_encrypted(tmp_path: Path, column: str, *, plaintext_footer: bool) -> None:
    config = pe.EncryptionConfiguration(footer_key="f", column_keys={"k": [column]}, plaintext_footer=plaintext_footer)
    properties = pe.CryptoFactory(KeyService).file_encryption_properties(pe.KmsConnectionConfig(), config)
    data = packed(pa.table({"text": ["a"], "other": ["b"]}), encryption_properties=properties)
    with pytest.raises(DamagedInputError, match="encrypted") as caught:
        read_all(write(tmp_path, {"a.parquet": data}), resume=False)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary(), pa.large_string()])
def test_a_column_that_was_a_dictionary_is_read_as_texts(
    tmp_path: Path, kind: pa.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    batches = ColumnReader.batches

    def noted(reader: ColumnReader, array: pa.Array) -> object:
        seen.add(array.type)
        return batches(reader, array)

    monkeypatch.setattr(ColumnReader, "batches", noted)
    texts = [f"text {i % 700}" for i in range(5000)]
    data = packed(pa.table({"text": pa.array(texts, pa.string()).cast(kind).dictionary_encode()}), row_group_size=2000)
    inputs = write(tmp_path, {"a.parquet": data})
    assert read_all(inputs, resume=False).texts == [text.encode() for text in texts]
    assert seen <= {pa.string(), pa.binary()}, "collecting a dictionary takes time with the square of the rows"


@pytest.mark.parametrize("texts", [["x"], TEXTS, ["y"] * 4000, [f"text {i}" for i in range(4000)]])
def test_files_one_after_another_are_refused(tmp_path: Path, texts: list[str]) -> None:
    one, other = packed(pa.table({"text": TEXTS})), packed(pa.table({"text": texts}))
    for data in (one + other, other + one, one + b"junk" + one, b"junk" + one, one + b"junk", one + one + one):
        with pytest.raises(DamagedInputError):
            read_all(write(tmp_path, {"a.parquet": data}), resume=False)


@pytest.mark.parametrize("options", [{"write_page_index": True}, {"bloom_filter_options": {"text": True}}, {"row_group_size": 2}])
def test_what_else_a_file_may_hold_is_no_row(tmp_path: Path, options: dict[str, object]) -> None:
    texts = [*TEXTS, "PAR1PAR1", "PAR1"]
    inputs = write(tmp_path, {"a.parquet": packed(pa.table({"text": texts}), **options)})
    assert read_all(inputs).texts == [text.encode() for text in texts]


def test_a_footer_that_does_not_have_all_rows_is_damage(tmp_path: Path) -> None:
    data = packed(pa.table({"text": ["x"] * 50}), row_group_size=25)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    # The number of rows, 50, and of each row group, 25, as a footer stores them.
    for number, other in ((b"\x64", b"\x62"), (b"\x32", b"\x30")):
        at = data.index(b"\x16" + number, footer) + 1
        with pytest.raises(DamagedInputError):
            read_all(write(tmp_path, {"a.parquet": data[:at] + other + data[at + 1 :]}), resume=False)


def test_a_footer_beyond_the_budget_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write(tmp_path, {"a.parquet": packed(pa.table({f"c{i}": [1] for i in range(3000)} | {"text": ["x"]}))})
    monkeypatch.setattr(pq, "read_metadata", pytest.fail)
    resources = msgspec.structs.replace(some_resources(), spare_bytes=4 << 20)
    reader = CorpusReader(a_content(inputs=inputs), resources, None)
    with pytest.raises(MemoryBudgetError, match="footer") as caught:
        list(reader.batches(Cursor()))
    assert caught.value.next_step


@pytest.mark.parametrize("n_threads", [1, 2, 8])
def test_a_memory_that_is_proposed_for_a_footer_is_enough_for_it(n_threads: int) -> None:
    terms = BudgetTerms(n_threads=n_threads)
    for n_mib in (100, 500, 1700):
        error = index_too_large("the footer", "a.parquet", terms, n_mib << 20, 0)
        if error.suggested:
            budget = parse_size(error.suggested, "--memory")
            shares = divide_budget(budget, terms)
            assert shares.spare_bytes >= n_mib << 20


def test_a_column_that_is_there_twice_is_to_be_renamed(tmp_path: Path) -> None:
    for names, next_step in ((["text", "text"], "rename"), (["text", "text", "body"], "--text-key body")):
        data = packed(pa.table([pa.array(["x"])] * len(names), names=names))
        with pytest.raises(BadRecordError, match='more than one column "text"') as caught:
            list(a_reader(a_content(inputs=write(tmp_path, {"a.parquet": data}))).batches(Cursor()))
        assert next_step in str(caught.value.next_step)
        assert "--text-key text" not in str(caught.value.next_step)


def test_reading_begins_with_as_many_rows_as_make_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_read: list[int] = []
    batches = ColumnReader.batches

    def noted(reader: ColumnReader, array: pa.Array) -> object:
        n_read.append(len(array))
        return batches(reader, array)

    monkeypatch.setattr(ColumnReader, "batches", noted)
    inputs = write(tmp_path, {"a.parquet": packed(pa.table({"text": [f"{i} " * 100_000 for i in range(8)]}), use_dictionary=False)})
    read_all(inputs, resume=False, sizes={"batch_bytes": 1000})
    assert n_read == [1] * 8
