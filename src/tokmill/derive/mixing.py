"""`mix`: complete outputs by weight into one, shuffled: each document as often as its source's share of the tokens asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.arrangement import MOST_COPIES, MOST_SOURCES, ArrangedSource, Arrangement
from tokmill.core.config import Origin
from tokmill.core.errors import UsageError
from tokmill.core.options import PlanOptions, options_of
from tokmill.core.records import Counts
from tokmill.core.text import quoted
from tokmill.derive.arguments import named_outputs, one_each, output_target
from tokmill.derive.bucket_run import Operand
from tokmill.derive.choosing import chosen, measured, measured_by
from tokmill.derive.merging import check_agreement, shared_inputs, with_offsets
from tokmill.derive.shuffling import arrange_output, arranged_content, cluster, load_operands
from tokmill.formats import parse_tokens
from tokmill.output import earlier_arrangement

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from tokmill.core.config import Content, RecipeStep
    from tokmill.core.outcome import Outcome
    from tokmill.core.protocols import Observer
    from tokmill.core.system.tree import Directory
    from tokmill.derive.choosing import Measure
    from tokmill.derive.source import Source

_EXAMPLE = "tokmill mix A=0.7 B=0.3 --seed 1 --out mixed"


def mix(
    weights: Mapping[str, float] | Sequence[tuple[str | os.PathLike[str], float | str]],
    out: str | os.PathLike[str],
    *,
    seed: int,
    tokens: str | int | None = None,
    max_epochs: float | Sequence[float] = 4,
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
    """Make one output of complete outputs by weight, in random order, as `tokmill mix` does. Call it again to resume.

    Every document of a source is taken as often as the one before it, or once more. On the validation side each source has its
    documents once, in order.

    Args:
        weights: By directory or URL, the share of the tokens of the training side; weights are divided by their sum.
        out: The output directory, or `s3://bucket/prefix`.
        seed: Of the choice and the order of documents, 0 <= seed < 2**64; the same seed gives the same bytes.
        tokens: Of the training side, a number or text such as `10B`. None: as many as the scarcest source allows.
        max_epochs: How often a document may be taken, on average over its source; one number, or one for each source.
        format: Of the output; None: that of the sources.
        shard_tokens: Tokens of a shard, a number or text such as `100M`; None: as the trainer expects.
        shard_documents: Cut shards only where documents end.
        offsets: Also write where each document begins.
        memory: Bytes, or text such as `512MiB`, from 128 MiB on. None: 1 GiB.
        allow_other_split: Also take outputs that chose their validation documents differently.
        stage: Of an `out` in a store, the local directory in which it is made first; None: inside ~/.cache/tokmill/stage.
        stage_size: How many bytes of complete shards may wait there, a number or text such as `4GiB`.
        ray: As of `shuffle`.
        fresh: Discard what is in `out`.
        force: Go on though it will not fit on the disk.
        observers: What is told of progress.
        recipe: The recipe that this is a step of; None: of none.

    Returns:
        What was done; `mixture` says what each source became.

    Raises:
        TokmillError: UsageError for outputs that do not agree or do not have so many tokens, DamageError for one that is not as it
            was written.
    """
    options_of(PlanOptions)["seed"].check(seed)
    pairs = list(weights.items()) if isinstance(weights, Mapping) else list(weights)
    shares = shares_of(pairs)
    sources, target = load_operands(
        one_each([name for name, _ in pairs], named_outputs), output_target(out, stage, stage_size), _EXAMPLE
    )
    check_agreement(sources, allow_other_split=allow_other_split)
    check_distinct(sources)
    total = total_tokens(sources, shares, None if tokens is None else parse_tokens(tokens, "--tokens"), max_epochs)
    wished = [round(total * share) for share in shares]
    arrangement = Arrangement(seed=seed, sources=tuple(map(_uncounted, sources, wished)))
    content, notices = arranged_content(sources, arrangement, format, shard_tokens, shard_documents=shard_documents)
    operands = [Operand(source, number, 0) for number, source in enumerate(sources)]
    content, arranged = _counted(with_offsets(content, offsets), arrangement, operands, ray, None if fresh else target.directory)
    return arrange_output(
        operands,
        content,
        target,
        "mix",
        memory,
        _counts(sources, arranged),
        ray=ray,
        fresh=fresh,
        force=force,
        observers=observers,
        notices=[*notices, *shared_inputs(content, len(sources))],
        recipe=recipe,
    )


def _counted(
    content: Content, arrangement: Arrangement, operands: Sequence[Operand], ray: str | None, out: Directory | None
) -> tuple[Content, tuple[ArrangedSource, ...]]:
    """Return settings of a mixture, and its sources, with what is chosen of them. Raises TokmillError.

    arrangement: that of the settings, in which it is not known yet. ray: as of `mix`. out: where an earlier run may have found it:
    it is looked at first, as to read the sources may take hours. None: it is not looked at.
    """
    found = None if out is None else earlier_arrangement(out, content)
    wished = [source.wished_tokens for source in arrangement.sources]
    arranged = found.sources if found else _all_arranged(operands, arrangement.seed, wished, ray)
    known = Origin(arranged=Arrangement(seed=arrangement.seed, sources=arranged))
    return msgspec.structs.replace(content, origin=known), arranged


def _counts(sources: Sequence[Source], arranged: Sequence[ArrangedSource]) -> Counts:
    """Return what is in the mixture."""
    n_documents, n_val = sum(each.taken_documents for each in arranged), sum(s.manifest.counts.documents_val for s in sources)
    return Counts(
        documents=n_documents + n_val,
        documents_train=n_documents,
        documents_val=n_val,
        tokens_train=sum(each.taken_tokens for each in arranged),
        tokens_val=sum(source.manifest.counts.tokens_val for source in sources),
    )


def check_distinct(sources: Sequence[Source]) -> None:
    """Raise UsageError for an output that is there twice: its documents could be taken more often than --max-epochs allows."""
    first: dict[str, Source] = {}
    for source in sources:
        other = first.setdefault(source.manifest.fingerprint, source)
        # What came from a pipe may be another text with the same settings.
        if other is not source and other.manifest.segments == source.manifest.segments:
            raise UsageError(
                "the same output twice",
                where=f"{other.directory}, and {source.directory}",
                allowed="each output once, so that --max-epochs says how often its documents are taken",
                next_step="leave one of them out, and add its weight to that of the other",
            )


def shares_of(pairs: Sequence[tuple[str | os.PathLike[str], float | str]]) -> list[Fraction]:
    """Return the weights divided by their sum. Raises UsageError."""
    if len(pairs) > MOST_SOURCES:
        raise UsageError(f"{len(pairs):,} sources", where="DIR=WEIGHT", allowed=f"up to {MOST_SOURCES:,}", next_step=_EXAMPLE)
    found = []
    for name, weight in pairs:
        number = _weight(str(weight).strip())
        if number < 0:
            raise UsageError(
                f"{weight!s} is no weight",
                where=f"{name}={weight!s}",
                allowed="a number from 0 on, such as 0.7",
                next_step=_EXAMPLE,
            )
        found.append(number)
    if not sum(found):
        raise UsageError(
            "no source has a weight above 0", where="DIR=WEIGHT", allowed="weights of which one is", next_step=_EXAMPLE
        )
    return [each / sum(found) for each in found]


def _weight(text: str) -> Fraction:
    """Return the number that a text says; one below 0 if it says none, or one that no float can be near."""
    try:
        # First, as a fraction of 1e999999999 takes minutes and gigabytes.
        if "/" not in text and not math.isfinite(float(text)):
            return Fraction(-1)
        return Fraction(text) if "/" in text or float(text) else Fraction(0)
    except (ValueError, ZeroDivisionError):
        return Fraction(-1)


def _epochs(max_epochs: float | Sequence[float], n_sources: int) -> list[Fraction]:
    """Return how often the documents of each source may be taken. Raises UsageError."""
    each = [max_epochs] * n_sources if isinstance(max_epochs, (int, float)) else list(max_epochs)
    if len(each) != n_sources:
        raise UsageError(
            f"{len(each):,} numbers of epochs for {n_sources:,} sources",
            where="max_epochs",
            allowed="one number, or one for each source",
            next_step=_EXAMPLE,
        )
    for number in each:
        is_number = isinstance(number, (int, float)) and math.isfinite(number)
        if not is_number or not 0 < number < MOST_COPIES:
            raise UsageError(
                f"{number} epochs", option="--max-epochs", allowed=f"a number above 0, less than {MOST_COPIES:,}", suggested="4"
            )
    return [Fraction(number) for number in each]


def total_tokens(
    sources: Sequence[Source], shares: Sequence[Fraction], tokens: int | None, max_epochs: float | Sequence[float]
) -> int:
    """Return the tokens of a mixture. tokens, max_epochs: as of `mix`. Raises UsageError where a source does not have enough."""
    most, epochs_of = {}, _epochs(max_epochs, len(sources))
    for source, share, epochs in zip(sources, shares, epochs_of, strict=True):
        n_tokens = source.manifest.counts.tokens_train
        if share and not n_tokens:
            raise UsageError(
                "a source has no token on its training side",
                where=str(source.directory),
                allowed="a weight of 0 for it, or a source with text",
                next_step="leave it out",
            )
        if share:
            most[source] = math.floor(epochs * n_tokens / share)
    scarcest = min(most, key=most.__getitem__)
    if tokens is None:
        return most[scarcest]
    if tokens > most[scarcest]:
        number = list(sources).index(scarcest)
        share = shares[number]
        epochs = tokens * share / scarcest.manifest.counts.tokens_train
        enough = math.ceil(epochs * 100) / 100
        raise UsageError(
            f"{tokens:,} tokens would take each document of {scarcest.directory} {float(epochs):.2f} times",
            where=f"its share of {float(share):.4g}, of {scarcest.manifest.counts.tokens_train:,} tokens",
            option="--tokens",
            allowed=f"up to {most[scarcest]:,} tokens with --max-epochs {float(epochs_of[number]):g}",
            suggested=str(most[scarcest]),
            next_step=f"or --max-epochs {enough:g}, a smaller weight for {quoted(str(scarcest.directory))}, or more text",
        )
    return tokens


def _all_arranged(operands: Sequence[Operand], seed: int, wished: Sequence[int], ray: str | None) -> tuple[ArrangedSource, ...]:
    """Return how often the documents of each source are taken. wished: tokens of each. ray: as of `mix`."""
    try:
        with nullcontext() if ray is None else cluster(ray) as tasks:
            measure = measured if tasks is None else partial(measured_by, tasks)
            return tuple(_arranged(operand, seed, n, measure) for operand, n in zip(operands, wished, strict=True))
    finally:
        for operand in operands:
            operand.source.close()


def _uncounted(source: Source, wished: int) -> ArrangedSource:
    """Return what is known of a source in a mixture before its documents are chosen."""
    counts = source.manifest.counts
    return ArrangedSource(
        fingerprint=source.manifest.fingerprint,
        documents=counts.documents_train,
        tokens=counts.tokens_train,
        times=wished // counts.tokens_train if counts.tokens_train else 0,
        wished_tokens=wished,
    )


def _arranged(operand: Operand, seed: int, wished: int, measure: Measure) -> ArrangedSource:
    """Return how often the documents of a source are taken, for as many tokens as are wished. measure: as of `chosen`."""
    known = _uncounted(operand.source, wished)
    rest = wished - known.times * known.tokens if known.tokens else 0
    last_chosen, more_documents, more_tokens = chosen(operand, seed, rest, measure) if rest else (None, 0, 0)
    return msgspec.structs.replace(
        known,
        last_chosen=last_chosen,
        taken_documents=known.times * known.documents + more_documents,
        taken_tokens=known.times * known.tokens + more_tokens,
    )
