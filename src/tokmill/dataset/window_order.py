"""Which window is at which place of the sequence that training reads: computed for each place, so that nothing is stored.

An epoch in shuffled order is a bijection of 0..n-1 chosen by seed and epoch (`core/permutation.py`). A list of shuffled indices
would take 8 bytes a window in every process, and would have to be made again to go on in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from tokmill.core.keys import Purpose, key_of, keys_at
from tokmill.core.permutation import permute

if TYPE_CHECKING:
    from numpy.typing import NDArray

OrderName: TypeAlias = Literal["shuffled", "documents", "random", "sequential"]
ORDERS: tuple[OrderName, ...] = ("shuffled", "documents", "random", "sequential")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An endless sequence of windows over n_tokens ids; a window is `block` ids and the one after them.

    shuffled: each of the n_windows windows that lie end to end, once an epoch, every epoch in another order.
    sequential: the same windows as they lie in the file. random: any start, drawn each time. documents: the windows of the whole
    documents, which lie one after the other in another order every epoch (`dataset/shuffled_documents.py`).
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
        """Return where the windows at these places of the sequence begin; of documents, in one sequence of all epochs.

        places: int64, not negative, any shape. Returns int64 of that shape, but for documents 0 <= start <= n_tokens - block - 1.
        """
        if self.kind == "random":
            drawn = keys_at(places.astype(np.uint64), key_of(self.seed, Purpose.RANDOM_WINDOWS))
            return (drawn % np.uint64(self.n_tokens - self.block)).astype(np.int64)
        if self.kind == "documents":
            return places * np.int64(self.block)
        epochs, windows = np.divmod(places, self.n_windows)
        if self.kind == "shuffled":
            keys = keys_at(epochs.astype(np.uint64), key_of(self.seed, Purpose.SHUFFLED_WINDOWS))
            windows = permute(windows.astype(np.uint64), self.n_windows, keys).astype(np.int64)
        return windows * np.int64(self.block)
