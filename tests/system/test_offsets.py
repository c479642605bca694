"""`--offsets`: where each document begins, of every format and from every command, as the ids themselves say."""

from __future__ import annotations

import contextlib
import itertools
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import some_documents, write_corpus
from support.failures import Died, dying_at, flip
from support.oracle import EOT
from support.outputs import files_in, reseal
from support.runs import append_in_process, tokenize_documents

import tokmill
from tokmill.cli.app import run
from tokmill.core.errors import ChangedError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.reports.reproduce import commands

pytestmark = pytest.mark.usefixtures("workers_in_process")

SIDES = ("train", "val")
FORMATS = ("raw", "llmc", "megatron", "datatrove", "olmo", "litdata", "mds")


def listed(out: Path, side: str) -> list[int]:
    found = np.load(out / f"{side}_document_offsets.npy")
    assert found.dtype == np.int64
    return found.tolist()  # type: ignore[no-any-return]


def by_marks(out: Path, side: str) -> list[int]:
    """What the ids say."""
    with tokmill.open(out) as data:
        ids = np.asarray(data.side(side))
        is_before = data.eot == "before"
    marks = np.flatnonzero(ids == EOT).tolist()
    return [*marks, len(ids)] if is_before else [0, *(mark + 1 for mark in marks)]


def check(out: Path) -> None:
    assert [listed(out, side) for side in SIDES] == [by_marks(out, side) for side in SIDES]
    assert tokmill.verify(out).problems == []
    assert {name for name in load_manifest(out).files if name.endswith("offsets.npy")} == {
        f"{side}_document_offsets.npy" for side in SIDES
    }


@pytest.fixture
def texts() -> list[bytes]:
    return some_documents(60, 60, 1)


@pytest.mark.parametrize("trainer", FORMATS)
def test_every_format_has_them_from_tokenize_and_convert(trainer: str, texts: list[bytes], tmp_path: Path) -> None:
    shards: dict[str, Any] = {"shard_tokens": 2048 if trainer == "mds" else 500}
    tokenize_documents(tmp_path / "t", texts, format=trainer, offsets=True, **shards)
    check(tmp_path / "t")
    tokenize_documents(tmp_path / "plain", texts)
    tokmill.convert(tmp_path / "plain", tmp_path / "c", format=trainer, offsets=True, **shards)
    check(tmp_path / "c")
    assert [listed(tmp_path / "c", side) for side in SIDES] == [listed(tmp_path / "t", side) for side in SIDES]


def test_every_command_that_makes_outputs_of_outputs_has_them_if_asked(texts: list[bytes], tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    tokenize_documents(a, texts, offsets=True)
    tokenize_documents(b, texts[:20])
    made: dict[str, Any] = {
        "merge": lambda out, **more: tokmill.merge([a, b], out, **more),
        "reshard": lambda out, **more: tokmill.reshard(a, out, shard_tokens=300, **more),
        "shuffle": lambda out, **more: tokmill.shuffle([a, b], out, seed=1, **more),
        "mix": lambda out, **more: tokmill.mix([(a, 0.5), (b, 0.5)], out, seed=1, tokens=900, **more),
        "convert": lambda out, **more: tokmill.convert(a, out, format="raw", **more),
    }
    for name, make in made.items():
        make(tmp_path / name, offsets=True)
        check(tmp_path / name)
        make(tmp_path / f"{name}-without")
        assert not [n for n in load_manifest(tmp_path / f"{name}-without").files if "offsets" in n]
        with pytest.raises(ChangedError, match="--offsets"):
            make(tmp_path / name)
        manifest = load_manifest(tmp_path / name)
        shown = commands(manifest.content, manifest.made_from, str(tmp_path / f"{name}-again"))
        assert run(shlex.split(shown.replace("\\\n", " "))[1:]) == 0, shown
        assert files_in(tmp_path / f"{name}-again") == files_in(tmp_path / name)


def test_a_side_without_a_document_has_the_first_alone(tmp_path: Path) -> None:
    tokmill.tokenize(write_corpus(tmp_path / "a.txt", ["one"]), tmp_path / "a", val_fraction=0, offsets=True)
    assert listed(tmp_path / "a", "val") == [0]
    check(tmp_path / "a")


def test_without_end_of_text_ids_they_alone_say_where_documents_end(texts: list[bytes], tmp_path: Path) -> None:
    tokenize_documents(tmp_path / "marked", texts, offsets=True)
    tokenize_documents(tmp_path / "plain", texts, offsets=True, eot="none")
    for side in SIDES:
        with_marks = listed(tmp_path / "marked", side)
        assert listed(tmp_path / "plain", side) == [offset - i for i, offset in enumerate(with_marks)]
    assert tokmill.verify(tmp_path / "plain").ok
    with pytest.raises(UsageError, match="told apart"):
        tokmill.merge(tmp_path / "plain", tmp_path / "m", offsets=True)


def test_an_append_goes_on_with_them(texts: list[bytes], tmp_path: Path) -> None:
    corpus = tokenize_documents(tmp_path / "a", texts, offsets=True)
    new = write_corpus(tmp_path / "new.txt", ["something new", "and newer"])
    append_in_process([new], tmp_path / "a", offsets=True)
    check(tmp_path / "a")
    tokmill.tokenize([corpus, new], tmp_path / "whole", val_fraction=0.2, offsets=True)
    assert files_in(tmp_path / "a") == files_in(tmp_path / "whole")


def test_died_at_any_call_it_goes_on_to_the_same_list(texts: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize_documents(tmp_path / "a", texts)

    def make(out: Path) -> None:
        tokmill.convert(tmp_path / "a", out, format="llmc", shard_tokens=400, offsets=True)

    make(tmp_path / "whole")
    for n in itertools.count(1, 5):
        out = tmp_path / f"out{n}"
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                make(out)
        if calls() < n:
            break
        make(out)
        assert files_in(out) == files_in(tmp_path / "whole")


def test_verify_finds_a_list_of_other_documents_though_its_digest_agrees_and_repair_makes_it_again(
    texts: list[bytes], tmp_path: Path
) -> None:
    corpus = tokenize_documents(tmp_path / "a", texts, offsets=True)
    tokmill.reshard(tmp_path / "a", tmp_path / "c", shard_tokens=300, offsets=True)
    listed_in = tmp_path / "c" / "train_document_offsets.npy"
    numbers = np.load(listed_in)
    numbers[3] += 1
    np.save(listed_in, numbers)
    reseal(tmp_path / "c")
    assert [problem.what for problem in tokmill.verify(tmp_path / "c").problems] == ["the offsets are not those of the documents"]
    path = tmp_path / "a" / "train_document_offsets.npy"
    whole = path.read_bytes()
    flip(path, 200)
    assert not tokmill.verify(tmp_path / "a").ok
    assert tokmill.repair(tmp_path / "a", sources=[str(corpus)]).ok
    assert path.read_bytes() == whole


def test_what_they_do_not_go_with_is_refused_by_name(texts: list[bytes], tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.txt", ["one", "two"])
    for options in ({"shard_tokens": 100, "drop_tail": True}, {"part": "0/2"}):
        with pytest.raises(UsageError) as caught:
            tokmill.tokenize(corpus, tmp_path / "out", offsets=True, **options)
        assert "--offsets" in f"{caught.value.where} {caught.value.option}"


def test_shuffled_while_it_is_tokenized_it_has_them(texts: list[bytes], tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.txt", [text.decode() for text in texts])
    tokmill.tokenize(corpus, tmp_path / "s", val_fraction=0.2, shuffle=3, offsets=True)
    check(tmp_path / "s")
