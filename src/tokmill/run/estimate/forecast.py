"""What a run will be before it is one: sizes, documents, tokens, disk, memory and time. Nothing is written, nothing is changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import MIB, Job
from tokmill.core.errors import Interrupted, WorkerDiedError
from tokmill.core.events import Failed
from tokmill.core.records import BLOCK_BYTES, DIVIDE_ABOVE_BYTES, Compression, text_to_path
from tokmill.core.system.budget import BudgetShares, divide_budget
from tokmill.core.system.memory import available_bytes
from tokmill.core.system.process import Child, error_of
from tokmill.core.text import counted
from tokmill.output import DiskNeed, disk_need, is_complete, item_bytes, most_tokens
from tokmill.run.estimate.statistics import Answer, Estimate, Question, Totals, totals

if TYPE_CHECKING:
    from tokmill.core.config import Content
    from tokmill.core.records import Input
    from tokmill.run.job import PlannedJob

NOWHERE = "/dev/null/nowhere"
"""An output directory that cannot be, for a plan without one: no input lies in it."""
_SAMPLE_BYTES = 13 * MIB
_CACHE_COST = 20
"""Bytes of engine cache for a byte of text at most (text of unique words: 18 measured)."""
_START_S = 1.0
"""Two interpreters, both engines' tables, the first documents encoded again, the last fsync."""
_FILE_S = 0.0004
"""To open, read and close one file of this machine (20,000 small ones: 6 to 9.6 s measured)."""
_EFFICIENCY = 0.75
"""Of the encoder threads, in a run: the rest of the time they wait for reader, writer and interpreter (0.6 to 0.9 measured)."""
_UNCERTAIN = (0.6, 2.5)
"""What encoding took by what was expected, at best and at worst, on a machine that does other things too."""
_SURE = 0.1
"""Chance of an empty side that is not worth a word; see `api`, which speaks of it afterwards."""
_ENOUGH = 5
_MOST_VAL = 0.5
_POINTER_BYTES = 8
_INT_BYTES = 32
"""A Python int up to 2**30: 28 bytes, of which the allocator makes 32."""


class InputPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One input."""

    path: str
    format: str
    compression: Compression
    size_bytes: int | None
    """Apparent size; None for standard input and pipes."""
    disk_bytes: int | None
    """Taken on disk; less than the size for a file with holes; None for what is not on a disk of this machine."""
    decompressed_bytes: int | None
    decompressed_is_estimate: bool


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The budget, term by term: no run holds more."""

    budget_bytes: int
    parent_bytes: int
    """The process that was typed."""
    worker_bytes: int
    """The process that tokenizes, before it has read anything."""
    reference_bytes: int
    """The reference tokenizer, for the sample that is encoded again."""
    inputs_bytes: int
    """The list of inputs, in both processes."""
    reader_bytes: int
    in_flight_bytes: int
    """Batches between reader and writer."""
    caches_bytes: int
    """The engine's; what is left of the budget. They are given back when it is used up."""
    available_bytes: int | None
    """Of the machine, now."""

    peak_bytes: int
    """The sum of the terms."""


class TimePlan(msgspec.Struct, frozen=True, kw_only=True):
    """How long it may take."""

    n_threads: int
    engine_bytes_per_s: float | None
    """Measured on the sample, of one thread; None when there was too little text."""
    expected_s: float
    low_s: float
    high_s: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run will be; the object that `plan --json` prints."""

    inputs: list[InputPlan]
    totals: Totals | None
    """None when nothing can be said: an input is standard input or a pipe."""
    is_exact: bool
    """The corpus is small enough to have been encoded whole."""
    bytes_per_token: float | None
    """Of text."""
    tokenizer: str
    dtype: str
    output_bytes: Estimate | None
    disk: DiskNeed | None
    """None without --out, or when nothing can be said."""
    is_complete: bool
    """The output is there already: a run would write nothing."""
    memory: MemoryPlan
    time: TimePlan | None
    list_of_ints_bytes: int | None
    """What all ids would have taken as a Python list."""
    elapsed_s: float
    """Of making this plan."""
    notices: list[str]

    def raise_for_disk(self) -> None:
        """Raises DiskFullError when the output will not fit."""
        if self.disk is not None and not self.is_complete:
            self.disk.check()


def make_plan(planned: PlannedJob, elapsed_s: float = 0.0) -> Plan:
    """The plan of a job. Raises TokmillError when an input cannot be read."""
    job, content = planned.job, planned.job.content
    answer = ask(job, _sample_bytes(job), decode_s=2.0, encode_s=2.5)
    found = totals(answer.groups) if not answer.n_unknown else None
    complete = is_complete(job)
    return Plan(
        inputs=_inputs(content.inputs, answer),
        totals=found,
        is_exact=found is not None and all(group.is_whole and not group.extra_error for group in answer.groups),
        bytes_per_token=found.bytes_text.value / found.tokens.value if found and found.tokens.value else None,
        tokenizer=content.tokenizer.name,
        dtype=content.dtype,
        output_bytes=_times(found.tokens, item_bytes(content)) if found else None,
        disk=disk_need(job, found.tokens.value, found.bytes_in.value) if found and job.out != NOWHERE else None,
        is_complete=complete,
        memory=_memory(job),
        time=_time(job, found, answer.engine_bytes_per_s) if found else None,
        list_of_ints_bytes=_POINTER_BYTES * found.tokens.value + _INT_BYTES * found.large_ids.value if found else None,
        elapsed_s=elapsed_s,
        notices=[*planned.notices, *answer.notices, *_validation_notices(content, found), *_memory_notices(job)],
    )


def check_disk(job: Job, carried_bytes: int = 0) -> None:
    """Raises DiskFullError when an output will surely not fit. Takes a small sample, and none where space is ample.

    carried_bytes: as in `disk_need`.
    """
    most = most_tokens(job.content)
    if most is None or disk_need(job, *most, carried_bytes).fits or is_complete(job):
        return
    answer = ask(job, MIB, decode_s=0.15, encode_s=0.15)
    found = totals(answer.groups)
    # A small sample refuses only what its whole interval refuses.
    disk_need(job, found.tokens.low, found.bytes_in.low, carried_bytes).check(is_staged=bool(job.destination))


def ask(job: Job, sample_bytes: int, *, decode_s: float, encode_s: float) -> Answer:
    """What the sampling process says. Raises TokmillError."""
    question = Question(
        content=job.content,
        engine=job.resources.engine,
        sample_bytes=sample_bytes,
        decode_s=decode_s,
        encode_s=encode_s,
        urls=job.urls,
    )
    child = Child("tokmill.run.estimate.sampler")
    try:
        child.ask(msgspec.json.encode(question))
        answer = next(child.lines(), None)
    finally:
        child.end()
    if answer is None:
        if child.interrupts:
            raise Interrupted(
                "interrupted; nothing was written",
                where="the process that looks at samples",
                allowed="an end at any time",
                next_step="run the same command again",
            )
        raise WorkerDiedError(
            f"the process that looks at samples died ({child.cause()}): {child.last_words or 'without a word'}",
            where="the process that looks at samples",
            allowed="a sample of the corpus in the memory that there is",
            next_step="free memory and run again; if it happens again, report it",
        )
    decoded: Answer | Failed = msgspec.json.decode(answer, type=Answer | Failed)
    if isinstance(decoded, Failed):
        raise error_of(decoded)
    return decoded


def _sample_bytes(job: Job) -> int:
    """As much as the engine's caches can take within the budget."""
    shares = _shares(job)
    return max(2 * MIB, min(_SAMPLE_BYTES, shares.caches_bytes // _CACHE_COST))


def _inputs(inputs: tuple[Input, ...], answer: Answer) -> list[InputPlan]:
    decompressed = {i: (n_bytes, not is_counted) for i, n_bytes, is_counted in answer.decompressed}
    return [
        InputPlan(
            path=source.path,
            format=source.format,
            compression=source.compression,
            size_bytes=source.size_bytes,
            disk_bytes=_disk_bytes(source),
            decompressed_bytes=decompressed[i][0] if i in decompressed else source.size_bytes,
            decompressed_is_estimate=i in decompressed and decompressed[i][1],
        )
        for i, source in enumerate(inputs)
    ]


def _disk_bytes(source: Input) -> int | None:
    if source.size_bytes is None or source.is_remote:
        return None
    try:
        return os.stat(text_to_path(source.path)).st_blocks * 512
    except OSError:
        return None


def _shares(job: Job) -> BudgetShares:
    inputs = job.content.inputs
    is_remote = any(source.is_remote for source in inputs)
    is_sent = bool(job.destination)
    return divide_budget(job.resources.budget_bytes, job.resources.n_threads, len(inputs), is_remote=is_remote, is_sent=is_sent)


def _memory(job: Job) -> MemoryPlan:
    shares = _shares(job)
    return MemoryPlan(
        budget_bytes=shares.budget_bytes,
        parent_bytes=shares.parent_bytes,
        worker_bytes=shares.worker_bytes,
        reference_bytes=shares.reference_bytes,
        inputs_bytes=shares.inputs_bytes,
        reader_bytes=shares.reader_bytes,
        in_flight_bytes=shares.in_flight_bytes,
        caches_bytes=shares.caches_bytes,
        available_bytes=available_bytes(),
        peak_bytes=shares.parent_bytes
        + shares.worker_bytes
        + shares.reference_bytes
        + shares.inputs_bytes
        + shares.reader_bytes
        + shares.in_flight_bytes
        + shares.caches_bytes,
    )


def _validation_notices(content: Content, found: Totals | None) -> list[str]:
    """What to say when validation may well have nothing though it was asked for, or training."""
    if found is None or not content.val_fraction or not found.documents.value:
        return []
    n, n_bytes = found.documents.value, found.bytes_text.value
    # Documents above the limit are divided in blocks, and these are what is chosen from.
    n_blocks = max(n, n_bytes // BLOCK_BYTES) if n_bytes > DIVIDE_ABOVE_BYTES * n else n
    expected = content.val_fraction * n_blocks
    none = (1 - content.val_fraction) ** n_blocks
    if none < _SURE:
        return []
    better = min(_MOST_VAL, _ENOUGH / n_blocks)
    about = f"{expected:.1f}" if expected < 10 else f"{expected:,.0f}"
    empty = f"that side may well be empty (chance {100 * none:.0f} %)"
    what = f"about {about} of {counted(n_blocks, 'document')} will be for validation: {empty}"
    if n_blocks == 1:
        return [f"{what}; say with --separator where documents end, or --val-fraction 0"]
    return [f"{what}; --val-fraction {better:.2g} makes it likely to have some, 0 leaves it out"]


def _memory_notices(job: Job) -> list[str]:
    available, budget = available_bytes(), job.resources.budget_bytes
    if available is None or available >= budget:
        return []
    return [f"the budget is {budget / MIB:,.0f} MiB, but only {available / MIB:,.0f} MiB of memory are available now"]


def _time(job: Job, found: Totals, rate: float | None) -> TimePlan:
    n_threads = job.resources.n_threads
    n_parallel = min(n_threads, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    # Too little text to measure the engine is too little for it to matter.
    encoding_s = found.bytes_text.value / (rate * n_parallel * _EFFICIENCY) if rate else 0.0
    expected_s = _START_S + encoding_s + _FILE_S * len(job.content.inputs)
    low, high = _UNCERTAIN
    return TimePlan(
        n_threads=n_threads,
        engine_bytes_per_s=round(rate, 1) if rate else None,
        expected_s=round(expected_s, 2),
        low_s=round(low * expected_s, 2),
        high_s=round(high * expected_s, 2),
    )


def _times(estimate: Estimate, factor: int) -> Estimate:
    return Estimate(value=estimate.value * factor, low=estimate.low * factor, high=estimate.high * factor)
