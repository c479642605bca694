"""The output directory of a run: commit, publish, recover.

During a run everything lies in `.tokmill/` inside the output directory: `journal` (a header, then a line a commit), `NAME.part`
for every growing file, and `lock`. A commit first makes the files durable and then appends a line to the journal, so the journal
never mentions bytes that could be lost. Publishing writes the manifest beside the files, renames every file to its final name, and
renames the manifest last. A run that finds a written manifest in `.tokmill/` only repeats the renames. Files that an append
replaces stay readable until then (`output/superseded.py`).

A segment is what consecutive commits added: commits join it until it is large enough. So a source that gives little a second, for
weeks, makes no more segments than one that is read at once, and memory, journal and manifest stay small.

A failed fsync is never tried again: the kernel may have dropped the pages, and a second call would report a success that is none.
The run stops, and the next one truncates to the last line of the journal and makes those bytes again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Protocol

import msgspec
import xxhash

from tokmill.core.config import is_of_corpus
from tokmill.core.errors import DamageError, StorageError, TokmillError, UsageError
from tokmill.core.manifest import (
    MANIFEST_NAME,
    SKIPPED_NAME,
    FileSpan,
    Manifest,
    Segment,
    decode_manifest,
    encode_manifest,
    listed_files,
    load_manifest,
    read_state,
    refuse_foreign,
)
from tokmill.core.partition import Part
from tokmill.core.records import Counts, Cursor, FileEntry, FileHeader
from tokmill.core.spans import PiecewiseHash
from tokmill.core.system import durable, page_cache
from tokmill.core.system.durable import storage_errors
from tokmill.core.system.refusals import in_thread
from tokmill.core.system.tree import tree_of
from tokmill.core.text import counted, quoted
from tokmill.formats import is_written
from tokmill.output.config_diff import changed_error, is_made_of, is_only_more_lenient
from tokmill.output.journal import Commit, Header, Journal
from tokmill.output.state_dir import (
    acquire_lock,
    check_size,
    discard_sent,
    growing_files,
    growing_path,
    is_begun,
    is_sent,
    missing_directories,
    parts_error,
    plan_of,
    refuse_linked_sides,
    refuse_strangers,
    release_lock,
    remove_empty,
    remove_scratch,
    size_of,
    state_of,
)
from tokmill.output.superseded import (
    discard_unfinished,
    is_append_to,
    keep_superseded,
    remove_files,
    remove_state,
    sync_directories,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from typing_extensions import Buffer

    from tokmill.core.config import Content
    from tokmill.core.system.durable import DirectoryLock
    from tokmill.core.system.tree import Directory, TreePath

_MOST_OPEN = 64
"""Complete files that wait for a commit with their descriptors open: so many again may be under commit, of 256 on some systems."""
SEGMENT_BYTES = 64 << 20
"""A segment has at least so many bytes of input or output."""
_SHARE = 1024
"""Nor is it smaller than this share of all before it: a run of any length has some thousands of segments."""


class Output:
    """The output of one run, with the lock of its directory. Implements `protocols.OutputFiles`. Close it."""

    def __init__(
        self,
        directory: TreePath,
        lock: DirectoryLock,
        journal: Journal,
        segment_bytes: int = SEGMENT_BYTES,
        new_directories: Sequence[TreePath] = (),
    ) -> None:
        """new_directories: those that were made for it, the deepest first."""
        self.directory = directory
        self._new_directories = new_directories
        self.lock = lock
        """Of the directory."""
        self._journal = journal
        self.segments = journal.segments
        """All segments committed so far, those of earlier runs included; the last one may grow."""
        self.elapsed_before_s = journal.elapsed_s
        """Time that earlier runs put into the committed segments."""
        self._files: dict[str, GrowingFile] = {}
        self._lengths = _lengths(journal.segments)
        self._named = set(self._lengths)
        self._segment = _SegmentSize(segment_bytes, journal.header.content, self.counts.bytes_in, sum(self._lengths.values()))
        self._completed = {name: entry for segment in journal.segments for name, entry in segment.completed.items()}
        self._just_completed: list[str] = []
        self._pending: Future[None] | None = None
        self._failure: BaseException | None = None
        self._is_published = False
        self.elsewhere: Elsewhere | None = None
        """Writes what other processes hold."""
        self.stage_bytes = 0
        """Most bytes of complete files that may wait here for a store; 0: they do not leave before all are complete."""

    @property
    def cursor(self) -> Cursor:
        """The place in the corpus where the run continues."""
        return self.segments[-1].after if self.segments else Cursor()

    @property
    def counts(self) -> Counts:
        """Counts up to the cursor."""
        return self.segments[-1].counts if self.segments else Counts()

    @property
    def names(self) -> set[str]:
        """Names of all files so far."""
        return {*self._files, *self._lengths}

    @property
    def is_ahead(self) -> bool:
        """Whether something was appended since the last commit."""
        return any(file.is_ahead for file in self._files.values())

    def file(self, name: str, header_bytes: int = 0) -> GrowingFile:
        """Return the file that will be published as `name`, with its length at the last commit."""
        if name not in self._files:
            path, length = growing_path(self.directory, name), self._lengths.get(name, 0)
            self._files[name] = GrowingFile(path, length, header_bytes, self.elsewhere)
        return self._files[name]

    def complete(self, name: str, *, side: str | None = None, tokens: int = 0, documents: int = 0, header: bytes = b"") -> None:
        """Mark a file as complete. header: fills the bytes that were kept free for it."""
        file = self._files[name]
        if len(header) != file.header_bytes:
            raise AssertionError(f"{name}: a header of {len(header)} bytes where {file.header_bytes} were kept free")
        filled = FileHeader(size_bytes=len(header), digest=xxhash.xxh3_128_hexdigest(header)) if header else msgspec.UNSET
        if header:
            file.fill_header(header)
        self._completed[name] = FileEntry(size_bytes=file.length, side=side, tokens=tokens, documents=documents, header=filled)
        self._just_completed.append(name)
        if len(self._just_completed) > _MOST_OPEN:
            # A batch may fill thousands of shards, and no commit comes before its end.
            file.end()

    def completed(self) -> Mapping[str, FileEntry]:
        """Return all complete files by name, those of earlier runs included."""
        return self._completed

    def committed(self) -> Iterator[str]:
        """Return the names of files that the journal says are complete, the latest first. Call it when no commit is under way."""
        uncommitted = set(self._just_completed)
        return (name for name in reversed(self._completed) if name not in uncommitted)

    def commit(
        self, after: Cursor, counts: Counts, writer: dict[str, int], elapsed_s: float, on_done: Callable[[int], None] | None = None
    ) -> None:
        """Commit what was appended, in the background, after the commit before. Raises that one's StorageError or DiskFullError.

        on_done is called in the background with the number of segments when they are on the disk.
        """
        self.settle()
        finished = self._just_completed
        touched = [(file, file.length) for name, file in self._files.items() if file.is_ahead or name in finished]
        spans = {name: span for name, file in self._files.items() if (span := file.span())}
        self._segment.add(counts.bytes_in, sum(span.end - self._lengths.get(name, 0) for name, span in spans.items()))
        self._lengths.update((name, span.end) for name, span in spans.items())
        entries = {name: self._completed[name] for name in finished}
        segment = Segment(after=after, files=spans, counts=counts, writer=writer, completed=entries)
        commit = Commit(segment=segment, elapsed_s=elapsed_s, joins=self._segment.is_open)
        done = [self._files.pop(name) for name in finished]
        self._just_completed = []
        self._segment.is_open = not self._segment.is_full
        if self._segment.is_full:
            self._segment.cut()
            for file in self._files.values():
                file.begin_span()
        self._pending = in_thread(self._commit, commit, touched, done, on_done, name="commit")

    @property
    def staged_bytes(self) -> int:
        """Bytes of the growing files of the run that are still here, with those that are being written."""
        here = sum(max(0, size_of(path)) for path in growing_files(self.directory))
        return here + sum(max(0, file.length - size_of(file.path)) for file in self._files.values())

    @property
    def is_leaving(self) -> bool:
        """Whether a file is still here that the journal says is complete, so that it can be sent away."""
        here = set(growing_files(self.directory))
        return any(growing_path(self.directory, name) in here for name in self.committed())

    @property
    def is_settled(self) -> bool:
        """Whether no commit is under way."""
        return self._pending is None or self._pending.done()

    def settle(self) -> None:
        """Wait for the commit under way and raise its error; after an error, raise it for ever."""
        if self._pending is not None:
            self._failure = self._pending.exception()
            self._pending = None
        if self._failure is not None:
            raise self._failure

    def _commit(
        self,
        commit: Commit,
        touched: list[tuple[GrowingFile, int]],
        done: list[GrowingFile],
        on_done: Callable[[int], None] | None,
    ) -> None:
        self.lock.check()
        named = {*commit.segment.files, *commit.segment.completed}
        if not named <= self._named:
            # The journal must not mention a file whose name the disk does not have yet.
            with storage_errors(self.directory):
                durable.sync_directory(state_of(self.directory))
            self._named.update(named)
        try:
            for file, length in touched:
                file.sync(length)
        finally:
            # Here, because there may be thousands of them.
            for file in done:
                file.close()
        # The journal must not be written again where another run works.
        self.lock.check()
        with storage_errors(self._journal.path):
            self._journal.append(commit)
        if on_done:
            on_done(len(self.segments))

    def publish(self, manifest: Manifest) -> None:
        """Give every file its name, the manifest last; then drop the journal."""
        self.settle()
        for file in self._files.values():
            file.sync(file.length)
            file.close()
        self.lock.check()
        written = growing_path(self.directory, MANIFEST_NAME)
        with storage_errors(written):
            durable.write_file(written, encode_manifest(manifest, str(self.directory)))
        publish_files(self.directory, manifest)
        self._is_published = True
        self._journal.close()
        remove_state(self.directory, self.lock)

    def close(self) -> None:
        """Release the directory; what was committed stays, and where nothing was, nothing stays."""
        if self._pending is not None:
            from concurrent.futures import wait

            wait((self._pending,))
        for file in self._files.values():
            file.close()
        self._journal.close()
        # The list of skipped records is what the error speaks of.
        if not self._is_published and not self.segments and size_of(growing_path(self.directory, SKIPPED_NAME)) <= 0:
            with contextlib.suppress(OSError, TokmillError):
                # Otherwise it may be another run's by now.
                if self.lock.is_held:
                    discard_unfinished(self.directory)
        release_lock(self.directory, self.lock)
        if not self.segments:
            remove_empty(self._new_directories)


class _SegmentSize:
    """How large the open segment is, and whether it ends with the next commit."""

    def __init__(self, least_bytes: int, content: Content, n_read: int, n_written: int) -> None:
        self.is_open = False
        """Whether the next commit joins the last segment. A run cannot know the digests so far of what another one began."""
        self._least_bytes = least_bytes
        # A part is cut as the whole would be, if all parts were alike.
        self._n_parts = content.part.count if isinstance(content.part, Part) else 1
        self._now = self._begin = (n_read, n_written)

    def add(self, n_read: int, n_more_written: int) -> None:
        """Note a commit: input that was read so far, and bytes that it wrote."""
        self._now = (n_read, self._now[1] + n_more_written)

    @property
    def is_full(self) -> bool:
        """Whether the segment is large enough."""
        least = max(self._least_bytes, max(self._begin) * self._n_parts // _SHARE)
        return max(now - begin for now, begin in zip(self._now, self._begin, strict=True)) >= least

    def cut(self) -> None:
        """Begin the next segment."""
        self._begin = self._now


def open_output(
    directory: Directory,
    content: Content,
    version: str,
    *,
    fresh: bool,
    replacing: str | None = None,
    segment_bytes: int = SEGMENT_BYTES,
    can_append: bool = False,
) -> Output | Manifest:
    """Lock and open an output directory: a new one, one to resume, or (its manifest is returned) a complete one.

    replacing: fingerprint of a complete output that stands there until this one takes its place.
    can_append: whether the command has `--append`, for messages.

    Raises LockedError, ChangedError, DamageError, StorageError, DiskFullError; UsageError for files that tokmill did not make.
    """
    new_directories = missing_directories(directory)
    lock = None
    try:
        tree = tree_of(directory)
        try:
            lock = acquire_lock(directory)
        except StorageError as error:
            # Nobody who may not write there works there.
            denied = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EACCES, errno.EROFS)
            complete = _complete(tree, content, replacing, can_append=can_append) if denied and not fresh else None
            if complete is None:
                raise
            return complete
        found = _open_locked(tree, content, version, lock, fresh=fresh, replacing=replacing, can_append=can_append)
        return found if isinstance(found, Manifest) else Output(tree, lock, found, segment_bytes, new_directories)
    except BaseException as error:
        if lock is not None:
            release_lock(directory, lock)
        remove_empty(new_directories)
        if isinstance(error, TokmillError):
            with contextlib.suppress(OSError, TokmillError):
                error.resumes &= (state_of(directory) / "journal").exists()
        raise


def _open_locked(
    directory: TreePath,
    content: Content,
    version: str,
    lock: DirectoryLock,
    *,
    fresh: bool,
    replacing: str | None,
    can_append: bool,
) -> Journal | Manifest:
    journal_path = state_of(directory) / "journal"
    if plan_of(directory).exists():
        state = str(state_of(directory))
        raise parts_error("in this directory", state, f"give it up: remove {state}")
    refuse_linked_sides(directory)
    _refuse_foreign(directory)
    if fresh:
        with storage_errors(directory):
            discard_unfinished(directory)
            discard_sent(directory)
    complete = (
        None if fresh else _finish_publishing(directory, content) or _complete(directory, content, replacing, can_append=can_append)
    )
    if complete:
        remove_state(directory, lock)
        return complete
    with storage_errors(journal_path):
        journal = Journal.open(journal_path, Header.of(content, version))
    try:
        begun = journal.header.fingerprint
        if begun != content.fingerprint() and (not journal.segments or begun == replacing):
            # Nothing was committed yet, or all of it is complete and only the clean-up is missing: nothing is lost.
            journal.close()
            with storage_errors(directory):
                discard_unfinished(directory)
                journal = Journal.open(journal_path, Header.of(content, version))
        if journal.header.fingerprint != content.fingerprint() and is_only_more_lenient(journal.header.content, content):
            with storage_errors(journal_path):
                journal.write_again(Header.of(content, version))
        if journal.header.fingerprint != content.fingerprint():
            raise changed_error(journal.header.content, content, directory)
        _check_files(directory, journal.segments)
        if not fresh and not journal.segments:
            refuse_strangers(directory, content.format)
    except BaseException:
        journal.close()
        if not journal.segments:
            with contextlib.suppress(OSError):
                journal_path.unlink()
        raise
    return journal


def _complete(directory: TreePath, content: Content, replacing: str | None, *, can_append: bool) -> Manifest | None:
    """Return the manifest of a complete directory with this content; None where there is none, or one that is to be replaced.

    Raises ChangedError for another content.
    """
    is_left = is_begun(directory)
    if not (directory / MANIFEST_NAME).exists() or (is_left and growing_files(directory)):
        return None
    with storage_errors(directory):
        manifest = load_manifest(directory)
    if manifest.fingerprint == replacing:
        return None
    sizes = {name: entry.size_bytes for name, entry in manifest.files.items()}
    bad = [name for name, n in sizes.items() if size_of(directory / name) != n and not is_sent(directory, name)]
    if is_left:
        # If all are there or sent, the run that left the journal was killed behind the last rename.
        return None if bad or not is_made_of(manifest, content) else manifest
    if not is_made_of(manifest, content):
        raise changed_error(manifest.content, content, directory, can_append=can_append)
    repair = f"tokmill verify {quoted(str(directory))} --repair; or " if is_of_corpus(content) and not content.part else ""
    next_step = f"{repair}run the same command with --fresh to make all of it again"
    for name in bad:
        check_size(directory / name, sizes[name], "a file of the complete output", next_step)
    return manifest


def _finish_publishing(directory: TreePath, content: Content) -> Manifest | None:
    """Repeat the renames of a run that was killed while publishing. Returns its manifest, or None if no run was."""
    written = growing_path(directory, MANIFEST_NAME)
    with storage_errors(written):
        if not written.exists():
            return None
        data = read_state(written)
    try:
        manifest = decode_manifest(data, str(written))
    except DamageError:
        # Killed while the manifest itself was written: it can be made again from the journal.
        with storage_errors(written):
            written.unlink()
        return None
    if manifest.fingerprint != content.fingerprint():
        raise changed_error(manifest.content, content, directory)
    publish_files(directory, manifest)
    return manifest


def give_name(directory: TreePath, name: str, size_bytes: int) -> None:
    """Rename a growing file, unless that was done, or the file was sent to a store. Raises OSError, DamageError."""
    growing = growing_path(directory, name)
    try:
        check_size(growing if growing.exists() else directory / name, size_bytes, "a file of the finished run")
        if growing.exists():
            durable.replace(growing, directory / name)
    except (DamageError, FileNotFoundError):
        # It may be sent and removed here between two checks.
        if not is_sent(directory, name):
            raise


def publish_files(directory: TreePath, manifest: Manifest, give_name: Callable[[TreePath, str, int], None] = give_name) -> None:
    """Rename the files of a manifest, which is written already, into place, its own file last. Can be repeated after a crash.

    give_name: renames one file, unless that was done: directory, name, bytes. Raises StorageError, DamageError.
    """
    with storage_errors(directory):
        _make_way(directory, manifest)
        for sub in sorted({(directory / name).parent for name in manifest.files}):
            durable.make_directory(sub)
        for name, entry in manifest.files.items():
            give_name(directory, name, entry.size_bytes)
        remove_scratch(directory)
        sync_directories(directory, manifest.files)
        durable.replace(growing_path(directory, MANIFEST_NAME), directory / MANIFEST_NAME)
        durable.sync_directory(directory)
        durable.sync_directory(directory.parent)


def _refuse_foreign(directory: TreePath) -> None:
    """Raise UsageError for a file in the manifest's place that is none of tokmill, DamageError for a link or too large a file."""
    path = directory / MANIFEST_NAME
    with storage_errors(path), contextlib.suppress(FileNotFoundError):
        refuse_foreign(read_state(path), str(path))


def _make_way(directory: TreePath, manifest: Manifest) -> None:
    """Make sure that an earlier complete output is never half replaced under its manifest.

    An output that the new one was appended to keeps its files, under second names, and its manifest until the new one is in place.
    Any other is removed, its manifest first.
    """
    path = directory / MANIFEST_NAME
    if not path.exists():
        return
    _refuse_foreign(directory)
    try:
        older = load_manifest(directory)
    except (DamageError, UsageError):
        older = None
    is_superseded = older is not None and is_append_to(older, manifest)
    if older and is_superseded:
        keep_superseded(directory, older)
    # Also those of one that cannot be used: a trainer would read them with the new ones. But that may list anybody's files.
    names = older.files if older else filter(is_written, listed_files(directory))
    remove_files(directory, set(names) - set(manifest.files))
    if not is_superseded:
        path.unlink()
    durable.sync_directory(directory)


def _check_files(directory: TreePath, segments: list[Segment]) -> None:
    """Raise DamageError when a growing file lacks bytes that the journal says were made durable."""
    wanted = {name: entry.size_bytes for segment in segments for name, entry in segment.completed.items()}
    for name, length in (wanted | _lengths(segments)).items():
        path = growing_path(directory, name)
        size = size_of(path)
        if size < length and not is_sent(directory, name):
            raise DamageError(
                "a file of the run to be resumed is missing" if size < 0 else "a file of the run to be resumed was cut short",
                where=str(path),
                allowed=f"at least {counted(length, 'byte')}, as committed; it has {max(size, 0):,}",
                next_step="run the same command with --fresh to start over",
            )


def _lengths(segments: list[Segment]) -> dict[str, int]:
    """Return the committed length of every file, in bytes."""
    return {name: span.end for segment in segments for name, span in segment.files.items()}


class WrittenPiece(Protocol):
    """Bytes of one file that another process writes and hashes."""

    n_bytes: int
    digest: bytes
    """xxh3_128; set when they are written."""


class _OwnPiece:
    """Implements WrittenPiece: bytes that this process writes behind pieces that are not yet written."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._hash = xxhash.xxh3_128()

    @property
    def digest(self) -> bytes:
        return self._hash.digest()

    def update(self, view: memoryview) -> None:
        self.n_bytes += len(view)
        self._hash.update(view)


class Elsewhere(Protocol):
    """Lets other processes write what they hold in memory that they share with this one."""

    def takes(self, view: memoryview) -> bool:
        """Return whether these bytes are such."""

    def write(self, file: GrowingFile, view: memoryview, offset: int) -> WrittenPiece:
        """Have them written at `offset`; return the piece that they belong to, which may be that of the call before."""

    def wait(self) -> None:
        """Return when all is written. Raises StorageError, DiskFullError."""

    def close_file(self, file: GrowingFile) -> None:
        """Nothing more is written to the file, and all is. From any thread."""


class GrowingFile:
    """A file of the output that grows. Implements `protocols.OutputFile`."""

    def __init__(self, path: TreePath, length: int, header_bytes: int = 0, elsewhere: Elsewhere | None = None) -> None:
        """length: what was committed, the header included. elsewhere: writes what other processes hold; None: nothing is."""
        self.path = path
        self.length = max(length, header_bytes)
        self.header_bytes = header_bytes
        self._elsewhere = elsewhere
        self._hash = PiecewiseHash()
        self._pieces: list[WrittenPiece | _OwnPiece] = []
        """Written elsewhere, or here behind such pieces; in order, and not yet in the hash."""
        self._committed = self.length
        self._synced = -1
        with storage_errors(path):
            self.fd = durable.open_growing(path)
            os.ftruncate(self.fd, self.length)

    def append(self, data: Buffer) -> None:
        """Append all of a C-contiguous buffer."""
        view = memoryview(data).cast("B")
        if self._elsewhere is not None and self._elsewhere.takes(view):
            piece = self._elsewhere.write(self, view, self.length)
            if not self._pieces or self._pieces[-1] is not piece:
                self._pieces.append(piece)
            self.length += len(view)
            return
        if not self._pieces:
            self._hash.update(view)
        elif view:
            # Others may still write what comes before it.
            last = self._pieces[-1]
            if not isinstance(last, _OwnPiece):
                last = _OwnPiece()
                self._pieces.append(last)
            last.update(view)
        with storage_errors(self.path):
            durable.write_all_at(self.fd, view, self.length)
        self.length += len(view)

    def append_from(self, fd: int, offset: int, data: memoryview) -> None:
        """Append `data`, which was just read from the file `fd` at `offset`, by copying it from there inside the kernel."""
        self._hash.update(data)
        with storage_errors(self.path):
            durable.copy_range(fd, offset, self.fd, self.length, len(data), data)
        self.length += len(data)

    def read(self, begin: int, n_bytes: int) -> bytes:
        """Bytes that were appended before, fewer only at the end."""
        self._take_pieces()
        with storage_errors(self.path):
            return os.pread(self.fd, n_bytes, begin)

    def _take_pieces(self) -> None:
        """Wait until what others write of this file is written, and take its digests."""
        if self._pieces and self._elsewhere is not None:
            self._elsewhere.wait()
        for piece in self._pieces:
            self._hash.add_piece(piece.n_bytes, piece.digest)
        self._pieces.clear()

    def fill_header(self, header: bytes) -> None:
        """Write what was kept free for it."""
        with storage_errors(self.path):
            durable.write_at(self.path, header, 0)

    @property
    def is_ahead(self) -> bool:
        """Whether something was appended since the last commit."""
        return self.length != self._committed

    def span(self) -> FileSpan | None:
        """Return the bytes since `begin_span`, to be committed; None if nothing was appended since the last call."""
        if not self.is_ahead:
            return None
        self._take_pieces()
        self._committed = self.length
        digest, pieces = self._hash.result()
        return FileSpan(end=self.length, digest=digest, pieces=pieces)

    def begin_span(self) -> None:
        """Begin a span: the next segment begins, and all that was appended is in the one before."""
        self._hash = PiecewiseHash()

    def sync(self, expected: int) -> None:
        """Make at least the first `expected` bytes durable. Raises StorageError when the file is shorter than that."""
        if self._synced >= expected:
            return
        with storage_errors(self.path):
            durable.sync_file(self.fd)
            size = os.fstat(self.fd).st_size
        page_cache.drop(self.fd, 0, expected)
        if size < expected:
            raise StorageError(
                f"the disk took {expected:,} bytes but the file has only {size:,}",
                where=str(self.path),
                allowed="a disk that keeps what it took",
                next_step="check the disk, then run the same command again",
                resumes=True,
            )

    def end(self) -> None:
        """Nothing more is appended: make it durable and close it; its span can still be cut. Raises StorageError."""
        self._take_pieces()
        self.sync(self.length)
        self._synced = self.length
        self.close()

    def close(self) -> None:
        """Close the descriptor; the file stays."""
        if self.fd >= 0:
            if self._elsewhere is not None:
                self._elsewhere.close_file(self)
            os.close(self.fd)
        self.fd = -1
