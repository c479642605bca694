"""Paths below a directory that somebody named, through which no link is followed: `TreePath`. All below an output is touched in no
other way.

An output may come from strangers, or lie where others write. A link in it would lead a run that deletes, renames or writes to files
elsewhere. So whatever lies below the directory that was named is opened component by component, each relative to the descriptor of
the one before, and what is a link, or no plain file or directory where one has to be, is an error. The named directory itself may
be a link, as may those above it.

A `TreePath` is no `os.PathLike`: neither `open` nor any function of `os` takes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from functools import total_ordering
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tokmill.core.errors import LinkError
from tokmill.core.system.current import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_PART = re.compile(r"(?:.*/)?(\.tokmill/parts/\d{5,})")
"""The output of a part: what lies above these names was named."""
_PASSED = SYSTEM.passing_flags
_OPENED = os.O_CLOEXEC | os.O_NONBLOCK
"""O_NONBLOCK: a pipe in a file's place must not be waited for."""
_ELSEWHERE = {errno.ELOOP, errno.ENOTDIR}
_NO_FILE = {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV}


def uninterrupted(call: Callable[[], T]) -> T:
    """Return what `call` returns; call it again if a signal interrupts it. Python does so itself for open, read, write, fsync."""
    while True:
        try:
            return call()
        except InterruptedError:
            continue


@total_ordering
class TreePath:
    """A directory that somebody named, or a path below it. Every method raises LinkError, OSError."""

    __slots__ = ("parts", "root")

    def __init__(self, root: Path, parts: tuple[str, ...] = ()) -> None:
        """root: as it was named; links are followed in it. parts: names below it. Raise ValueError for what is no name."""
        if any(part in {"", ".", ".."} or "/" in part or "\0" in part for part in parts):
            raise ValueError(f"no names of files: {parts!r}")
        self.root = root
        self.parts = parts

    def __truediv__(self, names: str) -> TreePath:
        return TreePath(self.root, (*self.parts, *names.split("/")))

    @property
    def name(self) -> str:
        """The last component."""
        return self.parts[-1] if self.parts else self.root.name

    @property
    def parent(self) -> TreePath:
        """The directory that holds it."""
        return TreePath(self.root, self.parts[:-1]) if self.parts else TreePath(self.root.parent)

    def with_name(self, name: str) -> TreePath:
        """Return the path of a neighbour."""
        return self.parent / name

    def __str__(self) -> str:
        return str(self.root.joinpath(*self.parts))

    def __repr__(self) -> str:
        return f"TreePath({str(self.root)!r}, {self.parts!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreePath) and (self.root, self.parts) == (other.root, other.parts)

    def __lt__(self, other: TreePath) -> bool:
        return (self.root, self.parts) < (other.root, other.parts)

    def __hash__(self) -> int:
        return hash((self.root, self.parts))

    def _at(self, call: Callable[[str, int | None], T]) -> T:
        """Return what `call` makes of the last name and the descriptor of its directory; its errors name the whole path."""
        if not self.parts:
            return uninterrupted(lambda: call(str(self.root), None))
        fd = os.open(self.root, _PASSED)
        try:
            for n, part in enumerate(self.parts[:-1], 1):
                fd = self._passed(fd, part, n)
            return uninterrupted(lambda: call(self.parts[-1], fd))
        except OSError as error:
            error.filename = str(self)
            raise
        finally:
            os.close(fd)

    def _passed(self, fd: int, part: str, n: int) -> int:
        """Return the descriptor of the directory `part` in that of `fd`, which is closed."""
        try:
            below = os.open(part, _PASSED | os.O_NOFOLLOW, dir_fd=fd)
        except OSError as error:
            if error.errno in _ELSEWHERE:
                raise _no_directory(TreePath(self.root, self.parts[:n])) from None
            raise
        os.close(fd)
        return below

    def lstat(self) -> os.stat_result:
        """Return what is there; of a link below the root, the link's own."""
        return self._at(lambda name, fd: os.stat(name, dir_fd=fd, follow_symlinks=fd is None))

    def mode(self) -> int:
        """Return what is there, as `stat` says it; 0: nothing is."""
        try:
            return self.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def exists(self) -> bool:
        """Return whether something is there; a link, too, that leads nowhere."""
        return self.mode() != 0

    def is_dir(self) -> bool:
        """Return whether a directory is there; a link to one is none."""
        return stat.S_ISDIR(self.mode())

    def is_file(self) -> bool:
        """Return whether a regular file is there; a link to one is none."""
        return stat.S_ISREG(self.mode())

    def refuse_link(self) -> None:
        """Raise LinkError where a link is there."""
        if stat.S_ISLNK(self.mode()):
            raise _no_directory(self)

    def names(self) -> list[str]:
        """Return the names in a directory, in no order."""
        fd = self._open_directory()
        try:
            return uninterrupted(lambda: os.listdir(fd))
        finally:
            os.close(fd)

    def open(self, flags: int = os.O_RDONLY, *, may_be_linked: bool = False) -> int:
        """Open a regular file; return the descriptor. A file that is opened for writing has no second name, unless `may_be_linked`.

        Raises:
            LinkError: something else is there: a link, a pipe, a directory, or a file with names elsewhere.
        """
        try:
            opened = self._at(lambda name, fd: os.open(name, flags | _OPENED | _not_followed(fd), 0o666, dir_fd=fd))
        except OSError as error:
            if isinstance(error, LinkError) or error.errno not in _NO_FILE:
                raise
            raise _no_file(self, is_link=error.errno == errno.ELOOP) from None
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            os.close(opened)
            raise _no_file(self)
        if flags & os.O_ACCMODE != os.O_RDONLY and found.st_nlink > 1 and not may_be_linked:
            os.close(opened)
            raise _second_name(self)
        return opened

    def create(self) -> int:
        """Make a new file, in the place of any other, and open it for writing; return the descriptor."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            return self.open(flags)
        except FileExistsError:
            # It is not written over: it may be a link, or have another name.
            self.unlink()
            return self.open(flags)

    def read_bytes(self) -> bytes:
        """Return all bytes of a file."""
        with open(self.open(), "rb") as file:
            return file.read()

    def _open_directory(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            return self._at(lambda name, fd: os.open(name, flags | _not_followed(fd), dir_fd=fd))
        except OSError as error:
            if isinstance(error, LinkError) or error.errno not in _ELSEWHERE or not self.parts:
                raise
            raise _no_directory(self) from None

    def sync_directory(self) -> None:
        """Return when the names in a directory are on the disk."""
        fd = self._open_directory()
        try:
            SYSTEM.sync(fd)
        finally:
            os.close(fd)

    def mkdir(self) -> None:
        """Make a directory; one that is there is left."""
        try:
            self._at(lambda name, fd: os.mkdir(name, dir_fd=fd))
        except FileExistsError:
            mode = self.mode()
            if mode and self.parts and not stat.S_ISDIR(mode):
                raise _no_directory(self) from None
            if not stat.S_ISDIR(mode):
                raise

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove a file, or a link itself."""
        with contextlib.suppress(*[FileNotFoundError] if missing_ok else []):
            try:
                self._at(lambda name, fd: os.unlink(name, dir_fd=fd))
            except (IsADirectoryError, PermissionError):
                if self.is_dir():
                    raise _no_file(self) from None
                raise

    def rmdir(self) -> None:
        """Remove an empty directory."""
        self._at(lambda name, fd: os.rmdir(name, dir_fd=fd))

    def remove_tree(self) -> None:
        """Remove what is there and all below it, links themselves. What is missing is no error."""
        if self.is_dir():
            self._at(lambda name, fd: shutil.rmtree(name, dir_fd=fd))
        else:
            self.unlink(missing_ok=True)

    def replace(self, target: TreePath) -> None:
        """Give a file another name, in the place of what has that name."""
        self._at(lambda old, fd: target._at(lambda new, at: os.replace(old, new, src_dir_fd=fd, dst_dir_fd=at)))

    def link(self, target: TreePath) -> None:
        """Give a regular file a second name."""
        mode = self.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise _no_file(self, is_link=stat.S_ISLNK(mode))
        self._at(lambda old, fd: target._at(lambda new, at: os.link(old, new, src_dir_fd=fd, dst_dir_fd=at, follow_symlinks=False)))


Directory: TypeAlias = "Path | TreePath"
"""An output directory, as it was named or below one that was."""


def tree_of(directory: Directory) -> TreePath:
    """Return a directory that somebody named; of the output of a part, what lies above was named."""
    if isinstance(directory, TreePath):
        return directory
    if part := _PART.fullmatch(os.fspath(directory)):
        names = part[1].split("/")
        return TreePath(directory.parents[len(names) - 1], tuple(names))
    return TreePath(directory)


def beside(path: Path) -> TreePath:
    """Return a file whose directory, but not the file itself, may be a link."""
    return TreePath(path.parent, (path.name,))


def _not_followed(fd: int | None) -> int:
    return 0 if fd is None else os.O_NOFOLLOW


def _no_directory(path: TreePath) -> LinkError:
    is_link = stat.S_ISLNK(path.mode())
    return LinkError(
        f"{path.name} is a symbolic link; tokmill follows none below an output" if is_link else f"{path.name} is not a directory",
        where=str(path),
        allowed="a directory of its own",
        next_step="remove it, or choose another --out",
    )


def _no_file(path: TreePath, *, is_link: bool = False) -> LinkError:
    return LinkError(
        f"{path.name} is a symbolic link; tokmill follows none below an output"
        if is_link
        else f"{path.name} is not a regular file",
        where=str(path),
        allowed="a file of its own",
        next_step="remove it, or choose another --out",
    )


def _second_name(path: TreePath) -> LinkError:
    return LinkError(
        f"{path.name} has a second name (a hard link), under which a run would change it, too",
        where=str(path),
        allowed="a file with one name",
        next_step="put a copy of the file in its place, or choose another --out",
    )
