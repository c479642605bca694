"""Batches of windows for training, in an order that can be restored anywhere.

The only thing counted is the windows that all ranks have taken together; order, rank and batch follow from it. So the state is one
number and what it belongs to, it is the same on every rank, and a run may go on with other ranks or another batch.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Annotated, Any, Generic, Protocol, Self, TypeAlias, TypeVar

import msgspec
import numpy as np

from tokmill.core.errors import ChangedError, UsageError
from tokmill.core.text import counted
from tokmill.dataset.sharded_array import joined, windows
from tokmill.dataset.shuffled_documents import ShuffledDocuments
from tokmill.dataset.window_order import ORDERS, Order, OrderName

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokmill.dataset.sharded_array import TokenArray

Pair: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64]]"
"""x and y, int64, shape (rows, block), C-contiguous: y[i, j] is the id after x[i, j]."""

T = TypeVar("T")

STATE_VERSION = 1
_AHEAD = 4096
"""Windows whose starts are computed together: 0.2 microseconds each instead of 100 for a small batch."""


class Source(Protocol):
    """An open data set, from which batches are cut."""

    def side(self, side: str) -> TokenArray:
        """Return all ids of a side. Raises UsageError if the data set is closed."""

    def fingerprint(self, side: str) -> str:
        """Return what tells the ids of this side from others."""


class DocumentSource(Source, Protocol):
    """One whose documents can be told apart."""

    def document_ends(self, side: str) -> NDArray[np.int64]:
        """Return where each document of a side ends. Raises UsageError if they cannot be told apart."""


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The position in a sequence of batches, and what must be the same for it to go on."""

    version: int
    fingerprint: str
    side: str
    order: OrderName
    seed: int
    block: int
    position: Annotated[int, msgspec.Meta(ge=0)]
    """Windows that all ranks together have taken since the beginning."""


class Iteration(Generic[T]):
    """An iterator over batches, whatever they are made of.

    Batch number k of a rank is windows (k * world_size + rank) * batch and the following of the sequence of all ranks. Threads may
    share one; each batch goes to one of them. A copy in another process (fork, pickle) goes on by itself from the same place.
    """

    BEYOND = 1
    """Ids that are needed after those of a window."""

    def __init__(
        self,
        source: Source,
        side: str,
        *,
        batch: int,
        block: int,
        order: OrderName,
        epochs: int | None,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        """Begin at the beginning; arguments as in `Dataset.batches`. Raises UsageError for those out of range."""
        n_tokens = len(source.side(side))
        if order not in ORDERS:
            raise UsageError(f"{order!r} is no order", where="order", allowed=", ".join(ORDERS), next_step='order="shuffled"')
        _check_range("batch", batch, 1, 2**31 - 1)
        _check_range("block", block, 1, 2**31 - 1)
        _check_range("seed", seed, 0, 2**64 - 1)
        _check_range("world_size", world_size, 1, 2**31 - 1)
        _check_range("rank", rank, 0, world_size - 1)
        if block + self.BEYOND > n_tokens:
            raise UsageError(
                f"a window of block + 1 = {block + 1:,} ids is longer than the side {side}, which has {counted(n_tokens, 'token')}",
                where=f"block={block}",
                allowed=f"1 to {n_tokens - 1:,}" if n_tokens > 1 else "no block: a window is two ids or more",
                next_step="give a smaller block, the other side, or tokenize more text (for val: a larger --val-fraction)",
            )
        if epochs is not None:
            _check_range("epochs", epochs, 1, 2**31 - 1)
            if order == "random":
                raise UsageError(
                    "random windows have no epochs: some come twice and some never",
                    where=f"epochs={epochs}",
                    allowed="epochs=None, or another order",
                    next_step='order="shuffled", or leave epochs out and stop by yourself',
                )
        self.order = Order(kind=order, n_tokens=n_tokens + 1 - self.BEYOND, block=block, seed=seed)
        self.side = side
        self.batch = batch
        self.rank = rank
        self.world_size = world_size
        self._source = source
        self._n_all = None if epochs is None else epochs * self.order.n_windows
        self._position = 0
        self._ahead = (0, np.empty((0, batch), np.int64))
        self._lock, self._pid = threading.Lock(), os.getpid()

    @property
    def n_windows(self) -> int:
        """Windows of one epoch, of all ranks together."""
        return self.order.n_windows

    @property
    def position(self) -> int:
        """Windows that all ranks together have taken since the beginning, if each has taken as many batches as this one."""
        return self._position

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Return the next batch.

        With a limited number of epochs the last batch is smaller: the windows that are left are divided between the ranks. If they
        are fewer than the ranks, some ranks have no last batch.

        Raises:
            StopIteration: after the last epoch.
            UsageError: the data set is closed.
        """
        ids = self._source.side(self.side)
        with self._own_lock():
            starts = self._next_starts()
        if not len(starts):
            raise StopIteration
        return self._made(ids, starts)

    def _made(self, ids: TokenArray, starts: NDArray[np.int64]) -> T:
        """Return a batch of the windows that begin at `starts`: int64, shape (n,)."""
        raise NotImplementedError

    def skip(self, n_batches: int) -> None:
        """Skip batches of every rank without reading them; takes the same time for any number (0 or more)."""
        with self._own_lock():
            self._position = self._within(self._position + n_batches * self.batch * self.world_size)

    def state(self) -> dict[str, Any]:
        """Return the position: a small dict of numbers and strings, fit for JSON, the same on all ranks after as many batches."""
        return msgspec.to_builtins(self._state_at(self._position))  # type: ignore[no-any-return]

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state()` was saved, also with another batch, rank or world_size.

        Args:
            state: What `state()` returned, as it was or by way of JSON.

        Raises:
            ChangedError: the ids or the order are not those of the state.
            UsageError: this is no state.
        """
        saved = _parse(state)
        here = self._state_at(saved.position)
        differing = [name for name in State.__struct_fields__ if getattr(saved, name) != getattr(here, name)]
        if differing:
            raise ChangedError(
                "the state belongs to other data" if "fingerprint" in differing else "the state belongs to other batches",
                where=", ".join(differing),
                allowed="; ".join(f"{name}={getattr(saved, name)!r}, here {getattr(here, name)!r}" for name in differing),
                next_step="open the data and call batches() as when it was saved, or start over without restore()",
            )
        with self._own_lock():
            self._position = self._within(saved.position)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        of = f"{self.side}, {counted(self.n_windows, 'window')} an epoch, {self.order.kind}"
        return f"<tokmill.{type(self).__name__} of {of}, at {self._position:,}>"

    def _own_lock(self) -> threading.Lock:
        # Another thread may have held it in the moment of a fork: in the child nobody would ever release it.
        if self._pid != os.getpid():
            self._lock, self._pid = threading.Lock(), os.getpid()
        return self._lock

    def _state_at(self, position: int) -> State:
        order = self.order
        return State(
            version=STATE_VERSION,
            fingerprint=self._fingerprint(),
            side=self.side,
            order=order.kind,
            seed=order.seed,
            block=order.block,
            position=position,
        )

    def _fingerprint(self) -> str:
        return self._source.fingerprint(self.side)

    def _within(self, position: int) -> int:
        return position if self._n_all is None else min(position, self._n_all)

    def _next_starts(self) -> NDArray[np.int64]:
        """Return the starts of the windows of the next batch, none at the end, and move on. Returns int64, shape (n,)."""
        begin, n_step = self._position, self.batch * self.world_size
        n_left = n_step if self._n_all is None else self._n_all - begin
        self._position = self._within(begin + n_step)
        if n_left < n_step:
            first, end = (n_left * rank // self.world_size for rank in (self.rank, self.rank + 1))
            return self.order.starts(np.arange(begin + first, begin + end, dtype=np.int64))
        at, starts = self._ahead
        number, remainder = divmod(begin - at, n_step)
        if remainder or not 0 <= number < len(starts):
            at, number = begin, 0
            steps = np.arange(max(1, _AHEAD // self.batch), dtype=np.int64)[:, None] * n_step
            starts = self.order.starts(steps + np.arange(self.batch) + (at + self.rank * self.batch))
            self._ahead = (at, starts)
        found: NDArray[np.int64] = starts[number]
        return found


class Batches(Iteration[Pair]):
    """An iterator over batches (x, y), int64, shape (batch, block), C-contiguous: y[i, j] is the id after x[i, j].

    Made by `Dataset.batches`. See `Iteration` for ranks, threads and processes.
    """

    def __init__(self, source: DocumentSource, side: str, **options: Any) -> None:
        """options: those of `Dataset.batches`. Raises UsageError for those out of range, or documents that cannot be told apart."""
        super().__init__(source, side, **options)
        self._documents: ShuffledDocuments | None = None
        if self.order.kind == "documents":
            self._documents = ShuffledDocuments(self.order.seed)
            # Now, as it may take a pass over the ids.
            source.document_ends(side)
        self._of_documents = source

    def _made(self, ids: TokenArray, starts: NDArray[np.int64]) -> Pair:
        if self._documents is None:
            found = windows(ids, starts, self.order.block + 1)
        else:
            with self._own_lock():
                pieces = self._pieces(self._documents, starts)
            found = joined(ids, pieces)
        return found[:, :-1].astype(np.int64), found[:, 1:].astype(np.int64)

    def _pieces(self, documents: ShuffledDocuments, starts: NDArray[np.int64]) -> list[list[tuple[int, int]]]:
        """Return where the ids of windows of documents lie in the side: begin and end of each piece, window by window."""
        ends, n_ids = self._of_documents.document_ends(self.side), self.order.n_windows * self.order.block
        places = [divmod(start, n_ids) for start in starts.tolist()]
        return [documents.pieces(ends, epoch, begin, self.order.block + 1) for epoch, begin in places]


def _check_range(name: str, value: int, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise UsageError(
            f"{name} is not a whole number of its range",
            where=f"{name}={value!r}",
            allowed=f"{lowest:,} to {highest:,}",
            next_step=f"{name}={lowest}",
        )


def _parse(state: object) -> State:
    """Raise UsageError for what `state()` did not return."""
    version = state.get("version") if isinstance(state, dict) else None
    if isinstance(version, int) and version > STATE_VERSION:
        raise UsageError(
            f"the state has version {version}, newer than this tokmill",
            where="restore()",
            allowed=f"version {STATE_VERSION}",
            next_step="pip install --upgrade tokmill",
        )
    try:
        return msgspec.convert(state, State)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"this is no state of batches: {error}",
            where="restore()",
            allowed="what state() returned, as it was or by way of JSON",
            next_step="restore the state that was saved with the checkpoint, or start over without restore()",
        ) from None
