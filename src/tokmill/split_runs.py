"""Runs of one part of a corpus at a time: `tokmill tokenize ... --split I/N`, and whatever runs all of them (`ray_runner.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill import __version__
from tokmill.division import divided, join, part_content, part_directory
from tokmill.errors import DamageError
from tokmill.forecast import check_disk
from tokmill.splits import parse_split
from tokmill.types import Finished, path_to_text, text_to_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.config import Job
    from tokmill.manifest import Manifest
    from tokmill.protocols import Observer, Runner


def run_split(job: Job, split: str, runner: Runner, observers: Sequence[Observer], *, force: bool) -> tuple[Job, Finished]:
    """Make the part that `split` names (`3/8`); the job of the whole, and how the run ended. Raises TokmillError."""
    index, count = parse_split(split)
    whole = whole_job(job, count)
    return whole, begin(whole, force=force) or run_part(whole, index, runner, observers)


def whole_job(job: Job, count: int) -> Job:
    """A job for an output that is made in so many parts. Raises UsageError."""
    return msgspec.structs.replace(job, content=divided(job.content, count))


def begin(job: Job, *, force: bool) -> Finished | None:
    """Agree with the others that make parts of the same output; the end of the run where all is done already.

    job: of the whole. force: though the output will not fit on the disk. Raises ChangedError, UsageError, DiskFullError.
    """
    complete = join(_directory(job), job.content, __version__, lambda: None if force else check_disk(job))
    return None if complete is None else _finished(complete)


def part_job(job: Job, index: int) -> Job:
    """The job of one part. job: of the whole. Raises UsageError."""
    out = path_to_text(str(part_directory(_directory(job), index)))
    return msgspec.structs.replace(job, out=out, content=part_content(job.content, index))


def run_part(job: Job, index: int, runner: Runner, observers: Sequence[Observer]) -> Finished:
    """Make one part. job: of the whole. Raises TokmillError: LockedError where another makes this part."""
    try:
        return runner.run(part_job(job, index), observers)
    except DamageError:
        # Its files may have been put in their places while it was looked at.
        complete = join(_directory(job), job.content, __version__, lambda: None)
        if complete is None:
            raise
        return _finished(complete)


def _directory(job: Job) -> Path:
    return Path(text_to_path(job.out))


def _finished(manifest: Manifest) -> Finished:
    return Finished(
        elapsed_s=manifest.elapsed_s,
        counts=manifest.counts,
        peak_rss_bytes=manifest.peak_rss_bytes,
        resumed=False,
        already_complete=True,
        files=manifest.files,
    )
