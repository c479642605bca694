"""`merge`: complete outputs, runs or shards of one, into one that is as if all had been tokenized in one run.

What would make the ids mean different things must agree and is refused by name; what only decides which documents were taken may
differ, and the manifest then says that no single run made this output.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokmill.errors import UsageError
from tokmill.flat import FlatCarrier, is_flat
from tokmill.operands import named_paths, output_path
from tokmill.replay import Outcome, carry_all
from tokmill.rewrite import WriterCarrier
from tokmill.sources import Source
from tokmill.trainers import choose_output
from tokmill.types import STDIN
from tokmill.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.commit import Output
    from tokmill.config import Content
    from tokmill.protocols import Observer
    from tokmill.replay import Carrier
    from tokmill.types import Tokenizer

_MUST_AGREE = ("format", "dtype", "eot")
_MOST = 5
"""Inputs or settings that are named."""


def merge(
    directories: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    fresh: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Put complete outputs one behind the other into `out`, in the order given, as `tokmill merge` does; again to resume.

    fresh: discard what stands in `out`. Raises TokmillError: UsageError for outputs that do not agree, DamageError for one that is
    not as it was written.
    """
    listed = named_paths(directories)
    if not listed:
        raise UsageError("no output was given", where="DIR", allowed="one or more", next_step="tokmill merge a b --out ab")
    target = output_path(out)
    sources = [Source.load(path) for path in listed]
    check_apart([source.directory for source in sources], target)
    check_agreement(sources)
    content = merged_content(sources)
    return carry_all(
        sources,
        content,
        target,
        "merge",
        carrier_maker(sources, content),
        fresh=fresh,
        observers=observers,
        notices=_notices(sources, content),
    )


def carrier_maker(sources: Sequence[Source], content: Content) -> Callable[[Output], Carrier]:
    """How the sources of one format get into an output of that format."""
    if all(map(is_flat, sources)):
        return FlatCarrier
    for source in sources:
        check_marks(source)
    return lambda output: WriterCarrier(output, content)


def check_marks(source: Source) -> None:
    """Raises UsageError for an output whose documents cannot be told apart."""
    if source.content.eot == "none":
        raise UsageError(
            "documents cannot be told apart in "
            + ("bare files stated to have no end-of-text ids" if source.is_bare else "an output that was written with --eot none"),
            where=str(source.directory),
            allowed="an end-of-text id before or after each document; without, "
            + ("--format raw, llmc, litdata, mds" if source.is_bare else "outputs of the raw format can be merged"),
            next_step="choose another --format, and leave --to-eot out"
            if source.is_bare
            else "tokenize again, directly into the format that is wanted",
        )


def check_apart(sources: Sequence[Path], out: Path) -> None:
    """Raises UsageError when the output is one of the sources, or what is not a directory."""
    if out.exists() and not out.is_dir():
        raise UsageError("the output is a file", where=str(out), allowed="a directory, new or old", next_step="--out merged")
    for source in sources:
        if out.exists() and source.exists() and os.path.samefile(out, source):
            raise UsageError(
                "the output is one of the sources",
                where=str(out),
                allowed="another directory",
                next_step=f"choose another --out, such as {out}-new",
            )


def check_agreement(sources: Sequence[Source]) -> None:
    """Raises UsageError, naming what differs and where, unless the ids of all sources mean the same."""
    first = sources[0]
    for source in sources[1:]:
        found = [
            f"{name} is {getattr(source.content, name)}, not {getattr(first.content, name)}"
            for name in _MUST_AGREE
            if getattr(source.content, name) != getattr(first.content, name)
        ]
        ours, theirs = first.content.tokenizer, source.content.tokenizer
        if (ours.sha256, ours.encoding) != (theirs.sha256, theirs.encoding):
            found.insert(0, f"the tokenizer is {_identified(theirs)}, not {_identified(ours)}")
        if ours.eot_id != theirs.eot_id:
            found.append(f"the end-of-text id is {theirs.eot_id}, not {ours.eot_id}")
        if found:
            raise UsageError(
                "these outputs do not fit together: " + "; ".join(found),
                where=f"{source.directory}, held against {first.directory}",
                allowed="one tokenizer, dtype, end-of-text id, its placement, and format",
                next_step="leave it out, or make it like the others: tokmill convert for format, dtype and end-of-text ids, "
                "tokmill tokenize for another tokenizer"
                + ("" if ours.is_known and theirs.is_known else "; tokmill convert --tokenizer NAME where it is not known"),
            )


def _identified(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.name} (sha256 {tokenizer.sha256[:12]})" if tokenizer.is_known else tokenizer.name


def merged_content(sources: Sequence[Source]) -> Content:
    """The settings of one run over all inputs, in the shards that the format has by default: one file a side where it can.

    Where settings differ they are those of the first, and the fingerprints of all.
    """
    first = sources[0].content
    inputs = tuple(each for source in sources for each in source.content.inputs)
    shards = choose_output(first.format, first.tokenizer, eot=first.eot, dtype=first.dtype).shards
    # Of a tokenizer that nobody named, the number of ids is that of those met.
    n_ids = max(source.content.tokenizer.n_ids for source in sources)
    tokenizer = msgspec.structs.replace(first.tokenizer, n_ids=n_ids)
    merged = msgspec.structs.replace(
        first, inputs=inputs, tokenizer=tokenizer, shards=shards or msgspec.UNSET, splits=msgspec.UNSET
    )
    if _differing(sources) or any(source.content.origin for source in sources):
        return msgspec.structs.replace(merged, origin=tuple(source.manifest.fingerprint for source in sources))
    return merged


def _differing(sources: Sequence[Source]) -> list[str]:
    """Names of settings in which the sources are not alike, besides their inputs."""
    first = sources[0].content
    names = [name for name in first.__struct_fields__ if name not in ("inputs", "tokenizer", "origin", "shards", "splits")]
    return [name for name in names if any(getattr(s.content, name) != getattr(first, name) for s in sources)]


def _notices(sources: Sequence[Source], content: Content) -> list[str]:
    times = Counter((i.path, i.size_bytes, i.mtime_ns) for i in content.inputs if i.path != STDIN)
    twice = [path for (path, _, _), n in times.items() if n > 1]
    found = []
    if twice:
        shown = ", ".join(twice[:_MOST]) + (f" and {len(twice) - _MOST:,} more" if len(twice) > _MOST else "")
        found.append(f"more than once in the output, for it is in more than one of the sources: {shown}")
    if names := _differing(sources):
        options = ", ".join("--" + name.replace("_", "-") for name in names)
        split = "; a document may then stand on both sides" if {"val_fraction", "seed"} & set(names) else ""
        found.append(f"made with different settings ({options}){split}; verify --source cannot compare the merged output")
    if len(sources) == 1:
        found.append(f"one source only: a copy, {counted(len(content.inputs), 'input')}")
    return found
