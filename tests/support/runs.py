"""Runs in the process of the test, with batches and segments so small that a small corpus has many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from tokmill.output.directory import Output
from tokmill.run.job import make_job
from tokmill.run.parts import tokenize
from tokmill.run.parts.finalize import parts_store
from tokmill.run.worker import Worker

SMALL = {"batch_bytes": 700, "segment_bytes": 2500, "terms": BudgetTerms(n_threads=1)}
TINY = {"batch_bytes": 400, "segment_bytes": 800, "terms": BudgetTerms(n_threads=1)}
UNWATCHED = {"worker_bytes": 1 << 41, "reset_above_bytes": 1 << 40}
"""A process that runs all tests is larger than any worker may be; its guard would pause and leave."""


def run_in_process(
    inputs: Sequence[Path | str], out: Path, resources: Mapping[str, object] | None = None, **options: object
) -> None:
    """A run in this process, with resources that no person can ask for (tiny batches). destination: `out` is its stage."""
    destination = str(options.pop("destination", ""))
    job = make_job([str(i) for i in inputs], PlanOptions(**options), out=str(out)).job  # type: ignore[arg-type]
    changed = {f: getattr(job.resources, f) for f in job.resources.__struct_fields__} | UNWATCHED | dict(resources or {})
    events: list[AnyEvent] = []
    with lent_engines():
        Worker(msgspec.structs.replace(job, resources=Resources(**changed), destination=destination), events.append).run()


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
    with lent_engines():
        Worker(msgspec.structs.replace(job, resources=resources), events.append).run()


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
    with lent_engines():
        Worker(msgspec.structs.replace(job, resources=resources), events.append).run()


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
        Worker(tokenize.part_job(job, index), events.append).run()
    assert isinstance(events[-1], Finished)
    return events[-1]


def make_parts(inputs: Any, out: Path, count: int, resources: Mapping[str, object] | None = None, **options: Any) -> None:
    job = plan_parts(inputs, out, count, resources, **options)
    # In any order.
    for index in sorted(range(count), key=lambda i: (i % 3, -i)):
        make_part(job, index)
