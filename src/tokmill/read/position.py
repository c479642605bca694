"""What every format needs to know: how to read, and where reading is."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import msgspec
import numpy as np
import xxhash

from tokmill.core.documents import DocumentBuffer
from tokmill.core.errors import ChangedError
from tokmill.core.local_struct import LocalStruct
from tokmill.core.records import BLOCK_BYTES, DIVIDE_ABOVE_BYTES, Cursor, Location
from tokmill.core.selection import Selection
from tokmill.core.system.budget import HELD_BATCHES, RECORD_SHARE, piece_too_long

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from tokmill.core.config import BudgetTerms, Content
    from tokmill.core.errors import MemoryBudgetError
    from tokmill.core.protocols import ByteStream, Cutter
    from tokmill.core.records import Batch, Input, SourceFormat
    from tokmill.core.spans import RecordRanges

Stored = TypeVar("Stored")
_HASH_BYTES = 1 << 20
_UNITS: dict[SourceFormat, Literal["document", "line", "row", "member"]] = {
    "text": "document",
    "jsonl": "line",
    "csv": "row",
    "tsv": "row",
    "parquet": "row",
    "arrow": "row",
    "tar": "member",
}


class ReadSettings(LocalStruct, frozen=True):
    """The settings of a reader."""

    content: Content
    cutter: Cutter | None
    batch_bytes: int
    max_documents: int
    """In one batch."""
    max_piece_bytes: int
    divide_above_bytes: int = DIVIDE_ABOVE_BYTES
    block_bytes: int = BLOCK_BYTES
    budget_bytes: int = 0
    """--memory, for messages."""
    terms: BudgetTerms | None = None
    """What the budget was divided for, for messages."""
    on_large: Callable[[bool], None] = lambda _alone: None
    """Called before a long document is read whole, with whether no other may be held meanwhile; may wait."""
    spare_bytes: int = 32 << 20
    """Memory for what a reader holds of a file for as long as it is open."""
    long_records: RecordRanges | None = None
    """Those that an earlier run skipped as too long, by number from 1, whatever its budget was: this reader skips the
    same. None: those that are longer than this budget allows."""
    may_gather: Callable[[int, int], bool] | None = None
    """Whether so many bytes and documents that come next may be in one batch where `max_documents` is 1. None: no."""

    @property
    def selection(self) -> Selection:
        """Which documents are taken, and on which side they are."""
        return Selection(self.content)

    def hold(self, n_bytes: int | None, *, alone: bool = False) -> None:
        """Wait until so many bytes of text may be held at once, if that is much: few workers may at a time.

        n_bytes: None: it is much. alone: one worker at a time, as what decodes it has several copies.
        """
        if n_bytes is None or n_bytes > HELD_BATCHES * self.batch_bytes:
            self.on_large(alone)

    @property
    def most_bytes(self) -> int:
        """The longest text that is held in one piece."""
        return max(self.max_piece_bytes, self.batch_bytes)

    @property
    def most_record_bytes(self) -> int:
        """The longest record that is read; its text is then cut like others."""
        return max(self.most_bytes, self.budget_bytes // RECORD_SHARE)

    def skips_long(self, where: Position, record: int, *, is_longer: bool) -> bool | None:
        """Return whether a record, by its number from 0, is skipped as too long; None: it is too long, and that ends the run.

        is_longer: than the budget allows.
        """
        is_known = self.long_records is not None
        if self.long_records is not None and (where.input_index, record + 1) in self.long_records:
            return True
        return is_longer and (None if is_known or self.content.on_error == "stop" else True)

    def too_long(self, what: str, where: Location, n_bytes: int | None = None, *, is_record: bool = False) -> MemoryBudgetError:
        """Return the error for a text of more than `most_bytes`, or a record. n_bytes: its length, where known."""
        most = self.most_record_bytes if is_record else self.most_bytes
        return piece_too_long(what, str(where), most, self.terms, n_bytes, is_record=is_record)


class Position:
    """How far a range of an input was consumed. Advanced by the format, made into cursors for the batches."""

    def __init__(self, source: Input, start: Cursor, stop: Cursor | None = None) -> None:
        """Begin at `start`. stop: the end of the range, in this input or before the next; None: before the next."""
        self.source = source
        self.input_index = start.input_index
        self.offset = start.offset
        self.record = start.record
        self._stop = stop or Cursor(input_index=start.input_index + 1)
        # What comes through a pipe cannot be identified by size and time, so a cursor carries a digest of what went before it.
        self._hash = xxhash.xxh3_128() if source.size_bytes is None else None

    def advance(self, consumed: bytes | memoryview, n_records: int) -> None:
        """Consume the next bytes of the input, in which `n_records` records end."""
        self.offset += len(consumed)
        self.record += n_records
        if self._hash is not None:
            self._hash.update(consumed)

    def cursor(self, document_offset: int | None = None, *, begins: bool = True) -> Cursor:
        """Return the cursor of this position."""
        digest = self._hash.hexdigest() if self._hash is not None else None
        return Cursor(
            input_index=self.input_index,
            offset=self.offset,
            record=self.record,
            document_offset=document_offset,
            begins=begins,
            digest=digest,
        )

    def end(self) -> Cursor:
        """Return the cursor of the range's end."""
        return msgspec.structs.replace(self._stop, record=self.record) if self._stop.offset else self._stop

    @property
    def stop_record(self) -> int | None:
        """The first row of a table after the range; None if the range has all that follow."""
        return self._stop.record or None

    def location(self, offset: int | None = None, record: int | None = None) -> Location:
        """Return the record that begins here, or the one at `offset` with the number `record` from 0."""
        return Location(
            path=self.source.path,
            record=(self.record if record is None else record) + 1,
            offset=self.offset if offset is None else offset,
            unit=_UNITS[self.source.format],
        )

    def places(self, records: Sequence[bytes | memoryview], separator_bytes: int) -> Places:
        """Return where records are that begin here, with a separator between them."""
        if isinstance(records, DocumentBuffer):
            starts = records.starts
        else:
            starts = np.zeros(len(records), np.int64)
            np.cumsum([len(record) + separator_bytes for record in records[:-1]], out=starts[1:])
        return Places(self.location(), offsets=starts + self.offset)

    def seek(self, stream: ByteStream, start: Cursor) -> None:
        """Bring a fresh stream to `start`, where this position was made. Raises ChangedError."""
        if self._hash is None:
            stream.skip(start.offset)
            return
        while stream.offset < start.offset:
            data = stream.read(min(_HASH_BYTES, start.offset - stream.offset))
            if not data:
                raise self._changed(f"it ended after {stream.offset:,} bytes; {start.offset:,} were read before")
            self._hash.update(data)
        if start.offset and self._hash.hexdigest() != start.digest:
            raise self._changed(f"its first {start.offset:,} bytes are not those that were read before")

    def _changed(self, how: str) -> ChangedError:
        return ChangedError(
            f"the piped input is not the one that the run began with: {how}",
            where=str(Location(path=self.source.path)),
            allowed="the same bytes from the beginning; what was read before is compared and passed over",
            next_step="pipe the same data again, or start over with --fresh",
        )


class Places(LocalStruct, frozen=True):
    """Where the documents of a batch are: called with the index of one, it returns its `Location`."""

    first: Location
    """Of the record from which `records` count."""
    records: Sequence[int] | NDArray[np.intp] | None = None
    """For each document, records of the input between that one and its own; None: 0, 1, 2, ..."""
    offsets: Sequence[int] | NDArray[np.int64] | None = None
    """For each document, where it begins in the decompressed input, below 0 where that means nothing; None: nowhere does it."""

    def __call__(self, i: int) -> Location:
        """Return the place of document i."""
        offset = -1 if self.offsets is None else int(self.offsets[i])
        record = (self.first.record or 0) + (i if self.records is None else int(self.records[i]))
        return msgspec.structs.replace(self.first, record=record, offset=offset if offset >= 0 else None)


class OnePlace(LocalStruct, frozen=True):
    """As `Places`, where all are in one record."""

    where: Location

    def __call__(self, i: int) -> Location:  # noqa: ARG002  the contract's
        """Return the place."""
        return self.where


class FormatReader(Generic[Stored]):
    """The reader of one input, or of a range of it, in one format."""

    def __init__(self, stream: Stored, position: Position, settings: ReadSettings) -> None:
        """Prepare to read. stream: fresh, or a file that can seek for formats with an index at their end; the caller closes it."""
        self._stream = stream
        self._position = position
        self._settings = settings

    @abstractmethod
    def batches(self, start: Cursor) -> Iterator[Batch]:
        """Yield the batches from `start` on, where the position was made, with `index` not set.

        Raises DamagedInputError, BadTextError, BadRecordError, MemoryBudgetError, ChangedError.
        """
