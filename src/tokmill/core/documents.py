"""Documents that lie in one buffer, as the text reader finds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NO_BYTE = b"\xff"
"""A byte that never occurs in UTF-8."""
_SHORT_BYTES = 1 << 10
"""Documents up to here, on average, are split at once: 40 ns for one of 40 bytes, where slicing it takes 190."""


class DocumentBuffer(Sequence[bytes]):
    """A sequence of documents that lie in one buffer with separators between them; `bytes` are made only of those asked for."""

    __slots__ = ("data", "ends", "separator", "starts")

    def __init__(self, data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64], separator: bytes) -> None:
        """Describe the documents in `data`.

        starts, ends: int64, shape (n_documents,): document i is data[starts[i]:ends[i]]; separator: splitting `data` at it,
        leftmost first, gives these documents, and no others but empty ones.
        """
        self.data = data
        self.starts = starts
        self.ends = ends
        self.separator = separator

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[bytes]:
        if len(self.separator) == 1 and len(self.data) < _SHORT_BYTES * len(self) and (self.ends > self.starts).all():
            return filter(None, self.data.split(self.separator))
        return map(self.data.__getitem__, map(slice, self.starts.tolist(), self.ends.tolist()))

    def views(self) -> Iterator[bytes | memoryview]:
        """Yield the documents, the bytes of long ones not copied."""
        if len(self.data) < _SHORT_BYTES * len(self):
            return iter(self)
        return map(memoryview(self.data).__getitem__, map(slice, self.starts.tolist(), self.ends.tolist()))

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self.data[self.starts[index] : self.ends[index]]

    @property
    def n_bytes(self) -> int:
        """Bytes of all documents."""
        return int((self.ends - self.starts).sum())

    def without_empty(self) -> tuple[DocumentBuffer, Sequence[int] | NDArray[np.intp]]:
        """Return the documents that are not empty, and the index of each."""
        is_full = self.ends > self.starts
        if is_full.all():
            return self, range(len(self))
        kept = is_full.nonzero()[0]
        return DocumentBuffer(self.data, self.starts[kept], self.ends[kept], self.separator), kept

    def compact(self) -> DocumentBuffer:
        """Return the same documents (UTF-8, none empty, none left out) with one byte between them, if they are short.

        That byte is found ten times as fast as a word, for which Python prepares its search each time.
        """
        n_between = len(self.separator)
        is_short = 0 < len(self.data) < _SHORT_BYTES * len(self)
        if not is_short or n_between < 2 or (self.starts[1:] - self.ends[:-1] != n_between).any():
            return self
        import numpy as np

        first, end = int(self.starts[0]), int(self.ends[-1])
        data = np.frombuffer(self.data, np.uint8)[first:end]
        is_kept = np.ones(len(data), np.bool_)
        after = self.ends[:-1] - first
        for i in range(1, n_between):
            is_kept[after + i] = False
        kept = data[is_kept]
        shift = first + (n_between - 1) * np.arange(len(self))
        ends = self.ends - shift
        kept[ends[:-1]] = NO_BYTE[0]
        return DocumentBuffer(kept.tobytes(), self.starts - shift, ends, NO_BYTE)


def text_bytes(documents: Sequence[bytes]) -> int:
    """Return the bytes of all documents."""
    return documents.n_bytes if isinstance(documents, DocumentBuffer) else sum(map(len, documents))


def overlaps_itself(separator: bytes) -> bool:
    """Return whether a separator begins as it ends, so that where it stands depends on what was found before."""
    return any(separator.endswith(separator[:n]) for n in range(1, len(separator)))


def _runs_into(data: bytes, separator: bytes) -> bool:
    r"""Return whether the separator, put behind `data`, is found sooner: behind "one\n" a "\n\n" begins one byte before."""
    return (data[-len(separator) :] + separator).find(separator) < min(len(data), len(separator))


def joined(parts: Sequence[Sequence[bytes]]) -> Sequence[bytes]:
    """Return all documents of several sequences, in one buffer if each has one with the same separator."""
    slices = [part for part in parts if isinstance(part, DocumentBuffer) and len(part)]
    separator = slices[0].separator if slices else b""
    if not slices or any(len(part) and (not isinstance(part, DocumentBuffer) or part.separator != separator) for part in parts):
        return [document for part in parts for document in part]
    if overlaps_itself(separator) and any(_runs_into(part.data, separator) for part in slices[:-1]):
        return [document for part in slices for document in part]
    import numpy as np

    ends = list(accumulate(len(part.data) + len(separator) for part in slices))
    shifts = [0, *ends[:-1]]
    return DocumentBuffer(
        separator.join(part.data for part in slices),
        np.concatenate([part.starts + shift for part, shift in zip(slices, shifts, strict=True)]),
        np.concatenate([part.ends + shift for part, shift in zip(slices, shifts, strict=True)]),
        separator,
    )
