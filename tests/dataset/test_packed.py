"""Batches of packed sequences: what documents alone would give, for any rank, epoch and place to go on from."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import some_documents
from support.oracle import EOT
from support.runs import tokenize_documents

import tokmill
from tokmill.core.errors import ChangedError, UsageError
from tokmill.core.manifest import load_manifest

N = 64
IGNORED = -100


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    tokenize_documents(tmp_path / "a", some_documents(120, 60, 1))
    tokmill.pack(tmp_path / "a", tmp_path / "p", sequence=N, seed=1, format="llmc", shard_tokens=10 * N)
    return tmp_path / "p"


def test_a_batch_is_documents_with_their_labels_and_places(packed: Path) -> None:
    with tokmill.open(packed) as data:
        pieces = [ids.tolist() for ids in data.documents("train")]
        batch = next(data.packed(batch=data.manifest.packed["train"].sequences, order="sequential"))  # type: ignore[union-attr, index]
        assert batch.input_ids.ravel().tolist() == np.asarray(data.train).tolist()
        pad_id = data.packing.pad_id  # type: ignore[union-attr]
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == batch.loss_mask.shape
    arrays = (batch.input_ids, batch.labels, batch.position_ids, batch.cu_seqlens, batch.loss_mask)
    assert [array.dtype.name for array in arrays] == ["int64", "int64", "int64", "int32", "bool"]
    edges, ids = batch.cu_seqlens.tolist(), batch.input_ids.ravel()
    assert (edges[0], edges[-1]) == (0, ids.size)
    assert batch.max_seqlen == max(np.diff(edges))
    found = []
    for a, b in itertools.pairwise(edges):
        assert batch.position_ids.ravel()[a:b].tolist() == list(range(b - a))
        labels = batch.labels.ravel()[a:b].tolist()
        if ids[a] == pad_id:
            assert labels == [IGNORED] * (b - a)
        else:
            assert labels == [*ids[a + 1 : b].tolist(), IGNORED]
            found.append([i for i in ids[a:b].tolist() if i != EOT])
    assert found == pieces
    assert (batch.loss_mask == (batch.labels != IGNORED)).all()


def rows(batches: Any, n: int | None = None) -> list[bytes]:
    taken = [next(batches) for _ in range(n)] if n else list(batches)
    return [row.tobytes() for batch in taken for row in batch.input_ids]


def test_an_epoch_has_every_sequence_once_in_another_order_each_time(packed: Path) -> None:
    with tokmill.open(packed) as data:
        n = load_manifest(packed).packed["train"].sequences  # type: ignore[index]
        all_rows = Counter(row.tobytes() for row in np.asarray(data.train).astype(np.int64).reshape(-1, N))
        twice = rows(data.packed(batch=3, epochs=2, seed=4))
        assert Counter(twice[:n]) == Counter(twice[n:]) == all_rows
        assert twice[:n] != twice[n:]
        assert rows(data.packed(batch=3, epochs=2, seed=5)) != twice
        parts = [rows(data.packed(batch=2, epochs=1, seed=4, rank=rank, world_size=3)) for rank in range(3)]
        assert Counter(row for part in parts for row in part) == all_rows


def test_a_state_goes_on_with_other_ranks_and_is_not_that_of_windows(packed: Path) -> None:
    with tokmill.open(packed) as data:
        batches = data.packed(batch=4, seed=2)
        expected = rows(data.packed(batch=4, seed=2), 20)
        assert rows(batches, 5) == expected[:20]
        state = json.loads(json.dumps(batches.state()))
        halves = [data.packed(batch=2, seed=2, rank=rank, world_size=2) for rank in range(2)]
        for half in halves:
            half.restore(state)
        assert [row for _ in range(3) for half in halves for row in rows(half, 1)] == expected[20:32]
        with pytest.raises(ChangedError):
            data.batches(batch=4, block=N, seed=2).restore(state)


def test_what_cannot_be_is_refused_by_name(packed: Path) -> None:
    with tokmill.open(packed.with_name("a")) as data, pytest.raises(UsageError, match="not packed"):
        data.packed(batch=1)
    with tokmill.open(packed) as data:
        with pytest.raises(UsageError, match="random"):
            data.packed(batch=1, order="random")
        with pytest.raises(UsageError, match="batch"):
            data.packed(batch=0)
        with pytest.raises(UsageError, match="int32") as caught:
            data.packed(batch=2**31 // N)
        assert caught.value.allowed == f"1 to {2**31 // N - 1:,} sequences of {N}"
        data.packed(batch=2**31 // N - 1)


def test_a_side_without_documents_is_refused_as_that(tmp_path: Path) -> None:
    tokenize_documents(tmp_path / "a", some_documents(20, 60, 1), val_fraction=0)
    tokmill.pack(tmp_path / "a", tmp_path / "p", sequence=N, seed=1)
    with tokmill.open(tmp_path / "p") as data, pytest.raises(UsageError, match="the side val has no sequences"):
        data.packed("val", batch=2)


def test_one_sequence_is_enough(tmp_path: Path) -> None:
    tokenize_documents(tmp_path / "a", [b"one"], val_fraction=0)
    tokmill.pack(tmp_path / "a", tmp_path / "p", sequence=8, seed=1)
    with tokmill.open(tmp_path / "p") as data:
        batch = next(data.packed(batch=1))
    assert batch.cu_seqlens.tolist() == [0, 2, 8]
    assert batch.loss_mask.tolist() == [[True] + [False] * 7]
