"""Text files: documents are exactly those of `bytes.split`, however the bytes arrive."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import lz4.frame
import msgspec
import pytest
from hypothesis import example, given, strategies as st
from support.reading import SEPARATORS, SpaceCutter, a_reader, contents, read_all, write
from support.records import a_content

from tokmill.core.errors import InputError
from tokmill.core.records import Cursor, Input
from tokmill.read.utf8 import first_invalid


@st.composite
def corpora(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    separator = draw(st.sampled_from(SEPARATORS))
    return separator, draw(st.lists(contents(separator), min_size=1, max_size=4))


@given(corpora(), st.integers(1, 70), st.booleans())
@example(("aa", [b"aaa", b"aaaa"]), 1, False)
def test_documents_are_those_of_bytes_split(corpus: tuple[str, list[bytes]], batch_bytes: int, cuts: bool) -> None:
    separator, files = corpus
    with tempfile.TemporaryDirectory() as directory:
        inputs = write(Path(directory), {f"{i}.txt": data for i, data in enumerate(files)})
        sizes = {"batch_bytes": batch_bytes, "divide_above_bytes": 1 << 20}
        reading = read_all(
            inputs,
            SpaceCutter() if cuts else None,
            separator=separator,
            sizes=sizes,
            encoding_errors="ignore",
            val_fraction=0.5,
        )
    expected = [document for data in files for document in data.split(separator.encode())]
    assert reading.texts == [d.decode("utf-8", "ignore").encode() for d in expected]
    assert reading.counts.documents == len(expected)
    assert reading.counts.bytes_in == sum(map(len, files))


@given(contents("<|endoftext|>"), st.integers(1, 7), st.integers(1, 60))
def test_a_pipe_that_delivers_a_few_bytes_at_a_time_changes_nothing(data: bytes, n_bytes: int, batch_bytes: int) -> None:
    source = Input(path="/a/pipe", format="text", compression="none")

    class Drops:
        """A stream that never gives what was asked for."""

        offset = 0

        def read(self, n: int) -> bytes:
            part = data[self.offset : self.offset + min(n, n_bytes)]
            self.offset += len(part)
            return part

        def skip(self, n: int) -> None:
            self.offset += n

        def raw_position(self) -> int:
            return self.offset

        def close(self) -> None: ...

    from tokmill.read.formats.text import TextReader
    from tokmill.read.position import Position, ReadSettings

    settings = ReadSettings(a_content(inputs=(source,)), None, batch_bytes, 1024, 1 << 20)
    documents = [d for b in TextReader(Drops(), Position(source, Cursor()), settings).batches(Cursor()) for d in b.documents]
    assert documents == data.split(b"<|endoftext|>")


def test_no_separator_makes_a_file_one_document(tmp_path: Path) -> None:
    files = {"a.txt": b"one\n\ntwo", "b.txt": b"", "c.txt": b"x" * 5000}
    for batch_bytes in (64, 4096, 1 << 20):
        assert read_all(write(tmp_path, files), separator=None, sizes={"batch_bytes": batch_bytes}).texts == list(files.values())


def test_many_documents_are_dealt_out_in_bounded_batches(tmp_path: Path) -> None:
    for text in (b"", b"a"):
        inputs = write(tmp_path, {"a.txt": (text + b"\n") * 20_000 + b"end"})
        content = a_content(inputs=inputs, separator="\n")
        batches = list(a_reader(content, batch_bytes=20_000).batches(Cursor()))
        assert max(len(b.documents) for b in batches) <= 1024
        assert [d for b in batches for d in b.documents] == [text] * 20_000 + [b"end"]
        read_all(inputs, separator="\n", sizes={"batch_bytes": 20_000})


def test_small_files_are_packed_and_every_document_is_located(tmp_path: Path) -> None:
    files = {f"{i:03}.txt": f"doc {i}<|endoftext|>ö{i}".encode() for i in range(300)}
    inputs = write(tmp_path, files)
    batches = list(a_reader(a_content(inputs=inputs), batch_bytes=2000).batches(Cursor()))
    assert len(batches) < 20
    for batch in batches:
        assert batch.raw is not None
        assert first_invalid(batch.raw) is None
        for i, document in enumerate(batch.documents):
            where = batch.locate(i)
            assert where.offset is not None
            assert Path(where.path).read_bytes()[where.offset :].startswith(document)
            assert where.record == (1 if document.startswith(b"doc") else 2)
    read_all(inputs, sizes={"batch_bytes": 2000})


def test_halves_of_a_character_in_two_packed_files_do_not_vouch_for_one_another(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"a.txt": "é".encode()[:1], "b.txt": "é".encode()[1:]})
    (batch,) = a_reader(a_content(inputs=inputs)).batches(Cursor())
    assert batch.raw is not None
    assert first_invalid(batch.raw) is not None


def _a_tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return made.getvalue()


FOREIGN = {
    "gzip": gzip.compress(b"text"),
    "zstd": b"\x28\xb5\x2f\xfdrest",
    "xz": lzma.compress(b"text"),
    "bzip2": bz2.compress(b"text"),
    "lz4": lz4.frame.compress(b"text"),
    "UTF-16": "text".encode("utf-16"),
    "FE FF": b"\xfe\xff\x00a",
    "Parquet": b"PAR1\x15\x04\x15\x10",
    "Arrow": b"ARROW1\x00\x00\xff\xff\xff\xff",
    "an Arrow stream": b"\xff\xff\xff\xff\x78\x00\x00\x00",
    "a zip": b"PK\x03\x04rest",
    "a 7z": b"7z\xbc\xaf\x27\x1c",
    "a tar": _a_tar(),
}
ADVICE = {
    "gzip": "jsonl.gz, csv.gz",
    "zstd": "--input-format text.zst",
    "xz": "--input-format text.xz",
    "bzip2": "--input-format text.bz2",
    "lz4": "--input-format text.lz4",
    "Parquet": "--input-format parquet",
    "Arrow": "--input-format arrow",
    "an Arrow stream": "--input-format arrow",
    "a zip": "unzip FILE",
    "a 7z": "7z x FILE",
    "a tar": "--input-format tar",
}


@pytest.mark.parametrize("policy", [{}, {"encoding_errors": "replace"}, {"encoding_errors": "ignore"}, {"on_error": "skip"}])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("named", FOREIGN)
def test_a_file_that_is_something_else_is_named_whatever_the_policy(
    tmp_path: Path, named: str, name: str, policy: dict[str, Any]
) -> None:
    inputs = write(tmp_path, {name: FOREIGN[named]})
    with pytest.raises(InputError, match=f"it begins like {named}|byte order mark {named}") as caught:
        read_all(inputs, **policy)
    assert name in str(caught.value.where)
    assert ADVICE.get(named, "iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE") in str(caught.value.next_step)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("named", ["Parquet", "an Arrow stream"])
def test_a_table_that_comes_through_a_pipe_is_to_be_saved(tmp_path: Path, named: str, name: str) -> None:
    (source,) = write(tmp_path, {name: FOREIGN[named]})
    with pytest.raises(InputError, match=f"it begins like {named}") as caught:
        read_all((msgspec.structs.replace(source, size_bytes=None),))
    assert str(caught.value.next_step).startswith("save it to a file whose name ends in ")


@pytest.mark.parametrize("text", ["PAR1 is a gene.", "ARROW1", "PK", "x" * 257 + "ustar"])
def test_a_text_that_begins_with_letters_of_other_kinds_of_files_is_text(tmp_path: Path, text: str) -> None:
    assert read_all(write(tmp_path, {"a.txt": text.encode()})).documents == [(False, text.encode())]


def test_the_end_of_standard_input_is_compared_when_a_run_goes_on(tmp_path: Path) -> None:
    from tokmill.core.errors import ChangedError

    def read(data: bytes, start: Cursor) -> list[object]:
        reading_end, writing_end = os.pipe()
        os.write(writing_end, data)
        os.close(writing_end)
        inputs = (Input(path=f"/dev/fd/{reading_end}", format="text", compression="none"),)
        try:
            return list(a_reader(a_content(inputs=inputs, separator="\n"), batch_bytes=16).batches(start))
        finally:
            os.close(reading_end)

    data = "".join(f"line {i}\n" for i in range(40)).encode()
    batches = read(data, Cursor())
    for i, batch in enumerate(batches):
        rest = read(data, batch.after) if i < len(batches) - 1 else []  # type: ignore[attr-defined]
        assert [d for b in rest for d in b.documents] == [d for b in batches[i + 1 :] for d in b.documents]  # type: ignore[attr-defined]
    with pytest.raises(ChangedError, match="not those"):
        read(data.replace(b"line 0", b"Line 0"), batches[3].after)  # type: ignore[attr-defined]
    with pytest.raises(ChangedError, match="ended after"):
        read(data[:20], batches[3].after)  # type: ignore[attr-defined]
