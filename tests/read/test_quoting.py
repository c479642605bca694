"""Whether quotes enclose fields or are characters: rows never merge without a word, and a person can say which it is."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, example, given, strategies as st
from support.reading import read_all, write

from tokmill.core.errors import BadRecordError
from tokmill.core.options import PlanOptions
from tokmill.run.job import make_job

BITS = st.lists(st.sampled_from(['"', '""', '"a', 'a"', "b", " ", "\\", "é", ""]), max_size=5).map("".join)
ROWS = st.integers(1, 3).flatmap(lambda n: st.lists(st.lists(BITS, min_size=n, max_size=n), min_size=1, max_size=12))


def unquoted(rows: list[list[str]], delimiter: str, end: str = "\n") -> bytes:
    names = [f"c{i}" for i in range(len(rows[0]) - 1)]
    return end.join(delimiter.join(row) for row in [[*names, "text"], *rows]).encode()


@given(rows=ROWS, delimiter=st.sampled_from("\t,"), end=st.sampled_from(["\n", "\r\n"]))
def test_without_quoting_each_line_is_a_row(rows: list[list[str]], delimiter: str, end: str) -> None:
    # A row of one empty field is an empty line, which is no row.
    rows = [row for row in rows if row != [""]]
    assume(rows)
    with tempfile.TemporaryDirectory() as where:
        inputs = write(Path(where), {"a.tsv" if delimiter == "\t" else "a.csv": unquoted(rows, delimiter, end)})
        for batch_bytes in (5, 1 << 20):
            reading = read_all(inputs, quoting="none", keep_empty=True, sizes={"batch_bytes": batch_bytes})
            assert reading.texts == [row[-1].encode() for row in rows]


@given(rows=ROWS)
@example(rows=[["ham", '"He asked'], ["spam", 'and left"'], ["ham", "ok"]])
@example(rows=[["a", '"x', "b"], ["c", "d", "e"], ["f", 'g"', "h"]])
def test_rows_of_a_tsv_never_merge_without_a_word(rows: list[list[str]]) -> None:
    rows = [row for row in rows if row != [""]]
    assume(rows)
    with tempfile.TemporaryDirectory() as where:
        inputs = write(Path(where), {"a.tsv": unquoted(rows, "\t")})
        refused, reading = None, None
        try:
            reading = read_all(inputs, keep_empty=True, on_error="skip")
        except BadRecordError as error:
            refused = error
    if reading is None:
        assert refused is not None
        assert refused.option == "--quoting"
    else:
        assert len(reading.texts) + len(reading.skips) == len(rows)


@given(rows=st.lists(st.tuples(st.text('ab\n\t"', max_size=8), st.text('ab\n\t"', max_size=8)), min_size=1, max_size=6))
def test_what_pythons_writer_wrote_is_read_where_quotes_are_said_to_enclose_fields(rows: list[tuple[str, str]]) -> None:
    out = io.StringIO()
    csv.writer(out, "excel-tab").writerows([("id", "text"), *rows])
    with tempfile.TemporaryDirectory() as where:
        inputs = write(Path(where), {"a.tsv": out.getvalue().encode()})
        assert read_all(inputs, quoting="double", keep_empty=True).texts == [text.encode() for _, text in rows]


def test_a_quoted_text_of_several_lines_is_read_where_no_line_is_a_row(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.tsv": b'id\ttext\n1\t"one\ntwo"\n2\tx\n'})
    assert read_all(inputs).texts == [b"one\ntwo", b"x"]


def test_the_error_says_what_to_pass_and_no_policy_skips_it(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.tsv": b'label\ttext\nham\tfirst\nham\t"He asked\nspam\tand left"\nham\tok\n'})
    with pytest.raises(BadRecordError, match="these 2 lines are one row") as caught:
        read_all(inputs, on_error="skip")
    assert (caught.value.option, caught.value.suggested) == ("--quoting", "none")
    assert str(caught.value.where).endswith("a.tsv, row 2, byte 21")
    assert "--quoting double" in str(caught.value.next_step)


def test_a_row_that_is_not_quoted_well_leads_to_the_option(tmp_path: Path) -> None:
    with pytest.raises(BadRecordError) as caught:
        read_all(write(tmp_path, {"a.tsv": b'text\n"Yes," she said.\n'}))
    assert "--quoting none" in str(caught.value.next_step)


def test_the_fingerprint_knows_of_quoting_only_where_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"text\nx\n")
    prints = {
        quoting: make_job([str(tmp_path / "a.tsv")], PlanOptions(quoting=quoting), out=str(tmp_path / "o")).job.content
        for quoting in ("auto", "double", "none")
    }
    assert len({content.fingerprint() for content in prints.values()}) == 3
    assert not prints["auto"].quoting
