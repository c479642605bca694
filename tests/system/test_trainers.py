"""Whole runs in the trainers' formats: what they expect is the default, what they cannot read is refused or said."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support.oracle import EOT, gpt2, plain_tokens
from support.records import a_tokenizer

import tokmill
from tokmill.cli.app import run
from tokmill.core.errors import ChangedError, InputError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.output_spec import Shards
from tokmill.formats.choose import choose_output
from tokmill.formats.registry import FORMATS

pytestmark = pytest.mark.usefixtures("workers_in_process")

TEXTS = [f"Document {i}, of {'many words, ' * (i % 7)}and an end. " * (1 + 40 * (i == 11)) for i in range(60)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def ids_of(directory: Path, side: str) -> bytes:
    with tokmill.open(directory) as data:
        return np.asarray(data.side(side)).tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_same_tokens(corpus: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    summary = tokmill.tokenize(corpus, out, format=name, val_fraction=0.3, threads=1)
    eot = "before" if name == "llmc" else "after"
    wanted = plain_tokens([text.encode() for text in TEXTS], eot=eot, val_fraction=0.3)
    assert (ids_of(out, "train"), ids_of(out, "val")) == wanted
    assert (2 * summary.tokens_train, 2 * summary.tokens_val) == (len(wanted[0]), len(wanted[1]))
    assert tokmill.verify(out, sources=str(corpus)).problems == []
    shown = tokmill.inspect(out, documents=[0])
    assert shown.sides[0].documents == summary.documents_train
    assert shown.previews[0].text.startswith("Document ")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("eot", ["before", "after"])
def test_a_document_longer_than_a_shard_is_all_there(corpus: Path, tmp_path: Path, whole: bool, eot: str) -> None:
    out = tmp_path / "out"
    tokmill.tokenize(corpus, out, shard_tokens=100, shard_documents=whole, eot=eot, val_fraction=0.3, threads=1)
    wanted = plain_tokens([text.encode() for text in TEXTS], eot=eot, val_fraction=0.3)
    assert b"".join(path.read_bytes() for path in sorted(out.glob("train_*.bin"))) == wanted[0]
    assert len(gpt2().encode_ordinary(TEXTS[11])) > 300
    counts = [path.stat().st_size // 2 for path in sorted(out.glob("train_*.bin"))]
    assert {n for n in counts[:-1] if n < 100} == set() if whole else set(counts[:-1]) == {100}
    assert tokmill.verify(out, sources=str(corpus)).problems == []


def test_no_document_and_no_copy_of_one_is_on_both_sides(corpus: Path, tmp_path: Path) -> None:
    with corpus.open("a") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in TEXTS)
    out = tmp_path / "out"
    tokmill.tokenize(corpus, out, format="llmc", shard_tokens=50, val_fraction=0.3, threads=1)
    with tokmill.open(out) as data:
        train, val = ({bytes(np.asarray(d)) for d in data.documents(side)} for side in ("train", "val"))
    assert len(train) + len(val) == len(TEXTS)
    assert not train & val


def test_validation_is_taken_from_everywhere(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tokmill.tokenize(corpus, out, format="llmc", shard_tokens=50, val_fraction=0.3, threads=1)
    with tokmill.open(out) as data:
        numbers = [int(data.decode(d).split()[1].strip(",")) for d in data.documents("val")]
    assert min(numbers) < 20
    assert max(numbers) >= 40
    assert max(b - a for a, b in pairwise(numbers)) < 20


def test_a_bad_line_ends_the_run_and_nothing_is_published(corpus: Path, tmp_path: Path) -> None:
    with corpus.open("a") as file:
        file.write('{"id": 5, "text": 7}\n')
    with pytest.raises(InputError):
        tokmill.tokenize(corpus, tmp_path / "out", format="olmo", threads=1)
    assert not (tmp_path / "out").exists()


def test_white_space_is_text_and_empty_documents_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["  a \n", "", " ", "b"]))
    summary = tokmill.tokenize(path, tmp_path / "out", format="megatron", val_fraction=0, threads=1)
    assert summary.skipped == {"empty": 1}
    with tokmill.open(tmp_path / "out") as data:
        assert [data.decode(d) for d in data.documents("train")] == ["  a \n", " ", "b"]


def test_another_format_replaces_the_one_before(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tokmill.tokenize(corpus, out, format="mds", threads=1)
    with pytest.raises(ChangedError, match="--format was mds, is megatron; --shard-tokens was 33554432, is not given"):
        tokmill.tokenize(corpus, out, format="megatron", threads=1)
    tokmill.tokenize(corpus, out, format="megatron", val_fraction=0, threads=1, fresh=True)
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "train.bin", "train.idx"]


def test_the_dtype_counts_every_id_that_may_come() -> None:
    def dtype(name: str, n_ids: int) -> str:
        return choose_output(name, a_tokenizer(n_ids=n_ids, eot_id=n_ids - 1), eot="auto", dtype="auto").dtype

    assert [dtype("raw", n) for n in (65_536, 65_537)] == ["uint16", "uint32"]
    assert [dtype("megatron", n) for n in (65_499, 65_500)] == ["uint16", "uint32"]


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_trainer_expects_is_the_default_and_brings_no_notice(name: str) -> None:
    choice = choose_output(name, a_tokenizer(), eot="auto", dtype="auto")
    assert choice.notices == []
    assert choice.eot == ("before" if name == "llmc" else "after")
    assert choice.shards == (Shards(tokens=FORMATS[name].shard_tokens or 0) if name in ("llmc", "litdata", "mds") else None)


@pytest.mark.parametrize(
    ("name", "options"), [("llmc", {"eot": "after"}), ("megatron", {"eot": "before"}), ("llmc", {"dtype": "uint32"})]
)
def test_what_a_trainer_reads_wrongly_is_said(name: str, options: dict[str, str]) -> None:
    choice = choose_output(name, a_tokenizer(), **({"eot": "auto", "dtype": "auto"} | options))  # type: ignore[arg-type]
    assert len(choice.notices) == 1
    assert f"--format {name}" in choice.notices[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("olmo", {"eot": "before"}),
        ("olmo", {"eot": "none"}),
        ("raw", {"shard_documents": True}),
        ("raw", {"drop_tail": True}),
        ("raw", {"shard_tokens": 0}),
        ("raw", {"shard_tokens": "many"}),
        ("llmc", {"shard_tokens": 1 << 30}),
        ("mds", {"shard_tokens": 5000}),
        ("mds", {"shard_documents": True}),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_what_it_can(name: str, options: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        choose_output(name, a_tokenizer(), **({"eot": "auto", "dtype": "auto"} | options))  # type: ignore[arg-type]
    assert caught.value.where
    assert caught.value.allowed
    assert caught.value.next_step


def test_a_last_shard_that_ends_a_training_is_said(corpus: Path, tmp_path: Path) -> None:
    summary = tokmill.tokenize(corpus, tmp_path / "out", format="llmc", shard_tokens=500, val_fraction=0, threads=1)
    last = max(summary.files)
    assert [f"{last} has only" in notice and "--drop-tail" in notice for notice in summary.notices] == [True]
    dropped = tokmill.tokenize(
        corpus, tmp_path / "less", format="llmc", shard_tokens=500, drop_tail=True, val_fraction=0, threads=1
    )
    assert set(dropped.files) == set(summary.files) - {last}
    assert load_manifest(tmp_path / "less").counts.tokens_train == summary.tokens_train


def test_ids_of_text_are_never_an_end_of_text_id(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"text": "a<|endoftext|>b"}) + "\n")
    tokmill.tokenize(path, tmp_path / "out", format="olmo", val_fraction=0, threads=1)
    ids = np.fromfile(tmp_path / "out" / "train" / "part-0-00000.npy", "<u2")
    assert np.count_nonzero(ids == EOT) == 1


def test_inspect_counts_what_drop_tail_left_out_among_the_tokens_of_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("some words of a text, " * 2000)
    summary = tokmill.tokenize(tmp_path / "a.txt", tmp_path / "o", shard_tokens=7000, drop_tail=True, val_fraction=0)
    assert summary.dropped_tokens_train
    assert run(["inspect", str(tmp_path / "o")]) == 0
    made = sum(entry.size_bytes // 2 for entry in summary.files.values()) + summary.dropped_tokens_train
    assert f"{summary.bytes_text / made:.2f} bytes per token" in capsys.readouterr().out
