"""The hostile corpora, one folder a way to be broken: each is read as it should be, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.damaged_corpora import CORPORA, files
from support.reading import read_all

import tokmill
from tokmill.core.errors import BadRecordError, BadTextError, DamagedInputError, TokmillError
from tokmill.read.inputs import find_inputs

READ = {
    "bom": ["\ufeffone", "two", "three"],
    "crlf": ["one", "two\r\n", "three\r\n", "\r\nfour\r\n"],
    "nul": ["a\0b", "\0"],
    "multi_member": ["one", "two", "three", "four"],
    "empty": [""],
    "bom_csv": ["one", "two\r\n"],
    "nul_csv": ["a\0b"],
    "duplicate_keys": ["one", "two"],
    "empty_packed": [""] * 5,
    "empty_table": [],
    "many_streams": ["one", "two"] * 5,
    "other_members": ["one", "two"],
}
FOLLOWED = "the compressed data is damaged"
MIDDLE = "the compressed data ends in the middle "
REFUSED: dict[str, tuple[type[TokmillError], str, str]] = {
    # name: class, how the first sentence begins, and how the place ends
    "utf16": (BadTextError, "this is not UTF-8 text: it begins like UTF-16 text", "document 1, byte 0"),
    "lone_surrogate": (BadRecordError, 'the text under "text" has half of a surrogate pair', "line 2, byte 15"),
    "deep_nesting": (BadRecordError, "the JSON is nested too deeply (invalid_json)", "line 1, byte 0"),
    "null_text": (BadRecordError, 'the text under "text" is null (null_text)', "line 2, byte 16"),
    "number_text": (BadRecordError, 'what stands under "text" is not a string (not_a_string)', "line 1, byte 0"),
    "missing_text": (BadRecordError, 'there is no key "text"; keys there: "body" (missing_text)', "line 1, byte 0"),
    "invalid_utf8_jsonl": (BadRecordError, "not valid UTF-8: byte 0xff (invalid_utf8)", "line 2, byte 27"),
    "invalid_utf8_csv": (BadRecordError, "not valid UTF-8: byte 0xff at byte 1 of the text", "row 2, byte 14"),
    "invalid_utf8_parquet": (BadRecordError, "not valid UTF-8: byte 0xff at byte 1 of the text", "row 2"),
    "invalid_utf8_tar": (BadRecordError, "not valid UTF-8: byte 0xff at byte 1 of the text", "member 2, byte 1,536"),
    "null_parquet": (BadRecordError, 'the text in the column "text" is null (null_text)', "row 2"),
    "number_parquet": (BadRecordError, 'the column "text" is of type int64 (not_a_string)', "a.parquet"),
    "missing_column": (BadRecordError, 'the header has no column "text"; columns there: "id", "body"', "row 1, byte 0"),
    "duplicate_column": (BadRecordError, 'the header has more than one column "text"', "row 1, byte 0"),
    "open_quote": (BadRecordError, "the row is not CSV: a quote is opened and never closed (invalid_csv)", "row 2, byte 14"),
    "wrong_fields": (BadRecordError, "the row has 3 fields, the header 2 (invalid_csv)", "row 2, byte 14"),
    "bad_json_tar": (BadRecordError, 'member "b.json": what stands under "text" is not a string', "member 2, byte 1,536"),
    "truncated_gzip": (DamagedInputError, MIDDLE + "(gzip)", "compressed byte 36 or before, decompressed byte 19"),
    "truncated_zstd": (DamagedInputError, MIDDLE + "(zstd)", "compressed byte 27 or before, decompressed byte 18"),
    "truncated_xz": (DamagedInputError, MIDDLE + "(xz)", "compressed byte 101 or before, decompressed byte 169"),
    "truncated_bzip2": (DamagedInputError, MIDDLE + "(bzip2)", "compressed byte 74 or before, decompressed byte 169"),
    "truncated_lz4": (DamagedInputError, MIDDLE + "(lz4)", "compressed byte 65 or before, decompressed byte 169"),
    "truncated_parquet": (DamagedInputError, "the Parquet file is damaged: it does not begin and end as one", "a.parquet"),
    "truncated_arrow": (DamagedInputError, "the Arrow file is damaged: ", "a.arrow, row 1"),
    "truncated_arrow_stream": (DamagedInputError, "the Arrow file is damaged: ", "a.arrows, row 3"),
    "truncated_arrow_between": (
        DamagedInputError,
        "the stream ends without the mark of its end: it may be cut off",
        "a.arrows, row 5",
    ),
    "truncated_tar": (DamagedInputError, "a header is damaged: truncated header (tar)", "member 2, byte 1,024"),
    "truncated_tar_between": (DamagedInputError, "the archive ends without a block of zeros", "member 3, byte 2,048"),
    "flipped_gzip": (DamagedInputError, FOLLOWED, ""),
    "flipped_zstd": (DamagedInputError, FOLLOWED, ""),
    "flipped_xz": (DamagedInputError, FOLLOWED, ""),
    "flipped_bzip2": (DamagedInputError, FOLLOWED, ""),
    "flipped_lz4": (DamagedInputError, FOLLOWED, ""),
    "flipped_parquet": (DamagedInputError, "the Parquet file is damaged: could not verify page integrity", "row 1"),
    "flipped_tar": (DamagedInputError, "a header is damaged: bad checksum (tar)", "member 2, byte 1,024"),
    "trailing_garbage_gzip": (DamagedInputError, "what follows the first ", "decompressed byte 169"),
    "trailing_garbage_zstd": (DamagedInputError, "what follows the first ", "decompressed byte 169"),
    "trailing_garbage_xz": (DamagedInputError, "what follows the first ", "decompressed byte 169"),
    "trailing_garbage_bzip2": (DamagedInputError, "what follows the first ", "decompressed byte 169"),
    "trailing_garbage_lz4": (DamagedInputError, "what follows the first ", "decompressed byte 169"),
    "trailing_garbage_tar": (DamagedInputError, "something else follows the end of the archive", "byte 4,608"),
    "no_bytes_gzip": (DamagedInputError, MIDDLE + "(gzip)", "decompressed byte 0"),
    "no_bytes_zstd": (DamagedInputError, MIDDLE + "(zstd)", "decompressed byte 0"),
    "no_bytes_xz": (DamagedInputError, MIDDLE + "(xz)", "decompressed byte 0"),
    "no_bytes_bzip2": (DamagedInputError, MIDDLE + "(bzip2)", "decompressed byte 0"),
    "no_bytes_lz4": (DamagedInputError, MIDDLE + "(lz4)", "decompressed byte 0"),
    "no_bytes_parquet": (DamagedInputError, "the Parquet file is damaged: it does not begin and end as one", "a.parquet"),
    "no_bytes_arrow": (DamagedInputError, "the Arrow file is damaged: ", "a.arrow, row 1"),
    "no_bytes_tar": (DamagedInputError, "the archive ends without a block of zeros", "member 1, byte 0"),
}
SKIPPED = {
    "null_parquet": (["one", "three"], [(2, None, "null_text"), (4, None, "null_text")]),
    "invalid_utf8_parquet": (["one", "three"], [(2, None, "invalid_utf8")]),
    "invalid_utf8_csv": (["one"], [(2, 14, "invalid_utf8")]),
    "wrong_fields": (["one"], [(2, 14, "invalid_csv")]),
    "open_quote": (["one", "three"], [(2, 14, "invalid_csv")]),
    "invalid_utf8_tar": (["one"], [(2, 1536, "invalid_utf8")]),
    "bad_json_tar": (["one"], [(2, 1536, "not_a_string")]),
    "null_text": (["one"], [(2, 16, "null_text")]),
}
"""What is left, and record, offset and reason of what is not, with --on-error skip."""


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("batch_bytes", [1, 5, 1 << 20])
def test_read_as_it_should_be(name: str, batch_bytes: int) -> None:
    inputs = find_inputs([str(CORPORA / name)], glob=None, input_format=None).inputs
    assert read_all(inputs, sizes={"batch_bytes": batch_bytes}).texts == [text.encode() for text in READ[name]]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    inputs = find_inputs([str(CORPORA / name)], glob=None, input_format=None).inputs
    error, what, where = REFUSED[name]
    for batch_bytes in (64, 1 << 20):
        with pytest.raises(error) as caught:
            read_all(inputs, sizes={"batch_bytes": batch_bytes})
        assert type(caught.value) is error
        assert caught.value.what.startswith(what)
        assert f"{name}/a." in str(caught.value.where)
        assert str(caught.value.where).endswith(where)
        assert caught.value.allowed
        assert caught.value.next_step


@pytest.mark.parametrize("name", SKIPPED)
@pytest.mark.parametrize("batch_bytes", [1, 1 << 20])
def test_skipped_records_are_counted_and_named(name: str, batch_bytes: int) -> None:
    inputs = find_inputs([str(CORPORA / name)], glob=None, input_format=None).inputs
    reading = read_all(inputs, on_error="skip", sizes={"batch_bytes": batch_bytes})
    texts, skips = SKIPPED[name]
    assert reading.texts == [text.encode() for text in texts]
    assert [(skip.record, skip.offset, skip.reason) for skip in reading.skips] == skips
    assert {skip.path for skip in reading.skips} == {inputs[0].path}
    assert reading.counts.documents == len(texts) + len(skips) == len(texts) + sum(reading.counts.skipped.values())


def test_every_hostile_corpus_is_read_or_refused_here() -> None:
    names = {path.name for path in CORPORA.iterdir()}
    assert names == set(READ) | set(REFUSED) | {"self_overlap", "invalid_utf8"}
    for name in files():
        assert (CORPORA / name).exists(), "made by tests/support/damaged_corpora.py, and committed"


def test_text_that_is_not_utf8_is_for_the_encoder_threads_to_refuse(tmp_path: Path) -> None:
    with pytest.raises(BadTextError, match="byte 0xff at byte 1 of the document") as caught:
        tokmill.tokenize(str(CORPORA / "invalid_utf8" / "a.txt"), tmp_path / "out")
    assert str(caught.value.where).endswith("a.txt, document 2, byte 17")


def test_a_separator_that_overlaps_itself_is_found_leftmost() -> None:
    inputs = find_inputs([str(CORPORA / "self_overlap")], glob=None, input_format=None).inputs
    for batch_bytes in (1, 2, 3, 4, 100):
        assert read_all(inputs, separator="\n\n", sizes={"batch_bytes": batch_bytes}).texts == [b"x", b"\ny", b"", b""]
