"""The plan of a run: sizes, documents, tokens, disk, memory and time. Nothing is written."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import MIB, Job
from tokmill.core.errors import Interrupted, UsageError, WorkerDiedError
from tokmill.core.events import Failed
from tokmill.core.records import ITEM_BYTES, Compression, text_to_path
from tokmill.core.system.budget import BudgetShares, divide_budget
from tokmill.core.system.child import Child
from tokmill.core.system.memory import available_bytes, usable_cores
from tokmill.core.system.process import error_of
from tokmill.output import DiskNeed, arranging_bytes, change_at, check_n_files, disk_need, is_complete, most_tokens, n_shards
from tokmill.run.advice import possibly_short_notices, shard_notices
from tokmill.run.estimate.statistics import Estimate, SampleRequest, SampleResult, Totals
from tokmill.run.job import NOWHERE

if TYPE_CHECKING:
    from tokmill.core.records import Input
    from tokmill.run.job import PlannedJob

_SAMPLE_BYTES = 13 * MIB
_CACHE_COST = 20
"""Bytes of engine cache for a byte of text at most (text of unique words: 18 measured)."""
_START_S = 1.0
"""Two interpreters, both engines' tables, the first documents encoded again, the last fsync."""
_FILE_S = 0.0004
"""To open, read and close one file of this machine (20,000 small ones: 6 to 9.6 s measured)."""
_EFFICIENCY = 0.75
"""Share of a worker's time in which it encodes; else it reads, writes or waits (0.6 to 0.9 measured)."""
ARRANGED_BYTES_PER_S = 200e6
"""Of ids, twice read and twice written: about what a disk of a desktop does."""
_SHUFFLE_PASSES, _DEDUP_PASSES = 3, 2
"""As they are tokenized, into buckets, and in order; as they are tokenized, and without copies."""
_UNCERTAIN = (0.6, 2.5)
"""Time taken by time expected, at best and at worst, on a machine that does other things too."""
_LIST_BYTES = 32
"""For each id, about: a pointer of 8 bytes, and for three ids of four an int of 32 (Python keeps those up to 256 ready-made)."""


class InputPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a plan."""

    path: str
    format: str
    compression: Compression
    size_bytes: int | None
    """Apparent size; None for standard input and pipes."""
    disk_bytes: int | None
    """Space taken on this machine's disk, less than the size for a file with holes; None if it is not on one."""
    decompressed_bytes: int | None
    decompressed_is_estimate: bool
    side: str | None = None
    """`val` for an input of --val-input; None: training, or both sides."""


class MemoryPlan(BudgetShares, frozen=True, kw_only=True):
    """The budget, term by term: no run holds more."""

    available_bytes: int | None
    """What the machine has available now."""
    peak_bytes: int
    """The sum of the terms."""


class TimePlan(msgspec.Struct, frozen=True, kw_only=True):
    """How long a run may take."""

    n_threads: int
    engine_bytes_per_s: float | None
    """Measured on the sample, of one thread; None when there was too little text."""
    expected_s: float
    low_s: float
    high_s: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan of a run; the object that `plan --json` prints."""

    inputs: list[InputPlan]
    totals: Totals | None
    """None if an input is standard input or a pipe, which cannot be sampled."""
    is_exact: bool
    """The corpus is small enough to have been encoded whole."""
    bytes_per_token: float | None
    """Bytes of text by tokens."""
    tokenizer: str
    dtype: str
    output_bytes: Estimate | None
    passes: int
    """How often the ids are written; more than once with --shuffle or --dedup."""
    scratch_bytes: Estimate | None
    """Temporary disk beside the output; 0 without --shuffle and --dedup."""
    disk: DiskNeed | None
    """None without --out, or without `totals`."""
    is_complete: bool
    """The output exists already: a run would write nothing."""
    memory: MemoryPlan
    time: TimePlan | None
    list_of_ints_bytes: int | None
    """What all ids would take as a Python list, about."""
    elapsed_s: float
    """Time that making this plan took."""
    notices: list[str]

    def raise_for_disk(self) -> None:
        """Raise DiskFullError if the output will not fit."""
        if self.disk is not None and not self.is_complete:
            self.disk.check()


def make_plan(planned: PlannedJob, seed: int | None = None, *, is_deduplicated: bool = False) -> Plan:
    """Return the plan of a job. seed: of the order of its documents; None: they stay in theirs. is_deduplicated: copies go.

    Raises:
        TokmillError: An input cannot be read, or the sampling process failed.
    """
    job, content = planned.job, planned.job.content
    is_derived = seed is not None or is_deduplicated
    budget = job.resources.budget_bytes
    shares = divide_budget(budget, job.resources.terms)
    sample_bytes = max(2 * MIB, min(_SAMPLE_BYTES, shares.caches_bytes // _CACHE_COST))
    sample = ask(job, sample_bytes, decode_s=2.0, encode_s=2.5)
    found = sample.totals
    notices = [*planned.notices, *sample.notices]
    if found:
        # A better number than that of the sizes alone.
        notices = [each for each in notices if each not in shard_notices(content)]
        notices += shard_notices(content, n_shards(content, found.tokens.value, found.documents.value))
        notices += possibly_short_notices(found.documents.value, found.bytes_text.value, found.tokens.value, content)
    if job.out != NOWHERE and (change := change_at(job, seed, is_deduplicated=is_deduplicated)):
        notices.insert(0, f"tokenize will refuse this --out: {change}; choose another, or start over with --fresh")
    available = available_bytes()
    if available is not None and available < budget:
        notices.append(f"the budget is {budget / MIB:,.0f} MiB, but only {available / MIB:,.0f} MiB of memory are available now")
    return Plan(
        inputs=[_input(each, sample.decompressed.get(i, (each.size_bytes, True))) for i, each in enumerate(content.inputs)],
        totals=found,
        is_exact=sample.is_exact,
        bytes_per_token=found.bytes_text.value / found.tokens.value if found and found.tokens.value else None,
        tokenizer=content.tokenizer.name,
        dtype=content.dtype,
        output_bytes=found.tokens * ITEM_BYTES[content.dtype] if found else None,
        passes=_SHUFFLE_PASSES if seed is not None else _DEDUP_PASSES if is_deduplicated else 1,
        scratch_bytes=_scratch(job, found) * is_derived if found else None,
        disk=_disk(job, found, is_derived=is_derived) if found and job.out != NOWHERE else None,
        is_complete=is_complete(job, seed, is_deduplicated=is_deduplicated),
        memory=MemoryPlan(**msgspec.structs.asdict(shares), available_bytes=available, peak_bytes=shares.sum_bytes),
        time=_time(job, found, sample.engine_bytes_per_s, is_derived=is_derived) if found else None,
        list_of_ints_bytes=_LIST_BYTES * found.tokens.value if found else None,
        elapsed_s=0.0,
        notices=notices,
    )


def _scratch(job: Job, found: Totals) -> Estimate:
    """Return the temporary disk of a run that shuffles or deduplicates what it tokenized."""
    tokens, documents = found.tokens, found.documents
    return Estimate(
        value=arranging_bytes(job.content, tokens.value, documents.value),
        low=arranging_bytes(job.content, tokens.low, documents.low),
        high=arranging_bytes(job.content, tokens.high, documents.high),
    )


def _disk(job: Job, found: Totals, *, is_derived: bool) -> DiskNeed:
    n_shuffled = found.documents.value if is_derived else None
    return disk_need(job, found.tokens.value, found.bytes_in.value, n_shuffled=n_shuffled)


def check_disk(job: Job, carried_bytes: int = 0, *, is_shuffled: bool = False) -> None:
    """Check that an output fits, with a small sample, or none where space is ample.

    Args:
        job: What is to be run.
        carried_bytes: As in `disk_need`.
        is_shuffled: Whether the documents are put into another order.

    Raises:
        DiskFullError: It surely will not fit.
        UsageError: It surely would be very many small files.
        TokmillError: The sample cannot be taken.
    """
    most = most_tokens(job.content)
    if most is None or is_complete(job):
        return
    need = disk_need(job, *most, carried_bytes, n_shuffled=most[0] if is_shuffled else None)
    try:
        check_n_files(job.content, most[0], most[0], job.out)
        has_few_files = True
    except UsageError:
        # A run that was begun is gone on with.
        has_few_files = bool(need.written_bytes)
    if need.fits and has_few_files:
        return
    found = ask(job, MIB, decode_s=0.15, encode_s=0.15).totals
    # Only what does not fit at the lower end of the interval is turned down.
    if found is not None:
        n_shuffled = found.documents.low if is_shuffled else None
        need = disk_need(job, found.tokens.low, found.bytes_in.low, carried_bytes, n_shuffled=n_shuffled)
        need.check(is_staged=bool(job.destination), is_least=True)
    if found is not None and not has_few_files:
        check_n_files(job.content, found.tokens.low, found.documents.low, job.destination or job.out)


def ask(job: Job, sample_bytes: int, *, decode_s: float, encode_s: float) -> SampleResult:
    """Return what the sampling process finds. Raises TokmillError; see `SampleRequest`."""
    request = SampleRequest(job=job, sample_bytes=sample_bytes, decode_s=decode_s, encode_s=encode_s)
    child = Child("tokmill.run.estimate.sampler")
    try:
        child.ask(msgspec.json.encode(request))
        line = next(child.lines(), None)
    finally:
        child.end()
    if line is not None:
        answer: SampleResult | Failed = msgspec.json.decode(line, type=SampleResult | Failed)
        if isinstance(answer, Failed):
            raise error_of(answer)
        return answer
    if child.interrupts:
        raise Interrupted(
            "interrupted; nothing was written",
            where="sampling the inputs",
            allowed="stopping at any time",
            next_step="run the same command again",
        )
    words = f"and wrote: {child.last_words}" if child.last_words else "and printed no error"
    raise WorkerDiedError(
        f"the sampling process exited unexpectedly ({child.cause()}) {words}",
        where="sampling the inputs",
        allowed="a sample of the corpus in the memory available",
        next_step="free memory and run again; if it happens again, report it",
    )


def _input(source: Input, decompressed: tuple[int | None, bool]) -> InputPlan:
    disk_bytes = None
    if source.size_bytes is not None and not source.is_remote:
        with suppress(OSError):
            disk_bytes = os.stat(text_to_path(source.path)).st_blocks * 512
    return InputPlan(
        path=source.path,
        format=source.format,
        compression=source.compression,
        size_bytes=source.size_bytes,
        disk_bytes=disk_bytes,
        decompressed_bytes=decompressed[0],
        decompressed_is_estimate=not decompressed[1],
        side=source.side or None,
    )


def _time(job: Job, found: Totals, rate: float | None, *, is_derived: bool) -> TimePlan:
    n_threads = job.resources.n_threads
    # Too little text to measure the engine is too little for it to matter.
    encoding_s = found.bytes_text.value / (rate * min(n_threads, usable_cores()) * _EFFICIENCY) if rate else 0.0
    ordering_s = is_derived * found.tokens.value * ITEM_BYTES[job.content.dtype] / ARRANGED_BYTES_PER_S
    expected_s = _START_S + encoding_s + ordering_s + _FILE_S * len(job.content.inputs)
    low, high = _UNCERTAIN
    return TimePlan(
        n_threads=n_threads,
        engine_bytes_per_s=round(rate, 1) if rate else None,
        expected_s=round(expected_s, 2),
        low_s=round(low * expected_s, 2),
        high_s=round(high * expected_s, 2),
    )
