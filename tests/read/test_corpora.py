"""The hostile corpora, one folder a way to be broken: each is read as it should be, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import read_all

from tokmill.errors import BadRecordError, BadTextError, DamagedInputError, TokmillError
from tokmill.read.inputs import find_inputs

CORPORA = Path(__file__).parent.parent / "corpora"
READ = {
    "bom": ["\ufeffone", "two", "three"],
    "crlf": ["one", "two\r\n", "three\r\n", "\r\nfour\r\n"],
    "nul": ["a\0b", "\0"],
    "multi_member": ["one", "two", "three", "four"],
    "empty": [""],
}
REFUSED: dict[str, type[TokmillError]] = {
    "utf16": BadTextError,
    "truncated_gzip": DamagedInputError,
    "truncated_zstd": DamagedInputError,
    "lone_surrogate": BadRecordError,
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("batch_bytes", [1, 5, 1 << 20])
def test_read_as_it_should_be(name: str, batch_bytes: int) -> None:
    inputs = find_inputs([str(CORPORA / name)], glob=None, input_format=None).inputs
    assert read_all(inputs, sizes={"batch_bytes": batch_bytes}).texts == [text.encode() for text in READ[name]]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    inputs = find_inputs([str(CORPORA / name)], glob=None, input_format=None).inputs
    with pytest.raises(REFUSED[name]) as caught:
        read_all(inputs)
    assert f"{name}/a." in str(caught.value.where)


def test_a_separator_that_overlaps_itself_is_found_leftmost() -> None:
    inputs = find_inputs([str(CORPORA / "self_overlap")], glob=None, input_format=None).inputs
    for batch_bytes in (1, 2, 3, 4, 100):
        assert read_all(inputs, separator="\n\n", sizes={"batch_bytes": batch_bytes}).texts == [b"x", b"\ny", b"", b""]
