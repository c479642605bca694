"""Splitting as `bytes.split` does, whatever the text and the separator."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokmill.read.window import _Splitter


@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"aab", b"<|", b"|>", b"<|x|>", b"\n", b"z" * 300]), max_size=60).map(b"".join),
    st.sampled_from([b"ab", b"aa", b"aab", b"<|x|>", b"\n\n", b"a", b"abab"]),
    st.integers(1, 100),
    st.binary(max_size=40),
)
def test_it_splits_as_bytes_split_does_even_when_the_rare_byte_becomes_common(
    data: bytes, separator: bytes, most: int, first: bytes
) -> None:
    splitter = _Splitter(separator)
    assert splitter.split(first, most) == first.split(separator, most)
    assert splitter.split(data, most) == data.split(separator, most)
