"""Encodes the corpus again and compares the ids with those written, for tokenizers whose ids do not give the text back.

What normalizes, marks words or knows of unknown characters cannot be compared by decoding (`compare.py`). So each batch goes
through the stage that a run has, and its ids must be the next ones of each side. It is as slow as the run was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokmill.audit import Auditor
from tokmill.dataset import SIDES
from tokmill.encode import load_fastest
from tokmill.stage import EncodeStage

if TYPE_CHECKING:
    from pathlib import Path

    from tokmill.config import Content
    from tokmill.types import Batch, Tokens


class ReencodedComparison:
    """Walks through the corpus with both sides of the output."""

    def __init__(self, content: Content, directory: Path, files: dict[str, str]) -> None:
        """files: names by side. Raises as `encode.load_fastest`."""
        self.documents = 0
        self.n_bytes = 0
        self.differences: list[tuple[str, str, int, int | None]] = []
        """File, what, begin and end in bytes, as `Findings.add` takes them."""
        encoder = load_fastest(content.tokenizer)
        # Nothing is audited, so no reference is loaded.
        self._stage = EncodeStage(content, encoder, Auditor(lambda: encoder, None, 0.0))
        self._dtype = np.dtype(content.dtype).newbyteorder("<")
        self._names = [files[side] for side in SIDES]
        self._paths = [directory / name for name in self._names]
        self._done = [0, 0]
        self._numbers = [0, 0]

    def compare(self, batch: Batch) -> bool:
        """Whether the output goes on as this batch says. Raises BadTextError, EngineError."""
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
        """The corpus has ended: so must both sides."""
        for name, path, done in zip(self._names, self._paths, self._done, strict=True):
            place = done * self._dtype.itemsize
            if path.stat().st_size > place:
                self.differences.append((name, "the output goes on where the sources have ended", place, None))

    def _compare_run(self, run: Tokens, batch: Batch) -> bool:
        item_bytes, begin = self._dtype.itemsize, self._done[run.is_val]
        written = np.fromfile(self._paths[run.is_val], self._dtype, len(run.ids), offset=begin * item_bytes)
        if np.array_equal(written, run.ids):
            return True
        n = len(written)
        wrong = np.flatnonzero(written != run.ids[:n])
        at = int(wrong[0]) if len(wrong) else n
        number = self._numbers[run.is_val] + int(np.searchsorted(run.ends, at, side="right")) + 1
        what = f"document {number:,}: the ids differ from those of the source (in what follows {batch.locate(0)})"
        place = (begin + at) * item_bytes
        self.differences.append((self._names[run.is_val], what, place, place + item_bytes))
        return False
