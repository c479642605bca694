"""An output that is made in parts, by whoever takes one: what all must agree in, and where each part is made.

`.tokmill/plan` says what is being made: settings, inputs with size and time, number of parts. Whoever comes first writes it;
who comes with another one is refused, unless it is the same and lets bad records pass. Each part is an output directory of its
own, `.tokmill/parts/NNNNN/`, with its lock, its journal and its manifest, so that a part is made, resumed and published exactly as
a whole output is. `finalize` puts them together.
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.errors import UsageError
from tokmill.core.manifest import MANIFEST_NAME, SKIPPED_NAME, load_manifest
from tokmill.core.partition import Part, inputs_of_parts
from tokmill.core.system import durable
from tokmill.core.system.durable import storage_errors
from tokmill.core.text import counted
from tokmill.formats import FORMATS
from tokmill.output.config_diff import changed_parts_error, is_only_more_lenient
from tokmill.output.journal import Header, encode_header, read_header
from tokmill.output.state_dir import PARTS, STATE_NAME, is_begun, parts_of, plan_of, refuse_strangers, state_of
from tokmill.output.superseded import pending_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from tokmill.core.config import Content
    from tokmill.core.manifest import Manifest

MOST_NAMED = 5
"""Parts."""


def divided(content: Content, count: int) -> Content:
    """The settings of an output in `count` parts. Raises UsageError where that cannot be."""
    if FORMATS[content.format].lists_files:
        raise UsageError(
            f"the format {content.format} cannot be made in parts: it has one index for all files of a side",
            option="--format",
            allowed=", ".join(name for name, spec in FORMATS.items() if not spec.lists_files),
            next_step=f"make it with --format raw, then: tokmill convert DIR --format {content.format} --out OTHER",
        )
    if content.shards and content.shards.drop_tail:
        raise UsageError(
            "every part has a last shard of its own, which --drop-tail would leave out",
            option="--drop-tail",
            allowed="parts with all of their shards",
            next_step="leave it out; tokmill reshard makes shards of one size of the finished output",
        )
    inputs_of_parts(content.inputs, content.separator, count)
    return msgspec.structs.replace(content, n_parts=count)


def part_content(whole: Content, index: int) -> Content:
    """The settings of one part of an output that is made in parts, with the inputs it has a share in."""
    return next(islice(part_contents(whole), index, None))


def part_contents(whole: Content) -> Iterator[Content]:
    """Those of all parts, in order. Raises UsageError for inputs that cannot be divided."""
    count, plan = n_parts(whole), whole.fingerprint()
    for index, share in enumerate(inputs_of_parts(whole.inputs, whole.separator, count)):
        part = Part(index=index, count=count, plan=plan, begin=share.begin, end=share.end)
        yield msgspec.structs.replace(whole, inputs=whole.inputs[share.first : share.stop], n_parts=msgspec.UNSET, part=part)


def n_parts(content: Content) -> int:
    """Of an output: 1 where it is made in one run."""
    return content.n_parts if isinstance(content.n_parts, int) else 1


def part_directory(directory: Path, index: int) -> Path:
    """The output directory of a part."""
    return parts_of(directory) / f"{index:05}"


def parts_url(url: str) -> str:
    """Likewise of an output in a store: below what its parts are."""
    return f"{url.rstrip('/')}/{STATE_NAME}/{PARTS}"


def part_url(url: str, index: int) -> str:
    """The URL of a part, which is an output of its own."""
    return f"{parts_url(url)}/{index:05}"


def skipped_lists(out: str, url: str = "") -> str:
    """What lists the records that the parts of an output left out: in a directory, or at a URL."""
    return f"{parts_url(url)}/*/{SKIPPED_NAME}" if url else str(parts_of(Path(out)) / "*" / SKIPPED_NAME)


def load_plan(directory: Path) -> Header | None:
    """What is being made in parts in an output directory; None where nothing is. Raises DamageError, UsageError, StorageError."""
    with storage_errors(plan_of(directory)):
        return read_header(plan_of(directory))


def incomplete(
    where: str, content: Content, missing: Sequence[int], begun: Container[int], busy: Container[int] = ()
) -> UsageError:
    """The error for parts that are missing. begun: those of them that somebody works on, or was interrupted at; busy: those that
    somebody surely works on.
    """
    count = n_parts(content)
    named = [f"{i} (being made)" if i in busy else f"{i} (begun)" if i in begun else str(i) for i in missing[:MOST_NAMED]]
    more = f" and {len(missing) - MOST_NAMED:,} more" if len(missing) > MOST_NAMED else ""
    commands = [f"tokmill tokenize INPUT... --part {i}/{count} --out {where}" for i in missing[:MOST_NAMED] if i not in busy]
    steps = ["with the inputs and options of the others:", *commands] if commands else ["wait for those that are being made"]
    return UsageError(
        f"{counted(len(missing), 'part')} of {count:,} {'is' if len(missing) == 1 else 'are'} missing: {', '.join(named)}{more}",
        where=where,
        allowed=f"all parts, from 0 to {count - 1:,}, complete",
        next_step="\n".join(steps),
    )


def join(directory: Path, whole: Content, version: str, on_new: Callable[[], None]) -> Manifest | None:
    """Take part in making an output; its manifest where it is complete, or is being put together.

    on_new: called before the first to come begins. Raises ChangedError where something else is made or stands there, UsageError for
    files that tokmill did not make, StorageError.
    """
    with storage_errors(directory):
        complete = load_manifest(directory) if (directory / MANIFEST_NAME).exists() else pending_manifest(directory)
        if complete is not None:
            if complete.fingerprint != whole.fingerprint():
                raise changed_parts_error(complete.content, whole, directory, or_else="remove it first", is_complete=True)
            return complete
        plan = load_plan(directory)
        if plan is not None and is_only_more_lenient(plan.content, whole):
            plan = _write_plan(directory, whole, version, durable.replace)
        if plan is None:
            if is_begun(directory):
                raise _in_one_run(directory)
            if directory.is_dir():
                refuse_strangers(directory)
            on_new()
            plan = _write_plan(directory, whole, version, durable.publish_new)
    if plan is not None and plan.fingerprint != whole.fingerprint():
        raise changed_parts_error(plan.content, whole, directory, or_else=f"give up all parts: remove {state_of(directory)}")
    return None


def _write_plan(directory: Path, whole: Content, version: str, put: Callable[[Path, Path], None]) -> Header | None:
    """Write the plan and `put` it in its place; what is there then."""
    path = plan_of(directory)
    durable.make_directory(path.parent)
    scratch = path.with_name(f"plan.{os.uname().nodename}.{os.getpid()}.new")
    durable.write_file(scratch, encode_header(Header.of(whole, version)))
    put(scratch, path)
    durable.sync_directory(path.parent)
    return load_plan(directory)


def _in_one_run(directory: Path) -> UsageError:
    return UsageError(
        "a run in one piece is to be resumed in this directory",
        where=str(state_of(directory)),
        allowed="a new or empty directory, or one in which these parts are made",
        next_step="run that tokmill tokenize command again, without --part, or choose another --out",
    )
