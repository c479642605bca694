"""What is said: the options of the command that was typed, numbers of tokens in their own words, the word that was meant."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from support.corpora import write_corpus
from support.oracle import EOT
from support.outputs import write_output

import tokmill
from tokmill.cli import app
from tokmill.core.errors import UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.records import FileEntry
from tokmill.formats.choose import parse_tokens, short_notices

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("workers_in_process")

TEXTS = [f"Document {i}. {'Some words, then more. ' * (i % 9)}" for i in range(60)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_output(tmp_path / "raw", write_corpus(tmp_path / "corpus.txt", TEXTS), val_fraction=0.2)
    return tmp_path / "raw"


def test_a_small_last_shard_is_told_of_options_that_the_command_has(out: Path, tmp_path: Path) -> None:
    converted = tokmill.convert(out, tmp_path / "c", format="llmc", shard_tokens=300)
    resharded = tokmill.reshard(tmp_path / "c", tmp_path / "r", shard_tokens=200)
    merged = tokmill.merge([tmp_path / "c"], tmp_path / "m")
    tokenized = tokmill.tokenize(tmp_path / "corpus.txt", tmp_path / "t", format="llmc", shard_tokens=300, val_fraction=0)
    assert "--drop-tail leaves it out" in tokenized.notices[-1]
    for outcome in (converted, resharded):
        assert any("another --shard-tokens makes it larger" in notice for notice in outcome.notices)
    assert not any("--drop-tail" in notice for each in (converted, resharded, merged) for notice in each.notices)
    content = msgspec.structs.replace(load_manifest(tmp_path / "m").content)
    files = {f"train_{i}.bin": FileEntry(size_bytes=1, side="train", tokens=1) for i in range(2)}
    assert "tokmill reshard" in short_notices(content, files, "merge")[0]


def test_a_side_of_one_small_shard_is_told_of_too(out: Path, tmp_path: Path) -> None:
    notices = tokmill.convert(out, tmp_path / "c", format="llmc").notices
    assert [notice.split()[0] for notice in notices] == ["train_000000.bin", "val_000000.bin"]
    assert all("it is all that this side has" in notice for notice in notices)
    made = load_manifest(tmp_path / "c")
    assert "modded-nanogpt" in short_notices(made.content, made.files)[1]
    assert not any("--val-fraction" in notice for notice in notices)


@pytest.mark.parametrize(
    ("text", "n"),
    [("100M", 10**8), ("1e8", 10**8), ("1.5e6", 1_500_000), ("2k", 2000), ("1.5G", 15 * 10**8), ("33_554_432", 1 << 25), (7, 7)],
)
def test_a_number_of_tokens_may_be_written_as_people_do(text: str | int, n: int) -> None:
    assert parse_tokens(text) == n


@pytest.mark.parametrize("text", ["1GiB", "many", "", "-5", "0", "1.5", "1e", "0.0001k"])
def test_what_is_no_number_of_tokens_is_not_told_of_bytes(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number of tokens") as caught:
        parse_tokens(text)
    assert caught.value.next_step == "--shard-tokens 100M"
    assert "iB" not in str(caught.value.allowed)


@pytest.mark.parametrize(
    ("arguments", "next_step"),
    [
        (["tokenize", "corpus.txt", "--format", "megatorn"], "--format megatron"),
        (["tokenize", "corpus.txt", "--eot", "befor"], "--eot before"),
        (["convert", "raw", "--format", "lit-data"], "--format litdata"),
        (["convert", "raw/train.bin", "--format", "raw", "--from-format", "lmc", "--from-dtype", "uint16"], "--from-format llmc"),
    ],
)
def test_the_nearest_value_is_what_to_type(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], next_step: str
) -> None:
    monkeypatch.chdir(out.parent)
    assert app.run([*arguments, "--out", "new"]) == 2
    assert next_step in capsys.readouterr().err.splitlines()[-1]


def test_every_option_of_convert_may_stand_in_the_environment(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"FORMAT": "raw", "DTYPE": "uint16", "EOT": "after", "EOT_ID": str(EOT), "TOKENIZER": "gpt2"}
    variables = {f"FROM_{name}": value for name, value in variables.items()}
    more = {"TO_EOT": "before", "TO_DTYPE": "uint32", "FORMAT": "raw", "OUT": str(tmp_path / "o")}
    for name, value in (variables | more).items():
        monkeypatch.setenv(f"TOKMILL_{name}", value)
    assert app.run(["convert", str(out / "train.bin"), "-q"]) == 0
    content = load_manifest(tmp_path / "o").content
    assert (content.eot, content.dtype, content.tokenizer.name) == ("before", "uint32", "gpt2")
    # What is meant for bare files or for tokenize is no obstacle to a directory.
    assert app.run(["convert", str(out), "-o", str(tmp_path / "d"), "-q"]) == 0
    assert np.fromfile(tmp_path / "d" / "train.bin", np.uint32)[0] == EOT


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("merge", "again to continue from the last commit"),
        ("convert", "again to continue from the last commit"),
        ("verify", "again"),
    ],
)
def test_an_interrupted_command_is_called_by_its_name(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    names = {"merge": "derive.merge", "convert": "derive.convert", "verify": "check.verify"}
    monkeypatch.setattr(f"tokmill.{names[command]}", interrupt)
    more = {"merge": ["-o", str(tmp_path / "x")], "convert": ["-o", str(tmp_path / "x"), "--format", "raw"], "verify": []}
    assert app.run([command, str(out), *more[command]]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(words) or words in last
    assert "tokenize" not in last


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (lambda data: data.side("test"), "there is no side 'test'"),
        (lambda data: (data.close(), data.train), "the dataset is closed"),
    ],
)
def test_a_wrong_side_and_a_closed_dataset_are_two_messages(out: Path, use: Callable[[tokmill.Dataset], object], what: str) -> None:
    with tokmill.open(out) as data, pytest.raises(UsageError) as caught:
        use(data)
    assert caught.value.what == what
    assert caught.value.where


@pytest.mark.parametrize(("shard_tokens", "words"), [(200, r"files +\d+, [\d.,]+ kB$"), (10**6, r"files +manifest|files +train_0")])
def test_the_files_of_an_output_are_named_only_where_they_are_few(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shard_tokens: int, words: str
) -> None:
    arguments = ["tokenize", str(tmp_path / "corpus.txt"), "--out", str(tmp_path / "t"), "--shard-tokens", str(shard_tokens)]
    assert app.run(arguments) == 0
    assert re.search(words, capsys.readouterr().out, re.MULTILINE)


def test_a_small_output_is_not_said_to_be_made_at_no_speed(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["convert", str(out), "--format", "llmc", "--out", str(tmp_path / "c")]) == 0
    assert app.run(["tokenize", str(tmp_path / "corpus.txt"), "--out", str(tmp_path / "t")]) == 0
    said = capsys.readouterr().out
    # Of a conversion; of the command, and of its reading, encoding and writing.
    assert len(re.findall(r"[1-9][\de.-]* [kM]B/s", said)) == 3
    assert not re.search(r" 0 [kM]B/s", said)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--column content", "--text-key content"),
        ("--field=content", "--text-key=content"),
        ("--input corpus.txt", "corpus.txt"),
        ("--model gpt2", "--tokenizer gpt2"),
        ("--shard-size 100", "--shard-tokens 100"),
        ("--ram 4G", "--memory 4G"),
        ("--jobs 4", "--threads 4"),
        ("--trainer llmc", "--format llmc"),
        ("--type jsonl", "--input-format jsonl"),
        ("--no-val", "--val-fraction 0"),
        ("--append-eod", "--eot after"),
        ("--skip-errors", "--on-error skip"),
        ("--resume", ""),
        ("--continue", ""),
        ("--thread 2", "--threads 2"),
    ],
)
def test_an_option_of_another_name_is_answered_with_the_one_that_was_meant(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["tokenize", "a.txt", "--out", "o", *typed.split()]) == 2
    fixed = f"tokmill tokenize a.txt --out o {meant}".strip()
    assert f"next:    {fixed}\n" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["--frsh", "--freshh", "--forc", "--appendd", "--yes", "--overwrite", "--restart", "--delete"])
def test_nothing_that_discards_or_changes_what_is_there_is_proposed(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["tokenize", "a.txt", "--out", "o", typed]) == 2
    told = capsys.readouterr().err
    assert "did you mean" not in told
    assert "next:    tokmill tokenize --help\n" in told


@pytest.mark.parametrize(("typed", "meant"), [("version", "--version"), ("help", "--help"), ("tokenise", "tokenize")])
def test_a_command_of_another_name_is_answered_with_the_one_that_was_meant(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run([typed]) == 2
    assert f"next:    tokmill {meant}\n" in capsys.readouterr().err


def test_what_is_missing_is_put_before_the_end_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["tokenize", "--", "t.txt", "--out"]) == 2
    assert "next:    tokmill tokenize --out DIR -- t.txt --out\n" in capsys.readouterr().err.replace(
        "--out data --", "--out DIR --"
    )
