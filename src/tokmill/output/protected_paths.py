"""Files that no other file may be written over: those of an output, and the corpus."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tokmill.core.manifest import MANIFEST_NAME, SKIPPED_NAME, STATE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

_OF_A_SIDE = re.compile(r"(train|val)(_\d+)?\.(bin|idx)")
"""Files of ids beside the manifest; other formats write into a directory for each side."""
_DEEPEST = 2
"""Directories between an output and its files at most, its own included."""


def why_protected(path: str | os.PathLike[str], outputs: Iterable[Path] = (), inputs: Iterable[str] = ()) -> str | None:
    """Return what a path is that must not be written to, in words; None if it is neither of an output nor an input.

    Args:
        path: Links are followed.
        outputs: Directories that are, or will be, outputs; so is a directory above the path that looks like one.
        inputs: Files, as `open` takes them.
    """
    real = Path(os.path.realpath(path))
    above = [p for p in list(real.parents)[:_DEEPEST] if (p / MANIFEST_NAME).exists() or (p / STATE_NAME).is_dir()]
    if STATE_NAME in real.parts or any(_is_of_output(real, each) for each in [*above, *outputs]):
        return "a part of an output of tokmill"
    return "an input" if any(_is_same(real, each) for each in inputs) else None


def _is_of_output(real: Path, output: Path) -> bool:
    try:
        parts = real.relative_to(os.path.realpath(output)).parts
    except ValueError:
        return False
    first = parts[0] if parts else ""
    if len(parts) > 1:
        return first in {"train", "val"}
    return first in {MANIFEST_NAME, SKIPPED_NAME, ""} or _OF_A_SIDE.fullmatch(first) is not None


def _is_same(real: Path, path: str) -> bool:
    try:
        return os.path.samefile(real, path)
    except (OSError, ValueError):
        return False
