"""What every run is compared with: a plain loop with tiktoken alone. Of tokmill it uses the rank file only."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable
from importlib.resources import files

import numpy as np
import tiktoken
import xxhash

EOT = 50256
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@functools.cache
def gpt2() -> tiktoken.Encoding:
    lines = (files("tokmill.encode") / "assets" / "r50k_base.tiktoken").read_bytes().splitlines()
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
