"""Rows that are looked at one by one become batches: rows of a table, members of an archive.

A reader adds a row's text, or says why there is none, and takes a batch when enough has come together. Here the policies are
applied: for bytes that are not UTF-8, and for rows that are no records.
"""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING

from tokmill.core.records import Batch, Counts
from tokmill.read.json_record import NotARecordError, skip_of
from tokmill.read.long_documents import long_batches
from tokmill.read.utf8 import clean, first_invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokmill.core.records import Cursor, Location, Skip
    from tokmill.read.position import Position, ReadSettings

_PATIENCE_S = 0.5
"""A batch that takes longer to fill is handed on as it is: a slow pipe is to be committed while it flows."""
_NONE = 2**64 - 1
"""In place of an offset that is not known."""


class RowBatcher:
    """The rows of a batch that is not full yet."""

    def __init__(
        self, position: Position, settings: ReadSettings, raw_position: Callable[[], int], *, allowed: str, records: str
    ) -> None:
        """allowed, records: for messages, as in `NotARecordError.error`."""
        self._position = position
        self._settings = settings
        self._raw_position = raw_position
        self._allowed = allowed
        self._records = records
        self._begin()

    def _begin(self) -> None:
        self._documents: list[bytes] = []
        self._places = array("Q")
        """Record and offset of each document."""
        self._skips: list[Skip] = []
        self._passed: dict[str, int] = {}
        self._n_text = 0
        self._n_in = 0
        self._n_changed = 0
        self._began_s = time.monotonic()
        self._n_invalid = 0

    @property
    def is_full(self) -> bool:
        """Whether `take` should be called."""
        n_rows = len(self._documents) + len(self._skips) + sum(self._passed.values())
        return (
            self._n_text >= self._settings.batch_bytes
            or n_rows >= self._settings.max_documents
            or (n_rows > 0 and time.monotonic() - self._began_s > _PATIENCE_S)
        )

    @property
    def holds_any(self) -> bool:
        """Whether a row was added, refused or passed over since the last batch was taken."""
        return bool(self._documents or self._skips or self._passed)

    @property
    def holds_long(self) -> bool:
        """Whether the last document is larger than a batch: it is to be taken before another row is added."""
        return bool(self._documents) and len(self._documents[-1]) > self._settings.batch_bytes

    def count(self, n_bytes: int) -> None:
        """Count bytes of the input that belong to this batch."""
        self._n_in += n_bytes

    def add(self, text: bytes, record: int, offset: int | None, *, is_valid: bool = False, n_invalid: int = 0) -> None:
        """A row's text. offset: of the row in its input, where it has one; is_valid: it is known to be UTF-8, of which n_invalid
        bytes that were not have been seen to.

        Raises BadRecordError.
        """
        at = None if is_valid else first_invalid(text)
        if at is not None:
            policy = self._settings.content.encoding_errors
            if policy == "strict":
                byte, next_step = text[at], "mend the file, or pass --encoding-errors replace (or ignore)"
                what = f"not valid UTF-8: byte 0x{byte:02x} at byte {at:,} of the text"
                self.refuse(NotARecordError("invalid_utf8", what, next_step), record, offset)
                return
            text, n_invalid = clean(text, policy)
        self._n_changed += n_invalid > 0
        self._n_invalid += n_invalid
        self._documents.append(text)
        self._places.extend((record, _NONE if offset is None else offset))
        self._n_text += len(text)

    def pass_over(self, reason: str) -> None:
        """A row that nobody asked for: counted, not recorded."""
        self._passed[reason] = self._passed.get(reason, 0) + 1

    def uncount(self) -> int:
        """Take back the bytes that were counted, to count them elsewhere."""
        n_in, self._n_in = self._n_in, 0
        return n_in

    def refuse(self, bad: NotARecordError, record: int, offset: int | None) -> None:
        """A row without a text: skipped and recorded, if that was asked for. Raises BadRecordError."""
        where = self._location(record, offset)
        if self._settings.content.on_error == "stop":
            raise bad.error(where, self._allowed, self._records) from None
        self._skips.append(skip_of(bad, where, offset, self._settings.content.text_key))

    def take(self, after: Cursor) -> Iterator[Batch]:
        """What was added, as batches; `after` is the cursor behind all of it. Raises MemoryBudgetError."""
        documents, locate, counts, skips = self._documents, self._locator(), self._counts(), self._skips
        is_long = self.holds_long
        self._begin()
        if not is_long:
            yield self._batch(documents, locate, counts, skips, after)
            return
        where = locate(len(documents) - 1)
        long_counts = Counts(documents=1)
        if len(documents) > 1 or skips:
            # Before the long one there is no place to go on from that this could name.
            counts = counts + Counts(documents=-1)
            yield self._batch(documents[:-1], locate, counts, skips, None)
        else:
            long_counts = counts
        del documents[:-1]
        yield from long_batches(
            documents.pop(), self._settings, where, counts=long_counts, after=after, position_bytes=self._raw_position()
        )

    def _batch(
        self, documents: list[bytes], locate: Callable[[int], Location], counts: Counts, skips: list[Skip], after: Cursor | None
    ) -> Batch:
        return Batch(
            index=0,
            documents=documents,
            raw=None,
            is_val=None,
            after=after,
            locate=locate,
            counts=counts,
            skips=skips,
            position_bytes=self._raw_position(),
        )

    def _counts(self) -> Counts:
        skipped = dict(self._passed)
        for skip in self._skips:
            skipped[skip.reason] = skipped.get(skip.reason, 0) + 1
        return Counts(
            documents=len(self._documents) + sum(skipped.values()),
            bytes_in=self._n_in,
            skipped=skipped,
            invalid_utf8_documents=self._n_changed,
            invalid_utf8_bytes=self._n_invalid,
        )

    def _locator(self) -> Callable[[int], Location]:
        places, location = self._places, self._location

        def locate(i: int) -> Location:
            record, offset = places[2 * i : 2 * i + 2]
            return location(record, None if offset == _NONE else offset)

        return locate

    def _location(self, record: int, offset: int | None) -> Location:
        where = self._position.location(0, record)
        return type(where)(path=where.path, record=where.record, offset=offset, unit=where.unit)
