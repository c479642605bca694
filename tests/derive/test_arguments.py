"""What a person names as sources and output: whatever it is, the message says what it is and what to type instead."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.corpora import write_corpus
from support.oracle import EOT, gpt2
from support.outputs import write_output

import tokmill
from tokmill.cli import app
from tokmill.cli.command import Parameter, root
from tokmill.core.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["First document.", "The second one.", "A third"]
AS = ["--from-format", "raw", "--from-dtype", "uint16", "--from-eot", "after", "--from-eot-id", str(EOT)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the outputs a and b, a file of text and a folder of bare files."""
    corpus = write_corpus(tmp_path / "corpus.txt", TEXTS)
    for name in ("a", "b"):
        write_output(tmp_path / name, corpus, val_fraction=0.0)
    (tmp_path / "bare").mkdir()
    for i, text in enumerate(TEXTS):
        np.array([*gpt2().encode_ordinary(text), EOT], np.uint16).tofile(tmp_path / "bare" / f"{i}.bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "what", "next_step"),
    [
        (["reshard", "nodir"], "there is no such file or directory", "check the path|ls "),
        (["reshard", "bare/0.bin"], "this is a file, not a directory", "tokmill convert .*0.bin"),
        (["reshard", "[ab]"], "reshard takes one directory", "tokmill merge .*/a .*/b --out merged, then tokmill reshard"),
        (["merge", "a", "corpus.txt"], "this is a file, not a directory", "give the directory that was --out"),
        (["merge", "a", "nodir"], "there is no such file or directory", "check the path|ls "),
        (["merge", "aa", "nodir"], "there is no such file or directory", "check each of the paths"),
        (["merge", "a", ""], "the name of an input is empty", "leave it out"),
        (["merge", "a", "bare"], "no complete tokmill output here", "give the directory"),
        (["convert", "a", "b", "--format", "llmc"], "convert takes one directory", "tokmill merge .*/a .*/b --out merged"),
        (["convert", "a", "bare/0.bin", "--format", "llmc"], "a directory among bare files", "tokmill merge"),
        (["convert", "tpyo", "--format", "llmc"], "there is no such file or directory", "check the path|ls "),
        (["convert", "bare/*.ds", "--format", "llmc"], "nothing matches this pattern", "check the path|ls "),
        (["convert", "bare", "--format", "llmc", *AS], "no manifest: its files are bare", "tokmill convert '.*/bare/\\*.bin'"),
        (["convert", "a", "--format", "llmc", *AS], "for bare files only; a directory's manifest knows", "leave them out"),
    ],
)
def test_what_cannot_be_taken_is_said_to_be_what_it_is(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str, next_step: str
) -> None:
    assert app.run([*arguments, "--out", "new"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert what in first
    assert [line.split(":")[0].strip() for line in rest] == ["where", "allowed", "next"]
    assert re.search(next_step, rest[-1])
    assert not (here / "new").exists()


def test_a_bare_file_is_not_a_disk_that_fails(here: Path) -> None:
    for call in (tokmill.verify, tokmill.repair):
        with pytest.raises(UsageError, match="this is a file, not a directory that tokmill made"):
            call(here / "bare" / "0.bin")
    with pytest.raises(UsageError, match="there is no such directory"):
        tokmill.verify(here / "nowhere")


@pytest.mark.parametrize("command", [["merge", "a"], ["convert", "a", "--format", "llmc"], ["reshard", "a"]])
def test_an_output_without_a_name_is_not_the_working_directory(
    here: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    before = sorted(here.iterdir())
    assert app.run([*command, "--out", ""]) == 2
    assert "no output directory" in capsys.readouterr().err
    assert sorted(here.iterdir()) == before


def test_quoted_patterns_are_expanded_in_order(here: Path) -> None:
    assert app.run(["convert", "bare/?.bin", "--format", "raw", *AS, "--out", "joined", "-q"]) == 0
    assert (here / "joined" / "train.bin").read_bytes() == (here / "a" / "train.bin").read_bytes()
    assert app.run(["merge", "[ab]", "--out", "both", "-q"]) == 0
    assert (here / "both" / "train.bin").read_bytes() == 2 * (here / "a" / "train.bin").read_bytes()


@pytest.mark.parametrize("name", ["shuffle", "mix", "dedup", "pack"])
def test_the_help_of_what_derives_outputs_says_its_own_memory_and_shards(name: str) -> None:
    usual = {each.about.name: each.about.usual for each in root.commands[name].params if isinstance(each, Parameter)}
    assert usual["memory"] == "1GiB"
    assert (usual["shard_tokens"] or "").startswith("one file a side" if name == "pack" else "those of a single DIR")


def test_without_ray_shuffle_advises_what_it_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_output(tmp_path / "a", write_corpus(tmp_path / "corpus.txt", TEXTS), val_fraction=0.0)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "tokmill.run.parts.ray", raising=False)
    with pytest.raises(UsageError, match="Ray is not installed") as caught:
        tokmill.shuffle(tmp_path / "a", tmp_path / "b", seed=1, ray="auto")
    assert str(caught.value.next_step).endswith("or leave --ray out")
