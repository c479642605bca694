"""Files that are not what they are read as: Git LFS pointers, wide encodings without a mark, arrays, other kinds of documents."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import tempfile
from pathlib import Path

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, strategies as st
from support.commands import clean_environment
from support.damaged_corpora import tar
from support.reading import a_reader, read_all, write
from support.records import a_content
from support.runs import run_in_process

from tokmill.core.config import parse_separator
from tokmill.core.errors import BadRecordError, DamagedInputError, InputError, MemoryBudgetError, UsageError
from tokmill.core.records import Cursor
from tokmill.read.inputs import find_inputs
from tokmill.read.seekable import open_seekable
from tokmill.read.sniff import check_files
from tokmill.run import EncodeStage

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0f" * 32 + b"\nsize 12345\n"
POINTERS = [
    POINTER,
    POINTER.replace(b"oid", b"ext-0-foo sha256:" + b"1" * 64 + b"\noid"),
    POINTER.replace(b"git-lfs.github", b"hawser.github"),
]
NAMES = [
    "p.txt",
    "p.md",
    "p",
    "p.jsonl",
    "p.jsonl.gz",
    "p.txt.zst",
    "p.csv",
    "p.tsv.xz",
    "p.parquet",
    "p.arrow",
    "p.tar",
    "p.tar.gz",
]


@pytest.mark.parametrize("pointer", POINTERS, ids=["plain", "extension", "old"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pointer_of_git_lfs_is_named_whatever_it_is_called(tmp_path: Path, name: str, pointer: bytes) -> None:
    inputs = write(tmp_path, {f"a dir/{name}": pointer})
    for look in (lambda: read_all(inputs, on_error="skip"), lambda: check_files(inputs, "text"), lambda: open_seekable(inputs[0])):
        with pytest.raises(DamagedInputError, match="pointer of Git LFS") as caught:
            look()
        assert caught.value.next_step == f"git -C '{tmp_path}/a dir' lfs pull"


def test_a_text_about_pointers_is_a_text(tmp_path: Path) -> None:
    for text in (POINTER + b"is what a pointer looks like.", b"See " + POINTER, POINTER + b"x" * 2000):
        assert read_all(write(tmp_path, {"a.txt": text})).texts == [text]


@example(text="]0000000", end="", width=32)
@given(
    text=st.text(st.characters(max_codepoint=127, exclude_characters="\0"), min_size=8),
    end=st.text(max_size=3),
    width=st.sampled_from([16, 32]),
)
def test_wide_ascii_without_a_mark_is_refused(text: str, end: str, width: int) -> None:
    for order in ("le", "be"):
        data = (text + end.replace("\0", "")).encode(f"utf-{width}-{order}", "replace")
        with tempfile.TemporaryDirectory() as where:
            for name, stored in (("a.txt", data), ("a.csv", data), ("a.txt.gz", gzip.compress(data))):
                inputs = write(Path(where), {name: stored})
                with pytest.raises(InputError, match=f"UTF-{width}-{order.upper()} text without a byte order mark") as caught:
                    read_all(inputs, encoding_errors="replace", on_error="skip")
                assert f"iconv -f UTF-{width}-{order.upper()} -t UTF-8" in str(caught.value.next_step)


@pytest.mark.parametrize("data", ["text".encode("utf-32"), b"\0\0\xfe\xff\0\0\0a"])
def test_wide_text_with_a_mark_is_called_by_its_width(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputError, match="UTF-32"):
        read_all(write(tmp_path, {"a.txt": data}))


@pytest.mark.parametrize(
    "data", [b"a\0b\0c\0d\0e\0f", b"a\0", b"\0" * 64, b"one\0two\0three", "日本".encode("utf-16-le") * 9 + b"\xff"]
)
def test_other_texts_with_nuls_are_read(tmp_path: Path, data: bytes) -> None:
    inputs = write(tmp_path, {"a.txt": data})
    assert read_all(inputs, separator="\0", encoding_errors="ignore", keep_empty=True).counts.documents == data.count(0) + 1


ARRAYS = [
    json.dumps([{"text": "x"}]),
    json.dumps([{"text": "x"}], indent=2),
    '\n [ {\n"a": 1}]',
    json.dumps([{"text": "x" * 300_000}]),
]


@pytest.mark.parametrize("text", ARRAYS)
def test_a_json_array_is_named_whatever_its_file_is_called(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="JSON array") as caught:
        check_files(write(tmp_path, {"dump": text.encode()}), "text")
    assert "jq -c '.[]'" in str(caught.value.next_step)
    assert "--input-format text" in str(caught.value.next_step)
    assert "jq -c '.[]'" in check_files(write(tmp_path, {"dump.txt": text.encode()}), "text")[0]
    with pytest.raises(BadRecordError, match=r"JSON array \(invalid_json\)") as of_lines:
        read_all(write(tmp_path, {"dump.json": text.encode()}), on_error="skip")
    assert str(of_lines.value.next_step).startswith("write its elements as lines: jq -c '.[]'")
    with pytest.raises(BadRecordError) as of_packed:
        read_all(write(tmp_path, {"packed.json.gz": gzip.compress(text.encode())}))
    assert of_packed.value.next_step == "write its elements as lines: gzip -dc FILE | jq -c '.[]' > NEW.jsonl"


@pytest.mark.parametrize("text", ["[1] is a footnote", "[", "[{x}]", "[[{", '{"a": [{"b": 1}]'])
def test_a_text_that_begins_with_a_bracket_is_a_text(tmp_path: Path, text: str) -> None:
    assert check_files(write(tmp_path, {"a": text.encode(), "b.txt": text.encode()}), "text") == []


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("a.docx", "pandoc"),
        ("a.EPUB", "pandoc"),
        ("a.pdf", "pdftotext"),
        ("a.zip", "unzip"),
        ("a.txt.lzma", "xz -dc"),
        ("a.doc", "soffice"),
    ],
)
def test_documents_of_other_programs_come_with_what_makes_text_of_them(tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match="is not text") as caught:
        find_inputs([str(tmp_path / name)], glob=None, input_format=None)
    assert word in str(caught.value.next_step)


@pytest.mark.parametrize(
    ("data", "word"), [(b"%PDF-1.7\n%\xe2\xe3", "pdftotext"), (b"PK\x03\x04", "pandoc"), (b"{\\rtf1\\ansi", "pandoc")]
)
def test_such_documents_under_the_name_of_a_text_too(tmp_path: Path, data: bytes, word: str) -> None:
    with pytest.raises(InputError) as caught:
        read_all(write(tmp_path, {"a.txt": data}))
    assert word in str(caught.value.next_step)


def test_text_in_an_old_encoding_is_first_advised_to_be_converted(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", b'{"text": "caf\xe9"}'), ("a.csv", b"text\ncaf\xe9\n")):
        with pytest.raises(BadRecordError) as caught:
            read_all(write(tmp_path, {name: data}))
        next_step = str(caught.value.next_step)
        assert 0 < next_step.index("iconv -f WINDOWS-1252 -t UTF-8") < next_step.index("--encoding-errors")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tar"])
def test_zeros_anywhere_in_a_text_are_told(tmp_path: Path, name: str) -> None:
    texts = [b"plain " * 900, b"z\0e\0r\0o\0s\0" * 90, b"plain"]
    data = {
        "a.txt": b"<|endoftext|>".join(texts),
        "a.jsonl": b"".join(json.dumps({"text": text.decode()}).encode() + b"\n" for text in texts),
        "a.csv": b"text\n" + b"\n".join(texts),
        "a.tar": tar({f"{i}.txt": text for i, text in enumerate(texts)}),
    }[name]
    reader = a_reader(
        a_content(inputs=write(tmp_path, {name: data, "b.txt": b"a\0b plain text of some more words " * 9})), batch_bytes=4000
    )
    n_documents = sum(len(batch.documents) for batch in reader.batches(Cursor()))
    (notice,) = reader.notices()
    assert n_documents == 4
    assert f"zero, as in UTF-16 or in what is no text, from here on: {tmp_path}/{name}, " in notice
    assert "b.txt" not in notice


def test_zeros_that_separate_are_not_told(tmp_path: Path) -> None:
    reader = a_reader(a_content(inputs=write(tmp_path, {"a.txt": b"a\0b\0"}), separator="\0"))
    list(reader.batches(Cursor()))
    assert reader.notices() == []


def test_texts_of_some_size_without_a_separator_are_named(tmp_path: Path) -> None:
    long = b"word " * 300_000
    inputs = write(tmp_path, {"a.txt": long, "b.txt": long + b"<|endoftext|>", "c.txt": b"short", "d.txt": long, "e.jsonl": b""})
    reader = a_reader(a_content(inputs=inputs))
    batches = list(reader.batches(Cursor()))
    (notice,) = reader.notices()
    assert "<|endoftext|> does not occur in 2 of 3 text files" in notice
    assert f"{tmp_path}/a.txt, {tmp_path}/d.txt;" in notice
    again = a_reader(a_content(inputs=inputs))
    list(again.batches(batches[0].after or Cursor(input_index=3)))
    assert "d.txt" in again.notices()[0]
    quiet = a_reader(a_content(inputs=inputs, separator=None))
    list(quiet.batches(Cursor()))
    assert quiet.notices() == []


@pytest.mark.parametrize("typed", [r"\q", r"a\d+b"], ids=["one", "inside"])
def test_an_escape_that_stands_for_nothing_is_asked_about(typed: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_separator(typed)
    assert parse_separator(str(caught.value.suggested)) == typed


@pytest.mark.parametrize("word", ["None", "NONE", "nONE"])
def test_none_with_capitals_is_asked_about(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_separator(word)
    assert caught.value.suggested == "none"
    assert parse_separator(str(caught.value.next_step).split("'")[1]) == word


@pytest.mark.parametrize("closing", ["<&-", "0>written"])
def test_a_standard_input_that_is_closed_is_refused(tmp_path: Path, closing: str) -> None:
    command = f"exec '{sys.executable}' -m tokmill tokenize - --out out {closing}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "standard input is closed" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_column_file_that_is_short_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet", write_statistics=False, store_schema=False)
    data = (tmp_path / "a.parquet").read_bytes()
    assert len(data) < 1024
    assert read_all(write(tmp_path, {"a.parquet": data})).texts == [b"x"]


PACKED = {
    ".gz": gzip.compress(b"a text" * 99),
    ".zst": zstd.compress(b"a text" * 99),
    ".xz": lzma.compress(b"a text" * 99),
    ".bz2": bz2.compress(b"a text" * 99),
    ".lz4": lz4.frame.compress(b"a text" * 99),
}


@pytest.mark.parametrize("garbage", [b"garbage", b"x", b"<html>" * 500, b"\xff" * 20], ids=["word", "letter", "page", "bytes"])
@pytest.mark.parametrize("suffix", PACKED)
def test_what_was_put_behind_compressed_data_is_left_out_by_the_command_that_is_proposed(
    tmp_path: Path, suffix: str, garbage: bytes
) -> None:
    inputs = write(tmp_path, {f"a.txt{suffix}": PACKED[suffix] * 2 + garbage})
    with pytest.raises(DamagedInputError, match=f"what follows the first {2 * len(PACKED[suffix]):,} bytes") as caught:
        read_all(inputs)
    command = str(caught.value.next_step).partition("leave that out: ")[2].replace("FILE", f"a.txt{suffix}", 1)
    subprocess.run(command.replace("NEW_FILE", f"b.txt{suffix}"), shell=True, cwd=tmp_path, check=True)
    assert read_all(write(tmp_path, {f"c.txt{suffix}": (tmp_path / f"b.txt{suffix}").read_bytes()})).texts == [b"a text" * 198]


@pytest.mark.parametrize(
    ("name", "data", "what", "command"),
    [
        ("a.txt.xz", lzma.compress(b"text", format=lzma.FORMAT_ALONE), "an .lzma file", "xz --format=lzma -dc"),
        ("a.txt.gz", zstd.compress(b"text"), "zstd data", "end in .zst"),
        ("a.txt.zst", gzip.compress(b"text", mtime=0), "gzip data", "end in .gz"),
        ("a.jsonl.gz", b'{"text": "not compressed"}\n', "text", "take .gz off its name"),
        ("a.txt.lz4", b"\x02\x21\x4c\x18\x05\0\0\0abcde", "a legacy frame of lz4", "lz4 -dc"),
    ],
)
def test_what_is_compressed_otherwise_than_its_name_says_is_named(
    tmp_path: Path, name: str, data: bytes, what: str, command: str
) -> None:
    with pytest.raises(DamagedInputError, match=f"begins like {what}") as caught:
        read_all(write(tmp_path, {name: data}))
    assert command in str(caught.value.next_step)


def test_a_dictionary_that_is_missing_is_no_damage(tmp_path: Path) -> None:
    known = zstd.train_dict([b"sample %d of words and more words" % i for i in range(2000)], 1000)
    with pytest.raises(DamagedInputError, match="with a dictionary"):
        read_all(write(tmp_path, {"a.txt.zst": zstd.compress(b"text" * 50, zstd_dict=known)}))


def test_memory_that_runs_out_anywhere_is_told_with_the_place_of_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(EncodeStage, "run", no_memory)
    (tmp_path / "a.txt").write_bytes(b"one<|endoftext|>two")
    with pytest.raises(MemoryBudgetError, match="memory ran out") as caught:
        run_in_process([tmp_path / "a.txt"], tmp_path / "out")
    assert str(caught.value.where).startswith(f"{tmp_path}/a.txt, document ")
    assert str(caught.value.suggested).endswith("MiB")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_what_is_compressed_is_decompressed_before_it_is_converted(tmp_path: Path, name: str) -> None:
    for data in (b"%PDF-1.7 and so on", "text".encode("utf-16"), b"PK\x03\x04 and more"):
        with pytest.raises(InputError) as plain:
            read_all(write(tmp_path, {name: data}))
        with pytest.raises(InputError) as packed:
            read_all(write(tmp_path, {f"{name}.gz": gzip.compress(data)}))
        assert packed.value.next_step == f"decompress it first (gzip -d FILE), then: {plain.value.next_step}"
    (tmp_path / "x.pdf.gz").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        find_inputs([str(tmp_path / "x.pdf.gz")], glob=None, input_format=None)
    assert "gzip -d FILE, then pdftotext FILE FILE.txt" in str(caught.value.next_step)
    assert "--input-format text.gz" in str(caught.value.next_step)


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
@pytest.mark.parametrize("key", ["text", "a,b", 'a "b" FILE'])
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_table_without_a_header_is_told_how_to_get_one(
    tmp_path: Path, name: str, delimiter: str, key: str, is_packed: bool
) -> None:
    data = "".join(delimiter.join((str(i), f"a text of some words and the number {i}", "en")) + "\n" for i in (1, 2)).encode()
    (source,) = write(tmp_path, {f"{name}.gz": gzip.compress(data)} if is_packed else {name: data})
    with pytest.raises(BadRecordError) as caught:
        read_all((source,), text_key=key)
    command = str(caught.value.next_step).partition("before it: ")[2].replace("NEW_FILE", f"new-{name}")
    place = " FILE |" if is_packed else f" FILE > new-{name}"
    subprocess.run(command.replace(place, place.replace("FILE", source.path)), shell=True, cwd=tmp_path, check=True)
    texts = read_all(write(tmp_path, {f"new-{name}": (tmp_path / f"new-{name}").read_bytes()}), text_key=key).texts
    assert texts == [f"a text of some words and the number {i}".encode() for i in (1, 2)]
