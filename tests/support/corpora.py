"""Corpora for tests: text of many kinds by a seed, and files made of it."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SEP = "<|endoftext|>"
WORDS = (
    *(
        "the",
        "cat's",
        "mat,",
        "sat",
        "on",
        "1234",
        "hats\n\nnaïve",
        "café",
        "—",
        "“don't”",
        "",
        "spaces",
        "🤖👩\u200d👩\u200d👧",
        "WE'LL",
    ),
    "你好世界。これは日本語です、\ttabs",
)


def some_text(n_bytes: int, seed: int = 0) -> str:
    """Mixed text of about n_bytes bytes."""
    rng = random.Random(seed)
    parts: list[str] = []
    size = 0
    while size < n_bytes:
        parts.append(
            rng.choice(WORDS) + rng.choice([" ", " ", " ", "\n", "  ", ""]) + str(rng.randrange(10**6)) * (rng.random() < 0.1)
        )
        size += len(parts[-1].encode())
    return "".join(parts)


def some_documents(n: int, size: int, seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    return [some_text(rng.randrange(1, 2 * size), seed * 10_007 + i).encode() for i in range(n)]


THREE_CORPORA = [some_documents(20, 80, 1), [*some_documents(15, 80, 2), b""], some_documents(9, 300, 3)]
"""Documents of three inputs, for runs that are extended."""


def write_corpus(path: Path, documents: Sequence[str]) -> Path:
    """Write a text file of documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(SEP.join(documents).encode())
    return path


def write_every_kind(folder: Path, scale: int = 1) -> list[Path]:
    """Write files of every kind, with records that are skipped."""
    folder.mkdir()
    documents = [*some_documents(30 * scale, 300, 8), b"", b"\n", *some_documents(1, 6000, 9)]
    (folder / "a.txt").write_bytes(SEP.encode().join(documents) + SEP.encode())
    lines = [json.dumps({"text": d.decode()}) if i % 4 else "not JSON" for i, d in enumerate(some_documents(40 * scale, 300, 11))]
    (folder / "b.jsonl").write_text("\n".join(lines))
    (folder / "c.txt.gz").write_bytes(gzip.compress(SEP.encode().join(some_documents(9, 300, 12))))
    (folder / "d.txt").write_bytes(b"caf\xe9" + SEP.encode() + b"tiny")
    texts = [d.decode() if i % 5 else None for i, d in enumerate(some_documents(40 * scale, 200, 13))]
    pq.write_table(pa.table({"text": texts}), folder / "e.parquet", row_group_size=4)
    return sorted(folder.iterdir())


WITH_SKIPS: dict[str, Any] = {"on_error": "skip", "val_fraction": 0.3}
"""Options under which they are tokenized."""


def write_lines(folder: Path, *bad: int) -> Path:
    """Write 30 lines, some of them no JSON; the last ten are in the last of three parts."""
    path = folder / "a.jsonl"
    path.write_text("\n".join("no JSON no JSON no JSON" if i in bad else json.dumps({"text": f"text {i:07}"}) for i in range(30)))
    return path


def line_texts(*bad: int) -> list[bytes]:
    """Return the texts of those lines."""
    return [f"text {i:07}".encode() for i in range(30) if i not in bad]
