"""Reader, encoder and writer threads side by side; the output order is the input order.

One reader thread numbers the batches, any number of encoder threads take the next one, and the writer (the caller's thread) takes
their results in order. What is on the way is bounded in bytes by one counter, `Flow`: the reader pays for a batch before it hands
it on, the writer gives the bytes back. The batch that the writer waits for has always been paid for, so it cannot deadlock.

An error in any thread becomes the result of its batch. The writer meets it in order, after everything before it was written and
committed: which error is reported, and what is resumed from, does not depend on threads.
"""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

from tokmill.core.system.refusals import is_of_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tokmill.core.protocols import Reader
    from tokmill.core.records import Batch, Cursor, EncodedBatch
    from tokmill.core.system.budget import CacheReset
    from tokmill.run.encode_batch import EncodeStage

_JOIN_S = 2.0
"""Longest wait for the threads at the end; a batch takes some milliseconds."""
_NEEDED = 2
"""Threads without which nothing goes on: the reader and an encoder."""


class Flow:
    """Backpressure, in one place: bytes on their way between reader and writer, and the wish to stop."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._stopped = False
        self._paused = False
        self._changed = threading.Condition()

    def acquire(self, n_bytes: int) -> bool:
        """Wait until `n_bytes` fit, or nothing else is on its way; False when the run is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or (not self._paused and self._fits(n_bytes)))
            if not self._stopped:
                self._used += n_bytes
            return not self._stopped

    def _fits(self, n_bytes: int) -> bool:
        return self._used == 0 or self._used + n_bytes <= self._limit

    def shrink(self) -> None:
        """Halve the limit."""
        with self._changed:
            self._limit //= 2

    def pause(self, *, paused: bool) -> None:
        """Let nothing more through, or go on."""
        with self._changed:
            self._paused = paused
            self._changed.notify_all()

    def release(self, n_bytes: int) -> None:
        """Give bytes back."""
        with self._changed:
            self._used -= n_bytes
            self._changed.notify_all()

    def stop(self) -> None:
        """Let the reader go no further; what is on its way is still written."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def drained(self) -> bool:
        """Whether `stop` was called and nothing is on its way any more."""
        return self._stopped and self._used == 0


class _InOrder:
    """Results of batches, handed out in the order of the batches."""

    def __init__(self) -> None:
        self._results: dict[int, tuple[EncodedBatch | BaseException | None, int]] = {}
        self._arrived = threading.Condition()

    def put(self, index: int, result: EncodedBatch | BaseException | None, cost: int = 0) -> None:
        """None as a result: the corpus ends before this batch."""
        with self._arrived:
            self._results[index] = (result, cost)
            self._arrived.notify_all()

    def get(self, index: int, timeout_s: float) -> tuple[EncodedBatch | BaseException | None, int] | None:
        """The result of that batch; None if it does not arrive in time."""
        with self._arrived:
            self._arrived.wait_for(lambda: index in self._results, timeout_s)
            return self._results.pop(index, None)


class Pipeline:
    """Runs the threads. Iterate `results`; close the iterator, and the threads are gone."""

    def __init__(
        self,
        reader: Reader,
        make_stage: Callable[[], EncodeStage],
        *,
        n_threads: int,
        flow: Flow,
        cache_reset: CacheReset,
        on_tick: Callable[[], None],
    ) -> None:
        """make_stage is called once in each encoder thread; on_tick in the thread that iterates, a few times a second."""
        self._reader = reader
        self._make_stage = make_stage
        self._n_threads = n_threads
        self._flow = flow
        self._cache_reset = cache_reset
        self._on_tick = on_tick
        self._todo: SimpleQueue[Batch | None] = SimpleQueue()
        self._done = _InOrder()
        self._abandoned = False

    def results(self, start: Cursor, tick_s: float = 0.2) -> Generator[EncodedBatch, None, None]:
        """Encoded batches in the order of the corpus. Raises the first error, in that order."""
        threads = [threading.Thread(target=self._read, args=(start,), name="reader", daemon=True)]
        threads += [threading.Thread(target=self._encode, name=f"encoder-{i}", daemon=True) for i in range(self._n_threads)]
        try:
            self._start(threads)
            yield from self._collect(tick_s)
        finally:
            self._abandoned = True
            self._flow.stop()
            for _ in range(self._n_threads):
                self._todo.put(None)
            deadline = time.monotonic() + _JOIN_S
            for thread in threads:
                # A reader that waits for standard input cannot be woken; it ends with the process.
                thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _start(self, threads: list[threading.Thread]) -> None:
        """Start the reader and as many encoders as the system allows. Raises RuntimeError where that is none."""
        for i, thread in enumerate(threads):
            try:
                thread.start()
            except RuntimeError as error:
                if i < _NEEDED or not is_of_threads(error):
                    del threads[i:]
                    raise
                del threads[i:]
                return

    def _collect(self, tick_s: float) -> Iterator[EncodedBatch]:
        index = 0
        next_tick = time.monotonic() + tick_s
        while True:
            arrived = self._done.get(index, tick_s)
            if time.monotonic() >= next_tick:
                self._on_tick()
                next_tick = time.monotonic() + tick_s
            if arrived is None:
                if self._flow.drained:
                    return
                continue
            result, cost = arrived
            if result is None:
                return
            if isinstance(result, BaseException):
                raise result
            yield result
            self._flow.release(cost)
            index += 1

    def _read(self, start: Cursor) -> None:
        index = 0
        end: BaseException | None = None
        batches = self._reader.batches(start)
        try:
            for batch in batches:
                if not self._flow.acquire(batch.cost_bytes):
                    break
                index = batch.index + 1
                self._todo.put(batch)
        except BaseException as error:  # noqa: BLE001  a thread's error, panics too, is raised where the results are taken
            end = error
        finally:
            for _ in range(self._n_threads):
                self._todo.put(None)
            self._done.put(index, end)
            close = getattr(batches, "close", None)
            if close:
                close()

    def _encode(self) -> None:
        stage: EncodeStage | None = None
        while (batch := self._todo.get()) is not None:
            if self._abandoned:
                continue
            try:
                if stage is None:
                    stage = self._make_stage()
                result: EncodedBatch | BaseException = stage.run(batch)
                self._cache_reset.after_batch(stage.encoder, batch)
            except BaseException as error:  # noqa: BLE001  a thread's error, panics too, is raised where the results are taken
                result = error
            cost = _held_bytes(result)
            self._flow.release(batch.cost_bytes - cost)
            self._done.put(batch.index, result, cost)


def _held_bytes(result: EncodedBatch | BaseException) -> int:
    """What a result holds until it is written; a fraction of what its batch might have cost."""
    return 0 if isinstance(result, BaseException) else sum(run.ids.nbytes + run.ends.nbytes for run in result.runs)
