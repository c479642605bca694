"""Whole commands for each kind of input, made from one corpus, beside gigatoken's own way, decoding alone and encoding alone.

decoding alone   the kind's reader in one thread, its batches thrown away
encoding alone   the same text from RAM, as one buffer a batch, in as many threads as there are cores, a tokenizer each
tokmill          `python -m tokmill tokenize`, from the start of the process to its end
encode_files     gigatoken's `encode_files` and `tofile`, likewise (`peers/gigatoken_encode_files.py`)

JSON lines and Parquet have the nine fields of FineWeb's, Parquet groups of 1,000 rows. Medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import machine
import pyarrow as pa
import pyarrow.parquet as pq
import watch

from tokmill.core.config import Content, Resources
from tokmill.core.documents import DocumentBuffer, text_bytes
from tokmill.core.options import PlanOptions
from tokmill.core.protocols import Encoder
from tokmill.core.records import Batch, Cursor
from tokmill.encode.loading import disable_awkward, load_encoder
from tokmill.encode.resolve import resolve_tokenizer
from tokmill.encode.safe_cuts import cutter_for
from tokmill.read.corpus import CorpusReader
from tokmill.run.job import NOWHERE, make_job

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SEPARATOR = "<|endoftext|>"
MIB = 1 << 20
KINDS = {
    "txt": "c.txt",
    "jsonl": "c.jsonl",
    "jsonl.gz": "c.jsonl.gz",
    "jsonl.zst": "c.jsonl.zst",
    "parquet": "c.parquet",
    "parquet, zstd": "z.parquet",
}


def make(corpus: Path, work: Path) -> int:
    """One file of each kind; returns the bytes of text."""
    texts = corpus.read_text("utf-8").split(SEPARATOR)
    if len(texts) < 100:
        whole = corpus.read_text("utf-8")
        texts = [whole[i : i + 3000] for i in range(0, len(whole), 3000)]
    (work / "c.txt").write_text(SEPARATOR.join(texts), "utf-8")
    rows = [
        {
            "text": text,
            "id": f"<urn:uuid:{i:08x}-0000-4000-8000-{i:012x}>",
            "dump": "CC-MAIN-2024-10",
            "url": f"https://example.org/a/page/of/the/site/{i}.html",
            "date": "2024-02-21T01:02:03Z",
            "file_path": f"a/long/path/in/a/bucket/{i // 1000:05}.warc.gz",
            "language": "en",
            "language_score": 0.95,
            "token_count": len(text) // 4,
        }
        for i, text in enumerate(texts)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (work / "c.jsonl").write_bytes(lines)
    (work / "c.jsonl.gz").write_bytes(gzip.compress(lines, 6))
    (work / "c.jsonl.zst").write_bytes(zstd.compress(lines))
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, work / "c.parquet", compression="snappy", row_group_size=1000)
    pq.write_table(table, work / "z.parquet", compression="zstd", row_group_size=1000)
    return sum(len(text.encode()) for text in texts)


def settings(path: Path) -> tuple[Content, Resources]:
    job = make_job([str(path)], PlanOptions(), out=NOWHERE).job
    return job.content, job.resources


def reader(path: Path) -> Iterator[Batch]:
    """The batches that the worker's reader would make."""
    content, resources = settings(path)
    return CorpusReader(content, resources, cutter_for("r50k_base")).batches(Cursor())


def full_documents(batch: Batch) -> Sequence[bytes]:
    """What the worker hands to its engine: without documents that are empty."""
    return batch.documents.without_empty()[0] if isinstance(batch.documents, DocumentBuffer) else batch.documents


def in_parts(path: Path, most_bytes: int) -> Iterator[list[Sequence[bytes]]]:
    """The documents of batches that have text, as lists of at most about so many bytes, in memory."""
    part: list[Sequence[bytes]] = []
    n_bytes = 0
    for documents in map(full_documents, reader(path)):
        if size := text_bytes(documents):
            part.append(documents)
            n_bytes += size
        if n_bytes >= most_bytes:
            yield part
            part, n_bytes = [], 0
    yield part


def encoders() -> list[Encoder]:
    """One a core, as the worker makes them."""
    disable_awkward()
    tokenizer = resolve_tokenizer("gpt2")
    return [load_encoder(tokenizer, "gigatoken") for _ in os.sched_getaffinity(0)]


def encode_all(encoder: Encoder, batches: list[Sequence[bytes]]) -> None:
    for documents in batches:
        encoder.encode(documents)


def decoding_s(path: Path) -> float:
    batches = reader(path)
    began_s = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - began_s


def encoding_s(path: Path) -> float:
    """Of the text file's batches, which are in memory before the clock starts."""
    found = encoders()
    full = [documents for part in in_parts(path, 1 << 62) for documents in part]
    threads = [threading.Thread(target=encode_all, args=(one, full[i :: len(found)])) for i, one in enumerate(found)]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began_s


def tokmill_s(path: Path) -> float:
    out = path.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    return command_s([sys.executable, "-m", "tokmill", "tokenize", str(path), "--out", str(out), "-q"])


def encode_files_s(path: Path) -> float:
    peer = Path(__file__).resolve().parent / "peers" / "gigatoken_encode_files.py"
    return command_s([sys.executable, str(peer), str(path), str(path.parent / "peer.bin")])


def command_s(command: list[str]) -> float:
    os.sync()
    began_s = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=watch.checkout_env())
    return time.perf_counter() - began_s


def in_fresh_process(what: str, path: Path) -> float:
    command = [sys.executable, __file__, "--measure", what, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a text file; documents between <|endoftext|>, else every 3,000 characters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=["decoding", "encoding"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    measures = {"decoding": decoding_s, "encoding": encoding_s}
    if args.measure:
        print(json.dumps(measures[args.measure](args.corpus)))
        return
    for name, value in machine.description().items():
        print(f"{name}: {value}")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        n_bytes = make(args.corpus, work)
        table(work, n_bytes, args.rounds)


def table(work: Path, n_bytes: int, rounds: int) -> None:
    """Measure and print."""
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        found.setdefault(("txt", "encoding"), []).append(in_fresh_process("encoding", work / KINDS["txt"]))
        for kind, name in KINDS.items():
            found.setdefault((kind, "decoding"), []).append(in_fresh_process("decoding", work / name))
            found.setdefault((kind, "tokmill"), []).append(tokmill_s(work / name))
            found.setdefault((kind, "encode_files"), []).append(encode_files_s(work / name))
    rates = {key: n_bytes / statistics.median(took_s) / 1e6 for key, took_s in found.items()}
    print(f"\n{n_bytes / 1e6:,.0f} MB of text, MB/s, medians of {rounds}; encoding alone {rates['txt', 'encoding']:,.0f}\n")
    print("| input | decoding alone | tokmill | encode_files | tokmill by encode_files |\n|---|---:|---:|---:|---:|")
    for kind in KINDS:
        decoding, ours, theirs = (rates[kind, what] for what in ("decoding", "tokmill", "encode_files"))
        print(f"| {kind} | {decoding:,.0f} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
