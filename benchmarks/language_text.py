"""Text that looks like another, on standard output: each character follows two as it does there, so no clause is like the last.

    python benchmarks/language_text.py BYTES FILE... > text.txt

For languages of which there is little text at hand. FILE is text or HTML, whose tags are left out. Documents of about 3 kB, with
<|endoftext|> between them.
"""

from __future__ import annotations

import html
import random
import re
import sys
from collections import defaultdict
from pathlib import Path

_DOCUMENT_CHARACTERS = 1500


def seed_of(paths: list[Path]) -> str:
    """The texts of the files."""
    texts = []
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="ignore")
        if path.suffix == ".html":
            text = html.unescape(re.sub(r"<(script|style|nav).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL))
        texts.append(re.sub(r"\s*\n\s*", "\n", text))
    return "\n".join(texts)


def main() -> None:
    n_bytes, seed = int(sys.argv[1]), seed_of([Path(name) for name in sys.argv[2:]])
    following = defaultdict[str, list[str]](list)
    for i in range(len(seed) - 2):
        following[seed[i : i + 2]].append(seed[i + 2])
    rng, written, last = random.Random(0), 0, seed[:2]
    while written < n_bytes:
        text = []
        for _ in range(int(_DOCUMENT_CHARACTERS * rng.lognormvariate(0, 0.8))):
            choices = following.get(last)
            character = choices[int(rng.random() * len(choices))] if choices else "\n"
            text.append(character)
            last = last[1] + character
        data = "".join(text).encode() + b"<|endoftext|>"
        sys.stdout.buffer.write(data)
        written += len(data)


if __name__ == "__main__":
    main()
