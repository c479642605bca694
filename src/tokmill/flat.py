"""Flat outputs one behind the other: what needs no writer, because the format is ids and nothing else.

Bytes go from file to file in the kernel; they are read all the same, for the digests of the source and of the output. With one
segment a commit the two are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.recorder import SKIPPED_NAME
from tokmill.types import FileEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.commit import Output
    from tokmill.sources import Source

_NAMES = {"train.bin": "train", "val.bin": "val"}


class FlatCarrier:
    """Appends the files of sources to those of the same name. Implements `replay.Carrier`."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._done: list[Source] = []
        self._step = 0
        self._offsets: dict[str, int] = {}
        for name in _NAMES:
            output.file(name)

    def begin(self, source: Source, step: int, before: Sequence[Source]) -> int:
        """See `replay.Carrier`."""
        self._done = [*before, source]
        self._step = step
        self._offsets = {}
        for earlier in source.steps[:step]:
            self._offsets |= earlier.ends
        for name, offset in self._offsets.items():
            source.file(name).start(offset)
        return sum(self._offsets.values())

    def carry(self, source: Source, step: int) -> int:
        """See `replay.Carrier`."""
        n_bytes = 0
        for name, end in source.steps[step].ends.items():
            begin = self._offsets.get(name, 0)
            file, part = source.file(name), self._output.file(name)
            for offset, block in file.blocks(begin, end):
                part.append_from(file.fd, offset, block)
            self._offsets[name] = end
            n_bytes += end - begin
        self._step = step
        return n_bytes

    def end(self, source: Source) -> None:
        """See `replay.Carrier`."""
        for name in source.manifest.files:
            source.file(name).finish()

    def state(self) -> dict[str, int]:
        """What the raw writer counts, added up."""
        *before, source = self._done
        states = [*(s.steps[-1].writer for s in before), source.steps[self._step].writer]
        return {key: sum(state.get(key, 0) for state in states) for key in sorted(set().union(*states))}

    def finish(self) -> dict[str, FileEntry]:
        """See `replay.Carrier`."""
        sums: dict[str, FileEntry] = {name: FileEntry(size_bytes=0, side=side) for name, side in _NAMES.items()}
        for name, entry in [item for source in self._done for item in source.manifest.files.items()]:
            so_far = sums.get(name, FileEntry(size_bytes=0))
            sums[name] = FileEntry(
                size_bytes=so_far.size_bytes + entry.size_bytes,
                side=so_far.side,
                tokens=so_far.tokens + entry.tokens,
                documents=so_far.documents + entry.documents,
            )
        return sums


def is_flat(source: Source) -> bool:
    """Whether a source is ids and nothing else, in one file a side."""
    known = {*_NAMES, SKIPPED_NAME}
    return source.content.format == "raw" and set(_NAMES) <= set(source.manifest.files) <= known
