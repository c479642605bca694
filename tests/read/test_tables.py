"""Parquet, Arrow, CSV and archives beyond the contract: types, nesting, sizes, and damage of every kind."""

from __future__ import annotations

import io
import json
import random
import shlex
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from support.damaged_corpora import arrow, arrow_stream, parquet, tar
from support.reading import SpaceCutter, a_reader, read_all, write
from support.records import a_content

from tokmill.core.documents import DocumentBuffer
from tokmill.core.errors import BadRecordError, DamagedInputError, InputError, MemoryBudgetError, TokmillError, UsageError
from tokmill.core.records import Cursor, Input
from tokmill.read.inputs import find_inputs

TEXTS = ["one", "two", "", "one", "é" * 500, "six"]
KINDS = {
    "string": pa.array(TEXTS, pa.string()),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "binary": pa.array([t.encode() for t in TEXTS], pa.binary()),
    "large_binary": pa.array([t.encode() for t in TEXTS], pa.large_binary()),
    "dictionary": pa.array(TEXTS, pa.string()).dictionary_encode(),
    "string_view": pa.array(TEXTS, pa.string_view()),
}

SHORT = {
    "string": pa.array(["yes", "no", "ok"] * 100),
    "dictionary": pa.array(["yes", "no", "ok"] * 100).dictionary_encode(),
    "string_view": pa.array(["yes", "no", "ok"] * 100, pa.string_view()),
}


def stored(path: Path, table: pa.Table, **options: object) -> tuple[Input, ...]:
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
    else:
        pyarrow.feather.write_feather(table, str(path), **options)
    return find_inputs([str(path)], glob=None, input_format=None).inputs


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("meta.bodi", 'no column "meta.bodi" inside "meta"; fields there: "id", "body"'),
        ("meta.inner.x", 'no column "meta.inner.x" inside "meta"; fields there: "id", "body", "inner"'),
        ("other.bodi", 'no column "other.bodi"; columns there: "meta", "title"'),
    ],
)
def test_a_field_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path, name: str, key: str, what: str) -> None:
    meta = {"id": 1, "body": "text"} | ({"inner": 5} if "inner" in key else {})
    inputs = stored(tmp_path / name, pa.table({"meta": [meta], "title": ["a"]}))
    with pytest.raises(BadRecordError, match=what) as caught:
        read_all(inputs, text_key=key)
    assert caught.value.next_step == f"pass --text-key {'meta.body' if 'meta' in key else 'title'}"


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_text_is_read(tmp_path: Path, name: str, kind: str) -> None:
    inputs = stored(tmp_path / name, pa.table({"x": range(6), "text": KINDS[kind]}))
    for batch_bytes in (1, 30, 1 << 20):
        assert read_all(inputs, sizes={"batch_bytes": batch_bytes}).texts == [text.encode() for text in TEXTS]


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
def test_every_compression_of_parquet_is_read(tmp_path: Path, compression: str) -> None:
    inputs = stored(tmp_path / "a.parquet", pa.table({"text": TEXTS}), compression=compression)
    assert read_all(inputs).texts == [text.encode() for text in TEXTS]


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_a_key_with_dots_is_a_column_of_that_name_or_else_a_field(tmp_path: Path, name: str) -> None:
    struct = pa.array([{"b": {"c": text}, "x": i} for i, text in enumerate(TEXTS)])
    inputs = stored(tmp_path / name, pa.table({"id": range(6), "a": struct}))
    assert read_all(inputs, text_key="a.b.c").texts == [text.encode() for text in TEXTS]
    inputs = stored(tmp_path / name, pa.table({"a": struct, "a.b.c": ["literal"] * 6}))
    assert read_all(inputs, text_key="a.b.c").texts == [b"literal"] * 6


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_a_field_of_a_null_struct_is_null(tmp_path: Path, name: str) -> None:
    inputs = stored(tmp_path / name, pa.table({"a": [{"b": "one"}, None, {"b": None}, {"b": "four"}]}))
    with pytest.raises(BadRecordError, match="null_text") as caught:
        read_all(inputs, text_key="a.b")
    assert str(caught.value.where).endswith("row 2")
    reading = read_all(inputs, text_key="a.b", on_error="skip")
    assert reading.texts == [b"one", b"four"]
    assert reading.counts.skipped == {"null_text": 2}


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
@pytest.mark.parametrize("key", ["body", "a.c", "a", "id", "a.b.c"])
def test_a_column_that_is_no_text_is_refused_whatever_is_skipped(tmp_path: Path, name: str, key: str) -> None:
    inputs = stored(tmp_path / name, pa.table({"id": range(6), "a": [{"b": text} for text in TEXTS], "text": TEXTS}))
    for on_error in ("stop", "skip"):
        with pytest.raises(BadRecordError) as caught:
            read_all(inputs, text_key=key, on_error=on_error)
        assert caught.value.next_step == f"pass --text-key {'a.b' if key in {'a.c', 'a.b.c'} else 'text'}"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({"a": {"b": "nested"}}, "nested"),
        ({"a.b": "literal", "a": {"b": "nested"}}, "literal"),
        ({"a.b": "literal", "a": 5}, "literal"),
        ({"a": {"x": 1, "b": "nested"}, "z": []}, "nested"),
    ],
)
def test_a_json_key_with_dots_is_a_literal_key_or_else_a_path(tmp_path: Path, line: object, text: str) -> None:
    plain = {"a": {"b": "plain"}}
    inputs = write(tmp_path, {"a.jsonl": "\n".join(map(json.dumps, [plain, line, plain])).encode()})
    assert read_all(inputs, text_key="a.b").texts == [b"plain", text.encode(), b"plain"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"a": {"b": None}}, "null_text"),
        ({"a.b": None, "a": {"b": "x"}}, "null_text"),
        ({"a": None}, "missing_text"),
        ({"a": {"c": "x"}}, "missing_text"),
        ({"a": {"b": 1}}, "not_a_string"),
        ({"b": "x"}, "missing_text"),
    ],
)
def test_a_json_key_with_dots_that_leads_nowhere_is_named(tmp_path: Path, line: object, reason: str) -> None:
    inputs = write(tmp_path, {"a.jsonl": json.dumps(line).encode()})
    with pytest.raises(BadRecordError, match=reason):
        read_all(inputs, text_key="a.b")


def test_texts_of_a_table_are_one_buffer_for_the_engine(tmp_path: Path) -> None:
    inputs = stored(tmp_path / "a.parquet", pa.table({"text": ["one", "two\0", "three"]}))
    batch, end = a_reader(a_content(inputs=inputs), batch_bytes=14).batches(Cursor())
    assert isinstance(batch.documents, DocumentBuffer)
    assert batch.documents.data == b"one\xfftwo\0\xffthree"
    assert end.after == Cursor(input_index=1)
    assert [(batch.locate(i).record, batch.locate(i).offset) for i in range(3)] == [(1, None), (2, None), (3, None)]


DAMAGEABLE = {"a.parquet": parquet(checked=True), "a.arrow": arrow(), "a.arrows": arrow_stream(), "a.tar": tar()}


@pytest.mark.parametrize("name", DAMAGEABLE)
def test_a_flipped_bit_anywhere_is_an_error_of_ours_or_goes_unseen(tmp_path: Path, name: str) -> None:
    data, rng = DAMAGEABLE[name], random.Random(0)
    for _ in range(300):
        at = rng.randrange(len(data))
        inputs = write(tmp_path, {name: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]})
        error = raised_by(inputs)
        if error is not None:
            assert isinstance(error, InputError | MemoryBudgetError)
            assert name in str(error.where)
            assert error.allowed
            assert error.next_step


def raised_by(inputs: tuple[Input, ...]) -> TokmillError | None:
    try:
        read_all(inputs, resume=False)
    except TokmillError as error:
        return error
    return None


@pytest.mark.parametrize("name", DAMAGEABLE)
def test_a_file_cut_anywhere_is_an_error(tmp_path: Path, name: str) -> None:
    data = DAMAGEABLE[name]
    # Behind the first block of zeros, an archive has ended.
    most = len(data.rstrip(b"\0")) // 512 * 512 + 1024 if name == "a.tar" else len(data)
    for n in {*range(0, most - 1, 41), most - 1}:
        with pytest.raises(DamagedInputError) as caught:
            read_all(write(tmp_path, {name: data[:n]}), resume=False)
        assert name in str(caught.value.where)


@pytest.mark.parametrize("name", ["-", "a.parquet.gz", "a.arrow.zst"])
def test_what_is_read_from_its_end_comes_neither_from_a_pipe_nor_packed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    path = name if name == "-" else str(tmp_path / name)
    with pytest.raises(UsageError, match="its index is at its end"):
        find_inputs([path], glob=None, input_format="parquet" if name == "-" else None)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    inputs = stored(tmp_path / "a.parquet", pa.table({"text": TEXTS * 100}), row_group_size=50)
    batches = a_reader(a_content(inputs=inputs), batch_bytes=500).batches(Cursor())
    next(batches)
    with (tmp_path / "a.parquet").open("ab") as file:
        file.write(b"more")
    with pytest.raises(TokmillError, match="changed"):
        list(batches)


def test_a_dictionary_of_one_long_text_does_not_fill_the_memory(tmp_path: Path) -> None:
    text = "word " * 40_000
    table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), [text])})
    inputs = stored(tmp_path / "a.feather", table)
    reader = a_reader(a_content(inputs=inputs), batch_bytes=1 << 20)
    n_bytes = 0
    for batch in reader.batches(Cursor()):
        n_bytes += sum(map(len, batch.documents))
        assert sum(map(len, batch.documents)) <= 1 << 20
        if n_bytes > 50 << 20:
            break
    assert pa.total_allocated_bytes() < 64 << 20


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.csv": b'text\none\n"two\n' + b"line\n" * 10_000})
    with pytest.raises(MemoryBudgetError, match="a quote is never closed") as caught:
        read_all(inputs, sizes={"batch_bytes": 100, "max_piece_bytes": 2000})
    assert str(caught.value.where).endswith("a.csv, row 2, byte 9")


def test_a_header_of_an_archive_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("x")
    huge.type, huge.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with pytest.raises(DamagedInputError, match="it has more than 1,048,576 bytes"):
        read_all(write(tmp_path, {"a.tar": huge.tobuf(tarfile.GNU_FORMAT) + bytes(4096)}))


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_every_kind_of_archive_are_found(tmp_path: Path, tar_format: int) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tar_format) as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            special = tarfile.TarInfo("special.txt")
            special.type, special.linkname = kind, "/etc/passwd"
            archive.addfile(special)
        for name in ("../../up.txt", "/absolute.txt", "n" * 90 + ".txt", "é/README.MD"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    reading = read_all(write(tmp_path, {"a.tar": made.getvalue()}))
    assert reading.texts == [b"abc"] * 4
    assert reading.counts.skipped == {"other_file": 1, "hard_link": 1, "symbolic_link": 1}, "a directory is no record"


def test_hidden_members_of_an_archive_are_passed_over(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("./a.txt", "._a.txt", ".hidden.txt", "d/.git/x.txt", "../b.txt", "c/._d.json", "e/.long.txt"):
            data = name.encode() * (100 if "long" in name else 1)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    reading = read_all(write(tmp_path, {"a.tar": packed.getvalue()}), sizes={"batch_bytes": 100})
    assert reading.texts == [b"./a.txt", b"../b.txt"]
    assert reading.counts.skipped == {"other_file": 5}


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_rows_of_a_column_of_nulls_are_counted(tmp_path: Path, name: str) -> None:
    inputs = stored(tmp_path / name, pa.table({"text": pa.nulls(3), "other": ["a", "b", "c"]}))
    with pytest.raises(BadRecordError, match="null_text"):
        read_all(inputs)
    assert read_all(inputs, on_error="skip").counts.skipped == {"null_text": 3}


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrows"])
def test_memory_that_does_not_suffice_for_a_row_is_an_error_that_names_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"text": ["one", "two", "three"]})
    if name == "a.arrows":
        with pa.ipc.new_stream(str(tmp_path / name), table.schema) as stream:
            stream.write_table(table)
        inputs = find_inputs([str(tmp_path / name)], glob=None, input_format=None).inputs
    else:
        inputs = stored(tmp_path / name, table)

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tokmill.read.arrow_columns._joined", no_memory)
    with pytest.raises(MemoryBudgetError, match="does not fit") as caught:
        read_all(inputs)
    assert str(caught.value.where).endswith(f"{name}, row 1")
    assert caught.value.next_step


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_text_that_is_longer_than_a_record_may_be_is_refused_by_its_row_or_skipped(tmp_path: Path, name: str) -> None:
    inputs = stored(tmp_path / name, pa.table({"text": ["one", "two", "word " * 300, "four"]}))
    sizes = {"batch_bytes": 64, "max_piece_bytes": 1000, "budget_bytes": 12_000}
    with pytest.raises(MemoryBudgetError, match="the text of a row is longer than the 1,200 bytes") as caught:
        read_all(inputs, SpaceCutter(), sizes=sizes)
    assert str(caught.value.where).endswith(f"{name}, row 3")
    reading = read_all(inputs, SpaceCutter(), on_error="skip", sizes=sizes)
    assert reading.texts == [b"one", b"two", b"four"]
    assert reading.counts.skipped == {"too_long": 1}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_a_text_that_is_called_a_table_is_told_how_to_be_read_as_text(tmp_path: Path, name: str) -> None:
    with pytest.raises(DamagedInputError) as caught:
        read_all(write(tmp_path, {name: b"This is text, of some length, and of several words.\n" * 9}))
    assert f"leave it out (of a directory with --glob '!{name}'), or name it alone with --input-format text" in (
        caught.value.next_step or ""
    )


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
@pytest.mark.parametrize("array", SHORT.values(), ids=SHORT)
def test_what_separates_short_texts_of_a_table_is_not_told_as_zeros(tmp_path: Path, name: str, array: pa.Array) -> None:
    reader = a_reader(a_content(inputs=stored(tmp_path / name, pa.table({"text": array}))))
    assert sum(len(batch.documents) for batch in reader.batches(Cursor())) == 300
    assert reader.notices() == []


@pytest.mark.parametrize("name", ["bad[1].parquet", "a{1,2}.arrow", "it's *.parquet"])
def test_the_pattern_that_leaves_a_damaged_file_out_is_its_name(tmp_path: Path, name: str) -> None:
    inputs = write(tmp_path, {name: b"damaged", "good.parquet": b""})
    with pytest.raises(DamagedInputError) as caught:
        read_all(inputs[:1] if inputs[0].path.endswith(name) else inputs[1:])
    words = shlex.split(str(caught.value.next_step).partition("(of a directory with ")[2].partition("), or name it")[0])
    assert words[0] == "--glob"
    found = find_inputs([str(tmp_path)], glob=words[1], input_format=None).inputs
    assert [Path(each.path).name for each in found] == ["good.parquet"]
