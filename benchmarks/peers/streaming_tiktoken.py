"""The script that most people have: read a million characters, `encode_ordinary`, append the array to a file. One thread.

It cuts tokens at the edges of its chunks, encodes the separator as text, and has no validation: it does less than tokmill does.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from reference import RANKS, gpt2

CHUNK_CHARACTERS = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=Path, default=RANKS, help="r50k_base.tiktoken")
    args = parser.parse_args()
    start_s = time.perf_counter()
    encoding = gpt2(args.ranks)
    with args.file.open(encoding="utf-8", newline="") as source, args.out.open("wb") as out:
        while chunk := source.read(CHUNK_CHARACTERS):
            np.array(encoding.encode_ordinary(chunk), dtype=np.uint16).tofile(out)
    print(f"{time.perf_counter() - start_s:.3f}")


if __name__ == "__main__":
    main()
