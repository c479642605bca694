"""Reads corpora in tests: what came out, and the one assertion about resuming."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash
from hypothesis import strategies as st
from support.records import a_content, some_resources

from tokmill.core.records import Batch, Counts, Cursor, Input, Skip
from tokmill.read.corpus import CorpusReader
from tokmill.read.inputs import find_inputs
from tokmill.read.utf8 import clean, first_invalid

if TYPE_CHECKING:
    from pathlib import Path

    from tokmill.core.config import Content


SEPARATORS = ("<|endoftext|>", "\n\n", "aa", "aba", "a", " a", "é")


def contents(separator: str) -> st.SearchStrategy[bytes]:
    """Mixtures of text, separators, and pieces of separators."""
    data = separator.encode()
    bits = st.sampled_from(
        [data, data[:1], data[1:], data[: len(data) // 2], b"a", b"ab ", b"c d", b" ", b"\n", "é€".encode(), b"word word"]
    )
    return st.lists(bits, max_size=40).map(b"".join)


class SpaceCutter:
    """A tiny real cutter: between an ASCII letter and a space that is followed by an ASCII letter."""

    _PLACE = re.compile(rb"(?<=[A-Za-z]) (?=[A-Za-z])")

    def last(self, text: bytes | bytearray, limit: int) -> int:
        return max((m.start() for m in self._PLACE.finditer(bytes(text)) if m.start() <= limit), default=0)

    def first(self, text: bytes | bytearray, start: int) -> int:
        return next((m.start() for m in self._PLACE.finditer(bytes(text)) if m.start() >= start), 0)


def records_of(skip: Skip) -> list[Skip]:
    """The records that a reader skipped together, one by one; only of the first it says at which byte."""
    first = msgspec.structs.replace(skip, records=msgspec.UNSET)
    more = range(1, skip.n_records)
    return [first, *(msgspec.structs.replace(first, record=(skip.record or 0) + i, offset=None) for i in more)]


@dataclass
class Reading:
    """What a reader made of a corpus, as the stages behind it would see it."""

    documents: list[tuple[bool, bytes]] = field(default_factory=list)
    """Side and text of each document that ended."""
    open: dict[bool, bytes] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    skips: list[Any] = field(default_factory=list)

    def add(self, batch: Batch, content: Content) -> None:
        below = math.ceil(content.val_fraction * 2**64)
        if batch.raw is not None and first_invalid(batch.raw) is None:
            assert all(first_invalid(d) is None for d in batch.documents), "raw vouches for the documents"
        for i, document in enumerate(batch.documents):
            if batch.raw is not None and content.encoding_errors != "strict":
                document = clean(document, content.encoding_errors)[0]  # noqa: PLW2901  as the encode stage does
            side = batch.is_val if batch.is_val is not None else xxhash.xxh3_64_intdigest(document, content.seed) < below
            opened = batch.head_open and i == 0
            assert (side in self.open) == opened, "a piece goes on where its document was left open"
            text = self.open.pop(side, b"") + document
            if batch.tail_open and i == len(batch.documents) - 1:
                self.open[side] = text
            else:
                self.documents.append((side, text))
        self.counts += batch.counts
        self.skips += [one for skip in batch.skips for one in records_of(skip)]

    @property
    def texts(self) -> list[bytes]:
        assert not self.open
        return [text for _, text in self.documents]


def write(directory: Path, files: dict[str, bytes]) -> tuple[Input, ...]:
    """Write files and find them, in the order given."""
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return find_inputs([str(directory / name) for name in files], glob=None, input_format=None).inputs


def a_reader(
    content: Content,
    cutter: Any = None,
    *,
    batch_bytes: int = 1 << 20,
    max_piece_bytes: int = 1 << 24,
    budget_bytes: int = 0,
    **small: Any,
) -> CorpusReader:
    """A reader; budget_bytes: of which a record may be a tenth, where that is more than a piece."""
    resources = some_resources(batch_bytes=batch_bytes, max_piece_bytes=max_piece_bytes, budget_bytes=budget_bytes)
    return CorpusReader(content, resources, cutter, **small)


def read_all(
    inputs: tuple[Input, ...], cutter: Any = None, *, resume: bool = True, sizes: dict[str, int] | None = None, **changes: Any
) -> Reading:
    """Read a corpus, check what holds for every corpus, and (unless told otherwise) resume at every cursor."""
    content = a_content(inputs=inputs, **changes)
    reader = a_reader(content, cutter, **(sizes or {}))
    batches = list(reader.batches(Cursor()))
    reading = Reading()
    for i, batch in enumerate(batches):
        assert batch.index == i
        reading.add(batch, content)
    assert not reading.open
    assert [b.position_bytes for b in batches] == sorted(b.position_bytes for b in batches)
    if batches:
        assert batches[-1].after == Cursor(input_index=len(inputs))
    if resume:
        assert_resumes(reader, content, batches, reading)
    return reading


def without_bytes(reading: Reading) -> Reading:
    """What was read, without the bytes at which records were skipped: of several together only the first has one."""
    return replace(reading, skips=[msgspec.structs.replace(skip, offset=None) for skip in reading.skips])


def assert_resumes(reader: CorpusReader, content: Content, batches: list[Batch], expected: Reading) -> None:
    """From every cursor, reading goes on to the same documents, sides, counts and skips."""
    so_far = Reading()
    for batch in batches:
        so_far.add(batch, content)
        if batch.after is None:
            continue
        resumed = Reading(list(so_far.documents), dict(so_far.open), so_far.counts, list(so_far.skips))
        for rest in reader.batches(batch.after):
            resumed.add(rest, content)
        assert without_bytes(resumed) == without_bytes(expected), batch.after
