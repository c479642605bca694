"""What packed outputs must be, from documents in memory: best-fit decreasing item by item, and rows read by numpy alone."""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def n_bins(lengths: Sequence[int], size: int) -> int:
    """Bins of plain best-fit decreasing: each item into the fullest bin that has room for it."""
    rooms: list[int] = []
    n = 0
    for length in sorted(lengths, reverse=True):
        at = bisect_left(rooms, length)
        room = rooms.pop(at) if at < len(rooms) else size
        n += room == size
        if room > length:
            insort(rooms, room - length)
    return n


def pieces_of(documents: Sequence[bytes], sequence: int, item: int = 2, drop: str = "nothing") -> list[bytes]:
    """Documents cut into full sequences and rests."""
    pieces: list[bytes] = []
    for document in documents:
        step = sequence * item
        cut = [document[at : at + step] for at in range(0, len(document), step)]
        if len(cut) > 1 and drop == "long":
            continue
        if len(cut) > 1 and drop == "rests":
            cut = [piece for piece in cut if len(piece) == step]
        pieces += cut
    return pieces


def n_cut_by_windows(documents: Sequence[bytes], sequence: int, item: int = 2) -> int:
    ends = list(itertools.accumulate(len(document) // item for document in documents))
    return sum(
        (end - len(document) // item) // sequence != (end - 1) // sequence for end, document in zip(ends, documents, strict=True)
    )


def read_rows(file: Path, sequence: int, pad_id: int, dtype: str = "<u2") -> list[list[bytes]]:
    """Pieces of each sequence of a raw file, its padding left out."""
    ids, starts = np.fromfile(file, dtype), np.load(file.with_suffix("").with_suffix(".starts.npy"))
    assert len(ids) % sequence == 0
    rows: list[list[bytes]] = [[] for _ in range(len(ids) // sequence)]
    assert set(range(0, len(ids) + 1, sequence)) <= set(starts.tolist())
    for a, b in itertools.pairwise(starts.tolist()):
        assert a < b
        if ids[a] == pad_id:
            assert (ids[a:b] == pad_id).all()
            assert b % sequence == 0
        else:
            assert pad_id not in ids[a:b]
            rows[a // sequence].append(ids[a:b].tobytes())
    return rows


def counted_pieces(rows: Sequence[Sequence[bytes]]) -> Counter[bytes]:
    return Counter(piece for row in rows for piece in row)
