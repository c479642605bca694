"""Tables as text: rows that a pattern matches and rows that the csv module follows, broken ones, and odd ends of lines."""

from __future__ import annotations

import csv
import io
import itertools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, example, given, settings, strategies as st
from support.reading import Reading, a_reader, read_all, write
from support.records import a_content

from tokmill.core.documents import text_bytes
from tokmill.core.errors import BadRecordError, MemoryBudgetError
from tokmill.core.records import Cursor
from tokmill.read.formats.delimited import TableRows, TooLongError, _row_pattern

if TYPE_CHECKING:
    from tokmill.core.records import Input

PIECES = [
    b'"',
    b'"',
    b'""',
    b",",
    b"\t",
    b"\n",
    b"\r\n",
    b"\r",
    b"a",
    b" b",
    "é€🤖".encode(),
    b"\xff",
    b"\xe2\x82",
    b"\0",
    b"\xef\xbb\xbf",
]
FIELDS = st.sampled_from([b"", b"x", b'"y"', b'"two\nlines"', b'"a ""quote"""', b'""', "é€".encode(), b'",\r\n"', b"a\rb"])
ROWS = st.tuples(FIELDS, FIELDS, st.sampled_from([b"\n", b"\r\n"])).map(lambda row: row[0] + b"," + row[1] + row[2])
HEADER = b"header\n"
WELL_FORMED = st.lists(st.one_of(ROWS, ROWS, ROWS, st.sampled_from([b"\n", b"\r\n"])), max_size=30).map(b"".join)
HOSTILE = st.lists(st.one_of(st.sampled_from(PIECES), ROWS, ROWS), max_size=30).map(b"".join)


class Dripping:
    """A stream that gives a few bytes at a time, as far as tables need it."""

    def __init__(self, data: bytes, steps: list[int], offset: int = 0) -> None:
        self.offset = offset
        self._data = data
        self._steps = itertools.cycle(steps)

    def read(self, n_bytes: int) -> bytes:
        data = self._data[self.offset :][: min(n_bytes, next(self._steps))]
        self.offset += len(data)
        return data


Row = tuple[int, object]


def followed(
    data: bytes, n_columns: int, most: int, steps: list[int], *, fast: bool, offset: int = len(HEADER), most_rows: int = 3
) -> tuple[list[Row], bytes]:
    """Where each row that is no empty line began and what it gave, up to a row too long for any run; what they took."""
    rows, column = TableRows(Dripping(data, steps, offset).read, offset, ",", most), n_columns - 1
    pattern = _row_pattern(",", column, n_columns)
    found: list[Row] = []
    taken = b""
    while not rows.at_end:
        if fast:
            texts, places = rows.regular(pattern, min(40, most), most_rows, is_last=True)
            assert len(texts) <= most_rows
            found.extend(zip(places, texts, strict=True))
            taken += bytes(rows.consume())
        row = rows.next_row()
        if isinstance(row, TooLongError):
            return found, taken
        if isinstance(row, csv.Error):
            found.append((rows.begin, str(row)))
        elif row and len(row) != n_columns:
            found.append((rows.begin, len(row)))
        elif row:
            found.append((rows.begin, row[column].replace("\ud800", "\r").encode("utf-8", "surrogateescape")))
        taken += bytes(rows.consume()) if row is not None else b""
    return found, taken


steps = st.lists(st.integers(1, 90), min_size=1, max_size=4)


@settings(max_examples=500)
@given(st.one_of(HOSTILE, WELL_FORMED), st.integers(1, 3), st.sampled_from([2, 5, 20, 10**6]), steps, steps)
@example(b'5" disk,"a"\n"x","y"\n', 2, 10**6, [7], [90])
@example(b'a,"b"c\n"x","y"\n', 2, 10**6, [7], [90])
@example(b'"a\n"\r"\nb\n', 1, 10**6, [1], [90])
@example(b'foo","open\n' * 5, 2, 30, [1], [90])
def test_the_pattern_and_the_csv_module_find_the_same_rows(
    data: bytes, n_columns: int, most: int, some: list[int], others: list[int]
) -> None:
    data = HEADER + data
    slow, taken = followed(data, n_columns, most, some, fast=False)
    assert followed(data, n_columns, most, others, fast=True) == (slow, taken)
    assert data.startswith(HEADER + taken)
    assert most < 10**6 or data == HEADER + taken
    # From the beginning of each row, what follows is found again.
    for i, (begin, _) in enumerate(slow):
        assert followed(data, n_columns, most, others, fast=i % 2 == 0, offset=begin)[0] == slow[i:]


def test_each_of_many_rows_is_found_where_it_stands(tmp_path: Path) -> None:
    rows = [b'1,"one ""1"""\r\n', b"\n", b"2,two\n", b'"3\n","th\nree"\n', b"4,\r\n", b"5,f\xc3\xafve\n"] * 50
    content = a_content(inputs=write(tmp_path, {"a.csv": b"id,text\n" + b"".join(rows)}))
    batches = list(a_reader(content, batch_bytes=1000).batches(Cursor()))
    places = [(i * 5 + k + 1, rows[at]) for i in range(50) for k, at in enumerate((0, 2, 3, 4, 5))]
    data = b"id,text\n" + b"".join(rows)
    found = []
    for batch in batches:
        assert text_bytes(batch.documents) < 1000 + max(map(len, rows))
        found += [(document, batch.locate(i)) for i, document in enumerate(batch.documents)]
    assert [document for document, _ in found] == [b'one "1"', b"two", b"th\nree", b"", "fïve".encode()] * 50
    for (_, where), (record, row) in zip(found, places, strict=True):
        assert where.record == record
        assert where.offset is not None
        assert data.startswith(row, where.offset)


@given(HOSTILE, st.sampled_from([3, 20, 10**6]), steps)
def test_what_was_followed_in_vain_is_found_as_if_it_were_followed_again(data: bytes, most: int, some: list[int]) -> None:
    class Forgetful(TableRows):
        @property
        def _quoted_to(self) -> int:
            return 0

        @_quoted_to.setter
        def _quoted_to(self, place: int) -> None: ...

    found = []
    for kind in (TableRows, Forgetful):
        lines, rows = kind(Dripping(data, some).read, 0, ",", most), []
        while (row := lines.next_row()) is not None and not isinstance(row, TooLongError):
            rows.append((lines.begin, lines.end, row if isinstance(row, list) else str(row)))
            lines.consume()
        found.append(rows)
    assert found[0] == found[1]


@given(
    st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=2, max_size=2), max_size=20),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_what_pythons_writer_wrote_is_read_character_by_character(rows: list[list[str]], end: str, quotes_all: bool) -> None:
    # Some versions of the writer leave a carriage return at the end of a row without quotes: that is then the end of the row.
    assume(quotes_all or not any(text.endswith("\r") for _, text in rows))
    made = io.StringIO(newline="")
    writer = csv.writer(made, lineterminator=end, quoting=csv.QUOTE_ALL if quotes_all else csv.QUOTE_MINIMAL)
    writer.writerows([["id", "text"], *rows])
    with tempfile.TemporaryDirectory() as directory:
        inputs = write(Path(directory), {"a.csv": made.getvalue().encode()})
        assert read_all(inputs).texts == [text.encode() for _, text in rows]


def test_a_bare_carriage_return_is_a_part_of_its_field(tmp_path: Path) -> None:
    for quoted in (b"", b'5" disk\n'):
        inputs = write(tmp_path, {"a.csv": b"text\n" + quoted + b'a\rb\n\r\n\rc\r\r\n"d\re"\nf\r'})
        assert read_all(inputs).texts == [*([b'5" disk'] if quoted else []), b"a\rb", b"\rc\r", b"d\re", b"f"]


@pytest.mark.parametrize("data", [b"text\rone\rtwo\r", b'"text"\rone\r', b"id,text\r1,one", b"text\r" + b"line\r" * 300_000])
def test_a_carriage_return_in_the_header_is_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadRecordError, match="a carriage return stands in a field without quotes") as caught:
        read_all(write(tmp_path, {"a.csv": data}))
    assert caught.value.next_step == "end the lines of the file with newlines: tr '\\r' '\\n' < FILE"


@pytest.mark.parametrize(
    ("name", "header", "looks", "next_step"),
    [
        ("a.csv", b"id;text", "`;`", "--delimiter ';'"),
        ("a.csv", b'"id";"text"', "`;`", "--delimiter ';'"),
        ("a.tsv", b"id|text", "`|`", "--delimiter '|'"),
        ("a.csv", b"id\ttext", "a tab", "pass --input-format tsv"),
        ("a.tsv", b"id,text,n", "a comma", "pass --input-format csv"),
    ],
)
def test_a_header_of_one_column_that_looks_like_more_is_named(
    tmp_path: Path, name: str, header: bytes, looks: str, next_step: str
) -> None:
    with pytest.raises(BadRecordError) as caught:
        read_all(write(tmp_path, {name: header + b"\n1;one\n"}))
    assert f"; the delimiter looks like {looks} (" in str(caught.value.what)
    assert next_step in str(caught.value.next_step)


def test_the_option_for_another_delimiter_does_what_is_said(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.csv": b'id;text\n1;"a, b\r\nc; ""d"""\n2;e\n'})
    with pytest.raises(BadRecordError) as caught:
        read_all(inputs)
    assert caught.value.next_step == "pass --delimiter ';'"
    assert read_all(inputs, delimiter=";").texts == [b'a, b\r\nc; "d"', b"e"]


@pytest.mark.parametrize("line", [b"\n", b"\r\n", b'"","open\n', b'x,"open\n', b'"\n', b'"a"b,"\n', b'"",\n""""\n'])
def test_rows_that_no_pattern_matches_take_time_by_their_length(line: bytes) -> None:
    def characters(n_lines: int) -> int:
        data = line * n_lines + b'"the end'
        seen = 0

        class Counted:
            def finditer(self, data: bytes, at: int, end: int) -> Iterator[re.Match[bytes]]:
                nonlocal seen
                for found in pattern.finditer(data, at, end):
                    # As far as a match can go: to the first newline that is outside of quotes, or to an odd quote.
                    last = found.end() if found.lastindex != 3 else reach.match(data, found.start()).end()  # type: ignore[union-attr]
                    seen += last - found.start()
                    yield found

        rows = TableRows(Dripping(data, [1 << 20]).read, 0, ",", 1 << 20)
        while not rows.at_end:
            rows.regular(Counted(), 1 << 20, 1 << 20, is_last=True)  # type: ignore[arg-type]
            rows.consume()
            rows.next_row()
            rows.consume()
        return seen

    pattern = _row_pattern(",", 1, 2)
    reach = re.compile(rb'(?:(?:"[^"]*(?:""[^"]*)*"|[^",\n]*),?)*+"?')
    assert characters(2000) < 2.5 * characters(1000)


NUMBERS = [str(i).encode() for i in range(1000)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(b'"unclosed\n', "never closed"), (b'"one" two\n', "expected after"), (b'"a ""b""\n', "never closed")],
)
def test_a_quote_that_is_never_closed_costs_one_row(tmp_path: Path, bad: bytes, reason: str) -> None:
    inputs = write(tmp_path, {"a.csv": b"text\n" + b"\n".join(NUMBERS[:9]) + b"\n" + bad + b"\n".join(NUMBERS[9:])})
    for batch_bytes in (1, 300, 1 << 20):
        reading = read_all(inputs, on_error="skip", resume=batch_bytes > 1, sizes={"batch_bytes": batch_bytes})
        assert reading.texts == NUMBERS
        assert [(s.reason, s.record, s.offset) for s in reading.skips] == [("invalid_csv", 10, 23)]
    with pytest.raises(BadRecordError, match=reason) as caught:
        read_all(inputs)
    assert str(caught.value.where).endswith("a.csv, row 10, byte 23")


def test_a_quote_that_is_never_closed_costs_one_row_where_quoted_rows_follow(tmp_path: Path) -> None:
    rows = [b'1,"one"', b'2,"two', b'3,"thr\nee"', b"4,four", b'5,"fi ""v"" e"']
    inputs = write(tmp_path, {"a.csv": b"id,text\n" + b"\n".join(rows) + b"\n"})
    reading = read_all(inputs, on_error="skip", sizes={"batch_bytes": 3})
    assert reading.texts == [b"one", b"thr\nee", b"four", b'fi "v" e']
    assert [skip.record for skip in reading.skips] == [2]


@pytest.mark.parametrize("end", [b'the end"\nafter\n', b"never closed\n"])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_row_over_the_limit_is_not_taken_apart_into_rows_whatever_the_policy(tmp_path: Path, end: bytes, on_error: str) -> None:
    inputs = write(tmp_path, {"a.csv": b'text\none\n"two\n' + b"line\n" * 5000 + end})
    sizes = {"batch_bytes": 4000, "max_piece_bytes": 2000}
    if on_error == "skip" and end.endswith(b"after\n"):
        assert read_all(inputs, on_error=on_error, sizes=sizes).texts == [b"one", b"after"]
        return
    with pytest.raises(MemoryBudgetError, match="a quote is never closed") as caught:
        read_all(inputs, on_error=on_error, sizes=sizes)
    assert "fix the quote" in str(caught.value.next_step)


def test_a_line_over_the_limit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MemoryBudgetError):
        read_all(
            write(tmp_path, {"b.csv": b"text\n" + b"x" * 5000 + b"\nafter\n"}), sizes={"batch_bytes": 4000, "max_piece_bytes": 2000}
        )


def test_a_row_of_one_field_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(BadRecordError, match="the row has 1 field, the header 2"):
        read_all(write(tmp_path, {"a.csv": b"id,text\n1\n"}))


def test_quotes_that_are_never_closed_again_and_again_take_no_longer(tmp_path: Path) -> None:
    # Each line closes the quote of the one before and opens one; followed anew from each, this is 2 GB.
    inputs = write(tmp_path, {"a.csv": b"id,text\n" + b'foo","open\n' * 20_000})
    assert numbers_of(inputs) == (0, 20_000)


def numbers_of(inputs: tuple[Input, ...]) -> tuple[int, int]:
    content, reading = a_content(inputs=inputs, on_error="skip"), Reading()
    for batch in a_reader(content).batches(Cursor()):
        reading.add(batch, content)
    return len(reading.texts), sum(reading.counts.skipped.values())
