"""The corpus as batches: opens one input after the other, lets its format read it, packs small files, numbers the batches.

In a corpus of very many small files a batch for each would cost more than its text, so neighbours are packed until one is full.
The cursor is that of the last file packed, so packing cannot be seen in the output.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from importlib import import_module
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tokmill.core.documents import DocumentBuffer, joined, text_bytes
from tokmill.core.errors import TokmillError
from tokmill.core.local_struct import LocalStruct
from tokmill.core.partition import Part
from tokmill.core.records import BLOCK_BYTES, DIVIDE_ABOVE_BYTES, WITH_FOOTER, Batch, Counts, Cursor, SourceFormat
from tokmill.core.system.budget import memory_too_small
from tokmill.read.input_range import find_range
from tokmill.read.notes import InputNotes
from tokmill.read.position import ReadSettings
from tokmill.read.seekable import open_seekable
from tokmill.read.small_texts import small_texts
from tokmill.read.sniff import check_pipe
from tokmill.read.splitter import most_documents
from tokmill.read.stream import open_stream
from tokmill.read.tail import divided, goes_on

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from tokmill.core.config import Content, Resources
    from tokmill.core.errors import MemoryBudgetError
    from tokmill.core.protocols import Cutter
    from tokmill.core.records import Location
    from tokmill.core.spans import RecordRanges
    from tokmill.read.input_range import InputRange
    from tokmill.read.position import FormatReader, Position

READERS: dict[SourceFormat, str] = {
    "text": "tokmill.read.formats.text:TextReader",
    "jsonl": "tokmill.read.formats.jsonl:JsonLinesReader",
    "csv": "tokmill.read.formats.delimited:TableReader",
    "tsv": "tokmill.read.formats.delimited:TableReader",
    "parquet": "tokmill.read.formats.parquet:ParquetReader",
    "arrow": "tokmill.read.formats.arrow:ArrowReader",
    "tar": "tokmill.read.formats.tar:TarReader",
}
"""By format, its `FormatReader`; imported when there is an input of it."""
_PATIENCE_S = 0.5
_MANY_ZEROS = 16
"""A text of which one byte in so many is zero is hardly one."""
_SAMPLED = 64
"""How many documents of a batch are looked at, about, where each has a buffer of its own."""
_ONE_BY_ONE_BYTES = 64 << 10
"""Text that is read ahead where each record is a batch."""
_MOST_PACKED = 1024
"""Inputs in one batch; each keeps about 1 kB of bookkeeping until the batch is written."""


class CorpusReader:
    """The reader of the inputs of a job, or of the ranges that a part has of them. See protocols.Reader."""

    def __init__(
        self,
        content: Content,
        resources: Resources,
        cutter: Cutter | None,
        *,
        on_large: Callable[[bool], None] = lambda _alone: None,
        divide_above_bytes: int = DIVIDE_ABOVE_BYTES,
        block_bytes: int = BLOCK_BYTES,
        one_by_one: bool = False,
        may_pack: Callable[[int, int], bool] | None = None,
    ) -> None:
        """Make a reader that has opened nothing yet.

        Args:
            content: inputs and how to read them; with a part, only its ranges are read.
            resources: sizes of batches and pieces.
            cutter: where long documents may be cut; None: nowhere.
            on_large: called before a long document is read whole, with whether no other may be held meanwhile; may wait.
            divide_above_bytes: decides the bytes of the output, as does the next; not for users, tests make both small.
            block_bytes: of a divided document.
            one_by_one: each record is a batch of its own, or several batches.
            may_pack: of records read one by one, whether those next to come may be one batch, with how many bytes of text and
                documents; asked before each is added. None: none may.
        """
        # U+FFFD for a bad byte makes a text up to three times as long; in a window it must stay below what is divided.
        batch_bytes = max(1, min(resources.batch_bytes, divide_above_bytes // 3))
        self._pack = _Pack(batch_bytes, may_pack)
        self._is_packed = not one_by_one or may_pack is not None
        if one_by_one:
            batch_bytes = min(batch_bytes, _ONE_BY_ONE_BYTES)
        self._inputs = content.inputs
        self._part = content.part if isinstance(content.part, Part) else None
        self.end: Cursor | None = None
        """Where reading ended, once it has: after the last input, or where a part ends in it."""
        self.notes = InputNotes()
        self._position: Position | None = None
        self._checks_pipes = resources.refuse_json_lines
        self.settings = ReadSettings(
            content=content,
            cutter=cutter,
            batch_bytes=batch_bytes,
            max_documents=1 if one_by_one else most_documents(batch_bytes),
            may_gather=None if may_pack is None else self._pack.may_grow,
            max_piece_bytes=resources.max_piece_bytes,
            divide_above_bytes=divide_above_bytes,
            block_bytes=block_bytes,
            budget_bytes=resources.budget_bytes,
            terms=resources.terms,
            on_large=on_large,
            spare_bytes=resources.spare_bytes,
        )

    def skip_long(self, records: RecordRanges | None) -> None:
        """Skip these records as too long and no others: see `ReadSettings.long_records`."""
        self.settings = replace(self.settings, long_records=records)

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """See protocols.Reader."""
        for index, batch in enumerate(self._packed(start) if self._is_packed else self._unpacked(start)):
            yield replace(batch, index=index)

    def notices(self) -> list[str]:
        """Return what is to be said of the inputs that were read."""
        return self.notes.notices(self.settings.content)

    def out_of_memory(self) -> MemoryBudgetError:
        """Return the error for an allocation that failed, with the place that reading has come to."""
        where = self._position and str(self._position.location())
        return memory_too_small("memory ran out", where or "before the first input", self.settings.budget_bytes)

    def _packed(self, start: Cursor) -> Iterator[Batch]:
        pack = self._pack
        pack.clear()
        try:
            for batch in self._unpacked(start):
                if not pack.takes(batch):
                    yield from pack.flush()
                if not pack.takes(batch):
                    yield batch
                    continue
                pack.add(batch)
                if pack.is_old:
                    yield from pack.flush()
        except TokmillError:
            # What is wrong with earlier documents must be found before this error is.
            yield from pack.flush()
            raise
        yield from pack.flush()

    def _unpacked(self, start: Cursor) -> Iterator[Batch]:
        n_before = sum(source.size_bytes or 0 for source in self._inputs[: start.input_index])
        if self._part and start.input_index:
            n_before -= self._part.begin
        after = Cursor(input_index=len(self._inputs))
        cursor = start
        while cursor.input_index < len(self._inputs):
            i = cursor.input_index
            small = self._small_texts(cursor, n_before)
            if small is not None and small.after is not None:
                yield small
                n_before, after = small.position_bytes, small.after
                cursor = after
            else:
                n_before, after = yield from self._input(i, cursor, n_before)
                cursor = Cursor(input_index=i + 1)
        self.end = after

    def _small_texts(self, cursor: Cursor, n_before: int) -> Batch | None:
        """Return the next inputs as one batch, where these are small files of text, each whole."""
        i, part = cursor.input_index, self._part
        if self.settings.content.val_tail or (part and not i and part.begin) or cursor != Cursor(input_index=i):
            return None
        # The last input of a part may end in its middle.
        return small_texts(self.settings, i, len(self._inputs) - bool(part and part.end), n_before)

    def _input(self, i: int, start: Cursor, n_before: int) -> Generator[Batch, None, tuple[int, Cursor]]:
        """Yield the batches of one input; return the stored bytes before the next, and the cursor after the input."""
        wanted = find_range(self.settings, self._part, i)
        start, n_before = wanted.first(start), n_before - wanted.begin_byte
        if wanted.end == wanted.begin and not wanted.end.offset:
            # A long document goes on here and beyond; whoever reads it says where it ends.
            return n_before, start
        if not wanted.is_over(start):
            return (yield from self._sides(wanted, start, n_before))
        if start != wanted.begin:
            # Reading begins behind the range.
            return n_before, start
        nothing = wanted.nothing(start)
        n_before += nothing.position_bytes
        yield replace(nothing, position_bytes=n_before)
        return n_before, nothing.after or start

    def _sides(self, wanted: InputRange, start: Cursor, n_before: int) -> Generator[Batch, None, tuple[int, Cursor]]:
        """Yield the batches of a range of one input, from `start` in it on; return as `_input` does."""
        tail, is_val = self.settings.content.val_tail, wanted.source.side == "val"
        if not tail:
            return (yield from self._range(wanted, start, n_before, is_val=is_val))
        head, rest = divided(wanted, tail, len((self.settings.content.separator or "").encode()))
        reached, after = n_before, start
        if head is not None and not head.is_over(start):
            reached, after = yield from self._range(head, start, n_before, is_val=False)
            if not goes_on(head, tail, after):
                return reached, after
        if rest is not None:
            return (yield from self._range(rest, after, n_before, is_val=True))
        return reached, after

    def _range(
        self, wanted: InputRange, start: Cursor, n_before: int, *, is_val: bool
    ) -> Generator[Batch, None, tuple[int, Cursor]]:
        """Yield the batches of a range that is on one side, or (not is_val) of which documents choose; return as `_input` does."""
        source, position = wanted.source, wanted.position(start)
        reached: Cursor | None = None
        self._position = position
        # What the reader of the format reads from.
        stream: Any = open_seekable(source) if source.format in WITH_FOOTER else wanted.bounded(open_stream(source))
        content = self.settings.content
        if source.encoding:
            stream.is_strict = content.encoding_errors == "strict" and content.on_error == "stop"
        try:
            if self._checks_pipes and source.size_bytes is None and not start.offset:
                stream = check_pipe(stream, source, self.settings.content.text_key)
            for batch in _reader_of(source.format)(stream, position, self.settings).batches(start):
                if position.input_index not in self.notes.zeros and _is_full_of_zeros(batch, self.settings.content.separator):
                    self.notes.zeros[position.input_index] = batch.locate(0)
                yield replace(
                    batch,
                    is_of_val=is_val,
                    position_bytes=n_before + batch.position_bytes,
                    counts=wanted.counts(batch),
                )
                if wanted.is_reached(batch.after):
                    reached = batch.after
                    break
            if source.format == "text" and self.settings.content.separator is not None:
                self.notes.texts[position.input_index] = (not start.offset, position.record, position.offset - start.offset)
            end_byte = source.size_bytes if source.format in WITH_FOOTER else stream.raw_position()
            return n_before + int(end_byte or 0), reached or position.end()
        finally:
            stream.close()


def load_readers(formats: Iterable[SourceFormat]) -> None:
    """Import what reads these formats."""
    for name in formats:
        _reader_of(name)


def _is_full_of_zeros(batch: Batch, separator: str | None) -> bool:
    """Return whether many bytes of the text are zero, as far as a sample shows."""
    if "\0" in (separator or ""):
        return False
    documents = batch.documents
    if isinstance(documents, DocumentBuffer) and b"\0" in documents.separator:
        # What was put between the texts because none of them has it.
        return False
    texts = [documents.data] if isinstance(documents, DocumentBuffer) else documents[:: len(documents) // _SAMPLED or 1]
    # Most texts have none, which is seen much faster than they are counted.
    n_zeros = sum(text.count(0) for text in texts if 0 in text)
    return n_zeros > 1 and n_zeros * _MANY_ZEROS > sum(map(len, texts))


def _reader_of(input_format: SourceFormat) -> type[FormatReader[Any]]:
    module, _, name = READERS[input_format].partition(":")
    found: type[FormatReader[Any]] = getattr(import_module(module), name)
    return found


class _Pack:
    """Small batches that are to become one."""

    def __init__(self, batch_bytes: int, may_take: Callable[[int, int], bool] | None) -> None:
        """may_take: of so many bytes of text and documents, all in all; None: any."""
        self._batch_bytes = batch_bytes
        self._most_documents = most_documents(batch_bytes)
        self._may_take = may_take
        self._began_s = 0.0
        self.clear()

    def clear(self) -> None:
        """Forget what was taken."""
        self._batches: list[Batch] = []
        self._n_bytes = self._n_text = self._n_documents = 0

    def takes(self, batch: Batch) -> bool:
        """Return whether the batch may be packed and there is room for it."""
        if batch.is_val is not None or batch.head_open or batch.tail_open or batch.after is None:
            return False
        if self._batches and self._batches[0].is_of_val != batch.is_of_val:
            return False
        n_bytes = self._n_bytes + batch.counts.bytes_in
        n_documents = self._n_documents + len(batch.documents)
        return (
            batch.counts.bytes_in <= self._batch_bytes // 2
            and n_bytes <= self._batch_bytes
            and n_documents <= self._most_documents
            and len(self._batches) < _MOST_PACKED
            and self.may_grow(text_bytes(batch.documents), len(batch.documents))
        )

    def may_grow(self, n_text: int, n_documents: int) -> bool:
        """Return whether so much more text and so many more documents may be taken."""
        return self._may_take is None or self._may_take(self._n_text + n_text, self._n_documents + n_documents)

    @property
    def is_old(self) -> bool:
        """Whether the first batch has waited long enough: what a slow pipe brings is committed while it flows."""
        return time.monotonic() - self._began_s > _PATIENCE_S

    def add(self, batch: Batch) -> None:
        if not self._batches:
            self._began_s = time.monotonic()
        self._batches.append(batch)
        self._n_bytes += batch.counts.bytes_in
        self._n_text += text_bytes(batch.documents)
        self._n_documents += len(batch.documents)

    def flush(self) -> Iterator[Batch]:
        """Yield the packed batches as one, if there are any."""
        batches = self._batches
        self.clear()
        if len(batches) > 1:
            yield _merge(batches)
        else:
            yield from batches


def _merge(batches: list[Batch]) -> Batch:
    # For all or for none: what is looked for in `raw` is looked for nowhere else.
    raws = [b"\n".join(b.documents) if b.raw is None else b.raw for b in batches] if any(b.raw is not None for b in batches) else []
    return replace(
        batches[-1],
        documents=joined([batch.documents for batch in batches]),
        # A newline between them: two halves of a character must not meet.
        raw=memoryview(b"\n".join(raws)) if raws else None,
        locate=_JoinedPlaces([batch.locate for batch in batches], [len(batch.documents) for batch in batches]),
        counts=_sum([batch.counts for batch in batches]),
        skips=[skip for batch in batches for skip in batch.skips],
    )


def _sum(counts: list[Counts]) -> Counts:
    """Return the sum; those of documents and bytes alone, of which there may be a thousand, are added in one go."""
    plain = [c for c in counts if not c.skipped and not c.invalid_utf8_documents]
    others = [c for c in counts if c.skipped or c.invalid_utf8_documents]
    return sum(others, Counts(documents=sum(c.documents for c in plain), bytes_in=sum(c.bytes_in for c in plain)))


class _JoinedPlaces(LocalStruct, frozen=True):
    """Where the documents of packed batches are."""

    places: list[Callable[[int], Location]]
    lengths: list[int]

    def __call__(self, i: int) -> Location:
        ends = list(accumulate(self.lengths))
        k = bisect_right(ends, i)
        return self.places[k](i - (ends[k] - self.lengths[k]))
