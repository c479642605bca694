"""From options to a job: inputs found, tokenizer identified, dtype chosen, memory divided, every value checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from tokmill.core.config import (
    MIB,
    USUAL_IDS,
    BudgetTerms,
    Content,
    Job,
    Quoting,
    Resources,
    check_directory,
    parse_delimiter,
    parse_separator,
    path_texts,
)
from tokmill.core.errors import UsageError
from tokmill.core.local_struct import LocalStruct
from tokmill.core.options import (
    VAL_FRACTION,
    VAL_TOKENS_FRACTION,
    PlanOptions,
    options_of,
    parse_size,
    parse_stage_size,
    parse_tail,
)
from tokmill.core.records import STDIN, WITH_FOOTER, is_packed, is_url, path_to_text
from tokmill.core.system.budget import default_budget, divide_budget, most_threads
from tokmill.core.system.memory import cgroup_limit_bytes, machine_bytes, usable_bytes, usable_cores
from tokmill.core.text import counted
from tokmill.encode import engine_notice, engine_of, eot_notice, resolve_tokenizer
from tokmill.formats import check_name, choose_output, parse_tokens
from tokmill.read import check_files, encoded, find_inputs
from tokmill.run.advice import shard_notices, unused_notices
from tokmill.store import full_urls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.records import Input, OnError, Tokenizer, Utf8Policy
    from tokmill.formats import Choice

NOWHERE = "/dev/null/nowhere"
"""An output directory that cannot exist, for a plan without one."""
_RANGE_BYTES = 32 * MIB
_FEWEST_RANGES = 4
"""For each worker, where there is so much input."""
_WORKER_BYTES = MIB
"""Input that is worth a worker."""
_MOST_IDS = 300_000
"""Of a vocabulary; ids that added tokens leave out take no memory."""
_PIECE_FACTOR = 7
"""Hugging Face tokenizers takes seven times the memory of gigatoken for one piece (170 bytes for each byte measured)."""


class PlannedJob(LocalStruct, frozen=True):
    """A job, and what to say of it."""

    job: Job
    notices: list[str]
    """What a person should know before it runs."""
    doubts: tuple[str, ...] = ()
    """The notices that the summary repeats: of inputs that are perhaps not what they are read as."""


def make_job(inputs: Sequence[str], options: PlanOptions | None = None, *, out: str, destination: str = "") -> PlannedJob:
    """Return the job of a run of `tokmill tokenize`.

    Args:
        inputs: Names of files, directories, patterns, URLs, or `-`.
        options: None: the defaults.
        out: Directory in which the output is made.
        destination: URL to which it is uploaded from there, or nothing.

    Raises:
        UsageError, InputError, MemoryBudgetError.
    """
    options = options or PlanOptions()
    described = resolve_tokenizer(options.tokenizer, options.eot_token)
    choice = choose_output(
        options.format,
        described,
        eot=options.eot,
        dtype=options.dtype,
        shard_tokens=options.shard_tokens,
        shard_documents=options.shard_documents,
        drop_tail=options.drop_tail,
    )
    _check_offsets(options)
    check_name(options.name, options.format)
    val_inputs = path_texts(options.val_input or (), "--val-input")
    _check_working_directory([*inputs, *val_inputs, out])
    out = os.path.abspath(_checked_out(out))
    found = find_inputs(inputs, val_inputs, glob=options.glob, input_format=options.input_format, outside=out)
    inputs_found, of_encoding = encoded(found.inputs, options.encoding)
    found = msgspec.structs.replace(found, inputs=inputs_found)
    content = _content(options, found.inputs, described, choice)
    doubts = check_files(found.inputs, options.text_key) if options.input_format is None else []
    unused = unused_notices(options, found.inputs, has_directory=found.has_directory)
    notices = [*found.notices(), *of_encoding, *unused, *choice.notices, *doubts, *shard_notices(content)]
    engine = engine_of(described, options.engine)
    if engine != options.engine:
        notices.append(engine_notice(described))
    if options.eot_token is None and (ending := eot_notice(described)) is not None:
        notices.append(ending)
    resources, more = divide_resources(
        options.memory, options.threads, engine, found.inputs, n_ids=described.n_ids, is_sent=bool(destination)
    )
    resources = msgspec.structs.replace(
        resources,
        max_skipped=options.max_skipped,
        nice=options.nice,
        refuse_json_lines=options.input_format is None,
        stage_bytes=parse_stage_size(options.stage_size) if destination and choice.shards else 0,
    )
    job = Job(
        out=path_to_text(out),
        content=content,
        resources=resources,
        fresh=options.fresh,
        urls=full_urls(found.inputs),
        destination=destination,
    )
    return PlannedJob(job, [*notices, *more], tuple(doubts))


def _check_offsets(options: PlanOptions) -> None:
    """Raise UsageError for offsets of documents that are left out at the end."""
    if options.offsets and options.drop_tail:
        raise UsageError(
            "which documents the last shard cuts is not known while offsets are written",
            where="--offsets with --drop-tail",
            option="--drop-tail",
            allowed="one of them",
            next_step="leave --drop-tail out",
        )


def _content(options: PlanOptions, inputs: tuple[Input, ...], tokenizer: Tokenizer, choice: Choice) -> Content:
    """Return the settings that decide the bytes of the output."""
    content = Content(
        inputs=inputs,
        tokenizer=tokenizer,
        separator=parse_separator(options.separator),
        text_key=options.text_key,
        delimiter=msgspec.UNSET if options.delimiter is None else parse_delimiter(options.delimiter),
        quoting=msgspec.UNSET if options.quoting == "auto" else cast("Quoting", options.quoting),
        eot=choice.eot,
        val_fraction=_val_fraction(options),
        val_tokens=msgspec.UNSET if options.val_tokens is None else parse_tokens(options.val_tokens, "--val-tokens"),
        max_tokens=msgspec.UNSET if options.max_tokens is None else parse_tokens(options.max_tokens, "--max-tokens"),
        seed=options.seed,
        dtype=choice.dtype,
        format=options.format,
        name=msgspec.UNSET if options.name is None else options.name,
        shards=choice.shards or msgspec.UNSET,
        offsets=options.offsets or msgspec.UNSET,
        keep_empty=options.keep_empty,
        sample=msgspec.UNSET if options.sample is None else float(options.sample),
        encoding_errors=cast("Utf8Policy", options.encoding_errors),
        on_error=cast("OnError", options.on_error),
    )
    if options.val_tail is None:
        return content
    # Here, so that a run without it loads no numpy.
    from tokmill.read import find_tail

    n_bytes, share, is_exact = parse_tail(options.val_tail)
    tail = find_tail(inputs, content.separator, n_bytes, share, is_exact=is_exact)
    return msgspec.structs.replace(content, val_tail=tail)


def _val_fraction(options: PlanOptions) -> float:
    """Return the share of documents for validation."""
    if options.val_input or options.val_tail is not None:
        return 0.0
    usual = VAL_FRACTION if options.val_tokens is None else VAL_TOKENS_FRACTION
    return usual if options.val_fraction is None else float(options.val_fraction)


_MOST_DETAILS = 5


def details(job: Job) -> list[str]:
    """Return what was decided, a line each: inputs, tokenizer, output, and how the machine is used."""
    content, resources = job.content, job.resources
    shown = [
        f"input: {each.path}, {each.format}{'' if each.compression == 'none' else ', ' + each.compression}"
        for each in content.inputs[:_MOST_DETAILS]
    ]
    if len(content.inputs) > _MOST_DETAILS:
        shown.append(f"input: and {len(content.inputs) - _MOST_DETAILS:,} more")
    tokenizer = content.tokenizer
    return [
        *shown,
        f"tokenizer: {tokenizer.name}, {tokenizer.n_ids:,} ids, end of text {tokenizer.eot_id}, sha256 {tokenizer.sha256[:12]}",
        f"output: {content.format}, {content.dtype}, end of text {content.eot}, into {job.out}",
        *([f"sample: {content.sample:g} of the documents, chosen by their content and the seed"] if content.sample else []),
        f"validation: {_validation(content)}",
        *([f"end: the document that reaches {counted(content.max_tokens, 'token')}"] if content.max_tokens else []),
        f"machine: engine {resources.engine}, {counted(resources.n_threads, 'thread')}",
        f"memory: {resources.budget_bytes // MIB:,} MiB for all processes",
        f"batches: {resources.batch_bytes // 1024:,} KiB each, {resources.arena_bytes // MIB:,} MiB a worker for what it made",
    ]


def _validation(content: Content) -> str:
    """Return in words which documents are for validation."""
    n = sum(source.side == "val" for source in content.inputs)
    if n:
        return f"the documents of {counted(n, 'input')}"
    if content.val_tail:
        return f"the text from byte {content.val_tail.begin:,} on"
    until = f", until they have {counted(content.val_tokens, 'token')}" if content.val_tokens else ""
    return f"{content.val_fraction:g} of the documents, chosen by their content and the seed {content.seed}{until}"


def _check_working_directory(paths: Sequence[str]) -> None:
    """Raise UsageError if a path begins in a working directory that was removed."""
    relative = [path for path in paths if path != STDIN and not os.path.isabs(path) and not is_url(path)]
    try:
        os.getcwd()
    except FileNotFoundError:
        if relative:
            raise UsageError(
                "the working directory was removed",
                where=path_to_text(relative[0]),
                allowed="absolute paths, or a working directory that exists",
                next_step="cd to a directory that exists, and run the command again",
            ) from None


def divide_resources(
    memory: str | int | None,
    threads: int | None,
    engine: str,
    inputs: Sequence[Input],
    *,
    n_ids: int = USUAL_IDS,
    is_sent: bool = False,
) -> tuple[Resources, list[str]]:
    """Return the budget and the threads that were asked for, or the usual ones, divided; and what a person should know of it.

    n_ids: of the tokenizer. is_sent: whether the output goes to a store. Raises UsageError, MemoryBudgetError.
    """
    options_of(PlanOptions)["threads"].check(threads)
    n_threads, cgroup_bytes = threads or usable_cores(), cgroup_limit_bytes()
    terms = BudgetTerms(
        n_threads=n_threads,
        n_inputs=len(inputs),
        is_remote=any(source.is_remote for source in inputs),
        is_sent=is_sent,
        has_tables=any(source.format in WITH_FOOTER for source in inputs),
        n_ids=min(n_ids, _MOST_IDS),
        piece_factor=_PIECE_FACTOR if engine == "tokenizers" else 1,
    )
    budget, notices = _choose_budget(memory, terms, cgroup_bytes)
    if threads is None and (fitting := most_threads(budget, terms)) < n_threads:
        # For none, the error is that of one thread.
        terms = msgspec.structs.replace(terms, n_threads=max(1, fitting))
        notices.append(f"{counted(terms.n_threads, 'thread')} on {n_threads} cores: for more, the memory budget is too small")
    limit = usable_bytes() if cgroup_bytes else None
    shares = divide_budget(budget, terms, limit, is_lowered=memory is not None and budget == limit)
    resources = Resources(
        budget_bytes=budget,
        child_bytes=budget - shares.parent_bytes - shares.inputs_bytes // 2,
        terms=terms,
        batch_bytes=shares.batch_bytes,
        arena_bytes=shares.arena_bytes,
        spare_bytes=shares.spare_bytes,
        range_bytes=_range_bytes(terms.n_threads, inputs),
        n_workers=_n_workers(terms.n_threads, inputs),
        max_piece_bytes=shares.max_piece_bytes,
        reset_above_bytes=shares.reset_above_bytes,
        n_long=shares.n_long,
        engine=engine,
    )
    return resources, notices


def _range_bytes(n_workers: int, inputs: Sequence[Input]) -> int:
    """Return how much a worker reads at a time: a tenth of a second of work, or less where so few ranges would not be even."""
    n_bytes = sum(source.size_bytes or 0 for source in inputs)
    return min(_RANGE_BYTES, max(_WORKER_BYTES, n_bytes // (_FEWEST_RANGES * n_workers)))


def _n_workers(n_threads: int, inputs: Sequence[Input]) -> int:
    """Return how many workers have something to do: one for each mebibyte, where sizes say how much there is to read."""
    if any(source.size_bytes is None or is_packed(source) for source in inputs):
        return n_threads
    n_bytes = sum(source.size_bytes or 0 for source in inputs)
    return max(1, min(n_threads, n_bytes // _WORKER_BYTES))


def _choose_budget(memory: str | int | None, terms: BudgetTerms, cgroup_bytes: int | None) -> tuple[int, list[str]]:
    """Return the budget in bytes, and what a person should know of it. cgroup_bytes: limit of the control group."""
    if memory is None:
        n_threads = terms.n_threads
        budget = default_budget(n_threads, machine_bytes(), cgroup_bytes)
        is_lowered = budget < default_budget(n_threads, machine_bytes(), None)
        if is_lowered and not most_threads(budget, terms):
            budget = usable_bytes()
    else:
        wanted = memory if isinstance(memory, int) else parse_size(memory, "--memory")
        if wanted < MIB and str(memory).strip().isdigit():
            meant = f"{wanted}MiB" if most_threads(wanted * MIB, terms) else f"{wanted}GiB" if wanted < 64 else "1GiB"
            raise UsageError(
                f"a budget of {wanted} bytes; did you mean {meant}?",
                where=f"--memory {wanted}",
                option="--memory",
                allowed="a number with K, M, G, T or KiB, MiB, GiB, TiB",
                suggested=meant,
            )
        budget = min(wanted, usable_bytes()) if cgroup_bytes else wanted
        is_lowered = budget < wanted
    if not is_lowered or cgroup_bytes is None:
        return budget, []
    limit = f"the control group (container, Slurm job) allows {cgroup_bytes // MIB:,} MiB of memory"
    return budget, [f"{limit}: the budget is {budget // MIB:,} MiB"]


def _checked_out(out: str) -> str:
    if not out:
        raise UsageError("no output directory", option="--out", allowed="a directory", suggested="data")
    if out != NOWHERE:
        check_directory(Path(out), "--out")
    return out
