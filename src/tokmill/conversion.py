"""`convert` and `reshard`: a complete output, or bare files of another tool, in another format or other shards.

The output is what tokenizing directly into that format would have made, with its settings in the manifest. Of bare files nothing is
known but what is stated: they are read once beforehand, to find their documents and to hold every id against what was stated.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from tokmill.bare import load_bare
from tokmill.errors import UsageError
from tokmill.merging import check_apart, check_marks
from tokmill.replay import Outcome, carry_all
from tokmill.rewrite import WriterCarrier
from tokmill.sources import Source
from tokmill.trainers import Choice, choose_output
from tokmill.types import IdType
from tokmill.write import WRITERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.protocols import Observer
    from tokmill.provenance import How


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
    dtype: str | None = None,
    eot: str | None = None,
    eot_id: int | None = None,
    tokenizer: str | None = None,
    fresh: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Write a complete output, or bare files of ids, in another format into `out`, as `tokmill convert` does; again to resume.

    sources: one directory, or files in order. from_format, dtype, eot, eot_id, tokenizer: what is in bare files. to_eot, to_dtype:
    where end-of-text ids go and how wide ids are in the output; None: as its trainer expects, like tokenize. Raises TokmillError.
    """
    listed = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    stated: dict[str, object] = {"from_format": from_format, "dtype": dtype, "eot": eot, "eot_id": eot_id, "tokenizer": tokenizer}
    _check_choice("--format", format, tuple(WRITERS))
    _check_choice("--to-eot", to_eot, ("before", "after"))
    _check_choice("--to-dtype", to_dtype, get_args(IdType))
    target = Path(os.path.abspath(out))
    source = _load([os.path.abspath(name) for name in listed], target, stated)
    choice = choose_output(
        format,
        source.content.tokenizer,
        eot=to_eot or ("none" if source.content.eot == "none" else "auto"),
        dtype=to_dtype or "auto",
        shard_tokens=shard_tokens,
        shard_documents=shard_documents,
    )
    return _rewrite(source, format, choice, target, "convert", fresh=fresh, observers=observers)


def reshard(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    shard_tokens: str | int | None,
    shard_documents: bool = False,
    fresh: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Write a complete output with shards of another size into `out`, as `tokmill reshard` does; again to resume.

    shard_tokens: of each shard, a number or text such as `100M`; None: what the format has by default. Raises TokmillError.
    """
    target = Path(os.path.abspath(out))
    source = _load([os.path.abspath(directory)], target, {})
    content = source.content
    choice = choose_output(
        content.format,
        content.tokenizer,
        eot=content.eot,
        dtype=content.dtype,
        shard_tokens=shard_tokens,
        shard_documents=shard_documents,
    )
    return _rewrite(source, content.format, choice, target, "reshard", fresh=fresh, observers=observers)


def _load(names: list[str], out: Path, stated: dict[str, object]) -> Source:
    """The directory that was named, or the files. Raises UsageError."""
    paths = [Path(name) for name in names]
    check_apart(paths, out)
    given = [f"--{name.replace('_', '-')}" for name, value in stated.items() if value is not None]
    if len(paths) == 1 and paths[0].is_dir():
        if given:
            raise UsageError(
                f"{', '.join(given)}: for bare files only; a directory's manifest knows",
                where=str(paths[0]),
                allowed="--to-eot and --to-dtype change them",
                next_step="leave it out",
            )
        source = Source.load(paths[0])
        if source.content.eot == "none":
            check_marks(source)
        return source
    return load_bare(paths, **stated)  # type: ignore[arg-type]


def _rewrite(
    source: Source, format_name: str, choice: Choice, out: Path, how: How, *, fresh: bool, observers: Sequence[Observer]
) -> Outcome:
    if source.content.eot != choice.eot:
        check_marks(source)
    content = msgspec.structs.replace(
        source.content,
        format=format_name,
        eot=choice.eot,
        dtype=choice.dtype,
        shards=choice.shards or msgspec.UNSET,
        splits=msgspec.UNSET,
    )
    notices = [text.replace("--eot", "--to-eot").replace("--dtype", "--to-dtype") for text in choice.notices]
    return carry_all(
        [source],
        content,
        out,
        how,
        lambda output: WriterCarrier(output, content),
        fresh=fresh,
        observers=observers,
        notices=notices,
    )


def _check_choice(option: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        raise UsageError(
            f"{value!r} is not a value of {option}",
            where=option,
            allowed=", ".join(allowed),
            next_step=f"{option} {allowed[0]}",
        )
