"""Streams the ids of sources through a writer: any format into any other, any division into shards into any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.errors import DamageError, UsageError
from tokmill.core.manifest import SKIPPED_NAME
from tokmill.core.output_spec import SIDES
from tokmill.core.records import Tokens
from tokmill.core.text import counted
from tokmill.dataset import IdReader
from tokmill.derive.copy_bytes import copy_span
from tokmill.derive.source import extents_of
from tokmill.derive.token_stream import ShiftedIds, check_edge, narrowed
from tokmill.formats import make_writer, spec_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.config import Content
    from tokmill.core.records import FileEntry
    from tokmill.derive.source import Source
    from tokmill.output import Output


class WriterCarrier:
    """Appends the documents of sources in the format of the output. Implements `replay.Carrier`."""

    def __init__(self, output: Output, content: Content) -> None:
        """content: of the output."""
        self._output = output
        self._content = content
        self._writer = make_writer(output, output.segments[-1].writer if output.segments else {}, spec_of(content))
        self._sides: list[ShiftedIds] = []
        self._tokens = [0, 0]
        self._documents = [0, 0]
        self._n_skipped_bytes = 0

    def begin(self, source: Source, step: int, before: Sequence[Source]) -> int:  # noqa: ARG002  the contract's
        """See `replay.Carrier`."""
        content, where = source.content, str(source.directory)
        for side in SIDES:
            check_edge(ids_of(source, side), content.tokenizer.eot_id, content.eot, where, is_bare=source.is_bare)
        sides = [ids_of(source, side) for side in SIDES]
        self._sides = [ShiftedIds(ids, content.tokenizer.eot_id, content.eot, self._content.eot) for ids in sides]
        counts = source.steps[step - 1].counts if step else None
        self._tokens = [counts.tokens_train, counts.tokens_val] if counts else [0, 0]
        self._documents = [counts.documents_train, counts.documents_val] if counts else [0, 0]
        self._n_skipped_bytes = next((s.ends[SKIPPED_NAME] for s in reversed(source.steps[:step]) if SKIPPED_NAME in s.ends), 0)
        return sum(self._tokens) * source.item_bytes + self._n_skipped_bytes

    def carry(self, source: Source, step: int) -> int:
        """See `replay.Carrier`."""
        n_bytes = 0
        counts = source.steps[step].counts
        for is_val, end in enumerate((counts.tokens_train, counts.tokens_val)):
            for ids, ends in self._sides[is_val].blocks(self._tokens[is_val], end):
                fitting = narrowed(ids, self._content.dtype, str(source.directory))
                self._writer.append(Tokens(bool(is_val), fitting, ends))
                self._documents[is_val] += len(ends)
                n_bytes += ids.nbytes
            self._tokens[is_val] = end
        skipped = source.steps[step].ends.get(SKIPPED_NAME, 0)
        if skipped > self._n_skipped_bytes:
            n_bytes += copy_span(source.file(SKIPPED_NAME), self._n_skipped_bytes, skipped, self._output.file(SKIPPED_NAME))
            self._n_skipped_bytes = skipped
        return n_bytes

    def end(self, source: Source) -> None:
        """See `replay.Carrier`."""
        source.finish()
        counts = source.manifest.counts
        for found, expected, side in zip(self._documents, (counts.documents_train, counts.documents_val), SIDES, strict=True):
            if found != expected:
                raise DamageError(
                    f"a source is damaged: {counted(found, 'document')} by its end-of-text ids, {expected:,} by its manifest",
                    where=f"{source.directory}, side {side}",
                    allowed="as many documents as the manifest counts",
                    next_step="tokmill verify says what else is damaged; make that output again, then run this again with --fresh",
                )

    def state(self) -> dict[str, int]:
        """See `replay.Carrier`."""
        return self._writer.state()

    def finish(self) -> dict[str, FileEntry]:
        """See `replay.Carrier`."""
        self._writer.finish()
        if SKIPPED_NAME in self._output.names - set(self._output.completed()):
            self._output.file(SKIPPED_NAME)
            self._output.complete(SKIPPED_NAME)
        return dict(self._output.completed())


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
