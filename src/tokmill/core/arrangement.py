"""The documents of an output that was shuffled or mixed, as its manifest says them: of which sources, how often, by which seed."""

from __future__ import annotations

import msgspec

from tokmill.core.bounded import Natural

MOST_SOURCES = 1 << 12
MOST_COPIES = 1 << 12
MOST_DOCUMENTS = 1 << 40
"""A source has fewer documents: so many fit into the number of a copy (`core/document_order.py`)."""
RECORD_BYTES = 12
"""What a document takes on the disk beside its ids, while it is put into another order."""


class ArrangedSource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Documents of one source in an arrangement."""

    fingerprint: str
    """Fingerprint of the output's settings; several outputs that were taken as one have theirs in order, with + between."""
    documents: Natural
    """On its training side."""
    tokens: Natural
    """The same, end-of-text ids included."""
    times: Natural = 1
    """How often each document is taken."""
    last_chosen: int | None = None
    """Documents whose number of choice is up to this one are taken once more; None: none is."""
    taken_documents: Natural = 0
    """With all copies."""
    taken_tokens: Natural = 0
    wished_tokens: Natural = 0
    """Tokens that its weight asked for; 0 in a shuffle."""


class Arrangement(msgspec.Struct, frozen=True, kw_only=True):
    """The documents of a training side, in order."""

    seed: int
    """0 <= seed < 2**64."""
    sources: tuple[ArrangedSource, ...]

    def is_same_wish(self, other: Arrangement) -> bool:
        """Return whether both have the same seed, sources and wishes, so that what was chosen for them is the same."""
        return [_wish(each) for each in self.sources] == [_wish(each) for each in other.sources] and self.seed == other.seed

    @property
    def n_documents(self) -> int:
        """With all copies."""
        return sum(source.taken_documents for source in self.sources)


def _wish(source: ArrangedSource) -> ArrangedSource:
    """Return what is known of a source before documents are chosen."""
    return msgspec.structs.replace(source, last_chosen=None, taken_documents=0, taken_tokens=0)
