"""Bare files of ids: what is not stated is not invented, what cannot be so is refused by name, and the advice works."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.corpora import write_corpus
from support.oracle import EOT, gpt2

import tokmill
from tokmill.cli import app
from tokmill.cli.render import inspection_lines
from tokmill.core.errors import DamageError, UsageError
from tokmill.derive import engine
from tokmill.formats.registry import FORMATS

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["First document.", "The second one.", "漢字 and a third"]
IDS = [i for text in TEXTS for i in [*gpt2().encode_ordinary(text), EOT]]
STATED: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": EOT}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    np.array(IDS, np.uint16).tofile(tmp_path / "some.bin")
    return tmp_path / "some.bin"


@pytest.fixture
def unnamed(bare: Path, tmp_path: Path) -> Path:
    """Converted without a tokenizer."""
    tokmill.convert(bare, tmp_path / "unnamed", format="raw", **STATED)
    return tmp_path / "unnamed"


def whole(error: UsageError) -> str:
    """All four parts, which must be there."""
    assert error.where
    assert error.allowed
    assert error.next_step
    return str(error)


def test_a_tokenizer_that_nobody_named_is_none_and_inspect_needs_none(unnamed: Path) -> None:
    found = tokmill.inspect(unnamed)
    assert (found.tokenizer, found.tokenizer_sha256, found.eot_id, found.previews) == (None, None, EOT, [])
    assert (found.sides[0].documents, found.bytes_text, found.bytes_per_token) == (3, None, None)
    lines = inspection_lines(found)
    assert "not known (pass --tokenizer for a preview)" in lines
    assert "per token" not in lines
    with pytest.raises(UsageError, match="which tokenizer made these ids is not known") as caught:
        tokmill.inspect(unnamed, documents=[1])
    assert "--tokenizer gpt2" in whole(caught.value)


def test_it_may_be_named_when_the_output_is_opened(unnamed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["inspect", str(unnamed), "--tokenizer", "gpt2", "--document", "2"]) == 0
    assert TEXTS[2] in capsys.readouterr().out
    with tokmill.open(unnamed, tokenizer="gpt2") as data:
        assert [data.decode(ids) for ids in data.documents("train")] == TEXTS
    with tokmill.open(unnamed / "train.bin") as data:
        assert (data.tokenizer, data.eot_id) == (None, EOT)
    with pytest.raises(UsageError, match="for bare files"):
        tokmill.open(unnamed, dtype="uint16")


def test_a_tokenizer_with_fewer_ids_than_were_met_is_refused(tmp_path: Path) -> None:
    np.array([70_000, 9], np.uint32).tofile(tmp_path / "wide.bin")
    tokmill.convert(tmp_path / "wide.bin", tmp_path / "o", format="raw", **STATED | {"from_dtype": "uint32", "from_eot_id": 9})
    with pytest.raises(UsageError, match=r"ids go up to 70,000, those of gpt2 only up to 50,256") as caught:
        tokmill.open(tmp_path / "o", tokenizer="gpt2")
    whole(caught.value)


def test_a_known_tokenizer_may_be_named(bare: Path, tmp_path: Path) -> None:
    tokmill.convert(bare, tmp_path / "named", format="raw", from_tokenizer="gpt2", **STATED)
    with tokmill.open(tmp_path / "named", tokenizer="gpt2") as named, tokmill.open(tmp_path / "named") as plain:
        assert named.fingerprint("train") == plain.fingerprint("train")


def test_repair_of_an_output_without_a_tokenizer_finds_nothing_or_says_what_to_do(unnamed: Path) -> None:
    assert tokmill.repair(unnamed).repaired == []
    with (unnamed / "train.bin").open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(UsageError, match="bare files"):
        tokmill.repair(unnamed)


def test_merging_with_a_named_one_advises_to_convert_with_the_tokenizer(unnamed: Path, tmp_path: Path) -> None:
    tokmill.tokenize(write_corpus(tmp_path / "c.txt", TEXTS), tmp_path / "named", val_fraction=0)
    with pytest.raises(UsageError, match=r"the tokenizer is not known, not gpt2 \(sha256") as caught:
        tokmill.merge([tmp_path / "named", unnamed], tmp_path / "m")
    assert "tokmill convert --from-tokenizer NAME" in whole(caught.value)


def test_merged_without_a_tokenizer_the_largest_id_of_all_is_in_range(unnamed: Path, tmp_path: Path) -> None:
    np.array([60_000, EOT], np.uint16).tofile(tmp_path / "more.bin")
    tokmill.convert(tmp_path / "more.bin", tmp_path / "more", format="raw", **STATED)
    tokmill.merge([unnamed, tmp_path / "more"], tmp_path / "m")
    assert tokmill.verify(tmp_path / "m").ok


def convert(bare: Path | list[Path], out: Path, **changes: Any) -> tokmill.Outcome:
    return tokmill.convert(bare, out, **{"format": "raw"} | STATED | changes)


def refused(bare: Path | list[Path], out: Path, **changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        convert(bare, out, **changes)
    assert not out.exists()
    return whole(caught.value)


@pytest.mark.parametrize("from_format", ["raw", "olmo"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32"])
def test_the_header_of_numpy_save_is_no_ids(tmp_path: Path, from_format: str, dtype: str) -> None:
    path, wide = tmp_path / "ids.npy", "uint16" if dtype == "uint16" else "uint32"
    np.save(path, np.array(IDS, dtype))
    convert(path, tmp_path / "o", from_format=from_format, from_dtype=wide, to_dtype="uint16")
    assert np.fromfile(tmp_path / "o" / "train.bin", np.uint16).tolist() == IDS
    assert tokmill.verify(tmp_path / "o").ok
    with tokmill.open(path, tokenizer="gpt2") as data:
        assert data.train.tolist() == IDS
        assert data.decode(data.document("train", 1)) == TEXTS[1]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array(IDS, np.int64), "header says int64, not uint16"),
        (np.array(IDS, ">u2"), "header says >u2, not uint16"),
        (np.array(IDS, np.uint32), "header says uint32, not uint16"),
        (np.array([IDS], np.uint16), "of shape"),
        (np.array(IDS, np.float32), "of shape .* and type float32"),
    ],
)
def test_a_file_of_numpy_save_that_is_no_list_of_such_ids_is_refused(tmp_path: Path, array: Any, words: str) -> None:
    np.save(tmp_path / "ids.npy", array)
    assert re.search(words, refused(tmp_path / "ids.npy", tmp_path / "o"))
    with pytest.raises(UsageError, match=words):
        tokmill.open(tmp_path / "ids.npy", dtype="uint16")


def test_a_file_of_numpy_save_that_was_cut_is_damaged(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array(IDS, np.uint16))
    with (tmp_path / "ids.npy").open("r+b") as file:
        file.truncate((tmp_path / "ids.npy").stat().st_size - 2)
    with pytest.raises(DamageError, match="its length is another"):
        convert(tmp_path / "ids.npy", tmp_path / "o")
    (tmp_path / "ids.npy").write_bytes(b"\x93NUMPY\x01\x00")
    assert "its header cannot be read" in refused(tmp_path / "ids.npy", tmp_path / "o")


@pytest.mark.parametrize(("name", "index"), [("megatron", "train.idx"), ("datatrove", "train/000000.ds.index")])
def test_an_index_is_not_read_as_ids(bare: Path, tmp_path: Path, name: str, index: str) -> None:
    convert(bare, tmp_path / "m", format=name)
    path = tmp_path / "m" / index
    assert "this file is the index, not the ids" in refused(path, tmp_path / "o")
    with pytest.raises(UsageError, match="this file is the index") as caught:
        tokmill.inspect(path, dtype="uint16", eot_id=EOT)
    assert str(path.parent) in whole(caught.value)
    assert name != "megatron" or "train.bin" in whole(caught.value)


def test_all_that_is_missing_is_asked_for_at_once_with_the_path_and_what_was_stated(bare: Path, tmp_path: Path) -> None:
    said = refused(bare, tmp_path / "o", from_format=None, from_dtype="uint32", from_eot=None, from_eot_id=None)
    assert "needs --from-format, --from-eot, --from-eot-id or --from-tokenizer" in said
    assert f"tokmill convert {bare} --from-format raw --from-dtype uint32 --from-eot after --from-eot-id 50256" in said


def test_a_file_that_is_given_twice_is_named_as_a_path(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "link.bin").symlink_to(bare)
    for twice in ([bare, bare], [bare, tmp_path / "link.bin"]):
        said = refused(twice, tmp_path / "o")
        assert f"where: {bare}" in said
        assert "PosixPath" not in said
    assert "given twice" in refused(bare, tmp_path / "o", val_input=bare)


def test_a_wrong_dtype_is_the_first_thing_to_look_at(bare: Path, tmp_path: Path) -> None:
    np.array([7, 9, EOT], np.uint16).tofile(tmp_path / "odd.bin")
    said = refused(tmp_path / "odd.bin", tmp_path / "o", from_dtype="uint32")
    assert "a multiple of 4 bytes" in said
    assert "--from-dtype" in said.rsplit("next:")[1]
    for changes in (
        {"from_dtype": "uint32"},
        {"from_dtype": "uint32", "from_eot_id": int(np.fromfile(bare, "<u4")[-1]), "from_tokenizer": "gpt2"},
    ):
        assert "--from-dtype" in refused(bare, tmp_path / "o", **changes).rsplit("next:")[1]


def test_an_id_out_of_range_is_named_by_file_number_and_byte(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokmill.derive.source.BLOCK_TOKENS", 7)
    ids = np.array([*IDS[:10], 50_300, *IDS[10:], EOT], np.uint16)
    np.save(tmp_path / "b.npy", ids)
    head = (tmp_path / "b.npy").stat().st_size - ids.nbytes
    said = refused([bare, tmp_path / "b.npy"], tmp_path / "o", from_tokenizer="gpt2")
    assert "id 50,300 is not below 50,257" in said
    assert f"where: {tmp_path / 'b.npy'}, id 10 (from 0), byte {head + 20}" in said


def test_a_file_without_ids_is_no_success(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.bin").touch()
    assert "there are no ids in this file" in refused([bare, tmp_path / "empty.bin"], tmp_path / "o")


@pytest.mark.parametrize(("eot_id", "dtype"), [(-1, "uint16"), (65_536, "uint16"), (5_000_000_000, "uint32")])
def test_an_end_of_text_id_that_no_id_can_be_is_not_blamed_on_the_data(bare: Path, tmp_path: Path, eot_id: int, dtype: str) -> None:
    assert f"{eot_id} is not an id of {dtype}\nwhere: --from-eot-id" in refused(
        bare, tmp_path / "o", from_eot_id=eot_id, from_dtype=dtype
    )


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_without_end_of_text_ids_it_is_one_stream_where_no_documents_are_listed(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / name
    arguments = [
        "convert",
        str(bare),
        "--from-format",
        "raw",
        "--from-dtype",
        "uint16",
        "--from-eot",
        "none",
        "--format",
        name,
        "-o",
        str(out),
    ]
    if name in ("megatron", "datatrove", "olmo"):
        assert app.run(arguments) == 2
        said = capsys.readouterr().err
        assert "documents cannot be told apart in bare files stated to have no end-of-text ids" in said
        assert "choose another --format" in said
        return
    assert app.run(arguments) == 0
    said = "".join(capsys.readouterr())
    assert "leave --" not in said
    assert "--to-eot" not in said
    assert ("llm.c and modded-nanogpt expect" in said) == (name == "llmc")
    assert tokmill.verify(out).ok
    with tokmill.open(out) as data:
        assert (data.train.tolist(), data.n_documents("train"), data.eot) == (IDS, 0, "none")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_pair_of_files_becomes_both_sides(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("tokmill.derive.external_files._STEP_TOKENS", 3)
    monkeypatch.setattr(engine, "COMMIT_BYTES", 8)
    np.array([5, EOT, 6, 7, EOT], np.uint16).tofile(tmp_path / "val.bin")
    given = ["--from-format", "raw", "--from-dtype", "uint16", "--from-eot", "after", "--from-eot-id", str(EOT), "--format", name]
    arguments = ["convert", str(bare), "--val-input", str(tmp_path / "val.bin"), *given, "--to-eot", "after", "-q"]
    assert app.run([*arguments, "--out", str(tmp_path / "o")]) == 0
    assert tokmill.verify(tmp_path / "o").ok
    with tokmill.open(tmp_path / "o") as data:
        assert (data.train.tolist(), data.val.tolist()) == (IDS, [5, EOT, 6, 7, EOT])
        assert (data.n_documents("train"), data.n_documents("val")) == (3, 2)


def test_a_validation_file_goes_with_bare_files_alone(unnamed: Path, bare: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--val-input: for bare files only"):
        tokmill.convert(unnamed, tmp_path / "o", format="llmc", val_input=bare)


def test_advice_on_what_the_output_cannot_hold_names_the_options_of_convert(bare: Path, tmp_path: Path) -> None:
    np.array([70_000, 9], np.uint32).tofile(tmp_path / "wide.bin")
    said = refused(tmp_path / "wide.bin", tmp_path / "o", from_dtype="uint32", from_eot_id=9, to_dtype="uint16")
    assert "--to-dtype uint32, or leave --to-dtype out" in said
    said = refused(bare, tmp_path / "o", format="olmo", to_eot="before")
    assert "leave --to-eot out" in said


def test_a_directory_of_a_pair_of_bare_files_is_answered_with_their_names(bare: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for side in ("train", "val"):
        (old / f"{side}.bin").write_bytes(bare.read_bytes())
    for from_format in (None, "raw"):
        with pytest.raises(UsageError, match="its files are bare") as caught:
            tokmill.convert(old, tmp_path / "o", format="llmc", from_format=from_format)
        assert "allowed" in whole(caught.value)
    typed = shlex.split(str(caught.value.next_step).replace("--format ... --out ...", f"--format llmc --out {tmp_path / 'o'}"))
    assert app.run([*typed[1:], "-q"]) == 0
    assert [side.tokens for side in tokmill.inspect(tmp_path / "o").sides] == [len(IDS), len(IDS)]
    (old / ".tokmill").mkdir()
    with pytest.raises(UsageError, match="no complete tokmill output"):
        tokmill.convert(old, tmp_path / "p", format="llmc")
