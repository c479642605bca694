"""What training code relies on when it opens token files."""

from __future__ import annotations

import errno
import os
import pickle
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from support.corpora import write_corpus
from support.oracle import EOT, gpt2
from support.outputs import write_output

import tokmill
from tokmill.core.errors import DamageError, StorageError, UsageError
from tokmill.dataset import dataset as dataset_module
from tokmill.dataset.id_reader import IdReader
from tokmill.dataset.sharded_array import map_files

if TYPE_CHECKING:
    from pathlib import Path

    from tokmill.core.records import EotPlacement

TEXTS = [f"Document {i}: {'words and words ' * (i % 7)}é 漢字\n" for i in range(40)]


@pytest.fixture(params=["after", "before"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_output(tmp_path / "out", write_corpus(tmp_path / "corpus.txt", TEXTS), eot=request.param)
    return tmp_path / "out"


def test_every_document_comes_back_on_its_side_in_order(made: Path) -> None:
    with tokmill.open(made) as data:
        found = [data.decode(ids) for side in ("train", "val") for ids in data.documents(side)]
        n_documents = [data.n_documents(side) for side in ("train", "val")]
        assert [len(list(data.documents(side))) for side in ("train", "val")] == n_documents
    assert sorted(found) == sorted(TEXTS)
    assert all(n_documents)
    assert [text for text in TEXTS if text in set(found[: n_documents[0]])] == found[: n_documents[0]]


def test_documents_are_read_only_views_of_the_file_without_the_eot_id(made: Path) -> None:
    with tokmill.open(made) as data:
        ids = data.document("train", 3)
        assert np.shares_memory(ids, data.train)
        assert EOT not in ids
        with pytest.raises(ValueError, match="read-only"):
            ids[0] = 1


def test_any_start_gives_the_rest_of_the_documents(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "BLOCK_TOKENS", 17)
    with tokmill.open(made) as data:
        every = [ids.tolist() for ids in data.documents("train")]
        for start in [*range(len(every) + 2), 5]:
            assert [ids.tolist() for ids in data.documents("train", start)] == every[start:]
        assert [data.document("train", i).tolist() for i in reversed(range(len(every)))] == every[::-1]


@settings(max_examples=200, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=12),
    eot=st.sampled_from(["after", "before"]),
    block=st.integers(1, 7),
    is_cut=st.booleans(),
)
def test_documents_are_what_lies_between_marks_whatever_the_block_size(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], eot: EotPlacement, block: int, is_cut: bool
) -> None:
    mark = 10
    flat = [i for d in documents for i in ([mark, *d] if eot == "before" else [*d, mark])]
    expected = documents
    if is_cut and eot == "after" and flat:
        flat = flat[:-1]
        expected = documents if documents[-1] else documents[:-1]
    path = tmp_path_factory.mktemp("bare") / "x.bin"
    np.array(flat, np.uint16).tofile(path)
    before, dataset_module.BLOCK_TOKENS = dataset_module.BLOCK_TOKENS, block
    try:
        data = tokmill.open(path, dtype="uint16", eot_id=mark)
        data.eot = eot
        assert [ids.tolist() for ids in data.documents("train")] == expected
        assert data.n_documents("train") == len(expected)
        for start in range(len(expected) + 1):
            assert [ids.tolist() for ids in data.documents("train", start)] == expected[start:]
    finally:
        dataset_module.BLOCK_TOKENS = before


def test_a_bare_file_beside_its_manifest_needs_no_options(made: Path) -> None:
    with tokmill.open(made) as whole, tokmill.open(made / "val.bin") as bare:
        assert np.array_equal(whole.val, bare.train)
        assert len(bare.val) == 0
        assert [bare.decode(ids) for ids in bare.documents("train")] == [whole.decode(ids) for ids in whole.documents("val")]


def test_a_bare_file_without_dtype_is_refused_and_the_message_names_both(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\1\0\2\0")
    with pytest.raises(UsageError) as caught:
        tokmill.open(tmp_path / "x.bin")
    assert "uint16" in str(caught.value)
    assert "uint32" in str(caught.value)
    (tmp_path / "x.bin").write_bytes(b"\1\0\2")
    with pytest.raises(DamageError, match="whole number"):
        tokmill.open(tmp_path / "x.bin", dtype="uint16")


def test_empty_files_open_as_empty_arrays(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    with tokmill.open(tmp_path / "x.bin", dtype="uint16", eot_id=EOT) as data:
        assert len(data.train) == len(data.val) == 0
        assert list(data.documents("train")) == []
        assert data.n_documents("train") == 0


def test_an_incomplete_directory_is_refused_with_the_way_to_complete_it(made: Path) -> None:
    (made / "manifest.json").unlink()
    with pytest.raises(UsageError, match="give the directory that was --out"):
        tokmill.open(made)


def test_a_file_shorter_than_the_manifest_says_is_damage(made: Path) -> None:
    with (made / "train.bin").open("r+b") as file:
        file.truncate((made / "train.bin").stat().st_size - 2)
    with pytest.raises(DamageError, match="as long as it was written"):
        tokmill.open(made)


def test_documents_of_a_directory_without_marks_are_refused_but_its_tokens_are_there(tmp_path: Path) -> None:
    write_output(tmp_path / "out", write_corpus(tmp_path / "c.txt", TEXTS), eot="none", val_fraction=0.0)
    with tokmill.open(tmp_path / "out") as data:
        assert data.train.tolist() == [i for text in TEXTS for i in gpt2().encode_ordinary(text)]
        assert data.n_documents("train") == len(TEXTS)
        with pytest.raises(UsageError, match=r"cannot be told apart(?s:.)*--eot none"):
            data.documents("train")


def test_a_dataset_goes_to_another_process_by_its_path_not_by_its_bytes(made: Path) -> None:
    with tokmill.open(made) as data:
        copy = pickle.loads(pickle.dumps(data))
        assert isinstance(copy.train, np.memmap)
        assert np.array_equal(copy.train, data.train)
        assert copy.document("val", 0).tolist() == data.document("val", 0).tolist()


def test_a_document_that_is_not_there_is_refused_with_the_range(made: Path) -> None:
    with tokmill.open(made) as data, pytest.raises(UsageError, match=f"0 to {data.n_documents('val') - 1}"):
        data.document("val", 10**6)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_output(tmp_path / "out", write_corpus(tmp_path / "corpus.txt", TEXTS[:3]), val_fraction=0.0)
    return tmp_path / "out"


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENODEV, errno.EMFILE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["", "train.bin"])
def test_what_the_system_does_not_map_is_an_error_with_the_file(
    directory: Path, monkeypatch: pytest.MonkeyPatch, code: int, name: str
) -> None:
    kept = pickle.dumps(tokmill.open(directory / name))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(np, "memmap", refuse)
    for call in (lambda: tokmill.open(directory / name), lambda: pickle.loads(kept), lambda: tokmill.inspect(directory / name)):
        with pytest.raises(StorageError, match=re.escape(os.strerror(code))) as caught:
            call()
        assert caught.value.where == str(directory / "train.bin")
        assert caught.value.next_step


def test_a_file_that_is_cut_while_it_is_opened_is_an_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tokmill.open(directory)._files["train"]
    (directory / "train.bin").write_bytes(b"")
    with pytest.raises(DamageError, match="cannot be mapped") as caught:
        map_files(files, np.dtype("<u2"))
    assert caught.value.where == str(directory / "train.bin")


def test_files_that_cannot_be_opened_or_read_are_errors_of_tokmill(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = pickle.dumps(tokmill.open(directory / "train.bin"))
    with tokmill.open(directory) as data:
        reader = IdReader.of_files("train", data._files["train"], "uint16")
    (directory / "train.bin").unlink()
    for call in (
        lambda: pickle.loads(kept),
        lambda: reader.read(0, 1),
        lambda: tokmill.open(tmp_path / ("n" * 300)),
        lambda: tokmill.report(tmp_path / ("n" * 300)),
        lambda: tokmill.open("/proc/self/mem", dtype="uint16"),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.where
