"""Records longer than a piece are read and cut up to a tenth of the budget; longer ones are refused, or skipped and counted."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.damaged_corpora import tar
from support.reading import Reading, SpaceCutter, a_reader, read_all, write
from support.records import a_content

from tokmill.core.config import BudgetTerms
from tokmill.core.errors import MemoryBudgetError
from tokmill.core.records import Cursor
from tokmill.core.spans import RecordRanges
from tokmill.core.system.budget import RECORD_SHARE, budget_for_piece
from tokmill.read import json_record
from tokmill.read.formats import delimited
from tokmill.read.json_record import NotARecordError, RecordParser

BITS = st.sampled_from(["a", "word ", "é", "日", "😀", '"', "\\", "\n", "\x00", "\\u0041", "\ud83d\ude00", "/", "\u2028"])
SIZES = {"batch_bytes": 64, "max_piece_bytes": 500, "budget_bytes": 20_000}
LONG = "some words and 'more' " * 60


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bits=st.lists(BITS, max_size=40), ascii_only=st.booleans(), part_bytes=st.integers(1, 30))
def test_a_string_that_is_decoded_in_parts_is_that_string(
    monkeypatch: pytest.MonkeyPatch, bits: list[str], ascii_only: bool, part_bytes: int
) -> None:
    monkeypatch.setattr(json_record, "_PART_BYTES", part_bytes)
    text = "".join(bits).encode("utf-16", "surrogatepass").decode("utf-16")
    line = json.dumps({"x": 1, "text": text, "y": "text"}, ensure_ascii=ascii_only).encode()
    assert RecordParser("text").parse(line, "strict", at_start=False, is_long=True) == (text.encode(), 0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "abc\\ud800 def"}', "lone_surrogate"),
        (b'{"text": "abc\\udc00"}', "lone_surrogate"),
        (b'{"text": null}', "null_text"),
        (b'{"text": 17}', "not_a_string"),
        (b'{"text": ["a", "b", "c"]}', "not_a_string"),
        (b'{"other": "a"}', "missing_text"),
        (b'[{"text": "a"}]', "missing_text"),
        (b'{"text": "a\x01b"}', "invalid_json"),
        (b'{"text": "a\\xb"}', "invalid_json"),
        (b'{"text": "a" "b"}', "invalid_json"),
        (b'{"text": "abc', "invalid_json"),
    ],
)
@pytest.mark.parametrize("part_bytes", [3, 1 << 20])
def test_what_is_wrong_with_a_long_line_is_named(
    monkeypatch: pytest.MonkeyPatch, line: bytes, reason: str, part_bytes: int
) -> None:
    monkeypatch.setattr(json_record, "_PART_BYTES", part_bytes)
    with pytest.raises(NotARecordError) as caught:
        RecordParser("text").parse(line, "strict", at_start=False, is_long=True)
    assert caught.value.reason == reason


def a_table(text: str, delimiter: str = ",", end: str = "\n") -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([("id", "text"), (1, "before"), (2, text), (3, "after")])
    return out.getvalue().removesuffix("\r\n").encode() + end.encode()


def a_json_archive(text: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, each in (("1.json", "before"), ("2.json", text), ("3.json", "after")):
            data = json.dumps({"text": each}).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def json_lines(text: str) -> bytes:
    return "\n".join(json.dumps({"text": each}) for each in ("before", text, "after")).encode()


KINDS = {
    "a.jsonl": json_lines(LONG),
    "a.csv": a_table(LONG),
    "quoted.csv": a_table(LONG + '",\n"'),
    "a.tsv": a_table(LONG, "\t"),
    "quoted.tsv": a_table(LONG + '"', "\t"),
    "a.tar": a_json_archive(LONG),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_record_of_up_to_a_tenth_of_the_budget_is_read(tmp_path: Path, name: str) -> None:
    inputs = write(tmp_path, {name: KINDS[name]})
    reading = read_all(inputs, SpaceCutter(), sizes=SIZES)
    ending = {"quoted.csv": '",\n"', "quoted.tsv": '"'}.get(name, "")
    assert reading.texts == [b"before", (LONG + ending).encode(), b"after"]
    with pytest.raises(MemoryBudgetError):
        read_all(inputs, SpaceCutter(), sizes=SIZES | {"budget_bytes": 5000})


def test_the_last_row_may_be_long_and_end_with_the_file(tmp_path: Path) -> None:
    data = b"id,text\n1," + LONG.encode() + b'"'
    reading = read_all(write(tmp_path, {"a.csv": data[:-1]}), SpaceCutter(), sizes=SIZES)
    assert reading.texts == [LONG.encode()]


@pytest.mark.parametrize("name", KINDS)
def test_a_longer_record_is_skipped_and_counted_where_that_is_the_policy(tmp_path: Path, name: str) -> None:
    inputs = write(tmp_path, {name: KINDS[name]})
    reading = read_all(inputs, SpaceCutter(), on_error="skip", sizes=SIZES | {"budget_bytes": 5000})
    assert reading.texts == [b"before", b"after"]
    assert reading.counts.skipped == {"too_long": 1}
    assert [(skip.record, skip.reason) for skip in reading.skips] == [(2, "too_long")]


@settings(max_examples=40)
@given(text=st.text('ab",\n\r', max_size=40), n=st.integers(1, 40), is_last=st.booleans(), step=st.integers(1, 9))
def test_a_row_that_is_too_long_is_skipped_as_the_csv_module_sees_it(text: str, n: int, is_last: bool, step: int) -> None:
    long = text + LONG * 3 + text * n
    out = io.StringIO()
    rows = [("id", "text"), (1, "before"), (long, "x") if is_last else (2, long), *([] if is_last else [(3, "after")])]
    csv.writer(out, lineterminator="\n").writerows(rows)
    with tempfile.TemporaryDirectory() as where, pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_READ_BYTES", step)
        inputs = write(Path(where), {"a.csv": out.getvalue().removesuffix("\n").encode()})
        reading = read_all(inputs, SpaceCutter(), on_error="skip", sizes=SIZES | {"budget_bytes": 5000}, resume=False)
    assert reading.texts == [b"before"] + [b"after"] * (not is_last)
    assert reading.counts.skipped == {"too_long": 1}


@pytest.mark.parametrize(
    "row", [b'2,"' + b"x" * 9000 + b"\n3,after\n", b"2," + b'x" ' * 9000 + b"\n", b"2,x," + b"x" * 9000 + b"\n"]
)
def test_a_long_row_whose_end_is_not_sure_stops_the_run(tmp_path: Path, row: bytes) -> None:
    """What follows a quote that is never closed would be skipped with it."""
    with pytest.raises(MemoryBudgetError, match="never closed"):
        read_all(
            write(tmp_path, {"a.csv": b"id,text\n1,before\n" + row.replace(b"%b", b"x" * 9000)}),
            SpaceCutter(),
            on_error="skip",
            sizes=SIZES,
        )


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "text.tar", "a.arrow"])
@pytest.mark.parametrize("n_before", [0, 8])
def test_a_text_with_a_stretch_that_cannot_be_cut_is_skipped(tmp_path: Path, name: str, n_before: int) -> None:
    long = "word " * n_before + "x" * 900 + " more" * n_before
    table, sink = pa.table({"text": ["before", long, "after"]}), io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = {
        "a.txt": f"before<|endoftext|>{long}<|endoftext|>after".encode(),
        "a.jsonl": json_lines(long),
        "a.csv": a_table(long),
        "text.tar": tar({"1.txt": b"before", "2.txt": long.encode(), "3.txt": b"after"}),
        "a.arrow": sink.getvalue(),
    }[name]
    inputs = write(tmp_path, {name: data})
    with pytest.raises(MemoryBudgetError, match="no place where it can be cut"):
        read_all(inputs, SpaceCutter(), sizes=SIZES)
    reading = read_all(inputs, SpaceCutter(), on_error="skip", sizes=SIZES)
    assert reading.texts == [b"before", b"after"]
    assert reading.counts.skipped == {"too_long": 1}
    assert [(skip.record, skip.reason) for skip in reading.skips] == [(2, "too_long")]


def test_a_divided_text_is_skipped_by_its_first_block_alone(tmp_path: Path) -> None:
    sizes = SIZES | {"divide_above_bytes": 2000, "block_bytes": 300}
    begins = b"before<|endoftext|>" + b"x" * 5000 + b"<|endoftext|>after"
    reading = read_all(write(tmp_path, {"a.txt": begins}), SpaceCutter(), on_error="skip", sizes=sizes)
    assert reading.texts == [b"before", b"after"]
    with pytest.raises(MemoryBudgetError):
        read_all(write(tmp_path, {"b.txt": b"word " * 500 + b"x" * 5000}), SpaceCutter(), on_error="skip", sizes=sizes)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tar"])
def test_a_record_that_no_tokenizer_may_cut_is_skipped_too(tmp_path: Path, name: str) -> None:
    inputs = write(tmp_path, {name: KINDS[name]})
    with pytest.raises(MemoryBudgetError, match="no document can be cut"):
        read_all(inputs, sizes=SIZES)
    reading = read_all(inputs, on_error="skip", sizes=SIZES)
    assert reading.texts == [b"before", b"after"]
    assert reading.counts.skipped == {"too_long": 1}


def test_the_budget_that_is_proposed_for_a_record_is_ten_times_its_length() -> None:
    terms = BudgetTerms(n_threads=2)
    needed = budget_for_piece(200_000_000, terms, is_record=True)
    assert 0 <= needed - RECORD_SHARE * 200_000_000 < 16 << 20
    assert re.fullmatch(r"\d+", str(needed))
    assert needed < budget_for_piece(200_000_000, terms)


@pytest.mark.parametrize("name", ["a.jsonl", "a.tar"])
@pytest.mark.parametrize("budget_bytes", [5000, 1 << 20])
def test_what_was_skipped_as_too_long_is_skipped_with_any_budget(tmp_path: Path, name: str, budget_bytes: int) -> None:
    (source,) = write(tmp_path, {name: KINDS[name]})
    reader = a_reader(a_content(inputs=(source,), on_error="skip"), SpaceCutter(), **(SIZES | {"budget_bytes": budget_bytes}))
    reader.skip_long(RecordRanges({0: [(2, 3)]}))
    reading = Reading()
    for batch in reader.batches(Cursor()):
        reading.add(batch, reader.settings.content)
    assert reading.texts == [b"before", b"after"]
    assert [(skip.record, skip.reason) for skip in reading.skips] == [(2, "too_long")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.tar"])
def test_what_was_read_is_never_skipped_as_too_long(tmp_path: Path, name: str) -> None:
    (source,) = write(tmp_path, {name: KINDS[name]})
    reader = a_reader(a_content(inputs=(source,), on_error="skip"), SpaceCutter(), **(SIZES | {"budget_bytes": 5000}))
    reader.skip_long(RecordRanges({}))
    with pytest.raises(MemoryBudgetError):
        list(reader.batches(Cursor()))


@pytest.mark.parametrize("cut", [False, True])
def test_of_texts_that_no_tokenizer_may_cut_too(tmp_path: Path, cut: bool) -> None:
    (source,) = write(tmp_path, {"a.csv": KINDS["a.csv"]})
    reader = a_reader(a_content(inputs=(source,), on_error="skip"), **(SIZES | {"max_piece_bytes": 500 if cut else 1 << 20}))
    reader.skip_long(RecordRanges({0: [(2, 3)]}))
    assert [text for batch in reader.batches(Cursor()) for text in batch.documents] == [b"before", b"after"]
    reader.skip_long(RecordRanges({}))
    if cut:
        with pytest.raises(MemoryBudgetError, match="no document can be cut"):
            list(reader.batches(Cursor()))
    else:
        assert len([text for batch in reader.batches(Cursor()) for text in batch.documents]) == 3
