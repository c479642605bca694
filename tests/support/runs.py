"""Runs in the process of the test, with batches and segments so small that a small corpus has many."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.corpora import SEP
from support.engines import lent_engines

from tokmill.check.repairing.start import repair_job
from tokmill.check.repairing.worker import RepairProcess
from tokmill.core.config import BudgetTerms, Job, Resources
from tokmill.core.events import AnyEvent, Finished, Repaired
from tokmill.core.options import PlanOptions
from tokmill.derive import appending
from tokmill.encode import load_encoder
from tokmill.output.directory import Output
from tokmill.run.channel import Channel
from tokmill.run.coordinator import Coordinator, start_workers
from tokmill.run.job import make_job
from tokmill.run.parts import tokenize
from tokmill.run.parts.finalize import parts_store
from tokmill.run.pool import Pool
from tokmill.run.shared_memory import SharedMemory
from tokmill.run.worker import Worker

SMALL = {"batch_bytes": 700, "segment_bytes": 2500, "terms": BudgetTerms(n_threads=1)}
TINY = {"batch_bytes": 400, "segment_bytes": 800, "terms": BudgetTerms(n_threads=1)}
UNWATCHED = {"child_bytes": 1 << 41, "reset_above_bytes": 1 << 40, "n_workers": 1}
"""A process that runs all tests is larger than any worker may be; its guard would pause and leave."""


class ThreadedPool(Pool):
    """Workers that are threads of this process, so that a test need not fork, and sees what they do."""

    LEAST_WRITTEN_BYTES = 64

    def _start(self, make: Callable[[int], Worker], number: int, its: tuple[socket.socket, ...], ours: object) -> int:
        worker = make(number)
        if number:
            worker._encoder = load_encoder(worker._job.content.tokenizer, worker._job.resources.engine)

        def work(serve: Callable[[Channel, SharedMemory], None], channel: Channel) -> None:
            try:
                serve(channel, self._shared)
            finally:
                channel.close()

        served = zip((worker.serve, worker.attendant.serve), map(Channel, its), strict=True)
        threads = [threading.Thread(target=work, args=each, daemon=True) for each in served]
        self.threads = getattr(self, "threads", [])
        for i, thread in enumerate(threads):
            try:
                thread.start()
            except RuntimeError:
                for end in its[i:]:
                    end.close()
                raise
            self.threads.append(thread)
        self.workers = [*getattr(self, "workers", []), worker]
        return 0

    def _lose(self, number: int) -> None:
        raise AssertionError(f"worker {number} ended; its thread says why")

    def pids(self) -> list[int]:
        return []

    def close(self) -> None:
        super().close()
        for thread in self.threads:
            thread.join()
        # Engines and arenas would stay until Python finds that nobody has the pool any more.
        self.threads, self.workers = [], []
        self._shared.forget(0, len(self._shared.view))


def carry_out(
    job: Job, emit: Callable[[AnyEvent], None], on_begin: Callable[[Coordinator], None] = lambda _coordinator: None
) -> None:
    """A job in this process. on_begin: gets the coordinator."""
    with lent_engines():
        pool = start_workers(job, ThreadedPool)
        try:
            coordinator = Coordinator(job, emit, pool)
            on_begin(coordinator)
            coordinator.run()
        finally:
            pool.close()


def run_in_process(
    inputs: Sequence[Path | str], out: Path, resources: Mapping[str, object] | None = None, **options: object
) -> None:
    """A run in this process, with resources that no person can ask for (tiny batches). destination: `out` is its stage."""
    destination = str(options.pop("destination", ""))
    job = make_job([str(i) for i in inputs], PlanOptions(**options), out=str(out)).job  # type: ignore[arg-type]
    changed = {f: getattr(job.resources, f) for f in job.resources.__struct_fields__} | UNWATCHED | dict(resources or {})
    events: list[AnyEvent] = []
    carry_out(msgspec.structs.replace(job, resources=Resources(**changed), destination=destination), events.append)


def tokenize_in_small_segments(*arguments: object, **options: object) -> None:
    """A run that waits for each commit, so that none is put off for the one before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "is_settled", property(lambda output: output.settle() is None))
        run_in_process(*arguments, **options)  # type: ignore[arg-type]


def tokenize_directly(out: Path, corpus: Path, **options: Any) -> None:
    """A run of tokenize into any format and shards, in small batches and segments."""
    job = make_job([str(corpus)], PlanOptions(val_fraction=0.2, **options), out=str(out)).job
    resources = msgspec.structs.replace(
        job.resources, batch_bytes=500, segment_bytes=1500, terms=BudgetTerms(n_threads=1), **UNWATCHED
    )
    events: list[AnyEvent] = []
    carry_out(msgspec.structs.replace(job, resources=resources), events.append)


def tokenize_documents(out: Path, documents: list[bytes], resources: dict[str, object] | None = None, **options: Any) -> Path:
    """A run of its own corpus, `out`.txt, in several segments. Returns the corpus."""
    corpus = out.parent / f"{out.name}.txt"
    corpus.write_bytes(SEP.encode().join(documents))
    run_in_process([corpus], out, TINY | (resources or {}), **({"val_fraction": 0.2} | options))
    return corpus


def append_in_process(inputs: Sequence[Path], out: Path, *, fresh: bool = False, **options: Any) -> None:
    """An append in this process, in small batches."""
    planned = make_job([str(i) for i in inputs], PlanOptions(fresh=fresh, **({"val_fraction": 0.2} | options)), out=str(out))
    job = appending.extend(planned).job
    job = appending.copy_old_output(job, ()) if job.made_from else job
    events: list[AnyEvent] = []
    resources = msgspec.structs.replace(job.resources, **TINY, **UNWATCHED)
    carry_out(msgspec.structs.replace(job, resources=resources), events.append)


def repair_in_process(out: Path, resources: Mapping[str, object] | None = None, sources: list[str] | None = None) -> list[Repaired]:
    """A repair in this process, with resources that no person can ask for."""
    job = repair_job(out, sources, glob=None, memory=None, threads=None)
    changed = {f: getattr(job.resources, f) for f in job.resources.__struct_fields__} | UNWATCHED | dict(resources or SMALL)
    events: list[AnyEvent] = []
    fields = {f: getattr(job, f) for f in job.__struct_fields__} | {"resources": type(job.resources)(**changed)}
    with lent_engines():
        RepairProcess(type(job)(**fields), events.append).run()
    return [event for event in events if isinstance(event, Repaired)]


def plan_parts(inputs: Any, out: Path, count: int, resources: Mapping[str, object] | None = None, **options: Any) -> Job:
    """The job of a whole that is made in parts, agreed on, with resources that no person can ask for."""
    parts = parts_store(str(out))
    job = tokenize.whole_job(make_job([str(i) for i in inputs], PlanOptions(**options), out=str(out)).job, count, parts)
    changed = msgspec.structs.replace(job.resources, **{**UNWATCHED, **SMALL, **(resources or {})})
    job = msgspec.structs.replace(job, resources=changed)
    assert tokenize.begin(parts, job, force=True) is None
    return job


def make_part(job: Job, index: int) -> Finished:
    """One part, in this process, each commit awaited so that none is put off for the one before."""
    events: list[AnyEvent] = []
    with pytest.MonkeyPatch.context() as patch, lent_engines():
        patch.setattr(Output, "is_settled", property(lambda output: output.settle() is None))
        carry_out(tokenize.part_job(job, index), events.append)
    assert isinstance(events[-1], Finished)
    return events[-1]


def make_parts(inputs: Any, out: Path, count: int, resources: Mapping[str, object] | None = None, **options: Any) -> None:
    job = plan_parts(inputs, out, count, resources, **options)
    # In any order.
    for index in sorted(range(count), key=lambda i: (i % 3, -i)):
        make_part(job, index)
