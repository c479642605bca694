"""The journal: a header that says what is being made, then one line a commit. It is appended and synced.

A commit begins a segment or joins the one before it (`output/directory.py` says when). Lines that were joined are one line, and
the journal written again in one step, before there are many of them: it grows with the segments, not with the time of a run.

A line is `CHECK JSON`, where CHECK is the xxh3_64 of the JSON, seeded with the check of the line before. A line that was cut short,
changed, removed or moved does not fit this chain. At the very end of the journal that is an append that was cut short by a power
failure, and is dropped; anywhere else it is damage.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import xxhash

from tokmill.core.bounded import MOST_BYTES, Natural, Seconds, check_amount
from tokmill.core.config import Content
from tokmill.core.errors import DamageError, DiskFullError, StorageError
from tokmill.core.local_struct import MutableStruct
from tokmill.core.manifest import (
    FORMAT_VERSION,
    Segment,
    check_content,
    check_names,
    check_version,
    open_state,
    read_state,
    unknown_value,
)
from tokmill.core.system import durable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokmill.core.system.tree import TreePath

_MOST_JOINED = 4096
"""Commits that joined a segment, after which the journal is written again."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: what the run makes."""

    format_version: Natural
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


_WITHOUT = "start over with --fresh"
"""How to do without the version of tokmill that began a run."""


def read_header(path: TreePath, without: str = _WITHOUT) -> Header | None:
    """Read the header of a journal or a plan; None if there is no file. Raises DamageError, UsageError, OSError.

    without: how to do without the version of tokmill that wrote it.
    """
    try:
        data = read_state(path)
    except FileNotFoundError:
        return None
    return decode_header(data, str(path), without)


def decode_header(data: bytes, where: str, without: str = _WITHOUT) -> Header | None:
    """Decode what `encode_header` made; None for no bytes, or a line that was cut short. Raises as `read_header`."""
    payload = next(_payloads(io.BytesIO(data), _Read(), where), None)
    return None if payload is None else _decode_header(payload, where, without)


class Commit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line after the first: what a commit added."""

    segment: Segment
    """Of a commit that joins: files that it touched or completed; digests are of what the whole segment added to a file."""
    elapsed_s: Seconds
    joins: bool = False
    """Whether the commit adds to the segment of the line before."""


def add_commit(segments: list[Segment], commit: Commit) -> None:
    """Add what a commit says to the segments before it."""
    segment = commit.segment
    if commit.joins and segments:
        before = segments.pop()
        files, completed = before.files | segment.files, before.completed | segment.completed
        segment = msgspec.structs.replace(segment, files=files, completed=completed)
    segments.append(segment)


class Journal:
    """The journal of one run, open for appending."""

    def __init__(self, path: TreePath, header: Header, read: _Read) -> None:
        self.path = path
        self.header = header
        self.segments = read.segments
        self.elapsed_s = read.elapsed_s
        """Time put into the committed segments, over all runs."""
        self._n_joined = read.n_joined
        self._chain = read.chain
        self._fd = durable.create(path, append=True)

    @classmethod
    def open(cls, path: TreePath, header: Header) -> Journal:
        """Open the journal at `path`, or a new one with `header`. Raises DamageError, OSError; UsageError for another version's."""
        read = _read_whole(path)
        if read.header is None:
            payload = msgspec.json.encode(header)
            read.chain = _check(payload, 0)
            durable.write_file(path, _line(read.chain, payload))
            return cls(path, header, read)
        if not read.is_whole:
            durable.truncate(path, read.n_good)
        return cls(path, read.header, read)

    def write_again(self, header: Header) -> None:
        """Replace the journal by one with the same segments, each in one line, and another header. Raises OSError."""
        chain, lines = 0, []
        commits = [Commit(segment=segment, elapsed_s=self.elapsed_s) for segment in self.segments]
        for payload in (msgspec.json.encode(each) for each in (header, *commits)):
            chain = _check(payload, chain)
            lines.append(_line(chain, payload))
        durable.replace_file(self.path, b"".join(lines))
        self.close()
        self._fd = durable.create(self.path, append=True)
        self.header, self._chain, self._n_joined = header, chain, 0

    def append(self, commit: Commit) -> None:
        """Append a line and make it durable. Raises OSError."""
        payload = msgspec.json.encode(commit)
        check = _check(payload, self._chain)
        durable.write_all(self._fd, _line(check, payload))
        durable.sync_file(self._fd)
        self._chain = check
        add_commit(self.segments, commit)
        self.elapsed_s = commit.elapsed_s
        self._n_joined += commit.joins
        if self._n_joined >= _MOST_JOINED:
            self.write_again(self.header)

    def close(self) -> None:
        """Close the descriptor; can be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class JournalFollower:
    """Reads a journal that another process appends to."""

    def __init__(self, path: TreePath) -> None:
        self._path = path
        self._file = (0, 0)
        self._position = 0

    def read(self) -> tuple[list[Commit], bool]:
        """Return the commits since the last call, and whether they are all, from the first on: the journal is another file.

        A journal that is gone has no more commits. Raises DamageError, StorageError.
        """
        try:
            with durable.storage_errors(self._path), open(self._path.open(), "rb") as file:
                status = os.fstat(file.fileno())
                is_new = (status.st_dev, status.st_ino) != self._file or status.st_size < self._position
                self._file, self._position = (status.st_dev, status.st_ino), 0 if is_new else self._position
                file.seek(self._position)
                data = file.read(MOST_BYTES)
        except (StorageError, DiskFullError):
            if self._path.exists():
                raise
            return [], False
        # A line without an end is being written.
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        lines = whole.split(b"\n")[:-1]
        return [_decode_commit(line[17:], str(self._path)) for line in (lines[1:] if is_new else lines)], is_new


def read_journal(path: TreePath) -> tuple[Header, list[Segment], float] | None:
    """Return header, committed segments, and the time spent on them, without changing the file; None if there is no journal.

    Raises DamageError, OSError; UsageError for another version's.
    """
    read = _read_whole(path)
    return None if read.header is None else (read.header, read.segments, read.elapsed_s)


class _Read(MutableStruct):
    """What was read of a journal."""

    header: Header | None = None
    segments: list[Segment] = msgspec.field(default_factory=list)
    elapsed_s: float = 0.0
    n_joined: int = 0
    chain: int = 0
    """The check of the last line."""
    n_good: int = 0
    """Bytes of the lines that fit the chain."""
    is_whole: bool = True
    """Whether these are all bytes."""


def _read_whole(path: TreePath) -> _Read:
    """Read a journal line by line. Raises DamageError, OSError, UsageError."""
    read, n_values = _Read(), 0
    try:
        file = open_state(path)
    except FileNotFoundError:
        return read
    with file:
        for payload in _payloads(file, read, str(path)):
            if read.header is None:
                read.header = _decode_header(payload, str(path))
                continue
            n_values += check_amount(payload, "the journal", str(path), n_values)
            commit = _decode_commit(payload, str(path))
            add_commit(read.segments, commit)
            read.elapsed_s = commit.elapsed_s
            read.n_joined += commit.joins
    return read


def _payloads(file: BinaryIO, read: _Read, where: str) -> Iterator[memoryview]:
    """Yield the payloads of the lines that fit the chain, and note them in `read`. Raises DamageError."""
    for number, line in enumerate(file, 1):
        payload = memoryview(line)[17:-1]
        if not line.endswith(b"\n") or line[:17] != b"%016x " % (check := _check(payload, read.chain)):
            if file.read(1):
                raise _damaged(f"line {number} of the journal does not fit the lines before it", where)
            read.is_whole = False
            return
        read.chain = check
        read.n_good += len(line)
        yield payload


def _check(payload: bytes | memoryview, chain: int) -> int:
    return xxhash.xxh3_64_intdigest(payload, chain)


def _line(check: int, payload: bytes) -> bytes:
    return b"%016x %s\n" % (check, payload)


def _decode_header(payload: bytes | memoryview, where: str, without: str = _WITHOUT) -> Header:
    try:
        version = msgspec.json.decode(payload, type=_VersionOnly).format_version
        check_version(version, "began this run", where, without)
        check_amount(payload, "the journal's header", where)
        header = msgspec.json.decode(payload, type=Header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise unknown_value(error, where) or _damaged(f"the journal's header is not readable: {error}", where) from None
    check_content(header.content, where)
    return header


def _decode_commit(payload: bytes | memoryview, where: str) -> Commit:
    try:
        commit = msgspec.json.decode(payload, type=Commit)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(f"the journal is not readable: {error}", where) from None
    check_names([*commit.segment.files, *commit.segment.completed], where)
    return commit


class _VersionOnly(msgspec.Struct):
    format_version: Natural = 0


def _damaged(what: str, where: str) -> DamageError:
    return DamageError(
        what, where=where, allowed="a journal as tokmill wrote it", next_step="run the same command with --fresh to start over"
    )
