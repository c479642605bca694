"""Where whole documents, parts of cut ones and padding begin in the sequences of a packed side: lists beside its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.errors import DamageError
from tokmill.core.system.refusals import explaining
from tokmill.dataset.token_files import check_size, read_npy_header
from tokmill.formats import starts_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.manifest import Manifest
    from tokmill.dataset.token_files import TokenFile

_AT_ONCE = 1 << 16


class Starts:
    """The starts of one side, counted from its first token."""

    def __init__(self, files: Sequence[TokenFile], manifest: Manifest) -> None:
        """files: of ids, in order. Raises DamageError for lists that are not as long as the manifest says."""
        self._files = files
        self._firsts = np.cumsum([0, *(file.n_tokens for file in files)], dtype=np.int64)
        self._lists = [_mapped(file, manifest) for file in files]

    def within(self, begin: int, end: int) -> NDArray[np.int64]:
        """Return the starts from token `begin` on that lie before `end`: int64, shape (n,), all in one file.

        A document begins at `begin`. Raises DamageError where that is not so.
        """
        number = int(np.searchsorted(self._firsts, begin, side="right")) - 1
        first, listed = int(self._firsts[number]), self._lists[number]
        a, b = np.searchsorted(listed, [begin - first, end - first])
        found: NDArray[np.int64] = listed[a:b].astype(np.int64) + first
        if not len(found) or found[0] != begin or found[-1] >= end or (np.diff(found) <= 0).any():
            raise self._damage(number)
        return found

    def stretches(self) -> Iterator[NDArray[np.int64]]:
        """Yield begins and ends, int64, shape (n, 2), in order, some at a time. Raises DamageError for others than such."""
        for number, listed in enumerate(self._lists):
            first, end = self._firsts[number : number + 2].tolist()
            for at in range(0, len(listed) - 1, _AT_ONCE):
                edges = listed[at : at + _AT_ONCE + 1].astype(np.int64) + first
                if edges[0] < first or edges[-1] > end or (np.diff(edges) <= 0).any():
                    raise self._damage(number)
                yield np.stack([edges[:-1], edges[1:]], axis=1)

    def _damage(self, number: int) -> DamageError:
        """Return the error for the list of a file whose numbers are not those of documents."""
        path = self._files[number].path
        return DamageError(
            "a list of the starts of documents is damaged: its numbers are not in order, or not of the sequences",
            where=str(path.with_name(starts_name(path.name))),
            allowed="numbers that rise, one at the beginning of each sequence",
            next_step="tokmill verify DIR says what else is damaged; tokmill pack ... --fresh makes the output again",
        )


def _mapped(file: TokenFile, manifest: Manifest) -> NDArray[np.int64]:
    path = file.path.with_name(starts_name(file.path.name))
    entry = manifest.files.get(starts_name(file.name))
    if entry is None:
        raise DamageError(
            "the manifest lists no starts of documents for a file of packed ids",
            where=str(file.path),
            allowed=path.name,
            next_step="make the output again: tokmill pack ... --fresh",
        )
    check_size(path, entry.size_bytes)
    header = read_npy_header(path)
    n = (entry.size_bytes - header.size_bytes) // 8 if header else -1
    if header is None or (header.dtype, header.n_ids) != ("int64", n):
        raise DamageError(
            "a list of the starts of documents has not the header it was written with",
            where=str(path),
            allowed="int64, as many as the file has room for",
            next_step="tokmill verify DIR says what else is damaged",
        )
    with explaining(str(path)):
        mapped: NDArray[np.int64] = np.memmap(path, "<i8", mode="r", offset=header.size_bytes, shape=(n,))
        return mapped
