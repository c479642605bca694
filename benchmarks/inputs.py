"""MB/s of text for each kind of input, made from one corpus, beside decoding alone, encoding alone and gigatoken's `encode_files`.

decoding alone   the kind's reader in one thread, its batches thrown away
encoding alone   the same text from RAM, as one buffer a batch, in as many threads as there are cores, a tokenizer each
tokmill          `python -m tokmill tokenize`, elapsed time as --json says it: without the start of two interpreters
encode_files     gigatoken's own way, JSON lines and Parquet only; the time of the call

The best of --rounds counts, rounds interleaved. ratio: tokmill by the slower of decoding alone and encoding alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import gigatoken
import machine
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from peers.gigatoken_encode_files import RANKS

from tokmill.core.config import BudgetTerms, Content, Resources
from tokmill.core.documents import DocumentBuffer, text_bytes
from tokmill.core.protocols import Encoder
from tokmill.core.records import Batch, Cursor
from tokmill.encode.loading import disable_awkward, load_encoder
from tokmill.encode.resolve import resolve_tokenizer
from tokmill.encode.safe_cuts import cutter_for
from tokmill.read.corpus import CorpusReader
from tokmill.read.inputs import find_inputs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SEPARATOR = "<|endoftext|>"
MIB = 1 << 20
KINDS = {"txt": "c.txt", "jsonl": "c.jsonl", "jsonl.gz": "c.jsonl.gz", "jsonl.zst": "c.jsonl.zst", "parquet": "c.parquet"}


def make(corpus: Path, work: Path) -> int:
    """One file of each kind; returns the bytes of text."""
    texts = corpus.read_text("utf-8").split(SEPARATOR)
    if len(texts) < 100:
        whole = corpus.read_text("utf-8")
        texts = [whole[i : i + 3000] for i in range(0, len(whole), 3000)]
    (work / "c.txt").write_text(SEPARATOR.join(texts), "utf-8")
    lines = "".join(json.dumps({"id": i, "text": text}, ensure_ascii=False) + "\n" for i, text in enumerate(texts)).encode()
    (work / "c.jsonl").write_bytes(lines)
    (work / "c.jsonl.gz").write_bytes(gzip.compress(lines, 6))
    (work / "c.jsonl.zst").write_bytes(zstd.compress(lines))
    table = pa.table({"id": range(len(texts)), "text": texts})
    pq.write_table(table, work / "c.parquet", compression="snappy", row_group_size=50_000)
    return sum(len(text.encode()) for text in texts)


def settings(path: Path) -> tuple[Content, Resources]:
    inputs = find_inputs([str(path)], glob=None, input_format=None).inputs
    small = {
        "budget_bytes": 1024 * MIB,
        "worker_bytes": 1024 * MIB,
        "terms": BudgetTerms(n_threads=1),
        "reset_above_bytes": 1024 * MIB,
    }
    resources = Resources(batch_bytes=2 * MIB, in_flight_bytes=64 * MIB, max_piece_bytes=16 * MIB, **small)
    return Content(inputs=inputs, tokenizer=resolve_tokenizer("gpt2")), resources


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
    command = [sys.executable, "-m", "tokmill", "tokenize", str(path), "--out", str(out), "--json", "-q"]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["elapsed_s"])


def encode_files_s(path: Path) -> float | None:
    sources = {".jsonl": gigatoken.JsonlFileSource, ".gz": gigatoken.JsonlFileSource, ".zst": gigatoken.JsonlFileSource}
    sources[".parquet"] = gigatoken.ParquetFileSource
    if path.suffix not in sources:
        return None
    tokenizer = gigatoken.Tokenizer.from_tiktoken(RANKS, pretokenizer="gpt2", special_tokens={})
    began_s = time.perf_counter()
    ids = tokenizer.encode_files(sources[path.suffix]([str(path)]), parallel=True)
    np.asarray(ids.layout.content.data).astype(np.uint16).tofile(path.parent / "peer.bin")
    return time.perf_counter() - began_s


def in_fresh_process(what: str, path: Path) -> float | None:
    command = [sys.executable, __file__, "--measure", what, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a text file; documents between <|endoftext|>, else every 3,000 characters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=["decoding", "encoding", "encode_files"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    measures = {"decoding": decoding_s, "encoding": encoding_s, "encode_files": encode_files_s}
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
    best: dict[tuple[str, str], float] = {}

    def note(kind: str, what: str, took_s: float | None) -> None:
        if took_s is not None:
            best[kind, what] = min(best.get((kind, what), took_s), took_s)

    for _ in range(rounds):
        note("txt", "encoding", in_fresh_process("encoding", work / KINDS["txt"]))
        for kind, name in KINDS.items():
            note(kind, "decoding", in_fresh_process("decoding", work / name))
            note(kind, "tokmill", tokmill_s(work / name))
            note(kind, "encode_files", in_fresh_process("encode_files", work / name))
    rates = {key: n_bytes / took_s / 1e6 for key, took_s in best.items()}
    encoding = rates["txt", "encoding"]
    print(f"\n{n_bytes / 1e6:,.0f} MB of text, MB/s, best of {rounds}; encoding alone {encoding:,.0f}\n")
    print("| input | decoding alone | tokmill | ratio | encode_files | tokmill by encode_files |\n|---|---:|---:|---:|---:|---:|")
    for kind in KINDS:
        decoding, ours, theirs = rates[kind, "decoding"], rates[kind, "tokmill"], rates.get((kind, "encode_files"))
        peer = f"{theirs:,.0f} | {ours / theirs:.2f}" if theirs else "- | -"
        print(f"| {kind} | {decoding:,.0f} | {ours:,.0f} | {ours / min(decoding, encoding):.2f} | {peer} |")


if __name__ == "__main__":
    main()
