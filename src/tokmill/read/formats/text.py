"""Text files: a document is exactly the bytes between two separators, or an end of the file. Nothing is stripped.

A window of text becomes a batch as it is, with the places of its documents beside it; whether it is UTF-8 is checked where it is
encoded, in parallel. The hard one is a document larger than the window: it is handed on in pieces, and a run can be resumed in
its middle (see `large`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.documents import DocumentBuffer
from tokmill.core.errors import BadTextError
from tokmill.core.records import Batch, Counts, Skip
from tokmill.read.long_documents import divided, hold, piece_batch, whole
from tokmill.read.splitter import RecordSplitter
from tokmill.read.utf8 import damage_hint, first_invalid, foreign

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Cursor, Location
    from tokmill.read.long_documents import TextPiece
    from tokmill.read.position import Position, ReadSettings
    from tokmill.read.splitter import LongRecord, Records


def read_text(stream: ByteStream, position: Position, settings: ReadSettings, start: Cursor) -> Iterator[Batch]:
    """Batches of one file, from `start` on. `index` is not set.

    Raises DamagedInputError, BadTextError, MemoryBudgetError, ChangedError.
    """
    position.seek(stream, start)
    return _TextReader(stream, position, settings).batches(start)


class _TextReader:
    """Reads one file."""

    def __init__(self, stream: ByteStream, position: Position, settings: ReadSettings) -> None:
        self._stream = stream
        self._position = position
        self._settings = settings
        separator = settings.content.separator
        self._separator = None if separator is None else separator.encode()
        self._splitter = RecordSplitter(stream, self._separator, settings.batch_bytes, settings.max_documents, prefer="buffers")

    def batches(self, start: Cursor) -> Iterator[Batch]:
        goes_on = True
        if start.document_offset is not None:
            goes_on = yield from self._divided(self._splitter.open_long(), start.document_offset, begins=start.begins)
        elif not start.offset:
            self._refuse_foreign()
        while goes_on:
            split = self._splitter.split()
            if split is None:
                goes_on = yield from self._large(self._splitter.open_long())
            else:
                yield self._batch(split)
                goes_on = not split.at_end

    def _batch(self, split: Records) -> Batch:
        position = self._position
        locate = _locator(position, split.records, len(self._separator or b""))
        position.advance(split.raw, len(split.records))
        return Batch(
            index=0,
            documents=split.records,
            raw=split.raw,
            is_val=None,
            after=position.end() if split.at_end else position.cursor(),
            locate=locate,
            counts=Counts(documents=len(split.records), bytes_in=len(split.raw)),
            position_bytes=self._stream.raw_position(),
        )

    def _large(self, document: LongRecord) -> Generator[Batch, None, bool]:
        """A document that does not fit the window; whether the file goes on behind it."""
        settings, where = self._settings, self._position.location()
        if not hold(document, settings, where):
            return (yield from self._divided(document, self._position.offset, begins=True))
        at = first_invalid(document.buffer)
        if at is not None and settings.content.encoding_errors == "strict":
            yield self._leave_out(document, at)
            return document.has_separator
        return (yield from self._pieces(document, whole(document, settings, where, is_valid=at is None), None))

    def _divided(self, document: LongRecord, document_offset: int, *, begins: bool) -> Generator[Batch, None, bool]:
        pieces = divided(document, self._settings, self._position.location(), document_offset, begins=begins)
        return (yield from self._pieces(document, pieces, document_offset))

    def _pieces(
        self, document: LongRecord, pieces: Iterator[TextPiece], document_offset: int | None
    ) -> Generator[Batch, None, bool]:
        """Pieces as batches. document_offset: where a divided document begins, None if it is not divided."""
        position, n_invalid = self._position, 0
        for piece in pieces:
            where = position.location()
            n_invalid += piece.n_invalid
            n_bytes = len(piece.raw)
            position.advance(piece.raw, 0)
            after = None
            if piece.last:
                n_bytes += self._end(document)
                after = position.cursor() if document.has_separator else position.end()
            elif piece.next_begins is not None:
                after = position.cursor(document_offset, begins=piece.next_begins)
            # What went before the place where a run was resumed is not known, so each block counts for itself.
            is_changed = n_invalid > 0 and piece.last if document_offset is None else piece.n_invalid > 0
            counts = Counts(
                documents=int(piece.last),
                bytes_in=n_bytes,
                parts_added=int(piece.adds_part),
                invalid_utf8_documents=int(is_changed),
                invalid_utf8_bytes=piece.n_invalid,
            )
            yield piece_batch(piece, after=after, counts=counts, where=where, position_bytes=self._stream.raw_position())
        return document.has_separator

    def _end(self, document: LongRecord) -> int:
        """Consume the separator behind a document; returns its length, 0 at the end of the file."""
        self._splitter.close_long(document)
        separator = (self._separator or b"") if document.has_separator else b""
        self._position.advance(separator, 1)
        return len(separator)

    def _leave_out(self, document: LongRecord, at: int) -> Batch:
        """The batch that records a document that is not UTF-8. Raises BadTextError if it is not to be skipped."""
        position, where = self._position, self._position.location()
        if self._settings.content.on_error != "skip":
            raise _not_utf8(
                f"not valid UTF-8: byte 0x{document.buffer[at]:02x} at byte {at:,} of the document",
                type(where)(path=where.path, record=where.record, offset=position.offset + at, unit=where.unit),
                "mend the file, or pass --encoding-errors replace (or ignore), or --on-error skip to leave the document out"
                + damage_hint(position.source.compression),
            )
        skip = Skip(path=where.path, record=where.record, offset=position.offset + at, reason="invalid_utf8")
        n_bytes = len(document.buffer)
        with memoryview(document.buffer) as view:
            position.advance(view, 0)
        document.buffer.clear()
        n_bytes += self._end(document)
        return Batch(
            index=0,
            documents=[],
            raw=None,
            is_val=None,
            after=position.cursor() if document.has_separator else position.end(),
            locate=lambda _i: where,
            counts=Counts(documents=1, bytes_in=n_bytes, skipped={"invalid_utf8": 1}),
            skips=(skip,),
            position_bytes=self._stream.raw_position(),
        )

    def _refuse_foreign(self) -> None:
        """Raises BadTextError for a file that begins like something else: a fault of all of it, which no policy skips."""
        found = foreign(self._splitter.head())
        if found is not None:
            what, next_step = found
            raise _not_utf8(f"this is not UTF-8 text: it begins like {what}", self._position.location(), next_step)


def _locator(position: Position, documents: Sequence[bytes], separator_bytes: int) -> Callable[[int], Location]:
    first, offset, location = position.record, position.offset, position.location

    def locate(i: int) -> Location:
        if isinstance(documents, DocumentBuffer):
            return location(offset + int(documents.starts[i]), first + i)
        before = sum(map(len, documents[:i])) + i * separator_bytes
        return location(offset + before, first + i)

    return locate


def _not_utf8(what: str, where: Location, next_step: str) -> BadTextError:
    return BadTextError(what, where=str(where), allowed="UTF-8 text", next_step=next_step)
