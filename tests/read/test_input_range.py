"""A corpus that is read in parts: the documents of all parts, one part behind the other, are those of the corpus."""

from __future__ import annotations

import itertools
import json
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, strategies as st
from support.reading import SEPARATORS, Reading, a_reader, assert_resumes, contents, write
from support.records import a_content

from tokmill.core.config import Content
from tokmill.core.errors import UsageError
from tokmill.core.partition import Cut, count_parts, cuts, inputs_of_parts, parse_part
from tokmill.core.records import Cursor, Input
from tokmill.output.parts import part_content
from tokmill.read import input_range
from tokmill.read.input_range import first_start, last_clear
from tokmill.read.inputs import find_inputs


@contextmanager
def blocks_of(n_bytes: int) -> Iterator[None]:
    """So much is looked at at a time where a part's beginning is looked for."""
    before, input_range.BLOCK_BYTES = input_range.BLOCK_BYTES, n_bytes
    try:
        yield
    finally:
        input_range.BLOCK_BYTES = before


def read_part(content: Content, sizes: dict[str, int], *, resume: bool = True) -> tuple[Reading, Cursor | None]:
    """What one part has, resumed at every one of its cursors too unless told otherwise; and where it ended."""
    reader = a_reader(content, **sizes)
    batches = list(reader.batches(Cursor()))
    reading = Reading()
    for batch in batches:
        reading.add(batch, content)
    assert [b.position_bytes for b in batches] == sorted(b.position_bytes for b in batches)
    if batches:
        assert batches[-1].after == reader.end
    if resume:
        assert_resumes(reader, content, batches, reading)
    return reading, reader.end


def read_parts(inputs: tuple[Input, ...], count: int, sizes: dict[str, int], *, resume: bool = True, **settings: Any) -> Reading:
    """All parts, one behind the other."""
    whole = a_content(inputs=inputs, n_parts=count, **settings)
    total, behind = Reading(), Cursor()
    first = 0
    for share, index in zip(inputs_of_parts(inputs, whole.separator, count), range(count), strict=True):
        assert share.first in (first, first - 1)
        first = share.stop
        reading, end = read_part(part_content(whole, index), sizes, resume=resume)
        total.documents += reading.documents
        total.counts += reading.counts
        total.skips += reading.skips
        behind = end or behind
    assert first == len(inputs)
    return total


@st.composite
def corpora(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    separator = draw(st.sampled_from(SEPARATORS))
    return separator, draw(st.lists(contents(separator), min_size=1, max_size=3))


@given(corpora(), st.integers(1, 12), st.integers(5, 70), st.integers(1, 9), st.sampled_from([True, False, False, False]))
@example(("aa", [b"aaaaaaaaaaaaa"]), 6, 3, 1, True)
@example(("\n\n", [b"x\n\n\n\n\ny"]), 7, 3, 2, True)
@example(("aba", [b"ababababababab"]), 9, 1, 1, True)
@example(("a", [b"", b"a", b""]), 5, 1, 1, True)
@example(("<|endoftext|>", [b"|endoftext|>|endoftext|><|endoftext|>"]), 3, 5, 1, True)
def test_documents_of_all_parts_are_those_of_the_files(
    corpus: tuple[str, list[bytes]], count: int, batch_bytes: int, block_bytes: int, resume: bool
) -> None:
    separator, files = corpus
    sizes = {"batch_bytes": batch_bytes, "divide_above_bytes": 1 << 20}
    with tempfile.TemporaryDirectory() as directory, blocks_of(block_bytes):
        inputs = write(Path(directory), {f"{i}.txt": data for i, data in enumerate(files)})
        reading = read_parts(inputs, count, sizes, resume=resume, separator=separator, encoding_errors="ignore")
    expected = [document for data in files for document in data.split(separator.encode())]
    assert reading.texts == [d.decode("utf-8", "ignore").encode() for d in expected]
    assert reading.counts.documents == len(expected)
    assert reading.counts.bytes_in == sum(map(len, files))


LINES = [b'{"text": "a"}\n', b'{"text": "bc"}\r\n', b"\n", b"  \n", b"{}\n", b'{"text": null}\n', b"no JSON\n", b'{"text": ""}\n']


@given(st.lists(st.lists(st.sampled_from(LINES), max_size=9), min_size=1, max_size=3), st.booleans(), st.integers(1, 12))
def test_lines_of_all_parts_are_those_of_the_files(files: list[list[bytes]], is_cut: bool, count: int) -> None:
    datas = [b"\xef\xbb\xbf" + b"".join(lines) for lines in files]
    if is_cut:
        datas = [data.rstrip(b"\r\n") for data in datas]
    with tempfile.TemporaryDirectory() as directory, blocks_of(3):
        inputs = write(Path(directory), {f"{i}.jsonl": data for i, data in enumerate(datas)})
        whole, _ = read_part(a_content(inputs=inputs, on_error="skip"), {"batch_bytes": 30})
        parts = read_parts(inputs, count, {"batch_bytes": 30}, resume=len(files) == 1, on_error="skip")
    assert parts.documents == whole.documents
    assert parts.counts == whole.counts
    assert [(s.path, s.reason) for s in parts.skips] == [(s.path, s.reason) for s in whole.skips]


@pytest.mark.parametrize("count", [1, 2, 5, 16, 40])
def test_row_groups_of_all_parts_are_those_of_the_files(tmp_path: Path, count: int) -> None:
    for name, n in (("a", 50), ("b", 3), ("c", 31)):
        pq.write_table(pa.table({"text": [f"{name} {i}" for i in range(n)]}), tmp_path / f"{name}.parquet", row_group_size=7)
    inputs = find_inputs([str(tmp_path)], glob=None, input_format=None).inputs
    reading = read_parts(inputs, count, {"batch_bytes": 30})
    assert reading.texts == [f"{name} {i}".encode() for name, n in (("a", 50), ("b", 3), ("c", 31)) for i in range(n)]


def test_files_that_cannot_be_divided_are_whole_in_one_part(tmp_path: Path) -> None:
    import gzip

    files = {f"{i}.txt.gz": gzip.compress(b"<|endoftext|>".join(b"%d %d" % (i, j) for j in range(100))) for i in range(5)}
    files |= {"x.csv": b"text\n" + b"row\n" * 500}
    inputs = write(tmp_path, files)
    whole, _ = read_part(a_content(inputs=inputs), {"batch_bytes": 500}, resume=False)
    for count in (1, 2, 3, 20):
        assert all(share.begin == 0 and share.end is None for share in inputs_of_parts(inputs, "<|endoftext|>", count))
        assert read_parts(inputs, count, {"batch_bytes": 500}).documents == whole.documents


def test_a_file_that_is_one_document_is_whole_in_one_part(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.txt": b"word " * 100, "b.txt": b"b"})
    for count in (1, 3, 9):
        assert read_parts(inputs, count, {}, separator=None).texts == [b"word " * 100, b"b"]


def test_a_document_larger_than_parts_is_in_the_part_in_which_it_begins(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.txt": b"a|" + b"long " * 1000 + b"|z"})
    whole = a_content(inputs=inputs, n_parts=10, separator="|")
    found = [read_part(part_content(whole, i), {"batch_bytes": 64})[0].texts for i in range(10)]
    assert found == [[b"a", b"long " * 1000], *[[]] * 8, [b"z"]]


def test_the_same_file_twice_is_not_divided(tmp_path: Path) -> None:
    (once,) = write(tmp_path, {"a.txt": b"word|" * 100})
    assert cuts((once,), "|", 3)[1].offset
    assert all(not place.offset for place in cuts((once, once), "|", 3))


def test_cuts_are_spread_over_all_inputs_by_their_size() -> None:
    def an_input(path: str, size: int, **changes: Any) -> Input:
        plain = Input(path=path, format="text", compression="none", size_bytes=size, mtime_ns=1)
        return msgspec.structs.replace(plain, **changes)

    a, b, c = an_input("/a", 100), an_input("/b", 0), an_input("/c", 100)
    assert cuts((a, b, c), "|", 4) == [Cut(0), Cut(0, 50), Cut(2), Cut(2, 50)]
    packed = an_input("/z", 100, compression="gzip")
    assert cuts((packed, a), "|", 4) == [Cut(0), Cut(1), Cut(1), Cut(1, 50)]
    assert cuts((b,), "|", 2) == [Cut(0), Cut(1)]
    assert count_parts((a, b, c), 50) == 4
    assert count_parts((b,), 50) == 1


@pytest.mark.parametrize("text", ["8/8", "1", "a/b", "-1/3", "0/0", "1/2/3", "0/1000000"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="0/8 is the first of eight"):
        parse_part(text)


def test_a_pipe_cannot_be_divided() -> None:
    pipe = Input(path="-", format="text", compression="none")
    with pytest.raises(UsageError, match="cannot be divided"):
        cuts((pipe,), "|", 2)


@given(st.text("ab", max_size=200), st.sampled_from(["aa", "aba", "abab", "aaa", "ab"]), st.integers(0, 200), st.integers(0, 200))
def test_a_clear_place_is_the_last_that_no_occurrence_reaches_across(text: str, separator: str, low: int, high: int) -> None:
    data, mark = text.encode(), separator.encode()
    low, high = sorted((min(low, len(data)), min(high, len(data))))
    starts = [i for i in range(len(data)) if data.startswith(mark, i)]
    clear = [x for x in range(low + 1, high + 1) if not any(s < x < s + len(mark) for s in starts)]
    assert last_clear(data, mark, low, high) == (clear[-1] if clear else None)


def test_a_row_of_separators_far_longer_than_a_block_takes_no_memory(tmp_path: Path) -> None:
    n = 3 * input_range.BLOCK_BYTES + 1
    (source,) = write(tmp_path, {"a.txt": b"x" + b"\n" * n + b"y"})
    tracemalloc.start()
    try:
        found = [first_start(source, b"\n\n", at) for at in (n - 10, n - 9, n + 2)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Pairs begin at byte 1, so every document begins at an odd byte.
    assert found == [n - 10 + (n - 10 + 1) % 2, n - 9 + (n - 9 + 1) % 2, None]
    assert peak < 60 * input_range.BLOCK_BYTES


def test_numbers_of_records_count_from_the_beginning_of_a_part(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a" * 20}) for _ in range(30)]
    inputs = write(tmp_path, {"a.jsonl": "\n".join(lines).encode()})
    whole = a_content(inputs=inputs, n_parts=3)
    ends = [read_part(part_content(whole, i), {})[1] for i in range(3)]
    assert [end.record for end in ends if end] == [10, 10, 0]
    assert all(a.offset < b.offset for a, b in itertools.pairwise(end for end in ends[:2] if end))
