"""Each format against the contract of writers, read back by numpy, struct, gzip and json alone."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import struct
from pathlib import Path

import numpy as np
from support.contracts import WriterContract
from support.oracle import EOT
from support.writing import GPT2, Sides, read_llmc

from tokmill.core.output_spec import OutputSpec, Shards


def split_after(ids: list[int]) -> list[list[int]]:
    ends = [i + 1 for i, token in enumerate(ids) if token == EOT]
    return [ids[a:b] for a, b in itertools.pairwise([0, *ends])]


def split_before(ids: list[int]) -> list[list[int]]:
    begins = [i for i, token in enumerate(ids) if token == EOT]
    return [ids[a:b] for a, b in itertools.pairwise([*begins, len(ids)])]


class TestRaw(WriterContract):
    spec = GPT2

    def read(self, directory: Path) -> Sides:
        sides = {side: np.fromfile(directory / f"{side}.bin", "<u2").tolist() for side in ("train", "val")}
        return {side: (ids, split_after(ids)) for side, ids in sides.items()}


class TestRawWithoutMarks(WriterContract):
    spec = OutputSpec(format="raw", dtype="uint32", eot="none", eot_id=EOT, tokenizer="gpt2")

    def read(self, directory: Path) -> Sides:
        return {side: (np.fromfile(directory / f"{side}.bin", "<u4").tolist(), None) for side in ("train", "val")}


class TestLlmc(WriterContract):
    spec = OutputSpec(format="llmc", dtype="uint16", eot="before", eot_id=EOT, tokenizer="gpt2", shards=Shards(tokens=11))

    def read(self, directory: Path) -> Sides:
        found = {side: read_llmc(sorted(directory.glob(f"{side}_*.bin")), 20240520, 1, "<u2") for side in ("train", "val")}
        return {side: (ids, split_before(ids)) for side, ids in found.items()}


class TestLlmcOfLargeVocabularies(WriterContract):
    spec = OutputSpec(format="llmc", dtype="uint32", eot="after", eot_id=EOT, tokenizer="gpt2", shards=Shards(tokens=10**6))

    def read(self, directory: Path) -> Sides:
        found = {side: read_llmc(sorted(directory.glob(f"{side}_*.bin")), 20240801, 7, "<u4") for side in ("train", "val")}
        return {side: (ids, split_after(ids)) for side, ids in found.items()}


def read_megatron(prefix: Path, code: int, dtype: str) -> tuple[list[int], list[list[int]]]:
    data = prefix.with_suffix(".idx").read_bytes()
    magic, version, found, n, n_indices = struct.unpack_from("<9sQBQQ", data)
    assert (magic, version, found, n_indices) == (b"MMIDIDX\0\0", 1, code, n + 1)
    assert len(data) == 42 + 20 * n
    lengths = np.frombuffer(data, "<i4", n, 34)
    pointers = np.frombuffer(data, "<i8", n, 34 + 4 * n)
    assert np.frombuffer(data, "<i8", n + 1, 34 + 12 * n).tolist() == list(range(n + 1))
    ids = np.fromfile(prefix.with_suffix(".bin"), dtype)
    item = ids.itemsize
    documents = [ids[p // item : p // item + length].tolist() for p, length in zip(pointers, lengths, strict=True)]
    return ids.tolist(), documents


class TestMegatron(WriterContract):
    spec = OutputSpec(format="megatron", dtype="uint16", eot="after", eot_id=EOT, tokenizer="gpt2")

    def read(self, directory: Path) -> Sides:
        return {side: read_megatron(directory / side, 8, "<u2") for side in ("train", "val")}


class TestMegatronOfLargeVocabularies(WriterContract):
    spec = OutputSpec(format="megatron", dtype="uint32", eot="before", eot_id=EOT, tokenizer="gpt2")

    def read(self, directory: Path) -> Sides:
        return {side: read_megatron(directory / side, 4, "<i4") for side in ("train", "val")}


class TestDatatrove(WriterContract):
    spec = OutputSpec(format="datatrove", dtype="uint16", eot="after", eot_id=EOT, tokenizer="gpt2")

    def read(self, directory: Path) -> Sides:
        found: Sides = {}
        for side in ("train", "val"):
            path = directory / side / "000000.ds"
            ids = np.fromfile(path, "<u2").tolist()
            ends = np.fromfile(f"{path}.index", "<u8").tolist()
            lines = Path(f"{path}.metadata").read_text().split("\n")
            assert lines[:2] == ["gpt2|2", str(len(ids))]
            found[side] = ids, [ids[a:b] for a, b in itertools.pairwise([0, *ends])]
        return found


class TestOlmo(WriterContract):
    spec = OutputSpec(format="olmo", dtype="uint16", eot="after", eot_id=EOT, tokenizer="gpt2")

    def read(self, directory: Path) -> Sides:
        found: Sides = {}
        for side in ("train", "val"):
            ids = np.memmap(directory / side / "part-0-00000.npy", "<u2", "r").tolist()
            text = gzip.decompress((directory / side / "part-0-00000.csv.gz").read_bytes()).decode()
            rows = list(csv.reader(io.StringIO(text)))
            assert [row[2:] for row in rows] == [[str(i), "", str(i + 1)] for i in range(len(rows))]
            found[side] = ids, [ids[int(row[0]) : int(row[1])] for row in rows]
        return found


class TestLitdata(WriterContract):
    spec = OutputSpec(format="litdata", dtype="uint16", eot="after", eot_id=EOT, tokenizer="gpt2", shards=Shards(tokens=13))

    def read(self, directory: Path) -> Sides:
        found: Sides = {}
        for side in ("train", "val"):
            index = json.loads((directory / side / "index.json").read_bytes())
            assert index["config"]["data_format"] == ["no_header_numpy:5"]
            ids: list[int] = []
            for chunk in index["chunks"]:
                data = (directory / side / chunk["filename"]).read_bytes()
                assert len(data) == chunk["chunk_bytes"]
                n = int(np.frombuffer(data, "<u4", 1)[0])
                begin, *_, end = np.frombuffer(data, "<u4", n + 1, 4).tolist()
                assert (n, end) == (chunk["chunk_size"], len(data))
                part = np.frombuffer(data[begin:end], "<u2").tolist()
                assert len(part) == chunk["dim"]
                ids += part
            found[side] = ids, split_after(ids)
        return found


class TestMds(WriterContract):
    spec = OutputSpec(format="mds", dtype="uint16", eot="after", eot_id=EOT, tokenizer="gpt2", shards=Shards(tokens=3 * 2048))

    def read(self, directory: Path) -> Sides:
        found: Sides = {}
        for side in ("train", "val"):
            index = json.loads((directory / side / "index.json").read_bytes())
            assert index["version"] == 2
            samples: list[list[int]] = []
            for shard in index["shards"]:
                assert shard["column_encodings"] == ["ndarray:uint16:2048"]
                data = (directory / side / shard["raw_data"]["basename"]).read_bytes()
                assert len(data) == shard["raw_data"]["bytes"]
                n = int(np.frombuffer(data, "<u4", 1)[0])
                assert n == shard["samples"]
                offsets = np.frombuffer(data, "<u4", n + 1, 4).tolist()
                samples += [np.frombuffer(data[a:b], "<u2").tolist() for a, b in itertools.pairwise(offsets)]
            assert {len(sample) for sample in samples} == {2048}
            padded = [token for sample in samples for token in sample]
            n_filling = next(i for i, token in enumerate(reversed(padded)) if token != EOT)
            # The last document's own end-of-text id is the first of those.
            ids = padded[: len(padded) - n_filling + 1]
            ids = padded[: len(padded) - self.filling[side]] if side in self.filling else ids
            found[side] = ids, split_after(ids)
        return found

    @property
    def filling(self) -> dict[str, int]:
        """End-of-text ids behind the last document, which itself may be nothing but one."""
        from support.writing import documents_of

        lengths = {side: sum(len(ids) for v, ids in documents_of(self.spec) if v == (side == "val")) for side in ("train", "val")}
        return {side: -n % 2048 for side, n in lengths.items()}
