"""Documents that lie in one buffer, as the text reader finds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Slices(Sequence[bytes]):
    """Documents that lie one behind the other in one buffer, separated; `bytes` are made only of those that are asked for."""

    __slots__ = ("data", "ends", "separator", "starts")

    def __init__(self, data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64], separator: bytes) -> None:
        """starts, ends: int64, shape (n_documents,): document i is data[starts[i]:ends[i]].

        separator: splitting `data` at it, leftmost first, gives these documents, and besides them none but empty ones.
        """
        self.data = data
        self.starts = starts
        self.ends = ends
        self.separator = separator

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[bytes]:
        return map(self.data.__getitem__, map(slice, self.starts.tolist(), self.ends.tolist()))

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
        """Of all documents."""
        return int((self.ends - self.starts).sum())

    def without_empty(self) -> tuple[Slices, NDArray[np.intp]]:
        """The documents that are not empty, and the index of each."""
        kept = (self.ends > self.starts).nonzero()[0]
        return Slices(self.data, self.starts[kept], self.ends[kept], self.separator), kept


def text_bytes(documents: Sequence[bytes]) -> int:
    """Bytes of all documents."""
    return documents.n_bytes if isinstance(documents, Slices) else sum(map(len, documents))
