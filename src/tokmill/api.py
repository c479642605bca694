"""`plan` and `tokenize` for Python: plan a job, run it, say what came of it. Silent: to see something, pass observers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from tokmill.disk import is_complete
from tokmill.emptiness import emptiness_notices
from tokmill.forecast import NOWHERE, Plan, check_disk, foresee
from tokmill.planning import details, make_job
from tokmill.probe import peak_rss_bytes
from tokmill.provenance import Provenance
from tokmill.runner import LocalRunner
from tokmill.trainers import dropped_notices, dropped_tokens, tail_notices
from tokmill.types import AnyEvent, Detail, FileEntry, Notice, Progress, Restarted, Started

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from tokmill.config import Job
    from tokmill.protocols import Observer
    from tokmill.types import Finished


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did; the object that `--json` prints."""

    documents: int
    """Met in the corpus, skipped ones included."""
    documents_train: int
    documents_val: int
    tokens_train: int
    """End-of-text ids included."""
    tokens_val: int
    dropped_tokens_train: int
    """Of those, left out by --drop-tail: in no file."""
    dropped_tokens_val: int
    bytes_in: int
    """Decompressed bytes of the inputs, those of an earlier run that was resumed included."""
    bytes_text: int
    """Bytes of the documents that were encoded."""
    elapsed_s: float
    """Of this call."""
    work_s: float
    """Of it, what the worker took to read, encode and write, without its start and end; of the runs of an output, the sum of these
    is the time in its manifest and report."""
    bytes_per_s: float
    """Input that this call read, by `elapsed_s`."""
    tokens_per_s: float
    peak_rss_bytes: int
    """Of all processes: this one's peak and the worker's, added up."""
    budget_bytes: int
    """What --memory allowed."""
    appended_to: Provenance | None
    """Of --append, what there was before; None when nothing was added."""
    resumed: bool
    """Whether it went on from an earlier run."""
    already_complete: bool
    """Whether there was nothing left to do."""
    restarts: int
    """How often the worker died and was started again."""
    skipped: dict[str, int]
    """Documents by reason."""
    invalid_utf8_documents: int
    """Documents changed by --encoding-errors replace or ignore."""
    audited_documents: int
    """Encoded again by the reference tokenizer and found the same."""
    tokenizer: str
    dtype: str
    out: str
    """Output directory, absolute."""
    files: dict[str, FileEntry]
    """Complete files in `out`, by name."""
    notices: list[str]
    """What a person should know of the result: an empty side, text that is perhaps JSON lines; and what to type against it."""


def tokenize(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    tokenizer: str = "gpt2",
    eot_token: str | None = None,
    separator: str = "<|endoftext|>",
    text_key: str = "text",
    glob: str | None = None,
    input_format: str | None = None,
    eot: str = "auto",
    val_fraction: float = 0.0005,
    seed: int = 0,
    dtype: str = "auto",
    format: str = "raw",  # noqa: A002  the name of the option
    shard_tokens: str | int | None = None,
    shard_documents: bool = False,
    drop_tail: bool = False,
    keep_empty: bool = False,
    memory: str | int | None = None,
    threads: int | None = None,
    nice: bool = False,
    on_error: str = "stop",
    max_skipped: int | None = None,
    encoding_errors: str = "strict",
    engine: str = "gigatoken",
    fresh: bool = False,
    force: bool = False,
    append: bool = False,
    observers: Sequence[Observer] = (),
) -> Summary:
    """Turn text into `out`/train.bin and `out`/val.bin, or the files of another format, as `tokmill tokenize` does.

    Call it again after a crash to resume.

    inputs: files, directories, patterns, URLs, `-`. separator: as typed on the command line (`none`, or text with its escapes).
    eot: `auto` is what the format's trainer expects. shard_tokens: tokens of a file, a number or text such as `100M`;
    shard_documents: files end only where documents end; drop_tail: without what fills no file. memory: bytes, or text such as
    `1GiB`. nice: the worker takes what others leave of processor and disk. force: begin even though the output will not fit on
    the disk. observers: told of every event, in this thread. append: add the inputs to the complete output in `out`; with fresh,
    what an earlier append left there unfinished is discarded. Raises TokmillError.
    """
    meter = _Meter()
    with LocalRunner() as runner:
        planned = make_job(
            [str(i) for i in _listed(inputs)],
            out=str(out),
            tokenizer=tokenizer,
            eot_token=eot_token,
            separator=separator,
            text_key=text_key,
            glob=glob,
            input_format=input_format,
            eot=eot,
            val_fraction=val_fraction,
            seed=seed,
            dtype=dtype,
            format=format,
            shard_tokens=shard_tokens,
            shard_documents=shard_documents,
            drop_tail=drop_tail,
            keep_empty=keep_empty,
            memory=memory,
            threads=threads,
            nice=nice,
            on_error=on_error,
            max_skipped=max_skipped,
            encoding_errors=encoding_errors,
            engine=engine,
            fresh=fresh,
        )
        asked, doubts, carried_bytes = planned.job, planned.doubts, 0
        if append:
            # Here, so that a run without it loads no numpy.
            from tokmill.appending import carried, carry_over, extend

            planned = extend(planned)
            carried_bytes = carried(planned.job)
        for detail in details(asked):
            for observer in observers:
                observer.on_event(Detail(text=detail))
        _tell(observers, planned.notices)
        if not force and not (append and is_complete(planned.job)):
            check_disk(asked, carried_bytes)
        job = carry_over(planned.job, observers) if append and planned.job.made_from else planned.job
        finished = runner.run(job, [meter, *observers])
    summary = _summarize(job, finished, meter, is_append=append)
    _tell(observers, summary.notices)
    return msgspec.structs.replace(summary, notices=[*doubts, *summary.notices])


def plan(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    tokenizer: str = "gpt2",
    eot_token: str | None = None,
    separator: str = "<|endoftext|>",
    text_key: str = "text",
    glob: str | None = None,
    input_format: str | None = None,
    eot: str = "auto",
    val_fraction: float = 0.0005,
    seed: int = 0,
    dtype: str = "auto",
    format: str = "raw",  # noqa: A002  the name of the option
    shard_tokens: str | int | None = None,
    shard_documents: bool = False,
    drop_tail: bool = False,
    keep_empty: bool = False,
    memory: str | int | None = None,
    threads: int | None = None,
    nice: bool = False,
    on_error: str = "stop",
    max_skipped: int | None = None,
    encoding_errors: str = "strict",
    engine: str = "gigatoken",
    fresh: bool = False,
) -> Plan:
    """What `tokenize` with these options will read, write and take, estimated from a sample; nothing is written.

    out: None when the disk is not to be looked at; `raise_for_disk` of the result says whether it is large enough. Raises
    TokmillError: MemoryBudgetError when the budget is too small.
    """
    began_s = time.monotonic()
    planned = make_job(
        [str(i) for i in _listed(inputs)],
        out=str(out) if out is not None else NOWHERE,
        tokenizer=tokenizer,
        eot_token=eot_token,
        separator=separator,
        text_key=text_key,
        glob=glob,
        input_format=input_format,
        eot=eot,
        val_fraction=val_fraction,
        seed=seed,
        dtype=dtype,
        format=format,
        shard_tokens=shard_tokens,
        shard_documents=shard_documents,
        drop_tail=drop_tail,
        keep_empty=keep_empty,
        memory=memory,
        threads=threads,
        nice=nice,
        on_error=on_error,
        max_skipped=max_skipped,
        encoding_errors=encoding_errors,
        engine=engine,
        fresh=fresh,
    )
    made = foresee(planned)
    return msgspec.structs.replace(made, elapsed_s=round(time.monotonic() - began_s, 3))


class _Meter:
    """Notes what the summary needs besides the last event. Implements `protocols.Observer`."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.resumed_bytes: int | None = None
        self.restarts = 0
        self.work_s = 0.0

    def on_event(self, event: AnyEvent) -> None:
        if isinstance(event, Progress):
            self.work_s = event.elapsed_s
        elif isinstance(event, Started) and self.resumed_bytes is None:
            self.resumed_bytes = event.resumed_bytes
        elif isinstance(event, Restarted):
            self.restarts += 1


def _listed(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> Sequence[str | os.PathLike[str]]:
    return inputs if isinstance(inputs, (list, tuple)) else [inputs]  # type: ignore[list-item]


def _tell(observers: Sequence[Observer], notices: Sequence[str]) -> None:
    for notice in notices:
        for observer in observers:
            observer.on_event(Notice(text=notice))


def _summarize(job: Job, finished: Finished, meter: _Meter, *, is_append: bool) -> Summary:
    counts = finished.counts
    elapsed_s = time.monotonic() - meter.started_s
    # A run that is complete already starts nothing and reads nothing.
    n_read = counts.bytes_in - meter.resumed_bytes if meter.resumed_bytes is not None else 0
    share = n_read / counts.bytes_in if counts.bytes_in else 0.0
    dropped = dropped_tokens(job.content, finished.files, counts)
    return Summary(
        documents=counts.documents,
        documents_train=counts.documents_train,
        documents_val=counts.documents_val,
        tokens_train=counts.tokens_train,
        tokens_val=counts.tokens_val,
        dropped_tokens_train=dropped["train"],
        dropped_tokens_val=dropped["val"],
        bytes_in=counts.bytes_in,
        bytes_text=counts.bytes_text,
        elapsed_s=round(elapsed_s, 3),
        work_s=round(meter.work_s, 3),
        bytes_per_s=round(n_read / elapsed_s, 1),
        tokens_per_s=round((counts.tokens_train + counts.tokens_val) * share / elapsed_s, 1),
        peak_rss_bytes=finished.peak_rss_bytes + peak_rss_bytes(),
        budget_bytes=job.resources.budget_bytes,
        appended_to=job.made_from[-1] if is_append and job.made_from else None,
        resumed=bool(meter.resumed_bytes),
        already_complete=finished.already_complete,
        restarts=meter.restarts,
        skipped=dict(counts.skipped),
        invalid_utf8_documents=counts.invalid_utf8_documents,
        audited_documents=counts.audited_documents,
        tokenizer=job.content.tokenizer.name,
        dtype=job.content.dtype,
        out=job.out,
        files=dict(finished.files),
        notices=[
            *emptiness_notices(counts, job.content),
            *dropped_notices(job.content, finished.files, counts),
            *tail_notices(job.content, finished.files),
        ],
    )
