"""Checks that a complete output directory is what was written and, with the sources at hand, what the corpus says.

Every file is read once, in blocks: the digest of every segment's bytes, the range of every id and the number of end-of-text ids
come from the same pass. All problems are collected, with file and byte range, instead of stopping at the first: someone who
repairs wants to know what is left. The manifest's own numbers are not trusted: they are compared with each other and the files.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from tokmill.check.compare import Compared, compare_with_sources
from tokmill.check.findings import NOT_LISTED, Findings, Report
from tokmill.check.location import LocalLocation, NotReadableError, location_of
from tokmill.check.offsets import OffsetsCheck
from tokmill.check.order import OrderCheck
from tokmill.check.packed import PackedCheck
from tokmill.core.config import is_of_corpus, path_texts
from tokmill.core.errors import UsageError
from tokmill.core.manifest import BESIDE, MANIFEST_NAME, Manifest
from tokmill.core.options import AUDIT, PlanOptions, options_of, parse_size
from tokmill.core.output_spec import SIDES, Shards
from tokmill.core.records import FileHeader
from tokmill.core.spans import SpanChecker, add_up, spans_of
from tokmill.core.text import counted
from tokmill.formats import header_problem, is_read_by_trainer, n_padding_ids, offsets_name, starts_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tokmill.check.location import OpenedFile, OutputLocation
    from tokmill.core.protocols import Observer
    from tokmill.dataset import Ids

_BLOCK_BYTES = 4 << 20
_APPENDING = "an append is being published, or was interrupted then: the output before it is checked, without --source"
_KNOWN = {MANIFEST_NAME, *BESIDE}


def verify(
    directory: str | Path,
    *,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Literal[True] | None = None,
    glob: str | Sequence[str] | None = None,
    input_format: str | None = None,
    memory: str | int | None = None,
    tokenizer: str | None = None,
    audit: float = AUDIT.default,
    observers: Sequence[Observer] = (),
) -> Report:
    """Check every byte of a complete output; with `sources`, also decode all of it and compare it with the corpus.

    Args:
        directory: Output directory, or the URL of a prefix of a store (not with sources).
        sources: Inputs as given to `tokenize`, in the same order; True: those that the manifest names, where they were.
        glob: As given to `tokenize`.
        input_format: As given to `tokenize`.
        memory: For reading the sources, and for the order of the documents of a shuffled output: bytes, or text such as `512MiB`.
            None: 1 GiB.
        tokenizer: Where the tokenizer of the output is now, as for `tokenize`. None: as the manifest says, without a network.
        audit: With `sources`, the share of the text that the reference tokenizer encodes again, beside every document with a
            character that it was not asked about before; 1: all, 0: none.
        observers: Told of the progress.

    Returns:
        All problems; they are not raised (see `Report.raise_for_damage`).

    Raises:
        UsageError: If there is no complete output.
        DamageError: If the manifest cannot be trusted.
        InputError: If a source cannot be read.
        ChangedError: If the sources are not those that were tokenized.
        AuditError: If ids are not those of the reference tokenizer.
    """
    AUDIT.check(audit)
    options_of(PlanOptions)["memory"].check(memory)
    location = location_of(directory)
    if sources is not None:
        _check_comparable(location)
    manifest = location.manifest()
    findings = Findings(observers)
    is_in_order = _check_all(location, manifest, findings, memory)
    if location.pending_append(manifest):
        findings.reporter.notice(_APPENDING)
        sources = None
    compared = Compared()
    if isinstance(location, LocalLocation) and sources is not None and not findings.n_problems:
        names = None if sources is True else path_texts(sources, "sources")
        compared = compare_with_sources(location.directory, manifest, names, glob, input_format, findings, memory, tokenizer, audit)
    elif sources is not None:
        findings.reporter.notice("the files are damaged: not compared with the sources")
    if findings.n_problems and (
        location.manifest().checksum != manifest.checksum or (sources and location.pending_append(manifest))
    ):
        # An append was published meanwhile, or is now: what was read is partly its output.
        again = {"glob": glob, "input_format": input_format, "memory": memory, "tokenizer": tokenizer, "audit": audit}
        return verify(directory, sources=sources, observers=observers, **again)  # type: ignore[arg-type]
    report = _report(location.name, manifest, findings, is_compared=sources is not None, compared=compared)
    return msgspec.structs.replace(report, order_checked=is_in_order)


def _check_comparable(location: OutputLocation) -> None:
    """Raise UsageError for an output that cannot be compared with its sources where it is."""
    if not isinstance(location, LocalLocation):
        raise UsageError(
            "an output in a store is not compared with its sources",
            where=location.name,
            allowed="the URL alone: every byte is checked against the digest it was written with",
            next_step=f"leave out --source, or copy it to a directory first: aws s3 sync {location.name} DIR",
        )


def _report(directory: str, manifest: Manifest, findings: Findings, *, is_compared: bool, compared: Compared) -> Report:
    made_from = manifest.made_from if isinstance(manifest.made_from, tuple) else ()
    is_tokenized = not made_from or any(each.how == "append" for each in made_from)
    return Report(
        directory=directory,
        ok=not findings.n_problems,
        problems=findings.problems,
        n_problems=findings.n_problems,
        n_files=len(manifest.files),
        n_segments=len(manifest.segments),
        tokens_train=_total(manifest, "train", "tokens"),
        tokens_val=_total(manifest, "val", "tokens"),
        documents_train=_total(manifest, "train", "documents"),
        documents_val=_total(manifest, "val", "documents"),
        bytes_checked=findings.bytes_checked,
        sources_compared=is_compared and bool(compared.n_bytes or not findings.n_problems),
        compared_documents=compared.documents,
        compared_bytes=compared.n_bytes,
        reference=compared.reference,
        by_reference_documents=compared.by_reference,
        gives_text_back=compared.is_decoded,
        elapsed_s=findings.reporter.elapsed_s,
        others=findings.others,
        can_repair=is_of_corpus(manifest.content),
        made_by="tokenize" if is_tokenized else made_from[0].how,
    )


def _total(manifest: Manifest, side: str, unit: str) -> int:
    return sum(getattr(entry, unit) for entry in manifest.files.values() if entry.side == side)


class Outline:
    """What the manifest says of all files, looked up once: there may be thousands."""

    def __init__(self, manifest: Manifest, budget_bytes: int | None) -> None:
        """budget_bytes: memory for the order of documents; None: the usual."""
        self.manifest = manifest
        self.spans = spans_of(manifest)
        shards = manifest.content.shards
        is_cut = isinstance(shards, Shards) and shards.drop_tail and not shards.whole_documents
        sides = {side: [name for name, entry in manifest.files.items() if entry.side == side] for side in ("train", "val", None)}
        self.first = {names[0] for names in sides.values() if names}
        """Files that begin where a document does, because their side does."""
        self.last = {names[-1] for names in sides.values() if names and not is_cut}
        """Files that end where a document does."""
        origin = manifest.content.origin
        arrangement = origin.arranged if origin else None
        has_order = bool(arrangement or (origin and origin.deduplicated))
        is_short = isinstance(shards, Shards) and shards.drop_tail
        self.order = OrderCheck(manifest, arrangement, budget_bytes) if has_order and not is_short else None
        """Set for a shuffled, mixed or deduplicated output that has all of its ids."""
        packing = manifest.content.packing
        self.packed = PackedCheck(manifest, packing) if packing else None
        eot_id, eot = manifest.content.tokenizer.eot_id, manifest.content.eot
        self.offsets = {side: OffsetsCheck(eot_id, eot) for side in SIDES} if manifest.content.offsets else {}


class _Scan:
    """One pass over one file, block by block."""

    def __init__(self, name: str, outline: Outline, findings: Findings) -> None:
        self._content = content = outline.manifest.content
        self._is_first, self._is_last = name in outline.first, name in outline.last
        self._name = name
        self._entry = outline.manifest.files[name]
        self._findings = findings
        self._dtype = np.dtype(content.dtype).newbyteorder("<")
        self._n_ids, self._eot_id = content.tokenizer.n_ids, content.tokenizer.eot_id
        self._spans = outline.spans[name]
        self._checker = SpanChecker(self._spans)
        self._n_eot = 0
        self._n_wrong_ids = 0
        self._first_wrong: tuple[int, int] | None = None
        self._first_id = self._last_id = -1
        self._offsets = outline.offsets.get(self._entry.side or "")
        self._listed = next((check for side, check in outline.offsets.items() if name == offsets_name(side)), None)
        self._order = outline.packed or (outline.order if self._entry.side == "train" else None)

    def update_header(self, header: bytes) -> None:
        """Check the whole header; called before the rest."""
        if self._entry.side is None and not isinstance(self._entry.header, FileHeader):
            return
        is_other = header and self._checker.update(header)
        wrong = "the header is not the one written" if is_other else header_problem(header, self._name, self._entry, self._content)
        if wrong:
            self._findings.add(self._name, wrong, 0, len(header))

    def update(self, block: memoryview) -> None:
        """Take the next bytes of the file; all blocks but the last hold whole ids."""
        position = self._checker.position
        for span in self._checker.update(block):
            what = f"the bytes of segment {span.segment + 1:,} are not those written"
            self._findings.add(self._name, what, span.begin, span.end)
        if self._listed:
            self._listed.update_list(block[: len(block) - len(block) % 8])
        if self._entry.side is not None:
            whole = len(block) - len(block) % self._dtype.itemsize
            if whole:
                self._update_ids(np.frombuffer(block[:whole], self._dtype), position)

    def finish(self) -> None:
        """Check the sums; all bytes of the file have been taken."""
        add = self._findings.add
        entry, item_bytes = self._entry, self._dtype.itemsize
        if not add_up(self._spans, entry.size_bytes):
            add(self._name, "the segments do not add up to the file")
        if entry.side is None:
            return
        filling = n_padding_ids(self._content, entry.tokens)
        if entry.header_bytes + (entry.tokens + filling) * item_bytes != entry.size_bytes:
            what = f"{counted(entry.tokens, 'token')} of {item_bytes} bytes in a file of {counted(entry.size_bytes, 'byte')}"
            add(self._name, what)
        if self._first_wrong is not None:
            place, value = self._first_wrong
            what = f"id {value:,} is not below {self._n_ids:,} ({counted(self._n_wrong_ids, 'such id')} in the file)"
            add(self._name, what, place, place + item_bytes)
        if self._content.eot == "none":
            return
        if self._content.packing:
            self._is_first = self._is_last = False
        if self._n_eot != entry.documents + filling:
            add(self._name, f"{counted(self._n_eot - filling, 'end-of-text id')}, but {counted(entry.documents, 'document')}")
        edge = self._last_id if self._content.eot == "after" else self._first_id
        if entry.tokens and edge != self._eot_id and (self._is_last if self._content.eot == "after" else self._is_first):
            which = "last" if self._content.eot == "after" else "first"
            add(self._name, f"the {which} id is {edge:,}, not the end-of-text id {self._eot_id:,}")

    def _update_ids(self, ids: Ids, position: int) -> None:
        """ids: uint16 or uint32, shape (n_ids,); position: offset of the first in the file."""
        if position == self._entry.header_bytes:
            self._first_id = int(ids[0])
        self._last_id = int(ids[-1])
        for check in (self._order, self._offsets):
            if check:
                first = (position - self._entry.header_bytes) // self._dtype.itemsize
                # Without what fills up the last shard.
                check.update(ids[: max(0, self._entry.tokens - first)])
        if self._content.eot != "none":
            self._n_eot += int(np.count_nonzero(ids == self._eot_id))
        if int(ids.max()) < self._n_ids:
            return
        wrong = np.flatnonzero(ids >= self._n_ids)
        self._n_wrong_ids += len(wrong)
        if self._first_wrong is None:
            self._first_wrong = (position + int(wrong[0]) * self._dtype.itemsize, int(ids[wrong[0]]))


def _check_all(location: OutputLocation, manifest: Manifest, findings: Findings, memory: str | int | None) -> bool:
    """Check an output by itself. memory: as of `verify`. Returns whether its documents are in the order that they were put into."""
    findings.reporter.started(sum(entry.size_bytes for entry in manifest.files.values()))
    _check_manifest(manifest, findings)
    _check_names(location, manifest, findings)
    return _check_files(location, manifest, findings, memory)


def _check_manifest(manifest: Manifest, findings: Findings) -> None:
    """Compare the manifest's numbers with each other."""
    counts, content, shards = manifest.counts, manifest.content, manifest.content.shards
    if manifest.fingerprint != content.fingerprint():
        findings.add(MANIFEST_NAME, "the fingerprint is not that of the configuration")
    skipped = sum(counts.skipped.values())
    if counts.documents != counts.documents_train + counts.documents_val + skipped - counts.parts_added:
        findings.add(
            MANIFEST_NAME, f"{counted(counts.documents, 'document')} in, but not the sum of those written and {skipped:,} skipped"
        )
    for side in ("train", "val"):
        for unit in ("tokens", "documents"):
            n_files, n_counted = _total(manifest, side, unit), getattr(counts, f"{unit}_{side}")
            dropped = n_counted - n_files
            if dropped and not (isinstance(shards, Shards) and shards.drop_tail and 0 < dropped < shards.tokens):
                findings.add(MANIFEST_NAME, f"{counted(n_files, unit[:-1])} in the files of {side}, but {n_counted:,} counted")
    if content.packing:
        sequences = {name: each.sequences for name, each in (manifest.packed or {}).items()}
        if {side: n * content.packing.sequence for side, n in sequences.items()} != {
            side: getattr(counts, f"tokens_{side}") for side in ("train", "val")
        }:
            findings.add(MANIFEST_NAME, "the sequences are not those of the tokens")
    lengths = {name: span.end for segment in manifest.segments for name, span in segment.files.items()}
    for name in set(lengths) - set(manifest.files):
        findings.add(MANIFEST_NAME, f"segments speak of {name}, which is not listed")


def _check_names(location: OutputLocation, manifest: Manifest, findings: Findings) -> None:
    """Find files that the manifest does not list: a trainer that opens `*.bin` would read them."""
    subs = {os.path.dirname(name) for name in manifest.files} - {""}
    found = []
    for sub in ("", *sorted(subs)):
        for entry in location.names(sub):
            name = os.path.join(sub, entry)
            if name not in manifest.files and name not in _KNOWN | subs and not entry.startswith("."):
                found.append(name)
    # Asked after the listing: if no append is seen now, there was none, or its manifest is in place by now.
    pending = location.pending_append(manifest) if found else None
    expected = {part for name in pending.files for part in (name, os.path.dirname(name))} if pending else set()
    for name in found:
        if name in expected:
            continue
        if is_read_by_trainer(manifest.content.format, name):
            findings.add(name, NOT_LISTED)
        else:
            findings.others.append(name)


def _check_files(location: OutputLocation, manifest: Manifest, findings: Findings, memory: str | int | None) -> bool:
    """Check every file, and the order of documents that were put into one. Returns whether they are in that order.

    memory: as of `verify`.
    """
    budget_bytes = parse_size(memory, "--memory") if isinstance(memory, str) else memory
    outline, buffer = Outline(manifest, budget_bytes), memoryview(bytearray(_BLOCK_BYTES))
    try:
        for name in manifest.files:
            _check_file(location, name, outline, findings, buffer)
    finally:
        if outline.packed:
            outline.packed.end_file()
    for side, check in outline.offsets.items():
        if offsets_name(side) not in manifest.files:
            findings.add(MANIFEST_NAME, f"{offsets_name(side)} is not listed")
        elif not findings.n_problems and (differing := check.problem()):
            findings.add(offsets_name(side), differing)
    order = outline.packed or outline.order
    if not order or findings.n_problems:
        return False
    wrong = order.problem()
    if wrong:
        findings.add(MANIFEST_NAME, wrong)
    return not wrong


def _check_file(location: OutputLocation, name: str, outline: Outline, findings: Findings, buffer: memoryview) -> None:
    """Check size, digests, ids and documents of one file. buffer: what is read goes there."""
    entry = outline.manifest.files[name]
    try:
        opened = location.open(outline.manifest, name)
    except NotReadableError as error:
        findings.add(name, str(error))
        return
    with opened:
        if opened.size_bytes < entry.size_bytes:
            what = f"the file is cut: it has {opened.size_bytes:,} of {counted(entry.size_bytes, 'byte')}"
            findings.add(name, what, opened.size_bytes, entry.size_bytes)
        elif opened.size_bytes > entry.size_bytes:
            what = f"the file has {counted(opened.size_bytes - entry.size_bytes, 'byte')} too many"
            findings.add(name, what, entry.size_bytes, opened.size_bytes)
        if outline.packed and entry.tokens:
            outline.packed.begin_file(entry.side or "", _starts_of(location, outline.manifest, name))
        scan = _Scan(name, outline, findings)
        n_bytes = min(opened.size_bytes, entry.size_bytes)
        header = b"".join(_blocks(opened, min(entry.header_bytes, n_bytes), buffer))
        if len(header) == entry.header_bytes:
            scan.update_header(header)
        findings.bytes_checked += len(header)
        for block in _blocks(opened, n_bytes - len(header), buffer):
            scan.update(block)
            findings.bytes_checked += len(block)
            findings.reporter.progress(findings.bytes_checked)
        if opened.size_bytes >= entry.size_bytes:
            scan.finish()


def _starts_of(location: OutputLocation, manifest: Manifest, name: str) -> OpenedFile | None:
    """Return the file with the starts of documents of a file of packed ids, opened; None where it cannot be."""
    try:
        return location.open(manifest, starts_name(name)) if starts_name(name) in manifest.files else None
    except NotReadableError:
        return None


def _blocks(opened: OpenedFile, n_bytes: int, buffer: memoryview) -> Iterator[memoryview]:
    """Yield the first `n_bytes` bytes of a file, in blocks that are valid until the next."""
    left = n_bytes
    while left:
        want, got = min(left, _BLOCK_BYTES), 0
        while got < want:
            n = opened.read_into(buffer[got:want])
            if not n:
                break
            got += n
        if not got:
            return
        yield buffer[:got]
        left -= got
