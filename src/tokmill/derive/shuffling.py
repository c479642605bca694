"""`shuffle`: the documents of complete outputs in an order that their seed decides, true to the last one, whatever the memory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.arrangement import MOST_DOCUMENTS, ArrangedSource, Arrangement
from tokmill.core.config import MIB, Origin, RecipeStep
from tokmill.core.errors import UsageError
from tokmill.core.options import PlanOptions, options_of, parse_size
from tokmill.core.records import Counts
from tokmill.core.system.budget import store_bytes
from tokmill.derive.arguments import Target, check_apart, check_choice, named_outputs, output_target
from tokmill.derive.arranging import Arranging
from tokmill.derive.bucket_run import LEAST_BYTES, Operand
from tokmill.derive.engine import COMMIT_BYTES, derive_output, provenance
from tokmill.derive.loading import load_source
from tokmill.derive.merging import check_agreement, merged_content, shared_inputs, with_offsets
from tokmill.derive.source import Source, check_marks
from tokmill.derive.spread.arranging import Spread
from tokmill.derive.spread.portions import index_bytes
from tokmill.formats import FORMATS, choose_output
from tokmill.output import RunHistoryRecorder, arranging_bytes, drop_tokenized

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from tokmill.core.config import Content, How
    from tokmill.core.manifest import Manifest
    from tokmill.core.outcome import Outcome
    from tokmill.core.progress import ProgressReporter
    from tokmill.core.protocols import Observer
    from tokmill.derive.spread.tasks import Tasks
    from tokmill.output import Output

_USUAL_BYTES = 1 << 30


def shuffle(
    directories: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    seed: int,
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
    recipe: RecipeStep | None = None,
) -> Outcome:
    """Make one output of complete outputs with the documents of their training sides in random order, as `tokmill shuffle` does.

    The validation side keeps its order. Call it again to resume.

    Args:
        directories: The outputs in order, directories or `s3://bucket/prefix`: they are shuffled as if they had been merged first.
        out: The output directory, or `s3://bucket/prefix`.
        seed: Of the order, 0 <= seed < 2**64; the same seed gives the same bytes, on any machine, with any memory.
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
        recipe: The recipe that this is a step of; None: of none.

    Returns:
        What was done.

    Raises:
        TokmillError: UsageError for outputs that do not agree, DamageError for one that is not as it was written.
    """
    options_of(PlanOptions)["seed"].check(seed)
    target = output_target(out, stage, stage_size)
    sources, target = load_operands(named_outputs(directories), target, "tokmill shuffle DIR --seed 1 --out shuffled")
    check_agreement(sources, allow_other_split=allow_other_split)
    operands, n_documents = [], 0
    for source in sources:
        operands.append(Operand(source, 0, n_documents))
        n_documents += source.manifest.counts.documents_train
    content, notices = arranged_content(sources, _arrangement(sources, seed), format, shard_tokens, shard_documents=shard_documents)
    content = with_offsets(content, offsets)
    counts = sum((source.manifest.counts for source in sources), Counts())
    return arrange_output(
        operands,
        content,
        target,
        "shuffle",
        memory,
        counts,
        ray=ray,
        fresh=fresh,
        force=force,
        observers=observers,
        notices=[*notices, *shared_inputs(content, len(sources))],
        recipe=recipe,
    )


def shuffle_into(
    directory: Path,
    content: Content,
    out: Path,
    *,
    seed: int,
    memory: str | int | None,
    fresh: bool,
    force: bool,
    observers: Sequence[Observer],
) -> Outcome:
    """Make an output with these settings of one that was tokenized for it, with its documents in the order of a seed.

    directory: the tokenized output, whose training side is removed when all of it lies in buckets. content: of the output, without
    origin. The rest as of `shuffle`.
    """
    source = Source.load(directory)
    content = msgspec.structs.replace(content, origin=Origin(arranged=_arrangement([source], seed)))
    counts = source.manifest.counts
    return arrange_output(
        [Operand(source, 0, 0)],
        content,
        out,
        None,
        memory,
        counts,
        fresh=fresh,
        force=force,
        observers=observers,
        notices=(),
        on_scattered=lambda: drop_tokenized(out),
    )


def _arrangement(sources: Sequence[Source], seed: int) -> Arrangement:
    """Return all documents of the sources, each once, as of one source."""
    counts = sum((source.manifest.counts for source in sources), Counts())
    arranged = ArrangedSource(
        fingerprint="+".join(source.manifest.fingerprint for source in sources),
        documents=counts.documents_train,
        tokens=counts.tokens_train,
        taken_documents=counts.documents_train,
        taken_tokens=counts.tokens_train,
    )
    return Arrangement(seed=seed, sources=(arranged,))


def arranged_content(
    sources: Sequence[Source],
    arrangement: Arrangement,
    format_name: str | None,
    shard_tokens: str | int | None,
    *,
    shard_documents: bool,
) -> tuple[Content, list[str]]:
    """Return the settings of an output with the documents of sources, and what to say of it. Raises UsageError.

    format_name: None: that of the sources. The rest as of `shuffle`.
    """
    origin = Origin(arranged=arrangement)
    return chosen_content(sources, origin, format_name, shard_tokens, shard_documents=shard_documents)


def chosen_content(
    sources: Sequence[Source],
    origin: Origin,
    format_name: str | None,
    shard_tokens: str | int | None,
    *,
    shard_documents: bool,
) -> tuple[Content, list[str]]:
    """Return the settings of an output of this origin. The rest as of `arranged_content`. Raises UsageError."""
    check_choice("--format", format_name, tuple(FORMATS))
    content = msgspec.structs.replace(merged_content(sources), origin=origin)
    is_kept = format_name in (None, content.format)
    if is_kept and len(sources) == 1 and shard_tokens is None and not shard_documents:
        return msgspec.structs.replace(content, shards=sources[0].content.shards), []
    choice = choose_output(
        format_name or content.format,
        content.tokenizer,
        eot=content.eot if is_kept else "auto",
        dtype=content.dtype if is_kept else "auto",
        shard_tokens=shard_tokens,
        shard_documents=shard_documents,
    )
    content = msgspec.structs.replace(
        content,
        format=format_name or content.format,
        eot=choice.eot,
        dtype=choice.dtype,
        shards=choice.shards or msgspec.UNSET,
    )
    return content, [] if is_kept else choice.notices


def load_operands(paths: Sequence[Path | str], out: Path | Target, example: str) -> tuple[list[Source], Target]:
    """Return the outputs that were named, whose documents can be told apart, and the target. Raises UsageError, DamageError."""
    target = out if isinstance(out, Target) else Target(out)
    if not paths:
        raise UsageError("no output was given", where="DIR", allowed="one or more", next_step=example)
    return load_apart(paths, target.name), target


def load_apart(paths: Sequence[Path | str], out: Path | str) -> list[Source]:
    """Return outputs whose documents can be told apart, none of which is or holds `out`. Raises UsageError, DamageError."""
    sources = [load_source(path) for path in paths]
    check_apart([source.directory for source in sources], out)
    for source in sources:
        check_marks(source)
        if source.manifest.counts.documents_train >= MOST_DOCUMENTS:
            raise UsageError(
                f"{source.manifest.counts.documents_train:,} documents",
                where=str(source.directory),
                allowed=f"less than {MOST_DOCUMENTS:,}",
                next_step="shuffle parts of it",
            )
    return sources


def arrange_output(
    operands: Sequence[Operand],
    content: Content,
    out: Path | Target,
    how: How | None,
    memory: str | int | None,
    counts: Counts,
    *,
    ray: str | None = None,
    fresh: bool,
    force: bool,
    observers: Sequence[Observer],
    notices: Sequence[str],
    recipe: RecipeStep | None = None,
    on_scattered: Callable[[], None] | None = None,
) -> Outcome:
    """Make a complete output with the documents of operands in the order of its content, or go on with it. Raises TokmillError.

    how: the command; None: the operand is a step of the making and no output of its own. counts: of the output. on_scattered: as of
    Arranging. The rest as of `shuffle`.
    """
    sources = [operand.source for operand in operands]
    budget_bytes = budget_of(memory, sources, out if ray is None else None)
    task_bytes = budget_bytes + bytes_of_stores(sources, None)

    def make(output: Output, reporter: ProgressReporter) -> tuple[Manifest, int]:
        recorder = reporter.add(RunHistoryRecorder(output))
        step = recipe or RecipeStep()
        names = step.names or ("",) * len(sources)
        made_from = tuple(provenance(source, how, name) for source, name in zip(sources, names, strict=True)) if how else ()
        with nullcontext() if ray is None else cluster(ray) as tasks:
            arranging = (
                Arranging(operands, content, output, budget_bytes, reporter, counts, on_scattered)
                if tasks is None
                else Spread(operands, content, output, budget_bytes, reporter, counts, tasks, task_bytes)
            )
            try:
                manifest = arranging.run(made_from, recorder, step.fingerprint)
            except BaseException:
                recorder.save()
                raise
        return manifest, arranging.written_bytes

    return derive_output(
        sources,
        content,
        out,
        how or "shuffle",
        make=make,
        counts=counts,
        scratch_bytes=_scratch_bytes(content, counts, budget_bytes, is_step=how is None, is_spread=ray is not None),
        fresh=fresh,
        force=force,
        observers=observers,
        notices=notices,
    )


def _scratch_bytes(content: Content, counts: Counts, budget_bytes: int, *, is_step: bool, is_spread: bool) -> int:
    """Return what an output needs on the disk while it is made, beside its own bytes.

    counts: of the output. is_step: what it is made from goes when it lies in buckets. is_spread: over tasks, whose portions stay
    until the end.
    """
    ids_bytes, records_bytes = arranging_bytes(content, counts.tokens_train, 0), arranging_bytes(content, 0, counts.documents_train)
    if is_spread:
        return ids_bytes + records_bytes + index_bytes(ids_bytes + records_bytes, counts.documents_train)
    # A bucket goes when the commit behind it is done, and the output takes its room: so much is there of both.
    both_bytes = 0 if is_step else min(ids_bytes, 4 * COMMIT_BYTES + budget_bytes)
    return records_bytes + both_bytes


def cluster(address: str) -> AbstractContextManager[Tasks]:
    """Return a connection to a Ray cluster, a context. Raises UsageError."""
    from tokmill.run import RayRunner

    return RayRunner(address)


def bytes_of_stores(sources: Sequence[Source], out: Path | Target | None) -> int:
    """Return the memory that reading from a store and sending to it takes."""
    is_read, is_sent = any(isinstance(each.directory, str) for each in sources), isinstance(out, Target) and out.is_remote
    return store_bytes(is_read=is_read, is_sent=is_sent)


def budget_of(memory: str | int | None, sources: Sequence[Source], out: Path | Target | None) -> int:
    """Return the memory for documents: the budget without what reading from a store and sending to it takes. Raises UsageError.

    out: None: another process sends.
    """
    options_of(PlanOptions)["memory"].check(memory)
    needed_bytes = bytes_of_stores(sources, out)
    if memory is None:
        return _USUAL_BYTES - needed_bytes
    n_bytes = memory if isinstance(memory, int) else parse_size(memory, "--memory")
    least = LEAST_BYTES + needed_bytes
    if n_bytes < least:
        raise UsageError(
            f"a budget of {n_bytes // MIB:,} MiB is too small",
            where="--memory",
            option="--memory",
            allowed=f"at least {least // MIB} MiB" + (" with a store" if needed_bytes else ""),
            suggested=f"{least // MIB}MiB",
        )
    return n_bytes - needed_bytes
