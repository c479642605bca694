"""What tokmill is instead of: `all_tokens = []`, extended chunk by chunk, saved at the end."""

from __future__ import annotations

import sys

import numpy as np
from support.oracle import gpt2

encoding = gpt2()
all_tokens: list[int] = []
with open(sys.argv[1], encoding="utf-8") as file:
    while chunk := file.read(1 << 20):
        all_tokens.extend(encoding.encode_ordinary(chunk))
np.array(all_tokens, dtype=np.uint16).tofile(sys.argv[2])
