"""What the help of each command ends with: an example to type, and the page that says more."""

from __future__ import annotations

EXAMPLES = {
    "tokenize": ("corpus.jsonl --text-key body --val-fraction 0.01 --out data", "docs/howto/inputs.md"),
    "plan": ("texts/ --out data", "docs/tutorial.md"),
    "build": ("recipe.toml --out final", "docs/howto/mixture.md"),
    "verify": ("data --source", "docs/howto/commands.md"),
    "inspect": ("data --document 0 --tokens 40", "docs/howto/commands.md"),
    "report": ("data", "docs/report.md"),
    "merge": ("monday tuesday --out both", "docs/howto/outputs.md"),
    "shuffle": ("data --seed 1 --out shuffled", "docs/howto/mixture.md"),
    "dedup": ("data --near 0.8 --out unique", "docs/howto/deduplication.md"),
    "mix": ("web=0.7 books=0.3 --seed 1 --out mixed", "docs/howto/mixture.md"),
    "pack": ("data --sequence 2048 --seed 1 --out packed", "docs/howto/packing.md"),
    "convert": ("data --format megatron --out data-megatron", "docs/formats.md"),
    "reshard": ("data --shard-tokens 100M --out shards", "docs/howto/outputs.md"),
    "finalize": ("data", "docs/howto/cluster.md"),
    "doctor": ("", "docs/howto/air-gapped.md"),
    "completion": ("bash", "docs/howto/settings.md"),
    "vocab list": ("", "docs/howto/tokenizers.md"),
    "vocab fetch": ("cl100k_base --to vocab", "docs/howto/tokenizers.md"),
}
"""By command: what may follow it, and a page of the repository."""
