"""`dedup`: complete outputs without the copies among their documents, in their order, and a line for each document that went."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from tokmill.core.config import Origin, local_path
from tokmill.core.deduplication import MOST_SIGNATURE, Deduplication, Measure, NearRule, Removal
from tokmill.core.errors import UsageError
from tokmill.core.manifest import MANIFEST_NAME, Manifest
from tokmill.core.outcome import Outcome
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import ITEM_BYTES, Counts, path_to_text
from tokmill.core.system.memory import peak_rss_bytes
from tokmill.core.system.tree import TreePath
from tokmill.core.version import __version__
from tokmill.derive.arguments import Target, check_choice, named_outputs, output_target
from tokmill.derive.bucket_run import FIXED_BYTES
from tokmill.derive.deduplication.copying import Copying, removal_of
from tokmill.derive.deduplication.documents import Documents, Section, sections_of
from tokmill.derive.deduplication.exact import DIGEST, MATCH
from tokmill.derive.deduplication.gathering import GATHERED
from tokmill.derive.deduplication.marking import BUFFER_SHARE, Marking
from tokmill.derive.deduplication.removals import GONE, REMOVAL
from tokmill.derive.deduplication.scratch import Scratch, begun_state
from tokmill.derive.deduplication.shared import SharedScratch, SharedState
from tokmill.derive.deduplication.signatures import BAND
from tokmill.derive.deduplication.spread import Cluster, SpreadCopying, SpreadMarking
from tokmill.derive.deduplication.spread_tasks import LENGTH, PAIR
from tokmill.derive.engine import COMMIT_BYTES, derive_output, is_arranged, provenance
from tokmill.derive.merging import check_agreement, merged_content, with_offsets
from tokmill.derive.shuffling import budget_of, bytes_of_stores, chosen_content, cluster, load_apart, load_operands
from tokmill.derive.source import Source, check_marks
from tokmill.derive.spread.run_files import INDEX_SHARE
from tokmill.output import Output, RunHistoryRecorder, is_made, open_output, rewriting_need, why_protected

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence
    from contextlib import AbstractContextManager

    from tokmill.core.config import Content, How
    from tokmill.core.protocols import Observer
    from tokmill.derive.merging import Described
    from tokmill.derive.spread.tasks import Tasks

_EXAMPLE = "tokmill dedup DIR --out unique"
_LINE_BYTES = 180
"""Bytes of a line in the list of removed documents, about."""
MOST_SOURCES = 1 << 8
_BOUNDS = {"ngram": (1, 1 << 10), "bands": (1, 1 << 10), "rows": (1, 1 << 10), "shortest": (0, 1 << 20)}


def dedup(
    directories: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    near: float | None = None,
    measure: str | None = None,
    ngram: int | None = None,
    bands: int | None = None,
    rows: int | None = None,
    shortest: int | None = None,
    against: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    compare: bool = False,
    dry_run: bool = False,
    audit: str | os.PathLike[str] | None = None,
    format: str | None = None,  # noqa: A002  the name of the option
    shard_tokens: str | int | None = None,
    shard_documents: bool = False,
    offsets: bool = False,
    memory: str | int | None = None,
    allow_other_split: bool = False,
    stage: str | os.PathLike[str] | None = None,
    stage_size: str | int | None = None,
    ray: str | None = None,
    fresh: bool = False,
    force: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Make one output of complete outputs without the copies among their documents, as `tokmill dedup` does.

    Of documents with the same ids, or with `near` of those that are alike, the first stays, in the order of the outputs. Documents
    of the validation sides always stay, and those of the training sides that are copies of one of them go. Call it again to resume.

    Args:
        directories: The outputs in order, directories or `s3://bucket/prefix`.
        out: The output directory, or `s3://bucket/prefix`. Its `removed.jsonl` has a line for each document that went.
        near: Similarity from which near copies go as well, 0 < near <= 1; None: copies with the same ids alone.
        measure: `jaccard`, the n-grams of both by those of either (the usual one), or `containment`, by those of the one that goes.
        ngram: Ids of an n-gram; None: 5.
        bands: Bands of a signature; None: 14.
        rows: Numbers in a band; None: 8.
        shortest: Documents of fewer ids are left alone by `near`; None: 50.
        against: Outputs whose documents, of both sides, go as well; nothing of them gets into the output.
        compare: Read both copies and compare their ids before one goes; else 128 bits of a hash decide.
        dry_run: Make no output, only find what would go. The work is kept in `out`: a call without `dry_run` goes on with it.
        audit: With `dry_run`, a file for the lines of `removed.jsonl`.
        format: Of the output; None: that of the sources.
        shard_tokens: Tokens of a shard, a number or text such as `100M`; None: as the one source has them, or the trainer expects.
        shard_documents: Cut shards only where documents end.
        offsets: Also write where each document begins.
        memory: Bytes, or text such as `512MiB`, from 128 MiB on. None: 1 GiB.
        allow_other_split: Also take outputs that chose their validation documents differently.
        stage: Of an `out` in a store, the local directory in which it is made first; None: inside ~/.cache/tokmill/stage.
        stage_size: How many bytes of complete shards may wait there, a number or text such as `4GiB`.
        ray: Address of a Ray cluster that does it, as for `tokenize`; `memory` is that of a task. None: this machine does.
        fresh: Discard what is in `out`.
        force: Go on though it will not fit on the disk.
        observers: What is told of progress.

    Returns:
        What was done; `removal` says what went from each source.

    Raises:
        TokmillError: UsageError for outputs that do not agree, DamageError for one that is not as it was written.
    """
    target = output_target(out, stage, stage_size)
    sources, _ = load_operands(named_outputs(directories), target, _EXAMPLE)
    others = load_operands(listed, target, _EXAMPLE)[0] if (listed := named_outputs(against)) else []
    _check_operands(sources, others, allow_other_split=allow_other_split)
    audit_path = _audit_path(audit, [target.name, *(source.directory for source in (*sources, *others))], dry_run=dry_run)
    rule = Deduplication(
        sources=tuple(source.manifest.fingerprint for source in sources),
        against=tuple(source.manifest.fingerprint for source in others),
        near=near_rule(near, measure=measure, ngram=ngram, bands=bands, rows=rows, shortest=shortest),
    )
    content, notices = chosen_content(sources, Origin(deduplicated=rule), format, shard_tokens, shard_documents=shard_documents)
    content = with_offsets(content, offsets)
    run = DedupRun(sources, others, rule, content, target, memory, compare=compare, ray=ray)
    return (
        run.find(audit_path, fresh=fresh, force=force, observers=observers)
        if dry_run
        else run.make("dedup", fresh=fresh, force=force, observers=observers, notices=notices)
    )


def near_rule(near: float | None, **given: Any) -> NearRule | None:
    """Return when documents are near copies. given: the other options of `dedup` about that. Raises UsageError."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if near is None:
        if chosen:
            raise UsageError(
                f"--{next(iter(chosen))} is about near copies",
                option=f"--{next(iter(chosen))}",
                allowed="together with --near",
                next_step="--near 0.8, or leave it out",
            )
        return None
    check_choice("--measure", chosen.get("measure"), get_args(Measure))
    for name, (least, most) in _BOUNDS.items():
        value = chosen.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UsageError(f"{value!r} is out of range", option=f"--{name}", allowed=f"{least} to {most:,}", suggested=str(least))
    if isinstance(near, bool) or not isinstance(near, (int, float)) or not 0 < near <= 1:
        raise UsageError(f"{near!r} is no similarity", option="--near", allowed="above 0, up to 1", suggested="0.8")
    rule = NearRule(threshold=float(near), **chosen)
    if rule.bands * rule.rows > MOST_SIGNATURE:
        raise UsageError(
            f"{rule.bands:,} bands of {rule.rows:,} rows",
            option="--bands",
            allowed=f"bands by rows up to {MOST_SIGNATURE:,}",
            suggested=str(max(1, MOST_SIGNATURE // rule.rows)),
        )
    return rule


def dedup_into(
    directory: Path,
    content: Content,
    out: Path,
    *,
    memory: str | int | None,
    fresh: bool,
    force: bool,
    observers: Sequence[Observer],
) -> Outcome:
    """Make an output with these settings of one that was tokenized for it, without the copies among its documents.

    directory: the tokenized output. content: of the output, without origin. The rest as of `dedup`.
    """
    source = Source.load(directory)
    rule = Deduplication(sources=(source.manifest.fingerprint,))
    content = msgspec.structs.replace(content, origin=Origin(deduplicated=rule))
    return DedupRun([source], [], rule, content, out, memory).make(None, fresh=fresh, force=force, observers=observers)


def dedup_each(
    directories: Sequence[Path],
    outs: Sequence[Path],
    work: Path,
    near: NearRule | None,
    *,
    against: Sequence[Source] = (),
    compare: bool = False,
    memory: str | int | None,
    force: bool,
    observers: Sequence[Observer],
) -> list[Outcome]:
    """Deduplicate outputs together, and make an output of each of them. Call it again to resume. Raises TokmillError.

    outs: the output for each of `directories`. work: a directory for what is found, removed at the end. against: as `load_against`
    returns them. The rest as of `dedup`.
    """
    sources = [Source.load(directory) for directory in directories]
    for source in sources:
        check_marks(source)
    _check_operands(sources, against, allow_other_split=False)
    rule = Deduplication(
        sources=tuple(source.manifest.fingerprint for source in sources),
        against=tuple(source.manifest.fingerprint for source in against),
        near=near,
    )
    content = msgspec.structs.replace(merged_content(sources), origin=Origin(deduplicated=rule))
    run = DedupRun(sources, against, rule, content, work, memory, compare=compare)
    found = run.make_each(outs, force=force, observers=observers)
    if work.exists():
        TreePath(work).remove_tree()
    return found


def load_against(names: Sequence[str], made: Sequence[Described], out: Path) -> list[Source]:
    """Return outputs whose documents are to be removed from others, which need not be there yet. Raises UsageError, DamageError.

    names: as of `dedup`. made: what is known of the others. out: where the result is to be.
    """
    found = load_apart(named_outputs(names), out)
    check_agreement([made[0], *found], allow_other_split=True, names=())
    _check_number(len(made) + len(found))
    _check_others({each.content.fingerprint() for each in made}, found)
    return found


def work_bytes(n_documents: int, n_bytes: int, near: NearRule | None, *, compare: bool = False, is_spread: bool = False) -> int:
    """Return what is on the disk at the worst moment while copies are found, beside outputs.

    n_bytes: of the ids of all. is_spread: in tasks.
    """
    # The digests, and all documents that go.
    each = DIGEST.itemsize + REMOVAL.itemsize + (GONE.itemsize if near else 0)
    found = n_documents * each
    if compare:
        found = max(found, n_documents * (each - DIGEST.itemsize + MATCH.itemsize + GATHERED.itemsize) + n_bytes)
    if near:
        # If every document is near another one: its bands twice, its ids, where its cluster begins, and what goes.
        n_bands = 2 * BAND.itemsize * near.bands
        found = max(found, n_documents * (n_bands + GATHERED.itemsize + 8 + REMOVAL.itemsize) + n_bytes)
    if is_spread:
        # Also how long documents are, those that stay once more, and pairs that bands make; and an index a file.
        found += n_documents * (2 * LENGTH.itemsize + (near.bands * PAIR.itemsize if near else 0))
        found += 2 * (found + n_bytes) // INDEX_SHARE
    return found


def n_passes(near: NearRule | None, *, compare: bool = False) -> int:
    """Return how often all ids are read until it is known what goes."""
    return 1 + compare + 2 * (near is not None)


@dataclass
class DedupRun:
    """One deduplication of outputs."""

    sources: Sequence[Source]
    against: Sequence[Source]
    rule: Deduplication
    content: Content
    """Of the output."""
    out: Path | Target
    memory: str | int | None
    compare: bool = False
    ray: str | None = None
    """Address of a cluster that does it; None: this machine does."""

    def __post_init__(self) -> None:
        sources = [*self.sources, *self.against]
        budget_bytes = budget_of(self.memory, sources, self.out if self.ray is None else None)
        self._room_bytes = budget_bytes - FIXED_BYTES
        self._task_bytes = budget_bytes + bytes_of_stores(sources, None)
        self._documents = Documents(sections_of(self.sources, self.against))

    def make(
        self,
        how: How | None,
        *,
        fresh: bool,
        force: bool,
        observers: Sequence[Observer],
        notices: Sequence[str] = (),
        recipe: str = "",
    ) -> Outcome:
        """Make the output, or go on with it. how, recipe: as of `arrange_output`. Raises TokmillError."""

        def make(output: Output, reporter: ProgressReporter) -> tuple[Manifest, int]:
            recorder = reporter.add(RunHistoryRecorder(output))
            made_from = tuple(provenance(source, how) for source in self.sources) if how else ()
            try:
                with self._machines() as machines:
                    marking, copying = self._marked(output, reporter, machines)
                    copying.run()
                removal = self._removal(marking)
                counts = self._counts(removal, self.sources)
                if how is None:
                    counts, removal = _of_tokenizing(counts, removal, self.sources[0].manifest.counts)
                manifest = copying.publish(counts, removal, made_from, recorder, recipe)
            except BaseException:
                recorder.save()
                raise
            finally:
                self._documents.close()
            return manifest, copying.written_bytes

        return derive_output(
            self.sources,
            self.content,
            self.out,
            how or "dedup",
            make=make,
            counts=_most_counts(self.sources),
            scratch_bytes=self._scratch_bytes(),
            fresh=fresh,
            force=force,
            observers=observers,
            notices=notices,
        )

    def find(self, audit: Path | None, *, fresh: bool, force: bool, observers: Sequence[Observer]) -> Outcome:
        """Find what goes, and keep the work in the directory of the output. audit: a file for its lines. Raises TokmillError."""
        target = self.out.name if isinstance(self.out, Target) else self.out
        if isinstance(target, str):
            raise UsageError(
                "a dry run keeps its work in a directory",
                where=target,
                option="--out",
                allowed="a local directory with --dry-run",
                suggested="unique",
            )
        if not force and not is_made(target, self.content, fresh=fresh):
            rewriting_need(target, self.content, Counts(), fresh=fresh, scratch_bytes=self._scratch_bytes()).check()
        reporter = ProgressReporter(observers)
        output = open_output(target, self.content, __version__, fresh=fresh, segment_bytes=COMMIT_BYTES)
        if isinstance(output, Manifest):
            raise UsageError(
                "this output is complete already",
                where=str(target),
                allowed="a new directory, or one in which the same work was begun",
                next_step=f"its {MANIFEST_NAME} and tokmill inspect say what was removed; for other settings choose another --out",
            )
        resumed = bool(output.segments)
        try:
            with self._machines() as machines:
                marking, _ = self._marked(output, reporter, machines)
            if audit is not None:
                with audit.open("wb") as file:
                    file.writelines(marking.lines())
            removal = self._removal(marking)
        finally:
            self._documents.close()
            output.close()
        counts, content = self._counts(removal, self.sources), self.content
        return Outcome(
            out=str(target),
            format=content.format,
            dtype=content.dtype,
            tokenizer=content.tokenizer.name,
            sources=[str(source.directory) for source in self.sources],
            documents_train=counts.documents_train,
            documents_val=counts.documents_val,
            tokens_train=counts.tokens_train,
            tokens_val=counts.tokens_val,
            bytes_out=0,
            elapsed_s=round(reporter.elapsed_s, 3),
            bytes_per_s=0.0,
            peak_rss_bytes=peak_rss_bytes(),
            resumed=resumed,
            already_complete=False,
            files={},
            notices=[],
            removal=removal,
            dry_run=True,
        )

    def make_each(self, outs: Sequence[Path], *, force: bool, observers: Sequence[Observer]) -> list[Outcome]:
        """Make an output of each source; what goes is found in the directory of the run's own output, which is never made."""
        contents = [
            msgspec.structs.replace(
                source.content, origin=Origin(deduplicated=msgspec.structs.replace(self.rule, part=part)), n_parts=msgspec.UNSET
            )
            for part, source in enumerate(self.sources)
        ]
        places = list(enumerate(zip(outs, contents, strict=True)))
        if all(is_made(out, content, fresh=False) for _, (out, content) in places):
            return [self._make_part(None, *each, force=force, observers=observers) for each in places]
        assert isinstance(self.out, Path)
        if not force:
            counts, scratch_bytes = _most_counts(self.sources), self._scratch_bytes()
            rewriting_need(self.out, self.content, counts, fresh=False, scratch_bytes=scratch_bytes).check()
        output = open_output(self.out, self.content, __version__, fresh=False, segment_bytes=COMMIT_BYTES)
        assert isinstance(output, Output)
        try:
            marking, _ = self._marked(output, ProgressReporter(observers), None)
            return [self._make_part(marking, *each, force=force, observers=observers) for each in places]
        finally:
            self._documents.close()
            output.close()

    def _make_part(
        self, marking: Marking | None, part: int, place: tuple[Path, Content], *, force: bool, observers: Sequence[Observer]
    ) -> Outcome:
        """Make the output of one source. marking: what goes; None: the output is complete. place: its directory and settings."""
        out, content = place
        source = self.sources[part]

        def make(output: Output, reporter: ProgressReporter) -> tuple[Manifest, int]:
            assert marking is not None
            recorder = reporter.add(RunHistoryRecorder(output))
            sections = [section for section in self._documents.sections if section.index == part]
            copying = Copying(self._documents, sections, marking.removals, content, output, reporter)
            copying.position_bytes = copying.done_bytes
            reporter.started(sum(section.n_bytes for section in sections), copying.position_bytes)
            removal = self._removal(marking)
            removal = msgspec.structs.replace(removal, sources=removal.sources[part : part + 1])
            try:
                copying.run()
                counts = self._counts(removal, [source])
                manifest = copying.publish(counts, removal, (provenance(source, "dedup"),), recorder, "")
            except BaseException:
                recorder.save()
                raise
            return manifest, copying.written_bytes

        return derive_output(
            [source],
            content,
            out,
            "dedup",
            make=make,
            fresh=False,
            force=force,
            observers=observers,
            notices=(),
        )

    def _machines(self) -> AbstractContextManager[Tasks | None]:
        """Return the machines that do it, a context; None: this one."""
        return nullcontext() if self.ray is None else cluster(self.ray)

    def _marked(self, output: Output, reporter: ProgressReporter, machines: Tasks | None) -> tuple[Marking, Copying]:
        """Find what goes, as far as that is not done, and return what writes the output."""
        copying: Copying | None = None

        def begin() -> None:
            assert copying is not None
            copying.begin()

        def note(n_bytes: int) -> None:
            assert copying is not None
            copying.note(n_bytes)

        marking, copying = (
            self._here(output, reporter, note, begin)
            if machines is None
            else self._elsewhere(output, reporter, note, begin, Cluster(machines, self._task_bytes))
        )
        n_out = sum(section.n_bytes for section in self._written_sections())
        copying.position_bytes = marking.state.done_bytes + copying.done_bytes
        n_read = n_passes(self.rule.near, compare=self.compare) * self._documents.n_bytes
        reporter.started(n_read + n_out, copying.position_bytes)
        marking.run()
        return marking, copying

    def _here(
        self, output: Output, reporter: ProgressReporter, note: Callable[[int], None], begin: Callable[[], None]
    ) -> tuple[Marking, Copying]:
        """Return what finds and what writes on this machine."""
        fingerprint, near = self.content.fingerprint(), self.rule.near
        scratch = Scratch(output.directory, fingerprint, self._room_bytes // BUFFER_SHARE, compare=self.compare)
        n_sources = len(self.sources)
        marking = Marking(self._documents, near, scratch, self._room_bytes, n_sources=n_sources, note=note, on_commit=begin)
        sections = self._written_sections()
        return marking, Copying(self._documents, sections, marking.removals, self.content, output, reporter)

    def _elsewhere(
        self,
        output: Output,
        reporter: ProgressReporter,
        note: Callable[[int], None],
        begin: Callable[[], None],
        machines: Cluster,
    ) -> tuple[Marking, Copying]:
        """Return what finds and what writes in tasks."""
        new = SharedState(fingerprint=self.content.fingerprint(), compare=self.compare, completed=[])
        marking = SpreadMarking(
            self._documents,
            self.rule.near,
            SharedScratch(output.directory, begun_state(output.directory, new)),
            self._room_bytes,
            sources=[*self.sources, *self.against],
            n_sources=len(self.sources),
            content=self.content,
            cluster=machines,
            note=note,
            on_commit=begin,
        )
        sections = self._written_sections()
        return marking, SpreadCopying(self._documents, sections, marking, self.content, output, reporter, machines)

    def _written_sections(self) -> list[Section]:
        """Return the sections that become the output."""
        return [section for section in self._documents.sections if section.index < len(self.sources)]

    def _train(self) -> list[Section]:
        return [section for section in self._documents.sections if not section.is_protected]

    def _removal(self, marking: Marking) -> Removal:
        state = marking.state
        return Removal(
            sources=removal_of(state.removed, self._train()),
            against=tuple(path_to_text(str(source.directory)) for source in self.against),
            short=state.short,
            long=state.long,
            clusters=state.clusters,
            compared_pairs=state.compared_pairs,
            unexamined=state.unexamined,
        )

    def _counts(self, removal: Removal, sources: Sequence[Source]) -> Counts:
        """Return what is in the output of these sources."""
        most = _most_counts(sources)
        n_documents = most.documents_train - sum(each.copies + each.near_copies for each in removal.sources)
        n_tokens = most.tokens_train - sum(each.copy_tokens + each.near_copy_tokens for each in removal.sources)
        return Counts(
            documents=n_documents + most.documents_val,
            documents_train=n_documents,
            documents_val=most.documents_val,
            tokens_train=n_tokens,
            tokens_val=most.tokens_val,
        )

    def _scratch_bytes(self) -> int:
        """Return what the work takes on the disk at the worst moment, beside the output."""
        most = _most_counts(self.sources)
        is_spread = self.ray is not None
        # Tasks write the lines first, and then they are copied.
        n_lines = most.documents_train * _LINE_BYTES * (2 if is_spread else 1)
        n_lines = max(0, n_lines - most.tokens_train * ITEM_BYTES[self.content.dtype])
        n_bytes = self._documents.n_ids * self._documents.dtype.itemsize
        return work_bytes(self._documents.n, n_bytes, self.rule.near, compare=self.compare, is_spread=is_spread) + n_lines


def _of_tokenizing(counts: Counts, removal: Removal, tokenized: Counts) -> tuple[Counts, Removal]:
    """Return them with what is known of tokenizing, too. How much of its text is left, nobody counted."""
    found = msgspec.structs.replace(
        tokenized,
        documents=tokenized.documents - (tokenized.documents_train - counts.documents_train),
        documents_train=counts.documents_train,
        tokens_train=counts.tokens_train,
        bytes_text=0,
    )
    return found, msgspec.structs.replace(removal, bytes_text=tokenized.bytes_text)


def _most_counts(sources: Sequence[Source]) -> Counts:
    """Return the counts of an output of these if nothing goes."""
    return sum((source.manifest.counts for source in sources), Counts())


def _check_operands(sources: Sequence[Source], against: Sequence[Source], *, allow_other_split: bool) -> None:
    """Raise UsageError for outputs that cannot be deduplicated together."""
    check_agreement(sources, allow_other_split=allow_other_split)
    check_agreement([sources[0], *against], allow_other_split=True, names=())
    _check_number(len(sources) + len(against))
    _check_different(sources, against)
    for source in sources:
        _check_order(source)


def _check_number(n: int) -> None:
    """Raise UsageError for more outputs than there can be."""
    if n > MOST_SOURCES:
        raise UsageError(
            f"{n:,} outputs",
            where="DIR",
            allowed=f"up to {MOST_SOURCES}",
            next_step="tokmill merge joins some of them first",
        )


def _check_different(sources: Sequence[Source], against: Sequence[Source]) -> None:
    """Raise UsageError for an output that is given twice, under whatever name: all of it would go."""
    places = set()
    for source in sources:
        place = _place(source)
        if place in places:
            raise UsageError(
                "an output is given twice: all documents of the second would go",
                where=str(source.directory),
                allowed="each output once",
                next_step="leave out one of them",
            )
        places.add(place)
    _check_others({source.manifest.fingerprint for source in sources}, against, places)


def _check_others(prints: Container[str], against: Sequence[Source], places: Container[object] = ()) -> None:
    """Raise UsageError for outputs that are those which lose documents. prints, places: of these, where known."""
    for source in against:
        if _place(source) in places or source.manifest.fingerprint in prints:
            raise UsageError(
                "an output would be removed from itself",
                where=str(source.directory),
                option="--against",
                allowed="other outputs than those that are deduplicated, and no copies of them",
                next_step="leave it out of --against",
            )


def _place(source: Source) -> str | tuple[int, int]:
    """Return what tells a directory from others, whatever it is called; of an output in a store, its URL."""
    if isinstance(source.directory, str):
        return source.directory
    found = source.directory.stat()
    return found.st_dev, found.st_ino


def _check_order(source: Source) -> None:
    """Raise UsageError for an output whose documents were put into another order, some of them perhaps several times."""
    made_from = list(source.manifest.made_from or ())
    ways: set[str] = set()
    while made_from:
        each = made_from.pop()
        ways |= {each.how, *(["shuffle"] if each.is_arranged else [])}
        made_from += each.made_from
    if not ways & {"shuffle", "mix", "pack"} and not is_arranged(source):
        return
    raise UsageError(
        "repetitions that a mix made on purpose would go"
        if "mix" in ways
        else "which copy stays would be chosen by the shuffle's seed",
        where=str(source.directory),
        allowed="this order: dedup, then mix, then shuffle, then pack",
        next_step="tokmill dedup the outputs that it was made from, then do the other steps again",
    )


def _audit_path(audit: str | os.PathLike[str] | None, outputs: Sequence[Path | str], *, dry_run: bool) -> Path | None:
    """Return where the lines of a dry run go. Raises UsageError for a file that must not be written to."""
    if audit is None:
        return None
    path = Path(local_path(audit, "audit"))
    if not dry_run:
        raise UsageError(
            "an output has its own list of what was removed",
            option="--audit",
            where=str(path),
            allowed="with --dry-run",
            next_step="leave it out: removed.jsonl lies in the output",
        )
    what = why_protected(path, [each for each in outputs if isinstance(each, Path)])
    if what or path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"this is {what}" if what else "no file can be written there",
            where=str(path),
            option="--audit",
            allowed="a file outside of outputs, in a directory that exists",
            suggested="removed.jsonl",
        )
    return path
