"""`merge`: complete outputs into one that is as if all had been tokenized in one run.

Settings that decide what the ids mean must agree, or the error names them. Those that only decide which documents were taken may
differ, and the manifest then says that no single run made this output.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec

from tokmill.core.config import Origin
from tokmill.core.errors import UsageError
from tokmill.core.records import STDIN
from tokmill.core.text import counted, shortened
from tokmill.derive.arguments import check_apart, named_outputs, output_target
from tokmill.derive.copiers import is_plain
from tokmill.derive.engine import copied, derive_output
from tokmill.derive.loading import load_source
from tokmill.derive.source import Source, check_marks
from tokmill.formats import choose_output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tokmill.core.config import Content
    from tokmill.core.outcome import Outcome
    from tokmill.core.protocols import Observer
    from tokmill.core.records import Tokenizer

_SPLIT = ("val_fraction", "seed")
_MOST = 5
"""Inputs or settings that are named."""


class Described(Protocol):
    """A complete output, or what will be one."""

    @property
    def directory(self) -> Path | str:
        """Where it is; of an output in a store its URL."""

    @property
    def content(self) -> Content:
        """Its settings."""


def merge(
    directories: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    offsets: bool = False,
    allow_other_split: bool = False,
    stage: str | os.PathLike[str] | None = None,
    stage_size: str | int | None = None,
    fresh: bool = False,
    force: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Make one output of complete outputs, one after the other, as `tokmill merge` does. Call it again to resume.

    Args:
        directories: The outputs in order, directories or `s3://bucket/prefix`.
        out: The output directory, or `s3://bucket/prefix`.
        offsets: Also write where each document begins.
        allow_other_split: Also take outputs that chose their validation documents differently.
        stage: Of an `out` in a store, the local directory in which it is made first; None: inside ~/.cache/tokmill/stage.
        stage_size: How many bytes of complete shards may wait there, a number or text such as `4GiB`.
        fresh: Discard what is in `out`.
        force: Go on though it will not fit on the disk.
        observers: What is told of progress.

    Returns:
        What was done.

    Raises:
        TokmillError: UsageError for outputs that do not agree, DamageError for one that is not as it was written.
    """
    listed = named_outputs(directories)
    if not listed:
        raise UsageError("no output was given", where="DIR", allowed="one or more", next_step="tokmill merge a b --out ab")
    target = output_target(out, stage, stage_size)
    sources = [load_source(path) for path in listed]
    check_apart([source.directory for source in sources], target.name)
    check_agreement(sources, allow_other_split=allow_other_split)
    is_copied = all(map(is_plain, sources)) and not offsets
    if not is_copied:
        for source in sources:
            check_marks(source)
    content = with_offsets(merged_content(sources), offsets)
    return derive_output(
        sources,
        content,
        target,
        "merge",
        make=partial(copied, sources, content, "merge", copies_bytes=is_copied),
        fresh=fresh,
        force=force,
        observers=observers,
        notices=_notices(sources, content),
    )


def check_agreement(
    sources: Sequence[Described], *, allow_other_split: bool, names: Iterable[str] = ("format", "dtype", "eot")
) -> None:
    """Raise UsageError, which names what differs and where, unless the ids of all sources mean the same.

    allow_other_split: they may have chosen their validation documents differently. names: settings that must be the same.
    """
    first = sources[0]
    for source in sources[1:]:
        found = [f"{name} is {theirs}, not {ours}" for name, theirs, ours in _unlike(source, first, names)]
        ours, theirs = first.content.tokenizer, source.content.tokenizer
        if (ours.sha256, ours.encoding) != (theirs.sha256, theirs.encoding):
            found.insert(0, f"the tokenizer is {_identified(theirs)}, not {_identified(ours)}")
        if ours.eot_id != theirs.eot_id:
            found.append(f"the end-of-text id is {theirs.eot_id}, not {ours.eot_id}")
        if found:
            raise UsageError(
                "these outputs do not fit together: " + "; ".join(found),
                where=f"{source.directory}, compared with {first.directory}",
                allowed="one tokenizer, dtype, end-of-text id, its placement, and format",
                next_step="leave it out, or make it like the others: tokmill convert for format, dtype and end-of-text ids, "
                "tokmill tokenize for another tokenizer"
                + ("" if ours.is_known and theirs.is_known else "; tokmill convert --from-tokenizer NAME where it is not known"),
            )
    if not allow_other_split:
        _check_split(sources)


def _unlike(source: Described, first: Described, names: Iterable[str]) -> Iterator[tuple[str, object, object]]:
    """Yield settings that differ: name, of the one, of the other."""
    for name in names:
        theirs, ours = getattr(source.content, name), getattr(first.content, name)
        if theirs != ours:
            yield name, theirs, ours


def _check_split(sources: Sequence[Described]) -> None:
    """Raise UsageError if the sources chose their validation documents differently: one may be on both sides."""
    first = sources[0]
    inputs = [each for source in sources for each in source.content.inputs if each.path != STDIN]
    sides = {each.path: each.side for each in inputs}
    both = [each.path for each in inputs if sides[each.path] != each.side]
    if both:
        raise UsageError(
            f"for validation in one of these outputs, and not in another: {', '.join(shortened(both, _MOST))}",
            where=str(first.directory),
            allowed="one side for each input",
            next_step="tokenize one of them again with the --val-input of the other, or pass --allow-other-split",
        )
    for source in sources[1:]:
        found = [f"--{name.replace('_', '-')} was {theirs}, not {ours}" for name, theirs, ours in _unlike(source, first, _SPLIT)]
        if found:
            raise UsageError(
                "documents for validation were chosen differently, so one that is in both may be on both sides: "
                + "; ".join(found),
                where=f"{source.directory}, compared with {first.directory}",
                allowed="one --seed and one --val-fraction, by which a text is always on the same side",
                next_step="tokenize one of them again with the settings of the other, or pass --allow-other-split",
            )


def _identified(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.name} (sha256 {tokenizer.sha256[:12]})" if tokenizer.is_known else tokenizer.name


def merged_content(sources: Sequence[Source]) -> Content:
    """Return the settings of one run over all inputs, in the shards that the format has by default: one file a side if it can.

    Settings that differ are those of the first; the origin has the fingerprints of all.
    """
    first = sources[0].content
    inputs = tuple(each for source in sources for each in source.content.inputs)
    shards = choose_output(first.format, first.tokenizer, eot=first.eot, dtype=first.dtype).shards
    # Of a tokenizer that nobody named, the number of ids is that of those met.
    n_ids = max(source.content.tokenizer.n_ids for source in sources)
    tokenizer = msgspec.structs.replace(first.tokenizer, n_ids=n_ids)
    merged = msgspec.structs.replace(
        with_offsets(first, False), inputs=inputs, tokenizer=tokenizer, shards=shards or msgspec.UNSET, n_parts=msgspec.UNSET
    )
    if len(sources) == 1:
        # A copy, whose documents are in the order that they had.
        return merged
    if _differing(sources) or any(source.content.origin or _is_limited(source) for source in sources):
        # Of all inputs together, a run would have taken others.
        merged = msgspec.structs.replace(merged, val_tail=msgspec.UNSET, val_tokens=msgspec.UNSET, max_tokens=msgspec.UNSET)
        return msgspec.structs.replace(merged, origin=Origin(merged=tuple(source.manifest.fingerprint for source in sources)))
    return merged


def _is_limited(source: Source) -> bool:
    """Return whether what a document became depends on where it stands."""
    content = source.content
    return bool(content.val_tokens or content.max_tokens or content.val_tail)


def with_offsets(content: Content, offsets: bool) -> Content:  # noqa: FBT001  what is asked for
    """Return the settings of an output that has, or has not, a list of where documents begin."""
    return msgspec.structs.replace(content, offsets=offsets or msgspec.UNSET)


def _differing(sources: Sequence[Source]) -> list[str]:
    """Return the names of settings in which the sources differ, besides their inputs."""
    first = sources[0].content
    names = [
        name
        for name in first.__struct_fields__
        if name not in ("inputs", "tokenizer", "origin", "name", "shards", "n_parts", "offsets")
    ]
    return [name for name in names if any(getattr(s.content, name) != getattr(first, name) for s in sources)]


def shared_inputs(content: Content, n_sources: int) -> list[str]:
    """Return what to say of inputs that are in more than one source of an output with these settings."""
    times = Counter((i.path, i.size_bytes, i.mtime_ns) for i in content.inputs if i.path != STDIN)
    twice = [path for (path, _, _), n in times.items() if n > 1]
    if not twice or n_sources < 2:
        return []
    shown = ", ".join(shortened(twice, _MOST))
    return [f"more than once in the output, because it is in more than one of the sources: {shown}"]


def _notices(sources: Sequence[Source], content: Content) -> list[str]:
    found = shared_inputs(content, len(sources))
    if names := _differing(sources):
        options = ", ".join("--" + name.replace("_", "-") for name in names)
        split = "; a document may then be on both sides" if set(_SPLIT) & set(names) else ""
        found.append(f"made with different settings ({options}){split}; verify --source cannot compare the merged output")
    elif len(sources) > 1 and any(map(_is_limited, sources)):
        found.append(
            "all inputs together would end, or end their validation, elsewhere; verify --source cannot compare this output"
        )
    if len(sources) == 1:
        found.append(f"one source only: a copy, {counted(len(content.inputs), 'input')}")
    return found
