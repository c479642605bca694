"""Whether a packed output holds the documents of its sources, each once, whole or cut as said, and at its place.

The starts beside a file of ids say where pieces of documents and padding begin. What they say is not trusted: a piece that is not
one has another digest, and padding is known by its id, which no document has.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from tokmill.core.packing import MOST_SEQUENCE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokmill.check.location import OpenedFile
    from tokmill.core.manifest import Manifest
    from tokmill.core.packing import PackedSide, Packing
    from tokmill.dataset import Ids

_HEADER_BYTES = 128
_BLOCK_BYTES = 1 << 18
_SLOT_BITS = MOST_SEQUENCE.bit_length() - 1


class StartsReader:
    """The numbers of a file beside a file of ids, in order. Close it."""

    def __init__(self, opened: OpenedFile) -> None:
        self._opened = opened
        self._held = np.zeros(0, np.int64)
        self._is_ended = False
        self._rest = b""
        self._read(_HEADER_BYTES)

    def upto(self, limit: int) -> NDArray[np.int64]:
        """Return the next numbers that are no larger than this one."""
        found = []
        while True:
            n = int(np.searchsorted(self._held, limit, side="right"))
            found.append(self._held[:n])
            self._held = self._held[n:]
            if len(self._held) or self._is_ended:
                return np.concatenate(found)
            self._held = np.frombuffer(self._read(_BLOCK_BYTES), "<i8").astype(np.int64)

    def close(self) -> None:
        """Close the file."""
        self._opened.__exit__()

    def _read(self, n_bytes: int) -> bytes:
        data = self._rest
        buffer = memoryview(bytearray(n_bytes))
        while len(data) < n_bytes:
            n = self._opened.read_into(buffer[: n_bytes - len(data)])
            if not n:
                self._is_ended = True
                break
            data += bytes(buffer[:n])
        whole = len(data) - len(data) % 8
        self._rest = data[whole:]
        return data[:whole]


@dataclass(slots=True)
class _Found:
    """What was counted of a side."""

    pieces: int = 0
    padding: int = 0
    marked: int = 0
    """Pieces with an end-of-text id: that of their document."""
    full_marked: int = 0
    """Those that are a whole sequence."""
    short_unmarked: int = 0
    """Shorter pieces without one."""

    def has_come_of(self, side: PackedSide, packing: Packing, *, is_after: bool) -> bool:
        """Return whether what a manifest says of documents that were cut or left out agrees with the pieces.

        Which pieces are of one document is not seen, but each that is cut has a full first piece, and only its last may be shorter.
        """
        unmarked, left_out = self.pieces - self.marked, side.source_documents - side.documents
        if not side.cut <= side.cut_by_windows <= side.source_documents:
            return False
        if packing.drop == "long":
            return unmarked == 0 and left_out == side.cut
        if packing.drop == "nothing":
            is_counted = left_out == side.dropped_tokens == 0
        else:
            is_counted = 0 <= left_out <= (side.cut if is_after else 0)
        if is_after:
            return is_counted and self.short_unmarked == 0 and side.cut <= unmarked and bool(side.cut) == bool(unmarked)
        most_short = side.cut if packing.drop == "nothing" else 0
        return is_counted and self.short_unmarked <= most_short and side.cut <= self.full_marked and (not unmarked or side.cut > 0)


class PackedCheck:
    """Takes the ids of all files in order, block by block."""

    def __init__(self, manifest: Manifest, packing: Packing) -> None:
        self._packing = packing
        self._sides: dict[str, PackedSide] = manifest.packed or {}
        self._eot_id, self._is_after = manifest.content.tokenizer.eot_id, manifest.content.eot == "after"
        self._dtype = np.dtype("<u2" if manifest.content.tokenizer.n_ids <= 1 << 16 else "<u4")
        self._expected = manifest.documents_digest
        self._starts: StartsReader | None = None
        self._sum = 0
        self._wrong = ""
        self._found = {side: _Found() for side in ("train", "val")}
        self._row = {"train": (self._sides["val"].sequences if "val" in self._sides else 0) - 1, "val": -1}
        """Number of the sequence that was begun last."""
        self._side = "train"
        self._at = self._begin = self._slot = 0
        self._open: xxhash.xxh3_128 | None = None
        self._is_padding = self._is_marked = False

    def begin_file(self, side: str, opened: OpenedFile | None) -> None:
        """Begin a file of ids. opened: its starts; None: they cannot be read, which is told elsewhere."""
        self.end_file()
        self._side, self._at, self._open = side, 0, None
        self._starts = StartsReader(opened) if opened else None
        if self._starts is None:
            self._note("the starts of documents cannot be read")
        elif self._starts.upto(0).tolist() != [0]:
            self._note("the first document does not begin with the file")

    def end_file(self) -> None:
        """End the file: its last piece, and the starts, must end with it."""
        if self._starts is not None:
            if self._open is not None or len(self._starts.upto(1 << 62)):
                self._note("the starts of documents do not end where the ids do")
            self._starts.close()
            self._starts = None

    def update(self, ids: Ids) -> None:
        """Take the next ids: uint16 or uint32, shape (n,)."""
        if self._starts is None:
            return
        first, size = self._at, self._dtype.itemsize
        self._at += len(ids)
        found = self._starts.upto(self._at) - first
        if len(found) and (found[0] < 0 or found[-1] > len(ids) or (np.diff(found) < 0).any()):
            self._note("the starts of documents are not in order")
            self._starts.close()
            self._starts = None
            return
        bounds = found.tolist()
        data = ids.astype(self._dtype, copy=False).view(np.uint8).data
        edges = [0, *bounds] if bounds[-1:] == [len(ids)] else [0, *bounds, len(ids)]
        n_closed = len(bounds)
        for number, (a, b) in enumerate(pairwise(edges)):
            if b <= a:
                self._note("a document begins twice")
                continue
            if self._open is None:
                self._begin_piece(first + a, int(ids[a]))
            self._take(data[a * size : b * size])
            if number < n_closed:
                self._end_piece(first + b, int(ids[b - 1]))
        self._found[self._side].padding += int(np.count_nonzero(ids == self._packing.pad_id))

    def problem(self) -> str | None:
        """Return what is wrong, in words; all ids have been taken."""
        self.end_file()
        for name, side in self._sides.items():
            found = self._found[name]
            if (found.pieces, found.padding, found.marked) != (side.pieces, side.padding, side.documents):
                self._note(
                    f"{name} has {found.pieces:,} pieces, {found.marked:,} of them with an end-of-text id, and {found.padding:,} "
                    "ids of padding"
                )
            elif not found.has_come_of(side, self._packing, is_after=self._is_after):
                self._note(
                    f"{name} is not of {side.source_documents:,} documents of which {side.cut:,} are longer than a sequence and "
                    f"{side.cut_by_windows:,} are cut by windows: others are cut, or these numbers are wrong"
                )
        if f"{self._sum % (1 << 128):032x}" != self._expected:
            self._note("the documents are not those of the sources, each at the place that the seed gives it")
        return self._wrong or None

    def _begin_piece(self, at: int, first_id: int) -> None:
        is_first = at % self._packing.sequence == 0
        self._row[self._side] += is_first
        self._slot = 0 if is_first else self._slot + 1
        self._begin, self._is_padding = at, first_id == self._packing.pad_id
        self._is_marked = first_id == self._eot_id
        self._open = xxhash.xxh3_128(seed=self._row[self._side] << _SLOT_BITS | self._slot)

    def _take(self, data: memoryview) -> None:
        assert self._open is not None
        self._open.update(data)
        if self._is_padding and not (np.frombuffer(data, self._dtype) == self._packing.pad_id).all():
            self._note("a document begins with padding")

    def _end_piece(self, at: int, last_id: int) -> None:
        assert self._open is not None
        sequence = self._packing.sequence
        if self._begin // sequence != (at - 1) // sequence:
            self._note("a document crosses the end of a sequence")
        if self._is_padding:
            if at % sequence:
                self._note("padding lies between documents")
        else:
            self._sum += self._open.intdigest()
            found, is_full = self._found[self._side], at - self._begin == sequence
            is_marked = last_id == self._eot_id if self._is_after else self._is_marked
            found.pieces += 1
            found.marked += is_marked
            found.full_marked += is_marked and is_full
            found.short_unmarked += not is_marked and not is_full
            if self._is_after and not is_marked and not is_full:
                self._note("a document is cut that fits into a sequence")
        self._open = None

    def _note(self, what: str) -> None:
        """Keep what was found first."""
        self._wrong = self._wrong or what
