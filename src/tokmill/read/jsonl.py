"""JSON lines: one object a line, its text under one key. Lines of white space are no records.

A window of lines is decoded in one go by msgspec, which builds only the one string; when that fails, line after line is
looked at, and what msgspec refuses is asked of the standard library, which says why. The hard one is that both ways must
agree on every line, or the result would depend on where a window ends: a line counts by itself, never by its neighbours.
Decoding the whole window as a stream of values is refused, since it takes two objects on a line, or one object on two lines,
without complaint.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from tokmill.errors import BadRecordError, MemoryBudgetError
from tokmill.read.large import divided, hold, piece_batch, whole
from tokmill.read.utf8 import clean, first_invalid, foreign
from tokmill.read.window import Window
from tokmill.types import Batch, Counts, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tokmill.protocols import ByteStream
    from tokmill.read.position import Position, Settings
    from tokmill.types import Cursor, Location

_BOM = b"\xef\xbb\xbf"
_MOST_KEYS = 8
"""Named in a message."""


def read_jsonl(stream: ByteStream, position: Position, settings: Settings, _start: Cursor) -> Iterator[Batch]:
    """Batches of one file, from where stream and position already are. `index` is not set.

    Raises DamagedInputError, BadRecordError, MemoryBudgetError, ChangedError.
    """
    return _LinesReader(stream, position, settings).batches()


@dataclass(slots=True)
class _Records:
    """What the lines of a window were."""

    documents: list[bytes] = field(default_factory=list)
    lines: array[int] | range = field(default_factory=lambda: array("Q"))
    """For each document, the index of its line."""
    skips: list[Skip] = field(default_factory=list)
    n_changed: int = 0
    n_invalid: int = 0

    def counts(self, n_bytes: int) -> Counts:
        skipped: dict[str, int] = {}
        for skip in self.skips:
            skipped[skip.reason] = skipped.get(skip.reason, 0) + 1
        return Counts(
            documents=len(self.documents) + len(self.skips),
            bytes_in=n_bytes,
            skipped=skipped,
            invalid_utf8_documents=self.n_changed,
            invalid_utf8_bytes=self.n_invalid,
        )


class _BadLineError(Exception):
    """A line is no record. reason: as in Skip; at: byte of the line, where known."""

    def __init__(self, reason: str, what: str, next_step: str, at: int = 0) -> None:
        super().__init__(what)
        self.reason = reason
        self.what = what
        self.next_step = next_step
        self.at = at


class _LinesReader:
    """Reads one file."""

    def __init__(self, stream: ByteStream, position: Position, settings: Settings) -> None:
        self._stream = stream
        self._position = position
        self._settings = settings
        self._window = Window(stream, b"\n", settings.batch_bytes, settings.max_documents)
        self._parse = LineParser(settings.content.text_key)

    def batches(self) -> Iterator[Batch]:
        if not self._position.offset:
            self._refuse_foreign()
        goes_on = True
        while goes_on:
            split = self._window.split()
            if split is None:
                goes_on = yield from self._long_line()
                continue
            lines = list(split.records)
            records = self._fast(lines) if first_invalid(split.raw) is None else None
            if records is None:
                records = self._one_by_one(lines)
            yield self._batch(records, lines, split.raw, at_end=split.at_end)
            goes_on = not split.at_end

    def _fast(self, lines: list[bytes]) -> _Records | None:
        """All lines in one go; None when one of them is no plain record."""
        # The file's last line is empty where it ends with a newline, as it should.
        filled = lines if lines[-1] else lines[:-1]
        try:
            texts = [record.text.encode() for record in map(self._parse.decode, filled)]
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None
        return _Records(texts, range(len(texts)))

    def _one_by_one(self, lines: list[bytes]) -> _Records:
        records, offset = _Records(lines=array("Q")), self._position.offset
        for i, line in enumerate(lines):
            if line and not line.isspace():
                self._add(records, line, i, offset)
            offset += len(line) + 1
        return records

    def _add(self, records: _Records, line: bytes, i: int, offset: int) -> None:
        """Parse one line into `records`. Raises BadRecordError if it is none and is not to be skipped."""
        content = self._settings.content
        try:
            text, n_invalid = self._parse.parse(line, content.encoding_errors, at_start=offset == 0)
        except _BadLineError as bad:
            where = self._position.location(offset, self._position.record + i)
            if content.on_error == "stop":
                raise self._bad_record(bad, where) from None
            records.skips.append(Skip(path=where.path, record=where.record, offset=offset + bad.at, reason=bad.reason))
            return
        records.documents.append(text)
        records.lines.append(i)  # type: ignore[union-attr]
        records.n_changed += n_invalid > 0
        records.n_invalid += n_invalid

    def _batch(self, records: _Records, lines: list[bytes], raw: memoryview, *, at_end: bool) -> Batch:
        position = self._position
        locate = _locator(position, records.lines, array("Q", map(len, lines)))
        # The end of the file ends a line only if something stands before it.
        position.advance(raw, len(lines) - (at_end and not lines[-1]))
        return Batch(
            index=0,
            documents=records.documents,
            raw=None,
            is_val=None,
            after=position.end() if at_end else position.cursor(),
            locate=locate,
            counts=records.counts(len(raw)),
            skips=records.skips,
            position_bytes=self._stream.raw_position(),
        )

    def _long_line(self) -> Generator[Batch, None, bool]:
        """A line that does not fit the window, as batches; whether the file goes on behind it."""
        settings, position = self._settings, self._position
        where = position.location()
        held = self._window.open_large()
        most = max(settings.max_piece_bytes, settings.batch_bytes)
        while not held.complete and held.n_known <= most:
            held.grow()
        if len(held.buffer) > most:
            raise _line_too_long(where, most)
        line = held.take(len(held.buffer))
        records = self._one_by_one([line])
        after_line = line + b"\n" if held.has_separator else line
        del line
        goes_on = self._window.close_large(held)
        position.advance(after_line, 1)
        counts, after = records.counts(len(after_line)), position.cursor() if goes_on else position.end()
        del after_line
        if records.documents and len(records.documents[0]) > settings.batch_bytes:
            yield from self._long_document(records.documents.pop(), where, counts, after)
        else:
            yield Batch(
                index=0,
                documents=records.documents,
                raw=None,
                is_val=None,
                after=after,
                locate=lambda _i: where,
                counts=counts,
                skips=records.skips,
                position_bytes=self._stream.raw_position(),
            )
        return goes_on

    def _long_document(self, text: bytes, where: Location, counts: Counts, after: Cursor) -> Iterator[Batch]:
        """A document larger than a batch, in pieces; the last carries the counts and the cursor of its line."""
        settings = self._settings
        document = _Held(bytearray(text))
        del text
        inside = type(where)(path=where.path, record=where.record, offset=0, unit=where.unit)
        if hold(document, settings, where):
            pieces = whole(document, settings, inside, is_valid=True)
        else:
            pieces = divided(document, settings, inside, 0, begins=True)
        for piece in pieces:
            yield piece_batch(
                piece,
                after=after if piece.last else None,
                counts=(counts if piece.last else Counts()) + Counts(parts_added=int(piece.adds_part)),
                where=where,
                position_bytes=self._stream.raw_position(),
            )

    def _refuse_foreign(self) -> None:
        """Raises BadRecordError for a file that begins like something else, where that would stop the run anyway."""
        content = self._settings.content
        if content.encoding_errors != "strict" or content.on_error != "stop":
            return
        found = foreign(self._window.head())
        if found is not None:
            what, next_step = found
            bad = _BadLineError("invalid_utf8", f"this is not JSON lines: it begins like {what}", next_step)
            raise self._bad_record(bad, self._position.location())

    def _bad_record(self, bad: _BadLineError, where: Location) -> BadRecordError:
        key = self._settings.content.text_key
        at = type(where)(path=where.path, record=where.record, offset=(where.offset or 0) + bad.at, unit=where.unit)
        return BadRecordError(
            f"{bad.what} ({bad.reason})",
            where=str(at),
            allowed=f'one JSON object a line, with a string under the key "{key}"',
            next_step=f"{bad.next_step}, or pass --on-error skip to leave such lines out",
        )


@dataclass(slots=True)
class _Held:
    """A document that is in memory."""

    buffer: bytearray
    complete: bool = True

    @property
    def n_known(self) -> int:
        return len(self.buffer)

    def grow(self) -> None:
        """There is nothing more."""

    def take(self, n_bytes: int) -> bytes:
        taken = bytes(memoryview(self.buffer)[:n_bytes])
        del self.buffer[:n_bytes]
        return taken


class LineParser:
    """One line to one text."""

    def __init__(self, key: str) -> None:
        record = msgspec.defstruct("Record", [("text", str)], rename={"text": key}, frozen=True, gc=False)
        self.decode: Callable[[bytes], Any] = msgspec.json.Decoder(record).decode
        self._key = key

    def parse(self, line: bytes, policy: Any, *, at_start: bool) -> tuple[bytes, int]:
        """The text of a line that is not blank, and how many bytes of the line were not UTF-8. Raises _BadLineError."""
        if at_start and line.startswith(_BOM):
            # A byte order mark may stand before JSON (RFC 8259, section 8.1); the text does not begin there.
            line = b" " * len(_BOM) + line[len(_BOM) :]
        at, n_invalid = first_invalid(line), 0
        if at is not None:
            if policy == "strict":
                raise _BadLineError(
                    "invalid_utf8",
                    f"not valid UTF-8: byte 0x{line[at]:02x}",
                    "mend the file, or pass --encoding-errors replace (or ignore)",
                    at,
                )
            line, n_invalid = clean(line, policy)
        try:
            return self.decode(line).text.encode(), n_invalid
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return self._parse_slowly(line), n_invalid

    def _parse_slowly(self, line: bytes) -> bytes:
        """As the standard library sees it: its reasons are better, and it takes lone surrogates where they do no harm."""
        try:
            value = json.loads(line.decode(), parse_constant=_refuse_constant, parse_int=_Number, parse_float=_Number)
        except RecursionError:
            raise _BadLineError("invalid_json", "the JSON is nested too deeply", "flatten the line") from None
        except ValueError as error:
            at = len(line.decode()[: error.pos].encode()) if isinstance(error, json.JSONDecodeError) else 0
            what = f"the line is not JSON: {error.msg if isinstance(error, json.JSONDecodeError) else error}"
            next_step = "mend the line (a file that is one JSON array: jq -c '.[]' FILE)"
            raise _BadLineError("invalid_json", what, next_step, at) from None
        return self._text_of(value)

    def _text_of(self, value: object) -> bytes:
        key = self._key
        if not isinstance(value, dict):
            kind = "array" if isinstance(value, list) else "value"
            raise _BadLineError("missing_text", f"the line is a JSON {kind}, not an object", "make each line an object")
        if key not in value:
            raise _BadLineError("missing_text", f'there is no key "{key}"; {_describe_keys(value)}', _other_key(value))
        text = value[key]
        if text is None:
            raise _BadLineError("null_text", f'the text under "{key}" is null', "mend the line")
        if not isinstance(text, str) or isinstance(text, _Number):
            raise _BadLineError("not_a_string", f'what stands under "{key}" is not a string', _other_key(value))
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise _BadLineError(
                "lone_surrogate", f'the text under "{key}" has half of a surrogate pair (\\ud800 to \\udfff)', "mend the line"
            ) from None


class _Number(str):
    """A number's digits; they are of no interest, and Python refuses very long ones."""

    __slots__ = ()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _describe_keys(value: dict[str, object]) -> str:
    if not value:
        return "the object is empty"
    shown = ", ".join(json.dumps(key)[:40] for key in list(value)[:_MOST_KEYS])
    return f"keys there: {shown}" + (f" and {len(value) - _MOST_KEYS} more" if len(value) > _MOST_KEYS else "")


def _other_key(value: dict[str, object]) -> str:
    """What to type: the key of the longest string."""
    strings = {k: len(v) for k, v in value.items() if isinstance(v, str) and not isinstance(v, _Number) and k.isidentifier()}
    return f"pass --text-key {max(strings, key=lambda k: strings[k])}" if strings else "pass --text-key KEY"


def _locator(position: Position, lines: array[int] | range, lengths: array[int]) -> Callable[[int], Location]:
    first, offset, location = position.record, position.offset, position.location

    def locate(i: int) -> Location:
        line = lines[i]
        return location(offset + sum(lengths[:line]) + line, first + line)

    return locate


def _line_too_long(where: Location, most: int) -> MemoryBudgetError:
    return MemoryBudgetError(
        f"a line is longer than the {most:,} bytes that the memory budget allows",
        where=str(where),
        allowed=f"lines of at most {most:,} bytes with this --memory",
        next_step="raise --memory, or split the record",
    )
