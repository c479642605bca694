"""datatrove's DocumentTokenizer on JSON lines: a task a core, each on a file of its own, as its readers divide work."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger


def divide(file: Path, folder: Path, n: int) -> None:
    """The lines of a file in n files of about the same size."""
    folder.mkdir(parents=True)
    target = file.stat().st_size / n
    with file.open("rb") as source:
        for i in range(n):
            with (folder / f"{i:03}.jsonl").open("wb") as part:
                while source.tell() < target * (i + 1) and (line := source.readline()):
                    part.write(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="the documents of each file, and those of all when merged")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    divide(args.file, args.out / "parts", cores)
    tokenizer = DocumentTokenizer(
        output_folder=str(args.out / "tokens"),
        tokenizer_name_or_path=str(args.tokenizer),
        eos_token="<|endoftext|>",
        shuffle_documents=args.shuffle is not None,
        seed=args.shuffle,
        save_filename="out",
    )
    LocalPipelineExecutor(
        pipeline=[JsonlReader(str(args.out / "parts")), tokenizer],
        tasks=cores,
        workers=cores,
        logging_dir=str(args.out / "logs"),
    ).run()
    if args.shuffle is not None:
        merger = DocumentTokenizerMerger(
            str(args.out / "tokens"), str(args.out / "merged"), "out", shuffle=True, seed=args.shuffle, progress=False
        )
        LocalPipelineExecutor(pipeline=[merger], tasks=1, logging_dir=str(args.out / "logs2")).run()


if __name__ == "__main__":
    main()
