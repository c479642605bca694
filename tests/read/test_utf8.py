"""UTF-8: the same verdict as `bytes.decode`, whatever the kind of buffer."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tokmill.read.utf8 import clean, first_invalid

data = st.one_of(
    st.binary(max_size=30),
    st.lists(
        st.sampled_from(
            [
                b"a",
                "é".encode(),
                "字".encode(),
                "\U0001f600".encode(),
                b"\xf0\x9f\x98",
                b"\xe5\xad",
                b"\xed\xa0\x80",
                b"\xc0\x80",
                b"\xf5",
            ]
        ),
        max_size=12,
    ).map(b"".join),
)


def position(text: bytes) -> int | None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


@given(data)
def test_the_first_invalid_byte_is_where_decode_stops(text: bytes) -> None:
    assert first_invalid(text) == first_invalid(bytearray(text)) == first_invalid(memoryview(text)) == position(text)


@pytest.mark.parametrize("tail", [b"", b"\xff", b"\xe5\xad", b"\xe5\xada", "字".encode()])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_long_texts_are_looked_through_in_parts(tail: bytes, n: int) -> None:
    text = b"a" * n + "字".encode() * 800_000 + tail
    assert first_invalid(text) == position(text)
    assert first_invalid(memoryview(text)) == position(text)


@given(data)
def test_clean_is_decode_with_its_policy_and_counts(text: bytes) -> None:
    for policy in ("replace", "ignore"):
        cleaned, n_invalid = clean(text, policy)
        assert cleaned == text.decode("utf-8", policy).encode()
        assert n_invalid == len(text) - len(text.decode("utf-8", "ignore").encode())
