"""A complete output, or a bare file of ids, as a source: its segments as steps, its files as checked bytes.

Everything is read front to back in blocks, and every byte is compared with the digest of its segment before a commit can build on
it. Files are not mapped: pages of a map count as memory, and a disk that fails would be a signal instead of an error.
"""

from __future__ import annotations

import functools
import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from tokmill.core.errors import DamageError, UsageError
from tokmill.core.manifest import Manifest, load_manifest
from tokmill.core.records import Counts, Cursor, path_to_text
from tokmill.core.spans import HEADER, Span, SpanChecker, add_up, spans_of
from tokmill.core.system import page_cache
from tokmill.core.system.current import SYSTEM
from tokmill.core.system.tree import TreePath
from tokmill.core.text import counted
from tokmill.output import is_current, open_file, replaced_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from tokmill.core.config import Content
    from tokmill.core.records import EotPlacement, IdType
    from tokmill.dataset import IdReader, Ids

BLOCK_BYTES = 4 << 20
"""Read at a time; file systems that share blocks between files want multiples of theirs."""
BLOCK_TOKENS = 1 << 20
"""Ids that are read at a time."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a source after which an output made from it can be committed."""

    after: Cursor
    """In the corpus of the source."""
    counts: Counts
    """Sums from the start of the source."""
    ends: Mapping[str, int]
    """Where it ends in each file that it touches, in bytes."""
    writer: Mapping[str, int]
    """State of the source's own writer."""


class SourceBytes(Protocol):
    """What a source reads from: a file of this machine, or an object."""

    fd: int = -1
    """Descriptor of a file of this machine."""
    size_bytes: int

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill the beginning of `view` from `offset` on; return how many bytes, 0 at the end. Raises OSError, TokmillError."""

    def close(self) -> None:
        """Release what is held; can be called again."""


class _FileBytes(SourceBytes):
    """A file of this machine, kept out of the page cache."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size_bytes = os.fstat(fd).st_size
        self._cache = page_cache.ReadOnce(fd, self.size_bytes)

    def read_into(self, view: memoryview, offset: int) -> int:
        """See SourceBytes."""
        self._cache.before(offset)
        return SYSTEM.read_into(self.fd, view, offset)

    def close(self) -> None:
        """See SourceBytes."""
        if self.fd >= 0:
            self._cache.finish()
            os.close(self.fd)
            self.fd = -1


class CheckedFile:
    """A file that is read front to back; every span of it that passes is compared with its digest. Close it."""

    def __init__(
        self,
        path: Path | str,
        size_bytes: int,
        spans: Sequence[Span] | None,
        open_it: Callable[[], SourceBytes] | None = None,
    ) -> None:
        """spans: None for a bare file, without digests. open_it: None: the file at `path` is opened.

        Raises DamageError when the file is not there or not so long.
        """
        self.path = path
        self._bytes: SourceBytes | None = None
        self._size = size_bytes
        self._spans = spans or ()
        self._checker = SpanChecker(self._spans)
        self._is_begun = False
        if spans is not None and not add_up(spans, size_bytes):
            raise self._damage("its segments do not add up to the file", 0, size_bytes)
        try:
            self._bytes = open_it() if open_it else _FileBytes(TreePath(Path(path)).open())
        except OSError as error:
            raise self._damage(f"it cannot be opened: {error.strerror}", 0, size_bytes) from None
        if (found := self._bytes.size_bytes) != size_bytes:
            self.close()
            raise self._damage(f"it has {counted(found, 'byte')}, not {size_bytes:,}", min(found, size_bytes), size_bytes)

    @property
    def fd(self) -> int:
        """Descriptor of the file; -1 where it is none of this machine."""
        return self._bytes.fd if self._bytes else -1

    def blocks(self, begin: int, end: int) -> Iterator[tuple[int, memoryview]]:
        """Yield the bytes from `begin` to `end`, each block with its offset and valid until the next. Raises DamageError."""
        buffer = memoryview(bytearray(min(BLOCK_BYTES, max(end - begin, 0))))
        while begin < end:
            block = buffer[: min(end - begin, BLOCK_BYTES - begin % BLOCK_BYTES)]
            self.read_into(begin, block)
            yield begin, block
            begin += len(block)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset` on; what lies between the last read and this is read, too. Raises DamageError."""
        if offset < self._checker.position or not self._is_begun:
            self._is_begun = True
            self._checker.seek(offset)
        self._pass_to(offset)
        self._fill(view)

    def finish(self) -> None:
        """Read the rest, for its digests. Raises DamageError."""
        if self._spans and self._is_begun:
            self._pass_to(self._spans[-1].end)

    def close(self) -> None:
        """Close the file; can be called again."""
        if self._bytes is not None:
            self._bytes.close()

    def _pass_to(self, offset: int) -> None:
        while (left := offset - self._checker.position) > 0:
            self._fill(memoryview(bytearray(min(left, BLOCK_BYTES))))

    def _fill(self, view: memoryview) -> None:
        assert self._bytes is not None
        position, done = self._checker.position, 0
        while done < len(view):
            try:
                n = self._bytes.read_into(view[done:], position + done)
            except OSError as error:
                raise self._damage(f"it cannot be read: {error.strerror}", position + done, self._size) from error
            if not n:
                raise self._damage("it was cut while it was read", position + done, self._size)
            done += n
        for span in self._checker.update(view):
            what = "its header" if span.segment == HEADER else f"its segment {span.segment + 1:,}"
            raise self._damage(f"the bytes of {what} are not those written", span.begin, span.end)

    def _damage(self, what: str, begin: int, end: int) -> DamageError:
        return DamageError(
            f"a source is damaged: {what}",
            where=f"{path_to_text(str(self.path))}, bytes {begin:,} to {end:,}",
            allowed="every byte as the source's manifest says",
            next_step=f"tokmill verify {shlex.quote(str(self.path).rpartition('/')[0])} says what else is damaged; make that "
            "output again, then run this again",
        )


class Source:
    """A complete output directory, or bare files described like one. Files are opened when they are read; close it."""

    def __init__(
        self, directory: Path | str, manifest: Manifest, steps: Sequence[Step] | None = None, *, is_bare: bool = False
    ) -> None:
        """directory: of an output in a store its URL, without secrets. steps: None: the segments of the manifest."""
        self.directory = directory
        self.manifest = manifest
        self.content: Content = manifest.content
        self.steps = _steps(manifest) if steps is None else steps
        self.is_bare = is_bare
        """Whether it is bare files, without digests, with a manifest made for them."""
        self._files: dict[str, CheckedFile] = {}
        self._spans = {} if is_bare else spans_of(manifest)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Return a complete output. Raises UsageError if there is none, DamageError for a manifest that cannot be trusted."""
        return cls(directory, refuse_unfit(load_manifest(directory), str(directory)))

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size_bytes for entry in self.manifest.files.values())

    @property
    def n_inputs(self) -> int:
        """Inputs of its corpus."""
        return len(self.content.inputs)

    def file(self, name: str) -> CheckedFile:
        """Return one of its files, the only one of its side that is open. Raises DamageError."""
        if name not in self._files:
            entry = self.manifest.files[name]
            for other in [n for n in self._files if self.manifest.files[n].side == entry.side]:
                # There may be thousands of them.
                file = self._files.pop(other)
                file.finish()
                file.close()
            self._files[name] = self._open(name, entry.size_bytes)
        return self._files[name]

    def read_into(self, name: str, offset: int, view: memoryview) -> None:
        """Fill `view` with bytes of a file. Raises DamageError."""
        self.file(name).read_into(offset, view)

    def _open(self, name: str, size_bytes: int) -> CheckedFile:
        """Open a file. Raises DamageError; ChangedError if something was appended to the output since its manifest was read."""
        directory = Path(self.directory)
        if self.is_bare:
            return CheckedFile(directory / name, size_bytes, None)
        try:
            opening = functools.partial(open_file, directory, self.manifest, name)
            return CheckedFile(directory / name, size_bytes, self._spans[name], lambda: _FileBytes(opening()))
        except DamageError:
            if is_current(directory, self.manifest):
                raise
            raise replaced_error(directory) from None

    def finish(self) -> None:
        """Check the rest of the files that were read. Raises DamageError."""
        for file in self._files.values():
            file.finish()

    def count_error(self, side: str, n_found: int) -> DamageError:
        """Return the error for a side with another number of documents than its manifest says."""
        expected = getattr(self.manifest.counts, f"documents_{side}")
        return DamageError(
            f"a source is damaged: {counted(n_found, 'document')} by its end-of-text ids, {expected:,} by its manifest",
            where=f"{self.directory}, side {side}",
            allowed="as many documents as the manifest counts",
            next_step="tokmill verify says what else is damaged; make that output again, then run this again with --fresh",
        )

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files = {}


def refuse_unfit(manifest: Manifest, where: str) -> Manifest:
    """Return the manifest of an output of whole documents. Raises UsageError for that of a part, or of a packed one."""
    if manifest.content.part:
        raise UsageError(
            f"this is part {manifest.content.part} of an output",
            where=where,
            allowed="whole outputs",
            next_step="tokmill finalize DIR makes one output of the parts; DIR is what was --out",
        )
    if manifest.content.packing:
        raise UsageError(
            "this output is packed: its documents lie in sequences, some of them cut, with padding between them",
            where=where,
            allowed="outputs whose documents are whole, one after the other",
            next_step="take what it was made from (made_from in its manifest), and tokmill pack that again, with another --format "
            "if that is what is wanted",
        )
    return manifest


def check_marks(source: Source) -> None:
    """Raise UsageError for an output whose documents cannot be told apart."""
    if source.content.eot == "none":
        raise UsageError(
            "documents cannot be told apart in "
            + ("bare files stated to have no end-of-text ids" if source.is_bare else "an output that was written with --eot none"),
            where=str(source.directory),
            allowed="an end-of-text id before or after each document; without, "
            + ("--format raw, llmc, litdata, mds" if source.is_bare else "outputs of the raw format can be merged"),
            next_step="choose another --format, and leave --to-eot out"
            if source.is_bare
            else "tokenize again, directly into the format that is wanted",
        )


def _steps(manifest: Manifest) -> list[Step]:
    """Return the segments as steps; those that share a cursor are one, and the last ends where the corpus does."""
    steps: list[Step] = []
    for segment in manifest.segments:
        ends = {name: span.end for name, span in segment.files.items()}
        if steps and steps[-1].after == segment.after:
            ends = {**steps.pop().ends, **ends}
        steps.append(Step(segment.after, segment.counts, ends, segment.writer))
    last = steps.pop() if steps else Step(Cursor(), Counts(), {}, {})
    return [*steps, replace(last, after=Cursor(input_index=len(manifest.content.inputs)), counts=manifest.counts)]


class ShiftedIds:
    """The ids of a side with end-of-text ids where another output wants them, and the ends of documents in it.

    Their placement changes by a shift: with one in front of everything and without the last, ids that had them after each document
    have them before it. So a conversion needs no list of documents, and no more memory than one block.
    """

    def __init__(self, ids: IdReader, eot_id: int, was: EotPlacement, wanted: EotPlacement) -> None:
        """was, wanted: `none` for both, or for neither."""
        self.n_tokens = len(ids)
        self._ids = ids
        self._eot = np.array([eot_id], np.uint32)
        self._wanted = wanted
        self._shift = 0 if was == wanted else 1 if wanted == "before" else -1

    def blocks(self, begin: int, end: int) -> Iterator[tuple[Ids, NDArray[np.int64]]]:
        """Yield the ids from `begin` to `end`, block by block, each with the ends of documents in it.

        ends: int64, shape (n,): for each document that ends in the block, the index in its ids just past its last.
        """
        while begin < end:
            upto = min(begin + BLOCK_TOKENS, end)
            yield self.block(begin, upto)
            begin = upto

    def block(self, begin: int, end: int) -> tuple[Ids, NDArray[np.int64]]:
        """Return the ids from `begin` to `end`, with the ends of documents in them, as `blocks` does."""
        ids = self._read(begin, end + 1)
        return ids[: end - begin], self._ends(ids, end - begin)

    def read_to(self, end: int) -> None:
        """Read the id before `end` as it lies there, where what was yielded may end sooner: so its segment is read to its end."""
        self._ids.read(end - 1, end)

    def _read(self, begin: int, end: int) -> Ids:
        """Read ids; at the end of the side there may be one more than was asked for, if the shift left room for it."""
        end = min(end, self.n_tokens)
        ids = self._ids.read(begin - self._shift, end - self._shift)
        eot = self._eot.astype(ids.dtype)
        if self._shift > 0 and begin == 0:
            return np.concatenate([eot, ids])
        if self._shift < 0 and end == self.n_tokens and begin < end:
            return np.concatenate([ids, eot])
        return ids

    def _ends(self, ids: Ids, n: int) -> NDArray[np.int64]:
        """Return where documents end among the first `n` ids. ids: those and, if there is one, the next."""
        if self._wanted == "none":
            return np.zeros(0, np.int64)
        marks = np.flatnonzero(ids == self._eot[0])
        if self._wanted == "after":
            return marks[marks < n] + 1
        ends = marks[marks > 0]
        return ends if len(ids) > n else np.append(ends, n)


def check_edge(ids: IdReader, eot_id: int, eot: EotPlacement, where: str, *, is_bare: bool) -> None:
    """Raise DamageError, for a bare file UsageError, if a side does not begin or end as its end-of-text ids say."""
    if eot == "none" or not len(ids):
        return
    edge = ids[:1] if eot == "before" else ids[-1:]
    if int(edge[0]) == eot_id:
        return
    which = "last" if eot == "after" else "first"
    what = f"the {which} id is {int(edge[0]):,}, not the end-of-text id {eot_id:,}"
    next_step = "tokmill verify says what else is damaged; make that output again"
    if is_bare:
        next_step = (
            "state what is in it (--from-dtype, --from-eot, --from-eot-id), and give the files of a corpus together, in order"
        )
    wrong = UsageError if is_bare else DamageError
    raise wrong(what, where=where, allowed="whole documents, each with its end-of-text id", next_step=next_step)


def narrowed(ids: Ids, dtype: IdType, where: str) -> Ids:
    """Return the ids as another dtype. Raises UsageError for one that does not fit."""
    wanted = np.dtype(dtype).newbyteorder("<")
    if ids.dtype == wanted:
        return ids
    largest = int(ids.max()) if len(ids) else 0
    if largest > np.iinfo(wanted).max:
        raise UsageError(
            f"id {largest:,} does not fit into {dtype}",
            where=where,
            allowed=f"{counted(int(np.iinfo(wanted).max) + 1, 'id')}, from 0",
            option="--to-dtype",
            suggested="uint32",
        )
    return ids.astype(wanted)
