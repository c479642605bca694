"""Complete outputs: what their files hold, outputs made without the pipeline, and outputs edited by hand.

`write_output` is independent of what is tested: it works out sides, ids and digests itself, one document at a time.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash
from support.corpora import SEP
from support.oracle import EOT, gpt2

import tokmill
from tokmill.core.config import Content
from tokmill.core.history import Attempt, History
from tokmill.core.manifest import FORMAT_VERSION, MANIFEST_NAME, FileSpan, Manifest, Segment, encode_manifest, load_manifest
from tokmill.core.records import Counts, Cursor, EotPlacement, FileEntry, IdType, Input, path_to_text
from tokmill.encode.resolve import resolve_tokenizer
from tokmill.output.parts import part_directory
from tokmill.reports.data import ReportData, add_statistics, load_data


def part_path(out: Path, index: int) -> Path:
    """The output directory of a part."""
    return Path(str(part_directory(out, index)))


def written(out: Path) -> tuple[bytes, bytes]:
    """Bytes of train.bin and val.bin in a directory."""
    return (out / "train.bin").read_bytes(), (out / "val.bin").read_bytes()


def files_in(out: Path) -> dict[str, bytes]:
    """Return the files of an output by name, without its manifest."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.name != "manifest.json"}


def side_bytes(out: Path) -> tuple[bytes, bytes]:
    """The ids of both sides, their files one behind the other as a trainer would sort them."""
    return tuple(b"".join(p.read_bytes() for p in sorted(out.glob(f"{side}*.bin"))) for side in ("train", "val"))  # type: ignore[return-value]


def ids_of(out: Path) -> tuple[bytes, bytes]:
    """Return the ids of both sides as a reader sees them."""
    with tokmill.open(out) as data:
        return np.asarray(data.train).tobytes(), np.asarray(data.val).tobytes()


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
    documents = corpus.read_bytes().decode().split(SEP)
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


def reseal(directory: Path) -> None:
    """Give every segment the digest of what is there now, so that only the other checks can speak."""
    manifest = load_manifest(directory)
    begins = {name: entry.header_bytes for name, entry in manifest.files.items()}
    segments = []
    for segment in manifest.segments:
        files = {}
        for name, span in segment.files.items():
            data = (directory / name).read_bytes()[begins[name] : span.end]
            files[name] = msgspec.structs.replace(span, digest=xxhash.xxh3_128_hexdigest(data))
            begins[name] = span.end
        segments.append(msgspec.structs.replace(segment, files=files))
    rewrite_manifest(directory, manifest, segments=segments)


def divide(directory: Path, lengths: Sequence[int], suffix: str = ".bin", format: str = "raw", head: bool = False) -> None:  # noqa: A002
    """Divide the train side of a complete directory into files of so many ids, the last with the rest, in another format."""
    manifest = load_manifest(directory)
    ids = np.fromfile(directory / "train.bin", manifest.content.dtype)
    val = np.fromfile(directory / "val.bin", manifest.content.dtype)
    entries = {}
    parts = [*np.split(ids, np.cumsum(lengths)), val]
    # The number counts down: the order is the manifest's, not that of the names.
    for number, part in enumerate(parts):
        name, side = f"part_{99 - number}{suffix}", "train" if number < len(parts) - 1 else "val"
        header = np.zeros(256, "<i4")
        header[:3] = [20240520, 1, len(part)] if part.itemsize == 2 else [20240801, 7, len(part)]
        data = (header.tobytes() if head else b"") + part.tobytes()
        (directory / name).write_bytes(data)
        entries[name] = FileEntry(size_bytes=len(data), side=side, tokens=len(part), documents=0)
    (directory / "train.bin").unlink()
    (directory / "val.bin").unlink()
    rewrite_manifest(directory, manifest, files=entries, content=msgspec.structs.replace(manifest.content, format=format))


def collect_data(directory: Path) -> ReportData:
    """The data of a report."""
    data = load_data(directory)
    add_statistics(data)
    return data


def documents_of(out: Path) -> list[bytes]:
    """The training side of an output, document by document, as the bytes of its ids."""
    with tokmill.open(out) as data:
        ids = np.asarray(data.train)
    is_before = load_manifest(out).content.eot == "before"
    marks = np.flatnonzero(ids == EOT)
    edges = [*marks.tolist(), len(ids)] if is_before else [0, *(marks + 1).tolist()]
    return [ids[a:b].tobytes() for a, b in itertools.pairwise(edges)]
