"""Runs that make parts of an output: one part (`tokmill tokenize --part I/N`), or all of them, which it joins (`--ray`).

A part, a run in one piece and a task on a cluster do the same. They differ in who starts the coordinator, and where the
output lies.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

from tokmill.core.errors import DamageError, LockedError, TokmillError
from tokmill.core.events import Finished
from tokmill.core.outcome import already_finished
from tokmill.core.partition import Part, count_parts, parse_part
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Counts, is_url, path_to_text, text_to_path
from tokmill.core.text import counted, quoted
from tokmill.core.version import __version__
from tokmill.output import Place, destination, in_parts, n_parts, part_content, part_url
from tokmill.run.estimate.forecast import check_disk
from tokmill.run.parts.finalize import join_parts, parts_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.config import Content, Job
    from tokmill.core.manifest import Manifest
    from tokmill.core.protocols import Observer, Runner
    from tokmill.output import PartsStore


_MOST_LOOKED_AT = 1000
"""Parts: if each of very many looked at all others when it is made, that would take longer than to make them."""


class PartsRunner(Protocol):
    """Makes parts of an output somewhere, several at a time."""

    def make_parts(self, job: Job, indexes: Sequence[int], observers: Sequence[Observer]) -> None:
        """Return when the parts are complete. job: of the whole. Raises TokmillError."""


def place_of_part(out: str, stage: str | None, part: str | None) -> Place:
    """Return where a run makes its output: one part, or (None) all of them, made elsewhere. Raises TokmillError.

    stage: of a URL, the directory for what is made here; None: the usual one.
    """
    if not is_url(out):
        return Place(out)
    if part is not None:
        return destination(part_url(out, parse_part(part)[0]), stage)
    parts = parts_store(out, stage)
    return Place(str(parts.scratch), parts.where)


def run_one_part(
    job: Job, part: str, place: Place, runner: Runner, observers: Sequence[Observer], *, url: str = "", force: bool
) -> tuple[Job, Finished, str]:
    """Make one part of an output.

    Args:
        job: with all inputs; its `out` is the directory of the whole, if that is one.
        part: `3/8`.
        place: where the part is made.
        runner: starts the coordinator.
        observers: told of every event.
        url: of the whole, if it is in a store.
        force: begin even though the output will not fit on the disk.

    Returns:
        The job of the whole, how the run ended, and what to do next; nothing where the whole is complete already.

    Raises:
        TokmillError: LockedError where another run makes this part.
    """
    index, count = parse_part(part)
    parts = parts_store(url or text_to_path(job.out))
    whole = whole_job(job, count, parts)
    complete = begin(parts, whole, force=force)
    if complete is not None:
        place.drop()
        return whole, already_finished(complete), ""
    made = part_job(whole, index)
    if whole.destination:
        made = msgspec.structs.replace(made, out=path_to_text(place.directory))
    finished, is_whole = _make(parts, made, place, runner, observers, observers, force=force)
    return whole, finished, "" if is_whole else _next_step(parts, whole.content)


def _next_step(parts: PartsStore, content: Content) -> str:
    """Return what comes after a part: one that nobody has begun, or to join them all."""
    join = f"tokmill finalize {quoted(parts.where)}"
    try:
        missing = parts.missing_parts(content) if n_parts(content) <= _MOST_LOOKED_AT else None
    except TokmillError:
        # The part is made, whatever is wrong with looking at the others.
        missing = None
    if missing is None:
        return f"when all parts are there: {join}"
    new = next((index for index, is_begun in missing.items() if not is_begun), None)
    if new is not None:
        return f"the same command with --part {new}/{n_parts(content)} ({counted(len(missing), 'part')} to go)"
    return f"when the parts that were begun are complete ({counted(len(missing), 'part')} to go): {join}" if missing else join


def run_all_parts(
    job: Job,
    part_bytes: int,
    runner: PartsRunner,
    observers: Sequence[Observer],
    *,
    url: str = "",
    stage: str | None = None,
    force: bool,
) -> tuple[Job, Finished]:
    """Make an output in parts of about so many bytes of input, and join them.

    Returns the job of the whole and how the run ended. Raises TokmillError: LockedError where another run does the same.
    """
    began_s = time.monotonic()
    parts = parts_store(url or text_to_path(job.out), stage)
    whole = whole_job(job, count_parts(job.content.inputs, part_bytes), parts)
    with parts.lock():
        if job.fresh:
            parts.discard()
        complete = begin(parts, whole, force=force)
        if complete is not None and parts.read_plan() is None:
            return whole, already_finished(complete)
        missing = parts.missing_parts(whole.content) if complete is None else {}
        if missing:
            runner.make_parts(whole, list(missing), observers)
        plan = parts.read_plan()
        manifest = parts.complete() if plan is None else join_parts(parts, plan, ProgressReporter(()), job.resources.max_skipped)
    if manifest is None:
        return whole, Finished(elapsed_s=0.0, counts=Counts(), peak_rss_bytes=0, resumed=False)
    finished = already_finished(manifest)
    return whole, msgspec.structs.replace(finished, elapsed_s=time.monotonic() - began_s, already_complete=False)


def make_part(job: Job, stage: str | None, runner: Runner, observers: Sequence[Observer]) -> Finished:
    """Make one part, wherever this is called. job: of the part. Raises TokmillError: LockedError while another run makes it."""
    part = cast("Part", job.content.part)
    if not job.destination:
        directory = Path(text_to_path(job.out)).parents[2]
        return _make(parts_store(str(directory)), job, Place(str(directory)), runner, observers, (), force=True)[0]
    parts = parts_store(job.destination.removesuffix(part_url("", part.index)), stage)
    with destination(job.destination, stage) as place:
        job = msgspec.structs.replace(job, out=path_to_text(place.directory))
        # The sending is not reported: progress shows how much input is done.
        return _make(parts, job, place, runner, observers, (), force=True)[0]


def whole_job(job: Job, count: int, parts: PartsStore) -> Job:
    """Return the job of an output that is made in so many parts. Raises UsageError."""
    destination = parts.where if parts.is_shared else ""
    return msgspec.structs.replace(job, content=in_parts(job.content, count), destination=destination)


def begin(parts: PartsStore, whole: Job, *, force: bool) -> Manifest | None:
    """Agree with the others that make parts of the same output; return the manifest of the whole where all is done already.

    force: begin even though the output will not fit on the disk. Raises ChangedError, UsageError, DiskFullError.
    """
    on_new = (lambda: None) if force or whole.destination else lambda: check_disk(whole)
    complete = parts.agree(whole.content, __version__, on_new)
    if complete is not None and whole.fresh:
        raise parts.complete_error()
    return complete


def part_job(whole: Job, index: int, content: Content | None = None) -> Job:
    """Return the job of one part; in a store, whoever makes it sets `out`. content: the part's, where it is known already."""
    content = content or part_content(whole.content, index)
    if whole.destination:
        return msgspec.structs.replace(whole, content=content, destination=part_url(whole.destination, index))
    return msgspec.structs.replace(
        whole, content=content, out=path_to_text(parts_store(text_to_path(whole.out)).part_output(index))
    )


def _make(
    parts: PartsStore,
    job: Job,
    place: Place,
    runner: Runner,
    observers: Sequence[Observer],
    sending: Sequence[Observer],
    *,
    force: bool,
) -> tuple[Finished, bool]:
    """Make one part; return how the run ended, and whether others have completed the whole. sending: observers of the sending."""
    part = cast("Part", job.content.part)
    try:
        job = place.loosened(job)
        there = place.begin(job.content, fresh=job.fresh, stage_bytes=job.resources.stage_bytes)
        if there is not None:
            finished = already_finished(there)
        else:
            if job.destination and not force:
                check_disk(job)
            finished = place.publish(runner.run(job, [*observers, *place.observers]), sending)
    except (LockedError, DamageError):
        # Others may have joined all parts and removed this one's files meanwhile.
        complete = parts.leave(part.index, part.plan)
        if complete is None:
            raise
        place.drop()
        return already_finished(complete), True
    complete = parts.leave(part.index, part.plan)
    return (finished, False) if complete is None else (already_finished(complete), True)
