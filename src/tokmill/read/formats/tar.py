"""Archives of texts (tar, as WebDataset makes them), read front to back without unpacking: each member is a document.

Members named .txt, .text or .md are texts as they are, members named .json are JSON objects with a text key; the others (images,
directories, hidden ones) are passed over and counted, and so are links, whose text is another member's. A sparse member, in any of
GNU tar's four forms, is read with its holes as zeros, as it is when it is extracted. Python's tarfile parses one header at a time;
its own loop over members is not used, since it accepts an archive that was cut, or whose headers are damaged from some place on. Of
a header only name, kind, size and sparse map are used, and no path of an archive is ever opened.
"""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import DamagedInputError
from tokmill.core.records import Counts
from tokmill.core.skipping import HARD_LINK, OTHER_FILE, SYMBOLIC_LINK
from tokmill.read.json_record import NotARecordError, RecordParser
from tokmill.read.long_documents import UNCUT, LongDocument, divided_pieces, is_skipped, piece_batches, read_whole, whole_pieces
from tokmill.read.position import FormatReader
from tokmill.read.row_batcher import RowBatcher
from tokmill.read.stream import read_fully
from tokmill.read.utf8 import first_invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokmill.core.protocols import ByteStream
    from tokmill.core.records import Batch, Cursor
    from tokmill.read.position import Position, ReadSettings

_TEXT_SUFFIXES = (".txt", ".text", ".md")
_JSON_SUFFIX = ".json"
_LINKS = {tarfile.LNKTYPE: HARD_LINK, tarfile.SYMTYPE: SYMBOLIC_LINK}
_FROM_OTHER_VOLUME = b"M"
_READ_BYTES = 1 << 20
_MOST_HEADER_BYTES = 1 << 20
"""Limit for the blocks before a member that hold a long name or extended attributes."""
_HEADER_ERRORS = (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError, RecursionError)


class TarReader(FormatReader["ByteStream"]):
    """The reader of one archive."""

    def __init__(self, stream: ByteStream, position: Position, settings: ReadSettings) -> None:
        """See FormatReader."""
        super().__init__(stream, position, settings)
        self._parser = RecordParser(settings.content.text_key)
        allowed = f'text files, and .json files with a string under the key "{settings.content.text_key}"'
        self._batcher = RowBatcher(position, settings, stream.raw_position, allowed=allowed, records="members")

    def batches(self, start: Cursor) -> Iterator[Batch]:
        """See FormatReader."""
        self._position.seek(self._stream, start)
        while (found := self._next()) is not None:
            member, header, n_data = found
            name = member.name.lower()
            is_text = name.endswith(_TEXT_SUFFIXES)
            is_long = is_text and member.isreg() and not _is_hidden(name) and member.size > self._settings.batch_bytes
            if is_long:
                yield from self._batcher.take(self._position.cursor())
            self._consume(header)
            reason = _reason_to_pass_over(member, is_text=is_text)
            if member.isdir():
                # It holds nothing that could be left out.
                self._position.advance(b"", 1)
            elif reason:
                self._pass_over(n_data, reason)
            elif is_long:
                yield from self._long(member)
            else:
                self._small(member, is_text=is_text)
            if self._batcher.is_full:
                yield from self._batcher.take(self._position.cursor())
        self._check_rest()
        yield from self._batcher.take(self._position.end())

    def _next(self) -> tuple[tarfile.TarInfo, bytes, int] | None:
        """Return the next member, its header, which is to be consumed, and how many bytes of data and filling follow.

        None at the end of the archive. Raises DamagedInputError.
        """
        archive = _Archive(self._stream)
        try:
            member = tarfile.TarInfo.fromtarfile(archive)  # type: ignore[arg-type]
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            self._consume(archive.taken)
            return None
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise self._damaged("the archive ends without a block of zeros: it was cut") from None
        except _HEADER_ERRORS as error:
            raise self._damaged(f"a header is damaged: {error}") from error
        n_data = archive.offset - len(archive.taken)
        if member.size < 0 or n_data < 0:
            raise self._damaged("a header is damaged: its size is negative")
        if member.type == _FROM_OTHER_VOLUME:
            raise self._damaged("it begins in the middle of a member: it is a later one of several volumes")
        if member.sparse is not None:
            n_data = self._check_sparse(member, n_data)
        return member, archive.taken, n_data

    def _check_sparse(self, member: tarfile.TarInfo, n_data: int) -> int:
        """Return how many bytes of data and filling a sparse member has. Raises DamagedInputError if its map cannot be right."""
        end = 0
        for begin, n_bytes in _segments(member):
            if begin < end or n_bytes < 0:
                end = member.size + 1
                break
            end = begin + n_bytes
        n_stored = _filled(member)
        # Where a header of its own gives the stored size, tarfile takes the size with the holes for it.
        if end > member.size or (n_stored != n_data and "size" not in member.pax_headers):
            raise self._damaged("a header is damaged: the map of a sparse member does not fit its size")
        return n_stored

    def _small(self, member: tarfile.TarInfo, *, is_text: bool) -> None:
        """Add a member that is held whole. Raises BadRecordError."""
        offset, record = self._position.offset, self._position.record
        is_long = member.size > self._settings.most_bytes
        is_longer = member.size > self._settings.most_record_bytes
        skips = self._settings.skips_long(self._position, record, is_longer=is_longer)
        if skips is not False:
            if skips is None:
                raise self._settings.too_long(_shown(member), self._position.location(), member.size, is_record=True)
            for _ in self._content(member):
                pass
            what = f"{_shown(member)} is longer than {self._settings.most_record_bytes:,} bytes"
            self._batcher.reject(NotARecordError("too_long", what, "raise --memory"), record, offset)
            self._end(member)
            return
        self._settings.hold(member.size)
        data = b"".join(self._content(member))
        if is_text:
            self._batcher.add(data, record, offset)
        else:
            try:
                text, n_invalid = self._parser.parse(data, self._settings.content.encoding_errors, at_start=True, is_long=is_long)
            except NotARecordError as bad:
                bad.what = f"{_shown(member)}: {bad.what}"
                self._batcher.reject(bad, record, offset)
            else:
                self._batcher.add(text, record, offset, is_valid=True, n_invalid=n_invalid)
        self._end(member)

    def _pass_over(self, n_data: int, reason: str) -> None:
        for _ in self._bytes(n_data):
            pass
        self._position.advance(b"", 1)
        self._batcher.pass_over(reason)

    def _end(self, member: tarfile.TarInfo) -> None:
        """Consume what fills a member's last block."""
        for _ in self._bytes(_filled(member) - sum(n_bytes for _, n_bytes in _segments(member))):
            pass
        self._position.advance(b"", 1)

    def _content(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        """Yield the bytes of a member, with zeros for the holes of a sparse one. Raises DamagedInputError."""
        at = 0
        for begin, n_bytes in _segments(member):
            yield from _zeros(begin - at)
            yield from self._bytes(n_bytes)
            at = begin + n_bytes
        yield from _zeros(member.size - at)

    def _bytes(self, n_bytes: int) -> Iterator[bytes]:
        """Yield the next bytes of the archive, consumed. Raises DamagedInputError if they are not there."""
        while n_bytes:
            data = self._stream.read(min(_READ_BYTES, n_bytes))
            if not data:
                raise self._damaged("the archive ends in the middle of a member")
            self._consume(data)
            n_bytes -= len(data)
            yield data

    def _consume(self, data: bytes) -> None:
        self._position.advance(data, 0)
        self._batcher.count(len(data))

    def _long(self, member: tarfile.TarInfo) -> Iterator[Batch]:
        """Yield a text that is larger than a batch in pieces; a run can be resumed only after the last of them."""
        settings, where = self._settings, self._position.location()
        document = _Member(self._content(member), member.size)
        if is_skipped(document, settings, self._position):
            bad = NotARecordError("too_long", f"{UNCUT} is too long", "raise --memory")
            self._batcher.reject(bad, self._position.record, where.offset)
            while not document.complete:
                document.buffer.clear()
                document.grow()
            self._end(member)
            return
        if read_whole(document, settings, where):
            at = first_invalid(document.buffer)
            if at is not None and settings.content.encoding_errors == "strict":
                self._batcher.add(document.take(len(document.buffer)), self._position.record, where.offset)
                self._end(member)
                return
            pieces = whole_pieces(document, settings, where.at(0), is_valid=at is None)
        else:
            pieces = divided_pieces(document, settings, where.at(0), 0, begins=True)

        def finish() -> tuple[Counts, Cursor]:
            self._end(member)
            return Counts(documents=1, bytes_in=self._batcher.uncount()), self._position.cursor()

        yield from piece_batches(pieces, where, finish, self._stream.raw_position)

    def _check_rest(self) -> None:
        """Consume what follows the archive's end: zeros. Raises DamagedInputError for anything else."""
        while data := self._stream.read(_READ_BYTES):
            if data.count(0) != len(data):
                raise self._damaged(
                    "something else follows the end of the archive, perhaps another archive",
                    "unpack all of it, and name the directory: mkdir DIR && tar -xif FILE -C DIR",
                )
            self._consume(data)

    def _damaged(self, what: str, next_step: str = "test it with tar -tf; get a complete copy of the file") -> DamagedInputError:
        return DamagedInputError(
            f"{what} (tar)",
            where=str(self._position.location()),
            allowed="a complete tar archive",
            next_step=next_step,
        )


class _Archive:
    """What `tarfile.TarInfo.fromtarfile` needs of an archive to read one header."""

    encoding = "utf-8"
    errors = "surrogateescape"

    def __init__(self, stream: ByteStream) -> None:
        self.fileobj = self
        self.offset = 0
        self.pax_headers: dict[str, str] = {}
        self.tarinfo = tarfile.TarInfo
        self._stream = stream
        self._taken = bytearray()

    @property
    def taken(self) -> bytes:
        """Bytes of the header."""
        return bytes(self._taken)

    def tell(self) -> int:
        return len(self._taken)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Raise tarfile.ReadError: an archive is read from front to back."""
        raise tarfile.ReadError(f"seek to {offset} ({whence})")

    def read(self, n_bytes: int) -> bytes:
        """Return `n_bytes` bytes, fewer only at the end."""
        if len(self._taken) + n_bytes > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"it has more than {_MOST_HEADER_BYTES:,} bytes")
        data = read_fully(self._stream, n_bytes)
        self._taken += data
        return data


class _Member(LongDocument):
    """A member that is read as far as it must be."""

    def __init__(self, data: Iterator[bytes], n_bytes: int) -> None:
        super().__init__(bytearray())
        self._data = data
        self._n_missing = n_bytes

    @property
    def complete(self) -> bool:
        return not self._n_missing

    def grow(self) -> None:
        data = next(self._data)
        self.buffer += data
        self._n_missing -= len(data)


def _segments(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Return the place and length of each stretch of a member that the archive has; what lies between them are zeros."""
    sparse: Any = member.sparse
    return [(0, member.size)] if sparse is None else [(begin, n_bytes) for begin, n_bytes in sparse if n_bytes]


def _filled(member: tarfile.TarInfo) -> int:
    """Return the bytes of a member in the archive, with what fills its last block."""
    return -(-sum(n_bytes for _, n_bytes in _segments(member)) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _zeros(n_bytes: int) -> Iterator[bytes]:
    for begin in range(0, n_bytes, _READ_BYTES):
        yield bytes(min(_READ_BYTES, n_bytes - begin))


def _reason_to_pass_over(member: tarfile.TarInfo, *, is_text: bool) -> str:
    """Return why a member is no document, as it is counted; nothing for one that is."""
    name = member.name.lower()
    if _is_hidden(name) or not (is_text or name.endswith(_JSON_SUFFIX)):
        return OTHER_FILE
    return "" if member.isreg() else _LINKS.get(member.type, OTHER_FILE)


def _is_hidden(name: str) -> bool:
    """Return whether a member or a directory above it is hidden, as are those that macOS adds beside each file (`._a.txt`)."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _shown(member: tarfile.TarInfo) -> str:
    return f'member "{member.name[-80:]}"'.encode("utf-8", "replace").decode()
