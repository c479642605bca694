"""`convert` and `reshard`: a complete output, or bare files of another tool, in another format or other shards.

The output is what tokenizing directly into that format would have made, with its settings in the manifest. Of bare files nothing is
known but what is stated: they are read once beforehand, to find their documents and to hold every id against what was stated.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import msgspec

from tokmill.bare import load_bare
from tokmill.errors import UsageError
from tokmill.merging import check_apart, check_marks
from tokmill.replay import Outcome, carry_all
from tokmill.rewrite import WriterCarrier
from tokmill.sharding import Shards
from tokmill.sources import Source
from tokmill.types import EotPlacement, IdType
from tokmill.write import WRITERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.config import Content
    from tokmill.protocols import Observer
    from tokmill.types import How


def convert(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    format: str,  # noqa: A002  the name of the option
    shard_tokens: int | None = None,
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
    where end-of-text ids go and how wide ids are in the output, as in the source by default. Raises TokmillError.
    """
    listed = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    stated: dict[str, object] = {"from_format": from_format, "dtype": dtype, "eot": eot, "eot_id": eot_id, "tokenizer": tokenizer}
    _check_choice("--format", format, tuple(WRITERS))
    _check_choice("--to-eot", to_eot, ("before", "after"))
    _check_choice("--to-dtype", to_dtype, get_args(IdType))
    target = Path(os.path.abspath(out))
    source = _load([os.path.abspath(name) for name in listed], target, stated)
    changes: dict[str, object] = {"format": format, "shards": _shards(shard_tokens, shard_documents)}
    if to_eot:
        check_marks(source)
        changes["eot"] = cast("EotPlacement", to_eot)
    if to_dtype:
        changes["dtype"] = cast("IdType", to_dtype)
    return _rewrite(source, msgspec.structs.replace(source.content, **changes), target, "convert", fresh, observers)


def reshard(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    shard_tokens: int | None,
    shard_documents: bool = False,
    fresh: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Write a complete output with shards of another size into `out`, as `tokmill reshard` does; again to resume.

    shard_tokens: of each shard; None: one file a side. Raises TokmillError.
    """
    target = Path(os.path.abspath(out))
    source = _load([os.path.abspath(directory)], target, {})
    content = msgspec.structs.replace(source.content, shards=_shards(shard_tokens, shard_documents))
    return _rewrite(source, content, target, "reshard", fresh, observers)


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


def _rewrite(source: Source, content: Content, out: Path, how: How, fresh: bool, observers: Sequence[Observer]) -> Outcome:  # noqa: FBT001  positional here alone
    return carry_all(
        [source], content, out, how, lambda output: WriterCarrier(output, content), fresh=fresh, observers=observers, notices=[]
    )


def _shards(tokens: int | None, whole_documents: bool) -> Shards | msgspec.UnsetType:  # noqa: FBT001  as the option
    if tokens is None:
        if whole_documents:
            raise UsageError(
                "--shard-documents without a size", where="--shard-documents", allowed="with --shard-tokens", next_step="add it"
            )
        return msgspec.UNSET
    if tokens < 1:
        raise UsageError(
            f"{tokens} is out of range", where="--shard-tokens", allowed="1 or more", next_step="--shard-tokens 100000000"
        )
    return Shards(tokens=tokens, whole_documents=whole_documents)


def _check_choice(option: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        raise UsageError(
            f"{value!r} is not a value of {option}",
            where=option,
            allowed=", ".join(allowed),
            next_step=f"{option} {allowed[0]}",
        )
