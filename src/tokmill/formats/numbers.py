"""A list of numbers beside the ids, in a file that `numpy.load` reads: int64, one dimension, as long as it comes to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tokmill.core.protocols import OutputFiles

HEADER_BYTES = 128
"""Room for any length."""
STARTS_SUFFIX = ".starts.npy"
OFFSETS_SUFFIX = "_document_offsets.npy"


class NumbersFile:
    """The file while it grows. It keeps no state of its own."""

    def __init__(self, files: OutputFiles, name: str) -> None:
        self._files = files
        self._name = name
        self._file = files.file(name, HEADER_BYTES)

    def __len__(self) -> int:
        return (self._file.length - HEADER_BYTES) // 8

    def append(self, numbers: NDArray[np.int64]) -> None:
        """Append numbers: int64, shape (n,)."""
        if len(numbers):
            self._file.append(numbers.astype("<i8").data)

    def finish(self) -> None:
        """Complete the file."""
        self._files.complete(self._name, header=npy_header(len(self)))


def npy_header(n: int) -> bytes:
    """Return what `numpy.save` writes before n numbers, in 128 bytes."""
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({n},), }}".encode()
    begin = b"\x93NUMPY\x01\x00"
    n_text = HEADER_BYTES - len(begin) - 2
    return begin + n_text.to_bytes(2, "little") + text.ljust(n_text - 1) + b"\n"


def offsets_name(side: str) -> str:
    """Return the name of the file that has the offsets of a side: at the top, where no trainer takes it for ids."""
    return side + OFFSETS_SUFFIX


def starts_name(name: str) -> str:
    """Return the name of the file that has the starts of documents of a file of packed ids."""
    return name.rpartition(".")[0] + STARTS_SUFFIX
