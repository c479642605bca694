"""Where reading is, and what every format needs to know: the ground that the formats stand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import xxhash

from tokmill.core.errors import ChangedError
from tokmill.core.records import BLOCK_BYTES, DIVIDE_ABOVE_BYTES, Cursor, Location

if TYPE_CHECKING:
    from tokmill.core.config import Content
    from tokmill.core.protocols import ByteStream, Cutter
    from tokmill.core.records import Input, SourceFormat

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


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """How a corpus is read."""

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


class Position:
    """How far an input was consumed. Advanced by the format, made into cursors for the batches."""

    def __init__(self, source: Input, input_index: int, start: Cursor) -> None:
        """start: within this input."""
        self.source = source
        self.input_index = input_index
        self.offset = start.offset
        self.record = start.record
        self.stop_record: int | None = None
        """Of tables: the row behind the last that is to be read; None: the input has no more."""
        # What comes through a pipe cannot be identified by size and time, so a cursor carries a digest of what went before it.
        self._hash = xxhash.xxh3_128() if source.size_bytes is None else None

    def advance(self, consumed: bytes | memoryview, n_records: int) -> None:
        """Consume the next bytes of the input, which hold or complete `n_records` records."""
        self.offset += len(consumed)
        self.record += n_records
        if self._hash is not None:
            self._hash.update(consumed)

    def cursor(self, document_offset: int | None = None, *, begins: bool = True) -> Cursor:
        """The cursor of this position."""
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
        """The cursor behind this input."""
        return Cursor(input_index=self.input_index + 1)

    def location(self, offset: int | None = None, record: int | None = None) -> Location:
        """The record that begins here, or the one at `offset` with the number `record` from 0."""
        return Location(
            path=self.source.path,
            record=(self.record if record is None else record) + 1,
            offset=self.offset if offset is None else offset,
            unit=_UNITS[self.source.format],
        )

    def seek(self, stream: ByteStream, start: Cursor) -> None:
        """Bring a fresh stream to `start`, the position that this object was made for. Raises ChangedError."""
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
            f"the piped input is not the one that the run was begun with: {how}",
            where=str(Location(path=self.source.path)),
            allowed="the same bytes from the beginning; what was read already is compared and passed over",
            next_step="pipe the same data again, or start over with --fresh",
        )
