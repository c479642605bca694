"""What tokmill itself wrote: no input where a directory or pattern merely contains it. Its content tells, not its name."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from tokmill.core.manifest import BESIDE, MANIFEST_NAME, SKIPPED_NAME, listed_files
from tokmill.core.records import path_to_text
from tokmill.core.text import counted

_HEAD_BYTES = 256
_MANIFEST_HEAD = re.compile(rb'\{\s*"format_version":\s*\d+,\s*"tokmill_version":\s*"')
_MOST_NAMED = 3


class OwnFiles:
    """The files of outputs, and a count of those that were met."""

    def __init__(self) -> None:
        self.met: dict[str, int] = {}
        """Number of files by output, in the form of `path_to_text`."""
        self._written: dict[str, frozenset[str]] = {}

    @property
    def n_files(self) -> int:
        """How many files were met."""
        return sum(self.met.values())

    def has(self, path: str) -> bool:
        """Return whether a file belongs to an output, and count it if so."""
        directory, name = os.path.split(path)
        output = self._output(directory, name)
        if output is not None:
            shown = path_to_text(output)
            self.met[shown] = self.met.get(shown, 0) + 1
        return output is not None

    def notices(self) -> list[str]:
        """Return what to say of the files that were passed over."""
        if not self.met:
            return []
        named = list(self.met)[:_MOST_NAMED]
        others = f" and {counted(len(self.met) - len(named), 'other')}" if len(self.met) > len(named) else ""
        n_files = counted(self.n_files, "file")
        return [f"passed over {n_files} that tokmill wrote, of {counted(len(self.met), 'output')}: {', '.join(named)}{others}"]

    def _output(self, directory: str, name: str) -> str | None:
        """Return the directory of the output that has a file of this name in `directory`."""
        if name in self._names(directory):
            return directory or "."
        above, side = os.path.split(os.path.abspath(directory))
        return above if side in {"train", "val"} and f"{side}/{name}" in self._names(above) else None

    def _names(self, directory: str) -> frozenset[str]:
        if directory not in self._written:
            self._written[directory] = _written_in(Path(directory))
        return self._written[directory]


def _written_in(directory: Path) -> frozenset[str]:
    """Return the names of what tokmill wrote in a directory; none without a manifest of tokmill."""
    path = directory / MANIFEST_NAME
    with suppress(OSError):
        # Links and pipes are not followed: tokmill makes none.
        if path.is_symlink() or not path.is_file():
            return frozenset()
        with path.open("rb") as file:
            if not _MANIFEST_HEAD.match(file.read(_HEAD_BYTES)):
                return frozenset()
    return frozenset({MANIFEST_NAME, SKIPPED_NAME, *BESIDE, *listed_files(directory)})
