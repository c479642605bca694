"""Hugging Face tokenizers: `encode_batch_fast` of a thousand documents at a time, on all cores, appended to a file."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

EOT = 50256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    with args.file.open(encoding="utf-8") as lines, args.out.open("wb") as out:
        while some := list(itertools.islice(lines, 1000)):
            texts = [json.loads(line)["text"] for line in some]
            for encoded in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                np.array([*encoded.ids, EOT], dtype=np.uint16).tofile(out)


if __name__ == "__main__":
    main()
