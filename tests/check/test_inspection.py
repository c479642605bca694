"""`inspect` tells what is in token files, and nothing in them can act upon the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.corpora import write_corpus
from support.oracle import EOT
from support.outputs import write_output

import tokmill
from tokmill.cli.render import inspection_lines, json_line
from tokmill.core.errors import UsageError
from tokmill.core.text import printable, printable_bytes, printable_line

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("workers_in_process")

TEXTS = ["First document.\nIts second line.", "\x1b[2J\x9b31mhostile\x07 \u202eevil\u2066 \x00", "漢字 and a tab\there"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_output(tmp_path / "out", write_corpus(tmp_path / "corpus.txt", TEXTS), val_fraction=0.0)
    return tmp_path / "out"


def test_a_directory_is_described_by_its_manifest(out: Path) -> None:
    found = tokmill.inspect(out)
    train, val = found.sides
    assert (found.kind, found.dtype, found.tokenizer, found.eot_id) == ("directory", "uint16", "gpt2", EOT)
    assert (train.documents, train.size_bytes) == (3, (out / "train.bin").stat().st_size)
    assert (val.documents, val.tokens) == (0, 0)
    assert found.bytes_per_token == sum(len(t.encode()) for t in TEXTS) / train.tokens


@pytest.mark.parametrize(("name", "n_files"), [("raw", 4), ("llmc", 4), ("megatron", 1)])
def test_outputs_of_other_formats_and_shards_do_not_look_alike(tmp_path: Path, name: str, n_files: int) -> None:
    shard_tokens = None if name == "megatron" else 1000
    corpus = write_corpus(tmp_path / "corpus.txt", ["one two three " * 1300])
    tokmill.tokenize(corpus, tmp_path / "out", val_fraction=0.0, format=name, shard_tokens=shard_tokens)
    found = tokmill.inspect(tmp_path / "out")
    assert (found.format, [side.n_files for side in found.sides]) == (name, [n_files, 0])
    assert len([*(tmp_path / "out").glob("train*.bin")]) == n_files
    told = inspection_lines(found)
    assert f"format       {name}\n" in told
    assert f" in {n_files} file" in told


def test_skipped_records_are_told_where_somebody_counted_them(tmp_path: Path, out: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "some text"}\nbad\n' * 3)
    tokmill.tokenize(tmp_path / "a.jsonl", tmp_path / "o", on_error="skip", threads=1)
    tokmill.convert(tmp_path / "o", tmp_path / "c", format="llmc")
    tokmill.mix([(tmp_path / "o", 1.0)], tmp_path / "s", seed=1)
    assert [tokmill.inspect(each).skipped for each in (tmp_path / "o", tmp_path / "c")] == [{"invalid_json": 3}] * 2
    assert tokmill.inspect(out).skipped == {}
    assert tokmill.inspect(tmp_path / "s").skipped is None
    assert "\n  skipped" not in inspection_lines(tokmill.inspect(tmp_path / "s"))
    assert "\n  skipped      none" in inspection_lines(tokmill.inspect(out))


def test_previews_show_the_documents_asked_for_up_to_the_length_asked_for(out: Path) -> None:
    found = tokmill.inspect(out, documents=[2, 0], n_tokens=2)
    assert [preview.document for preview in found.previews] == [2, 0]
    assert found.previews[1].text == "First document"
    assert found.previews[1].shown_tokens == 2 < found.previews[1].n_tokens
    assert tokmill.inspect(out, documents=[2]).previews[0].text == TEXTS[2]


def test_hostile_text_reaches_the_terminal_as_escapes(out: Path) -> None:
    found = tokmill.inspect(out, documents=[1])
    assert found.previews[0].text == r"\x1b[2J\x9b31mhostile\x07 \u202eevil\u2066 \x00"
    for shown in (inspection_lines(found), json_line(found)):
        assert not set(shown) & set("\x1b\x9b\x07\u202e\u2066\x00")


@pytest.mark.parametrize("code", [*range(0x20), 0x7F, *range(0x80, 0xA0), 0x200F, 0x2028, 0x202E, 0xFEFF, 0xDC80, 0xE0041])
def test_every_control_is_escaped_in_text_and_in_messages(code: int) -> None:
    assert chr(code) not in printable(f"a{chr(code)}b").replace("\n", "").replace("\t", "")
    assert chr(code) not in printable_line(f"a{chr(code)}b")


def test_bytes_that_are_not_utf8_are_shown_as_bytes() -> None:
    assert printable_bytes(b"caf\xc3\xa9 \xff\xc3") == "café \\xff\\xc3"


def test_a_bare_file_is_described_with_what_the_options_say(out: Path, tmp_path: Path) -> None:
    bare = tmp_path / "elsewhere.bin"
    bare.write_bytes((out / "train.bin").read_bytes())
    found = tokmill.inspect(bare, dtype="uint16")
    assert (found.sides[0].documents, found.previews) == (None, [])
    found = tokmill.inspect(bare, dtype="uint16", eot_id=EOT)
    assert found.sides[0].documents == 3
    found = tokmill.inspect(bare, dtype="uint16", tokenizer="gpt2", documents=[2])
    assert found.previews[0].text == TEXTS[2]
    assert "3 documents" in inspection_lines(found)


def test_documents_that_cannot_be_told_apart_are_not_called_document_0(tmp_path: Path, out: Path) -> None:
    write_output(out, tmp_path / "corpus.txt", val_fraction=0.0, eot="none")
    found = tokmill.inspect(out, n_tokens=2)
    (preview,) = found.previews
    assert (preview.document, preview.text, preview.n_tokens) == (None, "First document", found.sides[0].tokens)
    assert "train, all documents, which cannot be told apart (--eot none)" in inspection_lines(found)
    assert "3 documents" in inspection_lines(found)
    for path in (out, out / "train.bin"):
        with pytest.raises(UsageError, match="documents cannot be told apart") as caught:
            tokmill.inspect(path, documents=[0])
        assert "--eot after" in str(caught.value.next_step)


def test_an_empty_side_has_no_preview_but_a_document_asked_for_must_exist(out: Path) -> None:
    assert tokmill.inspect(out, side="val").previews == []
    with pytest.raises(UsageError, match="no document 2"):
        tokmill.inspect(out, side="val", documents=[2])
    with pytest.raises(UsageError, match="no document 3") as caught:
        tokmill.inspect(out, documents=[3])
    assert caught.value.allowed == "0 to 2"


@pytest.mark.parametrize("options", [{"side": "test"}, {"n_tokens": -1}, {"n_tokens": 10**9}, {"dtype": "uint16"}])
def test_options_out_of_range_are_refused_with_four_parts(out: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        tokmill.inspect(out, **options)  # type: ignore[arg-type]
    assert caught.value.allowed
    assert caught.value.next_step


def test_documents_whose_bytes_were_mended_are_counted(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"one \xff\xfe<|endoftext|>two<|endoftext|>three \xff")
    tokmill.tokenize(tmp_path / "c.txt", tmp_path / "o", encoding_errors="replace", threads=1)
    found = tokmill.inspect(tmp_path / "o")
    assert found.invalid_utf8_documents == 2
    assert "not UTF-8    2 documents, corrected as --encoding-errors says" in inspection_lines(found)
    assert '"invalid_utf8_documents": 2' in json_line(found)
    clean = tokmill.inspect(tmp_path / "o" / "train.bin", dtype="uint16")
    assert "not UTF-8" not in inspection_lines(clean)
