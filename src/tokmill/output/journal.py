"""The journal: a header that says what is being made, then one line a committed segment. It is appended and synced, and rewritten
(in one step) only where settings change that nothing committed depends on.

A line is `CHECK JSON`, where CHECK is the xxh3_64 of the JSON, seeded with the check of the line before. A line that was cut short,
changed, removed or moved does not fit this chain. At the very end of the journal that is an append that was cut short by a power
failure, and is dropped; anywhere else it is damage.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import xxhash

from tokmill.core.config import Content
from tokmill.core.errors import DamageError, DiskFullError, StorageError, UsageError
from tokmill.core.manifest import FORMAT_VERSION, Segment, check_names, read_state
from tokmill.core.system import durable

if TYPE_CHECKING:
    from pathlib import Path


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: what the run makes."""

    format_version: int
    tokmill_version: str
    fingerprint: str
    content: Content

    @classmethod
    def of(cls, content: Content, version: str) -> Header:
        """Return the header of a new run."""
        return cls(format_version=FORMAT_VERSION, tokmill_version=version, fingerprint=content.fingerprint(), content=content)


def encode_header(header: Header) -> bytes:
    """Encode a header as a file of its own: the beginning of a journal."""
    payload = msgspec.json.encode(header)
    return _line(_check(payload, 0), payload)


def read_header(path: Path) -> Header | None:
    """Read the header of a journal; None if there is no file. Raises DamageError, UsageError, OSError."""
    return decode_header(_read(path), str(path))


def decode_header(data: bytes, where: str) -> Header | None:
    """Decode what `encode_header` made; None for no bytes, or a line that was cut short. Raises DamageError, UsageError."""
    payloads, _, _ = _unchain(data, where)
    return _decode_header(payloads[0], where) if payloads else None


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    segment: Segment
    elapsed_s: float


class Journal:
    """The journal of one run, open for appending."""

    def __init__(self, path: Path, header: Header, lines: list[_Line], chain: int) -> None:
        self.path = path
        self.header = header
        self.segments = [line.segment for line in lines]
        self.elapsed_s = lines[-1].elapsed_s if lines else 0.0
        """Time put into the committed segments, over all runs."""
        self._chain = chain
        self._fd = durable.create(path, append=True)

    @classmethod
    def open(cls, path: Path, header: Header) -> Journal:
        """Open the journal at `path`, or a new one with `header`. Raises DamageError, OSError; UsageError for a newer tokmill's."""
        data = _read(path)
        payloads, chain, n_good = _unchain(data, str(path))
        if not payloads:
            check = _check(payload := msgspec.json.encode(header), 0)
            durable.write_file(path, _line(check, payload))
            return cls(path, header, [], check)
        if n_good < len(data):
            os.truncate(path, n_good)
        return cls(path, _decode_header(payloads[0], str(path)), [_decode_line(p, str(path)) for p in payloads[1:]], chain)

    def with_header(self, header: Header) -> Journal:
        """Replace this journal by one with the same segments and another header. Raises OSError, DamageError."""
        payloads, _, _ = _unchain(_read(self.path), str(self.path))
        chain, lines = 0, []
        for payload in [msgspec.json.encode(header), *payloads[1:]]:
            chain = _check(payload, chain)
            lines.append(_line(chain, payload))
        self.close()
        durable.replace_file(self.path, b"".join(lines))
        return Journal.open(self.path, header)

    def append(self, segment: Segment, elapsed_s: float) -> None:
        """Append a line and make it durable. elapsed_s: over all runs. Raises OSError."""
        payload = msgspec.json.encode(_Line(segment=segment, elapsed_s=elapsed_s))
        check = _check(payload, self._chain)
        durable.write_all(self._fd, _line(check, payload))
        durable.sync_file(self._fd)
        self._chain = check
        self.segments.append(segment)
        self.elapsed_s = elapsed_s

    def close(self) -> None:
        """Close the descriptor; can be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_segments(path: Path, position: int) -> tuple[list[Segment], int]:
    """Return the segments after byte `position` of a journal that another process appends to, and where the next one will begin.

    position: 0, or what was returned before. A journal that is gone has no more segments. Raises DamageError, StorageError.
    """
    try:
        with durable.storage_errors(path), path.open("rb") as file:
            file.seek(position)
            data = file.read()
    except (StorageError, DiskFullError):
        if path.exists():
            raise
        return [], position
    # A line without an end is being written.
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.split(b"\n")[:-1]
    header = 1 if position == 0 else 0
    return [_decode_line(line[17:], str(path)).segment for line in lines[header:]], position + len(whole)


def read_journal(path: Path) -> tuple[Header, list[Segment], float] | None:
    """Return header, committed segments, and the time spent on them, without changing the file; None if there is no journal.

    Raises DamageError, OSError; UsageError for a newer tokmill's.
    """
    payloads, _, _ = _unchain(_read(path), str(path))
    if not payloads:
        return None
    lines = [_decode_line(p, str(path)) for p in payloads[1:]]
    return _decode_header(payloads[0], str(path)), [line.segment for line in lines], lines[-1].elapsed_s if lines else 0.0


def _read(path: Path) -> bytes:
    try:
        return read_state(path)
    except FileNotFoundError:
        return b""


def _unchain(data: bytes, where: str) -> tuple[list[bytes], int, int]:
    """Return the payloads of the lines that fit the chain, the last check, and the bytes that these lines take."""
    payloads: list[bytes] = []
    chain = n_good = 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        payload = line[17:]
        if line[:17] != b"%016x " % _check(payload, chain):
            if number == len(lines) - 1 and not lines[-1]:
                break
            raise _damaged(f"line {number} of the journal does not fit the lines before it", where)
        payloads.append(payload)
        chain = _check(payload, chain)
        n_good += len(line) + 1
    return payloads, chain, n_good


def _check(payload: bytes, chain: int) -> int:
    return xxhash.xxh3_64_intdigest(payload, chain)


def _line(check: int, payload: bytes) -> bytes:
    return b"%016x %s\n" % (check, payload)


def _decode_header(payload: bytes, where: str) -> Header:
    try:
        version = msgspec.json.decode(payload, type=dict[str, msgspec.Raw]).get("format_version", msgspec.Raw(b"0"))
        if int(bytes(version)) > FORMAT_VERSION:
            raise UsageError(
                "the run to be resumed was begun by a newer tokmill",
                where=where,
                allowed=f"journal version {FORMAT_VERSION} or older",
                next_step="pip install --upgrade tokmill, or start over with --fresh",
            )
        return msgspec.json.decode(payload, type=Header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _damaged(f"the journal's header is not readable: {error}", where) from None


def _decode_line(payload: bytes, where: str) -> _Line:
    try:
        line = msgspec.json.decode(payload, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(f"the journal is not readable: {error}", where) from None
    check_names(line.segment.files, where)
    return line


def _damaged(what: str, where: str) -> DamageError:
    return DamageError(
        what, where=where, allowed="a journal as tokmill wrote it", next_step="run the same command with --fresh to start over"
    )
