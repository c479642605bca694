"""What an output without copies must be, from documents in memory: sets of Python."""

from __future__ import annotations

from collections.abc import Sequence


def unique(sides: Sequence[tuple[list[bytes], list[bytes]]], against: Sequence[bytes] = ()) -> tuple[list[bytes], list[int]]:
    """Documents of the training sides that stay, in order, and the numbers of those that go, counted through all training sides.

    sides: of each output, the documents of its training and validation side.
    """
    seen = {*against, *(document for _, val in sides for document in val)}
    stay, go = [], []
    for number, document in enumerate(document for train, _ in sides for document in train):
        if document in seen:
            go.append(number)
        else:
            stay.append(document)
            seen.add(document)
    return stay, go
