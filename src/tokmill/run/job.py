"""From what a person typed to a job: inputs found, tokenizer identified, dtype chosen, memory divided, every value checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import msgspec

from tokmill.core.config import MIB, Content, Job, Resources, parse_separator, parse_size
from tokmill.core.errors import UsageError
from tokmill.core.records import STDIN, EotPlacement, IdType, OnError, Utf8Policy, is_url, path_to_text
from tokmill.core.system.budget import default_budget, divide_budget
from tokmill.core.system.memory import cgroup_limit_bytes, machine_bytes, usable_cores
from tokmill.core.text import counted, nearest
from tokmill.encode import ENGINES, engine_notice, engine_of, resolve_tokenizer
from tokmill.formats import WRITERS, choose_output
from tokmill.read import check_files, find_inputs
from tokmill.run.advice import shard_notices
from tokmill.store import full_urls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.records import Input

_STAGE_BYTES = 4 << 30
"""Of shards that wait to be sent: some minutes of tokenizing, while a store is busy."""
_PIECE_SHARE = 7
"""Hugging Face tokenizers takes seven times the memory of gigatoken for one piece (170 bytes for each byte measured)."""


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job that is ready to run."""

    job: Job
    notices: list[str]
    """What a person should know before it runs."""
    doubts: tuple[str, ...] = ()
    """Those of them that the summary repeats: of inputs that are perhaps not what they are read as."""


def make_job(
    inputs: Sequence[str],
    *,
    out: str,
    tokenizer: str = "gpt2",
    eot_token: str | None = None,
    separator: str = "<|endoftext|>",
    text_key: str = "text",
    glob: str | None = None,
    input_format: str | None = None,
    eot: str = "auto",
    val_fraction: float = 0.0005,
    seed: int = 0,
    dtype: str = "auto",
    format: str = "raw",  # noqa: A002  the name of the option
    shard_tokens: str | int | None = None,
    shard_documents: bool = False,
    drop_tail: bool = False,
    keep_empty: bool = False,
    memory: str | int | None = None,
    threads: int | None = None,
    nice: bool = False,
    on_error: str = "stop",
    max_skipped: int | None = None,
    encoding_errors: str = "strict",
    engine: str = "gigatoken",
    fresh: bool = False,
    destination: str = "",
    stage_size: str | int | None = None,
) -> PlannedJob:
    """Plan a run of `tokmill tokenize` with these options. destination: URL to which the output is sent from `out`; stage_size:
    what may wait there, of an output of several files a side.

    Raises UsageError, InputError, MemoryBudgetError.
    """
    _check_choices(eot=eot, dtype=dtype, format=format, on_error=on_error, encoding_errors=encoding_errors, engine=engine)
    _check_range("--val-fraction", val_fraction, 0 <= val_fraction < 1, "0 <= fraction < 1")
    _check_range("--seed", seed, 0 <= seed < 1 << 64, "0 to 2**64 - 1")
    _check_range("--max-skipped", max_skipped, max_skipped is None or max_skipped >= 0, "0 or more")
    described = resolve_tokenizer(tokenizer, eot_token)
    choice = choose_output(
        format,
        described,
        eot=eot,
        dtype=dtype,
        shard_tokens=shard_tokens,
        shard_documents=shard_documents,
        drop_tail=drop_tail,
    )
    _check_working_directory([*inputs, out])
    out = os.path.abspath(_checked_out(out))
    found = find_inputs(inputs, glob=glob, input_format=input_format, outside=out)
    content = Content(
        inputs=found.inputs,
        tokenizer=described,
        separator=parse_separator(separator),
        text_key=text_key,
        eot=choice.eot,
        val_fraction=float(val_fraction),
        seed=seed,
        dtype=choice.dtype,
        format=format,
        shards=choice.shards or msgspec.UNSET,
        keep_empty=keep_empty,
        encoding_errors=cast("Utf8Policy", encoding_errors),
        on_error=cast("OnError", on_error),
    )
    notices = [*found.notices(), *choice.notices]
    doubts = check_files(found.inputs, text_key) if input_format is None else []
    notices += doubts
    notices += shard_notices(content)
    used = engine_of(described, engine)
    if used != engine:
        notices.append(engine_notice(described))
    resources, more = divide_resources(memory, threads, used, max_skipped, found.inputs, nice=nice, is_sent=bool(destination))
    stage_bytes = _stage_bytes(stage_size) if destination and choice.shards else 0
    resources = msgspec.structs.replace(resources, refuse_json_lines=input_format is None, stage_bytes=stage_bytes)
    notices += more
    job = Job(
        out=path_to_text(out),
        content=content,
        resources=resources,
        fresh=fresh,
        urls=full_urls(found.inputs),
        destination=destination,
    )
    return PlannedJob(job, notices, tuple(doubts))


def _stage_bytes(stage_size: str | int | None) -> int:
    n_bytes = _STAGE_BYTES if stage_size is None else stage_size if isinstance(stage_size, int) else None
    n_bytes = parse_size(str(stage_size), "--stage-size") if n_bytes is None else n_bytes
    _check_range("--stage-size", stage_size, n_bytes > 0, "more than nothing")
    return n_bytes


_MOST_DETAILS = 5
"""Inputs that are named."""


def details(job: Job) -> list[str]:
    """What was decided, a line each: inputs, tokenizer, output, and how the machine is used."""
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
        f"validation: {content.val_fraction:g} of the documents, chosen by their content and the seed {content.seed}",
        f"machine: engine {resources.engine}, {counted(resources.n_threads, 'thread')}",
        f"memory: {resources.budget_bytes // MIB:,} MiB for all processes",
        f"batches: {resources.batch_bytes // 1024:,} KiB each, at most {resources.in_flight_bytes // MIB:,} MiB on their way",
    ]


def _check_choices(**chosen: str) -> None:
    allowed = {
        "eot": ("auto", *get_args(EotPlacement)),
        "dtype": ("auto", *get_args(IdType)),
        "format": tuple(WRITERS),
        "on_error": get_args(OnError),
        "encoding_errors": get_args(Utf8Policy),
        "engine": tuple(ENGINES),
    }
    for name, value in chosen.items():
        option = "--" + name.replace("_", "-")
        if value not in allowed[name]:
            raise UsageError(
                f"{value!r} is not a value of {option}",
                option=option,
                allowed=", ".join(allowed[name]),
                suggested=nearest(value, allowed[name]),
            )


def _check_range(option: str, value: object, ok: object, allowed: str) -> None:
    if not ok:
        raise UsageError(f"{value} is out of range", option=option, allowed=allowed, next_step="tokmill tokenize --help")


def _check_working_directory(paths: Sequence[str]) -> None:
    """Raises UsageError when a path begins in a working directory that was removed."""
    relative = [path for path in paths if path != STDIN and not os.path.isabs(path) and not is_url(path)]
    try:
        os.getcwd()
    except FileNotFoundError:
        if relative:
            raise UsageError(
                "the working directory was removed",
                where=path_to_text(relative[0]),
                allowed="absolute paths, or a working directory that is there",
                next_step="cd to a directory that is there, and run the command again",
            ) from None


def divide_resources(
    memory: str | int | None,
    threads: int | None,
    engine: str,
    max_skipped: int | None,
    inputs: Sequence[Input],
    *,
    nice: bool = False,
    is_sent: bool = False,
) -> tuple[Resources, list[str]]:
    """The budget and the threads that a person wants, or the usual ones, divided; and what a person should know of it.

    Raises UsageError, MemoryBudgetError.
    """
    n_threads = _choose_threads(threads)
    budget, notices = _choose_budget(memory, n_threads, cgroup_limit_bytes())
    is_remote = any(source.is_remote for source in inputs)
    shares = divide_budget(budget, n_threads, len(inputs), is_remote=is_remote, is_sent=is_sent)
    resources = Resources(
        budget_bytes=budget,
        worker_bytes=budget - shares.parent_bytes - shares.inputs_bytes // 2,
        n_threads=n_threads,
        batch_bytes=shares.batch_bytes,
        in_flight_bytes=shares.in_flight_bytes,
        max_piece_bytes=shares.max_piece_bytes // (_PIECE_SHARE if engine == "tokenizers" else 1),
        reset_above_bytes=shares.reset_above_bytes,
        engine=engine,
        max_skipped=max_skipped,
        nice=nice,
    )
    return resources, notices


def _choose_threads(threads: int | None) -> int:
    _check_range("--threads", threads, threads is None or threads >= 1, "1 or more")
    return threads or usable_cores()


def _choose_budget(memory: str | int | None, n_threads: int, cgroup_bytes: int | None) -> tuple[int, list[str]]:
    """The budget in bytes, and what a person should know of it. cgroup_bytes: the limit of the control group, or None."""
    if memory is None:
        budget = default_budget(n_threads, machine_bytes(), cgroup_bytes)
        is_lowered = budget < default_budget(n_threads, machine_bytes(), None)
    else:
        wanted = memory if isinstance(memory, int) else parse_size(memory, "--memory")
        if wanted < MIB and str(memory).strip().isdigit():
            raise UsageError(
                f"a budget of {wanted} bytes; did you mean {wanted}MiB?",
                where=f"--memory {wanted}",
                option="--memory",
                allowed="a number with K, M, G, T or KiB, MiB, GiB, TiB",
                suggested=f"{wanted}MiB",
            )
        # A tenth for what else runs in the group, and for pages of files that are being written.
        budget = min(wanted, cgroup_bytes * 9 // 10) if cgroup_bytes else wanted
        is_lowered = budget < wanted
    if not is_lowered or cgroup_bytes is None:
        return budget, []
    limit = f"the control group (container, Slurm job) allows {cgroup_bytes // MIB:,} MiB of memory"
    return budget, [f"{limit}: the budget is {budget // MIB:,} MiB"]


def _checked_out(out: str) -> str:
    if not out:
        raise UsageError("no output directory", option="--out", allowed="a directory", suggested="data")
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise UsageError(
            "the output is a file", where=str(path), option="--out", allowed="a directory, new or old", suggested="data"
        )
    return out
