"""Where the value of an option comes from: files, the environment, the command line, and what is said when a file is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import write_corpus

from tokmill import cli


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def effective(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[object, str]]:
    assert cli.run([*arguments, "--show-config", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["options"]
    return {name: (each["value"], each["from"]) for name, each in found.items()}


def test_a_flag_beats_the_environment_which_beats_pyproject_which_beats_tokmill_toml(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "tokmill.toml").write_text('seed = 1\nval-fraction = 0.1\neot = "before"\ndtype = "uint32"\nnice = true\n')
    (elsewhere / "pyproject.toml").write_text(
        '[project]\nname = "x"\n\n[tool.tokmill]\nseed = 2\nval_fraction = 0.2\neot = "none"\n'
    )
    monkeypatch.setenv("TOKMILL_SEED", "3")
    monkeypatch.setenv("TOKMILL_VAL_FRACTION", "0.3")
    found = effective(capsys, "tokenize", "--seed", "4")
    assert found["--seed"] == (4, "command line")
    assert found["--val-fraction"] == (0.3, "environment, TOKMILL_VAL_FRACTION")
    assert found["--eot"] == ("none", "pyproject.toml:7")
    assert found["--dtype"] == ("uint32", "tokmill.toml:4")
    assert found["--nice"] == (True, "tokmill.toml:5")
    assert found["--format"] == ("raw", "default")
    assert found["--threads"] == (None, "default: one a core")


def test_a_run_uses_the_settings_of_the_file(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(elsewhere / "corpus.txt", ["one", "two"])
    (elsewhere / "tokmill.toml").write_text('[tokenize]\nout = "made"\nval-fraction = 0\n\n[verify]\nquiet = true\n')
    assert cli.run(["tokenize", "corpus.txt", "-q"]) == 0
    assert (elsewhere / "made" / "manifest.json").exists()
    capsys.readouterr()
    assert cli.run(["verify", "made"]) == 0
    assert capsys.readouterr().out == ""


def test_a_table_is_for_its_command_alone_and_wins_over_what_is_for_all(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "tokmill.toml").write_text('format = "llmc"\n[convert]\nformat = "olmo"\n[vocab.fetch]\nto = "here"\n')
    assert effective(capsys, "tokenize")["--format"] == ("llmc", "tokmill.toml:1")
    assert effective(capsys, "convert")["--format"] == ("olmo", "tokmill.toml:3")
    assert effective(capsys, "vocab", "fetch")["--to"] == ("here", "tokmill.toml:5")


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("seed = 1\nval-fracton = 0.1\n", "tokmill.toml:2", "did you mean 'val-fraction'?"),
        ("[tokenise]\nseed = 1\n", "tokmill.toml:1", "did you mean 'tokenize'?"),
        ("\n[tokenize]\n\nto = 'x'\n", "tokmill.toml:4", "there is no setting 'to'"),
        ("nice = 1\n", "tokmill.toml:1", "nice = true or false"),
        ("seed = true\n", "tokmill.toml:1", "text or a number"),
        ("seed = [1]\n", "tokmill.toml:1", "text or a number"),
        ("seed = \n", "tokmill.toml:1", "not TOML"),
        ("# of another kind\nseed = 'many'\nout = 'o'\n", "tokmill.toml:2", "a whole number"),
    ],
)
def test_what_no_command_takes_is_refused_with_file_and_line(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], text: str, place: str, words: str
) -> None:
    (elsewhere / "tokmill.toml").write_text(text)
    assert cli.run(["tokenize", "x"]) == 2
    shown = capsys.readouterr().err
    assert f"where:   {place}\n" in shown
    assert words in shown
    assert "next:" in shown


def test_a_pyproject_that_does_not_speak_of_tokmill_is_not_looked_into(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "pyproject.toml").write_text("this = is not TOML\n")
    assert effective(capsys, "plan")["--seed"] == (0, "default")


def test_help_is_there_whatever_the_file_says(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "tokmill.toml").write_text("nonsense = 1\n")
    assert cli.run(["tokenize", "--help"]) == 0
    assert "--show-config" in capsys.readouterr().out


def test_an_error_is_json_when_the_file_asks_for_it(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "tokmill.toml").write_text("json = true\n")
    assert cli.run(["tokenize", "nowhere.txt", "--out", "o"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_show_config_does_nothing_but_show(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(elsewhere / "corpus.txt", ["one", "two"])
    assert cli.run(["tokenize", "corpus.txt", "--out", "made", "--show-config"]) == 0
    assert "--out" in capsys.readouterr().out
    assert not (elsewhere / "made").exists()
