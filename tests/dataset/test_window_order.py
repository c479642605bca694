"""The order of windows: that it is a bijection, that it is mixed, and that it never changes."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
from hypothesis import given, strategies as st

from tokmill.core.keys import mix
from tokmill.core.permutation import permute
from tokmill.dataset.window_order import ORDERS, Order, OrderName

SEEDS = st.integers(0, 2**64 - 1)
MASK = 2**64 - 1
STEP = 0x9E3779B97F4A7C15


def plain_mix(value: int) -> int:
    """SplitMix64's finalizer on a Python int."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def plain_unshuffle(found: int, n: int, key: int) -> int:
    """The index that was shuffled to `found`, with Python ints: the rounds turned back, last one first."""
    n_rows = math.isqrt(n - 1) + 1
    n_columns = -(-n // n_rows)
    keys = [key := plain_mix((key + STEP) & MASK) for _ in range(8)]
    while True:
        row, column = divmod(found, n_columns)
        for number in reversed(range(8)):
            if number % 2:
                column = (column - plain_mix((row + keys[number]) & MASK)) % n_columns
            else:
                row = (row - plain_mix((column + keys[number]) & MASK)) % n_rows
        found = row * n_columns + column
        if found < n:
            return found


def order_of(n: int, kind: OrderName = "shuffled", seed: int = 0, block: int = 1) -> Order:
    return Order(kind=kind, n_tokens=n * block + 1, block=block, seed=seed)


@given(n=st.integers(1, 2000), seed=SEEDS, epoch=st.integers(0, 2**31), block=st.integers(1, 5))
def test_an_epoch_is_each_window_once_for_any_number_and_seed(n: int, seed: int, epoch: int, block: int) -> None:
    starts = order_of(n, seed=seed, block=block).starts(np.arange(n, dtype=np.int64) + epoch * n)
    assert sorted(starts.tolist()) == [window * block for window in range(n)]


@given(n=st.integers(1, 2**62), key=SEEDS, data=st.data())
def test_every_step_can_be_turned_back_up_to_the_largest_data(n: int, key: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20))
    found = permute(np.array(indices, np.uint64), n, np.full(len(indices), key, np.uint64)).tolist()
    assert all(index < n for index in found)
    assert [plain_unshuffle(index, n, key) for index in found] == indices


@given(seed=SEEDS, kind=st.sampled_from(ORDERS), place=st.integers(0, 10**6), n=st.integers(1, 1000))
def test_a_window_does_not_depend_on_what_is_asked_for_with_it(seed: int, kind: OrderName, place: int, n: int) -> None:
    order = order_of(n, kind, seed)
    places = np.arange(place, place + 50, dtype=np.int64)
    assert order.starts(places.reshape(5, 10)).ravel().tolist() == [int(order.starts(places[i : i + 1])[0]) for i in range(50)]


@given(n_tokens=st.integers(2, 60), block=st.integers(1, 59), seed=SEEDS)
def test_random_starts_reach_every_place_where_a_window_fits_and_no_other(n_tokens: int, block: int, seed: int) -> None:
    if block >= n_tokens:
        block = n_tokens - 1
    starts = Order(kind="random", n_tokens=n_tokens, block=block, seed=seed).starts(np.arange(3000, dtype=np.int64))
    assert set(starts.tolist()) == set(range(n_tokens - block))


def test_shuffled_epochs_look_like_chance() -> None:
    n, n_epochs = 50, 20_000
    windows = order_of(n, seed=7).starts(np.arange(n * n_epochs, dtype=np.int64)).reshape(n_epochs, n)
    of_first = np.bincount(windows[:, 0], minlength=n)
    of_second = np.bincount((windows[:, 1] - windows[:, 0]) % n, minlength=n)[1:]
    of_next = np.bincount((windows[1:, 0] - windows[:-1, 0]) % n, minlength=n)
    for found in (of_first, of_second, of_next):
        expected = found.sum() / len(found)
        chi_square = ((found - expected) ** 2 / expected).sum()
        assert abs(chi_square - (len(found) - 1)) < 4 * math.sqrt(2 * (len(found) - 1))


def test_seeds_and_epochs_differ() -> None:
    places = np.arange(1000, dtype=np.int64)
    found = [order_of(1000, seed=seed).starts(places + epoch * 1000).tolist() for seed in (0, 1, 2**63) for epoch in (0, 1)]
    assert len({tuple(starts) for starts in found}) == 6


def test_the_order_is_the_one_that_old_states_were_saved_in() -> None:
    # Numbers of the first version: a change of these makes states of unfinished runs go on in another order.
    assert order_of(10**9, seed=42).starts(np.arange(3, dtype=np.int64)).tolist() == [484614783, 953148632, 938659243]
    assert order_of(10**9, seed=42).starts(np.arange(3, dtype=np.int64) + 10**9).tolist() == [553216134, 650582052, 55846303]
    assert order_of(10**9, "random", seed=42).starts(np.arange(3, dtype=np.int64)).tolist() == [104226789, 48325405, 273024929]
    assert order_of(7, "sequential", block=10).starts(np.array([5, 6, 7])).tolist() == [50, 60, 0]


def test_mix_is_the_published_finalizer() -> None:
    # The first outputs of SplitMix64 with seed 1234567, as published with its reference code.
    states = 1234567 + np.arange(1, 4, dtype=np.uint64) * np.uint64(STEP)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_an_epoch_of_a_trillion_windows_takes_no_memory() -> None:
    order = order_of(10**12, seed=3)
    tracemalloc.start()
    try:
        starts = order.starts(np.arange(10**11, 10**11 + 1000, dtype=np.int64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(set(starts.tolist())) == 1000
    assert peak < 1_000_000
