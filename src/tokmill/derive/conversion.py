"""`convert` and `reshard`: a complete output, or bare files of another tool, in another format or other shards.

The output is what tokenizing directly into that format would have made, with its settings in the manifest. Of bare files nothing is
known but what is stated: they are read once beforehand, to find their documents and to compare every id with what was stated.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from tokmill.core.records import IdType
from tokmill.derive.arguments import (
    check_apart,
    check_choice,
    is_directory,
    named_output,
    named_outputs,
    named_paths,
    output_target,
    refuse_with_url,
)
from tokmill.derive.engine import copied, derive_output
from tokmill.derive.external_files import Stated, load_bare
from tokmill.derive.loading import load_source
from tokmill.derive.source import Source, check_marks
from tokmill.formats import FORMATS, Choice, choose_output

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from tokmill.core.config import Content
    from tokmill.core.outcome import Outcome
    from tokmill.core.protocols import Observer


def convert(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    format: str,  # noqa: A002  the name of the option
    shard_tokens: str | int | None = None,
    shard_documents: bool = False,
    to_eot: str | None = None,
    to_dtype: str | None = None,
    from_format: str | None = None,
    from_dtype: str | None = None,
    from_eot: str | None = None,
    from_eot_id: int | None = None,
    from_tokenizer: str | None = None,
    offsets: bool = False,
    val_input: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    stage: str | os.PathLike[str] | None = None,
    stage_size: str | int | None = None,
    fresh: bool = False,
    force: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Write a complete output, or bare files of ids, in another format, as `tokmill convert` does. Call it again to resume.

    Args:
        sources: One directory or URL, or files in order.
        out: The output directory, or `s3://bucket/prefix`.
        format: Of the output.
        shard_tokens: Tokens of a shard, a number or text such as `100M`; None: as the trainer expects.
        shard_documents: Cut shards only where documents end.
        to_eot: Where the output has its end-of-text ids; None: as its trainer expects.
        to_dtype: Of the ids in the output; None: as its trainer expects.
        from_format: Format of bare files.
        from_dtype: Of the ids in bare files.
        from_eot: Where bare files have their end-of-text ids.
        from_eot_id: That id in bare files.
        from_tokenizer: Name of the tokenizer of bare files, if it is known.
        offsets: Also write where each document begins.
        val_input: Bare files that are the validation side.
        stage: Of an `out` in a store, the local directory in which it is made first; None: inside ~/.cache/tokmill/stage.
        stage_size: How many bytes of complete shards may wait there, a number or text such as `4GiB`.
        fresh: Discard what is in `out`.
        force: Go on though it will not fit on the disk.
        observers: What is told of progress.

    Returns:
        What was done.

    Raises:
        TokmillError: UsageError for what does not go together, DamageError for a source that is not as it was written.
    """
    stated = Stated(from_format, from_dtype, from_eot, from_eot_id, from_tokenizer)
    _check_choices(format, to_eot, to_dtype)
    target = output_target(out, stage, stage_size)
    source = _named_source(named_outputs(sources), named_paths(val_input), target.name, stated)
    has_marks = source.content.eot != "none"
    if not has_marks and (to_eot or offsets or FORMATS[format].keeps_whole):
        check_marks(source)
    choice = choose_output(
        format,
        source.content.tokenizer,
        eot=to_eot or ("auto" if has_marks else "none"),
        dtype=to_dtype or "auto",
        shard_tokens=shard_tokens,
        shard_documents=shard_documents,
        prefix="--to-",
    )
    notices = [text for text in choice.notices if has_marks or not text.startswith("--to-eot ")]
    if not has_marks and FORMATS[format].other_eot:
        notices.insert(0, f"the ids are without end-of-text ids; {FORMATS[format].other_eot}")
    content = _content(source, format, choice, offsets=offsets)
    return derive_output(
        [source],
        content,
        target,
        "convert",
        make=partial(copied, [source], content, "convert"),
        fresh=fresh,
        force=force,
        observers=observers,
        notices=notices,
    )


def reshard(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    shard_tokens: str | int | None,
    shard_documents: bool = False,
    offsets: bool = False,
    stage: str | os.PathLike[str] | None = None,
    stage_size: str | int | None = None,
    fresh: bool = False,
    force: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Write a complete output with shards of another size, as `tokmill reshard` does. Call it again to resume.

    Args:
        directory: The complete output, or its URL.
        out: The output directory, or `s3://bucket/prefix`.
        shard_tokens: Tokens of a shard, a number or text such as `100M`; None: as the trainer expects.
        shard_documents: Cut shards only where documents end.
        offsets: Also write where each document begins.
        stage: Of an `out` in a store, the local directory in which it is made first; None: inside ~/.cache/tokmill/stage.
        stage_size: How many bytes of complete shards may wait there, a number or text such as `4GiB`.
        fresh: Discard what is in `out`.
        force: Go on though it will not fit on the disk.
        observers: What is told of progress.

    Returns:
        What was done.

    Raises:
        TokmillError: UsageError for what is not possible, DamageError for a source that is not as it was written.
    """
    target = output_target(out, stage, stage_size)
    named = named_output(directory, "reshard")
    check_apart([named], target.name)
    source = _loaded(named)
    made = source.content
    choice = choose_output(
        made.format,
        made.tokenizer,
        eot=made.eot,
        dtype=made.dtype,
        shard_tokens=shard_tokens,
        shard_documents=shard_documents,
    )
    # What the choice would say of end-of-text ids and dtype was said when the source was made.
    content = _content(source, made.format, choice, offsets=offsets)
    return derive_output(
        [source],
        content,
        target,
        "reshard",
        make=partial(copied, [source], content, "reshard"),
        fresh=fresh,
        force=force,
        observers=observers,
        notices=(),
    )


def _check_choices(format_name: str, to_eot: str | None, to_dtype: str | None) -> None:
    """Raise UsageError for a value that an option does not take."""
    check_choice("--format", format_name, tuple(FORMATS))
    check_choice("--to-eot", to_eot, ("before", "after"))
    check_choice("--to-dtype", to_dtype, get_args(IdType))


def _named_source(named: list[Path | str], val: list[Path], out: Path | str, stated: Stated) -> Source:
    """Return the output or the files that were named as a source. Raises UsageError."""
    check_apart([*named, *val], out)
    given = stated.options() + ["--val-input"] * bool(val)
    paths = [each for each in named if isinstance(each, Path)]
    if len(paths) < len(named):
        refuse_with_url(named, given)
        return _loaded(named[0])
    is_output = is_directory(paths, given)
    return _loaded(paths[0]) if is_output else load_bare(paths, val, stated)


def _loaded(directory: Path | str) -> Source:
    source = load_source(directory)
    if source.content.eot == "none":
        check_marks(source)
    return source


def _content(source: Source, format_name: str, choice: Choice, *, offsets: bool) -> Content:
    """Return the settings of a source in another format or shards. Raises UsageError if its documents cannot be told apart."""
    if source.content.eot != choice.eot:
        check_marks(source)
    return msgspec.structs.replace(
        source.content,
        format=format_name,
        eot=choice.eot,
        dtype=choice.dtype,
        shards=choice.shards or msgspec.UNSET,
        n_parts=msgspec.UNSET,
        offsets=offsets or msgspec.UNSET,
    )
