"""Documents larger than a batch, cut where no token can reach across, in as little memory as they need.

Up to `divide_above_bytes` a document is held until its end, because its side of the validation split is decided by the hash of all
of it. A longer one is divided into blocks, each on its own side; blocks of one side that follow one another stay one document.
Nothing here may depend on how the bytes arrived: a block ends at the first safe cut at or after a fixed number of raw bytes from
its beginning, and bytes that may still turn out to be a separator are not looked at.

The policy for bytes that are not UTF-8 is applied to each piece. That equals applying it to the whole: every safe cut has a
complete character on both sides, and a decoder has nothing pending after one; `tests/read/test_long_documents.py` compares them.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

import xxhash

from tokmill.core.errors import BadTextError, MemoryBudgetError
from tokmill.core.local_struct import LocalStruct
from tokmill.core.records import NOT_SAMPLED, Batch, Counts
from tokmill.read.position import OnePlace
from tokmill.read.utf8 import ENCODING_ADVICE, clean, first_invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tokmill.core.config import Content
    from tokmill.core.records import Cursor, Location
    from tokmill.core.selection import Fate
    from tokmill.read.position import Position, ReadSettings


UNCUT = "the text from here on has no place where it can be cut, and it"
"""For messages."""


class LongDocument:
    """A document that is read, and held, as far as it must be. This one is in memory; readers derive theirs."""

    def __init__(self, buffer: bytearray) -> None:
        self.buffer = buffer
        """What was read of the document and not taken yet, and nothing that follows it."""

    @property
    def complete(self) -> bool:
        """Whether the buffer has the document's last byte."""
        return True

    @property
    def n_known(self) -> int:
        """Bytes of the buffer that certainly belong to the document."""
        return len(self.buffer)

    def grow(self) -> None:
        """Read on."""

    def take(self, n_bytes: int) -> bytes:
        """Take bytes from the beginning of the buffer."""
        taken = bytes(memoryview(self.buffer)[:n_bytes])
        del self.buffer[:n_bytes]
        return taken


class TextPiece(LocalStruct, frozen=True, kw_only=True):
    """A piece of a long document that is encoded by itself."""

    text: bytes
    """Valid UTF-8, policy applied; nothing of what is left out."""
    raw: bytes
    """The bytes that were consumed by the end of this piece; b"" while more pieces of the same bytes follow."""
    fate: Fate
    head_open: bool
    tail_open: bool
    n_invalid: int = 0
    next_begins: bool | None = None
    """At the end of a block: whether the next begins a document of its own. None: no cursor can name the end of this piece."""
    adds_part: bool = False
    last: bool = False

    @property
    def skipped(self) -> dict[str, int]:
        """What is left out, and not counted before."""
        return {NOT_SAMPLED: 1} if self.fate == "left out" and not self.head_open else {}


def read_whole(document: LongDocument, settings: ReadSettings, where: Location) -> bool:
    """Read on until a document is complete or known to be divided; return whether it is complete.

    Raises MemoryBudgetError for a document that cannot be cut and does not fit.
    """
    limit = settings.divide_above_bytes if settings.cutter else settings.most_bytes
    while not document.complete and document.n_known <= limit:
        settings.hold(document.n_known)
        document.grow()
    if document.complete and len(document.buffer) <= limit:
        return True
    if settings.cutter is None:
        n_bytes = len(document.buffer) if document.complete else None
        raise settings.too_long("for this tokenizer no document can be cut, and this one", where, n_bytes)
    return False


def is_uncut(text: bytes | bytearray, settings: ReadSettings) -> bool:
    """Return whether a text in memory has a stretch without a safe cut that is longer than one piece may be."""
    cutter, at = settings.cutter, 0
    while len(text) - at > settings.most_bytes:
        if cutter is None:
            return True
        after = cutter.first(text, at + settings.batch_bytes) or len(text)
        if after - max(at, cutter.last(text, at + settings.batch_bytes)) > settings.most_bytes:
            return True
        at = after
    return False


def is_skipped(document: LongDocument, settings: ReadSettings, position: Position) -> bool:
    """Return whether a document, of which nothing is taken yet, is skipped as too long; reads on."""
    if settings.skips_long(position, position.record, is_longer=False):
        return True
    if not settings.skips_long(position, position.record, is_longer=True):
        return False
    try:
        if read_whole(document, settings, position.location()):
            return is_uncut(document.buffer, settings)
        # Of what is divided, earlier blocks are written when a later one is read: only the first decides.
        _block_bytes(document, settings, position.location(), 0)
    except MemoryBudgetError:
        return True
    return False


def whole_pieces(document: LongDocument, settings: ReadSettings, where: Location, *, is_valid: bool) -> Iterator[TextPiece]:
    """Yield the pieces of a complete document, all of one side. is_valid: it is UTF-8. Raises MemoryBudgetError."""
    content, head_open = settings.content, False
    fate = _fate(document.buffer, settings, is_valid=is_valid)
    for raw, last in _pieces(document, settings, where):
        text, n_invalid = (raw, 0) if is_valid else clean(raw, content.encoding_errors)
        text = b"" if fate == "left out" else text
        yield TextPiece(text=text, raw=raw, fate=fate, head_open=head_open, tail_open=not last, n_invalid=n_invalid, last=last)
        head_open = True


def divided_pieces(
    document: LongDocument, settings: ReadSettings, where: Location, document_offset: int, *, begins: bool
) -> Iterator[TextPiece]:
    """Yield the pieces of a divided document from `where` on. begins: whether the first block begins a document of its side.

    Raises BadTextError, MemoryBudgetError.
    """
    is_first = where.offset == document_offset
    ahead: _Block | None = None
    for block in _blocks(document, settings, where):
        if ahead is not None:
            next_begins = ahead.fate != block.fate
            yield from _emit(ahead, settings, begins=begins, adds_part=begins and not is_first, next_begins=next_begins)
            begins, is_first = next_begins, False
        ahead = block
    if ahead is not None:
        yield from _emit(ahead, settings, begins=begins, adds_part=begins and not is_first, next_begins=None)


class _Block(LocalStruct, frozen=True):
    text: bytes
    raw: bytes
    where: Location
    fate: Fate
    n_invalid: int


def _blocks(document: LongDocument, settings: ReadSettings, where: Location) -> Iterator[_Block]:
    content = settings.content
    offset = where.offset or 0
    while n := _block_bytes(document, settings, where, offset):
        raw = document.take(n)
        text, n_invalid = raw, 0
        at = first_invalid(raw)
        if at is not None:
            if content.encoding_errors == "strict":
                raise _not_utf8(where, offset + at, raw[at])
            text, n_invalid = clean(raw, content.encoding_errors)
        yield _Block(text, raw, where.at(offset), _fate(text, settings, is_valid=True, is_block=True), n_invalid)
        offset += n


def _block_bytes(document: LongDocument, settings: ReadSettings, where: Location, offset: int) -> int:
    """Return the length of the next block, 0 at the end of the document."""
    cutter, start = settings.cutter, settings.block_bytes
    if cutter is None:
        raise settings.too_long("for this tokenizer no document can be cut, and this one", where)
    window = start + start // 16 + 64
    while True:
        n_seen = min(window, document.n_known)
        cut = cutter.first(bytes(memoryview(document.buffer)[:n_seen]), start) if n_seen > start else 0
        if cut:
            return cut
        if n_seen < document.n_known:
            window *= 2
        elif document.complete:
            return len(document.buffer)
        elif n_seen > start + settings.max_piece_bytes:
            raise settings.too_long(UNCUT, where.at(offset))
        else:
            window *= 2
            document.grow()


def _emit(block: _Block, settings: ReadSettings, *, begins: bool, adds_part: bool, next_begins: bool | None) -> Iterator[TextPiece]:
    """Yield a block as pieces that fit a batch."""
    head_open, first = not begins, True
    pieces: Iterable[tuple[bytes, bool]] = [(b"", True)]
    if block.fate != "left out":
        pieces = _pieces(LongDocument(bytearray(block.text)), settings, block.where)
    for text, ends in pieces:
        yield TextPiece(
            text=text,
            raw=block.raw if ends else b"",
            fate=block.fate,
            head_open=head_open,
            tail_open=not ends or next_begins is False,
            n_invalid=block.n_invalid if ends else 0,
            next_begins=next_begins if ends else None,
            adds_part=adds_part and first,
            last=ends and next_begins is None,
        )
        head_open, first = True, False


def _pieces(document: LongDocument, settings: ReadSettings, where: Location) -> Iterator[tuple[bytes, bool]]:
    """Take a document in pieces of at most a batch, or up to the first safe cut after that; with each, whether it is the last.

    Raises MemoryBudgetError.
    """
    text, cutter, offset, last = document.buffer, settings.cutter, where.offset or 0, False
    while not last:
        n = len(text)
        if n > settings.batch_bytes and cutter is not None:
            n = cutter.last(text, settings.batch_bytes) or cutter.first(text, settings.batch_bytes) or n
        if n > settings.most_bytes:
            raise settings.too_long(UNCUT, where.at(offset), n)
        piece = document.take(n)
        last = not text
        yield piece, last
        offset += n


def piece_batch(piece: TextPiece, *, after: Cursor | None, counts: Counts, where: Location, position_bytes: int) -> Batch:
    """Return the batch of one piece. counts: without what is left out."""
    # A document in one piece is like any other: its hash decides where it is encoded, and empty it is skipped there.
    is_one = not piece.head_open and not piece.tail_open and piece.last and not piece.adds_part
    if piece.skipped:
        counts += Counts(skipped=piece.skipped)
    return Batch(
        documents=[] if piece.fate == "left out" else [piece.text],
        is_val=None if is_one else piece.fate == "val",
        head_open=piece.head_open,
        tail_open=piece.tail_open,
        after=after,
        locate=OnePlace(where),
        counts=counts,
        position_bytes=position_bytes,
    )


def piece_batches(
    pieces: Iterator[TextPiece], where: Location, finish: Callable[[], tuple[Counts, Cursor]], raw_position: Callable[[], int]
) -> Iterator[Batch]:
    """Yield the pieces of a document as batches. finish: called at the last one, gives its other counts and the cursor after it."""
    n_invalid = 0
    for piece in pieces:
        n_invalid += piece.n_invalid
        counts, after = Counts(parts_added=int(piece.adds_part), invalid_utf8_bytes=piece.n_invalid), None
        if piece.last:
            others, after = finish()
            counts += others + Counts(invalid_utf8_documents=int(n_invalid > 0))
        yield piece_batch(piece, after=after, counts=counts, where=where, position_bytes=raw_position())


def long_batches(
    text: bytes, settings: ReadSettings, where: Location, *, counts: Counts, after: Cursor, raw_position: Callable[[], int]
) -> Iterator[Batch]:
    """Yield the batches of a document in memory that is valid UTF-8 and larger than a batch; the last has counts and cursor.

    Raises MemoryBudgetError.
    """
    document = LongDocument(bytearray(text))
    del text
    if read_whole(document, settings, where):
        pieces = whole_pieces(document, settings, where.at(0), is_valid=True)
    else:
        pieces = divided_pieces(document, settings, where.at(0), 0, begins=True)
    yield from piece_batches(pieces, where, lambda: (counts, after), raw_position)


def _fate(text: bytes | bytearray, settings: ReadSettings, *, is_valid: bool, is_block: bool = False) -> Fate:
    """Return what becomes of a document, or of a block of one, by the hash of its text with the policy applied."""
    content = settings.content
    value = xxhash.xxh3_64_intdigest(text, content.seed) if is_valid else _clean_hash(text, content)
    return settings.selection.fate(value, is_block=is_block)


def _clean_hash(text: bytes | bytearray, content: Content) -> int:
    """Return the hash of the text with the policy applied, without holding that text."""
    decoder = codecs.getincrementaldecoder("utf-8")(content.encoding_errors)
    state = xxhash.xxh3_64(seed=content.seed)
    with memoryview(text) as view:
        for begin in range(0, len(view), 1 << 20):
            part = view[begin : begin + (1 << 20)]
            state.update(decoder.decode(bytes(part), final=begin + len(part) == len(view)).encode())
    return state.intdigest()


def _not_utf8(where: Location, offset: int, byte: int) -> BadTextError:
    return BadTextError(
        f"not valid UTF-8: byte 0x{byte:02x}, in a document so long that it is divided and cannot be left out",
        where=str(where.at(offset)),
        allowed="UTF-8 text",
        next_step=ENCODING_ADVICE,
    )
