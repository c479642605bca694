"""Runs of one part of a corpus at a time: `tokmill tokenize ... --part I/N`, and what runs all of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from tokmill.core.errors import DamageError, UsageError
from tokmill.core.events import Finished
from tokmill.core.manifest import MANIFEST_NAME
from tokmill.core.outcome import already_finished
from tokmill.core.partition import count_parts, parse_part
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Counts, path_to_text, text_to_path
from tokmill.core.version import __version__
from tokmill.output import acquire_lock, divided, join, load_plan, part_content, part_directory, part_url, release_lock
from tokmill.run.estimate.forecast import check_disk
from tokmill.run.parts.finalize import finalize_held, missing_parts, refuse_busy, remove_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.config import Content, Job
    from tokmill.core.protocols import Observer, Runner


class PartsRunner(Protocol):
    """Makes parts of an output somewhere, several at a time."""

    def make_parts(self, job: Job, indexes: Sequence[int], observers: Sequence[Observer]) -> None:
        """Returns when they are complete. job: of the whole. Raises TokmillError."""


def run_one_part(job: Job, part: str, runner: Runner, observers: Sequence[Observer], *, force: bool) -> tuple[Job, Finished]:
    """Make the part that `part` names (`3/8`); the job of the whole, and how the run ended. Raises TokmillError."""
    index, count = parse_part(part)
    whole = whole_job(job, count)
    return whole, begin(whole, force=force) or run_part(whole, index, runner, observers)


def run_all(job: Job, part_bytes: int, parts: PartsRunner, observers: Sequence[Observer], *, force: bool) -> tuple[Job, Finished]:
    """Make an output in parts of about so many bytes, and put them together; the job of the whole, and how it ended.

    Raises TokmillError: LockedError where another does the same.
    """
    began_s = time.monotonic()
    whole, directory = whole_job(job, count_parts(job.content.inputs, part_bytes)), _directory(job)
    lock = acquire_lock(directory)
    try:
        if job.fresh:
            _discard(directory)
        complete, plan = begin(whole, force=force), load_plan(directory)
        if plan is None:
            release_lock(directory, lock)
            return whole, complete or Finished(elapsed_s=0.0, counts=Counts(), peak_rss_bytes=0, resumed=False)
        missing = missing_parts(directory, whole.content) if complete is None else []
        if missing:
            parts.make_parts(whole, missing, observers)
        manifest = finalize_held(directory, plan, ProgressReporter(()), lock, job.resources.max_skipped)
    except BaseException:
        release_lock(directory, lock)
        raise
    finished = msgspec.structs.replace(already_finished(manifest), elapsed_s=time.monotonic() - began_s, already_complete=False)
    return whole, finished


def _discard(directory: Path) -> None:
    """Begin again: away with parts that are not put together. Raises UsageError for an output that is complete, LockedError."""
    if (directory / MANIFEST_NAME).exists():
        raise _is_complete(directory)
    refuse_busy(directory)
    remove_parts(directory)


def _is_complete(directory: Path) -> UsageError:
    return UsageError(
        "the output is complete; parts do not take the place of what stands there",
        where=str(directory),
        allowed="--fresh where an output is being made",
        next_step="choose another --out, or remove it first",
    )


def whole_job(job: Job, count: int) -> Job:
    """A job for an output that is made in so many parts. Raises UsageError."""
    return msgspec.structs.replace(job, content=divided(job.content, count))


def begin(job: Job, *, force: bool) -> Finished | None:
    """Agree with the others that make parts of the same output; the end of the run where all is done already.

    job: of the whole. force: though the output will not fit on the disk. Raises ChangedError, UsageError, DiskFullError.
    """
    complete = join(_directory(job), job.content, __version__, lambda: None if force else check_disk(job))
    if complete is not None and job.fresh:
        raise _is_complete(_directory(job))
    return None if complete is None else already_finished(complete)


def part_job(job: Job, index: int, content: Content | None = None) -> Job:
    """The job of one part. job: of the whole. content: the part's, where it is known already. Raises UsageError."""
    content = content or part_content(job.content, index)
    if job.destination:
        # Whoever makes it knows where.
        return msgspec.structs.replace(job, content=content, destination=part_url(job.destination, index))
    out = path_to_text(str(part_directory(_directory(job), index)))
    return msgspec.structs.replace(job, out=out, content=content)


def run_part(job: Job, index: int, runner: Runner, observers: Sequence[Observer]) -> Finished:
    """Make one part. job: of the whole. Raises TokmillError: LockedError where another makes this part."""
    try:
        return runner.run(part_job(job, index), observers)
    except DamageError:
        # Its files may have been put in their places while it was looked at.
        complete = join(_directory(job), job.content, __version__, lambda: None)
        if complete is None:
            raise
        return already_finished(complete)


def _directory(job: Job) -> Path:
    return Path(text_to_path(job.out))
