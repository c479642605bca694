"""The result of a command over complete outputs."""

from __future__ import annotations

import msgspec

from tokmill.core.records import FileEntry


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a merge, a conversion or a reshard did; the object that `--json` prints."""

    out: str
    """Output directory, absolute."""
    format: str
    dtype: str
    tokenizer: str
    sources: list[str]
    """What it was made from, absolute, in order."""
    documents_train: int
    documents_val: int
    tokens_train: int
    tokens_val: int
    bytes_out: int
    """Of all files of the output."""
    elapsed_s: float
    """Of this call."""
    bytes_per_s: float
    """Output that this call wrote, by its time."""
    peak_rss_bytes: int
    resumed: bool
    already_complete: bool
    files: dict[str, FileEntry]
    notices: list[str]
