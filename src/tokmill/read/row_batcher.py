"""Records that are looked at one by one become batches: rows of a table, members of an archive, lines of JSON that need care.

A reader adds a record's text, or says why there is none, and takes a batch when enough has come together. The policies are applied
here: for bytes that are not UTF-8, and for records that have no text.
"""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.records import Batch, Counts
from tokmill.read.json_record import NotARecordError, skip_of
from tokmill.read.long_documents import UNCUT, is_uncut, long_batches
from tokmill.read.position import Places
from tokmill.read.utf8 import ENCODING_ADVICE, clean, damage_hint, first_invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokmill.core.records import Cursor, Location, Skip
    from tokmill.read.position import Position, ReadSettings

_PATIENCE_S = 0.5
"""A batch that takes longer to fill is passed on as it is, so that what a slow pipe brings is committed while it flows."""
_NONE = -1
"""In place of an offset that is not known."""


class RowBatcher:
    """The records of a batch that is not full yet."""

    def __init__(
        self, position: Position, settings: ReadSettings, raw_position: Callable[[], int], *, allowed: str, records: str
    ) -> None:
        """Begin with no records. allowed, records: for messages, as in `NotARecordError.error`."""
        self._position = position
        self._settings = settings
        self._raw_position = raw_position
        self._allowed = allowed
        self._plural = records
        self._begin()

    def _begin(self) -> None:
        self._documents: list[bytes] = []
        self._records, self._offsets = array("q"), array("q")
        """Record number and offset of each document."""
        self._skips: list[Skip] = []
        self._n_skipped = 0
        self._run_reason, self._run_begin, self._run_end = "", 0, 0
        """The last fault, the first record that has it, and the record after the last that does."""
        self._passed: dict[str, int] = {}
        self._n_text = 0
        self._n_in = 0
        self._n_changed = 0
        self._n_invalid = 0
        self._began_s = time.monotonic()

    @property
    def room_bytes(self) -> int:
        """Bytes of text until the batch is full."""
        return max(0, self._settings.batch_bytes - self._n_text)

    @property
    def room_rows(self) -> int:
        """Records until the batch is full."""
        return max(0, self._settings.max_documents - len(self._documents) - self._n_skipped - sum(self._passed.values()))

    @property
    def is_empty(self) -> bool:
        """Whether no record was added."""
        return self.room_rows == self._settings.max_documents

    @property
    def is_full(self) -> bool:
        """Whether `take` should be called."""
        n_room, most = self.room_rows, self._settings.max_documents
        is_late = n_room < most and time.monotonic() - self._began_s > _PATIENCE_S
        return not n_room or not self.room_bytes or is_late or self._ends_long

    @property
    def _ends_long(self) -> bool:
        """Whether the last document is larger than a batch, and must be taken before another record is added."""
        return bool(self._documents) and len(self._documents[-1]) > self._settings.batch_bytes

    def count(self, n_bytes: int) -> None:
        """Count bytes of the input as this batch's."""
        self._n_in += n_bytes

    def uncount(self) -> int:
        """Return the bytes that were counted, and count them no longer."""
        n_in, self._n_in = self._n_in, 0
        return n_in

    def add(self, text: bytes, record: int, offset: int | None, *, is_valid: bool = False, n_invalid: int = 0) -> None:
        """Add a record's text. Raises BadRecordError.

        offset: of the record in its input, where it has one; is_valid: the text is known to be UTF-8, after n_invalid bytes that
        were not have been replaced or left out.
        """
        at = None if is_valid else first_invalid(text)
        if at is not None:
            policy = self._settings.content.encoding_errors
            if policy == "strict":
                byte, next_step = text[at], ENCODING_ADVICE
                what = f"not valid UTF-8: byte 0x{byte:02x} at byte {at:,} of the text"
                self.reject(NotARecordError("invalid_utf8", what, next_step), record, offset)
                return
            text, n_invalid = clean(text, policy)
        if self._settings.long_records or len(text) > self._settings.most_bytes:
            skips = self._settings.skips_long(self._position, record, is_longer=is_uncut(text, self._settings))
            # A text with cuts is looked at again where it is cut.
            if skips or (skips is None and self._settings.cutter is None):
                self._reject_uncut(len(text), record, offset, skips=bool(skips))
                return
        self._n_changed += n_invalid > 0
        self._n_invalid += n_invalid
        self._documents.append(text)
        self._records.append(record)
        self._offsets.append(_NONE if offset is None else offset)
        self._n_text += len(text)

    def _reject_uncut(self, n_bytes: int, record: int, offset: int | None, *, skips: bool) -> None:
        """Skip a text that is too long and cannot be cut. Raises MemoryBudgetError."""
        what = "for this tokenizer no document can be cut, and this one" if self._settings.cutter is None else UNCUT
        if not skips:
            raise self._settings.too_long(what, self._position.location(0, record).at(offset), n_bytes)
        self.reject(NotARecordError("too_long", f"{what} is too long", "raise --memory"), record, offset)

    def add_all(self, texts: Sequence[bytes], first_record: int, offsets: Sequence[int]) -> None:
        """Add the texts of consecutive records, none larger than a batch and all known to be UTF-8."""
        self._documents += texts
        self._records.extend(range(first_record, first_record + len(texts)))
        self._offsets.extend(offsets)
        self._n_text += sum(map(len, texts))

    def pass_over(self, reason: str) -> None:
        """Count a record that nobody asked for, without recording it."""
        self._passed[reason] = self._passed.get(reason, 0) + 1

    def reject(self, bad: NotARecordError, record: int, offset: int | None, n_records: int = 1) -> None:
        """Skip and record a record without a text, or several, if that is the policy. Raises BadRecordError if it is not."""
        self._n_skipped += n_records
        if bad.reason == self._run_reason and record == self._run_end:
            # Bad records come in millions, too: only the first of a run is described.
            self._run_end += n_records
            return
        where = self._position.location(0, record).at(offset)
        if self._settings.content.on_error == "stop":
            error = bad.error(where, self._allowed, self._plural)
            if bad.reason == "invalid_utf8":
                error.next_step = f"{error.next_step}{damage_hint(self._position.source.compression)}"
            raise error from None
        self._end_run()
        self._skips.append(skip_of(bad, where, offset, self._settings.content.text_key))
        self._run_reason, self._run_begin, self._run_end = bad.reason, record, record + n_records

    def _end_run(self) -> None:
        """Note how many records the last fault is of."""
        if self._run_end > self._run_begin + 1:
            self._skips[-1] = msgspec.structs.replace(self._skips[-1], records=self._run_end - self._run_begin)

    def take(self, after: Cursor) -> Iterator[Batch]:
        """Yield what was added as batches. after: the cursor after all of it. Raises MemoryBudgetError."""
        self._end_run()
        documents, locate, counts, skips = self._documents, self._places(), self._counts(), self._skips
        ends_long = self._ends_long
        self._begin()
        if not ends_long:
            yield self._batch(documents, locate, counts, skips, after)
            return
        where = locate(len(documents) - 1)
        long_counts = Counts(documents=1)
        if len(documents) > 1 or skips:
            # No cursor names the point before the long document.
            counts = counts + Counts(documents=-1)
            yield self._batch(documents[:-1], locate, counts, skips, None)
        else:
            long_counts = counts
        del documents[:-1]
        # Not by a name here, which would hold the text a second time.
        yield from long_batches(
            documents.pop(), self._settings, where, counts=long_counts, after=after, raw_position=self._raw_position
        )

    def _batch(
        self, documents: list[bytes], locate: Callable[[int], Location], counts: Counts, skips: list[Skip], after: Cursor | None
    ) -> Batch:
        position_bytes = self._raw_position()
        return Batch(documents=documents, after=after, locate=locate, counts=counts, skips=skips, position_bytes=position_bytes)

    def _counts(self) -> Counts:
        skipped = dict(self._passed)
        for skip in self._skips:
            skipped[skip.reason] = skipped.get(skip.reason, 0) + skip.n_records
        return Counts(
            documents=len(self._documents) + sum(skipped.values()),
            bytes_in=self._n_in,
            skipped=skipped,
            invalid_utf8_documents=self._n_changed,
            invalid_utf8_bytes=self._n_invalid,
        )

    def _places(self) -> Places:
        return Places(self._position.location(record=0), self._records, self._offsets)
