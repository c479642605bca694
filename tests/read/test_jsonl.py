"""JSON lines: what the json module reads is read, what it does not is named."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from support.reading import a_reader, read_all, write
from support.records import a_content

from tokmill.core.errors import BadRecordError, MemoryBudgetError
from tokmill.core.records import Cursor
from tokmill.read.json_record import RecordParser

BAD = {
    "invalid_json": [
        b'{"text": "a"',
        b"nonsense",
        b'{"text": "a"} {"text": "b"}',
        b'{"text": NaN}',
        b'{"text": "a", "x": 01}',
        b'{"text": "a\x01"}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "text": "a"}',
        b"[" * 100_000,
        b'{"text": "\\x"}',
        b'{"text": "a",}',
        b"\x00",
    ],
    "missing_text": [b"{}", b'{"content": "a long text", "id": "x"}', b"[1, 2]", b'"text"', b"7", b"null"],
    "null_text": [b'{"text": null}', b'{"text": "a", "text": null}'],
    "not_a_string": [
        b'{"text": 1}',
        b'{"text": ["a"]}',
        b'{"text": {"text": "a"}}',
        b'{"text": 1e5}',
        b'{"text": true}',
        b'{"text": ' + b"9" * 5000 + b"}",
    ],
    "lone_surrogate": [b'{"text": "\\ud800"}', b'{"text": "a\\udc00b"}', b'{"text": "\\ude00\\ud83d"}'],
    "invalid_utf8": [b'{"text": "\xff"}', b'{"text": "a", "x": "\xe2\x82"}', b'{"text": "\xed\xa0\x80"}'],
}
LINES = [(reason, line) for reason, lines in BAD.items() for line in lines]
GOOD = [b'{"text": "fine"}', b'{"text": "after"}']


@pytest.mark.parametrize(("reason", "line"), LINES, ids=[f"{r}-{i}" for i, (r, _) in enumerate(LINES)])
def test_a_bad_line_stops_the_run_and_is_named(tmp_path: Path, reason: str, line: bytes) -> None:
    inputs = write(tmp_path, {"a.jsonl": b"\n".join([GOOD[0], line, GOOD[1]])})
    with pytest.raises(BadRecordError, match=reason) as caught:
        read_all(inputs)
    assert "a.jsonl, line 2, byte " in str(caught.value.where)
    assert "--on-error skip" in str(caught.value.next_step)


@pytest.mark.parametrize("batch_bytes", [40, 1 << 20])
def test_bad_lines_are_skipped_and_counted_alike_for_any_batch(tmp_path: Path, batch_bytes: int) -> None:
    lines = [line for _, line in LINES]
    inputs = write(tmp_path, {"a.jsonl": b"\n".join([GOOD[0], *lines, GOOD[1]])})
    reading = read_all(inputs, on_error="skip", sizes={"batch_bytes": batch_bytes})
    assert reading.texts == [b"fine", b"after"]
    assert reading.counts.skipped == {reason: len(of) for reason, of in BAD.items()}
    assert reading.counts.documents == len(lines) + 2
    assert [(s.reason, s.record) for s in reading.skips] == [(reason, i + 2) for i, (reason, _) in enumerate(LINES)]


def test_the_message_says_which_keys_there_are(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.jsonl": b'{"id": "1", "content": "the text"}\n'})
    with pytest.raises(BadRecordError, match='keys there: "id", "content"') as caught:
        read_all(inputs)
    assert "--text-key content" in str(caught.value.next_step)
    assert read_all(inputs, text_key="content").texts == [b"the text"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(st.text(max_size=6), json_values, max_size=4).flatmap(
    lambda other: st.text(max_size=60).map(lambda text: other | {"text": text})
)


@given(
    st.lists(st.one_of(records, st.just(None)), max_size=12),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.booleans(),
    st.integers(8, 300),
)
def test_texts_are_those_of_the_json_module(
    objects: list[dict[str, object] | None], ending: str, ascii_only: bool, batch_bytes: int
) -> None:
    lines = [" \t" if o is None else json.dumps(o, ensure_ascii=ascii_only) for o in objects]
    data = "".join(line + ending for line in lines).encode("utf-8", "surrogatepass")
    expected = [json.loads(line)["text"].encode() for line in data.decode().split("\n") if line.strip()]
    with tempfile.TemporaryDirectory() as directory:
        for tail in (data, data.removesuffix(ending.encode())):
            reading = read_all(write(Path(directory), {"a.jsonl": tail}), sizes={"batch_bytes": batch_bytes})
            assert reading.texts == expected
            assert reading.counts.documents == len(expected)
            assert reading.counts.bytes_in == len(tail)


def test_what_other_keys_hold_is_no_matter(tmp_path: Path) -> None:
    lines = [
        b'{"x": "\\ud800", "text": "a"}',
        b'{"text": "b", "x": ' + b"9" * 5000 + b"}",
        b'{"x": 1e999, "text": "c"}',
        b'{"te\\u0078t": "d"}',
        b'{"text": 1, "text": "e"}',
        b'{"text": "x", "text": "f"}',
        b'\t{"text": "g"} \r',
        b'{"text": "\\ud83d\\ude00\\u0000"}',
        b'{"text": ""}',
    ]
    inputs = write(tmp_path, {"a.jsonl": b"\xef\xbb\xbf" + b"\n".join(lines) + b"\n"})
    for batch_bytes in (30, 1 << 20):
        texts = read_all(inputs, sizes={"batch_bytes": batch_bytes}).texts
        assert texts == [b"a", b"b", b"c", b"d", b"e", b"f", b"g", "\U0001f600\0".encode(), b""]


@pytest.mark.parametrize(("policy", "text"), [("replace", "a\ufffdb"), ("ignore", "ab")])
def test_the_policy_for_bad_bytes_holds_inside_lines(tmp_path: Path, policy: str, text: str) -> None:
    inputs = write(tmp_path, {"a.jsonl": b'{"text": "ok"}\n{"text": "a\xe2\x82b"}\n'})
    reading = read_all(inputs, encoding_errors=policy)
    assert reading.texts == [b"ok", text.encode()]
    assert (reading.counts.invalid_utf8_documents, reading.counts.invalid_utf8_bytes) == (1, 2)


def test_documents_are_located_by_their_lines(tmp_path: Path) -> None:
    data = b'{"text": "one"}\n\n  \n{"text": "two"}\r\n{"text": "three"}'
    inputs = write(tmp_path, {"a.jsonl": data})
    (batch,) = a_reader(a_content(inputs=inputs)).batches(Cursor())
    places = [batch.locate(i) for i in range(3)]
    assert [(p.record, p.offset, p.unit) for p in places] == [(1, 0, "line"), (4, 20, "line"), (5, 37, "line")]


def test_a_line_beyond_the_budget_is_refused_by_name(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.jsonl": GOOD[0] + b'\n{"text": "' + b"x" * 1000 + b'"}\n'})
    assert [len(t) for t in read_all(inputs, sizes={"batch_bytes": 64}).texts] == [4, 1000]
    with pytest.raises(MemoryBudgetError) as caught:
        read_all(inputs, sizes={"batch_bytes": 64, "max_piece_bytes": 500})
    assert "a.jsonl, line 2, byte 17" in str(caught.value.where)


def test_what_no_policy_skips_is_not_said_to_be_skipped(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.jsonl": gzip.compress(b'{"text": "x"}\n')})
    with pytest.raises(BadRecordError) as caught:
        read_all(inputs, on_error="skip")
    assert "--input-format" in str(caught.value.next_step)
    assert "--on-error" not in str(caught.value.next_step)


RECORDS = st.sampled_from([b'{"text": "a"}', b'{"text": ""}\r', b"bad", b' {"text":"\xc3\xa9"} '])
BLANKS = st.sampled_from([b"", b"", b"\r", b" ", b"\t \r", b"\x0b"])


@given(st.lists(st.tuples(st.lists(BLANKS, max_size=12), RECORDS)), st.booleans())
def test_blank_lines_are_counted_and_nothing_else(groups: list[tuple[list[bytes], bytes]], ends: bool) -> None:
    lines = [line for blanks, record in groups for line in (*blanks, record)]
    numbers = [i for i, line in enumerate(lines, 1) if line.strip()]
    with tempfile.TemporaryDirectory() as where:
        inputs = write(Path(where), {"a.jsonl": b"\n".join(lines) + b"\n" * ends})
        for batch_bytes in (40, 1 << 20):
            content = a_content(inputs=inputs, on_error="skip")
            batches = list(a_reader(content, batch_bytes=batch_bytes).batches(Cursor()))
            found = [b.locate(i).record or 0 for b in batches for i in range(len(b.documents))]
            skipped = [(skip.record or 0) + k for b in batches for skip in b.skips for k in range(skip.n_records)]
            assert sorted(found + skipped) == numbers
            read_all(inputs, on_error="skip", sizes={"batch_bytes": batch_bytes})


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("text", b'{"text": "a", "x": 1, "text": "b"}'),
        ("text", b'{"text": 1, "text": "b"}'),
        ("a.text", b'{"a": {"text": "a"}, "a": {"text": 1, "text": "b"}}'),
        ("a.text", b'{"a.text": "a", "a": {"text": "c"}, "a.text": "b"}'),
    ],
)
@pytest.mark.parametrize("is_long", [False, True])
def test_of_a_key_that_is_there_twice_the_last_counts(key: str, line: bytes, is_long: bool) -> None:
    assert RecordParser(key).parse(line, "strict", at_start=False, is_long=is_long) == (b"b", 0)
