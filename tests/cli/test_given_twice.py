"""What stands in a command, in variables and in settings and cannot be meant: it is refused by name, or said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import tokmill
from tokmill.cli import app
from tokmill.cli.command import Parameter, root, takes_value
from tokmill.core.errors import TokmillError, UsageError

pytestmark = pytest.mark.usefixtures("workers_in_process")

COMMANDS = {name: command for name, command in root.commands.items() if not hasattr(command, "commands")}
SINGLE = [
    (name, each)
    for name, command in COMMANDS.items()
    for each in command.params
    if isinstance(each, Parameter) and takes_value(each) and not each.multiple
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    (directory / "c.txt").write_text("one<|endoftext|>two")
    tokmill.tokenize(directory / "c.txt", directory / "o")
    return directory / "o"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.txt").write_text("one<|endoftext|>two")
    return tmp_path


def err(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> dict[str, str]:
    """The parts of the error on standard error, by label."""
    assert app.run(arguments) == code
    said = capsys.readouterr().err
    at = said.index("tokmill: error: ")
    lines = said[at:].splitlines()
    return {"": lines[0], **{line.split(":")[0].strip(): line.partition(":")[2].strip() for line in lines[1:]}, "all": said}


@pytest.mark.parametrize(("name", "option"), SINGLE, ids=[f"{name} {option.opts[-1]}" for name, option in SINGLE])
def test_an_option_with_two_values_is_refused_with_both(capsys: pytest.CaptureFixture[str], name: str, option: Parameter) -> None:
    flag = option.about.flag
    one, two = ("1", "2") if option.about.kind is not str else ("here", "there")
    values = {"--out": "x", "--format": "raw", "--to": "x", "--seed": "1", "--sequence": "8"}
    missing = [
        each.about.flag for each in COMMANDS[name].params if isinstance(each, Parameter) and each.required and each is not option
    ]
    required = [word for each in missing for word in (each, values[each])]
    said = err(capsys, name, "c.txt", *required, flag, one, f"{flag}={two}")
    assert said[""] == f"tokmill: error: {flag} takes one value, and was given '{one}' and '{two}'"
    assert said["next"].count(flag) == 1
    assert said["next"].endswith(f"{flag} {two}")


@pytest.mark.parametrize("typed", [["-o", "a", "-o", "b"], ["-oa", "--out", "b"], ["--out=a", "-q", "-ob"]])
def test_a_short_name_is_the_same_option(capsys: pytest.CaptureFixture[str], typed: list[str]) -> None:
    said = err(capsys, "tokenize", "c.txt", *typed)
    assert "was given 'a' and 'b'" in said[""]
    words = said["next"].split()
    assert app.run(words[1:]) == 0
    assert Path("b/manifest.json").exists()
    assert not Path("a").exists()


def test_flags_and_lists_and_the_same_value_may_be_repeated() -> None:
    assert app.run(["tokenize", "c.txt", "-o", "a", "--out", "a", "-q", "-q", "--seed", "1", "--seed=1"]) == 0


@pytest.mark.parametrize("variable", ["TOKMILL_VALFRACTION", "TOKMILL_VAL_FRACTON", "TOKMILL_Val_Fraction"])
def test_a_mistyped_variable_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "0.5")
    said = err(capsys, "tokenize", "c.txt", "--out", "o")
    assert f"there is no variable {variable}; did you mean TOKMILL_VAL_FRACTION?" in said[""]
    assert not Path("o").exists()


def test_a_variable_of_another_meaning_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKMILL_RELEASE", "1.0")
    assert app.run(["tokenize", "c.txt", "--out", "o"]) == 0
    assert "the variable TOKMILL_RELEASE is that of no option" in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed",
    [
        ["tokenize", "c.txt", "--out", "o", "--stage-size", "abc"],
        ["tokenize", "c.txt", "--out", "o", "--part-bytes", "-1"],
        ["plan", "c.txt", "--memory", "lots"],
        ["inspect", "o", "--eot-id", "-5"],
        ["convert", "o", "--out", "p", "--format", "raw", "--from-eot-id", "-5"],
        ["inspect", "o", "--tokens", "-1"],
    ],
)
def test_a_value_is_checked_also_where_it_is_not_needed(capsys: pytest.CaptureFixture[str], made: Path, typed: list[str]) -> None:
    shutil.copytree(made, "o")
    said = err(capsys, *typed)
    assert typed[-2] in said["where"]
    assert said["next"].startswith(f"tokmill {typed[0]} ")


def test_where_is_written_and_what_is_discarded_says_where_it_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("tokmill.toml").write_text('out = "here"\n[tokenize]\nfresh = true\nevents = "log"\nseed = 3\n')
    assert app.run(["tokenize", "c.txt", "-q"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert sorted(said) == [
        "tokmill: --events log (from tokmill.toml:4)",
        "tokmill: --fresh (from tokmill.toml:3)",
        "tokmill: --out here (from tokmill.toml:1)",
    ]
    wrong = err(capsys, "tokenize", "d.txt")
    assert "d.txt; " in wrong["where"]
    assert "--fresh (from tokmill.toml:3)" in wrong["where"]
    # What is typed wins, and nothing is said of it; what only reads says nothing.
    assert app.run(["plan", "c.txt", "-q"]) == 0
    Path("tokmill.toml").unlink()
    monkeypatch.setenv("TOKMILL_OUT", "there")
    assert app.run(["tokenize", "c.txt", "-q", "--out", "elsewhere"]) == 0
    assert capsys.readouterr().err == ""
    assert app.run(["tokenize", "c.txt", "-q", "--json"]) == 0
    found = capsys.readouterr()
    assert found.err == "tokmill: --out there (from the variable TOKMILL_OUT)\n"
    assert json.loads(found.out)["out"].endswith("there")


@pytest.mark.parametrize(
    ("typed", "proposed"),
    [
        ("tokenize --input c.txt --output o2", "tokmill tokenize c.txt --out o2"),
        ("tokenize --input=c.txt --output=o2 --jobs 1", "tokmill tokenize c.txt --out=o2 --threads 1"),
        ("tokenize c.txt --out o --part 2/2", "tokmill tokenize c.txt --out o --part 1/2"),
        ("tokenize c.txt --out o --part 1", "tokmill tokenize c.txt --out o --part 0/8"),
        ("tokenize c.txt --out o --val-fraction 10%", "tokmill tokenize c.txt --out o --val-fraction 0.1"),
        ("tokenize c.txt --out o --val-fraction 0,1", "tokmill tokenize c.txt --out o --val-fraction 0.1"),
        ("tokenize c.txt --out o --seed 1e3", "tokmill tokenize c.txt --out o --seed 1000"),
        ("tokenize c.txt --out o --seed many", "tokmill tokenize c.txt --out o --seed 0"),
        ("tokenize c.txt --out o --memory 1", "tokmill tokenize c.txt --out o --memory 1GiB"),
        ("tokenize t.csv --out o --text-key contnt", "pass --text-key content"),
        ("tokenize t.csv --out o", "pass --text-key content"),
        ("completion", "tokmill completion bash"),
        ("--show-config", "tokmill tokenize --show-config"),
        ("inspect c.txt", "tokmill tokenize c.txt --out data"),
        ("verify data c.txt", "tokmill verify data --source c.txt"),
        ("verify --source data", "tokmill verify data --source"),
        ("verify data --source -q c.txt", "tokmill verify data --source c.txt"),
    ],
)
def test_what_is_proposed_works_when_it_is_typed(capsys: pytest.CaptureFixture[str], typed: str, proposed: str) -> None:
    Path("t.csv").write_text("content,id\nhello,1\n")
    assert app.run(["tokenize", "c.txt", "--out", "data", "-q"]) == 0
    assert app.run(typed.split()) in (1, 2)
    said = capsys.readouterr().err
    assert proposed in said.splitlines()[-1]
    if proposed.startswith("tokmill "):
        assert app.run(proposed.split()[1:]) == 0
    else:
        assert app.run([*["tokenize", "t.csv", "--out", "o", "--fresh"], *proposed.split()[1:]]) == 0


def test_what_is_missing_is_called_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no shell is given" in err(capsys, "completion")[""]


@pytest.mark.parametrize(
    "call",
    [
        lambda: tokmill.tokenize("c.txt", "o", threads="two"),  # type: ignore[arg-type]
        lambda: tokmill.tokenize("c.txt", "o", val_fraction="0.1"),  # type: ignore[arg-type]
        lambda: tokmill.tokenize("c.txt", "o", separator=None),  # type: ignore[arg-type]
        lambda: tokmill.tokenize("c.txt", "o", observers=[print]),  # type: ignore[list-item]
        lambda: tokmill.tokenize("c.txt", "o", observers=print),  # type: ignore[arg-type]
        lambda: tokmill.plan("c.txt", 3),  # type: ignore[arg-type]
        lambda: tokmill.finalize(3),  # type: ignore[arg-type]
        lambda: tokmill.verify(3),  # type: ignore[arg-type]
        lambda: tokmill.verify("o", observers=[print]),  # type: ignore[list-item]
        lambda: tokmill.verify("o", memory=b"x"),  # type: ignore[arg-type]
        lambda: tokmill.inspect(None),  # type: ignore[arg-type]
        lambda: tokmill.inspect("o", documents="x"),  # type: ignore[arg-type]
        lambda: tokmill.inspect("o", n_tokens="x"),  # type: ignore[arg-type]
        lambda: tokmill.open(3),  # type: ignore[arg-type]
        lambda: tokmill.merge(["o"], "p", observers=[print]),  # type: ignore[list-item]
        lambda: tokmill.merge(3, "p"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_type_in_python_is_an_error_of_ours(made: Path, call: object) -> None:
    shutil.copytree(made, "o")
    with pytest.raises(UsageError) as caught:
        call()  # type: ignore[operator]
    assert isinstance(caught.value, TokmillError)
    assert caught.value.next_step
