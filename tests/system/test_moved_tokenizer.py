"""An output whose tokenizer is not on this machine: the network is asked only for one that the user names.

A manifest may be anybody's, and the repository that it names too.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import called, command
from support.in_process import workers_in_process
from support.small_tokenizers import path_of
from support.web import Answer, answering

import tokmill
from tokmill.core.errors import UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COMMANDS = {
    "inspect": ("inspect", "out"),
    "report": ("report", "out"),
    "verify": ("verify", "out", "--source", "a.txt"),
    "repair": ("verify", "out", "--repair"),
}


def answers() -> dict[str, Answer]:
    """What a hub says of the repository some/thing."""
    found = {}
    for revision in ("main", COMMIT):
        headers = (("X-Repo-Commit", COMMIT), ("ETag", '"x"'))
        found[f"/some/thing/resolve/{revision}/tokenizer.json"] = Answer(path_of("llama3").read_bytes(), 200, headers)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of a repository's tokenizer, whose cache is gone; and its corpus."""
    directory = tmp_path_factory.mktemp("moved")
    (directory / "a.txt").write_text("one<|endoftext|>two")
    with answering(answers()) as url:
        arguments = ("tokenize", directory / "a.txt", "--out", directory / "out", "--tokenizer", "some/thing")
        done = command(*arguments, HF_ENDPOINT=url, HF_HOME=str(directory / "home"))
    assert done.returncode == 0, done.stderr
    shutil.rmtree(directory / "home")
    return directory


def run(
    made: Path, name: str, tmp_path: Path, *more: str, start: Callable[..., subprocess.CompletedProcess[str]] = command
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """A command on a copy of the output, damaged where it is to be repaired; and what the hub was asked for."""
    out, (verb, _, *options) = tmp_path / "out", COMMANDS[name]
    shutil.copytree(made / "out", out)
    if name == "repair":
        (out / "train.bin").write_bytes(b"\0" * (out / "train.bin").stat().st_size)
    options = [option.replace("a.txt", str(made / "a.txt")) for option in options]
    asked: list[str] = []
    with answering(answers(), asked) as url:
        done = start(verb, out, *options, *more, HF_ENDPOINT=url, HF_HOME=str(tmp_path / "home"))
    return done, asked


@pytest.mark.parametrize("name", COMMANDS)
def test_a_manifest_does_not_make_a_command_ask_the_network(made: Path, name: str, tmp_path: Path) -> None:
    done, asked = run(made, name, tmp_path)
    assert not asked
    if name == "report":
        assert (done.returncode, "is not on this machine" in done.stdout + done.stderr) == (0, True)
    else:
        assert done.returncode == 2
        assert "is not on this machine" in done.stderr
        assert f"--tokenizer some/thing@{COMMIT}" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("where", ["hub", "file"])
def test_a_tokenizer_that_is_named_is_used(made: Path, name: str, where: str, tmp_path: Path) -> None:
    done, asked = run(made, name, tmp_path, "--tokenizer", "some/thing" if where == "hub" else str(path_of("llama3")))
    assert done.returncode == 0, done.stderr
    assert bool(asked) == (where == "hub")
    assert "is not on this machine" not in done.stdout


@pytest.mark.parametrize("name", [*COMMANDS])
def test_another_tokenizer_is_not_taken_for_it(made: Path, name: str, tmp_path: Path) -> None:
    with workers_in_process():
        done, _ = run(made, name, tmp_path, "--tokenizer", "gpt2", start=called)
    assert "is not the one that made the ids" in done.stdout + done.stderr


def test_in_python_neither(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(made / "none"))
    asked: list[str] = []
    with answering(answers(), asked):
        with tokmill.open(made / "out") as data, pytest.raises(UsageError, match="is not on this machine"):
            data.decode(data.document("train", 0))
        with tokmill.open(made / "out", tokenizer=str(path_of("llama3"))) as data:
            assert data.decode(data.document("train", 0)) == "one"
    assert not asked
