"""nanoGPT's way: `datasets` maps tiktoken over the documents with a process a core, then a memmap is filled batch by batch."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from reference import EOT, gpt2

N_BATCHES = 64
ENCODING = gpt2()


def encode(example: dict[str, Any]) -> dict[str, Any]:
    ids = ENCODING.encode_ordinary(example["text"])
    ids.append(EOT)
    return {"ids": ids, "len": len(ids)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines")
    parser.add_argument("out", type=Path)
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="the documents first, by their numbers")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    args.out.mkdir()
    loaded = datasets.load_dataset("json", data_files=str(args.file), split="train", cache_dir=str(args.out / "cache"))
    loaded = loaded if args.shuffle is None else loaded.shuffle(seed=args.shuffle)
    tokenized = loaded.map(encode, remove_columns=loaded.column_names, num_proc=cores)
    ids = np.memmap(args.out / "train.bin", dtype=np.uint16, mode="w+", shape=(int(np.sum(tokenized["len"], dtype=np.uint64)),))
    at = 0
    n_batches = min(N_BATCHES, len(tokenized))
    for index in range(n_batches):
        batch = tokenized.shard(num_shards=n_batches, index=index, contiguous=True).with_format("numpy")
        found = np.concatenate(batch["ids"])
        ids[at : at + len(found)] = found
        at += len(found)
    ids.flush()


if __name__ == "__main__":
    main()
