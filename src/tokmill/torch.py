"""The batches of a data set for `torch.utils.data.DataLoader`. No other file imports torch.

Batches are made whole where they are read, so the loader gets `batch_size=None` and does not collate. Its workers take turns:
worker w of W reads the batches w, w + W, ..., and the loader puts them into the order that there would be without workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokmill.core.errors import UsageError
from tokmill.core.extras import install_hint
from tokmill.core.text import counted

try:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info
except ImportError as error:
    raise UsageError(
        f"tokmill.torch needs PyTorch: {error}",
        where="import tokmill.torch",
        allowed="tokmill with PyTorch; data.batches() alone needs numpy only",
        next_step=f"{install_hint('torch')}, or torch from where your GPU's build is",
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokmill.dataset import Batches, Dataset, PackedBatch, PackedBatches


class _Iterated(IterableDataset):  # type: ignore[misc]  # torch is not there when types are checked
    """Batches of a data set, each made into tensors.

    Each iteration begins where the state says that was loaded last, at first at the beginning. Keep `data` open until the end.
    """

    def __init__(self, data: Dataset, side: str = "train", **options: Any) -> None:
        """Check the options.

        Args:
            data: An open data set.
            side: `train` or `val`.
            options: Those of `Dataset.batches`, or `Dataset.packed`.

        Raises:
            UsageError: an option is out of range.
        """
        super().__init__()
        self._data = data
        self._make = {"side": side, **options}
        self._begin = self._new().state()
        self._now = self._begin
        # Seen by every process, whichever way it was started: memory of this one alone would not know what workers did.
        self._workers_read = torch.zeros(1, dtype=torch.uint8).share_memory_()

    def __iter__(self) -> Iterator[Any]:
        batches = self._new()
        batches.restore(_without_worker(self._begin))
        info = get_worker_info()
        place, n_workers = (info.id, info.num_workers) if info else (0, 1)
        if info:
            self._workers_read.fill_(1)
        self._check_worker(place, n_workers)
        if "worker" not in self._begin:
            batches.skip(place)
        for made in batches:
            batches.skip(n_workers - 1)
            self._now = batches.state() | ({"worker": [place, n_workers]} if info else {})
            yield self._tensors(made)

    def state_dict(self, n_taken: int | None = None) -> dict[str, Any]:
        """Return the position of the iteration.

        Args:
            n_taken: Batches that the loop has taken from the loader since it began to iterate. Needed if workers read, unless the
                loader asks them itself (torchdata's StatefulDataLoader does): only the loop knows how far they are ahead.

        Returns:
            A small dict, fit for JSON and torch.save.

        Raises:
            UsageError: `n_taken` is needed and missing.
        """
        if n_taken is not None:
            batches = self._new()
            batches.restore(_without_worker(self._begin))
            batches.skip(n_taken)
            return batches.state()
        if get_worker_info() is None and self._workers_read.item():
            raise UsageError(
                "the batches were read by workers, which are ahead of the loop",
                where="state_dict()",
                allowed="the number of batches that the loop has taken",
                next_step="state_dict(n_taken), or torchdata's StatefulDataLoader, which counts for you",
            )
        return dict(self._now)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration where `state` was taken.

        Raises:
            ChangedError: the state is of other data.
            UsageError: this is no state.
        """
        self._new().restore(_without_worker(state))
        self._begin = self._now = dict(state)

    def _new(self) -> Batches | PackedBatches:
        raise NotImplementedError

    def _tensors(self, made: Any) -> Any:
        raise NotImplementedError

    def _check_worker(self, place: int, n_workers: int) -> None:
        saved = self._begin.get("worker", [place, n_workers])
        if saved != [place, n_workers]:
            raise UsageError(
                f"the state is that of worker {saved[0]} of {saved[1]}, and this is worker {place} of {n_workers}",
                where="load_state_dict()",
                allowed=f"a loader with {counted(saved[1], 'worker')}, as when it was saved",
                next_step=f"num_workers={saved[1]}, or save state_dict(n_taken), which goes with any number",
            )


class TorchBatches(_Iterated):
    """Pairs (x, y) of tensors, int64, shape (batch, block), as `Dataset.batches` makes them.

    loader = DataLoader(TorchBatches(data, "train", batch=12, block=1024), batch_size=None, num_workers=2)
    """

    def _new(self) -> Batches:
        return self._data.batches(**self._make)

    def _tensors(self, made: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(made[0]), torch.from_numpy(made[1])


class TorchPacked(_Iterated):
    """Batches of a packed output, as `Dataset.packed` makes them: dicts of tensors, and `max_seqlen`, an int.

        loader = DataLoader(TorchPacked(data, "train", batch=12), batch_size=None, num_workers=2)

    `input_ids`, `labels` and `position_ids` are int64, `loss_mask` is bool, of shape (batch, sequence); `cu_seqlens` is int32, of
    shape (n + 1,), over the whole batch.
    """

    def _new(self) -> PackedBatches:
        return self._data.packed(**self._make)

    def _tensors(self, made: PackedBatch) -> dict[str, torch.Tensor | int]:
        named = ("input_ids", "labels", "position_ids", "loss_mask", "cu_seqlens")
        return {name: torch.from_numpy(getattr(made, name)) for name in named} | {"max_seqlen": made.max_seqlen}


def _without_worker(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != "worker"} if isinstance(state, dict) else state
