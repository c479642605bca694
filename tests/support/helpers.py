"""Makes complete output directories without the pipeline: with tiktoken, numpy and the manifest's own encoder.

Independent of what is tested: sides, ids and digests are worked out here, a document at a time.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import tiktoken
import xxhash
from tiktoken.load import load_tiktoken_bpe

from tokmill.core.config import Content
from tokmill.core.history import Attempt, History
from tokmill.core.manifest import FORMAT_VERSION, MANIFEST_NAME, FileSpan, Manifest, Segment, encode_manifest, load_manifest
from tokmill.core.records import Counts, Cursor, EotPlacement, FileEntry, IdType, Input, path_to_text, text_to_path
from tokmill.encode.resolve import resolve_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

EOT = 50256
SEPARATOR = "<|endoftext|>"
_GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@functools.cache
def gpt2() -> tiktoken.Encoding:
    """GPT-2's encoding without special tokens, from the ranks that tokmill ships."""
    ranks = load_tiktoken_bpe(text_to_path(resolve_tokenizer("gpt2").path))
    return tiktoken.Encoding("gpt2", pat_str=_GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})


def write_corpus(path: Path, documents: Sequence[str]) -> Path:
    """A text file of documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(SEPARATOR.join(documents).encode())
    return path


def write_output(
    directory: Path,
    corpus: Path,
    *,
    eot: EotPlacement = "after",
    dtype: IdType = "uint16",
    val_fraction: float = 0.3,
    documents_per_segment: int = 2,
    keep_empty: bool = False,
) -> Manifest:
    """A complete directory made from a text file. Returns its manifest as written."""
    documents = corpus.read_bytes().decode().split(SEPARATOR)
    encoding = gpt2()
    ids: dict[str, list[list[int]]] = {"train": [], "val": []}
    segments: list[Segment] = []
    counts = Counts(bytes_in=corpus.stat().st_size)
    lengths = {"train.bin": 0, "val.bin": 0}
    directory.mkdir(parents=True, exist_ok=True)
    files = {name: (directory / name).open("wb") for name in lengths}
    for begin in range(0, len(documents), documents_per_segment):
        spans: dict[str, list[bytes]] = {}
        for document in documents[begin : begin + documents_per_segment]:
            if not document and not keep_empty:
                counts += Counts(documents=1, skipped={"empty": 1})
                continue
            side = "val" if xxhash.xxh3_64_intdigest(document.encode(), 0) < val_fraction * 2**64 else "train"
            tokens = encoding.encode_ordinary(document)
            whole = [*[EOT] * (eot == "before"), *tokens, *[EOT] * (eot == "after")]
            ids[side].append(whole)
            spans.setdefault(f"{side}.bin", []).append(np.array(whole, dtype).tobytes())
            added: dict[str, Any] = {f"documents_{side}": 1, f"tokens_{side}": len(whole)}
            counts += Counts(documents=1, bytes_text=len(document.encode()), **added)
        written = {name: b"".join(parts) for name, parts in spans.items()}
        for name, data in written.items():
            files[name].write(data)
            lengths[name] += len(data)
        ends = {name: FileSpan(end=lengths[name], digest=xxhash.xxh3_128_hexdigest(data)) for name, data in written.items() if data}
        segments.append(Segment(after=Cursor(input_index=0, record=begin + documents_per_segment), files=ends, counts=counts))
    for file in files.values():
        file.close()
    stat = corpus.stat()
    source = Input(
        path=path_to_text(os.path.abspath(corpus)),
        format="text",
        compression="none",
        size_bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
    )
    content = Content(
        inputs=(source,),
        tokenizer=resolve_tokenizer("gpt2"),
        val_fraction=val_fraction,
        eot=eot,
        dtype=dtype,
        keep_empty=keep_empty,
    )
    entries = {
        f"{side}.bin": FileEntry(
            size_bytes=lengths[f"{side}.bin"], side=side, tokens=sum(map(len, ids[side])), documents=len(ids[side])
        )
        for side in ids
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        tokmill_version="0.0.0",
        fingerprint=content.fingerprint(),
        content=content,
        files=entries,
        segments=segments,
        counts=counts,
        elapsed_s=1.0,
        peak_rss_bytes=1,
    )
    (directory / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    return manifest


def rewrite_manifest(directory: Path, manifest: Manifest, **changes: object) -> None:
    """A manifest that was edited by someone who knows how to seal it."""
    edited = msgspec.structs.replace(manifest, **changes)
    (directory / MANIFEST_NAME).write_bytes(encode_manifest(edited))


def give_history(directory: Path, n_samples: int = 6) -> None:
    """The history of a run that took five seconds: those of small corpora are too short for charts."""
    manifest = load_manifest(directory)
    n = range(n_samples)
    attempt = Attempt(
        begin_s=0.0,
        budget_bytes=512 << 20,
        elapsed_s=tuple(map(float, n)),
        n_bytes=tuple(i * manifest.counts.bytes_in // 5 for i in n),
        n_tokens=tuple(i * manifest.counts.tokens_train // 5 for i in n),
        rss_bytes=tuple((100 + i) << 20 for i in n),
    )
    rewrite_manifest(directory, manifest, history=History(attempts=(attempt,), n_attempts=1), elapsed_s=5.0)
