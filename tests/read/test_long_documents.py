"""Documents larger than a batch: cut without a trace, divided the same way however they arrive."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import assume, given, settings, strategies as st
from support.reading import SpaceCutter, read_all, write

from tokmill.core.errors import BadTextError, MemoryBudgetError
from tokmill.read.utf8 import foreign

CUTTER = SpaceCutter()
words = st.sampled_from([b"word ", b"a b", b" c", b"longerword ", b"\n", "é".encode(), b"\xff", b"\xe2\x82", b"1 2 ", b" x"])
texts = st.lists(words, max_size=60).map(b"".join)


def cleaned(document: bytes, policy: str) -> bytes:
    return document.decode("utf-8", policy).encode()


def model(document: bytes, fraction: float, policy: str, divide_above: int, block: int) -> list[tuple[bool, bytes]]:
    """Sides and texts of one document, from the definition."""
    below = fraction * 2**64
    if len(document) <= divide_above:
        text = cleaned(document, policy)
        return [(xxhash.xxh3_64_intdigest(text, 0) < below, text)]
    runs: list[tuple[bool, bytes]] = []
    while document:
        cut = CUTTER.first(document, block) or len(document)
        text, document = cleaned(document[:cut], policy), document[cut:]
        side = xxhash.xxh3_64_intdigest(text, 0) < below
        if runs and runs[-1][0] == side:
            runs[-1] = (side, runs[-1][1] + text)
        else:
            runs.append((side, text))
    return runs


@settings(max_examples=300)
@given(
    st.lists(texts, min_size=1, max_size=3),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from(["replace", "ignore"]),
    st.integers(1, 40),
    st.sampled_from([" c", "<|endoftext|>", "xx"]),
)
def test_large_documents_are_those_of_the_definition(
    documents: list[bytes], fraction: float, policy: str, batch_bytes: int, separator: str
) -> None:
    data = separator.encode().join(documents)
    # It would begin like an Arrow stream, or like text in UTF-16.
    assume(foreign(data) is None)
    sizes: dict[str, Any] = {"batch_bytes": batch_bytes, "divide_above_bytes": 60, "block_bytes": 16}
    with tempfile.TemporaryDirectory() as directory:
        inputs = write(Path(directory), {"a.txt": data})
        reading = read_all(inputs, CUTTER, separator=separator, sizes=sizes, encoding_errors=policy, val_fraction=fraction)
    pieces = data.split(separator.encode())
    expected = [run for d in pieces for run in model(d, fraction, policy, 60, 16)]
    assert sorted(reading.documents) == sorted(expected)
    for side in (False, True):
        assert [t for s, t in reading.documents if s == side] == [t for s, t in expected if s == side]
    assert reading.counts.documents == len(pieces)
    assert reading.counts.parts_added == len(expected) - len(pieces)
    assert reading.counts.bytes_in == len(data)
    if fraction == 0:
        assert reading.texts == [cleaned(d, policy) for d in pieces]


def test_a_document_of_many_blocks_is_resumed_in_its_middle(tmp_path: Path) -> None:
    inputs = write(
        tmp_path,
        {"a.txt": b"first<|endoftext|>" + b"".join(b"some words %d here " % i for i in range(200)) + b"<|endoftext|>last"},
    )
    sizes = {"batch_bytes": 64, "divide_above_bytes": 300, "block_bytes": 100}
    reading = read_all(inputs, CUTTER, sizes=sizes, val_fraction=0.5)
    assert reading.counts.parts_added > 3
    assert {side for side, _ in reading.documents} == {False, True}


@pytest.mark.parametrize("divide_above", [300, 1 << 20])
def test_a_jsonl_document_is_divided_like_any_other(tmp_path: Path, divide_above: int) -> None:
    text = b"some words here " * 200
    inputs = write(tmp_path, {"a.jsonl": b'{"text": "one"}\n{"text": "' + text + b'"}\n\n{"text": "two"}'})
    sizes = {"batch_bytes": 64, "divide_above_bytes": divide_above, "block_bytes": 100}
    reading = read_all(inputs, CUTTER, sizes=sizes, val_fraction=0.5)
    expected = [run for d in (b"one", text, b"two") for run in model(d, 0.5, "strict", divide_above, 100)]
    assert sorted(reading.documents) == sorted(expected)
    assert reading.counts.documents == 3


def test_without_a_cutter_a_document_stays_whole_up_to_the_budget(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.txt": b"ok<|endoftext|>" + b"some words " * 100})
    assert read_all(inputs, None, sizes={"batch_bytes": 64, "divide_above_bytes": 300}).texts == [b"ok", b"some words " * 100]
    with pytest.raises(MemoryBudgetError, match="no document can be cut") as caught:
        read_all(inputs, None, sizes={"batch_bytes": 64, "max_piece_bytes": 500, "divide_above_bytes": 300})
    assert "document 2, byte 15" in str(caught.value.where)


@pytest.mark.parametrize("divide_above", [600, 1 << 20])
def test_a_stretch_that_cannot_be_cut_is_named(tmp_path: Path, divide_above: int) -> None:
    inputs = write(tmp_path, {"a.txt": b"ok<|endoftext|>" + b"some words " * 10 + b"x" * 900 + b" and on" * 50})
    sizes = {"batch_bytes": 64, "divide_above_bytes": divide_above, "block_bytes": 100, "max_piece_bytes": 400}
    with pytest.raises(MemoryBudgetError) as caught:
        read_all(inputs, CUTTER, sizes=sizes)
    assert "document 2, byte" in str(caught.value.where)
    assert "--memory" in str(caught.value.next_step)
    sizes["max_piece_bytes"] = 2000
    assert len(read_all(inputs, CUTTER, sizes=sizes).texts) == 2


def test_a_large_document_that_is_not_utf8_stops_or_is_skipped(tmp_path: Path) -> None:
    bad = b"some words " * 20 + b"\xff" + b" more words" * 20
    inputs = write(tmp_path, {"a.txt": b"ok<|endoftext|>" + bad + b"<|endoftext|>after"})
    sizes = {"batch_bytes": 64, "divide_above_bytes": 1 << 20, "block_bytes": 100}
    with pytest.raises(BadTextError, match="byte 220 of the document") as caught:
        read_all(inputs, CUTTER, sizes=sizes)
    assert "document 2" in str(caught.value.where)
    reading = read_all(inputs, CUTTER, sizes=sizes, on_error="skip")
    assert reading.texts == [b"ok", b"after"]
    assert reading.counts.skipped == {"invalid_utf8": 1}
    assert reading.counts.documents == 3
    assert [(s.record, s.offset) for s in reading.skips] == [(2, 15 + 220)]
    with pytest.raises(BadTextError, match="cannot be left out"):
        read_all(inputs, CUTTER, sizes=sizes | {"divide_above_bytes": 200}, on_error="skip")
