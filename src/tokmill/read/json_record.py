"""The text of one JSON object: a line of JSON lines, or a JSON file in an archive.

msgspec decodes only the wanted field; what it rejects is parsed by the standard library, which says why. A key with dots, `a.b`, is
the key of that name where the object has one, and else the field `b` of the object under `a`.
"""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from tokmill.core.errors import BadRecordError
from tokmill.core.records import Skip
from tokmill.core.text import shortened
from tokmill.read.utf8 import ENCODING_ADVICE, clean, first_invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.core.records import Location, Utf8Policy

NOT_PLAIN = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What `RecordParser.texts` raises if a record must be parsed by itself."""

_PART_BYTES = 1 << 20
_decode_string = msgspec.json.Decoder(str).decode
_ESCAPED = re.compile(
    rb"(?:[^\\]++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\[^u])*+", re.DOTALL
)
"""Content of a JSON string as far as no escape, and no pair of halves of a surrogate, is cut."""
_BOM = b"\xef\xbb\xbf"
_OF_THE_KEY = ("missing_text", "null_text", "not_a_string", "lone_surrogate")
"""Reasons that concern what stands under the key of the text."""
_MOST_KEYS = 8
"""Named in a message."""


class NotARecordError(Exception):
    """Something is no record."""

    def __init__(self, reason: str, what: str, next_step: str, at: int = 0) -> None:
        """Say what is wrong. reason: as in Skip; at: the byte of the record, where known."""
        super().__init__(what)
        self.reason = reason
        self.what = what
        self.next_step = next_step
        self.at = at

    def error(self, where: Location, allowed: str, records: str) -> BadRecordError:
        """Return the error that stops the run. where: of the record; records: what `--on-error skip` leaves out, in the plural."""
        offset = None if where.offset is None else where.offset + self.at
        return BadRecordError(
            f"{self.what} ({self.reason})",
            where=str(where.at(offset)),
            allowed=allowed,
            next_step=f"{self.next_step}, or pass --on-error skip to leave such {records} out",
        )

    def file_error(self, where: Location, allowed: str) -> BadRecordError:
        """Return the error for a fault of the whole file, which no policy skips."""
        error = self.error(where, allowed, "records")
        error.next_step = self.next_step
        return error


def skip_of(bad: NotARecordError, where: Location, offset: int | None, key: str) -> Skip:
    """Return what is noted of a record that is left out. offset: of the record; key: --text-key."""
    at = None if offset is None else offset + bad.at
    text_key = key if bad.reason in _OF_THE_KEY else msgspec.UNSET
    return Skip(path=where.path, record=where.record, offset=at, reason=bad.reason, text_key=text_key)


class RecordParser:
    """The parser of JSON objects with a text."""

    def __init__(self, key: str) -> None:
        """Prepare for one key: --text-key."""
        self._key = key
        self._raw_of: Callable[[bytes], Any] | None = None
        """For long lines; None where the key is not that of one field."""
        if json.dumps(key, ensure_ascii=False) != f'"{key}"':
            # msgspec takes no name that JSON writes with escapes: with a quote, a backslash, a control character.
            self._text_of: Callable[[bytes | memoryview], str] = _not_plain
            self.texts = self._nested_texts
        elif "." in key.strip("."):
            self._text_of = _nested(key)
            self.texts = self._nested_texts
        else:
            raw = msgspec.defstruct("Raw", [("text", msgspec.Raw)], rename={"text": key}, frozen=True, gc=False)
            self._raw_of = msgspec.json.Decoder(raw).decode
            record = msgspec.defstruct("Record", [("text", str)], rename={"text": key}, frozen=True, gc=False)
            self._decode: Callable[[bytes | memoryview], Any] = msgspec.json.Decoder(record).decode
            self._text_of = lambda line: self._decode(line).text
            self.texts = self._flat_texts

    def _flat_texts(self, lines: Sequence[bytes | memoryview]) -> list[bytes]:
        """Return the texts of lines that are plain records. Raises one of NOT_PLAIN if one is not."""
        return [record.text.encode() for record in map(self._decode, lines)]

    def _nested_texts(self, lines: Sequence[bytes | memoryview]) -> list[bytes]:
        return [text.encode() for text in map(self._text_of, lines)]

    def parse(self, line: bytes, policy: Utf8Policy, *, at_start: bool, is_long: bool = False) -> tuple[bytes, int]:
        """Return the text of a line that is not blank, and how many of its bytes were not UTF-8.

        Args:
            line: the line.
            policy: for bytes that are not UTF-8.
            at_start: it is a file's first, where a byte order mark may stand before it.
            is_long: its text is decoded in parts: a string takes up to four bytes for each of them.

        Raises:
            NotARecordError: it has no text.
        """
        if at_start and line.startswith(_BOM):
            # A byte order mark may stand before JSON (RFC 8259, section 8.1); the text does not begin there.
            line = b" " * len(_BOM) + line[len(_BOM) :]
        at, n_invalid = first_invalid(line), 0
        if at is not None:
            if policy == "strict":
                raise NotARecordError(
                    "invalid_utf8",
                    f"not valid UTF-8: byte 0x{line[at]:02x}",
                    ENCODING_ADVICE,
                    at,
                )
            line, n_invalid = clean(line, policy)
        if is_long and self._raw_of is not None:
            return self._parse_long(line), n_invalid
        try:
            return self._text_of(line).encode(), n_invalid
        except NOT_PLAIN:
            return self._parse_slowly(line), n_invalid

    def _parse_long(self, line: bytes) -> bytes:
        """Return the text of a long line, whose string is decoded in parts. Raises NotARecordError."""
        try:
            raw = memoryview(self._raw_of(line).text)  # type: ignore[misc]
        except msgspec.ValidationError:
            raise NotARecordError("missing_text", f'there is no key "{self._key}"', "pass --text-key KEY") from None
        except NOT_PLAIN as error:
            # What msgspec says of half of a surrogate pair.
            is_half = re.search("surrogate|hex escape", str(error)) is not None
            raise NotARecordError(
                "lone_surrogate" if is_half else "invalid_json", f"the line is not JSON: {error}", "fix the line"
            ) from None
        if bytes(raw[:1]) != b'"':
            return self._text_in({self._key: None if bytes(raw[:4]) == b"null" else 0})
        parts, begin, end = [], 1, len(raw) - 1
        while begin < end:
            n = min(_PART_BYTES, end - begin)
            if begin + n < end:
                n = _whole_characters(bytes(raw[begin : begin + n])) or end - begin
            parts.append(_decode_string(b'"' + bytes(raw[begin : begin + n]) + b'"').encode())
            begin += n
        return b"".join(parts)

    def _parse_slowly(self, line: bytes) -> bytes:
        """Parse by the standard library: it says why, and accepts lone surrogates where they do no harm."""
        try:
            value = _slow_decoder().decode(line.decode())
        except RecursionError:
            raise NotARecordError("invalid_json", "the JSON is nested too deeply", "flatten the line") from None
        except ValueError as error:
            at = len(line.decode()[: error.pos].encode()) if isinstance(error, json.JSONDecodeError) else 0
            what = f"the line is not JSON: {error.msg if isinstance(error, json.JSONDecodeError) else error}"
            next_step = "fix the line (a file that is one JSON array: jq -c '.[]' FILE; objects of several lines: jq -c . FILE)"
            raise NotARecordError("invalid_json", what, next_step, at) from None
        return self._text_in(value)

    def _text_in(self, value: object) -> bytes:
        key = self._key
        if not isinstance(value, dict):
            kind = "array" if isinstance(value, list) else "value"
            next_step = "make each line an object (the elements of an array become lines by: jq -c '.[]' FILE > NEW.jsonl)"
            raise NotARecordError("missing_text", f"the line is a JSON {kind}, not an object", next_step)
        text = value[key] if key in value else _below(value, key)
        if text is None:
            raise NotARecordError("null_text", f'the text under "{key}" is null', "fix the line")
        if not isinstance(text, str) or isinstance(text, _Number):
            raise NotARecordError("not_a_string", f'what stands under "{key}" is not a string', _other_key(value))
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise NotARecordError(
                "lone_surrogate", f'the text under "{key}" has half of a surrogate pair (\\ud800 to \\udfff)', "fix the line"
            ) from None


def _whole_characters(part: bytes) -> int:
    """Return how much of the beginning of a JSON string's content is whole characters and escapes; 0 if that cannot be seen."""
    match = _ESCAPED.match(part)
    n = match.end() if match else 0
    # A character of several bytes may go on after the end.
    while n and part[n - 1] & 0xC0 == 0x80:
        n -= 1
    return n - 1 if n and part[n - 1] >= 0xC0 else n


class _Number(str):
    """A number's digits, not converted: Python converts no very long ones."""

    __slots__ = ()


@cache
def _slow_decoder() -> json.JSONDecoder:
    """Return the standard library's decoder; making one takes as long as decoding a short line."""
    return json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_Number, parse_float=_Number)


def _not_plain(_line: bytes | memoryview) -> NoReturn:
    raise msgspec.MsgspecError


def _nested(key: str) -> Callable[[bytes | memoryview], str]:
    """Return what gives the text under a key with dots of a plain object, and raises one of NOT_PLAIN for any other."""
    *above, last = key.split(".")
    inner: type[msgspec.Struct] = msgspec.defstruct("Inner", [("text", str)], rename={"text": last}, frozen=True, gc=False)
    for name in reversed(above[1:]):
        inner = msgspec.defstruct("Outer", [("text", inner)], rename={"text": name}, frozen=True)
    fields = [("literal", str | msgspec.UnsetType, msgspec.UNSET), ("text", inner | msgspec.UnsetType, msgspec.UNSET)]
    record = msgspec.defstruct("Record", fields, rename={"literal": key, "text": above[0]}, frozen=True)
    decode: Callable[[bytes | memoryview], Any] = msgspec.json.Decoder(record).decode

    def text_of(line: bytes | memoryview) -> str:
        found = decode(line)
        if found.literal is not msgspec.UNSET:
            return found.literal  # type: ignore[no-any-return]
        while not isinstance(found, str):
            if found is msgspec.UNSET:
                raise msgspec.ValidationError
            found = found.text
        return found

    return text_of


def _below(value: dict[str, Any], key: str) -> object:
    """Return what stands under a key with dots, step by step. Raises NotARecordError if a step is missing."""
    found: Any = value
    above: list[str] = []
    for name in key.split("."):
        if not isinstance(found, dict) or name not in found:
            inside = f" inside {json.dumps('.'.join(above))[:40]}" if above and isinstance(found, dict) else ""
            there = _describe_keys(found if inside else value)
            raise NotARecordError("missing_text", f'there is no key "{key}"{inside}; {there}', _other_key(value))
        above.append(name)
        found = found[name]
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _describe_keys(value: dict[str, object]) -> str:
    keys = shortened([json.dumps(key)[:40] for key in value], _MOST_KEYS)
    return f"keys there: {', '.join(keys)}" if keys else "the object is empty"


def _other_key(value: dict[str, object]) -> str:
    """Return what to type: the key of the longest string."""
    strings = {k: len(v) for k, v in value.items() if isinstance(v, str) and not isinstance(v, _Number) and k.isprintable()}
    return f"pass --text-key {shlex.quote(max(strings, key=lambda k: strings[k]))}" if strings else "pass --text-key KEY"
