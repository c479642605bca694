"""`plan` and `tokenize` for Python: plan a job, run it, say what came of it. Silent: to see something, pass observers."""

from __future__ import annotations

import shlex
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import msgspec

from tokmill.config import parse_size
from tokmill.disk import is_complete
from tokmill.emptiness import emptiness_notices
from tokmill.errors import UsageError
from tokmill.forecast import NOWHERE, Plan, check_disk, foresee
from tokmill.planning import details, make_job
from tokmill.read.urls import named
from tokmill.runner import LocalRunner
from tokmill.staging import destination, is_complete_at, output_of, stage_of
from tokmill.summary import Meter, Summary, notices_of, summarize
from tokmill.types import Detail, Notice, is_url, text_to_path

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from tokmill.config import Job
    from tokmill.planning import PlannedJob
    from tokmill.protocols import Observer
    from tokmill.staging import Here, Staged
    from tokmill.types import Finished


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
    stage: str | os.PathLike[str] | None = None,
    stage_size: str | int | None = None,
    split: str | None = None,
    ray: str | None = None,
    split_bytes: str | int = "1GiB",
    observers: Sequence[Observer] = (),
) -> Summary:
    """Turn text into `out`/train.bin and `out`/val.bin, or the files of another format, as `tokmill tokenize` does.

    Call it again after a crash to resume.

    inputs: files, directories, patterns, URLs, `-`. separator: as typed on the command line (`none`, or text with its escapes).
    eot: `auto` is what the format's trainer expects. shard_tokens: tokens of a file, a number or text such as `100M`;
    shard_documents: files end only where documents end; drop_tail: without what fills no file. memory: bytes, or text such as
    `1GiB`. nice: the worker takes what others leave of processor and disk. force: begin even though the output will not fit on
    the disk. observers: told of every event, in this thread. append: add the inputs to the complete output in `out`; with fresh,
    what an earlier append left there unfinished is discarded. split: `3/8` makes part 3 (from 0) of 8 alone, for `finalize`. ray:
    makes parts of about `split_bytes` of input on a cluster (an address, `auto`, `local`, `here`). Raises TokmillError.

    out may be `s3://bucket/prefix`: the output is made on this disk, in a directory inside `stage` (None: inside
    ~/.cache/tokmill/stage), sent, and then taken away there. Of several files a side, each is sent when it is complete; they take
    at most stage_size (None: 4 GiB) here, or what the open ones and a batch, or a document that is longer, take.
    """
    meter = Meter()
    _refuse_together({"--split": split, "--ray": ray, "--append": append or None}, str(out))
    runs = nullcontext(LocalRunner()) if ray is not None else LocalRunner()
    with destination(str(out), None if stage is None else str(stage)) as place, runs as runner:
        planned = make_job(
            [str(i) for i in _listed(inputs)],
            out=place.directory,
            destination=place.url,
            stage_size=stage_size,
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
            threads=1 if ray is not None and threads is None else threads,
            nice=nice,
            on_error=on_error,
            max_skipped=max_skipped,
            encoding_errors=encoding_errors,
            engine=engine,
            fresh=fresh,
        )
        if split is not None or ray is not None:
            _introduce(planned.job, planned.notices, observers)
            done = _in_parts(planned.job, split, ray, split_bytes, runner, meter, observers, force=force)
            return msgspec.structs.replace(done, notices=[*planned.doubts, *done.notices])
        job, finished = _carry_out(planned, place, runner, [meter, *observers], observers, append=append, force=force)
    summary = summarize(job, finished, meter, notices_of(job, finished), is_append=append)
    _tell(observers, summary.notices)
    return msgspec.structs.replace(summary, notices=[*planned.doubts, *summary.notices])


def _carry_out(
    planned: PlannedJob,
    place: Here | Staged,
    runner: LocalRunner,
    watching: Sequence[Observer],
    observers: Sequence[Observer],
    *,
    append: bool,
    force: bool,
) -> tuple[Job, Finished]:
    """The job as it was run, and what came of it. watching: told of the run; observers: of what comes before and behind it."""
    asked, carried_bytes = planned.job, 0
    if append:
        # Here, so that a run without it loads no numpy.
        from tokmill.appending import carried, carry_over, extend

        planned = extend(planned)
        carried_bytes = carried(planned.job)
    _introduce(asked, planned.notices, observers)
    finished = place.begin(asked)
    if finished is not None:
        return planned.job, finished
    if not force and not (append and is_complete(planned.job)):
        check_disk(asked, carried_bytes)
    job = carry_over(planned.job, observers) if append and planned.job.made_from else planned.job
    return job, place.publish(runner.run(job, [*watching, *place.observers]), observers)


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
    stage: str | os.PathLike[str] | None = None,
    stage_size: str | int | None = None,
) -> Plan:
    """What `tokenize` with these options will read, write and take, estimated from a sample; nothing is written.

    out: None when the disk is not to be looked at; `raise_for_disk` of the result says whether it is large enough. Raises
    TokmillError: MemoryBudgetError when the budget is too small.
    """
    began_s = time.monotonic()
    url = str(out) if out is not None and is_url(str(out)) else ""
    if url:
        out = output_of(stage_of(url, None if stage is None else str(stage)))
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
        destination=url,
        stage_size=stage_size,
    )
    made = foresee(planned)
    if url and not fresh:
        made = msgspec.structs.replace(made, is_complete=is_complete_at(planned.job, url))
    return msgspec.structs.replace(made, elapsed_s=round(time.monotonic() - began_s, 3))


def _listed(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> Sequence[str | os.PathLike[str]]:
    return inputs if isinstance(inputs, (list, tuple)) else [inputs]  # type: ignore[list-item]


def _introduce(job: Job, notices: Sequence[str], observers: Sequence[Observer]) -> None:
    for detail in details(job):
        for observer in observers:
            observer.on_event(Detail(text=detail))
    _tell(observers, notices)


def _tell(observers: Sequence[Observer], notices: Sequence[str]) -> None:
    for notice in notices:
        for observer in observers:
            observer.on_event(Notice(text=notice))


def _in_parts(
    asked: Job,
    split: str | None,
    ray: str | None,
    split_bytes: str | int,
    runner: LocalRunner,
    meter: Meter,
    observers: Sequence[Observer],
    *,
    force: bool,
) -> Summary:
    """One part here, or all of them on a cluster."""
    from tokmill.split_runs import run_all, run_split

    if split is not None:
        job, finished = run_split(asked, split, runner, [meter, *observers], force=force)
        part = "" if is_complete(job) else split
        return summarize(job, finished, meter, [_of_part(split, job)] if part else [], split=part)
    # Here, so that nobody else needs it.
    from tokmill.ray_runner import RayRunner

    n_bytes = split_bytes if isinstance(split_bytes, int) else parse_size(split_bytes, "--split-bytes")
    with RayRunner(ray or "") as parts:
        job, finished = run_all(asked, max(n_bytes, 1), parts, [meter, *observers], force=force)
    return summarize(job, finished, meter, emptiness_notices(finished.counts, job.content))


def _refuse_together(options: dict[str, object], out: str) -> None:
    """Raises UsageError for options that exclude each other, or an output in a store."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} do not go together", where=given[0], allowed="one of them", next_step="tokmill tokenize --help"
        )
    if given and is_url(out):
        what = "nothing is appended to an output in a store"
        next_step = "copy the output to a directory, append there, and copy it back, manifest.json last; or choose another prefix"
        if given != ["--append"]:
            what = "an output in a store is not made in parts"
            next_step = "give a directory that all machines see, and copy the complete output to the store, manifest.json last"
        raise UsageError(what, where=named(out), allowed=f"{given[0]} with a directory", next_step=next_step)


def _of_part(split: str, job: Job) -> str:
    return f"this is part {split} alone; when all parts are there: tokmill finalize {shlex.quote(text_to_path(job.out))}"
