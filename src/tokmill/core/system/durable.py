"""The few system calls that make bytes durable and visible, and the lock of an output directory. Nothing else fsyncs or renames.

Callers wrap them in `storage_errors`, which raises an OSError as StorageError or DiskFullError, with the path and the next step.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING

from tokmill.core.errors import DiskFullError, LinkError, LockedError, StorageError
from tokmill.core.system.current import SYSTEM
from tokmill.core.system.refusals import FULL, full, optional

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokmill.core.system.tree import Directory, TreePath

_NOT_LINKED = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EINVAL}
"""What `link` says where files cannot have several names, or have as many as they can."""
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}
_COPY_BYTES = 4 << 20


@contextlib.contextmanager
def storage_errors(path: Directory) -> Iterator[None]:
    """Raise an OSError of writing `path` as StorageError or DiskFullError."""
    try:
        yield
    except LinkError:
        raise
    except OSError as error:
        where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(path)
        if error.errno in FULL:
            what, next_step = full(error)
            raise DiskFullError(
                what,
                where=where,
                allowed="a disk, a quota and a limit on files that have room for the output",
                next_step=f"{next_step}, then run the same command again",
                resumes=True,
            ) from error
        raise StorageError(
            f"cannot write the output: {error.strerror}",
            where=where,
            allowed="a directory on a sound disk where this user may make and write files",
            next_step="repair the cause, then run the same command again",
            resumes=True,
        ) from error


@contextlib.contextmanager
def reading_errors(path: Directory) -> Iterator[None]:
    """Raise an OSError of reading the state of an output as StorageError."""
    try:
        yield
    except LinkError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot read the output: {error.strerror}",
            where=os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(path),
            allowed="a directory on a sound disk that this user may read",
            next_step="repair the cause, then run the same command again",
            resumes=True,
        ) from error


def create(path: TreePath, *, append: bool = False) -> int:
    """Open a file for writing. append: go on with the one that is there. Return the descriptor."""
    if not append:
        return path.create()
    _part_from_links(path)
    return path.open(os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _part_from_links(path: TreePath) -> None:
    """Put a copy in the place of a file that has other names, as in a backup made with `cp -al`: those keep their bytes."""
    if path.is_file() and path.lstat().st_nlink > 1:
        copy_file(path, path)
        sync_directory(path.parent)


def open_growing(path: TreePath) -> int:
    """Open a file for reading and for writing anywhere, a new one or the one that is there. Return the descriptor."""
    _part_from_links(path)
    return path.open(os.O_RDWR | os.O_CREAT)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`, even if the system takes little at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_at(path: TreePath, data: bytes, offset: int) -> None:
    """Overwrite bytes at `offset` of a file. The caller syncs it."""
    fd = open_again(path)
    try:
        write_all_at(fd, data, offset)
    finally:
        os.close(fd)


def write_all_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset` of an open file, even if the system takes little at a time."""
    view = memoryview(data)
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n


def open_again(path: TreePath) -> int:
    """Open an existing file for writing anywhere. Return the descriptor."""
    return path.open(os.O_WRONLY)


def truncate(path: TreePath, size_bytes: int) -> None:
    """Cut a file. The caller syncs it."""
    _part_from_links(path)
    fd = open_again(path)
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


def reserve(fd: int, n_bytes: int) -> None:
    """Let an open file have so many bytes, zeros where it had none, and room on the disk for all of them. Raises OSError."""
    if SYSTEM.reserve(fd, n_bytes):
        return
    for offset in range(os.fstat(fd).st_size, n_bytes, _COPY_BYTES):
        write_all_at(fd, bytes(min(_COPY_BYTES, n_bytes - offset)), offset)


def copy_range(
    source_fd: int, source_offset: int, target_fd: int, target_offset: int, n_bytes: int, data: memoryview | None = None
) -> None:
    """Copy bytes from one file to another inside the kernel; where the kernel cannot, by reading and writing them.

    Args:
        source_fd: Open for reading.
        source_offset: Where the bytes begin in the source.
        target_fd: Open for writing, not for appending; its position stays.
        target_offset: Where the bytes go in the target.
        n_bytes: How many bytes.
        data: The bytes, if the caller has read them already.

    Raises:
        OSError: EIO, if the source ends too early, among others.
    """
    is_in_kernel, done = True, 0
    while done < n_bytes:
        n = 0
        try:
            if is_in_kernel:
                n = SYSTEM.copy(source_fd, source_offset + done, target_fd, target_offset + done, n_bytes - done)
        except InterruptedError:
            continue
        except OSError:
            # It does not work here, or for these files; a disk that fails says so again below.
            is_in_kernel = False
        if not n:
            size = min(n_bytes - done, _COPY_BYTES)
            block = data[done:] if data is not None else os.pread(source_fd, size, source_offset + done)
            if not block:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            n = os.pwrite(target_fd, block, target_offset + done)
        done += n


def file_system_of(path: Directory) -> os.statvfs_result | None:
    """Return the size of the file system that holds `path`, and what is free of it; None where it does not say."""
    with optional():
        return os.statvfs(str(path))
    return None


def sync_file(fd: int) -> None:
    """Return when the file's bytes are on the disk."""
    SYSTEM.sync(fd)


def sync_directory(path: TreePath) -> None:
    """Return when the names in a directory are on the disk, or at once where a file system has no such call for directories."""
    try:
        path.sync_directory()
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def write_file(path: TreePath, data: bytes) -> None:
    """Write a whole file and make its bytes and its name durable."""
    fd = create(path)
    try:
        write_all(fd, data)
        sync_file(fd)
    finally:
        os.close(fd)
    sync_directory(path.parent)


def aside(path: TreePath) -> TreePath:
    """Return where the next version of a file is written before it replaces the file."""
    return path.with_name(f"{path.name}.new")


def write_aside(path: TreePath, data: bytes) -> None:
    """Replace a file by a whole new one that is not durable: it may be lost. Raise OSError."""
    fd = create(aside(path))
    try:
        write_all(fd, data)
    finally:
        os.close(fd)
    aside(path).replace(path)


def make_directory(path: TreePath) -> None:
    """Make a directory and its parents, and their names durable."""
    if path.is_dir():
        return
    if path.parts or path.root != path.root.parent:
        make_directory(path.parent)
    path.mkdir()
    sync_directory(path.parent)


def replace(source: TreePath, target: TreePath) -> None:
    """Give a durable file its final name. The caller syncs the directory."""
    source.replace(target)


def replace_file(path: TreePath, data: bytes) -> None:
    """Replace a file, or make a new one, durably and in one step; its directory is made. Raise OSError."""
    make_directory(path.parent)
    write_file(aside(path), data)
    replace(aside(path), path)
    sync_directory(path.parent)


def publish_new(source: TreePath, target: TreePath) -> None:
    """Give a durable file its final name, unless that name is taken; `source` is gone in either case."""
    try:
        source.link(target)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NOT_LINKED:
            raise
        # Without hard links, two files published in the same instant are told apart when the parts are finalized.
        if not target.exists():
            replace(source, target)
            sync_directory(target.parent)
            return
    source.unlink()
    sync_directory(target.parent)


def link(source: TreePath, target: TreePath) -> None:
    """Give a durable file a second name, or make a copy where files have only one. The caller syncs the directory."""
    try:
        source.link(target)
    except OSError as error:
        if error.errno not in _NOT_LINKED:
            raise
        copy_file(source, target)


def copy_file(source: TreePath, target: TreePath) -> None:
    """Copy a file. The target has its name only when it is whole and durable; the caller syncs the directory."""
    unnamed = aside(target)
    fd = source.open()
    try:
        copy = create(unnamed)
        try:
            copy_range(fd, 0, copy, 0, os.fstat(fd).st_size)
            sync_file(copy)
        finally:
            os.close(copy)
    finally:
        os.close(fd)
    replace(unnamed, target)


_ATTEMPTS = 100
"""Times that a lock may vanish while it is taken before something else must be wrong."""
_PATIENCE_S = 10.0
"""Longest wait for a lock whose holder is dead: the kernel ends the processes that share it, when a write that hangs is over."""
_LOOK_S = 0.005
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""What `flock` says where the file system does not have it."""


class DirectoryLock:
    """An exclusive lock on a file that ends with its process.

    The file holds a mark of the process that has the lock. Others may share it (`fd`): then it is free when the last of them
    has ended. Where `flock` does not work, the lock is that the file `held` is there: it gets that name with its mark in it,
    and is given up when its mark is of a process that could be seen here and is not there any more. Whoever holds a lock asks
    `check` before it commits or publishes: a lock that was moved away, or a file system that gives one lock to two, stops one
    of the two.
    """

    def __init__(self, path: TreePath) -> None:
        """Take the lock. Raise LockedError if another process holds it."""
        self.path = path
        self._token = os.urandom(8).hex()
        self._mark = f"{_mark()} {self._token}\n".encode()
        self._fd = -1
        for attempts_left in reversed(range(_ATTEMPTS)):
            with storage_errors(path):
                try:
                    make_directory(path.parent)
                    self._fd = self._try_lock()
                except (FileNotFoundError, FileExistsError):
                    # The previous holder is removing its directory at this moment.
                    if not attempts_left:
                        raise
            if self._fd >= 0:
                return

    def check(self) -> None:
        """Raise LockedError if this is no longer the lock of the directory: another run may work there."""
        if self.is_held:
            return
        raise LockedError(
            "the state directory of this run was moved or removed, or another run has begun in its place",
            where=str(self.path.parent),
            allowed="a state directory that stays where it is while a run goes on, and one run at a time",
            next_step="nothing was published by this run; put it back if it was moved, and run the same command again",
        )

    @property
    def fd(self) -> int | None:
        """The descriptor that other processes hold the lock with; None where it is not the kernel's."""
        return self._fd if self._fd >= 0 and self.path.name != _HELD else None

    @property
    def is_held(self) -> bool:
        """Whether this is the lock of the directory. Raises StorageError."""
        with storage_errors(self.path):
            return self._fd >= 0 and _is_at(self.path, self._fd) and os.pread(self._fd, len(self._mark) + 1, 0) == self._mark

    def _try_lock(self) -> int:
        """Return the locked descriptor, or -1 if the previous holder removed the file in between."""
        if self.path.name == _HELD:
            return self._try_create()
        fd = self.path.open(os.O_RDWR | os.O_CREAT, may_be_linked=True)
        try:
            _flock(fd)
        except BlockingIOError:
            mark = os.pread(fd, _MARK_BYTES, 0)
            os.close(fd)
            raise self._locked(mark) from None
        except OSError as error:
            os.close(fd)
            if error.errno not in _NO_FLOCK:
                raise StorageError(
                    f"the file system cannot lock a file, so two runs could write to one output: {error.strerror}",
                    where=str(self.path.parent.parent),
                    allowed="a file system with flock; over NFS, with its lock service",
                    next_step="make the output on another file system, or let this one have locks, then run the same command again",
                ) from error
            self.path.unlink(missing_ok=True)
            self.path = self.path.with_name(_HELD)
            return self._try_create()
        if _is_at(self.path, fd) and not self._is_parted_from_links(fd):
            return self._marked(fd)
        os.close(fd)
        return -1

    def _is_parted_from_links(self, fd: int) -> bool:
        """Remove the name of a file that has others, as in a backup made with `cp -al`. Return whether it had."""
        has_others = os.fstat(fd).st_nlink > 1
        if has_others:
            self.path.unlink()
        return has_others

    def _try_create(self) -> int:
        """Return the descriptor of the file whose existence is the lock. Raises FileExistsError if somebody else was quicker."""
        new = self.path.with_name(f"{_HELD}.{self._token}")
        self._put_aside_dead(new)
        fd = self._marked(new.open(os.O_RDWR | os.O_CREAT | os.O_EXCL))
        try:
            sync_file(fd)
            try:
                new.link(self.path)
            except OSError as error:
                if error.errno not in _NOT_LINKED:
                    raise
                # Without hard links the name is taken first, and is without a mark for an instant.
                os.close(self.path.open(os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                replace(new, self.path)
        except OSError:
            os.close(fd)
            new.unlink(missing_ok=True)
            raise
        for name in self.path.parent.names():
            if name.startswith(f"{_HELD}."):
                # Of one that died here, or that has to try again.
                self.path.with_name(name).unlink(missing_ok=True)
        return fd

    def _put_aside_dead(self, aside: TreePath) -> None:
        """Rename the file of a holder that has ended to `aside`, and remove it there. Raise LockedError if it may go on."""
        if not self.path.exists():
            return
        fd = self.path.open()
        try:
            mark = os.read(fd, _MARK_BYTES)
            if not _is_dead(mark):
                raise self._locked(mark)
            self.path.replace(aside)
            if not _is_at(aside, fd):
                # The mark of somebody who did the same and was quicker. If a third one is there by now, that one goes on.
                publish_new(aside, self.path)
        finally:
            os.close(fd)
        aside.unlink(missing_ok=True)

    def _marked(self, fd: int) -> int:
        """Write the mark into a file; return its descriptor."""
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, self._mark, 0)
        except OSError as error:
            if error.errno not in FULL or self.path.name == _HELD:
                os.close(fd)
                raise
            # What fills the disk may be what --fresh removes; the kernel's lock needs no mark.
            self._mark = b""
        return fd

    def _locked(self, mark: bytes) -> LockedError:
        pid, node, *_ = [*mark.decode("ascii", "replace").split(), "", ""]
        holder = f" (process {pid} on {node})" if pid.isdigit() and node else ""
        removed = f"; if that run is dead, remove {self.path}" if self.path.name == _HELD else ""
        return LockedError(
            f"another run is writing to this output directory{holder}",
            where=str(self.path.parent.parent),
            allowed="one run at a time" + (", which cannot always be seen here: this file system has no locks" if removed else ""),
            next_step="wait for it to end, or choose another --out" + removed,
        )

    def release(self, *, remove: bool = False) -> None:
        """Release the lock. remove: delete its file first, while the lock is held."""
        if self._fd < 0:
            return
        try:
            if remove:
                # A disk that turned read-only keeps the file; the descriptor is the lock. And it may be another run's by now.
                with contextlib.suppress(OSError, StorageError):
                    if self.is_held:
                        self.path.unlink()
        finally:
            os.close(self._fd)
            self._fd = -1


_HELD = "held"
_MARK_BYTES = 256
_UNKNOWN = "-"


def _flock(fd: int) -> None:
    """Lock a file; wait a moment if the process whose mark it has is dead: those that share its lock soon are. Raise OSError."""
    give_up_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not _is_dead(os.pread(fd, _MARK_BYTES, 0)) or time.monotonic() >= give_up_s:
                raise
        time.sleep(_LOOK_S)


def _is_at(path: TreePath, fd: int) -> bool:
    """Return whether `path` is the file that is open."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except (FileNotFoundError, NotADirectoryError, LinkError):
        return False


def _mark() -> str:
    """Return what tells this process from every other: its id, its machine, that one's start, its namespace, and its own start."""
    boot, namespace = SYSTEM.place() or (_UNKNOWN, _UNKNOWN)
    node = "".join(os.uname().nodename.split())[:64] or _UNKNOWN
    return f"{os.getpid()} {node} {boot} {namespace} {SYSTEM.start_of(os.getpid()) or _UNKNOWN}"


def _is_dead(mark: bytes) -> bool:
    """Return whether a mark is surely that of a process that has ended. Of another machine, start or namespace nothing is sure."""
    try:
        pid, _, *place, began, _ = mark.decode("ascii").split()
        _, _, *here, _ = _mark().split()
        if place != here or _UNKNOWN in here:
            return False
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    except ValueError:
        return False
    return _UNKNOWN not in (began, now := SYSTEM.start_of(int(pid)) or _UNKNOWN) and began != now
