"""Sources and output as named in a command: patterns expanded, directories, files and URLs told apart."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tokmill.core.config import check_directory, local_path, path_text
from tokmill.core.errors import UsageError
from tokmill.core.manifest import MANIFEST_NAME, STATE_NAME
from tokmill.core.options import parse_stage_size
from tokmill.core.records import is_url, path_to_text
from tokmill.core.text import nearest
from tokmill.output import Place, destination, output_of, stage_of
from tokmill.store import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.core.system.tree import Directory


_Place = TypeVar("_Place", bound="Path | str")


@dataclass(frozen=True, slots=True)
class Target:
    """Where an output is to be."""

    name: Path | str
    """A directory, or the URL of a prefix in a store."""
    stage: str | None = None
    """Of a URL: where it is made before it is sent; None: in the usual place."""
    stage_bytes: int = 0
    """Of a URL: most bytes of complete shards that may wait there."""

    @property
    def is_remote(self) -> bool:
        """Whether it is a URL."""
        return isinstance(self.name, str)

    @property
    def directory(self) -> Directory:
        """Where it is made."""
        return output_of(stage_of(self.name, self.stage)) if isinstance(self.name, str) else self.name

    def place(self) -> Place:
        """Return the place of the output, a context. Raises UsageError, LockedError, StorageError."""
        return destination(str(self.name), self.stage)


def output_target(
    out: str | os.PathLike[str], stage: str | os.PathLike[str] | None = None, stage_size: str | int | None = None
) -> Target:
    """Return where an output is to be: a directory, or a URL. Raises UsageError."""
    name = path_text(out, "out")
    if not is_url(name):
        return Target(output_path(out))
    return Target(name, None if stage is None else local_path(stage, "stage"), parse_stage_size(stage_size))


def output_path(out: str | os.PathLike[str]) -> Path:
    """Return the output directory, absolute. Raises UsageError for an empty name, and where no directory can be."""
    if not path_text(out, "out"):
        raise UsageError("no output directory", option="--out", allowed="a directory", suggested="data")
    path = Path(local_path(out))
    check_directory(path, "--out", suggested="merged")
    return path


def named_paths(names: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the paths, absolute, of names and patterns (each in sorted order). Raises UsageError for what is not there."""
    listed = list(names) if isinstance(names, Iterable) and not isinstance(names, (str, bytes, os.PathLike)) else [names]
    texts = [path_text(name, "inputs") for name in listed]
    n_missing = sum(not os.path.lexists(text) for text in texts)
    return [path for text in texts for path in _matched(text, n_missing)]


def named_outputs(names: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path | str]:
    """Return complete outputs as `named_paths` does, and URLs as they are. Raises UsageError for a store that holds none."""
    listed = list(names) if isinstance(names, Iterable) and not isinstance(names, (str, bytes, os.PathLike)) else [names]
    if not any(is_url(path_text(name, "inputs")) for name in listed):
        return [*named_paths(names)]
    found: list[Path | str] = []
    for name in listed:
        text = path_text(name, "inputs")
        if not is_url(text):
            found += named_paths(name)
            continue
        if not text.startswith("s3://"):
            scheme = text.partition("://")[0]
            raise UsageError(
                f"complete outputs are not read from {scheme}://",
                where=f"{scheme}://",
                allowed="a directory, or s3:// with a bucket and a prefix",
                next_step="copy it to a directory, all of it",
            )
        found.append(text)
    return found


def one_each(names: Sequence[str | os.PathLike[str]], find: Callable[[str | os.PathLike[str]], list[_Place]]) -> list[_Place]:
    """Return the one output that each name means. find: `named_outputs` or `named_paths`. Raises UsageError for several."""
    found: list[_Place] = []
    for name in names:
        several = find(name)
        if len(several) > 1:
            raise UsageError(
                f"{len(several):,} names match this pattern",
                where=path_text(name, "inputs"),
                allowed="one output for each weight",
                next_step="name each of them, with a weight of its own",
            )
        found += several
    return found


def _matched(name: str, n_missing: int) -> list[Path]:
    """n_missing: of all names that were given."""
    local_path(name)
    found = [name] if os.path.lexists(name) else sorted(glob.glob(name)) if glob.has_magic(name) else []
    if not found:
        raise UsageError(
            "nothing matches this pattern" if glob.has_magic(name) else "there is no such file or directory",
            where=path_to_text(name),
            path=path_to_text(name) if n_missing == 1 else None,
            next_step=None if n_missing == 1 else "check each of the paths",
            allowed="directories that tokmill made; for convert also bare files of ids",
        )
    return [Path(os.path.abspath(each)) for each in found]


def named_output(name: str | os.PathLike[str], command: str) -> Path | str:
    """Return the directory or URL that a command takes. Raises UsageError for what is not there or no directory."""
    if is_url(path_text(name, "directory")):
        return named_outputs(name)[0]
    paths = named_paths(name)
    if len(paths) > 1 or not paths[0].is_dir():
        raise UsageError(
            f"{command} takes one directory" if len(paths) > 1 else "this is a file, not a directory that tokmill made",
            where=path_to_text(str(paths[0])),
            allowed="one complete output of tokmill",
            next_step=f"tokmill convert {_quoted(paths)} --format raw --from-format ... makes an output of bare files"
            if not paths[0].is_dir()
            else f"tokmill merge {_quoted(paths)} --out merged, then tokmill {command} merged",
        )
    return paths[0]


def is_directory(paths: Sequence[Path], stated: Sequence[str]) -> bool:
    """Return whether one complete output was named, not bare files. stated: options given that are for bare files.

    Raises UsageError for several directories, directories among files, and options that do not go with a directory.
    """
    directories = [path for path in paths if path.is_dir()]
    if not directories:
        return False
    where = path_to_text(str(directories[0]))
    if len(paths) > 1:
        rest = len(directories) == len(paths)
        raise UsageError(
            "convert takes one directory" if rest else "a directory among bare files",
            where=", ".join(path_to_text(str(path)) for path in directories[:2]),
            allowed="one directory that tokmill made, or bare files in order",
            next_step=f"tokmill merge {_quoted(paths)} --out merged, then tokmill convert merged"
            if rest
            else "convert the directory by itself, then: tokmill merge",
        )
    _check_manifest(directories[0], stated)
    if stated:
        raise UsageError(
            f"{', '.join(stated)}: for bare files only; a directory's manifest knows",
            where=where,
            allowed="--to-eot and --to-dtype change them",
            next_step="leave it out" if len(stated) == 1 else "leave them out",
        )
    return True


def refuse_with_url(named: Sequence[Path | str], stated: Sequence[str]) -> None:
    """Raise UsageError for what does not go with the URL among these names. stated: as of `is_directory`."""
    if len(named) == 1 and not stated:
        return
    url = next(redacted(each) for each in named if isinstance(each, str))
    raise UsageError(
        "a URL is a complete output" + (", and convert takes one" if len(named) > 1 else f"; {', '.join(stated)}: for bare files"),
        where=url,
        allowed="one complete output in a directory or a store, or bare files of this machine",
        next_step="copy bare files to this machine; join outputs with tokmill merge",
    )


def _check_manifest(directory: Path, stated: Sequence[str]) -> None:
    """Raise UsageError for a directory of bare files, unless it is an output that was begun: loading that says more."""
    train, val = (directory / f"{side}.bin" for side in ("train", "val"))
    is_pair = train.is_file() and not (directory / STATE_NAME).exists()
    if (directory / MANIFEST_NAME).exists() or not (stated or is_pair):
        return
    where = path_to_text(str(directory))
    words = f"'{where}/*.bin' {' '.join(f'{option} ...' for option in stated)}"
    if is_pair:
        files = f"{_quoted([train])} --val-input {_quoted([val])}" if val.is_file() and val.stat().st_size else _quoted([train])
        words = f"{files} --from-format raw --from-dtype uint16 --from-eot after --from-eot-id 50256 --format ... --out ..."
    raise UsageError(
        "this directory has no manifest: its files are bare",
        where=where,
        allowed="bare files, by name or as a quoted pattern" + (", and what is in them" if is_pair else ""),
        next_step=f"tokmill convert {words}",
    )


def _quoted(paths: Sequence[Path]) -> str:
    shown = " ".join(shlex.quote(path_to_text(str(path))) for path in paths[:3])
    return shown if len(paths) <= 3 else f"{shown} ..."


def check_apart(sources: Sequence[Path | str], out: Path | str) -> None:
    """Raise UsageError if the output is a source's directory or lies in one, or holds one; of URLs likewise."""
    for source in sources:
        if isinstance(source, str) or isinstance(out, str):
            _check_urls_apart(source, out)
            continue
        # A link in another directory may lead to the file that an output here would replace.
        around = {source} if source.is_dir() else {source.parent, source.resolve().parent}
        for directory in around:
            is_held, is_in = _is_within(directory, out), _is_within(out, directory)
            if is_held and is_in:
                what = "the output is one of the sources" if source.is_dir() else "the output is the directory of a source"
            elif is_held:
                what = "a source lies in the output"
            elif is_in and (source.is_dir() or (directory / MANIFEST_NAME).exists()):
                what = "the output lies in a source, which would then hold files that its manifest does not list"
            else:
                continue
            raise UsageError(
                what,
                where=f"{out}, and the source {source}",
                allowed="another directory, beside the sources",
                next_step=f"choose another --out, such as {directory}-new",
            )


def _check_urls_apart(source: Path | str, out: Path | str) -> None:
    ours, theirs = (f"{redacted(each).rstrip('/')}/" if isinstance(each, str) else "" for each in (out, source))
    if ours and theirs and (ours.startswith(theirs) or theirs.startswith(ours)):
        raise UsageError(
            "the output is one of the sources" if ours == theirs else "one of output and source lies in the other",
            where=f"{ours.rstrip('/')}, and the source {theirs.rstrip('/')}",
            allowed="another prefix, beside the sources",
            next_step=f"choose another --out, such as {theirs.rstrip('/')}-new",
        )


def _is_within(path: Path, directory: Path) -> bool:
    """Return whether a path is this directory or lies in it, if it exists."""
    real = path.resolve()
    return directory.is_dir() and any(p.exists() and os.path.samefile(p, directory) for p in (real, *real.parents))


def check_choice(option: str, value: str | None, allowed: Sequence[str]) -> None:
    """Raise UsageError for a value that an option does not take; None is always allowed."""
    if value is not None and value not in allowed:
        raise UsageError(
            f"{value!r} is not a value of {option}",
            option=option,
            allowed=", ".join(allowed),
            suggested=nearest(str(value), allowed),
        )
