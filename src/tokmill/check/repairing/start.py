"""Repairs a damaged output: what is damaged is made from the corpus again, and nothing else.

The manifest says which part of the corpus each range of each file came from, and what its digest was; so the manifest itself
cannot be repaired, and the corpus must be what it was. A process of its own does the work and alone writes (`worker.py`).
"""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from tokmill.check.findings import Problem, as_often, name_budget, naming_options
from tokmill.core.config import Job, local_path, path_texts
from tokmill.core.errors import ChangedError, TokmillError
from tokmill.core.events import AnyEvent, Notice, Repaired
from tokmill.core.manifest import MANIFEST_NAME, load_manifest
from tokmill.core.records import Input, path_to_text
from tokmill.core.system.durable import storage_errors
from tokmill.core.text import counted
from tokmill.dataset import find_tokenizer
from tokmill.encode import engine_of
from tokmill.read import find_inputs, source_options
from tokmill.run import LocalRunner, divide_resources
from tokmill.store import full_urls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.check.findings import Report
    from tokmill.core.manifest import Manifest
    from tokmill.core.protocols import Observer

_WORKER = "tokmill.check.repairing.worker"


def repair(
    directory: str | os.PathLike[str],
    *,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Literal[True] | None = None,
    glob: str | Sequence[str] | None = None,
    memory: str | int | None = None,
    threads: int | None = None,
    tokenizer: str | None = None,
    observers: Sequence[Observer] = (),
) -> Report:
    """Make the damaged ranges of a complete output again from its corpus, then verify all of it, as `verify --repair` does.

    Args:
        directory: Of the output.
        sources: The inputs as given to `tokenize`, in the same order, if they have moved; None or True: where they were.
        glob: As given to `tokenize`, for the sources.
        memory: Budget of all processes: bytes, or text such as `2GiB`.
        threads: Encoder threads.
        tokenizer: Where the tokenizer of the output is now, as for `tokenize`. None: as the manifest says, without a network.
        observers: Told of the progress.

    Returns:
        What was repaired, and what is still wrong.

    Raises:
        ChangedError: If the corpus is not what it was; nothing is replaced then.
        LockedError: If another process works on the output.
        DamageError: If the manifest cannot be trusted.
    """
    began_s = time.monotonic()
    names = None if sources is None or sources is True else path_texts(sources, "sources")
    directory = local_path(directory)
    job = repair_job(Path(directory), names, glob=glob, memory=memory, threads=threads, tokenizer_name=tokenizer)
    found = _Collector()
    try:
        LocalRunner(_WORKER).run(job, [found, *observers])
    except TokmillError as error:
        if error.where == MANIFEST_NAME:
            # The worker does not know the name of its directory.
            error.where = path_to_text(os.path.abspath(Path(directory) / MANIFEST_NAME))
        error.resumes = False  # nothing was replaced, and the next repair begins at the beginning
        name_budget(error, load_manifest(Path(directory)))
        raise
    # Imported late: this process stays small while the worker lives.
    from tokmill.check.verification import verify

    for observer in observers:
        observer.on_event(Notice(text="checking all of it"))
    report = verify(Path(directory), observers=observers)
    repaired = [_repaired(event) for event in found.repaired]
    return msgspec.structs.replace(report, repaired=repaired, elapsed_s=time.monotonic() - began_s)


def repair_job(
    directory: Path,
    sources: Sequence[str] | None,
    *,
    glob: str | Sequence[str] | None,
    memory: str | int | None,
    threads: int | None,
    tokenizer_name: str | None = None,
) -> Job:
    """Return the job of the process that repairs. Raise UsageError, InputError, ChangedError, DamageError, MemoryBudgetError."""
    with storage_errors(directory):
        manifest = load_manifest(directory)
    inputs = manifest.content.inputs if sources is None else _moved(manifest, directory, sources, glob)
    tokenizer = manifest.content.tokenizer
    if tokenizer_name is not None:
        tokenizer = find_tokenizer(tokenizer, tokenizer_name)
    # Without one there is no corpus either; that is an error only if something is damaged.
    engine = engine_of(tokenizer, "gigatoken") if tokenizer.is_known else "gigatoken"
    resources, _ = divide_resources(memory, threads, engine, inputs, n_ids=tokenizer.n_ids)
    content = msgspec.structs.replace(manifest.content, inputs=inputs, tokenizer=tokenizer)
    out = path_to_text(os.path.abspath(directory))
    return Job(out=out, content=content, resources=resources, urls=full_urls(inputs))


def _moved(manifest: Manifest, directory: Path, sources: Sequence[str], glob: str | Sequence[str] | None) -> tuple[Input, ...]:
    """Return the inputs at their new places. Raise ChangedError if they are not the same."""
    then = manifest.content.inputs
    with naming_options(then, with_format=False):
        now = find_inputs(sources, glob=glob, input_format="text", outside=str(directory)).inputs
    now = as_often(now, then)
    what = f"{counted(len(now), 'input')} found; the output was made from {len(then):,}" if len(now) != len(then) else ""
    for old, new in zip(then, now, strict=False):
        if not what and old.size_bytes not in (None, new.size_bytes):
            what = f"{new.path} has {new.size_bytes or 0:,} bytes; {old.path}, in its place, had {old.size_bytes:,}"
    if what:
        globs = [each for each in source_options(then) if each.startswith("--glob")]
        raise ChangedError(
            f"these are not the sources: {what}",
            option="--source",
            allowed="all inputs that the output was made from, in the same order, unchanged",
            next_step=f"tokmill verify {shlex.quote(str(directory))} --repair if they are where they were; otherwise give --source "
            f"what tokenize was given, in that order, with {' '.join(globs) or 'the same --glob, if it had one'}",
        )
    return tuple(
        msgspec.structs.replace(old, path=new.path, size_bytes=new.size_bytes, mtime_ns=new.mtime_ns)
        for old, new in zip(then, now, strict=True)
    )


class _Collector:
    """A list of what was repaired. Implements `protocols.Observer`."""

    def __init__(self) -> None:
        self.repaired: list[Repaired] = []

    def on_event(self, event: AnyEvent) -> None:
        if isinstance(event, Repaired):
            self.repaired.append(event)


def _repaired(event: Repaired) -> Problem:
    if event.end_byte > event.begin_byte:
        what = "made again from the corpus"
        return Problem(file=event.file, what=what, begin_byte=event.begin_byte, end_byte=event.end_byte)
    return Problem(file=event.file, what="cut to its length: it was too long" if event.end_byte else "made again: it is empty")
