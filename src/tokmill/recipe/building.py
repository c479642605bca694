"""`build`: from a recipe to a training set. Each source is tokenized into a directory of its own, then all are mixed or shuffled.

A step's directory is named after the fingerprint of what decides its bytes, and a complete output is not made again. So a new
weight tokenizes nothing, and after a crash the same command goes on where it was.
"""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash

from tokmill import api
from tokmill.core.config import RecipeStep, local_path
from tokmill.core.deduplication import REMOVED_NAME
from tokmill.core.errors import ChangedError, DiskFullError, TokmillError, UsageError
from tokmill.core.events import Notice
from tokmill.core.manifest import MANIFEST_NAME, load_manifest
from tokmill.core.options import PlanOptions
from tokmill.core.outcome import Outcome, outcome_of, share_text
from tokmill.core.progress import check_observers
from tokmill.core.records import ITEM_BYTES, is_url
from tokmill.core.system.durable import copy_file, file_system_of, make_directory, storage_errors, sync_directory
from tokmill.core.system.tree import TreePath, tree_of
from tokmill.core.text import counted, quoted, shortened
from tokmill.derive import check_agreement, dedup_each, load_against, mix, n_passes, near_rule, pack, shuffle, work_bytes
from tokmill.formats import choose_output, parse_tokens, short_notices
from tokmill.output import check_size, growing_path, is_begun, refuse_strangers, written_bytes
from tokmill.recipe.parsing import Recipe, RecipeSource, read_recipe
from tokmill.run import ARRANGED_BYTES_PER_S, HOW_AGAIN, make_job
from tokmill.store import redacted

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from tokmill.core.config import Content
    from tokmill.core.deduplication import NearRule
    from tokmill.core.events import AnyEvent
    from tokmill.core.protocols import Observer
    from tokmill.derive import Source
    from tokmill.formats import Choice


_MOST = 5
"""Steps that are named."""

_REMOVED = ".removed"
"""At the end of the name of a directory beside the output: what its steps said of copies, where they were not kept."""


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the tokenizing of one source will take."""

    name: str
    directory: str
    is_complete: bool
    """Done already, by an earlier build."""
    tokens: int
    """Estimated where it is not complete."""
    documents: int
    """The same, of both sides."""
    most_tokens: int | None
    """More than these it surely has not; None where nothing is known."""
    new_bytes: int
    """Ids still to be written."""
    expected_s: float


class DiskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a build needs of one disk."""

    path: str
    """A directory on it."""
    needed_bytes: int
    """New bytes at the worst moment."""
    free_bytes: int | None
    """None where the disk does not say."""
    fits: bool


class BuildPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a build will take; the object that `build --plan --json` prints."""

    steps: list[StepPlan]
    is_mixed: bool
    """By weight; else every document is taken once."""
    sequence: int | None = None
    """Tokens of each sequence into which documents are packed."""
    tokens: int
    """Of the training set."""
    output_bytes: int
    passes: int
    """How often the ids of the training set are written, after the sources are tokenized."""
    scratch_bytes: int
    """Temporary, while documents are put into order."""
    peak_bytes: int
    """New bytes at the worst moment."""
    disks: list[DiskPlan]
    """Of the work directory and of the output, which may be the same."""
    fits: bool
    expected_s: float
    out: str
    work: str

    def raise_for_disk(self) -> None:
        """Raise DiskFullError if it will not fit."""
        for disk in self.disks:
            if disk.fits:
                continue
            raise DiskFullError(
                f"the build will not fit on the disk: {disk.needed_bytes / 1e6:,.1f} MB are needed at the worst moment, "
                f"{(disk.free_bytes or 0) / 1e6:,.1f} MB are free",
                where=disk.path,
                allowed=f"{sum(step.new_bytes for step in self.steps) / 1e6:,.1f} MB of tokenized sources, with [dedup] "
                "once more without copies, and the training set twice while it is put into order",
                next_step="free disk space, choose --work and --out on another disk, or pass --force to try all the same",
            )


@dataclass(frozen=True, slots=True)
class _Step:
    source: RecipeSource
    directory: Path
    content: Content
    """Of its tokenized output."""


def build(
    recipe: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    work: str | os.PathLike[str] | None = None,
    keep: bool = True,
    memory: str | int | None = None,
    threads: int | None = None,
    fresh: bool = False,
    force: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Make the training set that a recipe describes, as `tokmill build` does. Call it again to resume.

    Args:
        recipe: The file; `tokmill build --example` prints one.
        out: The output directory.
        work: Directory for the tokenized sources. None: `out` with `.work` at the end of its name.
        keep: Keep the tokenized sources, so that the next build need not make them again; else lists of copies stay.
        memory: As for `tokenize`.
        threads: As for `tokenize`.
        fresh: Put the documents into order again; sources that are tokenized stay.
        force: Go on though it will not fit on the disk.
        observers: What is told of progress, step by step.

    Returns:
        What was made; its notices say which sources were there already.

    Raises:
        TokmillError: UsageError for a mistake in the recipe, with its line.
    """
    began_s = time.monotonic()
    check_observers(observers)
    made, target, kept = read_recipe(_path(recipe, "recipe")), Path(_path(out, "out")), _work(out, work)
    _check_work(kept, target)
    steps = _steps(made, kept, memory, threads)
    against = _against(made, steps, target)
    unique = _unique_steps(made, steps, kept, against)
    fingerprint = _fingerprint(made, unique)
    outcome = None if fresh else _complete(target, fingerprint)
    if outcome is None:
        if not fresh:
            _check_out(made, steps, target)
        if not force:
            _plan(made, steps, target, kept, memory, threads, against).raise_for_disk()
        told = _tokenized(steps, observers, seed=made.seed, memory=memory, threads=threads, force=force)
        if made.dedup is not None:
            told += _deduplicated(made, steps, unique, memory, against, force=force, observers=observers)
        how: dict[str, Any] = {"memory": memory, "fresh": fresh, "force": force, "observers": observers}
        if made.pack is None:
            outcome = _arranged(made, unique, target, fingerprint, **made.output, **how)
        else:
            outcome = _packed(made, unique, _mixture(made, unique, kept), target, told, fingerprint, how)
        outcome = _timed(outcome, began_s, [*told, *outcome.notices])
    used = {step.directory.name for step in (*steps, *unique)}
    used |= {_found(unique).name, _mixture(made, unique, kept).name}
    if not keep:
        if made.dedup is not None:
            outcome = msgspec.structs.replace(outcome, notices=[*outcome.notices, *_keep_lists(unique, target)])
        _remove(kept, used)
    return msgspec.structs.replace(outcome, notices=[*outcome.notices, *_unused(kept, used)])


def _timed(outcome: Outcome, began_s: float, notices: list[str]) -> Outcome:
    """Return what came of the last step with the time of all, and with these notices."""
    elapsed_s = max(round(time.monotonic() - began_s, 3), 0.001)
    rate = outcome.bytes_per_s * outcome.elapsed_s / elapsed_s
    return msgspec.structs.replace(outcome, elapsed_s=elapsed_s, bytes_per_s=round(rate, 1), notices=notices)


def _keep_lists(unique: Sequence[_Step], out: Path) -> list[str]:
    """Copy the lists of what went beside the output, before the steps that have them are removed. Returns what to say of it."""
    beside = TreePath(out.with_name(f"{out.name}{_REMOVED}"))
    done = [step for step in unique if _is_tokenized(step)]
    for step in done:
        # The manifest has the sums, and the numbers of documents that the list speaks of.
        for name in (REMOVED_NAME, MANIFEST_NAME):
            source = TreePath(step.directory, (name,))
            if source.exists():
                with storage_errors(source):
                    make_directory(beside)
                    copy_file(source, beside / f"{step.source.name}.{name}")
                    sync_directory(beside)
    return [f"what copies went of each source: {beside}"] if done else []


def _remove(work: Path, names: Iterable[str]) -> None:
    """Remove directories of steps, as far as they are there, and that of all steps when nothing is left in it."""
    if not work.is_dir():
        return
    for name in names:
        TreePath(work, (name,)).remove_tree()
    if not any(work.iterdir()):
        TreePath(work).rmdir()


def _unused(work: Path, used: Container[str]) -> list[str]:
    """Return what to say of steps that this recipe does not use, such as those of inputs as they were before."""
    found = sorted(work.iterdir()) if work.is_dir() else []
    names = [path.name for path in found if path.name not in used and ((path / MANIFEST_NAME).exists() or is_begun(path))]
    if not names:
        return []
    shown = ", ".join(shortened(names, _MOST))
    return [f"not of this recipe as it is now, and still in {work}: {shown}; remove what no other recipe needs"]


def _check_out(recipe: Recipe, steps: Sequence[_Step], out: Path) -> None:
    """Raise for an output that the last step would not replace, hours later: ChangedError, for files of others UsageError."""
    if (out / MANIFEST_NAME).exists() and not all(_is_tokenized(step) for step in steps):
        raise ChangedError(
            "the complete output in this directory was made of another recipe, or of other texts",
            where=str(out),
            allowed="the recipe and the texts that it was made of",
            next_step="choose another --out, or start over with --fresh",
        )
    if out.is_dir() and not is_begun(out):
        refuse_strangers(out, recipe.output.get("format") or steps[0].content.format)


def _tokenized(steps: Sequence[_Step], observers: Sequence[Observer], **options: Any) -> list[str]:
    """Tokenize each source, unless it is there. Returns what to say of them."""
    told: list[str] = []
    for step in steps:
        _tell(observers, f"source {step.source.name}: tokenized in {step.directory}")
        watching = [_OfStep(step, each) for each in observers]
        summary = api.tokenize(step.source.inputs, step.directory, observers=watching, **options, **step.source.options)
        was = ", there already" if summary.already_complete else ""
        told.append(f"source {step.source.name}: {counted(summary.tokens_train, 'token')} for training{was}")
        told += filter(None, [_of_step(step, notice) for notice in summary.notices])
    return told


class _OfStep:
    """Tells an observer of the tokenizing of a source, in words of the recipe."""

    def __init__(self, step: _Step, observer: Observer) -> None:
        self._step = step
        self._observer = observer

    def on_event(self, event: AnyEvent) -> None:
        if isinstance(event, Notice):
            text = _of_step(self._step, event.text)
            if not text:
                return
            event = Notice(text=text)
        self._observer.on_event(event)


def _of_step(step: _Step, notice: str) -> str:
    """Return a notice of `tokenize` as one of a source, in words of the recipe; nothing for limits of a trainer: none reads it."""
    if _is_tokenized(step):
        manifest = load_manifest(step.directory)
        if notice.partition(";")[0] in {each.partition(";")[0] for each in short_notices(manifest.content, manifest.files)}:
            return ""
    text = notice.replace(f"{HOW_AGAIN} a larger --memory", "run again with a larger --memory").replace(
        HOW_AGAIN, "correct the recipe:"
    )
    text = re.sub(r"--(?!memory\b|threads\b)([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), text)
    return f"source {step.source.name}: {text}"


def plan_build(
    recipe: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    work: str | os.PathLike[str] | None = None,
    memory: str | int | None = None,
    threads: int | None = None,
) -> BuildPlan:
    """Return what a build will take: tokens, disk and time, from samples of the sources; write nothing. As of `build`."""
    made, target, kept = read_recipe(_path(recipe, "recipe")), Path(_path(out, "out")), _work(out, work)
    _check_work(kept, target)
    steps = _steps(made, kept, memory, threads)
    return _plan(made, steps, target, kept, memory, threads, _against(made, steps, target))


def _steps(recipe: Recipe, work: Path, memory: str | int | None, threads: int | None) -> list[_Step]:
    """Return the steps, each with the directory that its fingerprint names. Raises UsageError, InputError."""
    steps = []
    for source in recipe.sources:
        options = PlanOptions(**source.options, seed=recipe.seed, memory=memory, threads=threads)
        content = make_job(source.inputs, options, out=str(work / source.name)).job.content
        steps.append(_Step(source, work / f"{source.name}-{content.fingerprint()[:12]}", content))
    _check_distinct(recipe, steps)
    check_agreement(steps, allow_other_split=False)
    # What would be refused after the sources are tokenized, hours later, is refused now.
    _output_of(recipe, steps)
    return steps


def _check_distinct(recipe: Recipe, steps: Sequence[_Step]) -> None:
    """Raise UsageError for texts with two weights: they could be taken more often than max_epochs allows."""
    first: dict[str, str] = {}
    for step in steps:
        name = step.source.name
        other = first.setdefault(step.content.fingerprint(), name)
        if recipe.is_weighted and other != name:
            raise recipe.mistake(
                ("sources", name, "inputs"),
                f"{name} has the texts of {other}, with the same options",
                "a text in one source",
                "correct the file: leave one of the two out, and add its weight to that of the other",
            )


def _against(recipe: Recipe, steps: Sequence[_Step], out: Path) -> list[Source]:
    """Return the outputs whose documents are removed from all sources. Raises UsageError, with the line, and DamageError."""
    names = (recipe.dedup or {}).get("against")
    try:
        return load_against(names, steps, out) if names else []
    except UsageError as error:
        what = f"{error.what} ({error.where})" if error.where else error.what
        next_step = "correct the file: complete outputs, tokenized as the sources are"
        raise recipe.mistake(("dedup", "against"), what, error.allowed or "", next_step) from None


def _unique_steps(recipe: Recipe, steps: Sequence[_Step], work: Path, against: Sequence[Source]) -> list[_Step]:
    """Return the steps with the directories of their outputs without copies, which depend on all of them; or as they are."""
    if recipe.dedup is None:
        return list(steps)
    # What is in the other outputs decides, not where they lie.
    prints = {"against": [source.manifest.fingerprint for source in against]} if against else {}
    decides = ([step.directory.name for step in steps], recipe.dedup | prints)
    suffix = xxhash.xxh3_128_hexdigest(msgspec.json.encode(decides, order="deterministic"))[:12]
    return [replace(step, directory=work / f"{step.source.name}-unique-{suffix}") for step in steps]


def _deduplicated(
    recipe: Recipe,
    steps: Sequence[_Step],
    unique: Sequence[_Step],
    memory: str | int | None,
    against: Sequence[Source],
    *,
    force: bool,
    observers: Sequence[Observer],
) -> list[str]:
    """Remove copies among the documents of all sources. Returns what to say of it."""
    _tell(observers, "copies among the documents of all sources are removed")
    made = dedup_each(
        [step.directory for step in steps],
        [step.directory for step in unique],
        _found(unique),
        _near_of(recipe),
        against=against,
        compare=_compares(recipe),
        memory=memory,
        force=force,
        observers=observers,
    )
    told = []
    for step, outcome in zip(steps, made, strict=True):
        assert outcome.removal
        (each,) = outcome.removal.sources
        n, n_tokens = each.copies + each.near_copies, each.copy_tokens + each.near_copy_tokens
        told.append(f"source {step.source.name}: {counted(n, 'document')} removed as copies, {counted(n_tokens, 'token')}")
    return told


def _found(unique: Sequence[_Step]) -> Path:
    """Return where copies are found before they are removed. unique: as of `_unique_steps`."""
    return unique[0].directory.with_name(f"{unique[0].directory.name}-found")


def _near_of(recipe: Recipe) -> NearRule | None:
    """Return when documents are near copies, as the recipe says; None: only those with the same ids go."""
    options = {name: value for name, value in (recipe.dedup or {}).items() if name not in ("against", "compare")}
    return near_rule(options.pop("near", None), **options)


def _compares(recipe: Recipe) -> bool:
    """Return whether both copies are read before one of them goes."""
    return bool((recipe.dedup or {}).get("compare"))


def _is_tokenized(step: _Step) -> bool:
    return (step.directory / MANIFEST_NAME).exists()


def _output_of(recipe: Recipe, steps: Sequence[_Step]) -> Choice:
    """Return what the output becomes. Raises UsageError for shards that its format does not have."""
    given = {"shard_tokens": None, "shard_documents": False, "sequence": (recipe.pack or {}).get("sequence"), **recipe.output}
    given.pop("offsets", None)
    return choose_output(
        given.pop("format", "") or steps[0].content.format, steps[0].content.tokenizer, eot="auto", dtype="auto", **given
    )


def _check_work(work: Path, out: Path) -> None:
    """Raise UsageError for tokenized sources that would lie in an output."""
    if out.resolve() in (work.resolve(), *work.resolve().parents):
        raise UsageError(
            "the tokenized sources would lie in the output",
            where=f"{work}, and the output {out}",
            option="--work",
            allowed="a directory outside of the output",
            suggested=f"{out}.work",
        )
    if (work / MANIFEST_NAME).exists() or is_begun(work):
        raise UsageError(
            "the tokenized sources would lie in an output",
            where=str(work),
            option="--work",
            allowed="a new directory, or the one of an earlier build",
            suggested=f"{out}.work",
        )


def _fingerprint(recipe: Recipe, steps: Sequence[_Step]) -> str:
    """Return what tells this training set from every other that recipes make."""
    decides = (*_decide_mixture(recipe, steps), recipe.output, *([recipe.pack] if recipe.pack else []))
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(decides, order="deterministic"))


def _decide_mixture(recipe: Recipe, steps: Sequence[_Step]) -> tuple[Any, ...]:
    weights = [(step.directory.name, step.source.weight, step.source.max_epochs) for step in steps]
    return weights, recipe.seed, recipe.tokens


def _mixture(recipe: Recipe, steps: Sequence[_Step], work: Path) -> Path:
    """Return where the documents lie in order before they are packed."""
    decides = msgspec.json.encode(_decide_mixture(recipe, steps), order="deterministic")
    return work / f"mixture-{xxhash.xxh3_128_hexdigest(decides)[:12]}"


def _complete(out: Path, fingerprint: str) -> Outcome | None:
    """Return the training set if it is there. Raises DamageError if some of it is not."""
    try:
        manifest = load_manifest(out)
    except (TokmillError, OSError):
        return None
    if manifest.recipe != fingerprint:
        return None
    for name, entry in manifest.files.items():
        check_size(tree_of(out) / name, entry.size_bytes, "a file of the complete training set")
    sources = [each.path for each in manifest.made_from or ()]
    return msgspec.structs.replace(outcome_of(manifest, str(out), sources, 0.001, already_complete=True), elapsed_s=0.0)


def _plan(
    recipe: Recipe,
    steps: Sequence[_Step],
    out: Path,
    work: Path,
    memory: str | int | None,
    threads: int | None,
    against: Sequence[Source],
) -> BuildPlan:
    """Return what a build will take. against: as `_against` returns it. The rest as of `build`."""
    planned = [_step_plan(step, recipe.seed, memory, threads) for step in steps]
    tokens = _planned_tokens(recipe, planned)
    output_bytes = tokens * ITEM_BYTES[_output_of(recipe, steps).dtype]
    step_bytes = sum(step.new_bytes for step in planned)
    unique = _unique_steps(recipe, steps, work, against)
    found_bytes, n_dedup = _dedup_plan(recipe, planned, steps, unique, against)
    if recipe.dedup is not None:
        # The sources once more, without their copies.
        places = zip(planned, steps, unique, strict=True)
        step_bytes += sum(_left_bytes(made.directory, each.tokens * ITEM_BYTES[step.content.dtype]) for each, step, made in places)
    finding_bytes = step_bytes + found_bytes - (written_bytes(_found(unique)) if found_bytes else 0)
    mixture_bytes = _left_bytes(_mixture(recipe, unique, work), 2 * output_bytes) if recipe.pack else 0
    arranged_bytes = 0 if _is_publishing(out) else 2 * output_bytes - written_bytes(out)
    # The mixture's buckets are gone when those of the sequences are made.
    disks = _disks(work, step_bytes + mixture_bytes, out, arranged_bytes, output_bytes if mixture_bytes else 0, finding_bytes)
    return BuildPlan(
        steps=planned,
        is_mixed=recipe.is_weighted,
        sequence=(recipe.pack or {}).get("sequence"),
        tokens=tokens,
        output_bytes=output_bytes,
        passes=(4 if recipe.pack else 2) + n_dedup,
        scratch_bytes=max(output_bytes, found_bytes),
        peak_bytes=sum(disk.needed_bytes for disk in disks),
        disks=disks,
        fits=all(disk.fits for disk in disks),
        expected_s=sum(step.expected_s for step in planned) + (2 if recipe.pack else 1) * output_bytes / ARRANGED_BYTES_PER_S,
        out=str(out),
        work=str(work),
    )


def _dedup_plan(
    recipe: Recipe, planned: Sequence[StepPlan], steps: Sequence[_Step], unique: Sequence[_Step], against: Sequence[Source]
) -> tuple[int, int]:
    """Return what is on the disk while copies are found, beside outputs, and how often all ids are read; 0, 0 if that is done."""
    if recipe.dedup is None or all(_is_tokenized(step) for step in unique):
        return 0, 0
    near, compare = _near_of(recipe), _compares(recipe)
    n_bytes = sum(each.tokens * ITEM_BYTES[step.content.dtype] for each, step in zip(planned, steps, strict=True))
    n_documents = sum(each.documents for each in planned)
    for counts, dtype in ((source.manifest.counts, source.content.dtype) for source in against):
        n_bytes += (counts.tokens_train + counts.tokens_val) * ITEM_BYTES[dtype]
        n_documents += counts.documents_train + counts.documents_val
    return work_bytes(n_documents, n_bytes, near, compare=compare), n_passes(near, compare=compare) + 1


def _planned_tokens(recipe: Recipe, planned: Sequence[StepPlan]) -> int:
    """Return about how many tokens the training set will have. Raises UsageError where its sources cannot have so many."""
    if not recipe.is_weighted:
        return sum(step.tokens for step in planned)
    pairs = [(step, source) for step, source in zip(planned, recipe.sources, strict=True) if source.weight]
    total = math.fsum(source.weight or 0.0 for _, source in pairs)
    about, most, name = min(
        (step.tokens * times, math.inf if step.most_tokens is None else step.most_tokens * times, source.name)
        for step, source in pairs
        for times in [source.max_epochs * total / (source.weight or 1.0)]
    )
    if recipe.tokens is None:
        return int(about)
    tokens = parse_tokens(recipe.tokens, "tokens")
    if tokens > most:
        raise recipe.mistake(
            ("tokens",),
            f"{tokens:,} tokens are more than {name} allows by its weight and its max_epochs",
            f"about {int(about):,}",
            f"correct the file: fewer tokens, a smaller weight or a larger max_epochs for {name}; or give it more text",
        )
    return min(int(about), tokens)


def _left_bytes(directory: Path, n_bytes: int) -> int:
    """Return what is not on the disk yet of the bytes that the making of an output takes. Below 0: so many will be freed."""
    if (directory / MANIFEST_NAME).exists() or _is_publishing(directory):
        return 0
    return n_bytes - written_bytes(directory)


def _is_publishing(directory: Path) -> bool:
    """Return whether all of an output is written, and some files do not have their names yet."""
    return growing_path(directory, MANIFEST_NAME).exists()


def _disks(work: Path, step_bytes: int, out: Path, out_bytes: int, freed_bytes: int, before_bytes: int = 0) -> list[DiskPlan]:
    """Return what each disk needs; one, if work and output share it.

    step_bytes: of the steps. freed_bytes: of these, when the output takes its own. before_bytes: of the steps at an earlier moment.
    """
    found = [next(path for path in (each, *each.parents) if path.is_dir()) for each in (work.absolute(), out.absolute())]
    if found[0].stat().st_dev == found[1].stat().st_dev:
        return [_disk(found[0], max(before_bytes, step_bytes + out_bytes - freed_bytes))]
    return [_disk(found[0], max(before_bytes, step_bytes)), _disk(found[1], out_bytes)]


def _disk(path: Path, needed_bytes: int) -> DiskPlan:
    status = file_system_of(path)
    free_bytes, needed_bytes = status.f_bavail * status.f_frsize if status else None, max(0, needed_bytes)
    fits = free_bytes is None or needed_bytes <= free_bytes
    return DiskPlan(path=str(path), needed_bytes=needed_bytes, free_bytes=free_bytes, fits=fits)


def _step_plan(step: _Step, seed: int, memory: str | int | None, threads: int | None) -> StepPlan:
    """Estimate one source from a sample, or count what is there."""
    most_tokens: int | None
    try:
        counts = load_manifest(step.directory).counts
        tokens = most_tokens = counts.tokens_train
        documents = counts.documents_train + counts.documents_val
        new_bytes, expected_s, is_complete = 0, 0.0, True
    except (TokmillError, OSError):
        plan = api.plan(step.source.inputs, None, memory=memory, threads=threads, seed=seed, **step.source.options)
        about = plan.totals.tokens if plan.totals else None
        tokens, documents = about.value if about else 0, plan.totals.documents.value if plan.totals else 0
        # Twice the interval: what may be right is not refused.
        most_tokens = 2 * about.high - about.value if about else None
        new_bytes = max(0, _left_bytes(step.directory, plan.output_bytes.value if plan.output_bytes else 0))
        expected_s, is_complete = (plan.time.expected_s if plan.time else 0.0), False
    return StepPlan(
        name=step.source.name,
        directory=str(step.directory),
        is_complete=is_complete,
        tokens=tokens,
        documents=documents,
        most_tokens=most_tokens,
        new_bytes=new_bytes,
        expected_s=round(expected_s, 1),
    )


def _packed(
    recipe: Recipe, steps: Sequence[_Step], mixture: Path, out: Path, told: list[str], fingerprint: str, how: dict[str, Any]
) -> Outcome:
    """Mix or shuffle the tokenized sources, and pack that. told: gets what each source became."""
    mixed = _arranged(recipe, steps, mixture, **how)
    names = [step.source.name for step in steps]
    told += [f"source {name}: {share_text(each)}" for name, each in zip(names, mixed.mixture, strict=False)]
    _tell(how["observers"], f"packed from {mixture}")
    return pack(mixture, out, seed=recipe.seed, recipe=fingerprint, **(recipe.pack or {}), **recipe.output, **how)


def _arranged(recipe: Recipe, steps: Sequence[_Step], out: Path, fingerprint: str = "", /, **options: Any) -> Outcome:
    """Mix or shuffle the tokenized sources. fingerprint: of a training set that is complete with this."""
    names = tuple(step.source.name for step in steps)
    options |= {"seed": recipe.seed, "recipe": RecipeStep(fingerprint=fingerprint, names=names)}
    if not recipe.is_weighted:
        return shuffle([step.directory for step in steps], out, **options)
    pairs = [(step.directory, step.source.weight or 0.0) for step in steps]
    try:
        return mix(pairs, out, tokens=recipe.tokens, max_epochs=[step.source.max_epochs for step in steps], **options)
    except UsageError as error:
        if error.option != "--tokens":
            raise
        raise recipe.mistake(
            ("tokens",),
            error.what,
            (error.allowed or "").replace("--max-epochs ", "max_epochs = "),
            f"correct the file: tokens = {error.suggested}, a larger max_epochs, or a smaller weight for this source",
        ) from None


def _path(given: object, option: str) -> str:
    """Return a path of this machine. Raises UsageError; for an output in a store, with what makes one."""
    if option == "out" and is_url(str(given)):
        raise UsageError(
            "a recipe is built in a directory: its steps are kept there, and gone on with",
            where=redacted(str(given)),
            option="--out",
            allowed="a directory",
            next_step="choose a directory for --out; then: tokmill convert DIR --format NAME --out s3://...",
        )
    return local_path(given, option)  # type: ignore[arg-type]


def _work(out: str | os.PathLike[str], work: str | os.PathLike[str] | None) -> Path:
    return Path(_path(work, "work") if work is not None else f"{_path(out, 'out')}.work")


def _tell(observers: Sequence[Observer], text: str) -> None:
    for observer in observers:
        observer.on_event(Notice(text=text))


def _disk_text(disk: DiskPlan) -> str:
    return f"{disk.needed_bytes / 1e6:,.1f} MB more at the worst moment, on {disk.path}" + ("" if disk.fits else "; too much")


def plan_text(plan: BuildPlan) -> list[tuple[str, str]]:
    """Return the rows of a plan for a terminal."""
    rows = []
    for step in plan.steps:
        new = f", {step.new_bytes / 1e6:,.1f} MB to be written, about {step.expected_s:.0f} s"
        state = ", tokenized already" if step.is_complete else new
        rows.append(("source", f"{step.name}: {'' if step.is_complete else 'about '}{step.tokens:,} tokens{state}"))
    how = "mixed by weight" if plan.is_mixed else "each document once, shuffled"
    how += f", packed into sequences of {plan.sequence:,}" if plan.sequence else ""
    return [
        *rows,
        ("output", f"about {plan.tokens:,} tokens for training, {plan.output_bytes / 1e6:,.1f} MB; {how}"),
        ("passes", f"{plan.passes} over the training set, {plan.scratch_bytes / 1e6:,.1f} MB of temporary disk"),
        *(("disk", _disk_text(disk)) for disk in plan.disks),
        ("time", f"about {plan.expected_s:.0f} s"),
        ("steps in", plan.work),
        ("next", f"the same command without --plan makes {quoted(plan.out)}"),
    ]
