"""Shards: where they end, what a format's offsets bear, and files so large that they are mostly holes."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
from support.oracle import EOT
from support.outputs import files_in
from support.writing import GPT2, a_spec, content_of, cut_runs, documents_of, read_llmc, written_files

from tokmill.check.verification import verify
from tokmill.core.output_spec import OutputSpec, Shards, TokenSlice
from tokmill.core.records import Tokens
from tokmill.core.system import durable
from tokmill.formats.datatrove import DatatroveShard
from tokmill.formats.megatron import MegatronShard
from tokmill.formats.olmo import OlmoShard
from tokmill.formats.registry import FORMATS, is_written
from tokmill.formats.sharding import make_writer
from tokmill.output.directory import Output, open_output


def sizes(files: dict[str, bytes], side: str) -> list[int]:
    return [len(data) // 2 for name, data in files.items() if name.startswith(side)]


@pytest.mark.parametrize("n", [1, 4, 10, 26, 10**6])
def test_every_shard_but_the_last_has_exactly_so_many_tokens(tmp_path: Path, n: int) -> None:
    spec = a_spec(GPT2, shards=Shards(tokens=n))
    documents = documents_of(spec)
    files = written_files(tmp_path, spec, cut_runs(documents, spec, every=5))
    for side in ("train", "val"):
        ids = [i for is_val, document in documents if is_val == (side == "val") for i in document]
        wanted = [np.array(ids[at : at + n], "<u2").tobytes() for at in range(0, len(ids), n)]
        assert [data for name, data in files.items() if name.startswith(side)] == wanted
        assert list(files) == sorted(files)


@pytest.mark.parametrize("n", [1, 4, 10, 26, 10**6])
@pytest.mark.parametrize("eot", ["after", "before"])
def test_whole_documents_end_a_shard_at_the_first_end_behind_so_many_tokens(tmp_path: Path, n: int, eot: str) -> None:
    spec = a_spec(GPT2, eot=eot, shards=Shards(tokens=n, whole_documents=True))
    documents = documents_of(spec)
    files = written_files(tmp_path, spec, cut_runs(documents, spec, every=5))
    wanted: list[list[int]] = [[]]
    for document in (document for is_val, document in documents if not is_val):
        if len(wanted[-1]) >= n:
            wanted.append([])
        wanted[-1] += document
    assert [np.frombuffer(d, "<u2").tolist() for name, d in files.items() if name.startswith("train")] == wanted


@pytest.mark.parametrize("whole", [False, True])
def test_the_tail_is_dropped_only_where_that_was_asked_for(tmp_path: Path, whole: bool) -> None:
    spec = a_spec(GPT2, shards=Shards(tokens=10, whole_documents=whole))
    runs = cut_runs(documents_of(spec), spec, every=5)
    kept = written_files(tmp_path / "kept", spec, runs)
    dropping = a_spec(spec, shards=Shards(tokens=10, whole_documents=whole, drop_tail=True))
    left = written_files(tmp_path / "left", dropping, runs)
    assert sizes(kept, "train")[-1] < 10
    assert left == {name: data for name, data in kept.items() if len(data) >= 20}
    assert verify(tmp_path / "left").problems == []
    again = written_files(tmp_path / "again", dropping, runs, n_deaths=1)
    assert again == left


def opened(directory: Path, spec: OutputSpec) -> Output:
    output = open_output(directory, content_of(spec), "0", fresh=False)
    assert isinstance(output, Output)
    return output


@pytest.mark.parametrize(
    ("format_name", "part"),
    [(name, part) for name, spec in FORMATS.items() for part in (None, 3) if not (part and spec.lists_files)],
)
@pytest.mark.parametrize("shards", [None, Shards(tokens=10240)])
def test_every_file_of_a_format_is_known_by_its_name(
    tmp_path: Path, format_name: str, part: int | None, shards: Shards | None
) -> None:
    spec = a_spec(GPT2, format=format_name, shards=shards)
    output = opened(tmp_path, spec)
    writer = make_writer(output, {}, a_spec(spec, part=part))
    for run in cut_runs(documents_of(spec), spec, every=5):
        writer.append(run)
    writer.finish()
    names = output.names | {*output.completed()}
    output.close()
    assert len(names) > 1
    assert [name for name in names if not is_written(name)] == []


def make_hole(output: Output, name: str, n_bytes: int, header_bytes: int = 0) -> None:
    """A file of the output that has so many bytes already, none of which takes room on the disk."""
    part = output.file(name, header_bytes)
    durable.truncate(part.path, n_bytes)
    part.length = n_bytes


@pytest.mark.parametrize("name", ["llmc", "litdata"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_no_shard_outgrows_the_offsets_of_its_readers_even_where_documents_are_kept_whole(
    tmp_path: Path, name: str, dtype: str
) -> None:
    spec = a_spec(GPT2, format=name, dtype=dtype, shards=Shards(tokens=100, whole_documents=True))
    most, header = FORMATS[spec.format].most_tokens(spec.item_bytes), 1024 if name == "llmc" else 12
    first, second = ("train_000000.bin", "train_000001.bin") if name == "llmc" else ("train/chunk-0-0.bin", "train/chunk-0-1.bin")
    output = opened(tmp_path, spec)
    make_hole(output, first, header + (most - 2) * spec.item_bytes, header)
    writer = make_writer(output, {"train_tokens": most - 2, "train_open": most - 2, "train_inside": 1}, spec)
    writer.append(Tokens(False, np.arange(5).astype(dtype), np.zeros(0, np.int64)))
    writer.finish()
    entries = output.completed()
    limit = 1 << 31 if name == "llmc" else 1 << 32
    assert limit - header - 8 < entries[first].size_bytes < limit
    assert [entries[first].tokens, entries[second].tokens] == [most, 3]
    fields = np.frombuffer(output.file(first).read(0, 12), "<u4").tolist()
    assert fields[2] == (most if name == "llmc" else entries[first].size_bytes)
    assert np.frombuffer(output.file(second).read(header, 12), f"<u{spec.item_bytes}").tolist()[:3] == [2, 3, 4]
    output.close()


def test_offsets_of_mds_shards_stay_below_2_to_the_32(tmp_path: Path) -> None:
    spec = a_spec(GPT2, format="mds")
    most = FORMATS[spec.format].most_tokens(spec.item_bytes)
    spec = a_spec(spec, shards=Shards(tokens=most))
    n = most // 2048
    output = opened(tmp_path, spec)
    writer = make_writer(output, {"train_tokens": most - 1}, spec)
    writer.append(Tokens(False, np.zeros(0, np.uint16), np.zeros(1, np.int64)))
    part = output.file("train/shard.00000.mds")
    make_hole(output, "train/shard.00000.mds", part.length + 2 * (most - 1))
    writer.append(Tokens(False, np.arange(1, 3, dtype=np.uint16), np.zeros(0, np.int64)))
    writer.finish()
    sizes = [entry.size_bytes for entry in output.completed().values() if entry.side]
    assert (1 << 32) - 10_000 < sizes[0] < 1 << 32
    offsets = np.frombuffer(output.file("train/shard.00000.mds").read(4, 4 * (n + 1)), "<u4")
    assert int(offsets[-1]) == sizes[0]
    assert (np.diff(offsets.astype(np.int64)) == 4096).all()
    output.close()


@pytest.mark.parametrize("n_tokens", [(1 << 31) + 5, (1 << 32) + 5])
def test_megatron_places_documents_behind_2_to_the_31_and_2_to_the_32(tmp_path: Path, n_tokens: int) -> None:
    spec = a_spec(GPT2, format="megatron")
    output = opened(tmp_path, spec)
    shard = MegatronShard(output, spec, "train", 0)
    make_hole(output, "train.bin", 2 * n_tokens)
    shard.append(TokenSlice(np.array([7, 8, EOT], np.uint16), np.array([0, 3]), n_tokens, n_tokens))
    shard.finish(n_tokens + 3, 2, 0)
    idx = output.file("train.idx").read(0, 1000)
    n = int(np.frombuffer(idx, "<u8", 1, 18)[0])
    lengths, places = np.frombuffer(idx, "<i4", n, 34), np.frombuffer(idx, "<i8", n, 34 + 4 * n)
    assert lengths.sum(dtype=np.int64) == n_tokens + 3
    assert lengths.min() > 0
    assert (lengths[-1], places[-1]) == (3, 2 * n_tokens)
    assert places.tolist() == [2 * int(x) for x in itertools.accumulate(lengths[:-1].tolist(), initial=0)]
    ids = np.memmap(str(output.file("train.bin").path), "<u2", "r", offset=int(places[-1]))
    assert ids.tolist() == [7, 8, EOT]
    output.close()


def test_datatrove_ends_of_documents_go_past_2_to_the_32(tmp_path: Path) -> None:
    spec = a_spec(GPT2, format="datatrove")
    output = opened(tmp_path, spec)
    shard = DatatroveShard(output, spec, "train", 0)
    make_hole(output, "train/000000.ds", 1 << 33)
    shard.append(TokenSlice(np.array([7, 8, EOT], np.uint16), np.array([0, 3]), 1 << 32, 1 << 32))
    shard.finish((1 << 32) + 3, 2, 0)
    assert np.frombuffer(output.file("train/000000.ds.index").read(0, 99), "<u8").tolist() == [1 << 32, (1 << 32) + 3]
    assert f"\n{(1 << 32) + 3}\n".encode() in output.file("train/000000.ds.metadata").read(0, 99)
    output.close()


@pytest.mark.slow
def test_olmo_rows_go_past_2_to_the_32_bytes(tmp_path: Path) -> None:
    spec = a_spec(GPT2, format="olmo")
    output = opened(tmp_path, spec)
    shard = OlmoShard(output, spec, "train", 0)
    n = (1 << 31) + 5
    make_hole(output, "train/part-0-00000.npy", 2 * n)
    shard.append(TokenSlice(np.array([EOT, 7, 8, EOT], np.uint16), np.array([1, 4]), n, n))
    shard.finish(n + 4, 2, 0)
    rows = gzip.decompress(output.file("train/part-0-00000.csv.gz").read(0, 1000)).decode()
    assert rows == f"0,{n + 1},0,,1\n{n + 1},{n + 4},1,,2\n"
    output.close()


def test_an_llmc_shard_is_never_empty(tmp_path: Path) -> None:
    spec = a_spec(GPT2, format="llmc", eot="before", shards=Shards(tokens=8))
    runs = [run for run in cut_runs(documents_of(spec), spec, every=8) if not run.is_val]
    written_files(tmp_path, spec, runs[:3])
    assert list(files_in(tmp_path)) == [f"train_{i:06}.bin" for i in range(3)]
    assert len(read_llmc(sorted(tmp_path.glob("train_*")), 20240520, 1, "<u2")) == 24
