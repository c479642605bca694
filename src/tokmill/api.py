"""`plan` and `tokenize` for Python: plan a job, run it, say what came of it. Silent: to see something, pass observers."""

from __future__ import annotations

import shlex
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import parse_size
from tokmill.core.errors import UsageError
from tokmill.core.events import Detail, Notice
from tokmill.core.records import is_url, text_to_path
from tokmill.output import Staged, destination, is_complete, is_complete_at, output_of, stage_of
from tokmill.run import (
    NOWHERE,
    LocalRunner,
    Meter,
    Plan,
    Summary,
    check_disk,
    details,
    emptiness_notices,
    make_job,
    make_plan,
    notices_of,
    summarize,
)
from tokmill.store import redacted

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from tokmill.core.config import Job
    from tokmill.core.events import Finished
    from tokmill.core.outcome import Outcome
    from tokmill.core.protocols import Observer
    from tokmill.output import Here
    from tokmill.run import PlannedJob


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
    part: str | None = None,
    ray: str | None = None,
    part_bytes: str | int = "1GiB",
    observers: Sequence[Observer] = (),
) -> Summary:
    """Turn text into `out`/train.bin and `out`/val.bin, or the files of another format, as `tokmill tokenize` does.

    Call it again after a crash to resume.

    inputs: files, directories, patterns, URLs, `-`. separator: as typed on the command line (`none`, or text with its escapes).
    eot: `auto` is what the format's trainer expects. shard_tokens: tokens of a file, a number or text such as `100M`;
    shard_documents: files end only where documents end; drop_tail: without what fills no file. memory: bytes, or text such as
    `1GiB`. nice: the worker takes what others leave of processor and disk. force: begin even though the output will not fit on
    the disk. observers: told of every event, in this thread. append: add the inputs to the complete output in `out`; with fresh,
    what an earlier append left there unfinished is discarded. part: `3/8` makes part 3 (from 0) of 8 alone, for `finalize`. ray:
    makes parts of about `part_bytes` of input on a cluster (an address, `auto`, `local`, `here`). Raises TokmillError.

    out may be `s3://bucket/prefix`: the output is made on this disk, in a directory inside `stage` (None: inside
    ~/.cache/tokmill/stage), sent, and then taken away there. Of several files a side, each is sent when it is complete; they take
    at most stage_size (None: 4 GiB) here, or what the open ones and a batch, or a document that is longer, take.
    """
    meter = Meter()
    _refuse_together({"--part": part, "--ray": ray, "--append": append or None}, str(out))
    runs = nullcontext(LocalRunner()) if ray is not None else LocalRunner()
    with destination(_made_at(str(out), part, ray), None if stage is None else str(stage)) as place, runs as runner:
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
        if part is not None or ray is not None:
            _introduce(planned.job, planned.notices, observers)
            asked = _Parts(str(out), None if stage is None else str(stage), part, ray, part_bytes, force)
            done = _in_parts(planned.job, asked, place, runner, meter, observers)
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
        from tokmill.derive import carried, carry_over, extend

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


def finalize(
    directory: str | os.PathLike[str], *, stage: str | os.PathLike[str] | None = None, observers: Sequence[Observer] = ()
) -> Outcome:
    """Put together the parts that `tokenize(..., part="I/N")` made in a directory or at `s3://bucket/prefix`; again to go on.

    stage: of a URL, directory for the manifests of the parts meanwhile (None: inside ~/.cache/tokmill/stage). Raises TokmillError:
    UsageError where parts are missing, naming them; LockedError while one of them, or all, are worked on.
    """
    if is_url(str(directory)):
        from tokmill.run import finalize_at

        return finalize_at(str(directory), stage=None if stage is None else str(stage), observers=observers)
    from tokmill.run import finalize as finalize_here

    return finalize_here(directory, observers=observers)


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
    made = make_plan(planned)
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


@dataclass(frozen=True, slots=True)
class _Parts:
    """What was asked for of an output in parts."""

    out: str
    stage: str | None
    part: str | None
    ray: str | None
    part_bytes: str | int
    force: bool


def _made_at(out: str, part: str | None, ray: str | None) -> str:
    """Where this run makes something: of an output in a store that is made in parts, the part's URL or that of all of them."""
    if not is_url(out) or (part is None and ray is None):
        return out
    from tokmill.core.partition import parse_part
    from tokmill.output import part_url, parts_url

    return parts_url(out) if part is None else part_url(out, parse_part(part)[0])


def _in_parts(
    job: Job, asked: _Parts, place: Here | Staged, runner: LocalRunner, meter: Meter, observers: Sequence[Observer]
) -> Summary:
    """One part here, or all of them on a cluster."""
    # Here, so that nobody else needs them.
    from tokmill.run import run_all, run_one_part

    watching, force = [meter, *observers], asked.force
    if asked.part is not None:
        if isinstance(place, Staged):
            from tokmill.run import run_one_part_at

            job, finished = run_one_part_at(asked.out, job, asked.part, place, runner, watching, force=force)
            is_whole = is_complete_at(job, asked.out)
        else:
            job, finished = run_one_part(job, asked.part, runner, watching, force=force)
            is_whole = is_complete(job)
        part = "" if is_whole else asked.part
        return summarize(job, finished, meter, [_of_part(part, job)] if part else [], part=part)
    from tokmill.run import RayRunner

    n_bytes = asked.part_bytes if isinstance(asked.part_bytes, int) else parse_size(asked.part_bytes, "--part-bytes")
    with RayRunner(asked.ray or "", asked.stage) as parts:
        if isinstance(place, Staged):
            from tokmill.run import run_all_at

            job, finished = run_all_at(asked.out, job, max(n_bytes, 1), parts, place, watching)
        else:
            job, finished = run_all(job, max(n_bytes, 1), parts, watching, force=force)
    return summarize(job, finished, meter, emptiness_notices(finished.counts, job.content))


def _refuse_together(options: dict[str, object], out: str) -> None:
    """Raises UsageError for options that exclude each other, or an output in a store."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} do not go together", where=given[0], allowed="one of them", next_step="tokmill tokenize --help"
        )
    if given == ["--append"] and is_url(out):
        raise UsageError(
            "nothing is appended to an output in a store",
            where=redacted(out),
            allowed="--append with a directory",
            next_step="copy the output to a directory, append there, and copy it back, manifest.json last; or choose another --out",
        )


def _of_part(part: str, job: Job) -> str:
    whole = shlex.quote(job.destination or text_to_path(job.out))
    return f"this is part {part} alone; when all parts are there: tokmill finalize {whole}"
