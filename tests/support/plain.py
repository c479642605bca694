"""The truth that runs are held against: a plain loop with tiktoken alone, and nothing of tokmill's but the rank file."""

from __future__ import annotations

import base64
import functools
import os
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import numpy as np
import tiktoken
import xxhash

EOT = 50256
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@functools.cache
def gpt2() -> tiktoken.Encoding:
    lines = (files("tokmill") / "assets" / "r50k_base.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    return tiktoken.Encoding("gpt2-ranks", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})


def plain_tokens(
    documents: Iterable[bytes],
    *,
    eot: str = "after",
    val_fraction: float = 0.0005,
    seed: int = 0,
    keep_empty: bool = False,
    dtype: str = "uint16",
) -> tuple[bytes, bytes]:
    """Bytes of train.bin and val.bin."""
    sides: tuple[list[int], list[int]] = ([], [])
    for document in documents:
        if document or keep_empty:
            ids = gpt2().encode_ordinary(document.decode())
            to = sides[xxhash.xxh3_64_intdigest(document, seed) < val_fraction * 2**64]
            to.extend([EOT] * (eot == "before") + ids + [EOT] * (eot == "after"))
    return np.array(sides[0], dtype).tobytes(), np.array(sides[1], dtype).tobytes()


def written(out: Path) -> tuple[bytes, bytes]:
    """Bytes of train.bin and val.bin in a directory."""
    return (out / "train.bin").read_bytes(), (out / "val.bin").read_bytes()


def clean_environment(**more: str) -> dict[str, str]:
    """Environment of a subprocess that finds this tokmill and no settings of the caller."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TOKMILL_")}
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path)} | more
