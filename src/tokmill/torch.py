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

    from tokmill.dataset import Batches, Dataset


class TorchBatches(IterableDataset):  # type: ignore[misc]  # torch is not there when types are checked
    """Pairs (x, y) of tensors, int64, shape (batch, block), as `Dataset.batches` makes them.

        loader = DataLoader(TorchBatches(data, "train", batch=12, block=1024), batch_size=None, num_workers=2)

    Each iteration begins where the state says that was loaded last, at first at the beginning. Keep `data` open until the end.
    """

    def __init__(self, data: Dataset, side: str = "train", **options: Any) -> None:
        """Check the options.

        Args:
            data: An open data set.
            side: `train` or `val`.
            options: Those of `Dataset.batches`.

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

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches = self._new()
        batches.restore(_without_worker(self._begin))
        info = get_worker_info()
        place, n_workers = (info.id, info.num_workers) if info else (0, 1)
        if info:
            self._workers_read.fill_(1)
        self._check_worker(place, n_workers)
        if "worker" not in self._begin:
            batches.skip(place)
        for x, y in batches:
            batches.skip(n_workers - 1)
            self._now = batches.state() | ({"worker": [place, n_workers]} if info else {})
            yield torch.from_numpy(x), torch.from_numpy(y)

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

    def _new(self) -> Batches:
        return self._data.batches(**self._make)

    def _check_worker(self, place: int, n_workers: int) -> None:
        saved = self._begin.get("worker", [place, n_workers])
        if saved != [place, n_workers]:
            raise UsageError(
                f"the state is that of worker {saved[0]} of {saved[1]}, and this is worker {place} of {n_workers}",
                where="load_state_dict()",
                allowed=f"a loader with {counted(saved[1], 'worker')}, as when it was saved",
                next_step=f"num_workers={saved[1]}, or save state_dict(n_taken), which goes with any number",
            )


def _without_worker(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != "worker"} if isinstance(state, dict) else state
