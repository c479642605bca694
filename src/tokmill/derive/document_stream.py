"""Documents of a side as those who derive outputs take them: whole ones a block at a time, long ones piece by piece."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from tokmill.derive.source import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from tokmill.dataset import Ids
    from tokmill.derive.source import ShiftedIds

T = TypeVar("T")

_MOST_DOCUMENTS = 1 << 14
"""Handed out at a time: each costs some hundred bytes as an object of Python, however short it is."""


def whole_documents(ids: ShiftedIds, token: int, end: int | None = None) -> Iterator[tuple[Ids, NDArray[np.int64]]]:
    """Yield whole documents from a token on, about a block of them at a time at most, and where each ends.

    Of a document that is longer than a block its beginning, without an end; then come those after it. end: where a document ends
    that is the last one; None: all.
    """
    end = ids.n_tokens if end is None else end
    while token < end:
        block, ends = next(ids.blocks(token, min(token + BLOCK_TOKENS, end)))
        if len(ends):
            begin = 0
            for i in range(0, len(ends), _MOST_DOCUMENTS):
                some = ends[i : i + _MOST_DOCUMENTS]
                yield block[begin : some[-1]], some - begin
                begin = int(some[-1])
            token += begin
        else:
            yield block, ends
            token += sum(len(piece) for piece, _, _ in pieces_of(ids, token))


def pieces_of(ids: ShiftedIds, token: int) -> Iterator[tuple[Ids, bool, bool]]:
    """Yield a document that begins at a token, in blocks, and whether it begins and ends with each."""
    begin = token
    for block, ends in ids.blocks(token, ids.n_tokens):
        n = int(ends[0]) if len(ends) else len(block)
        yield block[:n], token == begin, bool(len(ends))
        if len(ends):
            return
        begin += len(block)


def slices(data: memoryview, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> list[memoryview]:
    """Return stretches of bytes, from each of `begins` to its end."""
    return [data[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]


def without_mark(ids: Ids, eot: str, is_first: bool, is_last: bool) -> Ids:  # noqa: FBT001
    """Return a piece of a document without its end-of-text id. is_first, is_last: whether the document begins or ends with it."""
    return ids[int(is_first and eot == "before") : len(ids) - int(is_last and eot == "after")]


def ahead(items: Iterator[T], waits: Callable[[T], bool] = lambda _item: False) -> Iterator[T]:
    """Yield items, each made in a thread while the one before is in use. waits: after which items the next one waits for that."""
    nothing = object()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, items, nothing)
        while (item := future.result()) is not nothing:
            if waits(item):  # type: ignore[arg-type]
                yield item  # type: ignore[misc]
                future = pool.submit(next, items, nothing)
            else:
                future = pool.submit(next, items, nothing)
                yield item  # type: ignore[misc]
