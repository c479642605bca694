"""Every format gives the documents that a plain parser gives, for every batch and from every cursor."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
from support.contracts import ReaderContract
from support.reading import write

from tokmill.core.records import Input
from tokmill.read.inputs import find_inputs


def found(path: Path) -> tuple[Input, ...]:
    return find_inputs([str(path)], glob=None, input_format=None).inputs


class TestText(ReaderContract):
    def write(self, directory: Path, rows: list[str]) -> tuple[Input, ...]:
        return write(directory, {"a.txt": "<|endoftext|>".join(rows).encode()})

    def plain(self, inputs: tuple[Input, ...]) -> list[bytes]:
        return Path(inputs[0].path).read_bytes().split(b"<|endoftext|>")


class TestJsonl(ReaderContract):
    def write(self, directory: Path, rows: list[str]) -> tuple[Input, ...]:
        return write(directory, {"a.jsonl": "".join(json.dumps({"id": i, "text": r}) + "\n" for i, r in enumerate(rows)).encode()})

    def plain(self, inputs: tuple[Input, ...]) -> list[bytes]:
        return [json.loads(line)["text"].encode() for line in Path(inputs[0].path).read_bytes().splitlines()]


class TestCsv(ReaderContract):
    delimiter = ","
    suffix = ".csv"

    def write(self, directory: Path, rows: list[str]) -> tuple[Input, ...]:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=self.delimiter)
        writer.writerow(["id", "text", "a note"])
        writer.writerows([i, row, "x\ny"] for i, row in enumerate(rows))
        return write(directory, {"a" + self.suffix: text.getvalue().encode()})

    def plain(self, inputs: tuple[Input, ...]) -> list[bytes]:
        with open(inputs[0].path, newline="", encoding="utf-8") as file:
            return [row["text"].encode() for row in csv.DictReader(file, delimiter=self.delimiter)]


class TestTsv(TestCsv):
    delimiter = "\t"
    suffix = ".tsv"


class TestParquet(ReaderContract):
    def write(self, directory: Path, rows: list[str]) -> tuple[Input, ...]:
        table = pa.table({"id": pa.array(range(len(rows)), pa.int64()), "text": pa.array(rows, pa.string())})
        pq.write_table(table, directory / "a.parquet", row_group_size=7, data_page_size=100)
        return found(directory / "a.parquet")

    def plain(self, inputs: tuple[Input, ...]) -> list[bytes]:
        return [text.encode() for text in pq.read_table(inputs[0].path)["text"].to_pylist()]


class TestArrowFile(ReaderContract):
    def write(self, directory: Path, rows: list[str]) -> tuple[Input, ...]:
        table = pa.table({"id": pa.array(range(len(rows)), pa.int64()), "text": pa.array(rows, pa.large_string())})
        pyarrow.feather.write_feather(table, str(directory / "a.feather"), chunksize=7)
        return found(directory / "a.feather")

    def plain(self, inputs: tuple[Input, ...]) -> list[bytes]:
        return [text.encode() for text in pyarrow.feather.read_table(inputs[0].path)["text"].to_pylist()]


class TestArrowStream(ReaderContract):
    def write(self, directory: Path, rows: list[str]) -> tuple[Input, ...]:
        table = pa.table({"text": pa.array(rows, pa.string())})
        with pa.ipc.new_stream(str(directory / "a.arrows"), table.schema) as stream:
            stream.write_table(table, max_chunksize=7)
        return found(directory / "a.arrows")

    def plain(self, inputs: tuple[Input, ...]) -> list[bytes]:
        return [text.encode() for text in pa.ipc.open_stream(inputs[0].path).read_all()["text"].to_pylist()]


class TestTar(ReaderContract):
    name = "a.tar"

    def write(self, directory: Path, rows: list[str]) -> tuple[Input, ...]:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for i, row in enumerate(rows):
                is_json = i % 3 == 0
                data = json.dumps({"text": row}).encode() if is_json else row.encode()
                member = tarfile.TarInfo(f"{'long/' * 30 * (i % 2)}{i}.{'json' if is_json else 'txt'}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return write(directory, {self.name: self.packed(packed.getvalue())})

    def packed(self, data: bytes) -> bytes:
        return data

    def plain(self, inputs: tuple[Input, ...]) -> list[bytes]:
        documents = []
        with tarfile.open(inputs[0].path) as archive:
            for member in archive:
                data = archive.extractfile(member)
                assert data
                read = data.read()
                documents.append(json.loads(read)["text"].encode() if member.name.endswith(".json") else read)
        return documents


class TestCompressedTar(TestTar):
    name = "a.tgz"

    def packed(self, data: bytes) -> bytes:
        return gzip.compress(data)
