"""datatrove's MinHash in its four steps on JSON lines, with the settings that FineWeb had; each step a task a core."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from datatrove.data import DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.readers import JsonlReader
from datatrove.utils.hashing import HashConfig


class Words:
    """Words between blanks, instead of a tokenizer for a language that would have to be downloaded."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


class Kept:
    """Notes the numbers of the documents that are left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        ids = []
        for document in data:
            ids.append(document.id)
            yield document
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{rank}.json").write_text(json.dumps(ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of JSON lines")
    parser.add_argument("out", type=Path)
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)
    cores, work = len(os.sched_getaffinity(0)), args.work

    def number(self: JsonlReader, data: dict, path: str, id_in_file: int | str) -> dict:
        return {"text": data["text"], "id": str(id_in_file)}

    signature = MinhashDedupSignature(str(work / "signatures"), config=config, language="en")
    signature.__dict__["word_tokenizer"] = Words()
    reader = JsonlReader(str(args.folder), adapter=number)
    kept = Kept(work / "kept")
    steps = (
        ([reader, signature], 1),
        ([MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)], 14),
        ([MinhashDedupCluster(str(work / "buckets"), str(work / "removed"), config=config)], 1),
        ([reader, MinhashDedupFilter(str(work / "removed")), kept], 1),
    )
    for i, (step, tasks) in enumerate(steps):
        LocalPipelineExecutor(step, tasks=tasks, workers=min(cores, tasks), logging_dir=str(work / f"logs{i}")).run()
    left = {int(each) for path in (work / "kept").glob("*.json") for each in json.loads(path.read_text())}
    n = sum(1 for path in sorted(args.folder.glob("*.jsonl")) for _ in path.open("rb"))
    args.out.write_text(json.dumps(sorted(set(range(n)) - left)))


if __name__ == "__main__":
    main()
