"""Samples of tables and archives: what can only be read from its front, or by its own index, is read by its reader.

CSV, tar and Arrow are read from the beginning, as far as the time reaches, and every n-th batch is kept. Of Parquet, row groups are
drawn from all of the file; what they stand for is measured in bytes of the stored column, which the file's index counts exactly: a
column that is stored more tightly than it is read does not mislead. What was not read is said to be unseen: the interval then comes
from how much the parts that were read differ.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import MIB, Resources
from tokmill.core.records import Cursor
from tokmill.core.skipping import OTHER_FILE
from tokmill.encode import cutter_of
from tokmill.read import CorpusReader
from tokmill.run.estimate.windows import PLACE_BYTES, Decoded, Excerpt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokmill.core.config import Content
    from tokmill.core.protocols import Cutter
    from tokmill.core.records import Batch, Input, InputFormat

GRIDDED: frozenset[InputFormat] = frozenset(("text", "jsonl"))
"""Formats of which a window can be taken anywhere."""
_RESOURCES = Resources(
    budget_bytes=256 * MIB,
    worker_bytes=256 * MIB,
    n_threads=1,
    batch_bytes=PLACE_BYTES,
    in_flight_bytes=MIB,
    max_piece_bytes=64 * MIB,
    reset_above_bytes=256 * MIB,
)


def is_gridded(source: Input) -> bool:
    """Whether windows of an input can be taken anywhere."""
    return source.compression == "none" and source.format in GRIDDED


class _Kept:
    """Every n-th stretch of those that came by, at most so many."""

    def __init__(self, content: Content, most: int) -> None:
        self.stride = 1
        self._content = content
        self._most = most
        self._kept: list[Excerpt] = []
        self._n_met = 0

    def add(self, stretch: list[Batch], raw_bytes: int, end: int | None = None) -> None:
        """raw_bytes: what the stretch stands for; end: the row at which it ends, where the batches go on behind it."""
        if self._n_met % self.stride == 0:
            self._kept.append(self._excerpt(stretch, raw_bytes, end))
            if len(self._kept) > self._most:
                self._kept = self._kept[::2]
                self.stride *= 2
        self._n_met += 1

    def excerpts(self) -> list[Excerpt]:
        for excerpt in self._kept:
            excerpt.chance = 1 / self.stride
        return self._kept

    def _excerpt(self, stretch: list[Batch], raw_bytes: int, end: int | None) -> Excerpt:
        found = Excerpt(raw_bytes=raw_bytes)
        for batch in stretch:
            inside = _documents_before(batch, end)
            texts = [text for text in inside if text]
            found.texts += texts
            found.n_eot += len(inside if self._content.keep_empty else texts) - batch.tail_open
            if end is None:
                found.documents += batch.counts.documents
                found.n_bad += sum(n for reason, n in batch.counts.skipped.items() if reason != OTHER_FILE)
            else:
                # Empty rows are in the documents, not in the skips.
                skips = [skip for skip in batch.skips if skip.record is not None and skip.record <= end]
                found.documents += len(inside) - batch.tail_open + len(skips)
                found.n_bad += len(skips)
        return found


def _documents_before(batch: Batch, end: int | None) -> Sequence[bytes]:
    """Of a batch's documents, those of rows before the one with index `end`."""
    if end is None:
        return batch.documents
    return [text for i, text in enumerate(batch.documents) if (batch.locate(i).record or 0) <= end]


def survey_rows(source: Input, content: Content, *, until_s: float, most: int) -> Decoded:
    """A sample of an input that is read from its beginning; until_s: of the monotonic clock. Raises TokmillError."""
    kept = _Kept(content, most)
    n_bytes = n_raw = 0
    is_complete = True
    for stretch in _stretches(source, content, cutter_of(content.tokenizer), Cursor()):
        n_read = sum(batch.counts.bytes_in for batch in stretch)
        kept.add(stretch, n_read)
        n_bytes += n_read
        n_raw = stretch[-1].position_bytes
        if time.monotonic() > until_s and stretch[-1].after != Cursor(input_index=1):
            is_complete = False
            break
    return Decoded(kept.excerpts(), n_bytes, n_raw, is_complete, is_complete and kept.stride == 1, b"")


def survey_parquet(source: Input, content: Content, *, until_s: float, most: int) -> Decoded:
    """A sample of a Parquet file: row groups from all over, each read whole if there is time. Raises TokmillError."""
    from tokmill.read import stored_groups

    groups = stored_groups(source, content.text_key)
    total = sum(group.stored_bytes for group in groups)
    cutter = cutter_of(content.tokenizer)
    order = list(range(len(groups)))
    random.Random(0).shuffle(order)  # noqa: S311  a sample, no secret
    found: dict[int, list[Excerpt]] = {}
    seen, stride, n_done = 0, 1, 0
    for i in order:
        group, kept = groups[i], _Kept(content, max(1, most // min(len(order), 16)))
        n_rows = 0
        for stretch in _stretches(source, content, cutter, Cursor(record=group.first)):
            n_read = sum(batch.counts.documents for batch in stretch)
            n_here = min(n_read, group.n_rows - n_rows)
            # Batches go on into the next row group.
            end = group.first + group.n_rows if n_here < n_read else None
            kept.add(stretch, group.stored_bytes * n_here // max(1, group.n_rows), end)
            n_rows += n_here
            if n_rows >= group.n_rows or time.monotonic() > until_s:
                break
        found[i] = kept.excerpts()
        stride = max(stride, kept.stride)
        seen += group.stored_bytes * min(n_rows, group.n_rows) // max(1, group.n_rows)
        n_done += n_rows >= group.n_rows
        if time.monotonic() > until_s:
            break
    is_complete = n_done == len(groups)
    excerpts = [excerpt for i in sorted(found) for excerpt in found[i]]
    n_raw = int((source.size_bytes or 0) * seen / max(1, total))
    return Decoded(excerpts, seen, n_raw, is_complete, is_complete and stride == 1, b"")


def _stretches(source: Input, content: Content, cutter: Cutter | None, start: Cursor) -> Iterator[list[Batch]]:
    """Batches of one input from a place on, those of one document together. Raises TokmillError, where the run will, too."""
    alone = msgspec.structs.replace(content, inputs=(source,), on_error="skip")
    stretch: list[Batch] = []
    for batch in CorpusReader(alone, _RESOURCES, cutter).batches(start):
        stretch.append(batch)
        if batch.after is not None:
            yield stretch
            stretch = []
