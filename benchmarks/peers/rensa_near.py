"""rensa: near copies among documents of ids by RMinHashLSH, the first of those that it says are alike stays."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rensa import RMinHash, RMinHashLSH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="uint16 ids, each document ended by 50256")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    ids = np.fromfile(args.file, "<u2")
    ends = np.flatnonzero(ids == 50256)
    lsh, removed = RMinHashLSH(threshold=0.8, num_perm=112, num_bands=14), []
    for number, (begin, end) in enumerate(zip(np.concatenate([[0], ends[:-1] + 1]), ends, strict=True)):
        document = ids[begin:end].tolist()
        signature = RMinHash(num_perm=112, seed=42)
        signature.update([" ".join(map(str, document[i : i + 5])) for i in range(len(document) - 4)])
        if lsh.query(signature):
            removed.append(number)
        else:
            lsh.insert(number, signature)
    args.out.write_text(json.dumps(removed))


if __name__ == "__main__":
    main()
