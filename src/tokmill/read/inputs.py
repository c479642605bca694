"""Finds the inputs: files, directories, patterns, URLs, pipes and standard input become records, in an order that never varies.

Directories are read with `os.scandir` and sorted once, by the bytes of the path: no locale, no order of the file system. What a
person named always counts; what a directory merely contains counts when its suffix is known (or `--glob` matches it), and what is
passed over is counted, so that the run can say so. A file is taken once, however often it is named or linked, where it is met
first; a directory is walked once, by its own path rather than by a link.
"""

from __future__ import annotations

import errno
import fcntl
import glob as globbing
import heapq
import os
import re
import shlex
import stat
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from tokmill.core.errors import DamagedInputError, UsageError
from tokmill.core.local_struct import LocalStruct, MutableStruct
from tokmill.core.patterns import ALLOWED_IN_PATTERN, alternatives, has_braces, matcher, patterns_of
from tokmill.core.records import STDIN, WITH_FOOTER, Compression, Input, InputFormat, is_url, path_to_text
from tokmill.core.system.current import SYSTEM
from tokmill.core.text import counted, shortened
from tokmill.read.own_outputs import OwnFiles
from tokmill.store import one_spelling, path_of, register_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokmill.store import ObjectInfo

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
_PANDOC, _OFFICE = "pandoc -t plain FILE -o FILE.txt", "soffice --convert-to txt FILE"
_FOREIGN_SUFFIXES = {
    ".zip": "unzip FILE -d DIR",
    ".7z": "7z x FILE -oDIR",
    ".rar": "unrar x FILE DIR/",
    ".lzma": "xz -dc FILE | xz > FILE.xz",
    ".z": "gzip -dc FILE | gzip > FILE.gz",
    ".pdf": "pdftotext FILE FILE.txt",
    ".docx": _PANDOC,
    ".odt": _PANDOC,
    ".epub": _PANDOC,
    ".rtf": _PANDOC,
    ".doc": _OFFICE,
    ".ppt": _OFFICE,
    ".pptx": _OFFICE,
    ".xls": _OFFICE,
    ".xlsx": _OFFICE,
    ".npy": "",
    ".bin": "",
    ".orc": "",
    ".avro": "",
}
"""Named alone, these would be read as text; nobody means that. With each, what makes text of it."""
_FORMATS = tuple(f + c for f in _SUFFIXES for c in ("", *_COMPRESSIONS) if not (c and f in WITH_FOOTER))


_OTHER_SUFFIXES = (
    *_FOREIGN_SUFFIXES,
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".svg",
    ".mp3",
    ".mp4",
    ".wav",
    ".so",
    ".o",
    ".pyc",
    ".gz",
    ".pt",
)
"""Nobody is told how to take these out of a directory."""
_FOREIGN = re.compile(r"(?i)(ftps?|sftp|scp|ssh|file|hdfs|az|abfss?|wasbs?|oss|r2):(?!/)")
"""How a name begins that is a URL of no store here, without its slashes."""
_MOST_NAMED = 3
_MOST_SUFFIXES = 5


class PassedOver(MutableStruct):
    """What directories hold that is no input, counted."""

    suffixes: Counter[str]
    """Files of other names, by suffix."""
    kinds: Counter[tuple[str, str]]
    """Anything else, by what it is, one and several."""
    kept: set[str]
    """Suffixes of what was taken, as they are spelled."""
    glob: tuple[str, ...]

    def notices(self) -> list[str]:
        """Return one line, if there is anything to say."""
        found = [f"{counted(self.n_files, 'file')} ({self._counted()}{self._why()})"] * bool(self.suffixes)
        found += [counted(n, *kind) for kind, n in sorted(self.kinds.items()) if n]
        return [f"passed over in directories: {', '.join(found)}"] if found else []

    @property
    def n_files(self) -> int:
        """Files whose name is not wanted, or that are no plain files; hidden ones and links that lead nowhere are not counted."""
        return self.suffixes.total() + self.kinds[_SPECIAL]

    def add_name(self, relative: str) -> None:
        """Count a file or object for its name."""
        if any(part.startswith(".") for part in relative.split("/")):
            self.kinds[_HIDDEN] += 1
        else:
            self.suffixes[os.path.splitext(relative)[1]] += 1

    def _often(self) -> list[str]:
        """Return the suffixes, the most frequent first."""
        return sorted(self.suffixes, key=lambda suffix: (-self.suffixes[suffix], suffix))

    def _counted(self) -> str:
        """Return how many files there are of each suffix."""
        shown = [f"{self.suffixes[suffix]:,} {suffix or 'without a suffix'}" for suffix in self._often()]
        return ", ".join(shortened(shown, _MOST_SUFFIXES))

    def by_suffix(self) -> str:
        """Return the same for a sentence; empty if there are none."""
        return f": {self._counted()}" if self.suffixes else ""

    def wanted(self) -> str:
        """Return the most frequent suffix that may be one of text; empty if there is none."""
        return next((each for each in self._often() if each and not each.lower().endswith(_OTHER_SUFFIXES)), "")

    def _why(self) -> str:
        if self.glob:
            return "; not what --glob takes"
        wanted = self.wanted()
        if not wanted or len(self.kept) >= _MOST_SUFFIXES:
            return "; --glob PATTERN, once for each kind, chooses others" if self.suffixes.total() else ""
        chosen = " ".join(f"--glob {_quoted_suffix(each)}" for each in (*sorted(self.kept), wanted))
        return f"; to take {wanted} {'too' if self.kept else 'instead'}: {chosen}"


_HIDDEN = "hidden", "hidden"
_SPECIAL = "neither file nor directory", "neither file nor directory"
_DANGLING = "link that leads nowhere", "links that lead nowhere"
_AGAIN = "link to a directory that is read anyway", "links to directories that are read anyway"


def _quoted_suffix(suffix: str) -> str:
    return shlex.quote(f"*{globbing.escape(suffix)}")


class FoundInputs(LocalStruct, frozen=True):
    """The inputs that were found."""

    inputs: tuple[Input, ...]
    passed: PassedOver
    own: tuple[str, ...] = ()
    """Notices of files that tokmill wrote, which were passed over too."""
    repeated: tuple[tuple[str, int], ...] = ()
    """Inputs that were named or linked more than once, and how often."""
    has_directory: bool = True
    """Whether any name stands for what is in a directory or prefix, so that `--glob` chooses."""
    only_val: tuple[str, ...] = ()
    """Inputs that were found for training too, and are for validation alone."""

    @property
    def n_passed_over(self) -> int:
        """Files in directories that were left out because of their name or kind; hidden ones are not counted."""
        return self.passed.n_files

    def notices(self) -> list[str]:
        """Return what a person should know before the run."""
        return [*self.passed.notices(), *self._repeated(), *self._only_val(), *self.own, *_unpinned(self.inputs)]

    def _repeated(self) -> list[str]:
        if not self.repeated:
            return []
        shown = shortened([f"{path} ({n:,} times)" for path, n in self.repeated[:_MOST_NAMED]], _MOST_NAMED, len(self.repeated))
        return [f"named or linked more than once, taken once, where it comes first: {', '.join(shown)}"]

    def _only_val(self) -> list[str]:
        if not self.only_val:
            return []
        shown = ", ".join(shortened(self.only_val, _MOST_NAMED))
        return [f"of --val-input, and so not for training although found there too: {shown}"]


def find_inputs(
    names: Sequence[str],
    val_names: Sequence[str] = (),
    *,
    glob: str | Sequence[str] | None,
    input_format: str | None,
    outside: str | None = None,
) -> FoundInputs:
    """Find the inputs that a person named.

    Args:
        names: files, directories, patterns, URLs, pipes, or `-`.
        val_names: the same, for validation; what is found under both is for validation alone.
        glob: one or more patterns that choose files of directories; none: known suffixes do.
        input_format: of all inputs, such as `jsonl.gz`; None: suffixes decide.
        outside: a directory, the output's, which a walk through directories leaves out; files named one by one may lie there.

    Returns:
        The inputs in the order given, those for validation last.

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
    names = [*val_names, *names]
    if sum(_is_stdin(name) for name in names) > 1:
        raise UsageError("standard input was given twice", where="INPUT", allowed="- once", next_step="give each input once")
    found = _Finder(patterns_of(glob), input_format, outside)
    try:
        for i, name in enumerate(names):
            found.side = "val" if i < len(val_names) else msgspec.UNSET
            found.add(name)
    except UsageError as error:
        missing = [path_to_text(name) for name in names if not _is_there(name)]
        if error.path is not None and len(missing) > 1:
            # With another path for one of them, the command would fail for the next.
            what, where = f"{len(missing):,} inputs are not there", "\n".join(shortened(missing, _MOST_NAMED))
            raise _nothing(where, what, "check these paths, or leave them out") from None
        raise
    return FoundInputs(
        found.all_inputs(),
        found.passed,
        tuple(found.own.notices()),
        tuple((found.inputs[i].path, n + 1) for i, n in found.repeated.items()),
        found.has_directory,
        tuple(found.only_val),
    )


class _Finder:
    """The inputs found so far."""

    def __init__(self, glob: tuple[str, ...], input_format: str | None, outside: str | None) -> None:
        self.inputs: list[Input] = []
        self.passed = PassedOver(Counter(), Counter(), set(), glob)
        self.repeated: Counter[int] = Counter()
        """How often an input was met again, by its place among the inputs."""
        self.side: Literal["val"] | msgspec.UnsetType = msgspec.UNSET
        """Of what is added."""
        self.only_val: Counter[str] = Counter()
        """Inputs for validation that were met among the others, by path."""
        self.has_directory = False
        self.own = OwnFiles()
        self._wanted = matcher(glob, lambda name: _without_compression(name)[0].endswith(_KNOWN_SUFFIXES))
        self._glob = glob
        self._input_format = input_format
        self._outside = _identity(outside) if outside else None
        self._urls: dict[str, str] = {}
        self._places: dict[object, int] = {}
        """Places among the inputs, by what tells a file from all others."""
        self._walked: set[tuple[int, int]] = set()
        """Directories of which it is counted what was passed over."""

    def all_inputs(self) -> tuple[Input, ...]:
        """Return the inputs found, those for validation last. Raises UsageError if there are no others."""
        n_val = sum(each.side == "val" for each in self.inputs)
        if n_val and n_val == len(self.inputs):
            raise UsageError(
                "every input is one for validation",
                where="INPUT and --val-input",
                option="--val-input",
                allowed="inputs for training that are none of --val-input",
                next_step="name other inputs for training",
            )
        return (*self.inputs[n_val:], *self.inputs[:n_val])

    def add(self, name: str) -> None:
        """Add what one name stands for."""
        if _is_stdin(name):
            _check_stdin()
            self._append(STDIN, name, STDIN)
            return
        status = _stat(name)
        if status is not None:
            self._add_existing(name, status)
        elif is_url(name):
            self._add_remote(name)
        elif globbing.has_magic(name) or has_braces(name):
            self._add_matches(name)
        elif os.path.islink(name):
            raise _nothing(name, "a symbolic link leads nowhere", "fix or remove the link")
        elif foreign := _FOREIGN.match(name):
            # It says what can be read instead.
            self._add_remote(f"{foreign[1]}://{name[foreign.end() :]}")
        else:
            raise _nothing(name, "there is no such file or directory", None)

    def _add_remote(self, url: str) -> None:
        from tokmill.store import find_remote

        objects = find_remote(url, self._wanted, self.passed.add_name, has_glob=bool(self._glob))
        if [found.name for found in objects] == [url]:
            self._check_suffix(register_url(url))
        else:
            self.has_directory = True
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
        self._append(one_spelling(name), name, name, found.size_bytes, version=found.version)

    def _add_existing(self, name: str, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self._add_directory(name)
        elif stat.S_ISREG(status.st_mode):
            self._check_suffix(name)
            self._add_file(name, status)
        elif stat.S_ISFIFO(status.st_mode):
            self._add_file(name, status)
        else:
            raise UsageError(
                "a device or socket cannot be read as text",
                where=path_to_text(name),
                allowed="a file, a directory, a pipe, or - for standard input",
                next_step="pipe the text into: tokmill tokenize - ...",
            )

    def _add_matches(self, pattern: str) -> None:
        matches = sorted(
            {found for each in alternatives(pattern) for found in globbing.glob(each, recursive=True)}, key=os.fsencode
        )
        n_before, n_own = self._n_met, self.own.n_files
        is_of_directories = pattern.endswith(os.sep)
        searched: tuple[str, ...] = ()
        for path in matches:
            status = _stat(path)
            if status is None:
                self.passed.kinds[_DANGLING] += 1
                continue
            # `**` has listed what is in its directories already; another pattern means a directory as the shell would.
            is_listed = stat.S_ISDIR(status.st_mode) and (path.startswith(searched) if is_of_directories else "**" in pattern)
            if is_of_directories and not is_listed:
                searched = (path,)
            if not is_listed and not (stat.S_ISREG(status.st_mode) and self.own.has(path)):
                self._add_existing(path, status)
        if self._n_met == n_before:
            what = "the pattern matches only what tokmill wrote" if self.own.n_files > n_own else "no file matches the pattern"
            raise _nothing(pattern, what, "check the pattern: it may have *, ?, [abc], {a,b}; ** is directories of any depth")

    @property
    def _n_met(self) -> int:
        return len(self.inputs) + self.repeated.total() + self.only_val.total()

    def _add_directory(self, top: str) -> None:
        self.has_directory = True
        chosen: list[tuple[bytes, str, os.stat_result]] = []
        n_before = self.own.n_files
        passed = PassedOver(Counter(), Counter(), set(), self._glob)
        for entry, relative in self._walk(top, passed):
            if self.own.has(entry.path):
                continue
            is_wanted = self._wanted(entry.name, relative)
            status = _stat(entry.path) if is_wanted or entry.is_symlink() else None
            if status is None and entry.is_symlink():
                passed.kinds[_DANGLING] += 1
            elif not is_wanted:
                passed.add_name(relative)
            elif status is not None and stat.S_ISREG(status.st_mode):
                chosen.append((os.fsencode(relative), entry.path, status))
            else:
                passed.kinds[_SPECIAL] += 1
        if not chosen:
            raise self._no_input(top, passed, self.own.n_files - n_before)
        if (identity := _identity(top)) is not None and identity not in self._walked:
            self._walked.add(identity)
            self.passed.suffixes.update(passed.suffixes)
            self.passed.kinds.update(passed.kinds)
        chosen.sort(key=lambda item: item[0])
        for _, path, status in chosen:
            self.passed.kept.add(_suffix(path))
            self._add_file(path, status)

    def _walk(self, top: str, passed: PassedOver) -> Iterator[tuple[os.DirEntry[str], str]]:
        """Yield every file below `top`, but hidden ones and those of the output, with its relative path; in no order.

        A directory is read once: those that links lead to come last, in the order of their paths.
        """
        seen: set[tuple[int, int]] = set()
        pending = [(top, "")]
        links: list[tuple[bytes, str, str]] = []
        while pending or links:
            is_link = not pending
            directory, prefix = pending.pop() if pending else heapq.heappop(links)[1:]
            try:
                status = os.stat(directory)
                identity = (status.st_dev, status.st_ino)
                if identity == self._outside or identity in seen:
                    passed.kinds[_AGAIN] += is_link and identity != self._outside
                    continue
                entries = sorted(os.scandir(directory), key=lambda entry: os.fsencode(entry.name))
            except OSError as error:
                raise _unreadable(directory, error) from error
            seen.add(identity)
            for entry in entries:
                relative = prefix + entry.name
                if entry.name.startswith("."):
                    passed.kinds[_HIDDEN] += 1
                elif not _is_directory(entry):
                    yield entry, relative
                elif entry.is_symlink():
                    heapq.heappush(links, (os.fsencode(relative), entry.path, f"{relative}/"))
                else:
                    pending.append((entry.path, f"{relative}/"))

    def _no_input(self, top: str, passed: PassedOver, n_own: int) -> UsageError:
        """Return the error for a directory of which nothing was taken. n_own: files in it that tokmill wrote."""
        if self._outside is not None and _identity(top) == self._outside:
            return _nothing(
                top,
                "this is the output directory, which is not searched for inputs",
                "choose another --out, or name the input files one by one or by a pattern",
            )
        what = f"the directory holds no input (passed over: {counted(passed.n_files + n_own, 'file')}{passed.by_suffix()})"
        known = f"files of other names than {' '.join(_KNOWN_SUFFIXES)}"
        if self._glob:
            return _nothing(top, what, f"check --glob: {ALLOWED_IN_PATTERN}")
        wanted = passed.wanted()
        if not wanted:
            return _nothing(top, what, f"pass --glob PATTERN to choose {known}")
        return UsageError(
            what,
            where=path_to_text(top),
            allowed=f"{known} with --glob",
            option="--glob",
            suggested=f"*{globbing.escape(wanted)}",
        )

    def _add_file(self, path: str, status: os.stat_result) -> None:
        is_file = stat.S_ISREG(status.st_mode)
        size_bytes, mtime_ns = (status.st_size, status.st_mtime_ns) if is_file else (None, None)
        # Size and time too: some file systems make up numbers of inodes, and lose none of their files here.
        key = (status.st_dev, status.st_ino, size_bytes, mtime_ns) if status.st_ino else path
        self._append(key, path, path_to_text(os.path.abspath(path)), size_bytes, mtime_ns=mtime_ns)

    def _append(self, key: object, name: str, path: str, size_bytes: int | None = None, **identity: Any) -> None:
        """Add an input, unless it is there. key: tells it from others; name: decides the format; identity: its other fields."""
        place = self._places.setdefault(key, len(self.inputs))
        if place < len(self.inputs):
            if self.inputs[place].side == self.side:
                self.repeated[place] += 1
            else:
                self.only_val[path] += 1
            return
        file_format, compression = _describe(name, self._input_format)
        _check_seekable(file_format, compression, name, has_size=size_bytes is not None)
        self.inputs.append(
            Input(path=path, format=file_format, compression=compression, size_bytes=size_bytes, side=self.side, **identity)
        )

    def _check_suffix(self, path: str) -> None:
        name, compression = _without_compression(path)
        suffix = os.path.splitext(name)[1]
        if self._input_format is None and suffix in _FOREIGN_SUFFIXES:
            command, packed = _FOREIGN_SUFFIXES[suffix], next((s for s, c in _COMPRESSIONS.items() if c == compression), "")
            if command and compression != "none":
                command = f"{compression} -d FILE, then {command}"
            raise UsageError(
                f"a {suffix} file is not text",
                where=_shown(path),
                allowed=f"{' '.join(_KNOWN_SUFFIXES)}, most also with {' '.join(_COMPRESSIONS)}",
                next_step=f"convert it first{': ' + command if command else ''}; "
                f"if it is text after all, pass --input-format text{packed}",
            )


def _unpinned(inputs: Sequence[Input]) -> list[str]:
    """Return notices of remote objects that could change without being noticed."""
    found = [source.path for source in inputs if source.version is None]
    others = f" (and {counted(len(found) - 1, 'other')})" if len(found) > 1 else ""
    return [f"the server gives {found[0]}{others} neither ETag nor time: only its size shows a change"] if found else []


def is_guess(source: Input) -> bool:
    """Return whether an input's name does not say what it holds, so that it is taken for text."""
    return not _without_compression(source.path)[0].endswith(_KNOWN_SUFFIXES)


def _suffix(path: str) -> str:
    """Return the suffix of a file as it is spelled, that of a compression with it."""
    stem, suffix = os.path.splitext(path)
    return os.path.splitext(stem)[1] + suffix if suffix.lower() in _COMPRESSIONS else suffix


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
    return f"{source.format}{_suffix_of(source.compression)}"


def _suffix_of(compression: Compression) -> str:
    return next((dot for dot, name in _COMPRESSIONS.items() if name == compression), "")


def source_options(inputs: Sequence[Input]) -> list[str]:
    """Return the options with which a directory of a run's inputs gives them as they were read, where their names need any."""
    paths = [each.path for each in inputs if each.path != STDIN]
    suffixes = sorted({os.path.splitext(path)[1] for path in paths})
    is_usual = all(_without_compression(path)[0].endswith(_KNOWN_SUFFIXES) for path in paths)
    has_glob = not is_usual and all(suffixes) and len(suffixes) <= _MOST_SUFFIXES
    formats = {input_format_of(each) for each in inputs}
    formats |= {f"{each.format}{_suffix_of(each.compression)}" for each in inputs if formats - {None}}
    given = [f"--input-format {each}" for each in formats - {None}]
    return [f"--glob {_quoted_suffix(each)}" for each in suffixes if has_glob] + (given if len(given) == 1 else [])


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


def _identity(directory: str) -> tuple[int, int] | None:
    """Return device and inode of a directory; None if it is not there."""
    status = _stat(directory)
    return (status.st_dev, status.st_ino) if status else None


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
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            return None
        raise _unreadable(path, error) from error


def _is_stdin(name: str) -> bool:
    """Return whether a name is that of standard input."""
    return name in {STDIN, "/dev/stdin"} or SYSTEM.descriptor_of(name) == 0


def _is_there(name: str) -> bool:
    """Return whether a name is that of something on this machine, or no plain path."""
    return _is_stdin(name) or os.path.lexists(name) or is_url(name) or globbing.has_magic(name) or has_braces(name)


def _nothing(name: str, what: str, next_step: str | None) -> UsageError:
    path = None if next_step else path_to_text(name)
    return UsageError(what, where=path_to_text(name), allowed="files, directories, patterns or -", next_step=next_step, path=path)


def _check_stdin() -> None:
    """Raise UsageError if standard input was closed (`<&-`), or is open for writing alone."""
    try:
        is_readable = fcntl.fcntl(0, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
    except OSError:
        is_readable = False
    if not is_readable:
        next_step = "pipe the text into it: tokmill tokenize - --out DIR < FILE"
        raise UsageError("standard input is closed", where=STDIN, allowed="a pipe or a file to read from", next_step=next_step)


def _unreadable(path: str, error: OSError) -> DamagedInputError:
    return DamagedInputError(
        f"cannot be read: {error.strerror or error}",
        where=path_to_text(path),
        allowed="files and directories that this user may read",
        next_step="fix the permissions, or leave it out",
    )
