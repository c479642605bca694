"""Encodes the corpus again and compares the ids with those written, for tokenizers whose ids do not give the text back.

A tokenizer that normalizes, marks words or has an unknown token cannot be compared by decoding (`check/compare.py`). So each batch
is encoded as in a run, and its ids must be the next ones of each side. It takes as long as the run did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokmill.encode import load_fastest
from tokmill.run import Auditor, EncodeStage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.core.config import Content
    from tokmill.core.records import Batch, Tokens
    from tokmill.dataset import IdReader


class ReencodedComparison:
    """A walk through the corpus and both sides of the output."""

    def __init__(self, content: Content, sides: Sequence[IdReader]) -> None:
        """Raise what `encode.load_fastest` raises."""
        self.documents = 0
        self.n_bytes = 0
        self.differences: list[tuple[str, str, int, int | None]] = []
        """File, what, begin and end in bytes, as `Findings.add` takes them."""
        encoder = load_fastest(content.tokenizer)
        # Nothing is audited, so no reference is loaded.
        self._stage = EncodeStage(content, encoder, Auditor(lambda: encoder, None, 0.0))
        self._sides = sides
        self._done = [0, 0]
        self._numbers = [0, 0]

    def compare(self, batch: Batch) -> bool:
        """Return whether the output has this batch next. Raise BadTextError or EngineError."""
        encoded = self._stage.run(batch)
        for run in encoded.runs:
            if not self._compare_run(run, batch):
                return False
            self._done[run.is_val] += len(run.ids)
            self._numbers[run.is_val] += len(run.ends)
            self.documents += len(run.ends)
        self.n_bytes += encoded.counts.bytes_text
        return True

    def finish(self) -> None:
        """Check that both sides end where the corpus does."""
        for side, done in zip(self._sides, self._done, strict=True):
            if len(side) > done:
                name, place = side.locate(done)
                self.differences.append((name, "the output continues after the end of the sources", place, None))

    def _compare_run(self, run: Tokens, batch: Batch) -> bool:
        side, begin, at = self._sides[run.is_val], self._done[run.is_val], 0
        while at < len(run.ids):
            written = side.read(begin + at, begin + len(run.ids))
            wrong = np.flatnonzero(written != run.ids[at : at + len(written)])
            if len(wrong) or not len(written):
                at += int(wrong[0]) if len(wrong) else 0
                break
            at += len(written)
        else:
            return True
        number = self._numbers[run.is_val] + int(np.searchsorted(run.ends, at, side="right")) + 1
        what = f"document {number:,}: the ids differ from those of the source (in what follows {batch.locate(0)})"
        name, place = side.locate(begin + at)
        self.differences.append((name, what, place, place + side.dtype.itemsize))
        return False
