"""The ids of one side as they lie in the files of an output, for what compares them with the corpus."""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.output_spec import SIDES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.dataset import Ids, TokenFile


class WrittenIds:
    """Several files as one sequence. Read, not mapped: a map counts as memory."""

    def __init__(self, side: str, files: Sequence[TokenFile], dtype: str) -> None:
        """side: `train` or `val`, which is named where it has no file."""
        self._side = side
        self._files = files
        self._begins = list(accumulate((file.n_tokens for file in files), initial=0))
        self._dtype = np.dtype(dtype).newbyteorder("<")

    def __len__(self) -> int:
        return self._begins[-1]

    @property
    def item_bytes(self) -> int:
        """Of one id."""
        return self._dtype.itemsize

    def read(self, begin: int, most: int) -> Ids:
        """Some of the ids from there on, of one file; none only at the end."""
        number = bisect(self._begins, begin) - 1
        if number == len(self._files):
            return np.zeros(0, self._dtype)
        file = self._files[number]
        at = begin - self._begins[number]
        n, offset = min(most, file.n_tokens - at), file.header_bytes + at * self._dtype.itemsize
        ids: Ids = np.fromfile(file.path, self._dtype, n, offset=offset)
        return ids

    def locate(self, index: int) -> tuple[str, int]:
        """The file in which an id is, by its place in the output, and the byte at which it begins; past the last, its end."""
        if not self._files:
            return self._side, 0
        number = max(min(bisect(self._begins, index), len(self._files)) - 1, 0)
        file = self._files[number]
        name = file.path.name if file.path.parent.name not in SIDES else f"{file.path.parent.name}/{file.path.name}"
        return name, file.header_bytes + (index - self._begins[number]) * self._dtype.itemsize
