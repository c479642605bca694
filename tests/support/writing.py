"""Drives a writer as a run does: real output directories, commits, deaths, manifests; documents and their runs."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from support.oracle import EOT
from support.outputs import files_in
from support.records import a_content, a_tokenizer

from tokmill.core.config import Content
from tokmill.core.manifest import FORMAT_VERSION, Manifest, published
from tokmill.core.output_spec import OutputSpec
from tokmill.core.protocols import Writer
from tokmill.core.records import Counts, Cursor, Tokens
from tokmill.formats.sharding import make_writer, spec_of
from tokmill.output.directory import Output, open_output

GPT2 = OutputSpec(format="raw", dtype="uint16", eot="after", eot_id=EOT, tokenizer="gpt2")
Sides = dict[str, tuple[list[int], list[list[int]] | None]]
Documents = list[tuple[bool, list[int]]]


def a_spec(spec: OutputSpec, **changes: Any) -> OutputSpec:
    return msgspec.structs.replace(spec, **changes)


def documents_of(spec: OutputSpec, n: int = 40) -> Documents:
    """Documents of 1 to 8 tokens (of mds: hundreds), some as long as three shards; end-of-text ids in place; and their sides."""
    rng = random.Random(7)
    factor = 300 if spec.format == "mds" else 1
    made: Documents = []
    for i in range(n):
        length = rng.choice([0, 1, 2, 3, 5, 7]) * factor + (25 * factor if i in (3, n - 4) else 0)
        text = [rng.randrange(50256) for _ in range(length + (spec.eot == "none"))]
        made.append((rng.random() < 0.3, [EOT] * (spec.eot == "before") + text + [EOT] * (spec.eot == "after")))
    return made


def cut_runs(documents: Documents, spec: OutputSpec, every: int) -> list[Tokens]:
    """The documents as runs of `every` tokens of a side, cut inside documents too."""
    factor = 300 if spec.format == "mds" else 1
    runs = []
    for is_val in (False, True):
        chosen = [ids for side, ids in documents if side == is_val]
        ids = np.array([i for document in chosen for i in document], spec.dtype)
        ends = np.cumsum([len(document) for document in chosen], dtype=np.int64)
        for begin in range(0, len(ids), every * factor):
            end = min(begin + every * factor, len(ids))
            inside = ends[(ends > begin) & (ends <= end)] - begin
            runs.append(Tokens(is_val, ids[begin:end], inside))
    return runs


def content_of(spec: OutputSpec) -> Content:
    content = a_content(
        format=spec.format,
        dtype=spec.dtype,
        eot=spec.eot,
        tokenizer=a_tokenizer(n_ids=50257 if spec.dtype == "uint16" else 100257),
        shards=spec.shards or msgspec.UNSET,
    )
    assert spec_of(content) == spec
    return content


class _Run:
    """One life of a run."""

    def __init__(self, directory: Path, spec: OutputSpec, runs: Sequence[Tokens]) -> None:
        self.content = content_of(spec)
        output = open_output(directory, self.content, "0", fresh=False)
        assert isinstance(output, Output)
        self.output, self.runs = output, runs
        self.at = output.cursor.offset
        self.counts = output.counts
        state = output.segments[-1].writer if output.segments else {}
        self.writer: Writer = make_writer(output, state, spec)

    def append(self, until: int) -> None:
        for run in self.runs[self.at : until]:
            self.writer.append(run)
            side = "val" if run.is_val else "train"
            begun = len(run.ends) if self.content.eot == "none" else int(np.count_nonzero(run.ids == EOT))
            sums: dict[str, Any] = {f"tokens_{side}": len(run.ids), f"documents_{side}": begun}
            self.counts += Counts(documents=begun, **sums)
        self.at = max(until, self.at)

    def commit(self) -> None:
        self.output.commit(Cursor(offset=self.at), self.counts, self.writer.state(), 1.0)
        self.output.settle()

    def publish(self) -> None:
        entries = dict(self.output.completed())
        self.output.publish(
            Manifest(
                format_version=FORMAT_VERSION,
                tokmill_version="0",
                fingerprint=self.content.fingerprint(),
                content=self.content,
                files=entries,
                segments=published(self.output.segments, entries),
                counts=self.counts,
                elapsed_s=1.0,
                peak_rss_bytes=1,
            )
        )


def written_files(directory: Path, spec: OutputSpec, runs: Sequence[Tokens], *, n_deaths: int = 0) -> dict[str, bytes]:
    """The files of a run, by name. n_deaths: it dies so often when all is committed and nothing is published."""
    for _ in range(n_deaths):
        dying = _Run(directory, spec, runs)
        dying.append(len(runs))
        dying.writer.finish()
        dying.commit()
        dying.output.close()
    run = _Run(directory, spec, runs)
    run.append(len(runs))
    run.writer.finish()
    if run.output.is_ahead:
        run.commit()
    run.publish()
    return files_in(directory)


def written_files_of_deaths(directory: Path, spec: OutputSpec, runs: Sequence[Tokens], cuts: Collection[int]) -> dict[str, bytes]:
    """The same; after each of these runs it commits, writes some more, and dies."""
    for cut in sorted(cuts):
        run = _Run(directory, spec, runs)
        run.append(cut)
        run.commit()
        run.append(min(cut + 2, len(runs)))
        if cut == len(runs):
            run.writer.finish()
        run.output.close()
    return written_files(directory, spec, runs)


def read_llmc(paths: list[Path], magic: int, version: int, dtype: str) -> list[int]:
    """What llm.c's dataloader and modded-nanogpt's `_load_data_shard` check, and the ids."""
    ids: list[int] = []
    for path in paths:
        header = np.fromfile(path, "<i4", 256)
        assert header[0] == magic
        assert header[1] == version
        n_tokens = int(header[2])
        assert n_tokens > 0
        assert path.stat().st_size == 256 * 4 + n_tokens * np.dtype(dtype).itemsize
        assert not header[3:].any()
        ids += np.fromfile(path, dtype, offset=1024).tolist()
    return ids
