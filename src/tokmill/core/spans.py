"""Spans: the byte ranges that segments added to a file, each with the digest of its bytes, and the check of bytes against them; and
ranges of records.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

import msgspec
import xxhash

from tokmill.core.records import FileHeader

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from typing_extensions import Buffer

    from tokmill.core.manifest import Manifest, Segment
    from tokmill.core.records import FileEntry

HEADER = -1
"""In place of a segment's number: the header of the file, which no segment added."""


class Span(msgspec.Struct, frozen=True, gc=False):
    """Bytes `begin` to `end` of one file."""

    segment: int
    """The segment that added them, from 0; or `HEADER`."""
    begin: int
    end: int
    digest: str
    """As in `FileSpan`."""
    pieces: str = ""
    """As in `FileSpan`."""


class PiecewiseHash:
    """The digest of bytes that are one piece, or several, which were hashed apart."""

    def __init__(self, pieces: str = "") -> None:
        """pieces: how many bytes each has, as in `FileSpan`, where that is known beforehand."""
        self._wanted = array("q", map(int, pieces.split()))
        self._hash = xxhash.xxh3_128()
        self._n_bytes = 0
        self._done: list[tuple[int, bytes]] = []

    def update(self, view: memoryview) -> None:
        """Take the next bytes."""
        while view:
            is_last = len(self._done) + 1 >= len(self._wanted)
            n = len(view) if is_last else min(len(view), self._wanted[len(self._done)] - self._n_bytes)
            self._hash.update(view[:n])
            self._n_bytes += n
            view = view[n:]
            if not is_last and self._n_bytes >= self._wanted[len(self._done)]:
                self._end_piece()

    def add_piece(self, n_bytes: int, digest: bytes) -> None:
        """Take a piece that was hashed elsewhere. digest: xxh3_128."""
        if self._n_bytes:
            self._end_piece()
        self._done.append((n_bytes, digest))

    def _end_piece(self) -> None:
        self._done.append((self._n_bytes, self._hash.digest()))
        self._hash, self._n_bytes = xxhash.xxh3_128(), 0

    def result(self) -> tuple[str, str]:
        """Return the digest, hex, and the bytes of each piece if there are several, as in `FileSpan`."""
        if not self._done:
            return self._hash.hexdigest(), ""
        pieces = [*self._done, *([(self._n_bytes, self._hash.digest())] if self._n_bytes else [])]
        if len(pieces) == 1:
            return pieces[0][1].hex(), ""
        return xxhash.xxh3_128_hexdigest(b"".join(digest for _, digest in pieces)), " ".join(str(n) for n, _ in pieces)


class RecordRanges:
    """Records of inputs, held as ranges: what a stranger's list calls one line may be any number of records."""

    def __init__(self, ranges: Mapping[int, Iterable[tuple[int, int]]]) -> None:
        """ranges: by the index of the input, number of the first record and of the first after them, in any order."""
        self._begins: dict[int, list[int]] = {}
        self._ends: dict[int, list[int]] = {}
        for index, of_input in ranges.items():
            begins, ends = self._begins.setdefault(index, []), self._ends.setdefault(index, [])
            for begin, end in sorted(of_input):
                if ends and begin <= ends[-1]:
                    ends[-1] = max(end, ends[-1])
                elif begin < end:
                    begins.append(begin)
                    ends.append(end)

    def __len__(self) -> int:
        return sum(map(len, self._begins.values()))

    def __contains__(self, place: tuple[int, int]) -> bool:
        index, record = place
        at = bisect_right(self._begins.get(index, ()), record) - 1
        return at >= 0 and record < self._ends[index][at]


def iter_spans(segments: Iterable[Segment], found: dict[str, list[Span]], first: int = 0) -> dict[str, list[Span]]:
    """Add the spans of segments to those found before, by file and in order, and return them.

    Args:
        segments: Consecutive segments.
        found: Spans of the segments before them; changed.
        first: Number of the first of these segments.
    """
    for number, segment in enumerate(segments, first):
        for name, added in segment.files.items():
            spans = found.setdefault(name, [])
            if spans and spans[-1].segment == number:
                # Another commit joined the segment.
                spans.append(msgspec.structs.replace(spans.pop(), end=added.end, digest=added.digest, pieces=added.pieces))
                continue
            spans.append(Span(number, spans[-1].end if spans else 0, added.end, added.digest, added.pieces))
    return found


def with_header(spans: Sequence[Span], entry: FileEntry) -> list[Span]:
    """Return the spans of a complete file with its header, if it has one, as the first."""
    if not isinstance(entry.header, FileHeader):
        return list(spans)
    header = Span(HEADER, 0, entry.header.size_bytes, entry.header.digest)
    first = [msgspec.structs.replace(spans[0], begin=header.end)] if spans else []
    return [header, *first, *spans[1:]]


def spans_of(manifest: Manifest) -> dict[str, list[Span]]:
    """Return the spans of every file of a complete output, by name, its header first."""
    found = iter_spans(manifest.segments, {})
    return {name: with_header(found.get(name, ()), entry) for name, entry in manifest.files.items()}


def add_up(spans: Sequence[Span], size_bytes: int) -> bool:
    """Return whether the spans are, end to end, a file of that size."""
    return all(span.begin <= span.end for span in spans) and (spans[-1].end if spans else 0) == size_bytes


class SpanChecker:
    """Compares the bytes of a file, given in order, with the digests of its spans."""

    def __init__(self, spans: Sequence[Span]) -> None:
        """Begin at the first span; spans: consecutive."""
        self.position = spans[0].begin if spans else 0
        """Offset in the file of the next byte."""
        self._spans = spans
        self._go_to(0)

    def seek(self, offset: int) -> None:
        """Move to the begin of the span that holds byte `offset`, or of the header, if that is just before it."""
        n_before = sum(span.end <= offset for span in self._spans)
        self._go_to(0 if n_before == 1 and self._spans[0].segment == HEADER else n_before)
        self.position = self._spans[self._next - 1].end if self._next else self._spans[0].begin if self._spans else offset

    def _go_to(self, index: int) -> None:
        """The next byte is the first of that span."""
        self._next = index
        self._hash = PiecewiseHash(self._spans[index].pieces if index < len(self._spans) else "")

    def update(self, data: Buffer) -> list[Span]:
        """Take the next bytes; return the spans that end in them and are damaged: their bytes are not those written."""
        view = memoryview(data).cast("B")
        damaged, done = [], 0
        while self._next < len(self._spans):
            span = self._spans[self._next]
            n = max(span.end - self.position - done, 0)
            self._hash.update(view[done : done + n])
            if done + n > len(view):
                break
            done += n
            if span.end < span.begin or self._hash.result() != (span.digest, span.pieces):
                damaged.append(span)
            self._go_to(self._next + 1)
        self.position += len(view)
        return damaged
