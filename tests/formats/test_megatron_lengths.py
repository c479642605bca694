"""Documents longer than an int32 in Megatron's index, beside others of the same batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokmill.core.output_spec import OutputSpec, TokenSlice
from tokmill.core.records import FileEntry
from tokmill.core.system.tree import beside
from tokmill.formats import megatron
from tokmill.output.directory import GrowingFile


class Files:
    """Implements `protocols.OutputFiles` in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.open: dict[str, GrowingFile] = {}

    def file(self, name: str, header_bytes: int = 0) -> GrowingFile:
        return self.open.setdefault(name, GrowingFile(beside(self.directory / name), 0, header_bytes))

    def complete(self, name: str, *, side: str | None = None, tokens: int = 0, documents: int = 0, header: bytes = b"") -> None:
        del side, tokens, documents
        if header:
            self.open[name].fill_header(header)
        self.open[name].close()

    def completed(self) -> dict[str, FileEntry]:
        return {}


def test_an_empty_document_beside_one_that_is_too_long_stays_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron, "_MOST_LENGTH", 5)
    spec = OutputSpec(format="megatron", dtype="uint16", eot="after", eot_id=0, tokenizer="gpt2")
    shard = megatron.MegatronShard(Files(tmp_path), spec, "train", 0)
    ends = np.array([0, 12, 12, 17, 22, 23], np.int64)
    shard.append(TokenSlice(np.arange(23, dtype=np.uint16), ends, 0, 0))
    shard.finish(23, 6, 0)
    index = (tmp_path / "train.idx").read_bytes()
    lengths = np.frombuffer(index, "<i4", 8, megatron.HEADER.size).tolist()
    assert lengths == [0, 5, 5, 2, 0, 5, 5, 1]
