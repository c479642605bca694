"""The files that hold ids: of a complete output, by its manifest and format, or bare, by their headers."""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokmill.core.config import path_text
from tokmill.core.errors import DamageError, TokmillError, UsageError
from tokmill.core.manifest import MANIFEST_NAME
from tokmill.core.records import is_url
from tokmill.core.text import counted
from tokmill.formats import FORMATS
from tokmill.output import located, replaced_error
from tokmill.store import redacted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokmill.core.manifest import Manifest
    from tokmill.core.records import IdType
    from tokmill.formats import FormatSpec

_REBUILD = "tokmill verify DIR --repair makes it whole from the corpus; tokmill tokenize ... --fresh makes it again"

_RESTATE = "check --from-format and --from-dtype, or make the file again"

_NPY = b"\x93NUMPY"
_MAGIC_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Ids that lie one after the other in a file."""

    name: str = ""
    """Name of the file in the manifest; empty for a bare file."""
    header_bytes: int
    """Before the first id."""
    n_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile(Extent):
    """One file of ids on this machine."""

    path: Path


def read_header(path: Path) -> tuple[FormatSpec, IdType, int] | None:
    """Return the format whose header a file begins with, and type and number of ids that it announces; None if there is none."""
    for spec in FORMATS.values():
        if spec.parse_header is not None:
            with path.open("rb") as file:
                announced = spec.parse_header(file.read(spec.header_bytes))
            if announced is not None:
                return spec, *announced
    return None


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """The header that numpy.save writes before an array."""

    dtype: str
    """numpy's name: `uint16`, `int64`; big-endian `>u2`."""
    n_ids: int
    size_bytes: int


def read_npy_header(path: Path) -> NpyHeader | None:
    """Return the header of numpy.save; None if there is none. Raises UsageError if it is not of a list of ids."""
    with path.open("rb") as file:
        if file.read(len(_NPY)) != _NPY:
            return None
        file.seek(0)
        try:
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read[np.lib.format.read_magic(file)](file)
        except (ValueError, KeyError) as error:
            raise _no_ids(path, f"it begins like a file of numpy.save, but its header cannot be read: {error}") from None
        if len(shape) != 1 or dtype.kind not in "iu":
            raise _no_ids(path, f"it is a file of numpy.save, of shape {shape} and type {dtype}")
        plain = dtype.name if dtype.itemsize == 1 or dtype.newbyteorder("<") == dtype else dtype.str
        return NpyHeader(plain, shape[0], file.tell())


def _no_ids(path: Path, what: str) -> UsageError:
    return UsageError(
        what,
        where=str(path),
        allowed="one dimension of uint16 or uint32",
        next_step="write the ids again: ids.ravel().astype(np.uint16).tofile(path)",
    )


def refuse_index(path: Path) -> None:
    """Raise UsageError for a file of a format that holds an index or the like instead of ids."""
    with path.open("rb") as file:
        begin = file.read(_MAGIC_BYTES)
    is_index = any(spec.index_magic and begin.startswith(spec.index_magic) for spec in FORMATS.values())
    suffixes = (MANIFEST_NAME, *(suffix for spec in FORMATS.values() for suffix in spec.index_suffixes))
    if is_index or path.name.endswith(suffixes):
        ids = f"the file of ids beside it, {path.with_suffix('.bin').name}" if is_index else "the files of ids beside it"
        raise UsageError(
            "this file is the index, not the ids",
            where=str(path),
            allowed=f"the directory, or {ids}",
            next_step=f"give {path.parent}, or {ids}",
        )


def extents_of(manifest: Manifest, side: str) -> list[Extent]:
    """Return where the ids of a side lie, in order: in every format one after the other, after the header of a file."""
    return [
        Extent(name=name, header_bytes=entry.header_bytes, n_tokens=entry.tokens)
        for name, entry in manifest.files.items()
        if entry.side == side
    ]


def files_of(directory: Path, manifest: Manifest) -> dict[str, tuple[TokenFile, ...]]:
    """Return the files that hold the ids of each side, in the order of the manifest.

    Raises DamageError for files of the wrong length or with another header.
    """
    content = manifest.content
    spec = FORMATS[content.format]
    files: dict[str, list[TokenFile]] = {}
    for name, entry in manifest.files.items():
        if entry.side is not None and name.endswith(spec.suffix):
            path = located(directory, manifest, name)
            check_size(path, entry.size_bytes)
            if spec.lists_files:
                file = TokenFile(path=path, header_bytes=entry.header_bytes, n_tokens=entry.tokens, name=name)
            else:
                file = replace(_checked(path, spec.header_bytes, content.dtype, entry.tokens, _REBUILD), name=name)
            files.setdefault(entry.side, []).append(file)
    return {side: tuple(each) for side, each in files.items()}


def files_again(
    directory: Path, then: Manifest, files: Mapping[str, Sequence[TokenFile]], now: Manifest
) -> dict[str, tuple[TokenFile, ...]]:
    """Return the files of an output that was opened before, perhaps before something was appended.

    Raises ChangedError if the output is another one, whose ids do not begin with the same ones at the same places.
    """
    if now.checksum == then.checksum:
        return files_of(directory, now)
    appended = any(p.how == "append" and p.fingerprint == then.fingerprint for p in now.made_from or ())
    if not appended or FORMATS[then.content.format].lists_files:
        raise replaced_error(directory)
    return {side: tuple(replace(file, path=directory / file.name) for file in files[side]) for side in files}


def bare_file(path: Path, dtype: IdType, spec: FormatSpec | None = None) -> TokenFile:
    """Return a file that no manifest describes. spec: the format that was stated; None: a header of llm.c, or none.

    Raises UsageError if dtype or stated format are not those of the file; DamageError for a length that fits neither its header nor
    its ids, if no format was stated.
    """
    npy = read_npy_header(path)
    if npy is not None:
        _check_npy(npy, dtype, path, "--dtype" if spec is None else "--from-dtype")
        return TokenFile(path=path, header_bytes=npy.size_bytes, n_tokens=npy.n_ids)
    header = read_header(path) if spec is None else None
    wrong = DamageError if spec is None else UsageError
    next_step = "give the other dtype, or make the file again" if spec is None else _RESTATE
    header_bytes = spec.header_bytes if spec else header[0].header_bytes if header else 0
    return _checked(path, header_bytes, dtype, None, next_step, wrong)


def _check_npy(header: NpyHeader, dtype: IdType, path: Path, option: str) -> None:
    """Raise UsageError unless a header of numpy.save says this type (int32 is uint32: no id is negative) and the file's length."""
    usual = "uint32" if header.dtype == "int32" else header.dtype
    if usual != dtype:
        raise UsageError(
            f"it is a file of numpy.save, whose header says {header.dtype}, not {dtype}",
            where=str(path),
            allowed="uint16, uint32 or int32, as the header says",
            next_step=f"{option} {usual}"
            if usual in ("uint16", "uint32")
            else f"write the ids again: np.load({path.name!r}).astype(np.{dtype}).tofile(path)",
        )
    room, size_bytes = header.n_ids * np.dtype(dtype).itemsize + header.size_bytes, path.stat().st_size
    if room != size_bytes:
        raise DamageError(
            f"its header says {counted(header.n_ids, 'id')}, its length is another",
            where=str(path),
            allowed=f"{counted(room, 'byte')}; it has {size_bytes:,}",
            next_step="make the file again",
        )


def check_size(path: Path, size_bytes: int | None) -> None:
    """Raise UsageError or DamageError unless `path` is a regular file, of `size_bytes` bytes if that is not None."""
    try:
        found = path.stat()
    except OSError as error:
        if size_bytes is None:
            raise UsageError(
                f"cannot open it: {error.strerror}",
                path=str(path),
                allowed="a directory made by tokmill, or a file of ids",
            ) from None
        raise DamageError(
            f"a file of the output cannot be opened: {error.strerror}",
            where=str(path),
            allowed="every file that the manifest names",
            next_step=_REBUILD,
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise UsageError("it is not a regular file", path=str(path), allowed="a file of ids")
    if size_bytes is not None and found.st_size != size_bytes:
        raise DamageError(
            "a file of the output is not as long as it was written",
            where=str(path),
            allowed=f"{counted(size_bytes, 'byte')}, as in the manifest; it has {found.st_size:,}",
            next_step=_REBUILD,
        )


def _checked(
    path: Path, header_bytes: int, dtype: IdType, announced: int | None, next_step: str, wrong: type[TokmillError] = DamageError
) -> TokenFile:
    """Return a file. Raises `wrong` unless its length, its header and the ids announced by the manifest, if any, agree."""
    size_bytes, item_bytes = path.stat().st_size, np.dtype(dtype).itemsize
    n_tokens, remainder = divmod(size_bytes - header_bytes, item_bytes)
    if remainder or n_tokens < 0:
        raise wrong(
            f"the file is not a whole number of {dtype} ids",
            where=str(path),
            allowed=f"{f'{header_bytes:,} and ' if header_bytes else ''}a multiple of {item_bytes} bytes; it has {size_bytes:,}",
            next_step=next_step,
        )
    found = read_header(path) if header_bytes else None
    announced = announced if announced is not None else found[2] if found else n_tokens
    header = found[1:] if found else None if header_bytes else (dtype, n_tokens)
    if header != (dtype, announced) or announced != n_tokens:
        in_header = f", its header says {header[1]:,} of {header[0]}" if header else ", its header is of no known format"
        raise wrong(
            "the file does not hold the ids that it should",
            where=str(path),
            allowed=f"{announced:,} ids of {dtype}; its length makes room for {n_tokens:,}{in_header if header_bytes else ''}",
            next_step=next_step,
        )
    return TokenFile(path=path, header_bytes=header_bytes, n_tokens=n_tokens)


def local_file(path: str | Path) -> Path:
    """Return a path. Raises UsageError for a URL."""
    if is_url(path_text(path, "path")):
        url = redacted(str(path))
        raise UsageError(
            "ids are read from files that this machine can map, not from a store",
            where=url,
            allowed="a directory; tokmill.verify and tokmill.inspect read a store's outputs",
            next_step=f"copy it first, manifest.json last: aws s3 sync {url} DIR",
        )
    return Path(path)


def refuse_options(directory: Path | str, *options: object) -> None:
    """Raise UsageError for options that a manifest makes needless."""
    if any(option is not None for option in options):
        raise UsageError(
            "dtype and eot_id are for bare files: a directory's manifest has them",
            where=str(directory),
            allowed="the directory alone",
            next_step="leave them out",
        )
