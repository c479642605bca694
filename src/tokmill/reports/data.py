"""The data of a report about an output directory: what its manifest or journal says, and statistics of its ids.

The ids of a complete output are read once; of an interrupted one the report has what was committed, without its ids. What an older
tokmill did not record is None, and so is what cannot be known here: a report says what it lacks instead of failing.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tokmill.core.errors import TokmillError, UsageError
from tokmill.core.history import History, until
from tokmill.core.manifest import MANIFEST_NAME, SKIPPED_NAME, Manifest, knows_reading, load_manifest
from tokmill.core.output_spec import SIDES
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Counts
from tokmill.core.system.tree import beside
from tokmill.core.text import printable_bytes
from tokmill.dataset import IdReader, files_of, find_tokenizer
from tokmill.encode import is_lossless, load_decoder, text_lengths
from tokmill.output import growing_path, load_history, plan_of, read_journal, state_of
from tokmill.reports.token_stats import MOST_COUNTED_IDS, SideStatistics, TokenStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tokmill.core.config import Content
    from tokmill.core.manifest import Segment
    from tokmill.core.protocols import Encoder, Observer
    from tokmill.reports.shared_documents import DocumentDigests

MOST_FREQUENT = 40
_NAMES = {
    b" ": "a space",
    b"\n": "line end",
    b"\n\n": "empty line",
    b"\r": "line end of Windows, or half of one",
    b"\r\n": "line end of Windows",
    b"\t": "tab",
    b"\0": "zero byte: is this text?",
    "\ufeff".encode(): "byte order mark",
    "\ufffd".encode(): "in place of a byte that was no UTF-8",
    "\u00a0".encode(): "space that does not break",
}
"""Of tokens that cannot be seen."""
_SHOWN_TOKENS = 200
MOST_SKIPS = 50
"""Skipped records that are listed; all of them are counted."""
_MOST_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FrequentToken:
    """An id that occurs often."""

    id: int
    n: int
    text: str | None
    """Decoded, with controls and bytes that are not UTF-8 as escapes; None: the tokenizer is not available."""
    is_special: bool
    name: str = ""
    """What it is called, for a token that cannot be seen."""


@dataclass(slots=True, kw_only=True)
class ReportData:
    """What is known of an output."""

    directory: Path
    manifest: Manifest | None
    """None: the output is not complete."""
    content: Content
    tokmill_version: str
    segments: Sequence[Segment]
    counts: Counts
    elapsed_s: float
    history: History | None
    sides: dict[str, SideStatistics] = field(default_factory=dict)
    """By name; empty for an output that is not complete."""
    knows_sizes: bool = False
    """Whether bytes per token are known for each document."""
    digests: dict[str, DocumentDigests] = field(default_factory=dict)
    """By side: what is told of its documents while the ids are read, for a comparison."""
    frequencies: NDArray[np.int64] | None = None
    """How often each id occurs, shape (n_ids,); None: not known."""
    decoder: Encoder | None = None
    frequent: list[FrequentToken] = field(default_factory=list)
    n_distinct_ids: int | None = None
    skips: list[dict[str, Any]] = field(default_factory=list)
    """The first records that were skipped."""
    skipped_by_input: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    """Sentences: what this report lacks, and why."""
    made_at_s: float | None = None
    """When the manifest was written, as the file says, in seconds since 1970."""
    beginning: str = ""
    """The beginning of the first training document, decoded; empty: it cannot be decoded, or there is none."""

    @property
    def knows_text(self) -> bool:
        """Return whether the bytes of text were counted: they are not for ids from other tools' files, nor if documents went."""
        is_counted = not self.content.origin or bool(self.counts.bytes_text)
        return is_counted and all(each.format != "ids" for each in self.content.inputs)

    @property
    def knows_reading(self) -> bool:
        """Return whether the counts are also of reading and encoding: they are not for documents that were chosen later."""
        return knows_reading(self.content, self.counts)


def load_data(directory: Path) -> ReportData:
    """Return what manifest or journal say. Raise UsageError if neither is there, DamageError if it cannot be trusted."""
    if (directory / MANIFEST_NAME).exists() or plan_of(directory).exists():
        manifest = load_manifest(directory)
        return ReportData(
            directory=directory,
            manifest=manifest,
            content=manifest.content,
            tokmill_version=manifest.tokmill_version,
            segments=manifest.segments,
            counts=manifest.counts,
            elapsed_s=manifest.elapsed_s,
            history=manifest.history if isinstance(manifest.history, History) else None,
            made_at_s=beside(directory / MANIFEST_NAME).lstat().st_mtime if beside(directory / MANIFEST_NAME).is_file() else None,
        )
    found = read_journal(state_of(directory) / "journal")
    if found is None:
        raise UsageError(
            "no output of tokmill here, complete or begun",
            where=str(directory),
            allowed=f"a directory with {MANIFEST_NAME}, or one in which a run was interrupted",
            next_step="give the directory that was --out",
        )
    header, segments, elapsed_s = found
    history = load_history(directory)
    return ReportData(
        directory=directory,
        manifest=None,
        content=header.content,
        tokmill_version=header.tokmill_version,
        segments=segments,
        counts=segments[-1].counts if segments else Counts(),
        elapsed_s=elapsed_s,
        history=until(history, elapsed_s) if history else None,
    )


def add_statistics(data: ReportData, observers: Sequence[Observer] = (), tokenizer_name: str | None = None) -> None:
    """Add skipped records, history and statistics of the ids. Raise DamageError."""
    if data.history is None:
        why = f"tokmill {data.tokmill_version} kept no history of this output."
        if not data.manifest:
            why = "no history was kept beside the journal, or it was lost."
        elif data.content.n_parts:
            why = "an output that was made in parts has none; its time is that of the runs of all parts together."
        data.missing.append(f"Speed and memory over time: {why}")
    _read_skips(data)
    if data.manifest:
        data.decoder = _decoder(data, tokenizer_name)
        _read_ids(data, data.manifest, observers)
    else:
        data.missing.append(
            "Lengths of documents, frequent tokens and the comparison of the two sides: the output is not complete, so its ids "
            "were not read."
        )


def _read_skips(data: ReportData) -> None:
    """Count the skipped records by input, and keep the first ones. The file is not trusted: it is read line by line."""
    path = beside(data.directory / SKIPPED_NAME) if data.manifest else growing_path(data.directory, SKIPPED_NAME)
    spans = [segment.files[SKIPPED_NAME].end for segment in data.segments if SKIPPED_NAME in segment.files]
    left = spans[-1] if spans else 0
    if not left:
        return
    known = {each.path for each in data.content.inputs}
    try:
        with open(path.open(), "rb") as file:
            while left > 0 and (line := file.readline(min(left, _MOST_LINE_BYTES))):
                left -= len(line)
                _note_skip(data, line, known)
    except OSError as error:
        data.missing.append(f"The list of skipped records: {SKIPPED_NAME} cannot be read ({error.strerror}).")


def _note_skip(data: ReportData, line: bytes, known: set[str]) -> None:
    try:
        skip = json.loads(line)
    except (ValueError, RecursionError):
        return
    if isinstance(skip, dict) and str(skip.get("path")) in known:
        n = skip.get("records", 1)
        data.skipped_by_input[str(skip.get("path"))] += n if isinstance(n, int) and 0 < n < 1 << 60 else 1
        if len(data.skips) < MOST_SKIPS:
            data.skips.append(skip)


def _read_ids(data: ReportData, manifest: Manifest, observers: Sequence[Observer]) -> None:
    content, decoder = data.content, data.decoder
    tokenizer = content.tokenizer
    sizes = text_lengths(decoder, tokenizer) if decoder and is_lossless(tokenizer) and tokenizer.n_ids <= MOST_COUNTED_IDS else None
    if decoder and sizes is None:
        data.missing.append("Bytes per token of single documents: this tokenizer does not give the text back token by token.")
    if content.packing:
        data.missing.append("Documents: they lie in sequences, some of them cut; a report about what this was made from has them.")
    elif content.eot == "none":
        data.missing.append("Documents: with --eot none they cannot be told apart in the ids.")
    data.knows_sizes = sizes is not None
    files = files_of(data.directory, manifest)
    statistics = TokenStatistics(tokenizer.n_ids, tokenizer.eot_id, "none" if content.packing else content.eot, sizes)
    reporter = ProgressReporter(observers)
    total = sum(entry.size_bytes for entry in manifest.files.values() if entry.side)
    reporter.started(total, 0)
    position = 0
    for name in SIDES:
        ids = IdReader.of_files(name, files.get(name, ()), content.dtype)
        for n_bytes, side in statistics.read_side(ids, data.digests.get(name)):
            position += n_bytes
            reporter.progress(position)
            data.sides[name] = side
    if decoder and tokenizer.eot_id >= 0:
        data.beginning = _beginning(IdReader.of_files("train", files.get("train", ()), content.dtype), tokenizer.eot_id, decoder)
    data.frequencies = statistics.frequencies
    _keep_frequent(data)


def _decoder(data: ReportData, name: str | None) -> Encoder | None:
    """Return what decodes the ids; None, and a note of what is missing, if the tokenizer is not available."""
    tokenizer = data.content.tokenizer
    if not tokenizer.sha256:
        data.missing.append("The text of frequent tokens: nobody said which tokenizer made these ids.")
        return None
    try:
        return load_decoder(find_tokenizer(tokenizer, name))
    except (TokmillError, ImportError, OSError) as error:
        said = f"{error.what} ({error.where or tokenizer.name})" if isinstance(error, TokmillError) else str(error)
        data.missing.append(f"The text of frequent tokens, and bytes per token of documents: {said}.")
        return None


def _beginning(ids: IdReader, eot_id: int, decoder: Encoder) -> str:
    """Return the beginning of the first document of a side as text."""
    found = ids.read(0, _SHOWN_TOKENS + 1)
    found = found[int(len(found) > 0 and found[0] == eot_id) :]
    ends = np.flatnonzero(found == eot_id)
    shown = found[: int(ends[0]) if len(ends) else _SHOWN_TOKENS]
    try:
        text = printable_bytes(decoder.decode(shown.astype(np.uint32)))
    except TokmillError:
        return ""
    return text + ("" if len(ends) else " ...")


def token_of(data: ReportData, number: int, n: int) -> FrequentToken:
    """Return an id that occurs `n` times, with its text."""
    if number == data.content.tokenizer.eot_id or data.decoder is None:
        return FrequentToken(number, n, None, is_special=number == data.content.tokenizer.eot_id)
    try:
        text = data.decoder.decode(np.array([number], np.uint32))
    except TokmillError:
        return FrequentToken(number, n, None, is_special=False)
    return FrequentToken(number, n, printable_bytes(text), is_special=False, name=_NAMES.get(text, ""))


def _keep_frequent(data: ReportData) -> None:
    frequencies = data.frequencies
    if frequencies is None:
        data.missing.append("Frequent tokens: the vocabulary is too large, or not known.")
        return
    data.n_distinct_ids = int(np.count_nonzero(frequencies))
    top = np.argsort(-frequencies, kind="stable")[:MOST_FREQUENT].tolist()
    data.frequent += [token_of(data, number, n) for number in top if (n := int(frequencies[number]))]
