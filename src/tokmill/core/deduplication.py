"""What a deduplication was asked for, and what it removed, as the manifest of its output says it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from tokmill.core.bounded import Natural, Positive

REMOVED_NAME = "removed.jsonl"
"""The file of an output that has a line for each document that was removed."""

Measure = Literal["jaccard", "containment"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
MOST_SIGNATURE = 1 << 10
"""Numbers of a signature, at most: bands by rows."""


class NearRule(msgspec.Struct, frozen=True, kw_only=True):
    """When two documents are near copies, and how pairs of them are found. Every number here decides bytes."""

    threshold: Share
    """Similarity from which the later of two documents is removed."""
    measure: Measure = "jaccard"
    """jaccard: n-grams of both by those of either; containment: n-grams of both by those of the later document."""
    ngram: Positive = 5
    """Ids of an n-gram."""
    bands: Positive = 14
    rows: Positive = 8
    """Numbers of a signature in a band."""
    shortest: Natural = 50
    """Documents of fewer ids are left alone."""


class Deduplication(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which outputs were deduplicated together, and how."""

    sources: tuple[str, ...]
    """Fingerprints of the outputs, in order."""
    against: tuple[str, ...] = ()
    """Fingerprints of outputs whose documents were removed from these."""
    near: NearRule | None = None
    """None: documents with the same ids alone."""
    part: Natural | None = None
    """Set where each of the sources became an output of its own: the number of the one that became this one."""


class RemovedFrom(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was removed from the training side of one source."""

    documents: Natural = 0
    """That it had."""
    tokens: Natural = 0
    """That it had, end-of-text ids included."""
    copies: Natural = 0
    """Documents removed because an earlier one has the same ids."""
    copy_tokens: Natural = 0
    near_copies: Natural = 0
    """Documents removed because they are near copies of one that is kept."""
    near_copy_tokens: Natural = 0


class Removal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a deduplication found."""

    sources: tuple[RemovedFrom, ...]
    """In the order of `Deduplication.sources`; with `part`, that one alone."""
    against: tuple[str, ...] = ()
    """Absolute paths of the outputs whose documents were removed, in the form of `path_to_text`."""
    short: Natural = 0
    """Documents that were too short to be compared for near copies, of all sides."""
    long: Natural = 0
    """Those that were too long."""
    clusters: Natural = 0
    """Groups of documents that bands connect, of two or more."""
    compared_pairs: Natural = 0
    """Pairs of documents that were compared n-gram by n-gram."""
    unexamined: Natural = 0
    """Documents that were kept though they had more candidates than are compared with one document."""
    bytes_text: Natural = 0
    """Text that was tokenized by the same command, that of the removed documents included; 0: it was tokenized before."""
