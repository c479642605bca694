"""Makes the objects of an output: sends finished files and copies objects, whole, several at once, and only what is missing.

A file is read twice. The first time its bytes are compared with the digests they were written with, so that what a disk has lost is
never published; the digest of all of it is part of the mark by which the object is found again. The second time its parts are read
and sent, each with its MD5. Keeping the parts from the first reading would bound the size of a file by memory.

A connection may break after a request that was carried out. So every answer that says "there is one already" or "that is not
known" leads to the same question: is the object there that is meant?

Copies are made inside the store. An object's mark says what is in it, so a copy is known by its mark. A large object is copied in
ranges, for a client does not wait for an answer for minutes. Each request names the version that was looked at: an object that was
replaced meanwhile is not copied.

What must be remembered between two attempts to send is in one small JSON file beside what is staged. The store itself says what has
arrived; the file says what is sent, what it replaces, and which uploads are open. Losing it costs time, never bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec
import xxhash

from tokmill.core.bounded import check_amount
from tokmill.core.config import Content
from tokmill.core.errors import DamageError, LockedError, StorageError, UsageError
from tokmill.core.manifest import read_state
from tokmill.core.spans import SpanChecker, add_up, spans_of
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.core.system.tree import tree_of
from tokmill.core.text import counted
from tokmill.store.base import AlreadyExists, ObjectInfo, TransientError, UploadNotFound
from tokmill.store.download import Closed, RetryPolicy, retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokmill.core.manifest import Manifest
    from tokmill.core.records import FileEntry
    from tokmill.core.spans import Span
    from tokmill.core.system.tree import Directory, TreePath
    from tokmill.store.s3 import S3Objects

T = TypeVar("T")

PART_BYTES = 8 << 20
"""Of a part, more only for files that would have too many of them."""
_MOST_PARTS = 10_000
MOST_BYTES = 5 << 40
"""Of an object; the limits of S3, which others have, too."""
_PARTS_AT_ONCE = 6
"""At 30 ms for an answer and 100 MB/s a connection, about 400 MB/s; two processors make some 200 MB/s of ids."""
_FILES_AT_ONCE = 4
"""Small files wait for answers, not for bytes."""
_HELD_BYTES = 48 << 20
"""Of parts on their way, two of any size excepted; the client holds each twice (measured)."""
_BLOCK_BYTES = 4 << 20
_FAILED_MANY = 8
"""Attempts: of one request that is 15 s without a store, of several at once a second or two."""
PIECE_BYTES = 512 << 20
"""Of a request that copies; S3 takes up to 5 GB. At 50 MB/s inside a store, 10 s; a client waits for 60."""
_COPIES_AT_ONCE = 8
_ROUNDS = 4
"""Of one file: an object that keeps being another's is not fought for."""
WRITING = RetryPolicy()
"""About half a minute for each request: a store that is started again is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileToSend:
    """A finished file, and what it must hold."""

    name: str
    """Of the object, below the prefix."""
    paths: tuple[TreePath, ...]
    """Where it is: a file that is about to get its name is at the first or, from one moment to the next, at the second."""
    entry: FileEntry
    spans: tuple[Span, ...]
    """Of all of the file, its header first."""


def outgoing(directory: Directory, manifest: Manifest) -> list[FileToSend]:
    """Return the files of a complete output directory."""
    spans = spans_of(manifest)
    return [
        FileToSend(name=name, paths=(tree_of(directory) / name,), entry=entry, spans=tuple(spans[name]))
        for name, entry in manifest.files.items()
    ]


def digest_of(file: FileToSend) -> str:
    """Return the xxh3_128 of a file, hex; all of it is read. Raise DamageError if it is not what was written, StorageError."""
    size, whole, checker = file.entry.size_bytes, xxhash.xxh3_128(), SpanChecker(file.spans)
    with storage_errors(file.paths[-1]), open(_open(file), "rb", buffering=0) as opened:
        while (left := size - checker.position) > 0 and (block := opened.read(min(left, _BLOCK_BYTES))):
            whole.update(block)
            for span in checker.update(block):
                raise _damaged(file, f"bytes {span.begin:,} to {span.end:,} are not those written")
        if checker.position != size or opened.read(1) or not add_up(file.spans, size):
            raise _damaged(file, f"it is not {counted(size, 'byte')} long")
    return whole.hexdigest()


def part_bytes_of(size_bytes: int, usual: int) -> int:
    """Return the size of each part of an object but the last, in bytes: the usual one, or as many whole MiB as are needed."""
    mib = 1 << 20
    return usual if size_bytes <= usual * _MOST_PARTS else -(-size_bytes // (_MOST_PARTS * mib)) * mib


class Transfer:
    """Makes objects below a prefix, several at once. As a context: leaving it ends what is on its way."""

    def __init__(self, store: S3Objects, run: str, n_files: int, n_parts: int) -> None:
        """Start the threads. run: fingerprint of what the objects belong to; it stands in their marks."""
        self._store = store
        self._run = run
        self._closed = threading.Event()
        self._files = ThreadPoolExecutor(n_files, "file")
        self._parts = ThreadPoolExecutor(n_parts, "part")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for pool in (self._files, self._parts):
            pool.shutdown(wait=True, cancel_futures=True)

    def _where(self, name: str) -> str:
        return f"{self._store.url}/{name}"

    def _head(self, name: str) -> ObjectInfo | None:
        return self._retry(name, lambda: self._store.head(name))

    def _delete(self, name: str) -> None:
        self._retry(name, lambda: self._store.delete([name]))

    def _make_room(self, name: str, found: ObjectInfo, *, is_fresh: bool = False) -> None:
        """Delete what is in the way. Raises LockedError or UsageError for what nobody said may be replaced."""
        if found.mark.partition(" ")[0] != self._run and not is_fresh:
            raise foreign_object(self._where(name), found)
        self._delete(name)

    def _retry(self, name: str, attempt: Callable[[], T]) -> T:
        return retry(attempt, WRITING, lambda how: not_written(how, self._where(name)), self._closed, self._note)

    def _note(self, what: str) -> None:
        """Take note of an attempt that failed."""


def results_of(parts: Sequence[Future[str]]) -> list[str]:
    """Return the results; whatever happens, none of the parts is on its way any more."""
    try:
        return [part.result() for part in parts]
    finally:
        for part in parts:
            part.cancel()
        for part in parts:
            if not part.cancelled():
                part.exception()


class Uploader(Transfer):
    """Sends files to a prefix."""

    def __init__(
        self,
        store: S3Objects,
        run: str,
        state: UploadState,
        *,
        on_bytes: Callable[[int], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the threads.

        Args:
            store: Where to.
            run: Fingerprint of what is made; objects of other runs are replaced only with --fresh, as `state` says.
            state: What is remembered between attempts.
            on_bytes: Called, in any thread, with bytes that have arrived, also of files sent again and of parts that were there.
            check: Raises LockedError, in any thread, when another run is complete; the object just made is deleted then.
        """
        super().__init__(store, run, _FILES_AT_ONCE, _PARTS_AT_ONCE)
        self._state = state
        self._on_bytes = on_bytes
        self._check = check
        self.trouble = ""
        """What happens to requests, when it has to many; whoever has told it empties this."""
        self._n_failed = 0
        self._held = _Held()

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._held.close()
        super().__exit__(*error)

    def send(self, file: FileToSend) -> Future[ObjectInfo]:
        """Begin to send a file; what comes of it. Raises there DamageError, StorageError, UsageError, LockedError."""
        return self._files.submit(self._send, file)

    def _send(self, file: FileToSend) -> ObjectInfo:
        if file.entry.size_bytes > MOST_BYTES:
            raise UsageError(
                f"a file of {counted(file.entry.size_bytes, 'byte')} is too large for one object",
                where=file.name,
                allowed=f"{MOST_BYTES:,} bytes",
                next_step="--fresh --shard-tokens 1G",
            )
        mark = f"{self._run} {digest_of(file)}"
        for _ in range(_ROUNDS):
            found = self._head(file.name)
            if found is not None and found.mark == mark and found.size_bytes == file.entry.size_bytes:
                self._forget(file)
                return found
            if found is not None:
                self._make_room(file.name, found, is_fresh=self._state.notes.is_fresh)
            try:
                self._upload(file, mark)
            except (AlreadyExists, UploadNotFound):
                # Whatever that was, what the store has now says it.
                self._forget(file)
                continue
            self._check_overtaken(file, mark)
        raise LockedError(
            "another run keeps writing the same object",
            where=self._where(file.name),
            allowed="one run at a time",
            next_step="wait for it to end, or choose another --out",
        )

    def _check_overtaken(self, file: FileToSend, mark: str) -> None:
        """Raises LockedError when the prefix is another run's, which must not find an object there that it did not see before."""
        try:
            self._check()
        except LockedError:
            found = self._head(file.name)
            if found is not None and found.mark == mark:
                self._delete(file.name)
            raise

    def _upload(self, file: FileToSend, mark: str) -> None:
        """Send it, in one piece or in parts. Raises AlreadyExists, UploadNotFound."""
        size = file.entry.size_bytes
        part_bytes = part_bytes_of(size, PART_BYTES)
        fd = _open(file)
        try:
            if size <= part_bytes:
                data = _read(fd, file, 0, size)
                self._retry(file.name, lambda: self._store.put(file.name, data, mark=mark, only_new=True))
                self._on_bytes(size)
            else:
                self._upload_parts(file, fd, mark, part_bytes)
        finally:
            os.close(fd)

    def _upload_parts(self, file: FileToSend, fd: int, mark: str, part_bytes: int) -> None:
        before = self._state.notes.begun.get(file.name)
        there = self._retry(file.name, lambda: self._store.list_parts(file.name, before)) if before else {}
        upload = before or self._retry(file.name, lambda: self._store.create_multipart(file.name, mark))
        if not before:
            self._state.note_begun(file.name, upload)

        def send(number: int, begin: int) -> str:
            """Send one part, unless it is there; return its ETag."""
            n_bytes = min(part_bytes, size - begin)
            with self._held.taking(n_bytes):
                if self._closed.is_set():
                    raise Closed
                data = _read(fd, file, begin, n_bytes)
                if number in there and there[number] == (n_bytes, hashlib.md5(data, usedforsecurity=False).hexdigest()):
                    etag = there[number][1]
                else:
                    etag = self._retry_part(file, mark, lambda: self._store.upload_part(file.name, upload, number, data))
            self._on_bytes(n_bytes)
            return etag

        size = file.entry.size_bytes
        sent = [self._parts.submit(send, number, begin) for number, begin in enumerate(range(0, size, part_bytes), 1)]
        # The descriptor is theirs, too: none may outlive this.
        etags = results_of(sent)
        self._retry_part(file, mark, lambda: self._store.complete_multipart(file.name, upload, etags, only_new=True))
        self._state.note_begun(file.name, None)

    def _forget(self, file: FileToSend) -> None:
        """Give up what was begun in parts, which the store keeps, and charges for, when it refuses to make an object of them."""
        upload = self._state.notes.begun.get(file.name)
        if upload is not None:
            self._state.note_begun(file.name, None)
            self._retry(file.name, lambda: self._store.abort_multipart(file.name, upload))

    def _retry_part(self, file: FileToSend, mark: str, attempt: Callable[[], T]) -> T:
        """Retry as `_retry` does, but stop as soon as the object is there or the prefix is another run's.

        After a failed attempt the object can be there because that attempt did succeed, or because another run of the same
        content made it and aborted every upload; some stores answer that with an error of their own.

        Raises UploadNotFound if the object is there, LockedError if the prefix is another run's.
        """

        def attempted() -> T:
            try:
                return attempt()
            except TransientError:
                found = self._store.head(file.name)
                if found is not None and found.mark == mark:
                    raise UploadNotFound from None
                # The store answers, so this does not wait: whoever took the prefix has given up what this run began.
                self._check()
                raise

        return self._retry(file.name, attempted)

    def _note(self, what: str) -> None:
        self._n_failed += 1
        if self._n_failed >= _FAILED_MANY:
            self.trouble = what


class _Held:
    """Bounds the bytes of the parts on their way."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_bytes = self._n_parts = 0
        self._is_closed = False

    @contextlib.contextmanager
    def taking(self, n_bytes: int) -> Iterator[None]:
        """Hold so many bytes; waits until there is room for them."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._n_parts < 2 or self._n_bytes + n_bytes <= _HELD_BYTES)
            self._n_bytes += n_bytes
            self._n_parts += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_bytes -= n_bytes
                self._n_parts -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def foreign_object(where: str, found: ObjectInfo) -> LockedError | UsageError:
    """Return the error for an object in the way that this run did not make."""
    if found.mark:
        return LockedError(
            "another run, of other inputs or settings, sent this object; it is under way or was interrupted",
            where=where,
            allowed="one run at a time",
            next_step="wait for it to end, or choose another --out; if it will not come back, --fresh takes its place",
        )
    return UsageError(
        "there is an object here that no tokmill manifest lists",
        where=where,
        allowed="a prefix with no such object, or one that tokmill wrote",
        next_step="choose another --out, move the object away, or pass --fresh to replace it",
    )


def not_written(how: str, where: str) -> StorageError:
    """Return the error for a store that retries did not help with."""
    return StorageError(
        f"the store cannot be written to: {how}",
        where=where,
        allowed="a store that answers",
        next_step="check the connection and the store, and run the same command again: it sends what is missing",
    )


def _open(file: FileToSend) -> int:
    *before, last = file.paths
    for path in before:
        with storage_errors(path), contextlib.suppress(FileNotFoundError):
            return path.open()
    with storage_errors(last):
        return last.open()


def _read(fd: int, file: FileToSend, begin: int, n_bytes: int) -> bytes:
    """Bytes of a file, all of them. Raises DamageError, StorageError."""
    data = b""
    with storage_errors(file.paths[-1]):
        while len(data) < n_bytes and (more := os.pread(fd, n_bytes - len(data), begin + len(data))):
            data += more
    if len(data) < n_bytes:
        raise _damaged(file, f"it ends at byte {begin + len(data):,}")
    return data


def _damaged(file: FileToSend, what: str) -> DamageError:
    return DamageError(
        f"a staged file is not what was written to it: {what}",
        where=str(file.paths[-1]),
        allowed=f"{counted(file.entry.size_bytes, 'byte')}, as the run that wrote them says",
        next_step="run the same command with --fresh to make it again",
    )


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of the file."""

    url: str
    """Of the prefix."""
    content: Content | None = None
    """What is made; None before a run has begun."""
    is_fresh: bool = False
    """Whatever stands in the way at the prefix may be replaced: that was asked for."""
    replaces: str = ""
    """Version of the manifest at the prefix whose output this one takes the place of; empty: none."""
    retired: tuple[str, ...] = ()
    """Names of its files, which are to be taken away."""
    begun: dict[str, str] = {}
    """By name of a file, what the store calls the object that is sent in parts."""


class UploadState:
    """The file. Used from any thread."""

    def __init__(self, path: TreePath, url: str) -> None:
        """Read it, where it is there and about this URL. Raises StorageError."""
        self._path = path
        self._lock = threading.Lock()
        self.notes = _read_notes(path, url) or Notes(url=url)

    def change(self, **fields: object) -> None:
        """Set fields, durably."""
        with self._lock:
            self._write(**fields)

    def note_begun(self, name: str, upload: str | None) -> None:
        """Note what an object in parts is called; None: it is no longer begun."""
        with self._lock:
            others = {other: at for other, at in self.notes.begun.items() if other != name}
            self._write(begun=others | ({name: upload} if upload else {}))

    def _write(self, **fields: object) -> None:
        self.notes = msgspec.structs.replace(self.notes, **fields)
        with storage_errors(self._path):
            durable.replace_file(self._path, msgspec.json.encode(self.notes))


def _read_notes(path: TreePath, url: str) -> Notes | None:
    with storage_errors(path):
        try:
            data = read_state(path)
            check_amount(data, "the state of the uploads", str(path))
            notes = msgspec.json.decode(data, type=Notes)
        except (FileNotFoundError, DamageError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
    return notes if notes.url == url else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTask:
    """An object that is to have another name."""

    source: str
    name: str
    size_bytes: int
    run: str
    """Fingerprint in the mark of the source: of what made it."""
    part: int
    """Number of the part it belongs to, for messages."""


class Copier(Transfer):
    """Copies objects below one prefix."""

    def __init__(self, store: S3Objects, run: str) -> None:
        super().__init__(store, run, _COPIES_AT_ONCE, _COPIES_AT_ONCE)

    def copy(self, move: CopyTask) -> Future[ObjectInfo]:
        """Begin to copy; the copy comes of it. Raises there DamageError, LockedError, UsageError, StorageError."""
        return self._files.submit(self._copy, move)

    def _copy(self, move: CopyTask) -> ObjectInfo:
        for _ in range(_ROUNDS):
            source, found = self._head(move.source), self._head(move.name)
            if found is not None and self._is_copy(found, source, move):
                return found
            source = _checked(source, move, self._where(move.source))
            if found is not None:
                self._make_room(move.name, found)
            try:
                self._make(move, source, f"{self._run} {_digest(source)}")
            except (AlreadyExists, UploadNotFound):
                # By another that does the same, or by an attempt of our own that seemed to fail: what is there now says it.
                continue
        raise LockedError(
            "others keep writing the same objects",
            where=self._where(move.name),
            allowed="one tokmill finalize at a time",
            next_step="wait for the other one to end, then run tokmill finalize again",
        )

    def _is_copy(self, found: ObjectInfo, source: ObjectInfo | None, move: CopyTask) -> bool:
        """Whether an object is the copy; of a source that is gone, whatever this run made of it."""
        is_alike = source is None or _digest(source) == _digest(found)
        return found.mark.partition(" ")[0] == self._run and found.size_bytes == move.size_bytes and is_alike

    def _make(self, move: CopyTask, source: ObjectInfo, mark: str) -> None:
        """Make the copy. Raises AlreadyExists, UploadNotFound."""
        if source.size_bytes <= PIECE_BYTES:
            self._retry(move.name, lambda: self._store.copy(source, move.name, mark))
            return
        piece_bytes = part_bytes_of(source.size_bytes, PIECE_BYTES)
        upload = self._retry(move.name, lambda: self._store.create_multipart(move.name, mark))

        def make(number: int, begin: int) -> str:
            if self._closed.is_set():
                raise Closed
            place = begin, min(piece_bytes, source.size_bytes - begin)
            return self._retry(move.name, lambda: self._store.copy_part(source, move.name, upload, number, place))

        made = [self._parts.submit(make, n, begin) for n, begin in enumerate(range(0, source.size_bytes, piece_bytes), 1)]
        try:
            etags = results_of(made)
            self._retry(move.name, lambda: self._store.complete_multipart(move.name, upload, etags, only_new=True))
        except BaseException:
            self._retry(move.name, lambda: self._store.abort_multipart(move.name, upload))
            raise


def _checked(source: ObjectInfo | None, move: CopyTask, where: str) -> ObjectInfo:
    """The object that is to be copied. Raises DamageError when it is not the one that the part sent."""
    if source is None:
        what = "a file of a part is missing"
    elif source.size_bytes != move.size_bytes:
        what = f"a file of a part has {counted(source.size_bytes, 'byte')}"
    elif source.mark.partition(" ")[0] != move.run:
        what = "a file of a part is not the one that was sent"
    else:
        return source
    raise DamageError(
        what,
        where=where,
        allowed=f"{counted(move.size_bytes, 'byte')}, as the part's manifest says",
        next_step=f"make part {move.part} again with --fresh, then run tokmill finalize again",
    )


def _digest(stored: ObjectInfo) -> str:
    return stored.mark.partition(" ")[2]
