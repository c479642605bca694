"""`tokenize --append`: more inputs into a complete output, as if all had been tokenized in one run.

The new output grows beside the old one, in the state directory: first the old one's ids (in the kernel where they are plain,
through a writer otherwise), then, by an ordinary run that resumes there, the new inputs. The old files do not grow in place: who
reads them without the manifest would see ids that are not committed, and a crash would leave them.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import how_not_of_corpus
from tokmill.core.errors import UsageError
from tokmill.core.manifest import MANIFEST_NAME, Manifest, load_manifest
from tokmill.core.output_spec import SIDES
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import text_to_path
from tokmill.core.text import counted, shortened
from tokmill.core.version import __version__
from tokmill.derive.copiers import ByteCopier, TokenCopier, ids_of, is_plain
from tokmill.derive.engine import CopyRun, provenance
from tokmill.derive.source import Source
from tokmill.output import (
    Output,
    RunHistoryRecorder,
    changed_input_error,
    changed_settings_error,
    discard_append,
    is_append_to,
    open_output,
    pending_manifest,
)
from tokmill.run import PlannedJob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.config import Job
    from tokmill.core.protocols import Observer
    from tokmill.core.records import Input

_MOST = 5
"""Inputs that are named."""


def extend(planned: PlannedJob) -> PlannedJob:
    """Return the job that appends the inputs of `planned` to the complete output in its directory.

    Inputs that are in it already are left out, with a notice; if none is left, the job is the one that made the output.
    Raises UsageError if nothing can be appended there, ChangedError for other settings, tokenizer or inputs than its own.
    """
    job = planned.job
    directory = Path(text_to_path(job.out))
    finished = _settle(directory, fresh=job.fresh)
    source = Source.load(directory)
    old = source.manifest
    if old.content.origin:
        raise UsageError(
            f"nothing can be appended to this output: {how_not_of_corpus(old.content)}",
            where=str(directory),
            allowed="an output of tokmill tokenize, or merged from such with the same settings",
            next_step="tokenize the new inputs into a directory of their own, then: tokmill merge",
        )
    if old.content.max_tokens or old.content.val_tokens or old.content.val_tail:
        limit = "whose validation is the end of its text" if old.content.val_tail else "with a limit of tokens"
        raise UsageError(
            f"nothing can be appended to an output {limit}: of all inputs together, a run would make another",
            where=str(directory),
            allowed="an output without --max-tokens, --val-tokens and --val-tail",
            next_step="tokenize the new inputs into a directory of their own, then: tokmill merge",
        )
    if old.content.n_parts:
        raise UsageError(
            f"nothing can be appended to an output that was made in {counted(old.content.n_parts, 'part')}",
            where=str(directory),
            allowed="an output of one run, or one that was merged",
            next_step=f"tokmill merge {shlex.quote(str(directory))} --out OTHER makes it one; append to that",
        )
    settings = msgspec.structs.replace(job.content, inputs=old.content.inputs)
    if settings.fingerprint() != old.fingerprint:
        raise changed_settings_error(old.content, settings, directory)
    new, notices = _new_inputs(old.content.inputs, job.content.inputs, directory)
    if not new or (finished and old.content.inputs[-len(new) :] == new):
        return PlannedJob(msgspec.structs.replace(job, content=old.content, fresh=False), [*planned.notices, *notices])
    _check_carriable(source)
    content = msgspec.structs.replace(settings, inputs=(*old.content.inputs, *new))
    before = msgspec.structs.replace(provenance(source, "append"), made_from=())
    job = msgspec.structs.replace(job, content=content, made_from=(*(old.made_from or ()), before))
    return PlannedJob(job, [*planned.notices, *notices])


def bytes_to_copy(job: Job) -> int:
    """Return how many bytes of the old output `copy_old_output` copies."""
    return Source.load(Path(text_to_path(job.out))).size_bytes


def copy_old_output(job: Job, observers: Sequence[Observer]) -> Job:
    """Copy the old output into the state directory of the new one, as far as it is not there yet. Returns the job that goes on.

    Raises DamageError if a byte of the old output is not as it was written, and what `open_output` raises.
    """
    directory = Path(text_to_path(job.out))
    content = job.content
    output = open_output(directory, content, __version__, fresh=job.fresh, replacing=job.replacing)
    job = msgspec.structs.replace(job, fresh=False)
    if isinstance(output, Manifest):
        return job
    try:
        source = Source.load(directory)
        if not output.segments or output.cursor.input_index < source.n_inputs:
            copier = ByteCopier(output, content) if _is_copied(source) else TokenCopier(output, content)
            size = counted(source.size_bytes, "byte")
            ProgressReporter(observers).notice(
                f"first, the {size} of the complete output are copied into the new one; until that is complete, the old one stays"
            )
            recorder = RunHistoryRecorder(output)
            run = CopyRun([source], copier, output, ProgressReporter([recorder]))
            try:
                run.run()
                run.finish(complete=False)
            finally:
                recorder.save()
    finally:
        output.close()
    return job


def _is_copied(source: Source) -> bool:
    return is_plain(source) and not source.content.shards


def _check_carriable(source: Source) -> None:
    """Raise UsageError for an old output that cannot be copied into the new one."""
    for side in SIDES:
        ids_of(source, side)
    if not _is_copied(source) and source.content.eot == "none":
        raise UsageError(
            "nothing can be appended here: with --eot none the documents in it cannot be told apart",
            where=str(source.directory),
            allowed="an output with end-of-text ids, or with --eot none one of the raw format without --shard-tokens",
            next_step="tokenize the old and the new inputs together into another --out",
        )


def _settle(directory: Path, *, fresh: bool) -> bool:
    """Do the renames of a run that was killed while publishing; with `fresh`, discard an append instead.

    Returns whether there were any. Raises UsageError for an incomplete directory.
    """
    pending = pending_manifest(directory)
    if pending and fresh and (directory / MANIFEST_NAME).exists() and is_append_to(load_manifest(directory), pending):
        discard_append(directory)
        pending = None
    if pending:
        output = open_output(directory, pending.content, __version__, fresh=False)
        if isinstance(output, Output):
            output.close()
    if not (directory / MANIFEST_NAME).exists():
        raise UsageError(
            "there is no complete output to append to",
            where=str(directory),
            allowed=f"a directory with {MANIFEST_NAME}",
            next_step="leave --append out: the run is begun, or resumed, and more can be appended when it is complete",
        )
    return pending is not None


def _new_inputs(old: Sequence[Input], given: Sequence[Input], directory: Path) -> tuple[tuple[Input, ...], list[str]]:
    """Return the inputs that are not in the output, and notices of the others. Raises ChangedError for one that has changed.

    An input without a size (standard input, a pipe) is always new.
    """
    known = {each.path: each for each in old if each.size_bytes is not None}
    new = []
    for each in given:
        before = known.get(each.path) if each.size_bytes is not None else None
        if before is None:
            new.append(each)
        elif before != each:
            raise changed_input_error(before, each, directory)
    n_known = len(given) - len(new)
    if not n_known:
        return tuple(new), []
    named = [each.path for each in given if each.path in known and each.size_bytes is not None]
    shown = ", ".join(shortened(named, _MOST))
    return tuple(new), [f"in the output already, left out: {counted(n_known, 'input')}: {shown}"]
