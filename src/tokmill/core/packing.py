"""What a manifest says of a packed output: documents in sequences of one length, whole where they fit, then padding."""

from __future__ import annotations

from typing import Literal

import msgspec

from tokmill.core.bounded import Natural, Positive

MOST_SEQUENCE = 1 << 20
"""Ids of a sequence: the number of a piece has so much room for its place in it (`piece_numbers`)."""
MOST_SEQUENCES = 1 << 43

Drop = Literal["nothing", "rests", "long"]
DROPS: tuple[Drop, ...] = ("nothing", "rests", "long")


class Packing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that decides where the documents of the sources lie."""

    sequence: Positive
    """Ids of each sequence."""
    seed: int
    """0 <= seed < 2**64."""
    pad_id: Natural
    """Fills sequences up; it is in no document."""
    sources: tuple[str, ...]
    """Fingerprints of the outputs' settings, in order."""
    drop: Drop = "nothing"
    """Rests: of a document longer than a sequence, what is left after its last full one; long: such documents."""


class PackedSide(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of one side."""

    sequences: Natural
    documents: Natural
    """Whose end is in a sequence."""
    pieces: Natural
    """Whole documents, and the parts of those that are cut."""
    padding: Natural
    """Ids that fill sequences up."""
    cut: Natural
    """Documents longer than a sequence: no others are cut."""
    cut_by_windows: Natural
    """Documents that windows of a sequence, end to end over the documents as they lay, would have cut."""
    source_documents: Natural
    """Before anything was left out."""
    dropped_tokens: Natural = 0
    """Left out because that was asked for."""
