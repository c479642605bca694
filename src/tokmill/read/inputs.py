"""Finds the inputs: files, directories, patterns, URLs, pipes and standard input become records, in an order that never varies.

Directories are read with `os.scandir` and sorted once, by the bytes of the path: no locale, no order of the file system. What a
person named always counts; what a directory merely contains counts when its suffix is known (or `--glob` matches it), and what is
passed over is counted, so that the run can say so.
"""

from __future__ import annotations

import errno
import glob as globbing
import os
import re
import stat
from dataclasses import dataclass
from fnmatch import translate
from typing import TYPE_CHECKING, Any, cast

from tokmill.core.errors import DamagedInputError, UsageError
from tokmill.core.records import STDIN, WITH_FOOTER, Compression, Input, InputFormat, is_url, path_to_text
from tokmill.core.text import counted
from tokmill.read.own_outputs import OwnFiles
from tokmill.store import path_of, redacted, register_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokmill.store import ObjectInfo

_STDIN_NAMES = {STDIN, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2", ".lz4": "lz4"}
_SHORT = {".tgz": ".tar.gz", ".tzst": ".tar.zst", ".txz": ".tar.xz", ".tbz2": ".tar.bz2"}
_SUFFIXES: dict[InputFormat, tuple[str, ...]] = {
    "text": (".txt", ".text", ".md"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".arrows", ".feather"),
    "tar": (".tar",),
}
_KNOWN_SUFFIXES = tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
_ONE_SLASH = re.compile(r"(https?|s3|hf|gs):/([^/].*)", re.IGNORECASE | re.DOTALL)
"""A URL that was mistyped."""
_FOREIGN_SUFFIXES = (".zip", ".7z", ".npy", ".bin", ".pdf", ".rar", ".lzma", ".orc", ".avro", ".xlsx")
"""Named alone, these would be read as text; nobody means that."""
_FORMATS = tuple(f + c for f in _SUFFIXES for c in ("", *_COMPRESSIONS) if not (c and f in WITH_FOOTER))


@dataclass(frozen=True, slots=True)
class FoundInputs:
    """The inputs that were found."""

    inputs: tuple[Input, ...]
    n_passed_over: int = 0
    """Files in directories that were left out because of their suffix, name or kind; hidden ones are not counted."""
    own: tuple[str, ...] = ()
    """Notices of files that tokmill wrote, which were passed over too."""

    def notices(self) -> list[str]:
        """Return what a person should know before the run."""
        notices = [*self.own, *_unpinned(self.inputs)]
        if not self.n_passed_over:
            return notices
        suffixes = " ".join(_KNOWN_SUFFIXES)
        also = " ".join(_COMPRESSIONS)
        n_files = counted(self.n_passed_over, "file")
        return [f"passed over in directories: {n_files} (without --glob: {suffixes}, most also with {also})", *notices]


def find_inputs(names: Sequence[str], *, glob: str | None, input_format: str | None, outside: str | None = None) -> FoundInputs:
    """Find the inputs that a person named.

    Args:
        names: files, directories, patterns, URLs, pipes, or `-`.
        glob: chooses files of directories; None: known suffixes do.
        input_format: of all inputs, such as `jsonl.gz`; None: suffixes decide.
        outside: a directory, the output's, which a walk through directories leaves out; files named one by one may lie there.

    Returns:
        The inputs in the order given.

    Raises:
        UsageError: a name stands for nothing, or for what cannot be read.
        DamagedInputError: a file or directory may not be read.
    """
    if input_format is not None and input_format not in _FORMATS:
        raise UsageError(
            f"{input_format!r} is not an input format",
            option="--input-format",
            allowed=", ".join(_FORMATS),
            suggested="jsonl",
            next_step="or leave it out: the suffix decides",
        )
    if not names:
        raise UsageError(
            "no input was given",
            where="INPUT",
            allowed="files, directories, patterns, URLs or -",
            next_step="tokmill tokenize corpus.txt --out data",
        )
    if sum(name in _STDIN_NAMES for name in names) > 1:
        raise UsageError("standard input was given twice", where="INPUT", allowed="- once", next_step="give each input once")
    found = _Finder(glob, input_format, outside)
    for name in names:
        found.add(name)
    return FoundInputs(tuple(found.inputs), found.n_passed_over, tuple(found.own.notices()))


class _Finder:
    """The inputs found so far."""

    def __init__(self, glob: str | None, input_format: str | None, outside: str | None) -> None:
        self.inputs: list[Input] = []
        self.n_passed_over = 0
        self.own = OwnFiles()
        self._wanted = _matcher(glob)
        self._glob = glob
        self._input_format = input_format
        self._outside = _identity(outside) if outside else None
        self._urls: dict[str, str] = {}

    def add(self, name: str) -> None:
        """Add what one name stands for."""
        if name in _STDIN_NAMES:
            self._append(name, STDIN)
            return
        status = _stat(name)
        if status is not None:
            self._add_existing(name, status)
        elif is_url(name):
            self._add_remote(name)
        elif globbing.has_magic(name):
            self._add_matches(name)
        else:
            slash = _ONE_SLASH.fullmatch(name)
            two_slashes = f"a URL has two slashes: {redacted(f'{slash[1]}://{slash[2]}')}" if slash else None
            raise _nothing(name, "there is no such file or directory", two_slashes)

    def _add_remote(self, url: str) -> None:
        from tokmill.store import find_remote

        objects, n_passed = find_remote(url, self._wanted, has_glob=self._glob is not None)
        self.n_passed_over += n_passed
        if [found.name for found in objects] == [url]:
            self._check_suffix(register_url(url))
        for found in objects:
            self._add_object(found)

    def _add_object(self, found: ObjectInfo) -> None:
        name = register_url(found.name)
        if self._urls.setdefault(name, found.name) != found.name:
            raise UsageError(
                "two URLs differ only in user, password or signature",
                where=name,
                allowed="each object with one URL",
                next_step="give the right one",
            )
        self._append(name, name, found.size_bytes, version=found.version)

    def _add_existing(self, name: str, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self._add_directory(name)
        elif stat.S_ISREG(status.st_mode):
            self._check_suffix(name)
            self._add_file(name, status.st_size, status.st_mtime_ns)
        elif stat.S_ISFIFO(status.st_mode):
            self._add_file(name, None, None)
        else:
            raise UsageError(
                "a device or socket cannot be read as text",
                where=path_to_text(name),
                allowed="a file, a directory, a pipe, or - for standard input",
                next_step="pipe the text into: tokmill tokenize - ...",
            )

    def _add_matches(self, pattern: str) -> None:
        matches = sorted(globbing.glob(pattern, recursive=True), key=os.fsencode)
        n_before, n_own = len(self.inputs), self.own.n_files
        is_of_directories = pattern.endswith(os.sep)
        searched: tuple[str, ...] = ()
        for path in matches:
            status = _stat(path)
            if status is None:
                raise _dangling(path)
            # `**` has listed what is in its directories already; another pattern means a directory as the shell would.
            is_listed = stat.S_ISDIR(status.st_mode) and (path.startswith(searched) if is_of_directories else "**" in pattern)
            if is_of_directories and not is_listed:
                searched = (path,)
            if not is_listed and not (stat.S_ISREG(status.st_mode) and self.own.has(path)):
                self._add_existing(path, status)
        if len(self.inputs) == n_before:
            what = "the pattern matches only what tokmill wrote" if self.own.n_files > n_own else "no file matches the pattern"
            raise _nothing(pattern, what, "check the pattern; ** matches directories of any depth")

    def _add_directory(self, top: str) -> None:
        chosen: list[tuple[bytes, str, os.stat_result]] = []
        n_before = self.n_passed_over + self.own.n_files
        for entry, relative in _walk(top, self._outside):
            if self.own.has(entry.path):
                continue
            if not self._wanted(entry.name, relative):
                self.n_passed_over += 1
                continue
            status = _stat(entry.path)
            if status is None:
                raise _dangling(entry.path)
            if stat.S_ISREG(status.st_mode):
                chosen.append((os.fsencode(relative), entry.path, status))
            else:
                self.n_passed_over += 1
        if not chosen:
            raise self._no_input(top, self.n_passed_over + self.own.n_files - n_before)
        chosen.sort(key=lambda item: item[0])
        for _, path, status in chosen:
            self._add_file(path, status.st_size, status.st_mtime_ns)

    def _no_input(self, top: str, n_passed: int) -> UsageError:
        if self._outside is not None and _identity(top) == self._outside:
            return _nothing(
                top,
                "this is the output directory, which is not searched for inputs",
                "choose another --out, or name the input files one by one or by a pattern",
            )
        return _nothing(
            top,
            f"the directory holds no input (passed over: {counted(n_passed, 'file')})",
            f"pass --glob PATTERN to choose files of other names than {' '.join(_KNOWN_SUFFIXES)}"
            if self._glob is None
            else "check --glob",
        )

    def _add_file(self, path: str, size_bytes: int | None, mtime_ns: int | None) -> None:
        self._append(path, path_to_text(os.path.abspath(path)), size_bytes, mtime_ns=mtime_ns)

    def _append(self, name: str, path: str, size_bytes: int | None = None, **identity: Any) -> None:
        """Add an input. name: decides the format; path: of the input; identity: its other fields."""
        file_format, compression = _describe(name, self._input_format)
        _check_seekable(file_format, compression, name, has_size=size_bytes is not None)
        self.inputs.append(Input(path=path, format=file_format, compression=compression, size_bytes=size_bytes, **identity))

    def _check_suffix(self, path: str) -> None:
        bare, _ = _without_compression(path)
        if self._input_format is None and bare.endswith(_FOREIGN_SUFFIXES):
            raise UsageError(
                "this kind of file is not text",
                where=_shown(path),
                allowed=f"{' '.join(_KNOWN_SUFFIXES)}, most also with {' '.join(_COMPRESSIONS)}",
                next_step="unpack or convert it; if it is text after all, pass --input-format text",
            )


def _unpinned(inputs: Sequence[Input]) -> list[str]:
    """Return notices of remote objects that could change without being noticed."""
    found = [source.path for source in inputs if source.version is None]
    others = f" (and {counted(len(found) - 1, 'other')})" if len(found) > 1 else ""
    return [f"the server gives {found[0]}{others} neither ETag nor time: only its size shows a change"] if found else []


def is_guess(source: Input) -> bool:
    """Return whether an input's name does not say what it holds, so that it is taken for text."""
    return not _without_compression(source.path)[0].endswith(_KNOWN_SUFFIXES)


def _without_compression(path: str) -> tuple[str, Compression]:
    """Return the path in lower case without a suffix of compression, and the compression."""
    lower = (path_of(path) if is_url(path) else path).lower()
    for short, full in _SHORT.items():
        if lower.endswith(short):
            lower = lower.removesuffix(short) + full
    for suffix, compression in _COMPRESSIONS.items():
        if lower.endswith(suffix):
            return lower.removesuffix(suffix), compression
    return lower, "none"


def _describe(path: str, input_format: str | None) -> tuple[InputFormat, Compression]:
    """Return format and compression, by suffix unless they were given."""
    bare, compression = _without_compression(path)
    file_format: str = next((name for name, suffixes in _SUFFIXES.items() if bare.endswith(suffixes)), "text")
    if input_format is not None:
        file_format, dot, suffix = input_format.partition(".")
        compression = _COMPRESSIONS[dot + suffix] if dot else compression
    return cast("InputFormat", file_format), compression


def input_format_of(source: Input) -> str | None:
    """Return what `--input-format` was, if an input is not read as its name says; None if it is.

    Args:
        source: the input of a run.
    """
    if (source.format, source.compression) == _describe(source.path, None):
        return None
    suffix = next((dot for dot, name in _COMPRESSIONS.items() if name == source.compression), "")
    return f"{source.format}{suffix}"


def _check_seekable(file_format: InputFormat, compression: Compression, path: str, *, has_size: bool) -> None:
    """Raise UsageError for a file that would be read from its end, and cannot be."""
    if file_format not in WITH_FOOTER or (has_size and compression == "none"):
        return
    what = f"a compressed file ({compression})" if compression != "none" else "a pipe"
    raise UsageError(
        f"{file_format} cannot be read from {what}: its index is at its end",
        where="standard input" if path == STDIN else _shown(path),
        allowed=f"a {file_format} file as it is; it compresses its columns itself",
        next_step="decompress it first, or name the file instead of piping it",
    )


def _shown(path: str) -> str:
    """Return a path or URL for messages."""
    return path if is_url(path) else path_to_text(path)


def _matcher(glob: str | None) -> Callable[[str, str], bool]:
    """Return what says whether a file of a directory is wanted, by its name and its path relative to the given directory."""
    if glob is None:
        return lambda name, _relative: _without_compression(name)[0].endswith(_KNOWN_SUFFIXES)
    matches = re.compile(translate(glob)).match
    if "/" in glob:
        return lambda _name, relative: matches(relative) is not None
    return lambda name, _relative: matches(name) is not None


def _identity(directory: str) -> tuple[int, int] | None:
    """Return device and inode of a directory; None if it is not there."""
    status = _stat(directory)
    return (status.st_dev, status.st_ino) if status else None


def _walk(top: str, outside: tuple[int, int] | None) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield every file below `top`, but hidden ones and those below `outside`, with its relative path; in no order.

    Loops of links are cut.
    """
    pending: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(top, "", frozenset())]
    while pending:
        directory, prefix, above = pending.pop()
        try:
            status = os.stat(directory)
            entries = list(os.scandir(directory))
        except OSError as error:
            raise _unreadable(directory, error) from error
        identity = (status.st_dev, status.st_ino)
        if identity in above or identity == outside:
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_directory(entry):
                pending.append((entry.path, f"{prefix}{entry.name}/", above | {identity}))
            else:
                yield entry, prefix + entry.name


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself, which matters only if the file is wanted.
        return False


def _stat(path: str) -> os.stat_result | None:
    """Return the status of a path; None if there is nothing. Raises DamagedInputError for what may not be looked at."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise _unreadable(path, error) from error


def _nothing(name: str, what: str, next_step: str | None) -> UsageError:
    path = None if next_step else path_to_text(name)
    return UsageError(what, where=path_to_text(name), allowed="files, directories, patterns or -", next_step=next_step, path=path)


def _dangling(path: str) -> UsageError:
    return _nothing(path, "a symbolic link leads nowhere", "fix or remove the link")


def _unreadable(path: str, error: OSError) -> DamagedInputError:
    return DamagedInputError(
        f"cannot be read: {error.strerror or error}",
        where=path_to_text(path),
        allowed="files and directories that this user may read",
        next_step="fix the permissions, or leave it out",
    )
