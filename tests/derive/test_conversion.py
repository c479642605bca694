"""`convert` and `reshard`: the bytes of tokenizing directly into the format, from any format, and from other tools' files."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.corpora import SEP, some_documents
from support.failures import Died, dying_at
from support.oracle import EOT, plain_tokens
from support.outputs import files_in, written
from support.runs import tokenize_directly

import tokmill
from tokmill.check import verification
from tokmill.check.location import OpenedFile
from tokmill.cli.app import run
from tokmill.core.errors import DamageError, UsageError
from tokmill.core.manifest import Manifest, load_manifest
from tokmill.core.system import durable
from tokmill.derive import conversion, engine
from tokmill.formats.registry import FORMATS

pytestmark = pytest.mark.usefixtures("workers_in_process")

DOCUMENTS = [*some_documents(40, 60, 7), b"", *some_documents(3, 900, 8), b"x"]


def shard_of(format_name: str) -> int:
    return 2048 if format_name == "mds" else 700


@pytest.fixture(autouse=True)
def many_blocks_and_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "COMMIT_BYTES", 700)
    monkeypatch.setattr("tokmill.derive.source.BLOCK_TOKENS", 101)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a corpus and, for each placement of end-of-text ids, its raw output."""
    base = tmp_path_factory.mktemp("convert")
    (base / "corpus.txt").write_bytes(SEP.encode().join(DOCUMENTS))
    for eot in ("after", "before", "none"):
        tokenize_directly(base / eot, base / "corpus.txt", eot=eot)
    return base


@pytest.mark.parametrize(("name", "eot"), [(n, e) for n in FORMATS for e in ("after", "before") if (n, e) != ("olmo", "before")])
def test_converting_gives_the_bytes_of_tokenizing_directly_and_back_again(base: Path, tmp_path: Path, name: str, eot: str) -> None:
    tokenize_directly(tmp_path / "direct", base / "corpus.txt", format=name, eot=eot, shard_tokens=shard_of(name))
    for source in (base / "after", base / "before"):
        out = tmp_path / f"from_{source.name}"
        tokmill.convert(source, out, format=name, shard_tokens=shard_of(name), to_eot=eot)
        assert files_in(out) == files_in(tmp_path / "direct")
        made, direct = load_manifest(out), load_manifest(tmp_path / "direct")
        assert (made.fingerprint, made.files) == (direct.fingerprint, direct.files)
        assert made.counts == load_manifest(source).counts
        assert tokmill.verify(out, sources=str(base / "corpus.txt")).ok
    tokmill.convert(tmp_path / "direct", tmp_path / "back", format="raw", to_eot=eot)
    assert written(tmp_path / "back") == written(base / eot)


@pytest.mark.parametrize("name", FORMATS)
def test_with_no_option_the_output_is_what_tokenize_makes_with_no_option(base: Path, tmp_path: Path, name: str) -> None:
    tokenize_directly(tmp_path / "direct", base / "corpus.txt", format=name)
    for source in (base / "after", base / "before"):
        tokmill.convert(source, tmp_path / source.name, format=name)
        assert files_in(tmp_path / source.name) == files_in(tmp_path / "direct")


@pytest.mark.parametrize("name", FORMATS)
def test_one_format_to_any_other(base: Path, tmp_path: Path, name: str) -> None:
    tokmill.convert(base / "after", tmp_path / name, format=name, shard_tokens=shard_of(name))
    for target in FORMATS:
        tokmill.convert(tmp_path / name, tmp_path / f"{name}-{target}", format=target, shard_tokens=shard_of(target))
        tokmill.convert(base / "after", tmp_path / f"raw-{target}", format=target, shard_tokens=shard_of(target), fresh=True)
        assert files_in(tmp_path / f"{name}-{target}") == files_in(tmp_path / f"raw-{target}")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.integers(1, 4000).filter(lambda n: n > 20), whole=st.booleans())
def test_any_size_of_shards_and_back_is_the_same(
    base: Path, tmp_path_factory: pytest.TempPathFactory, tokens: int, whole: bool
) -> None:
    out = tmp_path_factory.mktemp("reshard")
    tokmill.reshard(base / "after", out / "shards", shard_tokens=tokens, shard_documents=whole)
    parts = {side: sorted((out / "shards").glob(f"{side}_*.bin")) for side in ("train", "val")}
    joined = tuple(b"".join(p.read_bytes() for p in parts[side]) for side in ("train", "val"))
    assert joined == written(base / "after")
    for paths in parts.values():
        sizes = [p.stat().st_size // 2 for p in paths]
        assert all(n >= tokens if whole else n == tokens for n in sizes[:-1])
        assert not whole or all(np.fromfile(p, np.uint16)[-1] == EOT for p in paths)
    tokmill.reshard(out / "shards", out / "one", shard_tokens=None)
    assert written(out / "one") == written(base / "after")


def test_thousands_of_shards_need_few_open_files_and_are_durable_before_the_journal_names_them(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "COMMIT_BYTES", 1 << 30)
    synced: set[int] = set()
    real = durable.sync_file

    def noting(fd: int) -> None:
        synced.add(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(durable, "sync_file", noting)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, hard))
    try:
        tokmill.reshard(base / "after", tmp_path / "small", shard_tokens=8)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    shards = list((tmp_path / "small").glob("*.bin"))
    assert len(shards) > 200
    assert {shard.stat().st_ino for shard in shards} <= synced
    outlines: list[object] = []
    buffers: set[int] = set()
    real_blocks = verification._blocks
    real_outline = verification.Outline

    def outline(manifest: Manifest, budget_bytes: int | None) -> verification.Outline:
        outlines.append(manifest)
        return real_outline(manifest, budget_bytes)

    def blocks(opened: OpenedFile, n_bytes: int, buffer: memoryview) -> Iterator[memoryview]:
        buffers.add(id(buffer))
        return real_blocks(opened, n_bytes, buffer)

    monkeypatch.setattr(verification, "Outline", outline)
    monkeypatch.setattr(verification, "_blocks", blocks)
    assert tokmill.verify(tmp_path / "small").ok
    # Neither the manifest nor a buffer's megabytes once a file.
    assert (len(outlines), len(buffers)) == (1, 1)
    tokmill.reshard(tmp_path / "small", tmp_path / "one", shard_tokens=None)
    assert written(tmp_path / "one") == written(base / "after")


def test_ids_that_would_be_negative_in_megatron_are_refused(tmp_path: Path) -> None:
    np.array([5, 1 << 31, 9], np.uint32).tofile(tmp_path / "wide.bin")
    np.array([5, (1 << 31) - 1, 9], np.uint32).tofile(tmp_path / "fits.bin")
    stated: dict[str, Any] = {
        "from_format": "raw",
        "from_dtype": "uint32",
        "from_eot": "after",
        "from_eot_id": 9,
        "format": "megatron",
    }
    with pytest.raises(UsageError, match="read as negative"):
        tokmill.convert(tmp_path / "wide.bin", tmp_path / "out", **stated)
    assert not (tmp_path / "out").exists()
    tokmill.convert(tmp_path / "fits.bin", tmp_path / "out", **stated)
    assert tokmill.verify(tmp_path / "out").ok


def test_merged_shards_are_one_file_a_side(base: Path, tmp_path: Path) -> None:
    tokmill.reshard(base / "after", tmp_path / "s", shard_tokens=500)
    tokmill.merge([tmp_path / "s", base / "after"], tmp_path / "m")
    assert written(tmp_path / "m") == tuple(2 * data for data in written(base / "after"))
    assert tokmill.verify(tmp_path / "m").ok


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "raw"])
def test_runs_in_other_formats_merge_as_one_run(base: Path, tmp_path: Path, name: str) -> None:
    for part, documents in (("a", DOCUMENTS[:17]), ("b", DOCUMENTS[17:])):
        (tmp_path / f"{part}.txt").write_bytes(SEP.encode().join(documents))
        tokenize_directly(tmp_path / part, tmp_path / f"{part}.txt", format=name)
    tokenize_directly(tmp_path / "one", base / "corpus.txt", format=name)
    tokmill.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert files_in(tmp_path / "merged") == files_in(tmp_path / "one")


@pytest.mark.parametrize("name", ["megatron", "mds"])
@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_died_before_any_call_that_changes_the_disk_the_next_conversion_makes_the_same_bytes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stride: int
) -> None:
    options: dict[str, Any] = {"format": name, "shard_tokens": 2048, "to_eot": "before"}
    tokmill.convert(base / "after", tmp_path / "whole", **options)
    n = 0
    for n in range(1, 500, stride):
        out = tmp_path / f"c{n}"
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                tokmill.convert(base / "after", out, **options)
        if calls() < n:
            break
        tokmill.convert(base / "after", out, **options)
        assert files_in(out) == files_in(tmp_path / "whole"), n
    assert n > 15


def test_wider_ids_and_back(base: Path, tmp_path: Path) -> None:
    tokmill.convert(base / "after", tmp_path / "wide", format="raw", to_dtype="uint32")
    assert written(tmp_path / "wide") == plain_tokens(DOCUMENTS, val_fraction=0.2, dtype="uint32")
    tokmill.convert(tmp_path / "wide", tmp_path / "narrow", format="raw", to_dtype="uint16")
    assert written(tmp_path / "narrow") == written(base / "after")


def test_an_id_that_does_not_fit_is_refused_and_never_wrapped(tmp_path: Path) -> None:
    np.array([5, 70_000, 9], np.uint32).tofile(tmp_path / "wide.bin")
    stated: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint32", "from_eot": "after", "from_eot_id": 9}
    with pytest.raises(UsageError, match="go up to 70,000 and do not fit into uint16"):
        tokmill.convert(tmp_path / "wide.bin", tmp_path / "out", format="raw", to_dtype="uint16", **stated)


def test_documents_of_an_output_without_end_of_text_ids_cannot_be_found(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be told apart"):
        tokmill.convert(base / "none", tmp_path / "out", format="megatron")


def test_damage_in_the_source_is_named_and_nothing_is_published(base: Path, tmp_path: Path) -> None:
    tokmill.convert(base / "after", tmp_path / "s", format="llmc", shard_tokens=500)
    path = tmp_path / "s" / "train_000001.bin"
    for at in (8, 1100, path.stat().st_size - 1):
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(DamageError) as caught:
            tokmill.convert(tmp_path / "s", tmp_path / "out", format="raw")
        assert str(path) in str(caught.value.where)
        assert not (tmp_path / "out" / "manifest.json").exists()
        data[at] ^= 1
        path.write_bytes(data)
    tokmill.convert(tmp_path / "s", tmp_path / "out", format="raw")
    assert written(tmp_path / "out") == written(base / "after")


@pytest.mark.parametrize("eot", ["after", "before"])
def test_a_bare_file_of_another_tool_is_converted_as_stated(base: Path, tmp_path: Path, eot: str) -> None:
    bare = tmp_path / "fineweb_train_000001.bin"
    bare.write_bytes((base / eot / "train.bin").read_bytes())
    arguments = ["convert", bare, "--from-format", "raw", "--from-dtype", "uint16", "--from-eot", eot, "--from-eot-id", EOT]
    assert run([str(a) for a in [*arguments, "--to-eot", eot, "--format", "megatron", "--out", tmp_path / "out", "-q"]]) == 0
    tokenize_directly(tmp_path / "direct", base / "corpus.txt", format="megatron", eot=eot)
    for suffix in ("bin", "idx"):
        assert (tmp_path / "out" / f"train.{suffix}").read_bytes() == (tmp_path / "direct" / f"train.{suffix}").read_bytes()
    assert load_manifest(tmp_path / "out").counts.documents_train == load_manifest(base / eot).counts.documents_train


def test_an_output_in_the_directory_of_a_bare_source_is_refused_before_anything_is_gone(base: Path, tmp_path: Path) -> None:
    tokenize_directly(tmp_path / "src", base / "corpus.txt")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "train.bin"
    link.symlink_to(tmp_path / "src" / "train.bin")
    before = files_in(tmp_path / "src")
    stated: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": EOT, "fresh": True}
    for source in (tmp_path / "src" / "train.bin", link):
        for out, words in ((tmp_path / "src", "directory of a source"), (tmp_path / "src" / "sub", "lies in a source")):
            with pytest.raises(UsageError, match=words):
                tokmill.convert(source, out, format="llmc", **stated)
    assert files_in(tmp_path / "src") == before
    assert tokmill.verify(tmp_path / "src").ok


def test_bare_shards_with_headers_are_one_corpus_in_the_order_given(base: Path, tmp_path: Path) -> None:
    tokmill.convert(base / "after", tmp_path / "s", format="llmc", shard_tokens=500, to_eot="before")
    shards = sorted((tmp_path / "s").glob("train_*.bin"))
    stated: dict[str, Any] = {"from_format": "llmc", "from_dtype": "uint16", "from_eot": "before", "from_tokenizer": "gpt2"}
    tokmill.convert(shards, tmp_path / "out", format="raw", to_eot="after", **stated)
    assert written(tmp_path / "out")[0] == written(base / "after")[0]
    with tokmill.open(tmp_path / "out") as data:
        assert data.decode(data.document("train", 0))
    with pytest.raises(UsageError, match="the first id is"):
        tokmill.convert(shards[1:], tmp_path / "cut", format="raw", **stated)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"from_format": None}, "needs --from-format"),
        ({"from_format": "llmc"}, "does not hold the ids that it should"),
        ({"from_dtype": None}, "needs --from-dtype"),
        ({"from_dtype": "uint32"}, "the (first|last) id is|not a whole number of uint32 ids"),
        ({"from_eot": None}, "needs --from-eot"),
        ({"from_eot": "before"}, "the first id is"),
        ({"from_eot_id": None}, "needs --from-eot-id or --from-tokenizer"),
        ({"from_eot_id": 7}, "the last id is 50,256, not the end-of-text id 7"),
    ],
)
def test_what_is_not_stated_or_not_so_is_refused_before_anything_is_written(
    base: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    stated: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": EOT} | changes
    with pytest.raises(UsageError, match=words) as caught:
        tokmill.convert(base / "after" / "train.bin", tmp_path / "out", format="raw", **stated)
    assert caught.value.where
    assert caught.value.allowed
    assert caught.value.next_step
    assert not (tmp_path / "out").exists()


def test_what_is_stated_of_a_directory_that_has_a_manifest_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--from-dtype: for bare files only"):
        conversion.convert(base / "after", tmp_path / "out", format="raw", from_dtype="uint16")
