"""Runs of parts of an output in an object store: each is staged where it is made, so that machines share the store alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import msgspec

from tokmill.core.errors import DamageError, LockedError
from tokmill.core.events import Finished
from tokmill.core.outcome import already_finished
from tokmill.core.partition import count_parts, parse_part
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Counts, path_to_text
from tokmill.core.version import __version__
from tokmill.output import RemoteParts, Staged, missing_parts, part_content, part_url
from tokmill.run.estimate.forecast import check_disk
from tokmill.run.parts.joining import finalize_remote
from tokmill.run.parts.split_runs import whole_job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.core.config import Job
    from tokmill.core.partition import Part
    from tokmill.core.protocols import Observer, Runner
    from tokmill.run.parts.split_runs import PartsRunner


def run_one_part_at(
    url: str, job: Job, part: str, place: Staged, runner: Runner, observers: Sequence[Observer], *, force: bool
) -> tuple[Job, Finished]:
    """Make the part that `part` names (`3/8`) of the output at a prefix; the job of the whole, and how the run ended.

    job: with all inputs. place: of the part. Raises TokmillError.
    """
    index, count = parse_part(part)
    remote = RemoteParts(url)
    whole = msgspec.structs.replace(whole_job(job, count), destination=remote.url)
    complete = remote.agree(whole.content, __version__)
    if complete is not None:
        if job.fresh:
            raise remote.is_complete_error()
        place.drop()
        return whole, already_finished(complete)
    own = msgspec.structs.replace(
        whole,
        content=part_content(whole.content, index),
        out=path_to_text(place.directory),
        destination=part_url(remote.url, index),
    )

    def make() -> Finished:
        asked = place.loosened(own)
        finished = place.begin(asked)
        if finished is None:
            if not force:
                check_disk(asked)
            finished = place.publish(runner.run(asked, [*observers, *place.observers]), observers)
        return finished

    return whole, _unless_late(remote, index, whole.content.fingerprint(), place, make)


def run_all_at(
    url: str, job: Job, part_bytes: int, parts: PartsRunner, place: Staged, observers: Sequence[Observer]
) -> tuple[Job, Finished]:
    """Make an output at a prefix in parts of about so many bytes, and put them together; the job of the whole, and how it ended.

    place: of all parts; nobody else on this machine has it. Raises TokmillError.
    """
    began_s = time.monotonic()
    remote = RemoteParts(url)
    whole = whole_job(job, count_parts(job.content.inputs, part_bytes))
    whole = msgspec.structs.replace(whole, destination=remote.url)
    if job.fresh:
        remote.discard()
    complete = remote.agree(whole.content, __version__)
    if complete is not None and remote.plan() is None:
        return whole, already_finished(complete)
    if complete is None:
        missing, _ = missing_parts(remote.parts(), whole.content)
        if missing:
            parts.make_parts(whole, missing, observers)
    plan = remote.plan()
    if plan is None:
        manifest = remote.complete(whole.content.fingerprint())
    else:
        manifest = finalize_remote(remote, plan, place.root, ProgressReporter(()), job.resources.max_skipped)
    if manifest is None:
        return whole, Finished(elapsed_s=0.0, counts=Counts(), peak_rss_bytes=0, resumed=False)
    finished = already_finished(manifest)
    return whole, msgspec.structs.replace(finished, elapsed_s=time.monotonic() - began_s, already_complete=False)


def make_part_at(job: Job, stage: str | None, runner: Runner, observers: Sequence[Observer]) -> Finished:
    """Make one part, wherever this is called. job: of the part, with its URL. stage: a directory of this machine; None: the usual.

    Raises TokmillError: LockedError while another on this machine makes it.
    """
    share = cast("Part", job.content.part)
    remote = RemoteParts(job.destination.removesuffix(part_url("", share.index)))
    with Staged(job.destination, stage) as place:
        part = place.loosened(msgspec.structs.replace(job, out=path_to_text(place.directory)))

        def make() -> Finished:
            # Nobody is told of the sending: what is shown is how far the inputs are.
            return place.begin(part) or place.publish(runner.run(part, [*observers, *place.observers]), ())

        return _unless_late(remote, share.index, share.plan, place, make)


def _unless_late(remote: RemoteParts, index: int, plan: str, place: Staged, make: Callable[[], Finished]) -> Finished:
    """What comes of making a part; or the whole, where another made this part meanwhile and all were put together."""
    try:
        finished = make()
    except (LockedError, DamageError):
        # Its objects may have been taken away under it.
        complete = remote.leave(index, plan)
        if complete is None:
            raise
        place.drop()
        return already_finished(complete)
    complete = remote.leave(index, plan)
    return finished if complete is None else already_finished(complete)
