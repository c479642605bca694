"""What a run of `tokenize` did, and what there is to say of it: the object that is returned and that `--json` prints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import Provenance
from tokmill.core.deduplication import Removal
from tokmill.core.events import AnyEvent, Progress, Restarted, Started
from tokmill.core.manifest import SKIPPED_NAME
from tokmill.core.records import Counts, FileEntry
from tokmill.core.system.memory import peak_rss_bytes
from tokmill.formats import dropped_notices, dropped_tokens, short_notices
from tokmill.run.advice import emptiness_notices, few_val_notices, how_again, list_notices, more_for_val

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokmill.core.config import Content, Job
    from tokmill.core.events import Finished


class Summary(Counts, frozen=True, kw_only=True):
    """What a run did, with the counts of the whole output; the object that `--json` prints."""

    dropped_tokens_train: int
    """Tokens left out by --drop-tail: they are in no file."""
    dropped_tokens_val: int
    elapsed_s: float
    """Duration of this call."""
    work_s: float
    """Time of reading, encoding and writing, without the start and end of processes. The manifest has the sum over all runs."""
    bytes_per_s: float
    """Input that this call read, by `elapsed_s`."""
    tokens_per_s: float
    peak_rss_bytes: int
    """Peaks of this process and of coordinator and workers, added up."""
    budget_bytes: int
    """What --memory allowed."""
    appended_to: Provenance | None
    """The output that --append added to; None when nothing was added."""
    resumed: bool
    """Whether it continued an earlier run."""
    already_complete: bool
    """Whether there was nothing left to do."""
    restarts: int
    """How often a process of the run died and the run was started again."""
    tokenizer: str
    dtype: str
    out: str
    """Output directory, absolute; or the URL of the prefix."""
    uploaded_bytes: int
    """Sent to the store, with what an earlier attempt had sent; 0 for a directory."""
    upload_s: float
    """The part of `elapsed_s` spent waiting for the upload."""
    files: dict[str, FileEntry]
    """Complete files in `out`, by name."""
    part: str = ""
    """Which part (`3/8`) of an output this is, if the rest may still have to be made; empty for a whole output."""
    next_step: str = ""
    """What to do after a part; empty for a whole output."""
    removal: Removal | None = None
    """With --dedup: what was removed. `bytes_text` then counts the text of the removed documents, too."""
    notices: list[str]
    """What a person should know of the result, and what to type."""


class Meter:
    """Notes what the summary needs besides the last event. Implements `protocols.Observer`."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.resumed_bytes: int | None = None
        self.restarts = 0
        self.work_s = 0.0

    def on_event(self, event: AnyEvent) -> None:
        """See Observer."""
        if isinstance(event, Progress):
            self.work_s = event.elapsed_s
        elif isinstance(event, Started) and self.resumed_bytes is None:
            self.resumed_bytes = event.resumed_bytes
        elif isinstance(event, Restarted):
            self.restarts += 1


def notices_of(content: Content, counts: Counts, files: Mapping[str, FileEntry], *, is_append: bool = False) -> list[str]:
    """Return what to say of an output that was tokenized."""
    again = how_again(content, is_append=is_append)
    return [
        *emptiness_notices(counts, content, again, is_listed=SKIPPED_NAME in files),
        *list_notices(files),
        *few_val_notices(
            counts.tokens_val,
            counts.documents_train + counts.documents_val,
            counts.tokens_train + counts.tokens_val,
            content,
        ),
        *dropped_notices(content, files, counts, again),
        *short_notices(content, files, for_val=more_for_val(counts, content, again)),
    ]


def summarize(
    job: Job,
    finished: Finished,
    meter: Meter,
    notices: list[str],
    *,
    part: str = "",
    next_step: str = "",
    is_append: bool = False,
    removal: Removal | None = None,
) -> Summary:
    """Return what a job did that ended like this. removal: with --dedup, of the manifest."""
    counts = finished.counts
    if removal:
        counts = msgspec.structs.replace(counts, bytes_text=removal.bytes_text)
    elapsed_s = time.monotonic() - meter.started_s
    # A run that is complete already starts nothing and reads nothing.
    n_read = counts.bytes_in - meter.resumed_bytes if meter.resumed_bytes is not None else 0
    share = n_read / counts.bytes_in if counts.bytes_in else 0.0
    dropped = dropped_tokens(job.content, finished.files, counts)
    return Summary(
        **msgspec.structs.asdict(counts),
        dropped_tokens_train=dropped["train"],
        dropped_tokens_val=dropped["val"],
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
        tokenizer=job.content.tokenizer.name,
        dtype=job.content.dtype,
        out=job.destination or job.out,
        uploaded_bytes=finished.uploaded_bytes,
        upload_s=finished.upload_s,
        files=dict(finished.files),
        part=part,
        next_step=next_step,
        notices=notices,
        removal=removal,
    )
