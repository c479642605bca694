"""Every family of tokenizers in every engine that loads it: are the ids the reference's, and how fast is it?

    python benchmarks/families.py CORPUS [--mb 4]

Vocabularies are trained on the spot on the beginning of CORPUS (a text file), with the patterns and normalizers that the families
publish; the published ones are larger, which changes the speed a little and the ids not at all in kind. cl100k_base and o200k_base
are measured with GPT-2's ranks and their own patterns. MB/s of one thread; the first round is not counted.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from support import small_tokenizers

from tokmill.core.records import text_to_path
from tokmill.encode.engines.gigatoken import GigatokenEncoder
from tokmill.encode.engines.tiktoken import TiktokenEncoder
from tokmill.encode.engines.unicode_fallback import UnicodeFallback
from tokmill.encode.loading import load_encoder
from tokmill.encode.published import ENCODINGS
from tokmill.encode.resolve import engine_of, reference_of, resolve_tokenizer

MB = 10**6
_ROUNDS = 3


def encoders() -> dict[str, dict[str, object]]:
    """By family, by engine; the last is the reference."""
    found: dict[str, dict[str, object]] = {}
    ranks = text_to_path(resolve_tokenizer("gpt2").path)
    for name in ("r50k_base", "cl100k_base", "o200k_base"):
        pattern = ENCODINGS[name].pattern
        reference = TiktokenEncoder(name, pattern, lambda: ranks)
        fast = UnicodeFallback(GigatokenEncoder(name, pattern, lambda: ranks), lambda reference=reference: reference, name)
        found[f"{name} (.tiktoken)"] = {"gigatoken": fast, "tiktoken": reference}
    for name in small_tokenizers.MAKERS:
        tokenizer = resolve_tokenizer(str(small_tokenizers.path_of(name)), "</s>" if name == "wordpiece" else None)
        engines = dict.fromkeys([engine_of(tokenizer, "gigatoken"), reference_of(tokenizer)])
        found[f"{name} (tokenizer.json)"] = {engine: load_encoder(tokenizer, engine) for engine in engines}
    return found


def best_rate(encoder: object, documents: list[bytes]) -> float:
    """Bytes a second, the best of some rounds."""
    times = []
    for _ in range(_ROUNDS):
        began_s = time.perf_counter()
        encoder.encode(documents)  # type: ignore[attr-defined]
        times.append(time.perf_counter() - began_s)
    return sum(map(len, documents)) / min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--mb", type=float, default=4, help="of text that is encoded  [default: 4]")
    options = parser.parse_args()
    with options.corpus.open("rb") as file:
        text = file.read(int(options.mb * MB)).decode(errors="ignore")
    small_tokenizers.TEXTS[:] = [*small_tokenizers.TEXTS, *(text[i : i + 2000] for i in range(0, min(len(text), 200_000), 2000))]
    small_tokenizers.VOCABULARY = 4000
    documents = [text[i : i + 4000].replace("</s>", "").encode() for i in range(0, len(text), 4000)]
    print(f"{sum(map(len, documents)) / MB:.1f} MB in {len(documents):,} documents, one thread, {os.cpu_count()} cores")
    print(f"{'family':32} {'engine':12} {'ids equal':>12} {'tokens':>10} {'MB/s':>8}")
    for family, engines in encoders().items():
        expected = list(engines.values())[-1].encode(documents)  # type: ignore[attr-defined]
        for engine, encoder in engines.items():
            ids, offsets = encoder.encode(documents)  # type: ignore[attr-defined]
            same = sum(
                np.array_equal(ids[a:b], expected[0][c:d])
                for (a, b), (c, d) in zip(itertools.pairwise(offsets), itertools.pairwise(expected[1]), strict=True)
            )
            rate = best_rate(encoder, documents) / MB
            print(f"{family:32} {engine:12} {same:>5}/{len(documents)} {len(ids):>10,} {rate:>8.1f}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = scratch
        main()
