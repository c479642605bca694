"""`batches(order="documents")`: whole documents, in another order each epoch, from a state of one number and a mapped list."""

from __future__ import annotations

import itertools
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import tokmill
from tokmill.core.errors import UsageError
from tokmill.dataset import document_ends, shuffled_documents

EOT = 9
DOCUMENTS = st.lists(st.lists(st.integers(0, 8), max_size=12), min_size=1, max_size=30)
QUICK = [HealthCheck.function_scoped_fixture]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokmill" / "documents"


def opened(path: Path, documents: list[list[int]], *, is_before: bool = False) -> tokmill.Dataset:
    """A bare file of documents, each with its mark; the last one without a mark where the text was cut."""
    marked = [[EOT, *document] if is_before else [*document, EOT] for document in documents]
    np.array([i for document in marked for i in document], "<u2").tofile(path)
    data = tokmill.open(path, dtype="uint16", eot_id=EOT)
    data.eot = "before" if is_before else "after"
    return data


def read(batches: Any, n: int | None = None) -> list[tuple[list[list[int]], list[list[int]]]]:
    return [(x.tolist(), y.tolist()) for x, y in itertools.islice(batches, n)]


def epoch(data: tokmill.Dataset, number: int, **options: Any) -> list[int]:
    """The ids of an epoch as windows of one id have them, and the id after the last."""
    batches = data.batches(batch=1, block=1, order="documents", **options)
    batches.skip(number * batches.n_windows)
    found = read(batches, batches.n_windows)
    return [found[0][0][0][0], *(y[0][0] for _, y in found)]


@settings(max_examples=60, suppress_health_check=QUICK, deadline=None)
@given(documents=DOCUMENTS, is_before=st.booleans(), seed=st.integers(0, 2**64 - 1), stretch=st.sampled_from([1, 2, 7, 1 << 16]))
def test_an_epoch_is_every_document_once_whole(
    tmp_path: Path, documents: list[list[int]], is_before: bool, seed: int, stretch: int
) -> None:
    data = opened(tmp_path / "ids.bin", documents, is_before=is_before)
    if len(data.train) < 2:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffled_documents, "_STRETCH", stretch)
        for number in (0, 1, 5):
            ids = epoch(data, number, seed=seed)
            cuts = [i for i, each in enumerate(ids) if each == EOT]
            edges = [*cuts, len(ids)] if is_before else [0, *(i + 1 for i in cuts)]
            found = [tuple(ids[a:b]) for a, b in itertools.pairwise(edges)]
            wanted = [(EOT, *each) if is_before else (*each, EOT) for each in documents]
            assert Counter(found) == Counter(wanted)
    os.unlink(tmp_path / "ids.bin")


@settings(max_examples=40, suppress_health_check=QUICK, deadline=None)
@given(
    documents=DOCUMENTS,
    block=st.integers(1, 15),
    batch=st.integers(1, 4),
    world_size=st.integers(1, 3),
    stops=st.lists(st.integers(0, 9), max_size=3),
)
def test_windows_ranks_and_states_are_those_of_one_sequence(
    tmp_path: Path, documents: list[list[int]], block: int, batch: int, world_size: int, stops: list[int]
) -> None:
    data = opened(tmp_path / "ids.bin", [*documents, [1] * block])
    sequence = [epoch(data, number, seed=3) for number in range(4)]
    n_windows = (len(data.train) - 1) // block
    windows = [ids[w * block : w * block + block + 1] for ids in sequence for w in range(n_windows)]

    def batches(rank: int) -> Any:
        return data.batches(batch=batch, block=block, order="documents", seed=3, rank=rank, world_size=world_size)

    state = batches(0).state()
    at = 0
    for stop in [*stops, 3]:
        ranks = [batches(rank) for rank in range(world_size)]
        for each in ranks:
            each.restore(json.loads(json.dumps(state)))
        for _ in range(stop):
            for each in ranks:
                x, y = next(each)
                for row in range(batch):
                    if at < len(windows):
                        assert [*x[row].tolist(), int(y[row, -1])] == windows[at]
                    at += 1
        state = ranks[-1].state()
    assert state["position"] == at
    os.unlink(tmp_path / "ids.bin")


def test_epochs_and_seeds_have_orders_of_their_own_and_their_windows_are_not_in_file_order(tmp_path: Path) -> None:
    data = opened(tmp_path / "ids.bin", [[i % 9] * (i % 5) for i in range(200)])
    orders = [epoch(data, number, seed=seed) for number, seed in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(each) for each in [*orders, data.train.tolist()]}) == 4
    assert [len(each) for each in orders] == [len(data.train)] * 3


def test_the_list_of_ends_is_made_once_and_kept(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(tmp_path / "ids.bin", [[1, 2], [3], []])
    assert data.document_ends("train").tolist() == [3, 5, 6]
    (kept,) = own_cache.iterdir()
    again = tokmill.open(tmp_path / "ids.bin", dtype="uint16", eot_id=EOT)
    with monkeypatch.context() as patch:
        patch.setattr(document_ends, "_keep", None)
        assert again.document_ends("train").tolist() == [3, 5, 6]
    # Another file is another list, and a list that cannot be this one is made again.
    other = opened(tmp_path / "other.bin", [[1], [2]])
    assert other.document_ends("train").tolist() == [2, 4]
    kept.write_bytes(b"")
    assert tokmill.open(tmp_path / "ids.bin", dtype="uint16", eot_id=EOT).document_ends("train").tolist() == [3, 5, 6]
    assert len(list(own_cache.iterdir())) == 2
    with pytest.raises(ValueError, match="read-only"):
        other.document_ends("train")[0] = 1


def test_where_nothing_can_be_kept_the_list_is_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data = opened(tmp_path / "ids.bin", [[1, 2], [3], []])
    assert data.document_ends("train").tolist() == [3, 5, 6]
    copy = pickle.loads(pickle.dumps(data.batches(batch=1, block=2, order="documents")))
    assert read(copy, 4) == read(data.batches(batch=1, block=2, order="documents"), 4)


def test_documents_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    np.arange(20, dtype="<u2").tofile(tmp_path / "ids.bin")
    data = tokmill.open(tmp_path / "ids.bin", dtype="uint16")
    with pytest.raises(UsageError, match="cannot be told apart"):
        data.batches(batch=1, block=2, order="documents")


def test_pickled_batches_carry_no_list_of_documents(tmp_path: Path) -> None:
    data = opened(tmp_path / "ids.bin", [[i % 9] * 3 for i in range(20_000)])
    batches = data.batches(batch=4, block=100, order="documents")
    read(batches, 3)
    pickled = pickle.dumps(batches)
    assert len(pickled) < 40_000
    assert read(pickle.loads(pickled), 5) == read(batches, 5)
