"""The threads: order, backpressure, errors in order, stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from support.commands import PATIENCE_S
from support.records import ByteEncoder, a_batch, a_content

from tokmill.core.errors import BadTextError, InputError, TokmillError
from tokmill.core.records import Batch, Cursor, EncodedBatch
from tokmill.core.system.budget import CacheReset
from tokmill.run.audit import Auditor
from tokmill.run.encode_batch import EncodeStage
from tokmill.run.pipeline import Flow, Pipeline


class Batches:
    """A reader of given batches that remembers how far it was read and whether it was closed."""

    def __init__(self, n: int, error: BaseException | None = None, size: int = 100) -> None:
        self.n, self.error, self.size = n, error, size
        self.n_read = 0
        self.closed = False

    def batches(self, start: Cursor) -> Iterator[Batch]:
        try:
            for i in range(self.n):
                self.n_read = i + 1
                yield a_batch([bytes([i % 100]) * self.size], index=i)
            if self.error:
                raise self.error
        finally:
            self.closed = True


class SlowStage(EncodeStage):
    """Finishes batches out of order, and fails where it is told to."""

    def __init__(self, fail_at: tuple[int, ...] = ()) -> None:
        super().__init__(a_content(eot="none", val_fraction=0.0), ByteEncoder(), Auditor(ByteEncoder, None, 0.0))
        self._fail_at = fail_at

    def run(self, batch: Batch) -> EncodedBatch:
        time.sleep(0.003 if batch.index % 3 == 0 else 0)
        if batch.index in self._fail_at:
            raise BadTextError(f"batch {batch.index}")
        return super().run(batch)


def pipeline(reader: Batches, flow: Flow | None = None, *, n_threads: int = 3, fail_at: tuple[int, ...] = ()) -> Pipeline:
    return Pipeline(
        reader,
        lambda: SlowStage(fail_at),
        n_threads=n_threads,
        flow=flow or Flow(1 << 20),
        cache_reset=CacheReset(1 << 60, lambda _before, _after: None),
        on_tick=lambda: None,
    )


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_corpus(n_threads: int) -> None:
    results = list(pipeline(Batches(60), n_threads=n_threads).results(Cursor()))
    assert [r.index for r in results] == list(range(60))
    assert [int(r.runs[0].ids[0]) for r in results] == [i % 100 for i in range(60)]


def test_the_reader_is_never_further_ahead_than_the_flow_allows() -> None:
    cost = a_batch([b"x" * 100]).cost_bytes
    reader = Batches(200)
    results = pipeline(reader, Flow(4 * cost)).results(Cursor())
    for n_taken, _ in enumerate(results, 1):
        time.sleep(0.002)
        # A batch that was encoded holds 208 bytes of the 928 it was taken for: 17 of them, one being made, the one just taken.
        assert reader.n_read <= n_taken + 4 * cost // 208 + 2


def test_a_batch_larger_than_the_flow_passes_alone() -> None:
    assert len(list(pipeline(Batches(5, size=1000), Flow(10)).results(Cursor()))) == 5


def test_the_first_error_in_the_order_of_the_corpus_is_raised_whatever_thread_met_it_first() -> None:
    for _ in range(5):
        taken: list[int] = []
        results = pipeline(Batches(40), fail_at=(9, 10, 11)).results(Cursor())
        with pytest.raises(BadTextError, match="batch 9"):
            taken.extend(result.index for result in results)
        assert taken == list(range(9))


def test_an_error_of_the_reader_is_raised_behind_what_it_read() -> None:
    taken: list[int] = []
    results = pipeline(Batches(7, InputError("torn"))).results(Cursor())
    with pytest.raises(InputError, match="torn"):
        taken.extend(result.index for result in results)
    assert taken == list(range(7))


def test_stopping_writes_what_is_on_its_way_and_ends() -> None:
    flow = Flow(1 << 20)
    reader = Batches(10_000)
    taken: list[int] = []
    for result in pipeline(reader, flow).results(Cursor()):
        taken.append(result.index)
        if len(taken) == 20:
            flow.stop()
    assert taken == list(range(len(taken)))
    assert 20 <= len(taken) < 10_000
    assert reader.closed


def test_stopping_does_not_wait_for_a_reader_that_is_blocked() -> None:
    released, answers = threading.Event(), list[bool]()

    class Blocked(Batches):
        def batches(self, start: Cursor) -> Iterator[Batch]:
            yield a_batch([b"x"], index=0)
            answers.append(released.wait(PATIENCE_S))

    flow = Flow(1 << 20)
    results = pipeline(Blocked(1), flow).results(Cursor(), tick_s=0.01)
    assert next(results).index == 0
    flow.stop()
    assert list(results) == []
    assert answers == [], "the reader is still blocked"
    released.set()


def test_closing_the_results_ends_the_threads() -> None:
    before = threading.active_count()
    results = pipeline(Batches(10_000)).results(Cursor())
    next(results)
    results.close()
    assert threading.active_count() <= before


class Panic(BaseException):
    """What an engine in Rust raises: no Exception."""


def test_a_panic_in_an_encoder_thread_is_raised_behind_what_was_encoded() -> None:
    class Panicking(SlowStage):
        def run(self, batch: Batch) -> EncodedBatch:
            if batch.index == 9:
                raise Panic("at byte 4")
            return super().run(batch)

    pipe = Pipeline(
        Batches(40),
        Panicking,
        n_threads=2,
        flow=Flow(1 << 20),
        cache_reset=CacheReset(1 << 60, lambda _b, _a: None),
        on_tick=lambda: None,
    )
    taken: list[int] = []
    with pytest.raises(Panic, match="at byte 4"):
        taken.extend(result.index for result in pipe.results(Cursor()))
    assert taken == list(range(9))


def test_a_panic_in_the_reader_does_not_pass_for_the_end_of_the_corpus() -> None:
    with pytest.raises(Panic, match="in the reader"):
        list(pipeline(Batches(7, Panic("in the reader"))).results(Cursor()))


def test_an_unforeseen_error_in_a_thread_is_raised_not_swallowed() -> None:
    def broken() -> EncodeStage:
        raise RuntimeError("no engine")

    pipe = Pipeline(
        Batches(3), broken, n_threads=2, flow=Flow(1000), cache_reset=CacheReset(1 << 60, lambda _b, _a: None), on_tick=lambda: None
    )
    with pytest.raises(RuntimeError, match="no engine"):
        list(pipe.results(Cursor()))
    assert issubclass(TokmillError, Exception)
