"""Rows without quotes, found all at once, are those that Python's csv module finds, each where it stands."""

from __future__ import annotations

import csv
import io
import tempfile
from itertools import accumulate
from pathlib import Path

from hypothesis import given, strategies as st
from support.reading import a_reader, read_all, write
from support.records import a_content

from tokmill.core.documents import NO_BYTE
from tokmill.core.records import Cursor
from tokmill.read.plain_rows import plain_rows

FIELDS = st.sampled_from([b"", b"", b"a", b"some words", "é".encode(), b"x" * 40, b" ", b"a\tb"])
ENDS = st.sampled_from([b"\n", b"\r\n"])
BLANK = (b"",)


def lines_of(n_columns: int) -> st.SearchStrategy[list[bytes]]:
    rows = st.lists(FIELDS, min_size=n_columns, max_size=n_columns).map(b",".join)
    return st.lists(st.tuples(st.one_of(rows, st.sampled_from(BLANK)), ENDS).map(b"".join), min_size=1, max_size=40)


@given(st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1), lines_of(n))), st.integers(1, 50))
def test_the_column_and_the_place_of_each_row(table: tuple[int, int, list[bytes]], most: int) -> None:
    n_columns, column, lines = table
    found = plain_rows(b"".join(lines), ord(","), column, n_columns, most)
    assert found is not None
    texts, begins, n_bytes = found
    looked = lines[:most]
    assert n_bytes == len(b"".join(looked))
    rows = [
        (begin, line) for begin, line in zip(accumulate(map(len, looked), initial=0), looked, strict=False) if line.strip(b"\r\n")
    ]
    want = [next(csv.reader([line.decode()]))[column].encode() for _, line in rows]
    assert [texts[i] for i in range(len(texts))] == want
    assert begins.tolist() == [begin for begin, _ in rows]
    assert [text for text in texts.data.split(NO_BYTE) if text] == [text for text in want if text], (
        "the engine parts the buffer alike"
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_lines_with_another_number_of_fields_are_not_taken_for_rows(delimiters: list[int]) -> None:
    window = b"".join(b"x" + b",y" * n + b"\n" for n in delimiters)
    assert (plain_rows(window, ord(","), 0, 2, 100) is not None) == (set(delimiters) == {1})


@given(lines_of(2), st.sampled_from([b"a,b,c\n", b"lonely\n", b'"q","u"\n', b'x,"open\n', b"\xff,\xff\n"]), st.integers(0, 40))
def test_a_table_of_rows_of_all_kinds_is_read_alike_for_any_batch(lines: list[bytes], odd: bytes, at: int) -> None:
    data = b"id,text\n" + b"".join([*lines[:at], odd, *lines[at:]])
    with tempfile.TemporaryDirectory() as where:
        inputs = write(Path(where), {"a.csv": data})
        content = a_content(inputs=inputs, on_error="skip", encoding_errors="replace")
        readings = []
        for batch_bytes in (1, 64, 1 << 20):
            batches = list(a_reader(content, batch_bytes=batch_bytes).batches(Cursor()))
            located = [(b.locate(i).record, b.locate(i).offset, d) for b in batches for i, d in enumerate(b.documents)]
            readings.append((located, [(s.record, s.offset, s.reason) for b in batches for s in b.skips]))
            read_all(inputs, on_error="skip", encoding_errors="replace", sizes={"batch_bytes": batch_bytes})
        assert readings[0] == readings[1] == readings[2]
        for record, offset, _ in readings[0][0]:
            assert record is not None
            assert offset is not None
            assert data[:offset].endswith(b"\n")


def test_rows_of_all_kinds_next_to_each_other(tmp_path: Path) -> None:
    out = io.StringIO()
    texts = [("plain %d" if i % 7 else 'quo"ted,\n%d') % i for i in range(3000)]
    csv.writer(out).writerows([("id", "text"), *enumerate(texts)])
    reading = read_all(write(tmp_path, {"a.csv": out.getvalue().encode()}), sizes={"batch_bytes": 4096})
    assert reading.texts == [text.encode() for text in texts]
