"""Splitting as `bytes.split` does, whatever the text, the separator and the reads."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from hypothesis import given, strategies as st

from tokmill.core.documents import DocumentBuffer, joined, overlaps_itself
from tokmill.read.splitter import RecordSplitter, _Finder

texts = st.lists(
    st.sampled_from([b"a", b"b", b"ab", b"aab", b"<|", b"|>", b"<|x|>", b"\n", b"z" * 300, b"y" * 40_000]), max_size=40
).map(b"".join)
separators = st.sampled_from([b"ab", b"aa", b"aab", b"<|x|>", b"\n\n", b"a", b"abab", b"y" * 3 + b"z"])


class Reads:
    """A stream that gives its bytes in pieces of its own choice."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data, self.sizes, self.offset = data, sizes, 0

    def read(self, n_bytes: int) -> bytes:
        n = min(n_bytes, self.sizes[self.offset % len(self.sizes)])
        taken = self.data[self.offset : self.offset + n]
        self.offset += len(taken)
        return taken

    def skip(self, n_bytes: int) -> None:
        raise NotImplementedError

    def raw_position(self) -> int:
        return self.offset

    def close(self) -> None:
        raise NotImplementedError


def all_records(window: RecordSplitter) -> tuple[list[bytes], bytes]:
    """Every record of a stream, and the bytes that were said to be consumed, one behind the other."""
    records, raw = [], b""
    while True:
        split = window.split()
        if split is None:
            large = window.open_long()
            while not large.complete:
                large.grow()
            records.append(large.take(len(large.buffer)))
            raw += records[-1]
            if not window.close_long(large):
                return records, raw
            raw += window._separator or b""
            continue
        if isinstance(split.records, DocumentBuffer):
            assert [len(r) for r in split.records] == (split.records.ends - split.records.starts).tolist()
            separated = [r for r in split.records.data.split(split.records.separator) if r]
            assert [r for r in split.records if r] == separated, "the engine parts the buffer alike"
            assert split.records.data == bytes(split.raw)
        records += split.records
        raw += split.raw
        if split.at_end:
            return records, raw


sizes_of_reads = st.lists(st.integers(1, 3000), min_size=1, max_size=9)


@given(texts, separators, st.integers(1, 5000), st.integers(1, 30), sizes_of_reads, st.booleans())
def test_records_are_those_of_bytes_split_however_the_bytes_arrive(
    data: bytes, separator: bytes, window_bytes: int, most: int, sizes: list[int], lazily: bool
) -> None:
    window = RecordSplitter(Reads(data, sizes), separator, window_bytes, most, prefer="buffers" if lazily else "lists")
    records, raw = all_records(window)
    assert records == data.split(separator)
    assert raw == data


@given(texts, separators, st.binary(max_size=40))
def test_places_are_found_even_when_the_rare_byte_becomes_common(data: bytes, separator: bytes, first: bytes) -> None:
    if overlaps_itself(separator) and len(set(separator)) > 1:
        return
    finder = _Finder(separator)
    finder.find(first)
    lengths = [len(part) + len(separator) for part in data.split(separator)]
    assert finder.find(data).tolist() == [end - len(separator) for end in accumulate(lengths[:-1])]


def test_a_separator_that_overlaps_itself_is_known() -> None:
    assert [s for s in (b"aa", b"aba", b"\n\n", b"<|endoftext|>", b"ab", b"a", b"<|x|><|x") if overlaps_itself(s)] == [
        b"aa",
        b"aba",
        b"\n\n",
        b"<|x|><|x",
    ]


def lines_of(stream: Reads, window_bytes: int, max_records: int) -> tuple[list[list[bytes]], bytes]:
    """The lines of each window, and the bytes that were said to be consumed."""
    window, windows, raw = RecordSplitter(stream, b"\n", window_bytes, max_records, prefer="buffers"), [], b""
    while True:
        lines = window.split()
        if lines is None:
            large = window.open_long()
            while not large.complete:
                large.grow()
            windows.append([large.take(len(large.buffer))])
            raw += windows[-1][0]
            if not window.close_long(large):
                return windows, raw
            raw += b"\n"
            continue
        windows.append([bytes(line) for line in lines.records])
        part = bytes(lines.raw)
        assert part.removesuffix(b"\n").split(b"\n") == windows[-1] or lines.at_end
        raw += part
        if lines.at_end:
            return windows, raw


@given(
    st.lists(st.sampled_from([b"a", b"\n", b"\n\n", b"bc\n", b"\r\n", b"x" * 30 + b"\n", b"y" * 90]), max_size=60).map(b"".join),
    st.lists(st.integers(1, 100), min_size=1, max_size=5),
    st.integers(1, 120),
    st.integers(1, 40),
)
def test_views_of_lines_are_the_lines(data: bytes, sizes: list[int], window_bytes: int, max_records: int) -> None:
    windows, raw = lines_of(Reads(data, sizes), window_bytes, max_records)
    assert [line for lines in windows for line in lines] == data.split(b"\n")
    assert raw == data


@given(st.lists(texts, max_size=5), separators)
def test_what_is_joined_splits_into_the_documents_of_its_parts(parts: list[bytes], separator: bytes) -> None:
    buffers, documents = [], list[bytes]()
    for data in parts:
        pieces = data.split(separator)
        starts = np.array([0, *accumulate(len(piece) + len(separator) for piece in pieces)][:-1], np.int64)
        ends = starts + np.array([len(piece) for piece in pieces], np.int64)
        buffers.append(DocumentBuffer(data, starts, ends, separator).without_empty()[0])
        documents += filter(None, pieces)
    found = joined(buffers)
    assert list(found) == documents
    if isinstance(found, DocumentBuffer):
        assert list(filter(None, found.data.split(separator))) == documents
