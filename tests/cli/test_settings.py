"""Where the value of an option comes from: files, the environment, the command line, and what is said when a file is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.corpora import write_corpus

from tokmill.cli import app, settings
from tokmill.cli.console import Console

pytestmark = pytest.mark.usefixtures("workers_in_process")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def effective(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[object, str]]:
    assert app.run([*arguments, "--show-config", "--json"]) == 0
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
    assert app.run(["tokenize", "corpus.txt", "-q"]) == 0
    assert (elsewhere / "made" / "manifest.json").exists()
    capsys.readouterr()
    assert app.run(["verify", "made"]) == 0
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
        ("text_key = 'a'\ntext-key = 'b'\n", "tokmill.toml:2", "text_key and text-key are the same setting"),
        ("# of another kind\nseed = 'many'\nout = 'o'\n", "tokmill.toml:2", "a whole number"),
    ],
)
def test_what_no_command_takes_is_refused_with_file_and_line(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], text: str, place: str, words: str
) -> None:
    (elsewhere / "tokmill.toml").write_text(text)
    assert app.run(["tokenize", "x"]) == 2
    shown = capsys.readouterr().err
    assert f"where:   {place}\n" in shown
    assert words in shown
    assert "next:" in shown


def test_a_pyproject_that_does_not_speak_of_tokmill_is_not_looked_into(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "pyproject.toml").write_text("this = is not TOML\n")
    assert effective(capsys, "plan")["--seed"] == (0, "default")


@pytest.mark.parametrize(
    "content",
    [
        b"this = is not TOML\n# tokmill\n",
        b'[project]\ndependencies = ["tokmill"\n',
        b"[project]\nauthor = 'J\xfcrgen'  # tokmill\n",
    ],
    ids=["comment", "dependency", "latin-1"],
)
def test_a_broken_pyproject_without_a_table_of_tokmill_is_no_error(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (elsewhere / "pyproject.toml").write_bytes(content)
    assert effective(capsys, "plan")["--seed"] == (0, "default")


@pytest.mark.parametrize("head", ["[tool.tokmill]", '[ tool . "tokmill" ]', "[tool.tokmill.plan]", "tool.tokmill.seed = 2"])
def test_a_broken_pyproject_with_a_table_of_tokmill_is_refused(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], head: str
) -> None:
    (elsewhere / "pyproject.toml").write_text(f"{head}\nseed = \n")
    assert app.run(["plan", "x"]) == 2
    assert "where:   pyproject.toml:2\n" in capsys.readouterr().err


def test_a_byte_order_mark_is_no_part_of_the_settings(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "tokmill.toml").write_bytes(b"\xef\xbb\xbfseed = 1\r\nnice = true\r\n")
    found = effective(capsys, "plan")
    assert found["--seed"] == (1, "tokmill.toml:1")
    assert found["--nice"] == (True, "tokmill.toml:2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tokenize", "--help"], "--show-config"),
        (["--help"], "Commands"),
        ([], "Commands"),
        (["--version"], "tokmill "),
        (["completion", "bash"], "complete "),
    ],
)
def test_what_needs_no_settings_is_there_whatever_the_file_says(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (elsewhere / "tokmill.toml").write_text("nonsense = \n")
    assert app.run(arguments) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_the_value_of_an_option_asks_for_no_help(elsewhere: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "tokmill.toml").write_text("sede = 1\n")
    write_corpus(elsewhere / "c.txt", ["one", "two"])
    assert app.run(["plan", "c.txt", "--separator", word]) == 2
    assert "tokmill.toml:1" in capsys.readouterr().err
    assert app.run(["plan", "c.txt", "--quiet", word]) == 0
    assert "Usage: tokmill plan" in capsys.readouterr().out


def test_what_is_behind_two_dashes_asks_for_no_help(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "tokmill.toml").write_text("nonsense = \n")
    assert app.run(["tokenize", "--out", "o", "--", "--help"]) == 2
    assert "where:   tokmill.toml:1\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "option", "next_step"),
    [
        ("threads = 0", "--threads", "write threads = 1 in tokmill.toml:1, and run the command again"),
        ('format = "llm"', "--format", 'write format = "llmc" in tokmill.toml:1, and run the command again'),
        ('memory = "512"', "--memory 512", 'write memory = "512MiB" in tokmill.toml:1, and run the command again'),
        ("memory = 512", "--memory 512", 'write memory = "512MiB" in tokmill.toml:1, and run the command again'),
        ('shard-tokens = "many"', "--shard-tokens", 'write shard-tokens = "100M" in tokmill.toml:1, and run the command again'),
        ('separator = ""', "--separator", r'write separator = "\\n\\n" in tokmill.toml:1, and run the command again'),
        ('tokenizer = "gpt9"', "--tokenizer", 'write tokenizer = "gpt2" in tokmill.toml:1, and run the command again'),
    ],
)
def test_a_value_of_a_file_that_is_refused_is_mended_in_the_file(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], setting: str, option: str, next_step: str
) -> None:
    write_corpus(elsewhere / "c.txt", ["one", "two"])
    (elsewhere / "tokmill.toml").write_text(setting + "\n")
    assert app.run(["tokenize", "c.txt", "--out", "o"]) == 2
    shown = capsys.readouterr().err
    assert f"where:   tokmill.toml:1 ({option})\n" in shown
    assert f"next:    {next_step}\n" in shown


def test_a_value_of_the_environment_that_is_refused_is_mended_there(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(elsewhere / "c.txt", ["one", "two"])
    monkeypatch.setenv("TOKMILL_EOT", "behind")
    assert app.run(["tokenize", "c.txt", "--out", "o"]) == 2
    shown = capsys.readouterr().err
    assert "where:   the variable TOKMILL_EOT (--eot)\n" in shown
    assert "next:    export TOKMILL_EOT=" in shown


def test_a_value_that_was_typed_is_mended_on_the_command_line(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(elsewhere / "c.txt", ["one", "two"])
    (elsewhere / "tokmill.toml").write_text('format = "raw"\n')
    assert app.run(["tokenize", "c.txt", "--out", "o", "--format", "llm"]) == 2
    shown = capsys.readouterr().err
    assert "where:   --format\n" in shown
    assert "next:    tokmill tokenize c.txt --out o --format llmc\n" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["tokenize", "nowhere.txt", "--out", "o"],
        ["tokenize", "nowhere.txt", "--ouch", "o"],
        ["vocab", "fetch", "nothing", "--to", "o"],
        ["vocab", "fetch", "--ouch"],
        ["vocab", "fetsch"],
        ["tokenise", "nowhere.txt"],
        ["completion", "csh"],
    ],
    ids=" ".join,
)
def test_an_error_of_any_command_is_json_when_the_file_asks_for_it(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    (elsewhere / "tokmill.toml").write_text("json = true\n")
    assert app.run(arguments) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_the_environment_takes_the_json_of_a_file_away(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "tokmill.toml").write_text("json = true\n")
    monkeypatch.setenv("TOKMILL_JSON", "0")
    assert app.run(["vocab", "fetch", "--ouch"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "is_set"),
    [
        (["tokenize", "-v"], True),
        (["tokenize", "-qv"], True),
        (["tokenize", "-o/v"], False),
        (["tokenize", "-vo/x"], True),
        (["tokenize", "--", "-v"], False),
        (["tokenize", "--", "--verbose"], False),
        (["tokenize", "--verbose"], True),
    ],
)
def test_a_flag_is_found_among_the_words_of_a_command_that_cannot_be_parsed(words: list[str], is_set: bool) -> None:
    console = Console(words, lambda: settings.NONE)
    assert console.has_flag("--verbose", short="v") == is_set


def test_show_config_does_nothing_but_show(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(elsewhere / "corpus.txt", ["one", "two"])
    assert app.run(["tokenize", "corpus.txt", "--out", "made", "--show-config"]) == 0
    assert "--out" in capsys.readouterr().out
    assert not (elsewhere / "made").exists()


def test_out_of_all_commands_is_not_the_file_of_a_report(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "tokmill.toml").write_text('out = "data"\n')
    assert effective(capsys, "tokenize")["--out"] == ("data", "tokmill.toml:1")
    assert effective(capsys, "report")["--out"][0] is None


@pytest.mark.parametrize("words", [["completion", "bash"], ["vocab", "list"], ["doctor"]])
def test_show_config_of_commands_with_few_options(words: list[str], elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run([*words, "--show-config"]) == 0
    assert f"tokmill {' '.join(words[: 1 + (words[0] == 'vocab')])}: every option" in capsys.readouterr().out


def test_show_config_shows_no_password_and_no_signature(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "tokmill.toml").write_text('tokenizer = "https://me:hunter2@example.org/t.json?X-Amz-Signature=abcdef"\n')
    for more in ([], ["--json"]):
        assert app.run(["tokenize", "--show-config", *more]) == 0
        shown = capsys.readouterr().out
        assert "https://example.org/t.json" in shown
        assert "hunter2" not in shown
        assert "abcdef" not in shown


def test_an_option_that_may_be_repeated_and_was_not_given_is_not_set(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert effective(capsys, "convert", "o", "--format", "llmc")["--val-input"] == (None, "not set")
    assert app.run(["convert", "o", "--val-input", "a", "--val-input", "b", "--show-config"]) == 0
    assert "a b  " in capsys.readouterr().out


def test_a_group_of_commands_alone_shows_its_help(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "tokmill.toml").write_text("nonsense = \n")
    assert app.run(["vocab"]) == 0
    assert "fetch" in capsys.readouterr().out


def test_an_option_that_may_be_repeated_is_a_list_everywhere(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert effective(capsys, "tokenize")["--glob"] == (None, "not set")
    assert effective(capsys, "tokenize", "--glob", "*.md", "--glob", "a b")["--glob"] == (["*.md", "a b"], "command line")
    (elsewhere / "tokmill.toml").write_text('glob = ["*.md", "*.py"]\n')
    for command in ("tokenize", "plan", "verify"):
        assert effective(capsys, command)["--glob"] == (["*.md", "*.py"], "tokmill.toml:1")
    monkeypatch.setenv("TOKMILL_GLOB", "my notes *.{md,py}")
    assert effective(capsys, "tokenize")["--glob"] == (["my notes *.{md,py}"], "environment, TOKMILL_GLOB")


def test_options_that_no_input_takes_notice_of_are_told(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(elsewhere / "a.txt", ["one", "two"])
    (elsewhere / "b.jsonl").write_text('{"text": "three"}\n')
    for inputs, options, told in (
        (["a.txt"], ["--glob", "*.md"], "--glob has no effect"),
        (["b.jsonl"], ["--separator", "x"], "--separator has no effect"),
        (["a.txt"], ["--text-key", "x", "--input-format", "text"], "--text-key has no effect"),
        (["a.txt", "b.jsonl"], ["--separator", "x"], ""),
        ([".", "a.txt"], ["--glob", "a*"], ""),
    ):
        assert app.run(["plan", *inputs, *options]) == 0
        said = capsys.readouterr().out
        assert told in said
        assert ("has no effect" in said) is bool(told)
