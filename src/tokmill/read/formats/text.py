"""Text files: a document is exactly the bytes between two separators, or an end of the file. Nothing is stripped.

A window of text becomes a batch as it is, with the places of its documents beside it; whether it is UTF-8 is checked where it is
encoded, in parallel. A document larger than the window becomes several batches, and a run can be resumed in its middle (see
`long_documents.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.errors import BadTextError
from tokmill.core.records import Batch, Counts, Skip
from tokmill.read.long_documents import divided_pieces, is_skipped, piece_batch, read_whole, whole_pieces
from tokmill.read.position import FormatReader, OnePlace
from tokmill.read.splitter import RecordSplitter
from tokmill.read.utf8 import ENCODING_ADVICE, damage_hint, first_invalid, foreign

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Cursor, Location
    from tokmill.read.long_documents import TextPiece
    from tokmill.read.position import Position, ReadSettings
    from tokmill.read.splitter import LongRecord, Records


class TextReader(FormatReader["ByteStream"]):
    """The reader of one file."""

    def __init__(self, stream: ByteStream, position: Position, settings: ReadSettings) -> None:
        """See FormatReader."""
        super().__init__(stream, position, settings)
        separator = settings.content.separator
        self._separator = None if separator is None else separator.encode()
        self._splitter = RecordSplitter(
            stream,
            self._separator,
            settings.batch_bytes,
            settings.max_documents,
            prefer="buffers",
            may_gather=settings.may_gather,
        )

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """See FormatReader."""
        self._position.seek(self._stream, start)
        goes_on = True
        if start.document_offset is not None:
            goes_on = yield from self._divided(self._splitter.open_long(), start.document_offset, begins=start.begins)
        elif not start.offset:
            self._check_kind()
        while goes_on:
            split = self._splitter.split()
            if split is None:
                goes_on = yield from self._long(self._splitter.open_long())
            else:
                yield self._batch(split)
                goes_on = not split.at_end

    def _batch(self, split: Records) -> Batch:
        position = self._position
        locate = position.places(split.records, len(self._separator or b""))
        position.advance(split.raw, len(split.records))
        return Batch(
            documents=split.records,
            raw=split.raw,
            after=position.end() if split.at_end else position.cursor(),
            locate=locate,
            counts=Counts(documents=len(split.records), bytes_in=len(split.raw)),
            position_bytes=self._stream.raw_position(),
        )

    def _long(self, document: LongRecord) -> Generator[Batch, None, bool]:
        """Yield the batches of a document that does not fit the window; return whether the file goes on after it."""
        settings, where = self._settings, self._position.location()
        if is_skipped(document, settings, self._position):
            yield self._skip(document, "too_long", self._position.offset)
            return document.has_separator
        if not read_whole(document, settings, where):
            return (yield from self._divided(document, self._position.offset, begins=True))
        at = first_invalid(document.buffer)
        if at is not None and settings.content.encoding_errors == "strict":
            yield self._leave_out(document, at)
            return document.has_separator
        return (yield from self._pieces(document, whole_pieces(document, settings, where, is_valid=at is None), None))

    def _divided(self, document: LongRecord, document_offset: int, *, begins: bool) -> Generator[Batch, None, bool]:
        pieces = divided_pieces(document, self._settings, self._position.location(), document_offset, begins=begins)
        return (yield from self._pieces(document, pieces, document_offset))

    def _pieces(
        self, document: LongRecord, pieces: Iterator[TextPiece], document_offset: int | None
    ) -> Generator[Batch, None, bool]:
        """Yield pieces as batches. document_offset: where a divided document begins, None if it is not divided."""
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
            # A resumed run does not know the blocks before, so each block counts for itself.
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
        """Consume the separator after a document; return its length, 0 at the end of the file."""
        self._splitter.close_long(document)
        separator = (self._separator or b"") if document.has_separator else b""
        self._position.advance(separator, 1)
        return len(separator)

    def _leave_out(self, document: LongRecord, at: int) -> Batch:
        """Return the batch that records a document that is not UTF-8. Raises BadTextError if it is not to be skipped."""
        position, where = self._position, self._position.location()
        if self._settings.content.on_error != "skip":
            raise _not_utf8(
                f"not valid UTF-8: byte 0x{document.buffer[at]:02x} at byte {at:,} of the document",
                where.at(position.offset + at),
                ENCODING_ADVICE + ", or --on-error skip to leave the document out" + damage_hint(position.source.compression),
            )
        return self._skip(document, "invalid_utf8", position.offset + at)

    def _skip(self, document: LongRecord, reason: str, offset: int) -> Batch:
        """Read past a document; return the batch that records it."""
        position, where, n_bytes = self._position, self._position.location(), 0
        skip = Skip(path=where.path, record=where.record, offset=offset, reason=reason)
        while True:
            n_known, is_all = document.n_known, document.complete
            with memoryview(document.buffer)[:n_known] as view:
                position.advance(view, 0)
            del document.buffer[:n_known]
            n_bytes += n_known
            if is_all:
                break
            document.grow()
        n_bytes += self._end(document)
        return Batch(
            documents=[],
            after=position.cursor() if document.has_separator else position.end(),
            locate=OnePlace(where),
            counts=Counts(documents=1, bytes_in=n_bytes, skipped={reason: 1}),
            skips=(skip,),
            position_bytes=self._stream.raw_position(),
        )

    def _check_kind(self) -> None:
        """Raise BadTextError for a file that begins like something else: a fault of all of it, which no policy skips."""
        may_have_nul = "\0" in (self._settings.content.separator or "")
        found = foreign(
            self._splitter.head(),
            may_have_nul=may_have_nul,
            compression=self._position.source.compression,
            is_piped=self._position.source.size_bytes is None,
        )
        if found is not None:
            what, next_step = found
            raise _not_utf8(f"this is not UTF-8 text: it begins like {what}", self._position.location(), next_step)


def _not_utf8(what: str, where: Location, next_step: str) -> BadTextError:
    return BadTextError(what, where=str(where), allowed="UTF-8 text", next_step=next_step)
