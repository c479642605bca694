"""Which window is at which place of the sequence that training reads: computed for each place, so that nothing is stored.

An epoch in shuffled order is a bijection of 0..n-1 chosen by seed and epoch: a Feistel network on a rectangle of n cells or a few
more, applied again while it lands beyond n. A list of shuffled indices would take 8 bytes a window in every process, and would
have to be made again to go on in the middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from tokmill.core.keys import STEP, Purpose, key_of, keys_at, mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

OrderName: TypeAlias = Literal["shuffled", "random", "sequential"]
ORDERS: tuple[OrderName, ...] = ("shuffled", "random", "sequential")

_ROUNDS = 8
"""Four for each side. With four in all, the second window of an epoch depends on the first (20,000 epochs of 50 windows: chi-square
is 12 standard deviations off); with eight nothing shows, from 10 windows on. Another number would lead old states elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An endless sequence of windows over n_tokens ids; a window is `block` ids and the one after them.

    shuffled: each of the n_windows windows that lie end to end, once an epoch, every epoch in another order.
    sequential: the same windows as they lie in the file. random: any start, drawn each time.
    """

    kind: OrderName
    n_tokens: int
    """More than `block`."""
    block: int
    """1 or more."""
    seed: int
    """0 <= seed < 2**64."""

    @property
    def n_windows(self) -> int:
        """Windows of one epoch. Fewer than `block` ids at the end are in none of them."""
        return (self.n_tokens - 1) // self.block

    def starts(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the windows at these places of the sequence begin.

        places: int64, not negative, any shape. Returns int64 of that shape, 0 <= start <= n_tokens - block - 1.
        """
        if self.kind == "random":
            drawn = keys_at(places.astype(np.uint64), key_of(self.seed, Purpose.RANDOM_WINDOWS))
            return (drawn % np.uint64(self.n_tokens - self.block)).astype(np.int64)
        epochs, windows = np.divmod(places, self.n_windows)
        if self.kind == "shuffled":
            keys = keys_at(epochs.astype(np.uint64), key_of(self.seed, Purpose.SHUFFLED_WINDOWS))
            windows = shuffle(windows.astype(np.uint64), self.n_windows, keys).astype(np.int64)
        return windows * np.int64(self.block)


def shuffle(indices: NDArray[np.uint64], n: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return what becomes of indices below n under the bijection that each one's key chooses.

    indices, keys: uint64, of one shape. Returns uint64, of that shape, below n. Equal keys, different indices: different results.
    """
    n_rows = math.isqrt(n - 1) + 1
    n_columns = -(-n // n_rows)
    cells = _permute_cells(indices, n_rows, n_columns, keys)
    # Cells at or beyond n are few, less than n_rows. Going on from one leads back below n: the walk is on a cycle that began there.
    while (beyond := cells >= np.uint64(n)).any():
        cells[beyond] = _permute_cells(cells[beyond], n_rows, n_columns, keys[beyond])
    return cells


def _permute_cells(cells: NDArray[np.uint64], n_rows: int, n_columns: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Permute the cells of a rectangle: each round rotates every row, or every column, by its own hash."""
    rows, columns = np.divmod(cells, np.uint64(n_columns))
    sizes = np.uint64(n_rows), np.uint64(n_columns)
    for number in range(_ROUNDS):
        keys = mix(keys + STEP)
        # The hash is reduced before it is added: a sum that wrapped around 2**64 would not be a bijection.
        if number % 2:
            columns = (columns + mix(rows + keys) % sizes[1]) % sizes[1]
        else:
            rows = (rows + mix(columns + keys) % sizes[0]) % sizes[0]
    return rows * sizes[1] + columns
