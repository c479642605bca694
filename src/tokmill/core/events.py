"""Events: what a run tells about itself. They cross process boundaries as JSON."""

from __future__ import annotations

import msgspec

from tokmill.core.records import Counts, FileEntry


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all events. Times are seconds since the run began, from a monotonic clock."""


class Started(Event, frozen=True, kw_only=True):
    """The worker holds the output and is about to read."""

    total_bytes: int | None
    """Bytes on disk of all inputs; None when one of them is standard input."""
    resumed_bytes: int = 0
    """Decompressed input bytes that an earlier run committed."""
    position_bytes: int = 0
    """Bytes on disk that lie before the cursor, about."""
    n_threads: int = 1
    batch_bytes: int = 0
    budget_bytes: int = 0
    verb: str = ""
    """What is done, where that is not what the command is for."""
    is_packed: bool = False
    """Whether an input is compressed: `resumed_bytes` is then no share of `total_bytes`."""


class Progress(Event, frozen=True, kw_only=True):
    """Where the run is; a few times a second."""

    elapsed_s: float
    position_bytes: int
    counts: Counts
    rss_bytes: int
    """Resident memory of coordinator and workers now."""


class Committed(Event, frozen=True, kw_only=True):
    """What was read is on disk: a run that is killed from now on resumes after it."""

    elapsed_s: float
    segment: int
    """Number from 1 of the segment that the commit begins or joins."""
    counts: Counts


class CachesReset(Event, frozen=True, kw_only=True):
    """A worker dropped its engine's caches."""

    elapsed_s: float
    rss_before_bytes: int
    rss_after_bytes: int


class Notice(Event, frozen=True, kw_only=True):
    """Something a person should know; not an error."""

    text: str


class Repaired(Event, frozen=True, kw_only=True):
    """A range of a damaged file was made again and stands in its place."""

    file: str
    """Name within the output directory."""
    begin_byte: int
    end_byte: int
    """The same as `begin_byte` where nothing was missing but the file was too long."""


class Restarted(Event, frozen=True, kw_only=True):
    """The worker died and was started again from the journal."""

    cause: str
    attempt: int
    batch_bytes: int


class Finished(Event, frozen=True, kw_only=True):
    """The output is complete."""

    elapsed_s: float
    counts: Counts
    peak_rss_bytes: int
    """Largest resident memory of the worker."""
    resumed: bool
    already_complete: bool = False
    """Nothing was to be done: the output was complete."""
    uploaded_bytes: int = 0
    """Sent to a store when the output was complete, with what was there already."""
    upload_s: float = 0.0
    files: dict[str, FileEntry] = {}
    """By name."""
    notices: list[str] = []
    """What was found out about the inputs while they were read."""


class Failed(Event, frozen=True, kw_only=True):
    """The run ended with an error; the fields are those of `TokmillError`."""

    error: str
    """Name of the class in `errors`."""
    what: str
    where: str | None
    allowed: str | None
    next_step: str | None
    option: str | None = None
    suggested: str | None = None
    path: str | None = None
    resumes: bool = False
    """Whether the same command continues from the last commit."""


PARTS_OF_ERROR = ("what", "where", "allowed", "next_step", "option", "suggested", "path")
"""The texts of an error that its event carries."""


class Detail(Event, frozen=True, kw_only=True):
    """What the run decided by itself, for those who want to know (`-v`)."""

    text: str


AnyEvent = Detail | Started | Progress | Committed | CachesReset | Notice | Repaired | Restarted | Finished | Failed
