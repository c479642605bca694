"""Small real records for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokmill.core.config import BudgetTerms, Content, Resources
from tokmill.core.records import Batch, Counts, Cursor, Input, Location, Tokenizer

MIB = 1 << 20


def a_tokenizer(**changes: object) -> Tokenizer:
    """GPT-2's, without looking at the file."""
    fields: dict[str, object] = dict(
        name="gpt2", kind="tiktoken", encoding="r50k_base", path="/nowhere", sha256="0" * 64, n_ids=50257, eot_id=50256
    )
    return Tokenizer(**(fields | changes))  # type: ignore[arg-type]


def a_content(**changes: object) -> Content:
    """Settings with one input that need not exist."""
    fields: dict[str, object] = dict(
        inputs=(Input(path="/corpus.txt", format="text", compression="none", size_bytes=10, mtime_ns=1),),
        tokenizer=a_tokenizer(),
    )
    return Content(**(fields | changes))  # type: ignore[arg-type]


def some_resources(**changes: object) -> Resources:
    """Resources of a small run."""
    fields: dict[str, object] = dict(
        budget_bytes=1024 * MIB,
        child_bytes=976 * MIB,
        terms=BudgetTerms(n_threads=2),
        batch_bytes=MIB,
        arena_bytes=32 * MIB,
        spare_bytes=256 * MIB,
        max_piece_bytes=16 * MIB,
        reset_above_bytes=800 * MIB,
    )
    return Resources(**(fields | changes))  # type: ignore[arg-type]


def a_batch(documents: Sequence[bytes], **changes: object) -> Batch:
    """A batch of whole documents that are known to be UTF-8."""
    fields: dict[str, object] = dict(
        index=0,
        documents=list(documents),
        raw=None,
        is_val=None,
        after=Cursor(input_index=1),
        locate=lambda i: Location(path="/corpus.txt", record=i + 1, offset=0),
        counts=Counts(documents=len(documents), bytes_in=sum(map(len, documents))),
        position_bytes=0,
    )
    return Batch(**(fields | changes))  # type: ignore[arg-type]


class ByteEncoder:
    """A real, tiny tokenizer: the id of a byte is its value. Counts its cache resets."""

    def __init__(self) -> None:
        self.n_resets = 0

    def encode(self, documents: Sequence[bytes], raw: memoryview | None = None) -> tuple[np.ndarray, np.ndarray]:
        ids = np.frombuffer(b"".join(documents), np.uint8).astype(np.uint32)
        return ids, np.cumsum([0, *map(len, documents)]).astype(np.int64)

    def decode(self, ids: np.ndarray) -> bytes:
        return ids.astype(np.uint8).tobytes()

    def reset_caches(self) -> None:
        self.n_resets += 1
