"""Many small text files at once: what reading one costs otherwise (70 us) is nearly all of it not its text.

Only what is certain is taken here: a whole local file in which no separator stands and which begins like text. Anything else, a
changed or unreadable file as well, is left to `TextReader`, which says what is wrong with it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.documents import DocumentBuffer
from tokmill.core.errors import TokmillError
from tokmill.core.local_struct import LocalStruct
from tokmill.core.records import STDIN, Batch, Counts, Cursor, Location
from tokmill.read.stream import check_no_pointer, is_as_planned, open_stored
from tokmill.read.utf8 import HEAD_BYTES, foreign

if TYPE_CHECKING:
    from tokmill.core.records import Input
    from tokmill.read.position import ReadSettings

_MOST_BYTES = 1 << 16
"""Of a file; beyond that its text is most of the work."""
_BETWEEN = b"\0"
"""Stands between the texts, of which none has it. Unlike a byte that UTF-8 has not, it leaves all of them together valid."""


def small_texts(settings: ReadSettings, first: int, stop: int, n_before: int) -> Batch | None:
    """Return the texts of inputs from `first` on as one batch; None if the first must be read by itself.

    Args:
        settings: how to read.
        first: number of the first input.
        stop: number of an input that is not taken.
        n_before: bytes of the inputs before.
    """
    content = settings.content
    separator = (content.separator or "").encode()
    texts: list[bytes] = []
    n_bytes = 0
    side = content.inputs[first].side
    for source in content.inputs[first : min(stop, first + settings.max_documents)]:
        if source.side != side or not _may_be_small(source) or n_bytes + (source.size_bytes or 0) > settings.batch_bytes:
            break
        text = _text(source)
        if text is None or _BETWEEN in text or (separator and separator in text) or foreign(text[:HEAD_BYTES]):
            break
        texts.append(text)
        n_bytes += len(text)
    if not texts:
        return None
    data = _BETWEEN.join(texts)
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1) - 1
    starts = np.concatenate([[0], ends[:-1] + 1])
    return Batch(
        documents=DocumentBuffer(data, starts, ends, _BETWEEN),
        raw=memoryview(data),
        is_of_val=side == "val",
        after=Cursor(input_index=first + len(texts)),
        locate=_WholeFiles([source.path for source in content.inputs[first : first + len(texts)]]),
        counts=Counts(documents=len(texts), bytes_in=n_bytes),
        position_bytes=n_before + n_bytes,
    )


class _WholeFiles(LocalStruct, frozen=True):
    """As `Places`, where each document is a file."""

    paths: list[str]

    def __call__(self, i: int) -> Location:
        """Return the place of document i."""
        return Location(path=self.paths[i], record=1, offset=0, unit="document")


def _may_be_small(source: Input) -> bool:
    is_small = source.size_bytes is not None and 0 < source.size_bytes <= _MOST_BYTES
    is_plain = source.format == "text" and source.compression == "none" and not source.encoding
    return is_small and is_plain and not source.is_remote and source.path != STDIN


def _text(source: Input) -> bytes | None:
    """Return the bytes of a file; None if they cannot be read, or are not those that were planned."""
    try:
        fd = open_stored(source)
    except TokmillError:
        return None
    try:
        # One more than there should be, so that a file that grew is seen.
        text = os.read(fd, (source.size_bytes or 0) + 1)
        check_no_pointer(text, source)
        return text if len(text) == source.size_bytes and is_as_planned(source, fd) else None
    except (OSError, TokmillError):
        return None
    finally:
        os.close(fd)
