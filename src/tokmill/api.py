"""`tokenize`, `plan` and `finalize` for Python. They print nothing: to see something, pass observers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import Job, check_directory, local_path, path_text, path_texts
from tokmill.core.errors import ChangedError, TokmillError, UsageError
from tokmill.core.events import Detail, Finished, Notice
from tokmill.core.manifest import load_manifest
from tokmill.core.options import PlanOptions, TokenizeOptions, called_with, parse_size
from tokmill.core.outcome import already_finished
from tokmill.core.progress import check_observers
from tokmill.core.records import is_url, path_to_text, text_to_path
from tokmill.core.text import quoted
from tokmill.output import Place, destination, is_complete, is_complete_at, left_behind, output_of, refuse_tokenized, stage_of
from tokmill.run import (
    NOWHERE,
    LocalRunner,
    Meter,
    Plan,
    PlannedJob,
    Summary,
    check_disk,
    details,
    make_job,
    make_plan,
    notices_of,
    summarize,
)
from tokmill.store import redacted

if TYPE_CHECKING:
    from tokmill.core.outcome import Outcome
    from tokmill.core.protocols import Observer

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False, repr=False)
class PlanCall(PlanOptions):
    """The arguments of `plan`."""

    inputs: StrPath | Sequence[StrPath]
    out: StrPath | None = None


@dataclass(frozen=True, eq=False, repr=False)
class TokenizeCall(TokenizeOptions):
    """The arguments of `tokenize`."""

    inputs: StrPath | Sequence[StrPath]
    out: StrPath
    observers: Sequence[Observer] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_observers(self.observers)

    @property
    def is_in_parts(self) -> bool:
        """Whether the output is made in parts: one of them here, or all on a cluster."""
        return self.part is not None or self.ray is not None

    @property
    def is_derived(self) -> bool:
        """Whether the output is made of one that is tokenized first."""
        return self.shuffle is not None or self.dedup


@called_with(TokenizeCall)
def tokenize(call: TokenizeCall) -> Summary:  # noqa: D417  the arguments are the record's
    """Turn text into `out`/train.bin and `out`/val.bin, or the files of another format, as `tokmill tokenize` does.

    Call it again after a crash: it continues from the last commit.

    Args:
        inputs: Files, directories, patterns, URLs, or `-` for standard input.
        out: Directory, or `s3://bucket/prefix`: the output is then made in a local directory, uploaded, and removed there. Of
            several files a side, each is uploaded when it is complete.
        options: As for the command.
        observers: Are told of every event, in this thread.

    Returns:
        What was made, and how fast.

    Raises:
        TokmillError: See `core/errors.py` for its classes.
    """
    meter = Meter()
    _check_together(call)
    runs = nullcontext(LocalRunner()) if call.ray is not None else LocalRunner()
    with _told_without_fresh(call), _place(call) as place, runs as runner:
        options = replace(call, threads=1) if call.ray is not None and call.threads is None else call
        planned = make_job(path_texts(call.inputs, "inputs"), options, out=place.directory, destination=place.url)
        if not call.is_derived:
            refuse_tokenized(Path(text_to_path(planned.job.out)), fresh=planned.job.fresh)
        if call.is_in_parts:
            _introduce(planned.job, planned.notices, call.observers)
            done = _in_parts(planned.job, call, place, runner, meter)
            return msgspec.structs.replace(done, notices=[*planned.doubts, *done.notices])
        job, finished = _carry_out(planned, call, place, runner, meter)
        if finished.already_complete and not call.append and any(source.size_bytes is None for source in job.content.inputs):
            _compare_piped(call, place)
    told = notices_of(job.content, finished.counts, finished.files, is_append=call.append)
    summary = summarize(
        job,
        finished,
        meter,
        [*finished.notices, *told, *left_behind(Path(text_to_path(job.out)))],
        is_append=call.append,
        removal=load_manifest(Path(text_to_path(job.out))).removal or None if call.dedup else None,
    )
    _tell(call.observers, summary.notices)
    return msgspec.structs.replace(summary, notices=[*planned.doubts, *summary.notices])


@called_with(PlanCall)
def plan(call: PlanCall) -> Plan:  # noqa: D417  the same
    """Estimate from a sample what `tokenize` with these options will read, write and take; write nothing.

    Args:
        inputs: As for `tokenize`.
        out: Directory or `s3://bucket/prefix`; None: the disk is not looked at.
        options: As for `tokenize`.

    Returns:
        The estimates. Its `raise_for_disk` says whether the disk is large enough.

    Raises:
        TokmillError: MemoryBudgetError if the memory budget is too small.
    """
    began_s = time.monotonic()
    _check_derived(call)
    out = NOWHERE if call.out is None else path_text(call.out, "out")
    url = out if is_url(out) else ""
    if url:
        out = str(output_of(stage_of(url, _text(call.stage))))
    planned = make_job(path_texts(call.inputs, "inputs"), call, out=out, destination=url)
    made = make_plan(planned, seed=call.shuffle, is_deduplicated=call.dedup)
    if url and not call.fresh:
        made = msgspec.structs.replace(made, is_complete=is_complete_at(planned.job, url))
    return msgspec.structs.replace(made, elapsed_s=round(time.monotonic() - began_s, 3))


def finalize(directory: StrPath, *, stage: StrPath | None = None, observers: Sequence[Observer] = ()) -> Outcome:
    """Join the parts that `tokenize(..., part="I/N")` made into one complete output. Call it again after a crash to continue.

    Args:
        directory: The `out` of the parts: a directory or `s3://bucket/prefix`.
        stage: Of a URL, local directory for the manifests of the parts meanwhile (None: inside ~/.cache/tokmill/stage).
        observers: Are told of every event, in this thread.

    Returns:
        What was made.

    Raises:
        TokmillError: UsageError if parts are missing, with their numbers; LockedError while a run works on one of them.
    """
    from tokmill.run import finalize as finalize_parts

    return finalize_parts(directory, stage=_text(stage), observers=observers)


@contextmanager
def _told_without_fresh(call: TokenizeCall) -> Iterator[None]:
    """Whoever said --fresh is told to leave it out of the command that continues: it would discard what is committed."""
    try:
        yield
    except TokmillError as error:
        if call.fresh and error.resumes:
            error.next_step = f"{error.next_step}, without --fresh,"
        raise


def _carry_out(planned: PlannedJob, call: TokenizeCall, place: Place, runner: LocalRunner, meter: Meter) -> tuple[Job, Finished]:
    """Return the job as it was run, and its result."""
    asked, carried_bytes = planned.job, 0
    if call.append:
        # Here, so that a run without it loads no numpy.
        from tokmill.derive import bytes_to_copy, copy_old_output, extend

        planned = extend(planned)
        carried_bytes = bytes_to_copy(planned.job)
    _introduce(asked, planned.notices, call.observers)
    complete = place.begin(asked.content, fresh=asked.fresh, stage_bytes=asked.resources.stage_bytes)
    if complete is not None:
        return planned.job, already_finished(complete)
    if call.is_derived:
        return planned.job, _derived(planned.job, call, runner, meter)
    if not call.force and not (call.append and is_complete(planned.job)):
        check_disk(asked, carried_bytes)
    job = copy_old_output(planned.job, call.observers) if call.append and planned.job.made_from else planned.job
    return job, place.publish(runner.run(job, [meter, *call.observers, *place.observers]), call.observers)


def _derived(job: Job, call: TokenizeCall, runner: LocalRunner, meter: Meter) -> Finished:
    """Tokenize into a directory inside the output, and make the output of it: without copies, or in the order of a seed.

    Raises ChangedError for a complete output that was made differently.
    """
    from tokmill.derive import dedup_into, shuffle_into
    from tokmill.output import finish_derived, tokenized_before, tokenized_of

    out = Path(text_to_path(job.out))
    if job.content.eot == "none":
        raise UsageError(
            "documents cannot be told apart without end-of-text ids",
            where=f"{'--dedup' if call.dedup else '--shuffle'} with --eot none",
            option="--eot",
            allowed="after or before",
            suggested="after",
        )
    complete = None if job.fresh else finish_derived(out, job.content, call.shuffle, is_deduplicated=call.dedup)
    if complete is not None:
        return complete
    step = tokenized_of(out)
    if not call.force:
        # Of work that was begun, a part is there; it is checked again below. Without copies, the ids are there twice as well.
        check_disk(job, is_shuffled=job.fresh or not step.exists())
    content = msgspec.structs.replace(job.content, format="raw", name=msgspec.UNSET, shards=msgspec.UNSET, offsets=msgspec.UNSET)
    finished = None if job.fresh or call.dedup else tokenized_before(out, content)
    if finished is None:
        tokenizing = msgspec.structs.replace(job, out=path_to_text(str(step)), content=content)
        finished = runner.run(tokenizing, [meter, *call.observers])
    how = {"memory": job.resources.budget_bytes, "fresh": job.fresh, "force": call.force, "observers": call.observers}
    if call.shuffle is None:
        dedup_into(step, job.content, out, **how)  # type: ignore[arg-type]
    else:
        shuffle_into(step, job.content, out, seed=call.shuffle, **how)  # type: ignore[arg-type]
    complete = finish_derived(out, job.content, call.shuffle, is_deduplicated=call.dedup)
    assert complete is not None
    return msgspec.structs.replace(finished, files=complete.files, counts=complete.counts, already_complete=False)


def _compare_piped(call: TokenizeCall, place: Place) -> None:
    """Compare what is piped in now with the complete output: neither size nor time says whether it is the same.

    Raises ChangedError if it is not, DamageError for a damaged output.
    """
    if place.url:
        _tell(call.observers, ["the output is complete; what is piped in was not read, and is not compared with it"])
        return
    # Here, so that nobody else loads it.
    from tokmill.check import verify

    _tell(call.observers, ["the output is complete; what is piped in is compared with it"])
    try:
        report = verify(
            place.directory,
            sources=path_texts(call.inputs, "inputs") + path_texts(call.val_input or (), "--val-input"),
            glob=call.glob,
            input_format=call.input_format,
            memory=call.memory,
        )
    except ChangedError as error:
        error.what = "the piped input is not the one that the complete output was made from"
        error.next_step = "start over with --fresh, choose another --out, or add it with --append"
        raise
    report.raise_for_damage()


def _in_parts(job: Job, call: TokenizeCall, place: Place, runner: LocalRunner, meter: Meter) -> Summary:
    """Make one part here, or all of them on a cluster."""
    # Here, so that nobody else needs them.
    from tokmill.run import run_all_parts, run_one_part

    url, watching = str(call.out) if is_url(str(call.out)) else "", [meter, *call.observers]
    if call.part is not None:
        job, finished, next_step = run_one_part(job, call.part, place, runner, watching, url=url, force=call.force)
        part = call.part if next_step else ""
        return summarize(job, finished, meter, [_of_part(part, job)] if part else [], part=part, next_step=next_step)
    from tokmill.run import RayRunner

    n_bytes = call.part_bytes if isinstance(call.part_bytes, int) else parse_size(call.part_bytes, "--part-bytes")
    stage = _text(call.stage)
    with RayRunner(call.ray or "", stage) as cluster:
        job, finished = run_all_parts(job, max(n_bytes, 1), cluster, watching, url=url, stage=stage, force=call.force)
    notices = [*finished.notices, *notices_of(job.content, finished.counts, finished.files)]
    return summarize(job, finished, meter, [*notices, *left_behind(Path(text_to_path(job.out)))])


def _place(call: TokenizeCall) -> Place:
    """Return where this run makes its output."""
    if not call.is_in_parts:
        return destination(path_text(call.out, "out"), _text(call.stage))
    from tokmill.run import place_of_part

    return place_of_part(path_text(call.out, "out"), _text(call.stage), call.part)


def _check_together(call: TokenizeCall) -> None:
    """Raise UsageError for options that exclude each other, or an append to an output in a store."""
    options = {"--part": call.part, "--ray": call.ray, "--append": call.append or None, "--shuffle": call.shuffle}
    options["--dedup"] = call.dedup or None
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} do not go together", option=given[0], allowed="one of them", next_step=_one_by_one(given)
        )
    if call.append and call.val_tail is not None:
        raise UsageError(
            "--val-tail takes the end of one text, and an append makes it several",
            where="--val-tail with --append",
            option="--val-tail",
            allowed="one of them",
            next_step="tokenize the new text into a directory of its own, then: tokmill merge",
        )
    limits = [name for name, value in (("--max-tokens", call.max_tokens), ("--val-tokens", call.val_tokens)) if value is not None]
    apart = next((name for name in ("--part", "--ray", "--append") if options[name] is not None), None)
    if limits and apart:
        raise UsageError(
            f"{limits[0]} counts the tokens of all documents before, which {'an append' if apart == '--append' else 'a part'} "
            "does not know",
            where=f"{limits[0]} with {apart}",
            option=limits[0],
            allowed="one run over the whole corpus",
            next_step="leave one of the two out"
            + ("; --val-input or --val-fraction choose documents in parts, too" if limits[0] == "--val-tokens" else ""),
        )
    _check_derived(call)
    if call.append and is_url(str(call.out)):
        raise UsageError(
            "nothing can be appended to an output in a store",
            where=redacted(str(call.out)),
            allowed="--append with a directory",
            next_step="copy the output to a directory, append there, and copy it back, manifest.json last; or choose another --out",
        )


def _check_derived(call: PlanCall | TokenizeCall) -> None:
    """Raise UsageError for an order and no copies at the same time, and for either in a store."""
    if call.shuffle is not None and call.dedup:
        given = ["--shuffle", "--dedup"]
        raise UsageError(
            f"{' and '.join(given)} do not go together", option=given[0], allowed="one of them", next_step=_one_by_one(given)
        )
    if (call.shuffle is not None or call.dedup) and is_url(str(call.out)):
        raise UsageError(
            "an output in a store is neither shuffled nor deduplicated while it is made",
            where=redacted(str(call.out)),
            allowed="--shuffle and --dedup with a directory",
            next_step="choose a directory for --out; then: tokmill shuffle DIR --out s3://...",
        )


def _one_by_one(given: Sequence[str]) -> str:
    """Return how to have several of the options that exclude each other."""
    if given == ["--shuffle", "--dedup"]:
        return "tokmill tokenize --dedup, then tokmill shuffle"
    return "tokmill tokenize --help"


def _of_part(part: str, job: Job) -> str:
    whole = quoted(job.destination or text_to_path(job.out))
    return f"this is part {part} alone; when all parts are there: tokmill finalize {whole}"


def _text(stage: StrPath | None) -> str | None:
    if stage is None:
        return None
    path = local_path(stage, "stage")
    check_directory(Path(path), "--stage")
    return path


def _introduce(job: Job, notices: Sequence[str], observers: Sequence[Observer]) -> None:
    for detail in details(job):
        for observer in observers:
            observer.on_event(Detail(text=detail))
    _tell(observers, notices)


def _tell(observers: Sequence[Observer], notices: Sequence[str]) -> None:
    for notice in notices:
        for observer in observers:
            observer.on_event(Notice(text=notice))
