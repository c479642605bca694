"""Flat outputs one behind the other: what needs no writer, because the format is ids and nothing else.

Bytes go from file to file in the kernel; they are read all the same, for the digests of the source and of the output. With one
segment a commit the two are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.manifest import SKIPPED_NAME
from tokmill.core.output_spec import SIDES
from tokmill.core.records import Counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.records import FileEntry
    from tokmill.derive.source import CheckedFile, Source
    from tokmill.output import GrowingFile, Output


class FlatCarrier:
    """Appends the ids of each side to one file. Implements `replay.Carrier`."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._done: list[Source] = []
        self._step = 0
        self._offsets: dict[str, int] = {}
        for side in SIDES:
            output.file(f"{side}.bin")

    def begin(self, source: Source, step: int, before: Sequence[Source]) -> int:
        """See `replay.Carrier`."""
        self._done = [*before, source]
        self._offsets = {}
        for earlier in source.steps[:step]:
            self._offsets |= earlier.ends
        return sum(self._offsets.values())

    def carry(self, source: Source, step: int) -> int:
        """See `replay.Carrier`."""
        n_bytes = 0
        for name, end in source.steps[step].ends.items():
            side = source.manifest.files[name].side
            target = self._output.file(f"{side}.bin" if side else name)
            n_bytes += copy_span(source.file(name), self._offsets.get(name, 0), end, target)
            self._offsets[name] = end
        self._step = step
        return n_bytes

    def end(self, source: Source) -> None:
        """See `replay.Carrier`."""
        source.finish()

    def state(self) -> dict[str, int]:
        """What a writer of the raw format would say that goes on from here."""
        *before, source = self._done
        step = source.steps[self._step]
        counts = sum((s.manifest.counts for s in before), step.counts)
        state: dict[str, int] = {}
        for side in SIDES:
            state |= {f"{side}_{key}": step.writer.get(f"{side}_{key}", 0) for key in ("open", "inside")}
            state |= {f"{side}_{key}": getattr(counts, f"{key}_{side}") for key in ("tokens", "documents")}
        return state

    def finish(self) -> dict[str, FileEntry]:
        """See `replay.Carrier`."""
        counts = sum((source.manifest.counts for source in self._done), Counts())
        for side in SIDES:
            self._output.file(f"{side}.bin")
            tokens, documents = getattr(counts, f"tokens_{side}"), getattr(counts, f"documents_{side}")
            self._output.complete(f"{side}.bin", side=side, tokens=tokens, documents=documents)
        if SKIPPED_NAME in self._output.names:
            self._output.file(SKIPPED_NAME)
            self._output.complete(SKIPPED_NAME)
        return dict(self._output.completed())


def copy_span(source: CheckedFile, begin: int, end: int, target: GrowingFile) -> int:
    """Append a stretch of a file to another. Returns its bytes. Raises DamageError, StorageError, DiskFullError."""
    for offset, block in source.blocks(begin, end):
        target.append_from(source.fd, offset, block)
    return end - begin


def is_flat(source: Source) -> bool:
    """Whether a source is ids and nothing else, all of them, in files that can be put one behind the other."""
    manifest = source.manifest
    if source.content.format != "raw" or any(entry.side is None and name != SKIPPED_NAME for name, entry in manifest.files.items()):
        return False
    tokens = {side: sum(entry.tokens for entry in manifest.files.values() if entry.side == side) for side in SIDES}
    return all(tokens[side] == getattr(manifest.counts, f"tokens_{side}") for side in SIDES)
