"""What a training loop relies on: each window once, ranks that share nothing, and states that go on exactly where they were."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from support.corpora import write_corpus
from support.outputs import divide, write_output

import tokmill
from tokmill.core.errors import ChangedError, UsageError
from tokmill.dataset.batches import Batches

ANY_ORDER: list[Any] = ["shuffled", "random", "sequential"]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tokmill.Dataset:
    """1,000 ids, each its own place: a window tells where it was cut."""
    path = tmp_path_factory.mktemp("ids") / "train.bin"
    np.arange(1000, dtype="<u2").tofile(path)
    return tokmill.open(path, dtype="uint16")


def cut(ids: list[int]) -> tokmill.Dataset:
    """A data set without files that has these ids, to be quick."""
    data = tokmill.Dataset({}, "uint16", eot_id=None, eot="none", tokenizer=None, manifest=None)
    data._sides["train"] = np.array(ids, np.uint16)
    return data


def starts_of(batches: Batches, n_batches: int | None = None) -> list[list[int]]:
    """First ids of the next batches, of all that are left for None."""
    found = []
    for x, _ in batches:
        found.append(x[:, 0].tolist())
        if len(found) == n_batches:
            break
    return found


@pytest.mark.parametrize("order", ANY_ORDER)
def test_windows_are_slices_of_the_file_as_numpy_maps_it(counted: tokmill.Dataset, order: Any) -> None:
    plain = np.memmap(counted._files["train"][0].path, np.uint16, "r")
    for _, (x, y) in zip(range(50), counted.batches(batch=3, block=17, order=order), strict=False):
        assert x.dtype == y.dtype == np.int64
        assert x.shape == y.shape == (3, 17)
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous
        for row in range(3):
            start = x[row, 0]
            assert np.array_equal(x[row], plain[start : start + 17])
            assert np.array_equal(y[row], plain[start + 1 : start + 18])


@given(
    n_tokens=st.integers(2, 120),
    block=st.integers(1, 20),
    batch=st.integers(1, 6),
    world_size=st.integers(1, 5),
    epochs=st.integers(1, 3),
    order=st.sampled_from(["shuffled", "sequential"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_ranks_divide_every_epoch_exactly_and_nothing_is_lost_but_the_tail(
    n_tokens: int, block: int, batch: int, world_size: int, epochs: int, order: Any, seed: int
) -> None:
    block = min(block, n_tokens - 1)
    data = cut(list(range(n_tokens)))
    ranks = [
        data.batches(batch=batch, block=block, order=order, epochs=epochs, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    found = [starts_of(batches) for batches in ranks]
    taken = Counter(start for batches in found for rows in batches for start in rows)
    n_windows = (n_tokens - 1) // block
    assert taken == Counter(dict.fromkeys(range(0, n_windows * block, block), epochs))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert all(len(rows) == batch for batches in found for rows in batches[:-1])
    assert all(rows for batches in found for rows in batches)
    assert len({json.dumps(batches.state()) for batches in ranks}) == 1


@settings(max_examples=40)
@given(
    steps=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 5)), max_size=8),
    order=st.sampled_from(ANY_ORDER),
    seed=st.integers(0, 2**64 - 1),
)
def test_left_and_taken_up_with_other_ranks_and_batches_the_windows_are_those_of_one_long_run(
    counted: tokmill.Dataset, steps: list[tuple[int, int, int]], order: Any, seed: int
) -> None:
    state: dict[str, Any] | None = None
    found: list[int] = []
    for batch, world_size, n_batches in steps:
        ranks = [
            counted.batches(batch=batch, block=40, order=order, seed=seed, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for batches in ranks if state else ():
            batches.restore(json.loads(json.dumps(state)))
        for _ in range(n_batches):
            found += [start for batches in ranks for start in next(batches)[0][:, 0].tolist()]
        state = ranks[-1].state()
    plain = counted.batches(batch=1, block=40, order=order, seed=seed)
    assert found == [next(plain)[0][0, 0] for _ in found]


@settings(max_examples=40)
@given(stops=st.lists(st.integers(0, 20), max_size=4), batch=st.integers(1, 7), epochs=st.sampled_from([None, 1, 5]))
def test_any_interruption_gives_the_same_batches(counted: tokmill.Dataset, stops: list[int], batch: int, epochs: Any) -> None:
    def fresh() -> Batches:
        return counted.batches(batch=batch, block=30, epochs=epochs, seed=9, rank=1, world_size=2)

    expected = starts_of(fresh(), 90)
    found: list[list[int]] = []
    batches = fresh()
    for stop in stops:
        found += [x[:, 0].tolist() for _, (x, _) in zip(range(stop), batches, strict=False)]
        state = batches.state()
        batches = fresh()
        batches.restore(state)
    assert (found + starts_of(batches, 90))[: len(expected)] == expected


def test_batches_that_were_used_restore_like_new_ones(counted: tokmill.Dataset) -> None:
    other = counted.batches(batch=5, block=7)
    starts_of(other, 1)
    used, new = counted.batches(batch=2, block=7), counted.batches(batch=2, block=7)
    starts_of(used, 4)
    for batches in (used, new):
        batches.restore(other.state())
    assert starts_of(used, 5) == starts_of(new, 5)


@settings(max_examples=40)
@given(n=st.integers(0, 150), batch=st.integers(1, 5), epochs=st.sampled_from([None, 2]))
def test_skipping_is_taking_without_reading(counted: tokmill.Dataset, n: int, batch: int, epochs: Any) -> None:
    taking, skipping = (counted.batches(batch=batch, block=9, epochs=epochs, world_size=3, rank=2) for _ in range(2))
    for _ in zip(range(n), taking, strict=False):
        pass
    skipping.skip(n)
    assert starts_of(skipping, 3) == starts_of(taking, 3)
    assert taking.state() == skipping.state()


def test_endless_batches_are_full_and_go_over_the_end_of_an_epoch(counted: tokmill.Dataset) -> None:
    batches = counted.batches(batch=4, block=100)
    assert batches.n_windows == 9
    rows = [start for starts in starts_of(batches, 9) for start in starts]
    epochs = [rows[i : i + 9] for i in range(0, 36, 9)]
    assert all(sorted(epoch) == list(range(0, 900, 100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert batches.position == 36


@pytest.mark.parametrize("order", ANY_ORDER)
@pytest.mark.parametrize("lengths", [[1], [40, 0, 3, 70, 5]])
def test_several_files_give_the_batches_of_one(tmp_path: Path, order: Any, lengths: list[int]) -> None:
    texts = [f"Document {i}: {'words and words ' * (i % 7)}\n" for i in range(40)]
    write_output(tmp_path / "out", write_corpus(tmp_path / "c.txt", texts))
    with tokmill.open(tmp_path / "out") as data:
        batches = data.batches(batch=5, block=11, order=order)
        state = batches.state()
        expected = [next(batches) for _ in range(30)]
    divide(tmp_path / "out", lengths)
    with tokmill.open(tmp_path / "out") as data:
        batches = data.batches(batch=5, block=11, order=order)
        batches.restore(state)
        found = [next(batches) for _ in range(30)]
    assert np.array_equal(found, expected)


def test_offsets_beyond_8_gib_are_read_where_they_are(tmp_path: Path) -> None:
    # A sparse file: 2**32 ids and a few, of which only the last are written.
    n_tokens = 2**32 + 5
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(2 * n_tokens)
        file.seek(2 * (n_tokens - 5))
        file.write(np.arange(1, 6, dtype="<u2").tobytes())
    with tokmill.open(tmp_path / "big.bin", dtype="uint16") as data:
        batches = data.batches(batch=2, block=2, order="sequential", epochs=1)
        batches.skip(batches.n_windows // 2 - 1)
        (x, y), *rest = batches
        assert (x.tolist(), y.tolist(), rest) == ([[1, 2], [3, 4]], [[2, 3], [4, 5]], [])


# ---- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(block=1000), r"block \+ 1 = 1,001 ids(?s:.)*1,000 tokens(?s:.)*block=1000(?s:.)*1 to 999"),
        (dict(block=0), "block=0"),
        (dict(batch=0), "batch=0"),
        (dict(batch=2.0), "batch=2.0"),
        (dict(rank=2, world_size=2), r"rank=2(?s:.)*0 to 1"),
        (dict(rank=-1), r"rank=-1(?s:.)*0 to 0"),
        (dict(world_size=0), "world_size=0"),
        (dict(seed=-1), "seed=-1"),
        (dict(seed=2**64), "seed"),
        (dict(epochs=0), "epochs=0"),
        (dict(epochs=1, order="random"), "random windows have no epochs"),
        (dict(order="shuffle"), "shuffled, documents, random, sequential"),
        (dict(side="test"), "train or val"),
        (dict(side="val"), "no block"),
    ],
)
def test_what_is_out_of_range_is_refused_with_its_range(counted: tokmill.Dataset, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        counted.batches(**{"batch": 2, "block": 10, **options})
    assert caught.value.allowed
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("change", "names"),
    [(dict(seed=1), "seed"), (dict(block=11), "block"), (dict(order="random"), "order"), (dict(block=11, seed=1), "seed, block")],
)
def test_a_state_of_other_batches_is_refused_by_name(counted: tokmill.Dataset, change: dict[str, Any], names: str) -> None:
    state = counted.batches(batch=2, block=10).state()
    batches = counted.batches(**{"batch": 2, "block": 10, **change})
    with pytest.raises(ChangedError, match=f"other batches(?s:.)*{names}"):
        batches.restore(state)
    assert batches.position == 0


@pytest.mark.parametrize("at", [0, 500, 999])
def test_a_state_of_other_ids_is_refused(at: int) -> None:
    ids = list(range(1000))
    state = cut(ids).batches(batch=2, block=10).state()
    cut(ids).batches(batch=2, block=10).restore(state)
    for other in ([*ids[:at], 7777, *ids[at + 1 :]], ids[:-1], [*ids, 1]):
        with pytest.raises(ChangedError, match=r"other data(?s:.)*fingerprint"):
            cut(other).batches(batch=2, block=10).restore(state)


@pytest.mark.parametrize(
    "change",
    [{"position": -1}, {"position": "3"}, {"position": 1.5}, {"order": "other"}, {"more": 1}, {"version": "1"}, {"version": None}],
)
def test_what_is_no_state_is_refused(counted: tokmill.Dataset, change: dict[str, Any]) -> None:
    batches = counted.batches(batch=2, block=10)
    with pytest.raises(UsageError, match=r"no state of batches(?s:.)*start over"):
        batches.restore(batches.state() | change)
    no_states: list[Any] = [None, {}, [], "state"]
    for other in no_states:
        with pytest.raises(UsageError, match="no state"):
            batches.restore(other)


def test_a_state_of_a_newer_version_is_refused_with_the_way_to_get_it(counted: tokmill.Dataset) -> None:
    batches = counted.batches(batch=2, block=10)
    with pytest.raises(UsageError, match=r"newer(?s:.)*pip install --upgrade"):
        batches.restore({"version": 2, "something": "else"})


def test_a_closed_data_set_gives_no_more_batches(counted: tokmill.Dataset) -> None:
    data = pickle.loads(pickle.dumps(counted))
    batches = data.batches(batch=2, block=10)
    x, _ = next(batches)
    data.close()
    with pytest.raises(UsageError, match="closed"):
        next(batches)
    with pytest.raises(UsageError, match="closed"):
        data.batches(batch=2, block=10)
    assert x.sum() > 0


# ---- threads and processes ----------------------------------------------------------------------------------------------


def test_threads_that_share_batches_get_each_of_them_once(counted: tokmill.Dataset) -> None:
    shared = counted.batches(batch=3, block=7, epochs=20, seed=5)
    with ThreadPoolExecutor(8) as pool:
        found = [rows for part in pool.map(lambda _: starts_of(shared), range(8)) for rows in part]
    expected = starts_of(counted.batches(batch=3, block=7, epochs=20, seed=5))
    assert sorted(found) == sorted(expected)


def _next_of(batches: Batches, queue: Any) -> None:
    queue.put(next(batches)[0].tolist())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_goes_on_from_the_same_place(counted: tokmill.Dataset, method: str) -> None:
    batches = counted.batches(batch=3, block=7)
    next(batches)
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_next_of, args=(batches, queue))
    child.start()
    found = queue.get(timeout=60)
    child.join()
    assert found == next(batches)[0].tolist()


def test_a_fork_while_another_thread_takes_a_batch_does_not_hang(counted: tokmill.Dataset) -> None:
    batches = counted.batches(batch=3, block=7)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with batches._lock:
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        child = os.fork()
        if not child:
            threading.Timer(20, os._exit, [1]).start()
            next(batches)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        release.set()
        thread.join()


def test_pickled_batches_carry_paths_and_numbers_not_ids(counted: tokmill.Dataset) -> None:
    batches = counted.batches(batch=3, block=7, seed=1)
    starts_of(batches, 3)
    copied = pickle.dumps(batches)
    assert len(copied) < 200_000
    copy = pickle.loads(copied)
    assert starts_of(copy, 3) == starts_of(batches, 3)
