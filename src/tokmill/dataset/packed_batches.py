"""Batches of packed sequences for training that keeps attention inside documents, in an order that can be restored anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tokmill.core.errors import UsageError
from tokmill.dataset.batches import Iteration, Source
from tokmill.dataset.sharded_array import windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokmill.core.packing import Packing
    from tokmill.dataset.sharded_array import TokenArray
    from tokmill.dataset.starts import Starts

IGNORED = -100
"""A label that losses leave out: `ignore_index` of torch's cross entropy, as it is by default."""

_MOST_IDS = 2**31 - 1
"""The most ids of a batch: the place where its last document ends is an int32."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Some sequences. What lies together in one has nothing to do with each other: attention should end where documents do."""

    input_ids: NDArray[np.int64]
    """Shape (batch, sequence)."""
    labels: NDArray[np.int64]
    """Of the same shape: the id that follows in the same document, shifted already; -100 where none does, and for padding."""
    position_ids: NDArray[np.int64]
    """Of the same shape: place in its document, or part of one, from 0 on."""
    cu_seqlens: NDArray[np.int32]
    """Shape (n + 1,): where each of the n documents of the whole batch begins in `input_ids.ravel()`, and where the last ends. Each
    stretch of padding counts as one."""
    max_seqlen: int
    """Ids of the longest of them."""

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        """Shape (batch, sequence): whether there is a label."""
        mask: NDArray[np.bool_] = self.labels != IGNORED
        return mask


class PackedSource(Source, Protocol):
    """An open packed data set."""

    @property
    def packing(self) -> Packing | None:
        """How documents lie in sequences."""

    def starts(self, side: str) -> Starts:
        """Return where documents begin in a side. Raises UsageError."""


class PackedBatches(Iteration[PackedBatch]):
    """An iterator over `PackedBatch`es. Made by `Dataset.packed`; a window is a sequence. See `Iteration`."""

    BEYOND = 0

    def __init__(self, source: PackedSource, side: str, **options: Any) -> None:
        """options: those of `Dataset.packed`. Raises UsageError for those out of range, and an output that is not packed."""
        # The first to be asked: it says what is missing.
        source.starts(side)
        assert source.packing
        if options["order"] in ("random", "documents"):
            raise UsageError(
                "windows of this order begin anywhere, and sequences where they begin",
                where=f"order={options['order']!r}",
                allowed="shuffled, sequential",
                next_step='order="shuffled"',
            )
        sequence = source.packing.sequence
        if not len(source.side(side)):
            raise UsageError(
                f"the side {side} has no sequences: there were no documents to pack",
                where=f"side={side!r}",
                allowed="a side that has documents",
                next_step="take the other side, or pack what was tokenized with a larger --val-fraction",
            )
        super().__init__(source, side, block=sequence, **options)
        if self.batch * sequence > _MOST_IDS:
            raise UsageError(
                f"a batch of {self.batch * sequence:,} ids: cu_seqlens has int32 for where documents begin",
                where=f"batch={self.batch}",
                allowed=f"1 to {_MOST_IDS // sequence:,} sequences of {sequence:,}",
                next_step=f"batch={_MOST_IDS // sequence}, or less",
            )
        self._packed = source
        self._pad_id = source.packing.pad_id

    def _made(self, ids: TokenArray, starts: NDArray[np.int64]) -> PackedBatch:
        n = self.order.block
        found = windows(ids, starts, n).astype(np.int64)
        lists, begun = self._packed.starts(self.side), []
        for row, start in enumerate(starts.tolist()):
            begun.append(lists.within(start, start + n) - start + row * n)
        edges = np.append(np.concatenate(begun), found.size)
        lengths = np.diff(edges)
        flat = found.ravel()
        labels = np.append(flat[1:], IGNORED)
        labels[edges[1:] - 1] = IGNORED
        labels[flat == self._pad_id] = IGNORED
        positions = np.arange(found.size) - np.repeat(edges[:-1], lengths)
        shape = found.shape
        return PackedBatch(found, labels.reshape(shape), positions.reshape(shape), edges.astype(np.int32), int(lengths.max()))

    def _fingerprint(self) -> str:
        # So that the state of windows is refused.
        return f"packed {super()._fingerprint()}"
