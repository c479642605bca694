"""Checks that a complete output directory is what was written and, with the sources at hand, what the corpus says.

Every file is read once, in blocks: the digest of every segment's bytes, the range of every id and the number of end-of-text ids
come from the same pass. All problems are collected, with file and byte range, instead of stopping at the first: someone who
repairs wants to know what is left. Trusting the manifest's own numbers was refused: its sums are held against each other and
against the files.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import xxhash

from tokmill.compare import compare_with_sources
from tokmill.durable import uninterrupted
from tokmill.errors import DamageError, StorageError
from tokmill.manifest import MANIFEST_NAME, Manifest, load_manifest
from tokmill.types import Counts, Notice, Progress, Started
from tokmill.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokmill.manifest import FileSpan
    from tokmill.protocols import Observer
    from tokmill.types import FileEntry

MAX_PROBLEMS = 100
"""Problems that are described; the rest are counted."""

_BLOCK_BYTES = 4 << 20
_KNOWN = {MANIFEST_NAME, "report.html"}
_FOREIGN = "the manifest does not list this file"
_TELL_EVERY_S = 0.2


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong."""

    file: str
    """Name within the directory."""
    what: str
    begin_byte: int | None = None
    """Where in the file it begins."""
    end_byte: int | None = None
    """Just past where it ends."""

    def __str__(self) -> str:
        if self.begin_byte is None:
            return f"{self.file}: {self.what}"
        end = "end" if self.end_byte is None else f"{self.end_byte:,}"
        return f"{self.file}, bytes {self.begin_byte:,} to {end}: {self.what}"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found."""

    directory: str
    ok: bool
    problems: list[Problem]
    """At most `MAX_PROBLEMS` of them."""
    n_problems: int
    n_files: int
    n_segments: int
    tokens_train: int
    tokens_val: int
    documents_train: int
    documents_val: int
    bytes_checked: int
    """Bytes of the output that were read."""
    sources_compared: bool
    """Whether the text of sources was compared."""
    compared_documents: int
    compared_bytes: int
    """Text that was decoded and found the same."""
    elapsed_s: float
    repaired: list[Problem] | None = None
    """What was damaged before and was made again; None: that was not asked for."""

    def raise_for_damage(self) -> None:
        """Raises DamageError when anything is wrong."""
        if self.ok:
            return
        again = f"tokmill tokenize ... --out {self.directory} --fresh"
        next_step = f"tokmill verify {self.directory} --repair, restore it from a copy, or make it again: {again}"
        if self.repaired is not None:
            next_step = f"what could be made again is; move away what the manifest does not list, or make all of it again: {again}"
        elif self.problems and all(problem.what == _FOREIGN for problem in self.problems):
            next_step = "move away what the manifest does not list: a trainer that takes every file would read it"
        shown = [str(problem) for problem in self.problems]
        more = [f"and {self.n_problems - len(shown):,} more"] if self.n_problems > len(shown) else []
        raise DamageError(
            f"the output is damaged: {counted(self.n_problems, 'problem')}",
            where="\n".join([self.directory, *shown, *more]),
            allowed="every byte as the manifest says",
            next_step=next_step,
        )


class Findings:
    """Collects problems, a bounded number of them, and tells observers how far the work is."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.problems: list[Problem] = []
        self.n_problems = 0
        self.bytes_checked = 0
        self._observers = observers
        self._started_s = time.monotonic()
        self._told_s = self._started_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._started_s

    def add(self, file: str, what: str, begin_byte: int | None = None, end_byte: int | None = None) -> None:
        """Record a problem."""
        self.n_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(file=file, what=what, begin_byte=begin_byte, end_byte=end_byte))

    def begin(self, total_bytes: int | None) -> None:
        """A part of the work begins that reads so many bytes; None: not known."""
        self._tell_all(
            Started(
                total_bytes=total_bytes,
                resumed_bytes=0,
                position_bytes=0,
                n_threads=1,
                batch_bytes=_BLOCK_BYTES,
                budget_bytes=0,
            )
        )

    def tell(self, position_bytes: int, counts: Counts) -> None:
        """Tell the observers, a few times a second."""
        now = time.monotonic()
        if now - self._told_s >= _TELL_EVERY_S:
            self._told_s = now
            self._tell_all(Progress(elapsed_s=self.elapsed_s, position_bytes=position_bytes, counts=counts, rss_bytes=0))

    def notice(self, text: str) -> None:
        """Say something to the observers."""
        self._tell_all(Notice(text=text))

    def _tell_all(self, event: Started | Progress | Notice) -> None:
        for observer in self._observers:
            observer.on_event(event)


def verify(
    directory: str | Path,
    *,
    sources: str | Sequence[str] | None = None,
    glob: str | None = None,
    input_format: str | None = None,
    observers: Sequence[Observer] = (),
) -> Report:
    """Check every byte of a complete output directory; with `sources`, also decode all of it and compare it with the corpus.

    sources: inputs as given to `tokenize`, in the same order; glob, input_format: likewise. Problems are in the report, not
    raised (`raise_for_damage`). Raises UsageError for a directory without manifest, DamageError for a manifest that cannot be
    trusted, InputError for sources that cannot be read, ChangedError for sources that are not those that were tokenized.
    """
    directory = Path(directory)
    try:
        manifest = load_manifest(directory)
    except OSError as error:
        raise _unreadable(directory / MANIFEST_NAME, error) from error
    findings = Findings(observers)
    findings.begin(sum(entry.size_bytes for entry in manifest.files.values()))
    check_manifest(manifest, findings)
    _check_names(directory, manifest, findings)
    for name, entry in manifest.files.items():
        _check_file(directory / name, entry, manifest, findings)
    documents = n_bytes = 0
    if sources is not None and not findings.n_problems:
        names = [sources] if isinstance(sources, str) else list(sources)
        documents, n_bytes = compare_with_sources(directory, manifest, names, glob, input_format, findings)
    elif sources is not None:
        findings.notice("the files are damaged: not compared with the sources")
    return _report(directory, manifest, findings, is_compared=documents >= 0 and sources is not None, compared=(documents, n_bytes))


def _report(directory: Path, manifest: Manifest, findings: Findings, *, is_compared: bool, compared: tuple[int, int]) -> Report:
    sums = {side: [entry for entry in manifest.files.values() if entry.side == side] for side in ("train", "val")}
    return Report(
        directory=str(directory),
        ok=not findings.n_problems,
        problems=findings.problems,
        n_problems=findings.n_problems,
        n_files=len(manifest.files),
        n_segments=len(manifest.segments),
        tokens_train=sum(entry.tokens for entry in sums["train"]),
        tokens_val=sum(entry.tokens for entry in sums["val"]),
        documents_train=sum(entry.documents for entry in sums["train"]),
        documents_val=sum(entry.documents for entry in sums["val"]),
        bytes_checked=findings.bytes_checked,
        sources_compared=is_compared and bool(compared[1] or not findings.n_problems),
        compared_documents=compared[0],
        compared_bytes=compared[1],
        elapsed_s=findings.elapsed_s,
    )


def check_manifest(manifest: Manifest, findings: Findings) -> None:
    """Hold the manifest's numbers against each other."""
    counts, content = manifest.counts, manifest.content
    if manifest.fingerprint != content.fingerprint():
        findings.add(MANIFEST_NAME, "the fingerprint is not that of the configuration")
    skipped = sum(counts.skipped.values())
    if counts.documents != counts.documents_train + counts.documents_val + skipped - counts.parts_added:
        findings.add(
            MANIFEST_NAME, f"{counted(counts.documents, 'document')} in, but not the sum of those written and {skipped:,} skipped"
        )
    for side in ("train", "val"):
        entries = [entry for entry in manifest.files.values() if entry.side == side]
        for unit in ("tokens", "documents"):
            n_files, n_counted = sum(getattr(entry, unit) for entry in entries), getattr(counts, f"{unit}_{side}")
            if n_files != n_counted:
                findings.add(MANIFEST_NAME, f"{counted(n_files, unit[:-1])} in the files of {side}, but {n_counted:,} counted")
    lengths = {name: span.end for segment in manifest.segments for name, span in segment.files.items()}
    for name in set(lengths) - set(manifest.files):
        findings.add(MANIFEST_NAME, f"segments speak of {name}, which is not listed")


def _check_names(directory: Path, manifest: Manifest, findings: Findings) -> None:
    """Files that nobody vouches for are damage: a trainer that opens `*.bin` would read them."""
    try:
        names = uninterrupted(lambda: os.listdir(directory))
    except OSError as error:
        raise _unreadable(directory, error) from error
    for name in sorted(names):
        if name not in manifest.files and name not in _KNOWN and not name.startswith("."):
            findings.add(name, "the manifest does not list this file")


def _check_file(path: Path, entry: FileEntry, manifest: Manifest, findings: Findings) -> None:
    """Size, digests, ids and documents of one file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        findings.add(path.name, "the file is missing")
        return
    except OSError as error:
        findings.add(path.name, f"the file cannot be opened: {error.strerror}")
        return
    with open(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            findings.add(path.name, "it is not a regular file")
            return
        _check_size(path.name, entry, found.st_size, findings)
        scan = _Scan(path.name, entry, manifest, findings)
        for block in _blocks(file, min(found.st_size, entry.size_bytes), path):
            scan.update(block)
            findings.bytes_checked += len(block)
            findings.tell(findings.bytes_checked, Counts())
        if found.st_size >= entry.size_bytes:
            scan.finish()


def _check_size(name: str, entry: FileEntry, size_bytes: int, findings: Findings) -> None:
    if size_bytes < entry.size_bytes:
        findings.add(
            name, f"the file is cut: it has {size_bytes:,} of {counted(entry.size_bytes, 'byte')}", size_bytes, entry.size_bytes
        )
    if size_bytes > entry.size_bytes:
        findings.add(name, f"the file has {counted(size_bytes - entry.size_bytes, 'byte')} too many", entry.size_bytes, size_bytes)


def _blocks(file: object, n_bytes: int, path: Path) -> Iterator[memoryview]:
    """The first `n_bytes` bytes of a file, in blocks that are valid until the next."""
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    left = n_bytes
    while left:
        want, got = min(left, _BLOCK_BYTES), 0
        while got < want:
            try:
                n = file.readinto(buffer[got:want])  # type: ignore[attr-defined]
            except OSError as error:
                raise _unreadable(path, error) from error
            if not n:
                break
            got += n
        if not got:
            return
        yield buffer[:got]
        left -= got


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot read it: {error.strerror}", where=str(path), next_step="check the disk, then verify again")


class _Scan:
    """One pass over one file, block by block."""

    def __init__(self, name: str, entry: FileEntry, manifest: Manifest, findings: Findings) -> None:
        content = manifest.content
        self._name = name
        self._entry = entry
        self._findings = findings
        self._dtype = np.dtype(content.dtype).newbyteorder("<")
        self._n_ids = content.tokenizer.n_ids
        self._eot_id = content.tokenizer.eot_id
        self._eot = content.eot
        self._spans: list[tuple[int, FileSpan]] = [
            (number, segment.files[name]) for number, segment in enumerate(manifest.segments, 1) if name in segment.files
        ]
        self._next_span = 0
        self._span_begin = 0
        self._hash = xxhash.xxh3_128()
        self._position = 0
        self._n_eot = 0
        self._n_wrong_ids = 0
        self._first_wrong: tuple[int, int] | None = None
        self._first_id = self._last_id = -1

    def update(self, block: memoryview) -> None:
        """The next bytes of the file; all blocks but the last hold whole ids."""
        self._update_digests(block)
        if self._entry.side is not None:
            whole = len(block) - len(block) % self._dtype.itemsize
            if whole:
                self._update_ids(np.frombuffer(block[:whole], self._dtype))
        self._position += len(block)

    def finish(self) -> None:
        """All bytes of the file have passed: the sums."""
        add = self._findings.add
        entry, item_bytes = self._entry, self._dtype.itemsize
        if self._next_span < len(self._spans) or self._span_begin != entry.size_bytes:
            add(self._name, "the segments do not add up to the file", self._span_begin, entry.size_bytes)
        if entry.side is None:
            return
        if entry.tokens * item_bytes != entry.size_bytes:
            add(
                self._name,
                f"{counted(entry.tokens, 'token')} of {item_bytes} bytes in a file of {counted(entry.size_bytes, 'byte')}",
            )
        if self._first_wrong is not None:
            place, value = self._first_wrong
            end = place + item_bytes
            add(
                self._name,
                f"id {value:,} is not below {self._n_ids:,} ({counted(self._n_wrong_ids, 'such id')} in the file)",
                place,
                end,
            )
        if self._eot == "none":
            return
        if self._n_eot != entry.documents:
            add(self._name, f"{counted(self._n_eot, 'end-of-text id')}, but {counted(entry.documents, 'document')}")
        edge = self._last_id if self._eot == "after" else self._first_id
        if entry.tokens and edge != self._eot_id:
            which = "last" if self._eot == "after" else "first"
            add(self._name, f"the {which} id is {edge:,}, not the end-of-text id {self._eot_id:,}")

    def _update_digests(self, block: memoryview) -> None:
        done = 0
        while self._next_span < len(self._spans):
            number, span = self._spans[self._next_span]
            n = max(span.end - self._position - done, 0)
            self._hash.update(block[done : done + n])
            if done + n > len(block):
                return
            done += n
            if span.end < self._span_begin or self._hash.hexdigest() != span.digest:
                self._findings.add(self._name, f"the bytes of segment {number:,} are not those written", self._span_begin, span.end)
            self._span_begin = span.end
            self._hash = xxhash.xxh3_128()
            self._next_span += 1

    def _update_ids(self, ids: np.ndarray[tuple[int], np.dtype[np.uint16] | np.dtype[np.uint32]]) -> None:
        if self._position == 0:
            self._first_id = int(ids[0])
        self._last_id = int(ids[-1])
        if self._eot != "none":
            self._n_eot += int(np.count_nonzero(ids == self._eot_id))
        if int(ids.max()) < self._n_ids:
            return
        wrong = np.flatnonzero(ids >= self._n_ids)
        self._n_wrong_ids += len(wrong)
        if self._first_wrong is None:
            self._first_wrong = (self._position + int(wrong[0]) * self._dtype.itemsize, int(ids[wrong[0]]))
