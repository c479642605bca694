"""Decodes what was written and compares it with the corpus, byte by byte and document by document.

The corpus is read again and every document is assigned its side again; the written ids of each side become two streams, text and
marks (where documents end or begin, as offsets into that text). Comparing streams instead of documents takes no Python for each
document of the output. Memory stays bounded on damaged files, too: marks are searched only as far as the text they belong to.
"""

from __future__ import annotations

import os
import shlex
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash

from tokmill.check.findings import as_encoded, as_often, name_budget, naming_options
from tokmill.check.reference import ReferenceSample
from tokmill.core.config import MIB, BudgetTerms, Resources, how_not_of_corpus
from tokmill.core.errors import BadRecordError, BadTextError, ChangedError, DamageError, MemoryBudgetError, UsageError
from tokmill.core.manifest import SKIPPED_NAME, read_state
from tokmill.core.options import AUDIT
from tokmill.core.output_spec import SIDES, Shards
from tokmill.core.records import STDIN, Counts, Cursor, Skip, text_to_path
from tokmill.core.selection import Selection
from tokmill.core.spans import RecordRanges
from tokmill.core.system.tree import tree_of
from tokmill.core.text import counted, shortened
from tokmill.dataset import IdReader, files_of, find_tokenizer
from tokmill.encode import cutter_of, engine_of, is_lossless, load_fastest, text_lengths
from tokmill.output import source_error
from tokmill.read import CorpusReader, clean, find_inputs, first_invalid
from tokmill.run import Auditor, EncodeStage, TokenLimits, divide_resources

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tokmill.check.findings import Findings
    from tokmill.core.config import Content
    from tokmill.core.manifest import Manifest
    from tokmill.core.protocols import Encoder
    from tokmill.core.records import Batch, Input, Tokens
    from tokmill.core.system.tree import Directory

_BLOCK_TOKENS = 1 << 16
"""Ids decoded at a time: 0.3 MB of prose, 8 MB if all are the longest token there is."""

_MOST_NAMED = 5

USUAL = Resources(
    budget_bytes=1024 * MIB,
    child_bytes=1024 * MIB,
    terms=BudgetTerms(n_threads=1),
    batch_bytes=2 * MIB,
    arena_bytes=0,
    spare_bytes=512 * MIB,
    max_piece_bytes=1024 * MIB,
    reset_above_bytes=512 * MIB,
)


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared with the corpus, and is the same."""

    documents: int = 0
    n_bytes: int = 0
    """Bytes of text that were compared."""
    by_reference: int = 0
    """Documents whose ids are those of the reference tokenizer, which encoded them again."""
    reference: str = ""
    is_decoded: bool = True
    """The ids were decoded and the text compared; else the text was encoded again."""


class WrittenSide:
    """The text and the marks of one side of the output, front to back."""

    def __init__(self, ids: IdReader, encoder: Encoder, lengths: NDArray[np.int64], eot_id: int) -> None:
        """lengths: bytes of text of each id, as `encode.text_lengths` returns them."""
        self._written = ids
        self._encoder = encoder
        self._lengths = lengths
        self._eot_id = eot_id
        self._next_id = 0
        self._text = memoryview(b"")
        self._text_end = 0
        self._marks: NDArray[np.int64] = np.zeros(0, np.int64)
        self._recent: deque[tuple[NDArray[np.uint32], NDArray[np.int64]]] = deque()
        """Ids of text, and where the text of each ends."""

    def take(self, n_bytes: int) -> memoryview:
        """Return the next bytes of text, at least one and at most `n_bytes`; none only at the end."""
        while not self._text and self._read_block():
            pass
        part, self._text = self._text[:n_bytes], self._text[n_bytes:]
        return part

    def take_marks(self, n: int, last: int) -> NDArray[np.int64]:
        """Return the next `n` marks, int64, shape (n,); fewer if no more are at or before text offset `last`.

        Call it when all text before `last` has been taken: what is read to find a later mark is kept.
        """
        while len(self._marks) < n and self._text_end <= last and self._read_block():
            pass
        marks, self._marks = self._marks[:n], self._marks[n:]
        return marks

    def ids_between(self, begin: int, end: int) -> NDArray[np.uint32]:
        """Return the ids of a stretch of text that was taken, and not before what `forget` was told."""
        parts = [np.zeros(0, np.uint32)]
        for ids, ends in self._recent:
            is_within = (ends - self._lengths[ids] >= begin) & (ends <= end)
            parts.append(ids[is_within])
        return np.concatenate(parts)

    def forget(self, offset: int) -> None:
        """Forget the ids of the text before an offset."""
        while self._recent and (not len(self._recent[0][1]) or self._recent[0][1][-1] <= offset):
            self._recent.popleft()

    def is_exhausted(self) -> bool:
        """Return whether all text and all marks were taken."""
        return self._next_id == len(self._written) and not len(self._text) and not len(self._marks)

    def id_at(self, offset: int) -> int:
        """Return the index of the id that holds byte `offset` of the text; the number of ids if the text ends before it."""
        begin = before = 0
        while begin < len(self._written):
            ends = np.cumsum(self._lengths[self._written.read(begin, begin + _BLOCK_TOKENS)]) + before
            if offset < ends[-1]:
                return begin + int(np.searchsorted(ends, offset, side="right"))
            begin, before = begin + len(ends), int(ends[-1])
        return len(self._written)

    def n_last_ids(self, n_bytes: int) -> int:
        """Return how many ids at the end hold the last bytes of text; those without text that follow are among them."""
        n_ids = len(self._written)
        end = n_ids
        while n_bytes > 0 and end:
            begin = max(0, end - _BLOCK_TOKENS)
            sums = np.cumsum(self._lengths[self._written.read(begin, end)][::-1])
            if n_bytes <= sums[-1]:
                return n_ids - end + int(np.searchsorted(sums, n_bytes)) + 1
            end, n_bytes = begin, n_bytes - int(sums[-1])
        return n_ids - end

    def locate(self, index: int) -> tuple[str, int]:
        """As `IdReader.locate`."""
        return self._written.locate(index)

    def _read_block(self) -> bool:
        """Read the next ids; `_text` is empty or short (it ends where a document ends). Return False at the end."""
        ids = self._written.read(self._next_id, self._next_id + _BLOCK_TOKENS)
        if not len(ids):
            return False
        self._next_id += len(ids)
        is_mark = ids == self._eot_id
        if is_mark.any():
            marks = np.cumsum(self._lengths[ids])[is_mark] + self._text_end
            self._marks = np.concatenate([self._marks, marks])
            ids = ids[~is_mark]
        ids = ids.astype(np.uint32)
        self._recent.append((ids, np.cumsum(self._lengths[ids]) + self._text_end))
        text = self._encoder.decode(ids)
        self._text_end += len(text)
        self._text = memoryview(bytes(self._text) + text if self._text else text)
        return True


@dataclass(frozen=True, slots=True)
class _Expected:
    """What one side must have next, according to one batch of the corpus."""

    texts: list[bytes]
    text: bytes
    """All of them."""
    origin: list[int]
    """Index of each document in the batch."""
    ends: NDArray[np.int64]
    """Where each document ends in `text`, shape (n_documents,)."""
    marks: NDArray[np.int64]
    """Offsets into `text`, shape (n_marks,)."""


class _DifferenceError(Exception):
    """The output differs from the corpus. Its arguments are those of `Findings.add`."""


class _Comparison:
    """A walk through the corpus and both sides of the output."""

    def __init__(
        self, content: Content, counts: Counts, sides: list[WrittenSide], encoder: Encoder, sample: ReferenceSample
    ) -> None:
        """counts: of the output."""
        self.documents = 0
        self.n_bytes = 0
        self.sample = sample
        self._encoder = encoder
        self._content = content
        self._choice = _Choice(content, counts)
        self._sides = sides
        self._item_bytes = np.dtype(content.dtype).itemsize
        self._offsets = [0, 0]
        self._numbers = [0, 0]
        self._last_bytes = [0, 0]
        """Bytes of text of the last document of each side."""
        self.is_last_val = False

    @property
    def is_over(self) -> bool:
        """Whether the output ends here, wherever the corpus does."""
        return self._choice.is_over

    def n_last(self, side: int) -> int:
        """Return how many ids the last document of a side has. Call it at the end."""
        n_bytes, eot = self._last_bytes[side], self._content.eot
        n_with_end = self._sides[side].n_last_ids(n_bytes) if n_bytes else eot == "after"
        return n_with_end + (eot == "before")

    def compare(self, batch: Batch) -> None:
        """Raise _DifferenceError unless the output has this batch next."""
        origin, documents, hashes, is_val = self._choice.of(batch)
        for side in (False, True):
            chosen = np.flatnonzero(is_val == side)
            if len(chosen):
                last = bool(chosen[-1] == len(documents) - 1) and not self.is_over
                expected = self._expect(batch, documents, origin, chosen.tolist(), holds_last=last)
                self._compare_side(batch, expected, side, hashes[chosen])
                continues = batch.head_open and len(chosen) == 1 and not chosen[0]
                self._last_bytes[side] = self._last_bytes[side] * continues + len(expected.texts[-1])
        if len(is_val):
            self.is_last_val = bool(is_val[-1])

    def surplus(self) -> list[tuple[str, int]]:
        """Return file and offset where each side goes on after the last document that was compared."""
        ends = zip(self._sides, self._offsets, strict=True)
        return [side.locate(side.id_at(offset)) for side, offset in ends if not side.is_exhausted()]

    def _expect(
        self, batch: Batch, documents: Sequence[bytes], origin: Sequence[int], chosen: list[int], *, holds_last: bool
    ) -> _Expected:
        texts = [documents[i] for i in chosen]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        marks: NDArray[np.int64] = np.zeros(0, np.int64)
        if self._content.eot == "after":
            marks = ends[:-1] if batch.tail_open and holds_last else ends
        elif self._content.eot == "before":
            begins = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
            marks = begins[1:] if batch.head_open and chosen[0] == 0 else begins
        return _Expected(texts, b"".join(texts), [origin[i] for i in chosen], ends, marks)

    def _compare_side(
        self,
        batch: Batch,
        expected: _Expected,
        side: bool,  # noqa: FBT001  the index of a side
        hashes: NDArray[np.uint64],
    ) -> None:
        written, offset = self._sides[side], self._offsets[side]
        place = _first_difference(written, expected.text)
        if place is not None:
            raise self._difference(batch, expected, side, place, "the text differs")
        last = offset + len(expected.text)
        marks = written.take_marks(len(expected.marks), last) - offset
        if not np.array_equal(marks, expected.marks):
            n = min(len(marks), len(expected.marks))
            wrong = np.flatnonzero(marks[:n] != expected.marks[:n])
            i = int(wrong[0]) if len(wrong) else n
            raise self._difference(batch, expected, side, int(expected.marks[i]), "the end-of-text id is elsewhere")
        starts = expected.ends - [len(text) for text in expected.texts] + offset
        self.sample.compare(
            expected.texts,
            hashes,
            self._encoder,
            lambda i: written.ids_between(int(starts[i]), int(expected.ends[i]) + offset),
            lambda i: batch.locate(expected.origin[i]),
        )
        written.forget(last)
        self._offsets[side] = last
        self._numbers[side] += len(expected.ends) - batch.tail_open
        self.documents += len(expected.ends) - batch.tail_open
        self.n_bytes += len(expected.text)

    def _difference(self, batch: Batch, expected: _Expected, side: bool, place: int, what: str) -> _DifferenceError:  # noqa: FBT001
        i = min(int(np.searchsorted(expected.ends, place, side="right")), len(expected.ends) - 1)
        begin = int(expected.ends[i - 1]) if i else 0
        where = batch.locate(expected.origin[i])
        file, at = self._sides[side].locate(self._sides[side].id_at(self._offsets[side] + place))
        number = self._numbers[side] + i
        text = f"document {number:,}, byte {place - begin:,} of its text: {what} from the source ({where})"
        return _DifferenceError(file, text, at, at + self._item_bytes)


class _ReencodedComparison:
    """A walk that encodes the corpus again, for tokenizers whose ids do not give the text back.

    Such a tokenizer normalizes, marks words or has an unknown token. The ids of each batch must be the next ones of each
    side. It takes as long as the run did.
    """

    def __init__(
        self, content: Content, counts: Counts, sides: Sequence[IdReader], encoder: Encoder, sample: ReferenceSample
    ) -> None:
        """counts: of the output."""
        self.documents = 0
        self.n_bytes = 0
        self.sample = sample
        self._content = content
        self._choice = _Choice(content, counts)
        self._limits = TokenLimits(content, Counts(), Cursor())
        self._is_reference = engine_of(content.tokenizer, "gigatoken") == sample.engine
        # The sample is taken here, and not in the stage.
        self._stage = EncodeStage(content, encoder, Auditor(lambda: encoder, None, 0.0))
        self._sides = sides
        self._done = [0, 0]
        self._numbers = [0, 0]
        self._ends = [[0, 0], [0, 0]]
        """Where the last two documents of each side end."""
        self.is_last_val = False

    @property
    def is_over(self) -> bool:
        """See _Comparison."""
        return self._limits.is_reached

    def n_last(self, side: int) -> int:
        """See _Comparison."""
        before, last = self._ends[side]
        return last - before

    def compare(self, batch: Batch) -> None:
        """See _Comparison. Raise BadTextError or EngineError, too."""
        encoded, _ = self._limits.applied(self._stage.run(batch))
        for run in encoded.runs:
            self._compare_run(run, batch)
            if len(run.ends):
                ends = (run.ends[-2:] + self._done[run.is_val]).tolist()
                self._ends[run.is_val], self.is_last_val = [*self._ends[run.is_val], *ends][-2:], run.is_val
            self._done[run.is_val] += len(run.ids)
            self._numbers[run.is_val] += len(run.ends)
            self.documents += len(run.ends)
        self.n_bytes += encoded.counts.bytes_text
        if self._is_reference:
            self.sample.documents = self.documents
        else:
            self._ask_reference(batch, encoded.runs)

    def surplus(self) -> list[tuple[str, int]]:
        """See _Comparison."""
        return [side.locate(done) for side, done in zip(self._sides, self._done, strict=True) if len(side) > done]

    def _ask_reference(self, batch: Batch, runs: Sequence[Tokens]) -> None:
        origin, documents, hashes, is_val = self._choice.of(batch)
        places = [deque(np.flatnonzero(is_val == side).tolist()) for side in (False, True)]
        for run in runs:
            parts = np.split(run.ids, run.ends)
            n = len(parts) - (not len(parts[-1]))
            chosen = np.array([places[run.is_val].popleft() for _ in range(n)], np.intp)
            self.sample.compare(
                [documents[i] for i in chosen.tolist()],
                hashes[chosen],
                self._stage.encoder,
                lambda i, parts=parts: parts[i][parts[i] != self._content.tokenizer.eot_id].astype(np.uint32),  # type: ignore[misc]
                lambda i, chosen=chosen: batch.locate(origin[chosen[i]]),  # type: ignore[misc]
            )

    def _compare_run(self, run: Tokens, batch: Batch) -> None:
        side, begin = self._sides[run.is_val], self._done[run.is_val]
        written = side.read(begin, begin + len(run.ids))
        wrong = np.flatnonzero(written != run.ids[: len(written)])
        if not len(wrong) and len(written) == len(run.ids):
            return
        at = int(wrong[0]) if len(wrong) else len(written)
        number = self._numbers[run.is_val] + int(np.searchsorted(run.ends, at, side="right"))
        what = f"document {number:,}: the ids differ from those of the source (in what follows {batch.locate(0)})"
        name, place = side.locate(begin + at)
        raise _DifferenceError(name, what, place, place + side.dtype.itemsize)


def compare_with_sources(
    directory: Path,
    manifest: Manifest,
    names: Sequence[str] | None,
    glob: str | Sequence[str] | None,
    input_format: str | None,
    findings: Findings,
    memory: str | int | None = None,
    tokenizer_name: str | None = None,
    audit: float = AUDIT.default,
) -> Compared:
    """Compare a directory whose files are sound with its corpus. Return what is the same.

    names, glob, input_format, memory, tokenizer_name, audit: as of `verify`; names: None: the inputs that the manifest names.
    findings: takes the differences and the progress.

    Raise UsageError if the output cannot be compared, InputError for a source that cannot be read, ChangedError if the output
    differs and the sources are not those that were tokenized, and AuditError if ids are not those of the reference.
    """
    _refuse_incomparable(directory, manifest)
    if names is None:
        inputs = _recorded(manifest.content.inputs, directory)
    else:
        with naming_options(manifest.content.inputs, with_format=True):
            found = find_inputs(names, glob=glob, input_format=input_format, outside=str(directory))
        inputs = as_encoded(as_often(found.inputs, manifest.content.inputs), manifest.content.inputs)
    tokenizer = find_tokenizer(manifest.content.tokenizer, tokenizer_name)
    content = msgspec.structs.replace(manifest.content, inputs=inputs, tokenizer=tokenizer)
    files = files_of(directory, manifest)
    engine = engine_of(tokenizer, "gigatoken")
    resources = USUAL if memory is None else divide_resources(memory, 1, engine, content.inputs, n_ids=tokenizer.n_ids)[0]
    sample = ReferenceSample(tokenizer, audit)
    sides = [IdReader.of_files(side, files.get(side, ()), content.dtype) for side in SIDES]
    written = msgspec.structs.replace(manifest.counts, tokens_train=len(sides[0]), tokens_val=len(sides[1]))
    comparison = _comparison(content, written, sides, sample)
    reader = CorpusReader(content, resources, cutter_of(tokenizer))
    reader.skip_long(long_records(manifest, directory))
    sizes = [i.size_bytes for i in content.inputs]
    findings.reporter.notice("the files are as written; comparing with the sources")
    findings.reporter.started(sum(size for size in sizes if size is not None) if None not in sizes else None)
    try:
        for batch in reader.batches(Cursor()):
            comparison.compare(batch)
            findings.reporter.progress(batch.position_bytes, Counts(bytes_in=comparison.n_bytes, documents=comparison.documents))
            if comparison.is_over:
                break
        what = f"the output continues after {'its last document' if comparison.is_over else 'the end of the sources'}"
        differences: list[tuple[Any, ...]] = [(file, what, place, None) for file, place in comparison.surplus()]
        if not differences:
            differences = _limits_not_kept(content, comparison, sides)
    except _DifferenceError as error:
        differences = [error.args]
    except (BadRecordError, BadTextError) as error:
        # They were read once without it.
        other = source_error(manifest.content.inputs, content.inputs, directory, f"{error.where}: {error.what}")
        raise other or error from None
    except MemoryBudgetError as error:
        name_budget(error, manifest)
        raise
    for file, what, begin, end in differences:
        other = source_error(manifest.content.inputs, content.inputs, directory, f"{file}, byte {begin:,}: {what}")
        if other is not None:
            raise other
        findings.add(file, f"{what}; path, size and time of the sources are those of the run", begin, end)
    return Compared(
        documents=comparison.documents,
        n_bytes=comparison.n_bytes,
        by_reference=sample.documents,
        reference=sample.engine,
        is_decoded=is_lossless(tokenizer),
    )


def _recorded(inputs: tuple[Input, ...], directory: Path) -> tuple[Input, ...]:
    """Return the inputs that the manifest names, as they are now. A remote one is compared when it is read.

    Raise UsageError for a pipe, ChangedError for those that are not there.
    """
    found, missing, verify = [], [], f"tokmill verify {shlex.quote(str(directory))} --source"
    for source in inputs:
        if source.size_bytes is None:
            raise UsageError(
                "the output was made from a pipe, which cannot be read again",
                where="standard input" if source.path == STDIN else source.path,
                allowed="inputs that are files",
                next_step=f"pipe the same text in: ... | {verify} -",
            )
        try:
            now = None if source.is_remote else os.stat(text_to_path(source.path))
        except OSError as error:
            missing.append(f"{source.path}: {error.strerror}")
            continue
        found.append(msgspec.structs.replace(source, size_bytes=now.st_size, mtime_ns=now.st_mtime_ns) if now else source)
    if missing:
        raise ChangedError(
            "the inputs are not where they were" if len(inputs) > 1 else "the input is not where it was",
            where="\n".join([str(directory), *shortened(missing, _MOST_NAMED)]),
            allowed="the inputs that the manifest names",
            next_step=f"put them back, or say where they all are now, in that order: {verify} INPUT...",
        )
    return tuple(found)


def _refuse_incomparable(directory: Path, manifest: Manifest) -> None:
    """Raise UsageError for an output that is not all of what text read with its settings gives."""
    origin = manifest.content.origin
    if origin:
        next_step = "verify what it was made from with its sources; made_from in its manifest says what that is"
        if not manifest.made_from:
            option = "--shuffle" if origin.arranged else "--dedup"
            next_step = (
                f"what was tokenized for it is not kept: tokenize the inputs again without {option} into another directory, and "
                "verify that with --source; verify without --source checks this one by itself"
            )
        raise UsageError(
            f"this output cannot be compared: {how_not_of_corpus(manifest.content)}",
            where=str(directory),
            allowed="an output of one run, or of runs with the same settings",
            next_step=next_step,
        )
    if isinstance(manifest.content.shards, Shards) and manifest.content.shards.drop_tail:
        raise UsageError(
            "this output lacks the end of the corpus: it was made with --drop-tail",
            where=str(directory),
            allowed="verify without --source",
            next_step=f"tokmill verify {shlex.quote(str(directory))}",
        )


def long_records(manifest: Manifest, directory: Directory) -> RecordRanges | None:
    """Return which records were skipped as too long, as a reader has them; None where the list of skipped records lacks some.

    That depended on the budget of the run, or on several of one that was resumed.
    """
    n_skipped, found = manifest.counts.skipped.get("too_long", 0), dict[int, list[tuple[int, int]]]()
    try:
        lines = read_state(tree_of(directory) / SKIPPED_NAME).splitlines() if n_skipped else []
        skips = [skip for line in lines if (skip := msgspec.json.decode(line, type=Skip)).reason == "too_long"]
    except (OSError, DamageError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    places: dict[str, list[int]] = {}
    for index, source in enumerate(manifest.content.inputs):
        places.setdefault(source.path, []).append(index)
    for skip in skips:
        n_skipped -= skip.n_records
        for index in places.get(skip.path, ()):
            found.setdefault(index, []).append((skip.record or 0, (skip.record or 0) + skip.n_records))
    return None if n_skipped else RecordRanges(found)


def _comparison(
    content: Content, counts: Counts, sides: list[IdReader], sample: ReferenceSample
) -> _Comparison | _ReencodedComparison:
    """Return a comparison by decoding, or by encoding again if decoding does not give the text back. counts: of the output."""
    tokenizer, encoder = content.tokenizer, load_fastest(content.tokenizer)
    if not is_lossless(tokenizer):
        return _ReencodedComparison(content, counts, sides, encoder, sample)
    lengths = text_lengths(encoder, tokenizer)
    written = [WrittenSide(ids, encoder, lengths, tokenizer.eot_id) for ids in sides]
    return _Comparison(content, counts, written, encoder, sample)


def _limits_not_kept(
    content: Content, comparison: _Comparison | _ReencodedComparison, sides: Sequence[IdReader]
) -> list[tuple[Any, ...]]:
    """Return what shows that a limit of tokens was not kept, as arguments of `Findings.add`.

    The output is known to be a beginning of its sources. It must have too few tokens without its last document, and enough with it,
    whatever its manifest says and whoever ended it.
    """
    n_all, last = sum(map(len, sides)), int(comparison.is_last_val)
    found = [
        (side, comparison.n_last(side), f"a document follows the one that reached the {counted(most, 'token')} of {option}")
        for option, side, n, most in (
            ("--val-tokens", SIDES.index("val"), len(sides[SIDES.index("val")]), content.val_tokens),
            ("--max-tokens", last, n_all, content.max_tokens),
        )
        if most and n - comparison.n_last(side) >= most
    ]
    if content.max_tokens and comparison.is_over and n_all < content.max_tokens:
        found.append((last, 0, f"the output ends before the {counted(content.max_tokens, 'token')} of --max-tokens"))
    places = [(what, sides[side].locate(len(sides[side]) - n_last)) for side, n_last, what in found]
    return [(file, what, at, None) for what, (file, at) in places]


class _Choice:
    """Which documents of a batch were to be written, and on which side. Asked for each batch, in the order of the corpus."""

    def __init__(self, content: Content, counts: Counts) -> None:
        """counts: of the output."""
        self._content = content
        self._selection = Selection(content)
        is_full = bool(content.val_tokens) and counts.tokens_val >= (content.val_tokens or 0)
        self._n_val = counts.documents_val if is_full else None
        """Documents that are for validation from here on; None: all that are chosen."""
        is_reached = bool(content.max_tokens) and counts.tokens_train + counts.tokens_val >= (content.max_tokens or 0)
        self._left = np.array([counts.documents_train, counts.documents_val]) if is_reached else None
        """Documents of each side that the output has from here on; None: as many as the corpus has."""
        self._is_cut = False
        """Whether the output lacks the document that is next."""

    @property
    def is_over(self) -> bool:
        """Whether the output ends here, wherever the corpus does."""
        return self._left is not None and (self._is_cut or not self._left.any())

    def of(self, batch: Batch) -> tuple[Sequence[int], Sequence[bytes], NDArray[np.uint64], NDArray[np.bool_]]:
        """Return of each document its index in the batch, text, hash, and whether it is for validation. Raise BadTextError."""
        origin, documents = apply_policy(batch, self._content)
        seed, n = self._content.seed, len(documents)
        hashes = np.fromiter((xxhash.xxh3_64_intdigest(document, seed) for document in documents), np.uint64, n)
        if self._selection.is_sample and batch.is_val is None:
            kept = np.flatnonzero(self._selection.is_taken(hashes)).tolist()
            origin, documents, hashes = [origin[i] for i in kept], [documents[i] for i in kept], hashes[kept]
        if batch.is_val is not None or batch.is_of_val:
            is_val = np.full(len(documents), batch.is_of_val or batch.is_val)
        else:
            is_val = self._selection.is_val(hashes)
        if self._n_val is not None:
            is_val &= np.cumsum(is_val) <= self._n_val
            self._n_val -= int(is_val.sum()) - bool(batch.tail_open and is_val[-1:].any())
        if self._left is None:
            return origin, documents, hashes, is_val
        sums = np.cumsum(np.stack([~is_val, is_val]), axis=1)
        n = int((sums <= self._left[:, np.newaxis]).all(axis=0).sum())
        self._is_cut = n < len(documents)
        if n:
            self._left = self._left - sums[:, n - 1]
            self._left[int(is_val[n - 1])] += batch.tail_open and n == len(documents)
        return origin[:n], documents[:n], hashes[:n], is_val[:n]


def apply_policy(batch: Batch, content: Content) -> tuple[Sequence[int], Sequence[bytes]]:
    """Return the index in the batch and the text of each document that was to be written. Raise BadTextError."""
    documents, origin = batch.documents, range(len(batch.documents))
    kept = list(zip(origin, documents, strict=True))
    if batch.raw is not None and first_invalid(batch.raw) is not None:
        kept = [(i, text) for i, document in kept if (text := _valid(document, i, batch, content)) is not None]
    elif content.keep_empty or batch.is_val is not None or all(documents):
        return origin, documents
    if not content.keep_empty and batch.is_val is None:
        kept = [(i, document) for i, document in kept if document]
    return [i for i, _ in kept], [document for _, document in kept]


def _valid(document: bytes, i: int, batch: Batch, content: Content) -> bytes | None:
    """Return the document as it was to be written; None if it was to be skipped."""
    at = first_invalid(document)
    if at is None:
        return document
    if content.encoding_errors != "strict":
        return clean(document, content.encoding_errors)[0]
    if content.on_error == "skip":
        return None
    raise BadTextError(
        f"not valid UTF-8 at byte {at:,} of the document",
        where=str(batch.locate(i)),
        allowed="the sources from which the output was made",
        next_step="give the original sources with --source",
    )


def _first_difference(written: WrittenSide, expected: bytes) -> int | None:
    """Take the expected text from the output and return the offset of the first byte that differs, or None."""
    wanted, done = np.frombuffer(expected, np.uint8), 0
    while done < len(wanted):
        part = np.frombuffer(written.take(len(wanted) - done), np.uint8)
        if not len(part):
            return done
        differs = part != wanted[done : done + len(part)]
        if differs.any():
            return done + int(differs.argmax())
        done += len(part)
    return None
