"""A bijection of 0..n-1 that looks random and is computed for each number by itself, so that no list of it is ever kept.

A Feistel network on a rectangle of n cells or a few more, applied again while it lands beyond n.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tokmill.core.keys import STEP, mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDS = 8
"""Four for each side. With four in all, the second window of an epoch depends on the first (20,000 epochs of 50 windows: chi-square
is 12 standard deviations off); with eight nothing shows, from 10 windows on. Another number would lead old states elsewhere."""

_Size: TypeAlias = "np.uint64 | NDArray[np.uint64]"


def permute(indices: NDArray[np.uint64], n: int | NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return what becomes of indices below n under the bijection that each one's key chooses.

    indices, keys: uint64, of one shape. n: 1 or more; one number, or uint64 of that shape. Returns uint64, of that shape, below n.
    Equal n and keys, different indices: different results.
    """
    rows, columns = _sides(n)
    sizes = n if isinstance(n, np.ndarray) else np.uint64(n)
    cells = _permute_cells(indices, rows, columns, keys)
    # Cells at or beyond n are few, less than a row. Going on from one leads back below n: the walk is on a cycle that began there.
    while (beyond := cells >= sizes).any():
        cells[beyond] = _permute_cells(cells[beyond], _at(rows, beyond), _at(columns, beyond), keys[beyond])
    return cells


def _sides(n: int | NDArray[np.uint64]) -> tuple[_Size, _Size]:
    """Return the rows and columns of the smallest rectangle of n cells that is about a square."""
    if not isinstance(n, np.ndarray):
        n_rows = math.isqrt(n - 1) + 1
        return np.uint64(n_rows), np.uint64(-(-n // n_rows))
    one = np.uint64(1)
    roots = np.sqrt((n - one).astype(np.float64)).astype(np.uint64)
    # A float is one off where a number is near a square.
    roots -= (roots * roots > n - one).astype(np.uint64)
    roots += ((roots + one) * (roots + one) <= n - one).astype(np.uint64)
    rows = roots + one
    return rows, (n + rows - one) // rows


def _at(sizes: _Size, mask: NDArray[np.bool_]) -> _Size:
    return sizes[mask] if isinstance(sizes, np.ndarray) else sizes


def _permute_cells(cells: NDArray[np.uint64], n_rows: _Size, n_columns: _Size, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Permute the cells of a rectangle: each round rotates every row, or every column, by its own hash."""
    rows, columns = np.divmod(cells, n_columns)
    for number in range(_ROUNDS):
        keys = mix(keys + STEP)
        # The hash is reduced before it is added: a sum that wrapped around 2**64 would not be a bijection.
        if number % 2:
            columns = (columns + mix(rows + keys) % n_columns) % n_columns
        else:
            rows = (rows + mix(columns + keys) % n_rows) % n_rows
    return rows * n_columns + columns
