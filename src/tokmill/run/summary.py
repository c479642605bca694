"""What a run of `tokenize` did, and what there is to say of it: the object that is returned and that `--json` prints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.events import AnyEvent, Progress, Restarted, Started
from tokmill.core.provenance import Provenance
from tokmill.core.records import FileEntry
from tokmill.core.system.memory import peak_rss_bytes
from tokmill.formats import dropped_notices, dropped_tokens, tail_notices
from tokmill.run.advice import emptiness_notices

if TYPE_CHECKING:
    from tokmill.core.config import Job
    from tokmill.core.events import Finished


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
    """Output directory, absolute; or the URL of the prefix."""
    uploaded_bytes: int
    """Sent to the store, with what an earlier attempt had sent; 0 for a directory."""
    upload_s: float
    """Of `elapsed_s`, what that took."""
    files: dict[str, FileEntry]
    """Complete files in `out`, by name."""
    part: str = ""
    """Which part (`3/8`) of an output this is, the rest of which is perhaps still to be made; empty: it is all of it."""
    notices: list[str]
    """What a person should know of the result: an empty side, text that is perhaps JSON lines; and what to type against it."""


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


def notices_of(job: Job, finished: Finished) -> list[str]:
    """What to say of the output of one run."""
    return [
        *emptiness_notices(finished.counts, job.content),
        *dropped_notices(job.content, finished.files, finished.counts),
        *tail_notices(job.content, finished.files),
    ]


def summarize(
    job: Job, finished: Finished, meter: Meter, notices: list[str], *, part: str = "", is_append: bool = False
) -> Summary:
    """What a job did that ended like this."""
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
        out=job.destination or job.out,
        uploaded_bytes=finished.uploaded_bytes,
        upload_s=finished.upload_s,
        files=dict(finished.files),
        part=part,
        notices=notices,
    )
