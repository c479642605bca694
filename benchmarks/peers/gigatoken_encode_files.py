"""gigatoken's own way through a file: `encode_files` on all cores, then one array to one file.

The whole corpus's ids are in memory at once. No EOT ids, no validation, no check of the text: it does less than tokmill does.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gigatoken
import numpy as np

RANKS = Path(__file__).resolve().parent.parent.parent / "src/tokmill/encode/assets/r50k_base.tiktoken"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--separator", default="<|endoftext|>")
    parser.add_argument("--ranks", type=Path, default=RANKS, help="r50k_base.tiktoken")
    args = parser.parse_args()
    start_s = time.perf_counter()
    tokenizer = gigatoken.Tokenizer.from_tiktoken(args.ranks, pretokenizer="gpt2", special_tokens={})
    names = [str(args.file)]
    if args.file.suffix == ".parquet":
        source = gigatoken.ParquetFileSource(names)
    else:
        is_json = ".jsonl" in args.file.suffixes
        source = gigatoken.JsonlFileSource(names) if is_json else gigatoken.TextFileSource(names, args.separator)
    ids = tokenizer.encode_files(source, parallel=True)
    np.asarray(ids.layout.content.data).astype(np.uint16).tofile(args.out)
    print(f"{time.perf_counter() - start_s:.3f}")


if __name__ == "__main__":
    main()
