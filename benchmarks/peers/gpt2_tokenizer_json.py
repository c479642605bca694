"""GPT-2's tokenizer.json, for peers that read no ranks: the merges are found again from the ranks.

A token of rank r is made by one merge of two tokens of lower rank: those two at which the merges of lower rank stop when they are
applied to its bytes.
"""

from __future__ import annotations

import argparse
import base64
import itertools
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

RANKS = Path(__file__).resolve().parent.parent.parent / "src/tokmill/encode/assets/r50k_base.tiktoken"


def _characters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """What the last merge of a token joins."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(a + b, 1 << 30) for a, b in itertools.pairwise(parts)]
        at = min(range(len(joined)), key=joined.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def gpt2(ranks_path: Path = RANKS) -> Tokenizer:
    """The tokenizer that `encode(text, add_special_tokens=False)` of gives GPT-2's ids."""
    pairs = (line.split() for line in ranks_path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    spelled = _characters()

    def spell(token: bytes) -> str:
        return "".join(spelled[byte] for byte in token)

    merges = [tuple(map(spell, _halves(token, ranks))) for token in ranks if len(token) > 1]
    made = Tokenizer(models.BPE(vocab={spell(token): rank for token, rank in ranks.items()}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=Path, default=RANKS)
    args = parser.parse_args()
    gpt2(args.ranks).save(str(args.out))


if __name__ == "__main__":
    main()
