"""Where the validation side ends (`--val-tokens`) and where the output does (`--max-tokens`).

Both follow from the tokens of all documents before, in the order of the corpus, so only whoever has that order can say: workers
encode ahead, and leave the order of the documents of both sides as it is. What they made for a validation side that is full is put
on the training side here, and what lies after the end is left out. So no document is encoded twice, and a pipe will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tokmill.core.records import Counts, Skip, Tokens
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tokmill.core.config import Content
    from tokmill.core.manifest import Manifest
    from tokmill.core.records import Cursor, EncodedBatch
    from tokmill.run.segment_writer import SegmentWriter

_OF_AUDIT = ("audited_documents", "audited_bytes")
_MUCH_MORE = 1.5


def has_limits(content: Content) -> bool:
    """Return whether what becomes of a document depends on how many tokens lie before it."""
    return bool(content.val_tokens or content.max_tokens)


class TokenLimits:
    """The limits of an output, from some place in the corpus on."""

    def __init__(self, content: Content, counts: Counts, cursor: Cursor) -> None:
        """counts, cursor: of that place."""
        self._most_val, self._most = content.val_tokens or None, content.max_tokens or None
        self._n_val, self._n = counts.tokens_val, counts.tokens_train + counts.tokens_val
        # Only a document for training is ever divided where there are limits.
        is_between = cursor.document_offset is None or cursor.begins
        self.is_val_full = self._most_val is not None and self._n_val >= self._most_val
        """Whether no further document is for validation."""
        self.is_reached = self._most is not None and self._n >= self._most and is_between
        """Whether no further document is taken."""

    @property
    def n_left(self) -> int | None:
        """How many ids the output has room for; None: any number."""
        return None if self._most is None else self._most - self._n

    def applied(self, encoded: EncodedBatch) -> tuple[EncodedBatch, bool]:
        """Return what is left of the next batch, whose runs are in the order of the corpus, and whether it is the last.

        Of its counts, those of documents and tokens of each side are right if it was cut.
        """
        if self._most_val is None and self._most is None:
            return encoded, False
        runs = list(self._runs(encoded.runs))
        sums = {
            f"{unit}_{side}": sum(len(getattr(run, field)) for run in runs if run.is_val == is_val)
            for side, is_val in (("train", False), ("val", True))
            for unit, field in (("documents", "ends"), ("tokens", "ids"))
        }
        limited = msgspec.structs.replace(encoded, runs=runs, counts=msgspec.structs.replace(encoded.counts, **sums))
        return limited, self.is_reached

    def _runs(self, runs: Sequence[Tokens]) -> Iterator[Tokens]:
        for run in runs:
            for part in self._sides(run):
                at = self._end(part, self._most, self._n)
                taken = part if at is None else _divided(part, at)[0]
                self._n += len(taken.ids)
                yield taken
                if at is not None:
                    self.is_reached = True
                    return

    def _sides(self, run: Tokens) -> Iterator[Tokens]:
        """Yield a run, or the part of it that is for validation and the rest."""
        if run.is_val and not self.is_val_full:
            at = self._end(run, self._most_val, self._n_val)
            taken, rest = (run, None) if at is None else _divided(run, at)
            self.is_val_full = at is not None
            self._n_val += len(taken.ids)
            yield taken
            if rest is None or not (len(rest.ids) or len(rest.ends)):
                return
            run = rest
        yield run if not run.is_val or not self.is_val_full else Tokens(False, run.ids, run.ends)

    def _end(self, run: Tokens, most: int | None, n_before: int) -> int | None:
        """Return how many documents end in a run until there are `most` tokens, the last of them included; None: too few do."""
        if most is None or not len(run.ends) or n_before + int(run.ends[-1]) < most:
            return None
        return int(np.searchsorted(run.ends, most - n_before)) + 1


def _divided(run: Tokens, n_documents: int) -> tuple[Tokens, Tokens]:
    """Return a run up to the end of a document, and the rest."""
    at = int(run.ends[n_documents - 1])
    before = Tokens(run.is_val, run.ids[:at], run.ends[:n_documents])
    return before, Tokens(run.is_val, run.ids[at:], run.ends[n_documents:] - at)


class LastPlace:
    """The last place in the corpus that a cursor names, from which a batch is read again to see where a document in it ends."""

    def __init__(self, writer: SegmentWriter) -> None:
        """writer: takes the batches; it is at such a place."""
        self._writer = writer
        self.update()

    def update(self) -> None:
        """A batch was written: if a cursor names its end, that is the place."""
        if self._writer.is_at_cursor:
            self.cursor, self._counts = self._writer.reached, self._writer.counts
            self._n_documents = self._n_skipped = 0

    def add(self, encoded: EncodedBatch) -> None:
        """A batch is written."""
        self._n_documents += _n_documents(encoded.counts)
        self._n_skipped += sum(skip.n_records for skip in encoded.skips)

    def ended(self, encoded: EncodedBatch, records: Iterable[EncodedBatch]) -> EncodedBatch | None:
        """Return the last batch, whose runs were cut, with cursor, skips and counts up to there, and none of what follows.

        records: from the last place on, each by itself. Returns None if they end before: nobody reads any more.
        """
        n_wanted, found, skips, done = self._n_documents + _n_documents(encoded.counts), Counts(), list[Skip](), self._writer.counts
        for record in records:
            found += record.counts
            skips += record.skips
            if _n_documents(found) < n_wanted:
                continue
            total = self._counts + found
            sums = {
                name: getattr(total, name) - getattr(done, name)
                for name in Counts.__struct_fields__
                if name not in ("skipped", *_OF_AUDIT) and not name.endswith(("_train", "_val"))
            }
            skipped = {reason: n - done.skipped.get(reason, 0) for reason, n in total.skipped.items()}
            counts = msgspec.structs.replace(encoded.counts, skipped={reason: n for reason, n in skipped.items() if n}, **sums)
            return msgspec.structs.replace(
                encoded,
                counts=counts,
                skips=_without_first(skips, self._n_skipped),
                after=record.after,
                position_bytes=record.position_bytes,
            )
        return None


def _n_documents(counts: Counts) -> int:
    return counts.documents_train + counts.documents_val


def _without_first(skips: Sequence[Skip], n_records: int) -> list[Skip]:
    """Return skips without the first records. Each is of one record."""
    return list(skips[n_records:])


def cut_notices(manifest: Manifest) -> list[str]:
    """Return what to say of an output that ends before its corpus does."""
    most, n_tokens = manifest.content.max_tokens, manifest.counts.tokens_train + manifest.counts.tokens_val
    if not manifest.cut_short or not most:
        return []
    long = f", {n_tokens:,} tokens, for the last one is long" if n_tokens > _MUCH_MORE * most else ""
    return [
        f"ended with the document that reached {counted(most, 'token')} (--max-tokens){long}; the rest of the corpus was not read"
    ]
