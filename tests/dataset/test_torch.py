"""The adapter for torch, with its own DataLoader and torchdata's: the same batches in the same order, with workers too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokmill
from tokmill.core.errors import ChangedError, UsageError

pytestmark = [
    pytest.mark.torch,
    # Of torch itself, in its workers and when it pins memory without a GPU.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

OPTIONS: dict[str, Any] = dict(batch=3, block=7, seed=5, rank=1, world_size=2)


@pytest.fixture
def data(tmp_path: Path) -> tokmill.Dataset:
    np.arange(1000, dtype="<u2").tofile(tmp_path / "train.bin")
    return tokmill.open(tmp_path / "train.bin", dtype="uint16")


def adapter(data: tokmill.Dataset, **changes: Any) -> Any:
    from tokmill.torch import TorchBatches

    return TorchBatches(data, **{**OPTIONS, **changes})


def loader(dataset: Any, n_workers: int = 0, **options: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=None, num_workers=n_workers, **options)


def taken(batches: Any, n: int | None = None) -> list[list[list[int]]]:
    """x and y of the next n batches, or of all."""
    found = []
    for x, y in batches:
        found.append([x.tolist(), y.tolist()])
        if len(found) == n:
            break
    return found


@pytest.mark.parametrize("n_workers", [0, 1, 3])
@pytest.mark.parametrize("epochs", [1, 3])
def test_workers_or_not_the_batches_are_those_of_numpy_in_their_order(data: tokmill.Dataset, n_workers: int, epochs: int) -> None:
    expected = taken(data.batches(**OPTIONS, epochs=epochs))
    found = loader(adapter(data, epochs=epochs), n_workers)
    assert taken(found) == expected
    # Each iteration begins at the same place.
    assert taken(found) == expected


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_may_be_started_in_any_way(data: tokmill.Dataset, context: str) -> None:
    found = loader(adapter(data), 2, multiprocessing_context=context)
    assert taken(found, 9) == taken(data.batches(**OPTIONS), 9)


def test_batches_are_tensors_of_int64(data: tokmill.Dataset) -> None:
    import torch

    x, y = next(iter(loader(adapter(data))))
    assert x.dtype == y.dtype == torch.int64
    assert x.shape == y.shape == (3, 7)
    assert x.is_contiguous()
    assert y.is_contiguous()


def test_a_state_without_workers_goes_on_behind_the_batch_that_was_taken(data: tokmill.Dataset) -> None:
    expected = taken(data.batches(**OPTIONS), 30)
    dataset = adapter(data)
    assert taken(dataset, 11) == expected[:11]
    state = json.loads(json.dumps(dataset.state_dict()))
    again = adapter(data)
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert taken(loader(again, 2), 19) == expected[11:]
    numpy_batches = data.batches(**OPTIONS)
    numpy_batches.restore(state)
    assert taken(numpy_batches, 19) == expected[11:]


def test_with_workers_the_loop_says_how_far_it_is_and_a_guess_is_refused(data: tokmill.Dataset) -> None:
    expected = taken(data.batches(**OPTIONS), 30)
    dataset = adapter(data)
    assert taken(loader(dataset, 2), 11) == expected[:11]
    with pytest.raises(UsageError, match=r"ahead of the loop(?s:.)*state_dict\(n_taken\)"):
        dataset.state_dict()
    state = dataset.state_dict(11)
    for n_workers in (0, 1, 3):
        again = adapter(data)
        again.load_state_dict(state)
        assert taken(loader(again, n_workers), 8) == expected[11:19]
        assert again.state_dict(8) == adapter(data).state_dict(19)


@pytest.mark.parametrize("n_workers", [0, 1, 3])
@pytest.mark.parametrize("n_before", [0, 1, 7])
@pytest.mark.parametrize("epochs", [None, 1])
def test_torchdatas_loader_asks_the_workers_itself(
    data: tokmill.Dataset, n_workers: int, n_before: int, epochs: int | None
) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    expected = taken(data.batches(**OPTIONS, epochs=epochs), 24)
    first = stateful(adapter(data, epochs=epochs), batch_size=None, num_workers=n_workers)
    batches = iter(first)
    assert [[x.tolist(), y.tolist()] for x, y in (next(batches) for _ in range(n_before))] == expected[:n_before]
    state = first.state_dict()
    second = stateful(adapter(data, epochs=epochs), batch_size=None, num_workers=n_workers)
    second.load_state_dict(state)
    assert taken(second, 24 - n_before) == expected[n_before:]


def test_a_workers_state_is_refused_by_another_number_of_workers(data: tokmill.Dataset) -> None:
    dataset = adapter(data)
    dataset.load_state_dict({**dataset.state_dict(), "worker": [0, 2]})
    with pytest.raises(UsageError, match="worker 0 of 2, and this is worker 0 of 3"):
        taken(loader(dataset, 3), 1)
    with pytest.raises(UsageError, match="worker 0 of 2"):
        taken(dataset, 1)


def test_a_state_of_other_data_or_options_is_refused(data: tokmill.Dataset) -> None:
    dataset = adapter(data)
    with pytest.raises(ChangedError, match="seed"):
        dataset.load_state_dict(adapter(data, seed=6).state_dict())
    with pytest.raises(UsageError, match="no state"):
        dataset.load_state_dict({})
    with pytest.raises(UsageError, match="rank=2"):
        adapter(data, rank=2)
