"""The two ways in which documents of complete outputs get into another: bytes from file to file, or ids through a writer.

Both append sources to the output, one after the other, each step by step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.deduplication import REMOVED_NAME
from tokmill.core.errors import UsageError
from tokmill.core.manifest import SKIPPED_NAME
from tokmill.core.output_spec import SIDES
from tokmill.core.records import ITEM_BYTES, Counts, Tokens
from tokmill.core.skipping import list_state
from tokmill.dataset import IdReader, extents_of
from tokmill.derive.source import ShiftedIds, check_edge, narrowed
from tokmill.formats import make_writer, spec_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokmill.core.config import Content
    from tokmill.core.records import FileEntry
    from tokmill.derive.source import CheckedFile, Source
    from tokmill.output import GrowingFile, Output


class ByteCopier:
    """Appends the ids of each side to one file.

    For sources that are ids and nothing else. Bytes go from file to file in the kernel; they are read all the same, for the digests
    of the source and of the output. With one segment a commit the two are the same.
    """

    def __init__(self, output: Output, content: Content) -> None:
        """content: of the output."""
        self._output = output
        self._names = {side: f"{spec_of(content).prefix}{side}.bin" for side in SIDES}
        self._done: list[Source] = []
        self._step = 0
        self._offsets: dict[str, int] = {}
        for side in SIDES:
            output.file(self._names[side])

    def begin_source(self, source: Source, step: int, before: Sequence[Source]) -> int:
        """Begin a source at one of its steps; `before` it came others. Returns the bytes of the source before that step."""
        self._done = [*before, source]
        self._offsets = {}
        for earlier in source.steps[:step]:
            self._offsets |= earlier.ends
        return sum(self._offsets.values())

    def copy_step(self, source: Source, step: int) -> int:
        """Append one step. Returns its bytes. Raises DamageError, StorageError, DiskFullError."""
        n_bytes = 0
        for name, end in source.steps[step].ends.items():
            side = source.manifest.files[name].side
            target = self._output.file(self._names[side] if side else name)
            n_bytes += _copy_span(source.file(name), self._offsets.get(name, 0), end, target)
            self._offsets[name] = end
        self._step = step
        return n_bytes

    def end_source(self, source: Source) -> None:
        """Check a source whose steps are all copied. Raises DamageError."""
        source.finish()

    def state(self) -> dict[str, int]:
        """Return the state of a writer of the raw format that goes on from here."""
        *before, source = self._done
        step = source.steps[self._step]
        counts = sum((s.manifest.counts for s in before), step.counts)
        state: dict[str, int] = {}
        for side in SIDES:
            state |= {f"{side}_{key}": step.writer.get(f"{side}_{key}", 0) for key in ("open", "inside")}
            state |= {f"{side}_{key}": getattr(counts, f"{key}_{side}") for key in ("tokens", "documents")}
        return state | list_state(step.writer, sum(s.n_inputs for s in before))

    def finish(self) -> Mapping[str, FileEntry]:
        """Append what can be known only at the end. Returns the files, by name."""
        counts = sum((source.manifest.counts for source in self._done), Counts())
        for side in SIDES:
            self._output.file(self._names[side])
            tokens, documents = getattr(counts, f"tokens_{side}"), getattr(counts, f"documents_{side}")
            self._output.complete(self._names[side], side=side, tokens=tokens, documents=documents)
        return _complete_lists(self._output)


class TokenCopier:
    """Appends the documents of sources through a writer: from any format and shards into any other."""

    def __init__(self, output: Output, content: Content) -> None:
        """content: of the output."""
        self._output = output
        self._content = content
        self._writer = make_writer(output, output.segments[-1].writer if output.segments else {}, spec_of(content))
        self._sides: list[ShiftedIds] = []
        self._tokens = [0, 0]
        self._documents = [0, 0]
        is_left = content.origin and content.origin.deduplicated
        self._list_bytes = dict.fromkeys((SKIPPED_NAME, REMOVED_NAME) if is_left else (SKIPPED_NAME,), 0)
        """How many bytes were copied of each list of the source: skipped records, and removed documents."""
        self._n_inputs_before = 0
        self._listed: dict[str, int] = {}
        """State of the list of skipped records."""

    def begin_source(self, source: Source, step: int, before: Sequence[Source]) -> int:
        """See ByteCopier."""
        self._n_inputs_before = sum(s.n_inputs for s in before)
        content, where = source.content, str(source.directory)
        eot_id = content.tokenizer.eot_id
        self._sides = []
        for side in SIDES:
            check_edge(ids_of(source, side), eot_id, content.eot, where, is_bare=source.is_bare)
            self._sides.append(ShiftedIds(ids_of(source, side), eot_id, content.eot, self._content.eot))
        counts = source.steps[step - 1].counts if step else Counts()
        self._tokens = [counts.tokens_train, counts.tokens_val]
        self._documents = [counts.documents_train, counts.documents_val]
        for name in self._list_bytes:
            self._list_bytes[name] = next((s.ends[name] for s in reversed(source.steps[:step]) if name in s.ends), 0)
        return sum(self._tokens) * ITEM_BYTES[content.dtype] + sum(self._list_bytes.values())

    def copy_step(self, source: Source, step: int) -> int:
        """See ByteCopier."""
        n_bytes = 0
        counts = source.steps[step].counts
        for is_val, end in enumerate((counts.tokens_train, counts.tokens_val)):
            for ids, ends in self._sides[is_val].blocks(self._tokens[is_val], end):
                fitting = narrowed(ids, self._content.dtype, str(source.directory))
                self._writer.append(Tokens(bool(is_val), fitting, ends))
                self._documents[is_val] += len(ends)
                n_bytes += ids.nbytes
            self._tokens[is_val] = end
        self._listed = list_state(source.steps[step].writer, self._n_inputs_before)
        for name, begin in self._list_bytes.items():
            end = source.steps[step].ends.get(name, 0)
            if end > begin:
                n_bytes += _copy_span(source.file(name), begin, end, self._output.file(name))
                self._list_bytes[name] = end
        return n_bytes

    def end_source(self, source: Source) -> None:
        """See ByteCopier."""
        source.finish()
        counts = source.manifest.counts
        for found, expected, side in zip(self._documents, (counts.documents_train, counts.documents_val), SIDES, strict=True):
            if found != expected:
                raise source.count_error(side, found)

    def state(self) -> dict[str, int]:
        """See ByteCopier."""
        return self._writer.state() | self._listed

    def finish(self) -> Mapping[str, FileEntry]:
        """See ByteCopier."""
        self._writer.finish()
        return _complete_lists(self._output)


def ids_of(source: Source, side: str) -> IdReader:
    """Return the ids of a side, every byte of them checked. Raises UsageError for a source that does not have all of its ids."""
    ids = IdReader(side, extents_of(source.manifest, side), source.content.dtype, source.read_into)
    expected = getattr(source.manifest.counts, f"tokens_{side}")
    if len(ids) != expected:
        raise UsageError(
            f"it holds {len(ids):,} tokens of {side}, not all {expected:,} that were made: its last shard was dropped",
            where=str(source.directory),
            allowed="an output with all of its shards",
            next_step="tokenize again without --drop-tail",
        )
    return ids


def is_plain(source: Source) -> bool:
    """Return whether a source is ids and nothing else, all of them, in files that can be appended to each other."""
    manifest = source.manifest
    if source.content.format != "raw" or any(entry.side is None and name != SKIPPED_NAME for name, entry in manifest.files.items()):
        return False
    tokens = {side: sum(entry.tokens for entry in manifest.files.values() if entry.side == side) for side in SIDES}
    return all(tokens[side] == getattr(manifest.counts, f"tokens_{side}") for side in SIDES)


def _copy_span(source: CheckedFile, begin: int, end: int, target: GrowingFile) -> int:
    """Append bytes of a file to another. Returns how many. Raises DamageError, StorageError, DiskFullError."""
    for offset, block in source.blocks(begin, end):
        if source.fd >= 0:
            target.append_from(source.fd, offset, block)
        else:
            target.append(block)
    return end - begin


def _complete_lists(output: Output) -> Mapping[str, FileEntry]:
    """Complete the lists of what was skipped and removed, if there are some. Returns all files that are complete, by name."""
    for name in (SKIPPED_NAME, REMOVED_NAME):
        if name in output.names - set(output.completed()):
            output.file(name)
            output.complete(name)
    return output.completed()
