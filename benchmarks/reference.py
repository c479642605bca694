"""The truth that tokmill is held against: what train.bin and val.bin must be, in as little code as possible.

tiktoken alone encodes; numpy writes; xxhash decides the side. Streams documents, one thread, no cleverness. Text documents
are the bytes between two separators; those of JSON lines are the strings under one key. Out of scope: documents over 64 MiB
(tokmill divides those between the sides; `--whole` encodes a file as one document, all of it for training), invalid UTF-8,
invalid JSON.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tiktoken
import xxhash
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

EOT = 50256
LARGEST_DOCUMENT_BYTES = 64 << 20
RANKS = Path(__file__).resolve().parent.parent / "src/tokmill/encode/assets/r50k_base.tiktoken"


def gpt2(ranks_path: Path = RANKS) -> tiktoken.Encoding:
    """GPT-2's tokenizer from a file of ranks (lines of base64 and rank); never from the network."""
    pairs = (line.split() for line in ranks_path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": EOT})


def text_documents(path: Path, separator: bytes) -> Iterator[bytes]:
    """The bytes between separators, empty ones included; one document more than there are separators."""
    pending = b""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            *documents, pending = (pending + block).split(separator)
            yield from documents
            if len(pending) > LARGEST_DOCUMENT_BYTES:
                raise SystemExit(f"{path}: a document over {LARGEST_DOCUMENT_BYTES} bytes is out of scope; see --whole")
    yield pending


def jsonl_documents(path: Path, key: str) -> Iterator[bytes]:
    """The strings under `key`, one per line that is not blank."""
    with path.open("rb") as file:
        yield from (json.loads(line)[key].encode() for line in file if line.strip())


def is_val(document: bytes, fraction: float, seed: int = 0) -> bool:
    """Whether the document belongs to validation."""
    return xxhash.xxh3_64_intdigest(document, seed) < fraction * 2**64


def write_tokens(documents: Iterable[bytes], out: Path, *, fraction: float, seed: int, ranks: Path = RANKS) -> tuple[int, int]:
    """Writes out/train.bin and out/val.bin (uint16, EOT behind each document); returns their tokens."""
    encoding = gpt2(ranks)
    n_tokens = [0, 0]
    with (out / "train.bin").open("wb") as train, (out / "val.bin").open("wb") as val:
        for document in documents:
            if not document:
                continue
            ids = np.array([*encoding.encode_ordinary(document.decode()), EOT], dtype=np.uint16)
            side = is_val(document, fraction, seed)
            (train, val)[side].write(ids.tobytes())
            n_tokens[side] += len(ids)
    return n_tokens[0], n_tokens[1]


def documents_of(paths: Iterable[Path], separator: bytes | None, key: str) -> Iterator[bytes]:
    """The documents of all files, in order; separator None: each text file is one document."""
    for path in paths:
        if path.suffix == ".jsonl":
            yield from jsonl_documents(path, key)
        elif separator is None:
            yield path.read_bytes()
        else:
            yield from text_documents(path, separator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="FILE", help="text, or .jsonl")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--separator", default="<|endoftext|>", help="taken literally")
    parser.add_argument("--whole", action="store_true", help="each text file is one document, and none is validation")
    parser.add_argument("--text-key", default="text")
    parser.add_argument("--val-fraction", type=float, default=0.0005)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=Path, default=RANKS, help="r50k_base.tiktoken")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    documents = documents_of(args.inputs, None if args.whole else args.separator.encode(), args.text_key)
    fraction = 0.0 if args.whole else args.val_fraction
    train, val = write_tokens(documents, args.out, fraction=fraction, seed=args.seed, ranks=args.ranks)
    print(f"train {train} tokens, val {val} tokens")


if __name__ == "__main__":
    main()
