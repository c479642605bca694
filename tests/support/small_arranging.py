"""Buckets, blocks and commits so small that a small corpus has many.

As a script the real command with them: `python small_arranging.py BUCKET_BYTES shuffle ...`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest
from support import small_run

from tokmill.derive import bucket_run, document_stream, packed_run, pieces, source as sources
from tokmill.derive.deduplication import copying, marking, scratch


@contextlib.contextmanager
def tiny(bucket_bytes: int = 400, block_tokens: int = 50, commit_bytes: int = 300) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_run, "_BUCKET_BYTES", bucket_bytes)
        patch.setattr(bucket_run, "PIECE_BYTES", 300)
        patch.setattr(bucket_run, "COMMIT_BYTES", commit_bytes)
        patch.setattr(bucket_run, "_SCATTERED_BYTES", commit_bytes)
        patch.setattr(bucket_run, "_SCATTERED_BYTES_EACH", 1)
        patch.setattr(document_stream, "BLOCK_TOKENS", block_tokens)
        patch.setattr(document_stream, "_MOST_DOCUMENTS", 7)
        patch.setattr(packed_run, "_MEASURED_BYTES", commit_bytes)
        patch.setattr(pieces, "BLOCK_TOKENS", block_tokens)
        patch.setattr(pieces, "MOST_PIECES", 7)
        patch.setattr(packed_run, "MOST_PIECES", 5)
        patch.setattr(sources, "BLOCK_TOKENS", block_tokens)
        patch.setattr(marking, "BUCKET_BYTES", 10 * bucket_bytes)
        patch.setattr(marking, "COMMIT_BYTES", commit_bytes)
        patch.setattr(copying, "COMMIT_BYTES", commit_bytes)
        patch.setattr(scratch, "_LEAST_PIECE", 1000)
        yield


if __name__ == "__main__":
    with tiny(int(sys.argv.pop(1)), block_tokens=2000, commit_bytes=20_000):
        small_run.main(16 << 10)
