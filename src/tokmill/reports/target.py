"""Where the page of a report goes: never over an output, the corpus, or a file that tokmill did not make."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tokmill.core.errors import DiskFullError, StorageError, UsageError
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.core.text import counted
from tokmill.output import why_protected

if TYPE_CHECKING:
    from collections.abc import Sequence

REPORT_NAME = "report.html"
_HEAD = b"<!doctype html>"
_TITLE = b"<title>tokmill: "
_HEAD_BYTES = 256


def check_target(path: Path, *, is_default: bool) -> None:
    """Raises UsageError for a place where no file can be."""
    if path.is_dir() or not (path.parent.is_dir() or is_default):
        what = "the file of the report is a directory" if path.is_dir() else "the directory of the report is not there"
        raise UsageError(
            what,
            where=str(path if path.is_dir() else path.parent),
            allowed="--out FILE, in a directory that exists",
            next_step=f"tokmill report DIR --out {REPORT_NAME}",
        )


def check_free(path: Path, source: Path, inputs: Sequence[str], *, is_default: bool, force: bool) -> Path:
    """The file to write: behind a link that was typed, but not behind one that only lies where the page goes.

    source: the output that the page is about; inputs: its corpus. Raises UsageError for a file that must stay.
    """
    is_link = is_default and path.is_symlink()
    if path.exists() and not path.is_file() and not is_link:
        # A pipe or a device, as it was typed: what it leads to may have no name.
        return path
    target = path if is_link else Path(os.path.realpath(path))
    taken = None if is_link else why_protected(target, [source], inputs)
    if taken:
        raise UsageError(
            f"the report would replace {taken}",
            where=str(target),
            allowed="a file of its own",
            next_step=f"choose another place: tokmill report DIR --out {REPORT_NAME}",
        )
    if not force and (is_link or not _is_replaceable(target)):
        raise UsageError(
            "a symbolic link lies where the report goes" if is_link else "there is a file that is no report of tokmill",
            where=str(target),
            allowed="no file, or an earlier report, which is replaced; with --force, any other file too",
            next_step="choose another --out FILE, or add --force",
        )
    return target


def _is_replaceable(path: Path) -> bool:
    """Whether nothing is lost with this file: it is not there, empty, or a page that was made here."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not head or (head.startswith(_HEAD) and _TITLE in head)


def write_page(path: Path, data: bytes) -> None:
    """A file is replaced whole; what is no file (a pipe, /dev/stdout) is written to. Raises StorageError, DiskFullError."""
    try:
        with storage_errors(path):
            _put(path, data)
    except (StorageError, DiskFullError) as error:
        raise type(error)(
            f"the report could not be written: {error.__cause__.strerror if isinstance(error.__cause__, OSError) else error.what}",
            where=str(path),
            allowed=f"{counted(len(data), 'byte')} where this user may write",
            next_step=f"choose another place: tokmill report DIR --out {REPORT_NAME}",
        ) from error


def _put(path: Path, data: bytes) -> None:
    if not path.exists() or path.is_file():
        durable.write_aside(path, data)
        return
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        durable.write_all(fd, data)
    finally:
        os.close(fd)
