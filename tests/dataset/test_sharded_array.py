"""Several files as one array: everything it answers is what numpy answers for the joined array."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, strategies as st
from support.corpora import write_corpus
from support.oracle import EOT
from support.outputs import divide, rewrite_manifest, write_output

import tokmill
from tokmill.core.errors import DamageError, UsageError
from tokmill.core.records import FileEntry
from tokmill.dataset.sharded_array import ShardedIds, map_files, windows
from tokmill.dataset.token_files import TokenFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.records import EotPlacement

TEXTS = [f"Document {i}: {'words and words ' * (i % 7)}é 漢字\n" for i in range(40)]
LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def joined_and_sharded(lengths: Sequence[int], dtype: str = "uint16") -> tuple[Any, ShardedIds]:
    ids = np.arange(sum(lengths), dtype=dtype) * 7 % 65521
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    return ids, ShardedIds([part for part in parts if len(part)])


@given(lengths=LENGTHS, data=st.data())
def test_slices_ids_and_arrays_of_indices_are_numpys(lengths: list[int], data: st.DataObject) -> None:
    lengths = [*lengths, 1]
    ids, sharded = joined_and_sharded(lengths)
    index = data.draw(st.slices(len(ids)))
    assert sharded[index].tolist() == ids[index].tolist()
    place = data.draw(st.integers(-len(ids), len(ids) - 1))
    assert sharded[place] == ids[place]
    places = np.array(data.draw(st.lists(st.integers(-len(ids), len(ids) - 1), max_size=8)), np.int64).reshape(-1, 1)
    assert np.array_equal(sharded[places], ids[places])
    assert sharded[places].shape == places.shape
    assert (len(sharded), sharded.shape, sharded.nbytes, sharded.dtype) == (len(ids), ids.shape, ids.nbytes, ids.dtype)
    assert sharded.tolist() == list(sharded) == ids.tolist()


@given(lengths=LENGTHS, n_ids=st.integers(1, 12), data=st.data())
def test_windows_are_slices_of_the_joined_array(lengths: list[int], n_ids: int, data: st.DataObject) -> None:
    lengths = [*lengths, n_ids]
    ids, sharded = joined_and_sharded(lengths)
    starts = np.array(data.draw(st.lists(st.integers(0, len(ids) - n_ids), max_size=8)), np.int64)
    expected = [ids[start : start + n_ids].tolist() for start in starts]
    assert windows(sharded, starts, n_ids).tolist() == expected
    assert windows(ids, starts, n_ids).tolist() == expected
    for beyond in (-1, len(ids) - n_ids + 1):
        with pytest.raises(IndexError):
            windows(sharded, np.array([beyond]), n_ids)
    with pytest.raises(IndexError):
        windows(ids, np.array([len(ids) - n_ids + 1]), n_ids)


def test_comparison_and_arithmetic_are_numpys_never_those_of_objects() -> None:
    ids, sharded = joined_and_sharded([3, 4, 2])
    for operation in (operator.eq, operator.ne, operator.add, operator.lt):
        assert np.array_equal(operation(sharded, 7), operation(ids, 7))
    assert np.array_equal(sharded, ids)
    assert np.asarray(sharded, np.int64).dtype == np.int64
    with pytest.raises(ValueError, match="copy"):
        np.array(sharded, copy=False)


@pytest.mark.parametrize("index", [9, -10, np.array([0, 9])])
def test_an_index_beyond_the_ends_is_refused(index: Any) -> None:
    with pytest.raises(IndexError, match="9 ids"):
        joined_and_sharded([3, 4, 2])[1][index]
    with pytest.raises(IndexError, match="integer"):
        joined_and_sharded([3, 4, 2])[1][np.array([0.5])]


@pytest.mark.parametrize("eot", ["after", "before"])
@pytest.mark.parametrize("lengths", [[], [1], [100, 0, 1, 333], [50] * 9])
def test_documents_and_ids_of_several_files_are_those_of_one(tmp_path: Path, eot: EotPlacement, lengths: list[int]) -> None:
    write_output(tmp_path / "out", write_corpus(tmp_path / "c.txt", TEXTS), eot=eot)
    with tokmill.open(tmp_path / "out") as data:
        whole, prints = data.train.tolist(), [data.fingerprint(side) for side in ("train", "val")]
        documents = [ids.tolist() for ids in data.documents("train")]
    divide(tmp_path / "out", lengths)
    with tokmill.open(tmp_path / "out") as data:
        assert data.train.tolist() == whole
        assert [ids.tolist() for ids in data.documents("train")] == documents
        assert [ids.tolist() for ids in data.documents("train", 5)] == documents[5:]
        assert data.document("train", 7).tolist() == documents[7]
        assert data.decode(data.document("train", 7)) in TEXTS
        assert [data.fingerprint(side) for side in ("train", "val")] == prints


def test_slices_within_a_file_are_read_only_views_of_it(tmp_path: Path) -> None:
    files = []
    for number in range(2):
        np.arange(10, dtype=np.uint16).tofile(tmp_path / f"{number}.bin")
        files.append(TokenFile(path=tmp_path / f"{number}.bin", header_bytes=0, n_tokens=10))
    ids = map_files(files, np.dtype("<u2"))
    assert isinstance(ids, ShardedIds)
    for part in (ids[2:7], ids[10:20]):
        assert isinstance(part, np.memmap)
        assert not part.flags.writeable
        assert not part.flags.owndata


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize(
    ("format_name", "suffix"), [("raw", ".bin"), ("llmc", ".bin"), ("megatron", ".bin"), ("datatrove", ".ds"), ("olmo", ".npy")]
)
def test_the_ids_of_every_format_are_found_where_they_lie(tmp_path: Path, format_name: str, suffix: str, dtype: Any) -> None:
    write_output(tmp_path / "out", write_corpus(tmp_path / "c.txt", TEXTS), dtype=dtype)
    with tokmill.open(tmp_path / "out") as data:
        expected = {side: data.side(side).tolist() for side in ("train", "val")}
    divide(tmp_path / "out", [30, 40], suffix, format_name, head=format_name == "llmc")
    manifest = tokmill.open(tmp_path / "out").manifest
    assert manifest is not None
    # An index beside the ids is not read as ids, even when it is said to belong to a side.
    (tmp_path / "out" / "part.index").write_bytes(b"12345678")
    rewrite_manifest(
        tmp_path / "out", manifest, files={**manifest.files, "part.index": FileEntry(size_bytes=8, side="train", tokens=0)}
    )
    with tokmill.open(tmp_path / "out") as data:
        assert {side: data.side(side).tolist() for side in expected} == expected
        assert data.train.dtype == np.dtype(dtype)


def test_an_unknown_format_is_refused_by_name(tmp_path: Path) -> None:
    write_output(tmp_path / "out", write_corpus(tmp_path / "c.txt", TEXTS))
    divide(tmp_path / "out", [], format="arrays")
    with pytest.raises(UsageError, match="'arrays'"):
        tokmill.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("at", "value", "says"), [(0, 1, "of no known format"), (2, 5, "header says 5"), (1, 7, "of no known format")]
)
def test_a_header_that_says_something_else_is_damage(tmp_path: Path, at: int, value: int, says: str) -> None:
    write_output(tmp_path / "out", write_corpus(tmp_path / "c.txt", TEXTS))
    divide(tmp_path / "out", [30], format="llmc", head=True)
    header = np.memmap(tmp_path / "out" / "part_98.bin", "<i4", "r+", shape=(256,))
    header[at] = value
    header.flush()
    with pytest.raises(DamageError, match=says):
        tokmill.open(tmp_path / "out")


def test_a_manifest_that_counts_other_ids_than_the_files_have_is_damage(tmp_path: Path) -> None:
    manifest = write_output(tmp_path / "out", write_corpus(tmp_path / "c.txt", TEXTS))
    entry = msgspec.structs.replace(manifest.files["train.bin"], tokens=manifest.files["train.bin"].tokens - 1)
    rewrite_manifest(tmp_path / "out", manifest, files={**manifest.files, "train.bin": entry})
    with pytest.raises(DamageError, match="does not hold the ids"):
        tokmill.open(tmp_path / "out")


def test_a_bare_file_with_a_header_of_llmc_needs_no_dtype(tmp_path: Path) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = [20240520, 1, 4]
    path = tmp_path / "fineweb_train_000001.bin"
    path.write_bytes(header.tobytes() + np.array([EOT, 1, 2, 3], "<u2").tobytes())
    with tokmill.open(path, eot_id=EOT) as data:
        assert data.train.tolist() == [EOT, 1, 2, 3]
        assert data.eot == "before"
        assert [ids.tolist() for ids in data.documents("train")] == [[1, 2, 3]]
    with path.open("ab") as file:
        file.write(b"\1\0")
    with pytest.raises(DamageError, match=r"header says 4"):
        tokmill.open(path)
