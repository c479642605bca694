"""Spans say which bytes of a file are damaged, however the bytes are cut, and where reading starts."""

from __future__ import annotations

import msgspec
import pytest
import xxhash
from hypothesis import given, strategies as st

from tokmill.core.records import FileEntry, FileHeader
from tokmill.core.spans import HEADER, PiecewiseHash, Span, SpanChecker, add_up, with_header


def spans_of_bytes(pieces: list[bytes]) -> list[Span]:
    begins = [sum(map(len, pieces[:i])) for i in range(len(pieces))]
    return [
        Span(i, begin, begin + len(piece), xxhash.xxh3_128_hexdigest(piece))
        for i, (begin, piece) in enumerate(zip(begins, pieces, strict=True))
    ]


@given(pieces=st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=8), size=st.integers(1, 9), at=st.integers(0))
def test_a_changed_byte_damages_its_span_and_no_other_however_the_bytes_are_cut(pieces: list[bytes], size: int, at: int) -> None:
    spans, data = spans_of_bytes(pieces), bytearray(b"".join(pieces))
    at %= len(data)
    for changed in (False, True):
        data[at] ^= changed
        checker = SpanChecker(spans)
        damaged = [span for i in range(0, len(data), size) for span in checker.update(data[i : i + size])]
        assert damaged == [span for span in spans if changed and span.begin <= at < span.end]
        assert checker.position == len(data)


@given(pieces=st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=8), size=st.integers(1, 9), at=st.integers(0))
def test_bytes_that_were_hashed_in_pieces_are_checked_in_them(pieces: list[bytes], size: int, at: int) -> None:
    made = PiecewiseHash()
    for piece in pieces:
        made.add_piece(len(piece), xxhash.xxh3_128_digest(piece))
    data = bytearray(b"".join(pieces))
    span = Span(0, 0, len(data), *made.result())
    for changed in (False, True):
        data[at % len(data)] ^= changed
        checker = SpanChecker([span])
        assert [s for i in range(0, len(data), size) for s in checker.update(data[i : i + size])] == [span] * changed


@given(pieces=st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=8), at=st.integers(0))
def test_reading_can_start_at_the_span_of_any_byte(pieces: list[bytes], at: int) -> None:
    spans, data = spans_of_bytes(pieces), b"".join(pieces)
    checker = SpanChecker(spans)
    checker.seek(at % len(data))
    assert any(span.begin == checker.position <= at % len(data) < span.end for span in spans)
    assert checker.update(data[checker.position :]) == []


def test_a_header_is_the_first_span_and_is_read_with_what_follows_it() -> None:
    header, (first, second) = b"HEAD", spans_of_bytes([b"12345678", b"9"])
    entry = FileEntry(size_bytes=9, header=FileHeader(size_bytes=4, digest=xxhash.xxh3_128_hexdigest(header)))
    rest = msgspec.structs.replace(first, digest=xxhash.xxh3_128_hexdigest(b"5678"))
    spans = with_header([rest, second], entry)
    assert [(span.segment, span.begin, span.end) for span in spans] == [(HEADER, 0, 4), (0, 4, 8), (1, 8, 9)]
    assert add_up(spans, 9)
    checker = SpanChecker(spans)
    checker.seek(5)
    assert checker.position == 0
    assert checker.update(b"HEAD56789") == []


@pytest.mark.parametrize("ends", [(5, 4), (5, 5, 9), ()])
def test_spans_that_go_back_or_end_elsewhere_do_not_add_up(ends: tuple[int, ...]) -> None:
    begins = (0, *ends[:-1])
    spans = [Span(i, begin, end, "") for i, (begin, end) in enumerate(zip(begins, ends, strict=False))]
    assert not add_up(spans, 4 if ends else 1)
