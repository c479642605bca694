"""`pack`: the documents of complete outputs in sequences of one length, whole where they fit, in as few sequences as can be."""

from __future__ import annotations

import operator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import Origin
from tokmill.core.errors import TokmillError, UsageError
from tokmill.core.options import PlanOptions, options_of
from tokmill.core.packing import DROPS, MOST_SEQUENCE, Packing
from tokmill.core.records import ITEM_BYTES, Counts
from tokmill.dataset import find_tokenizer
from tokmill.derive.arguments import check_choice, named_outputs, output_target
from tokmill.derive.bucket_run import Operand
from tokmill.derive.buckets import RECORD
from tokmill.derive.engine import derive_output, provenance
from tokmill.derive.merging import check_agreement, merged_content
from tokmill.derive.packed_run import PackedRun
from tokmill.derive.shuffling import budget_of, load_operands
from tokmill.encode import padding_id
from tokmill.formats import FORMATS, choose_output
from tokmill.output import RunHistoryRecorder, rewriting_need

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from tokmill.core.config import Content
    from tokmill.core.manifest import Manifest
    from tokmill.core.outcome import Outcome
    from tokmill.core.packing import Drop
    from tokmill.core.progress import ProgressReporter
    from tokmill.core.protocols import Observer
    from tokmill.core.records import Tokenizer
    from tokmill.derive.arguments import Target
    from tokmill.derive.source import Source
    from tokmill.output import Output

_EXAMPLE = "tokmill pack DIR --sequence 2048 --seed 1 --out packed"


def pack(
    directories: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    sequence: int,
    seed: int,
    drop: Drop = "nothing",
    pad_id: int | None = None,
    format: str | None = None,  # noqa: A002  the name of the option
    shard_tokens: str | int | None = None,
    memory: str | int | None = None,
    allow_other_split: bool = False,
    stage: str | os.PathLike[str] | None = None,
    stage_size: str | int | None = None,
    fresh: bool = False,
    force: bool = False,
    observers: Sequence[Observer] = (),
    recipe: str = "",
) -> Outcome:
    """Make one output of complete outputs whose files are sequences of one length, as `tokmill pack` does. Call it again to resume.

    Documents that fit into a sequence stay whole; longer ones are cut into full sequences and a rest. Both sides are packed.

    Args:
        directories: The outputs in order, directories or `s3://bucket/prefix`: they are packed as if they had been merged first.
        out: The output directory, or `s3://bucket/prefix`.
        sequence: Ids of each sequence, 1 to 1,048,576; end-of-text ids count.
        seed: Decides what lies together, and the order, 0 <= seed < 2**64; the same seed gives the same bytes.
        drop: What to leave out: `nothing`; `rests`, of a document longer than a sequence what is left after its last full one;
            `long`, such documents.
        pad_id: Fills sequences up. None: an id of the tokenizer that no text becomes.
        format: Of the output; None: that of the sources.
        shard_tokens: Tokens of a shard, a multiple of `sequence`, a number or text such as `100M`; None: as the trainer expects.
        memory: Bytes, or text such as `512MiB`, from 128 MiB on. None: 1 GiB.
        allow_other_split: Also take outputs that chose their validation documents differently.
        stage: Of an `out` in a store, the local directory in which it is made first; None: inside ~/.cache/tokmill/stage.
        stage_size: How many bytes of complete shards may wait there, a number or text such as `4GiB`.
        fresh: Discard what is in `out`.
        force: Go on though it will not fit on the disk.
        observers: What is told of progress.
        recipe: Fingerprint of the recipe that this is a step of; nothing: of none.

    Returns:
        What was done; `packed` says what came of each side.

    Raises:
        TokmillError: UsageError for outputs that do not agree or cannot be packed so, DamageError for one that is not as it was
            written.
    """
    options_of(PlanOptions)["seed"].check(seed)
    check_choice("--drop", drop, DROPS)
    check_sequence(sequence)
    sources, target = load_operands(named_outputs(directories), output_target(out, stage, stage_size), _EXAMPLE)
    check_agreement(sources, allow_other_split=allow_other_split)
    packing = Packing(
        sequence=operator.index(sequence),
        seed=seed,
        pad_id=_pad_id(sources, pad_id),
        sources=tuple(source.manifest.fingerprint for source in sources),
        drop=drop,
    )
    content, notices = _packed_content(sources, packing, format, shard_tokens)
    budget_bytes = budget_of(memory, sources, target)
    expected = sum((source.manifest.counts for source in sources), Counts())
    return derive_output(
        sources,
        content,
        target,
        "pack",
        make=partial(_make, sources, content, target, budget_bytes, recipe, force=force),
        counts=expected,
        scratch_bytes=_scratch_bytes(expected, content),
        fresh=fresh,
        force=force,
        observers=observers,
        notices=notices,
    )


def _make(
    sources: Sequence[Source],
    content: Content,
    target: Target,
    budget_bytes: int,
    recipe: str,
    output: Output,
    reporter: ProgressReporter,
    *,
    force: bool,
) -> tuple[Manifest, int]:
    """Make the output: a Maker, all but `output` and `reporter` given."""

    def check_disk(counts: Counts) -> None:
        if not force:
            path, scratch_bytes = Path(str(output.directory)), _scratch_bytes(counts, content)
            need = rewriting_need(path, content, counts, fresh=False, scratch_bytes=scratch_bytes, stage_bytes=target.stage_bytes)
            need.check(is_staged=target.is_remote)

    recorder = reporter.add(RunHistoryRecorder(output))
    operands = [Operand(source, 0, 0) for source in sources]
    run = PackedRun(operands, content, output, budget_bytes, reporter, check_disk)
    try:
        manifest = run.run(tuple(provenance(source, "pack") for source in sources), recorder, recipe)
    except BaseException:
        recorder.save()
        raise
    return manifest, run.written_bytes


def check_sequence(sequence: object) -> None:
    """Raise UsageError for what is no length of a sequence."""
    is_number = isinstance(sequence, int) and not isinstance(sequence, bool)
    if not is_number or not 1 <= sequence <= MOST_SEQUENCE:  # type: ignore[operator]
        raise UsageError(
            f"a sequence of {sequence} ids",
            option="--sequence",
            allowed=f"1 to {MOST_SEQUENCE:,}",
            suggested="2048",
            next_step="or the length that the trainer takes",
        )


def _scratch_bytes(counts: Counts, content: Content) -> int:
    """Return the bytes of the buckets, and of the starts of documents beside the ids."""
    n_documents = counts.documents_train + counts.documents_val
    return (counts.tokens_train + counts.tokens_val) * ITEM_BYTES[content.dtype] + n_documents * (RECORD.itemsize + 8)


def _packed_content(
    sources: Sequence[Source], packing: Packing, format_name: str | None, shard_tokens: str | int | None
) -> tuple[Content, list[str]]:
    """Return the settings of the output, and what to say of it. Raises UsageError."""
    check_choice("--format", format_name, tuple(FORMATS))
    content = msgspec.structs.replace(merged_content(sources), origin=Origin(packed=packing))
    is_kept = format_name in (None, content.format)
    choice = choose_output(
        format_name or content.format,
        content.tokenizer,
        eot=content.eot if is_kept else "auto",
        dtype=content.dtype if is_kept else "auto",
        shard_tokens=shard_tokens,
        sequence=packing.sequence,
    )
    content = msgspec.structs.replace(
        content,
        format=format_name or content.format,
        eot=choice.eot,
        dtype=choice.dtype,
        shards=choice.shards or msgspec.UNSET,
    )
    return content, [] if is_kept else choice.notices


def _pad_id(sources: Sequence[Source], given: int | None) -> int:
    """Return the id for padding. Raises UsageError."""
    tokenizer = sources[0].content.tokenizer
    n_ids = min(source.content.tokenizer.n_ids for source in sources)
    if given is None:
        return _own_pad_id(tokenizer)
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < n_ids:
        raise UsageError(
            f"{given} is no id of the tokenizer {tokenizer.name}: a model would have no embedding for it",
            option="--pad-id",
            allowed=f"0 to {n_ids - 1:,}",
            next_step="leave --pad-id out: then it is an id that no text has",
        )
    if given == tokenizer.eot_id:
        raise UsageError(
            f"{given} is the end-of-text id: readers would take each padding id for a document",
            option="--pad-id",
            allowed="an id that no document has",
            next_step="leave --pad-id out: then it is an id that no text has",
        )
    return given


def _own_pad_id(tokenizer: Tokenizer) -> int:
    """Return an id of a tokenizer that no text becomes. Raises UsageError."""
    why = "nobody said which tokenizer made the ids"
    if tokenizer.is_known:
        try:
            found = padding_id(find_tokenizer(tokenizer))
        except TokmillError as error:
            why = error.what
        else:
            if found is not None:
                return found
            why = f"the tokenizer {tokenizer.name} has no token for padding, nor one for a byte that no text has"
    raise UsageError(
        f"no id for padding is known: {why}",
        where="--pad-id",
        option="--pad-id",
        allowed="an id of the tokenizer that no document has",
        next_step="give one with --pad-id",
    )
