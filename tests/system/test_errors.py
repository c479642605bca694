"""Every way to end with a code that is not 0: what happened, where, what is allowed, and what to type next."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from support.commands import clean_environment, wait_until
from support.corpora import write_corpus
from support.failures import limit_disk

import tokmill
from tokmill.cli import app
from tokmill.core.errors import error_classes
from tokmill.core.text import misspelt, printable_line, quoted
from tokmill.output.state_dir import acquire_lock
from tokmill.run.estimate import forecast

pytestmark = pytest.mark.usefixtures("workers_in_process")

PACKAGE = Path(tokmill.__file__).parent
PARTS = {"where": {"where", "option", "path"}, "allowed": {"allowed"}, "next_step": {"next_step", "suggested", "path"}}
"""Of an error, the arguments that give each part."""


def raised() -> Iterator[tuple[str, set[str | None]]]:
    """Every call in the source that makes an error of tokmill, and the parts it gives."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in error_classes():
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno} {name}", {keyword.arg for keyword in node.keywords}


def test_every_error_in_the_source_says_where_what_is_allowed_and_what_is_next() -> None:
    found = list(raised())
    assert len(found) > 150
    lacking = {place: [part for part, names in PARTS.items() if not names & given] for place, given in found}
    assert {place: parts for place, parts in lacking.items() if parts} == {}


def shown_parts(text: str) -> dict[str, str]:
    """The parts of the last error that a command printed; a part may have several lines."""
    text = text[text.rindex("tokmill: error: ") :]
    found = re.findall(r"^  (where|allowed|next): +(.+?)(?=\n  \w|\Z)", text, re.MULTILINE | re.DOTALL)
    return {"what": text.split("\n", 1)[0].removeprefix("tokmill: error: "), **dict(found)}


def bad_record(path: Path, _: pytest.MonkeyPatch) -> list[str]:
    (path / "corpus.jsonl").write_text('{"text": "one"}\n{"text": 2}\n')
    return ["tokenize", str(path / "corpus.jsonl"), "--out", str(path / "o")]


def no_corpus(path: Path, _: pytest.MonkeyPatch) -> list[str]:
    return ["tokenize", str(path / "nowhere.txt"), "--out", str(path / "o")]


def unforeseen(path: Path, patch: pytest.MonkeyPatch) -> list[str]:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("surprise")

    patch.setattr(forecast, "ask", fail)
    return ["plan", str(corpus(path))]


def damaged(path: Path, _: pytest.MonkeyPatch) -> list[str]:
    tokmill.tokenize(corpus(path), path / "o")
    data = bytearray((path / "o" / "train.bin").read_bytes())
    data[5] ^= 1
    (path / "o" / "train.bin").write_bytes(data)
    return ["verify", str(path / "o")]


def locked(path: Path, patch: pytest.MonkeyPatch) -> list[str]:
    (path / "o" / ".tokmill").mkdir(parents=True)
    patch.setattr(sys, "held", acquire_lock(path / "o"), raising=False)
    return ["tokenize", str(corpus(path)), "--out", str(path / "o")]


def changed(path: Path, _: pytest.MonkeyPatch) -> list[str]:
    tokmill.tokenize(corpus(path), path / "o")
    return ["tokenize", str(corpus(path)), "--out", str(path / "o"), "--seed", "5"]


def small_budget(path: Path, _: pytest.MonkeyPatch) -> list[str]:
    return ["tokenize", str(corpus(path)), "--out", str(path / "o"), "--memory", "10MiB"]


def small_disk(path: Path, patch: pytest.MonkeyPatch) -> list[str]:
    limit_disk(patch, free_bytes=100)
    return ["tokenize", str(corpus(path)), "--out", str(path / "o")]


def many_bad(path: Path, patch: pytest.MonkeyPatch) -> list[str]:
    return [*bad_record(path, patch), "--on-error", "skip", "--max-skipped", "0"]


def corpus(path: Path) -> Path:
    return path / "corpus.txt" if (path / "corpus.txt").exists() else write_corpus(path / "corpus.txt", ["one", "two words"] * 20)


WAYS: list[tuple[int, Callable[[Path, pytest.MonkeyPatch], list[str]]]] = [
    (1, bad_record),
    (1, unforeseen),
    (2, no_corpus),
    (2, lambda path, _: ["tokenize", str(corpus(path))]),
    (10, damaged),
    (11, locked),
    (12, changed),
    (13, small_budget),
    (14, small_disk),
    (15, many_bad),
]


@pytest.mark.parametrize(("code", "way"), WAYS)
def test_every_exit_code_comes_with_four_parts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    way: Callable[[Path, pytest.MonkeyPatch], list[str]],
) -> None:
    assert app.run(way(tmp_path, monkeypatch)) == code
    parts = shown_parts(capsys.readouterr().err)
    assert {*parts} == {"what", "where", "allowed", "next"}
    assert all(parts.values())


def test_an_interrupted_run_says_in_four_parts_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(tmp_path / "o")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"some text, and no end of it")
        process.stdin.flush()
        wait_until((tmp_path / "o" / ".tokmill" / "journal").exists, process)
        os.kill(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert {*shown_parts(errors.decode())} == {"what", "where", "allowed", "next"}


def test_every_exit_code_of_the_tree_is_in_the_tests_above_and_in_the_docs() -> None:
    codes = {cls.exit_code for cls in error_classes().values()}
    assert codes == {code for code, _ in WAYS} | {130}
    page = (PACKAGE.parents[1] / "docs/howto/exit-codes.md").read_text()
    assert {code for code in codes if not re.search(rf"^\| {code} \|", page, re.MULTILINE)} == set()


PARSER = [
    ("tokenize x --ouput d", "did you mean --out?", "tokmill tokenize x --out d"),
    ("tokenize x -o d --max-skippd=3", "did you mean --max-skipped?", "tokmill tokenize x -o d --max-skipped=3"),
    ("tokenize x -o d --zzzz", "there is no option --zzzz", "tokmill tokenize --help"),
    ("plan x --append", "plan has no --append, which is an option of tokmill tokenize", "tokmill plan x"),
    ("tokenise x", "did you mean tokenize?", "tokmill tokenize x"),
    ("nonsense", "there is no command 'nonsense'", "tokmill --help"),
    ("vocab fetsh gpt2", "did you mean fetch?", "tokmill vocab fetch gpt2"),
    ("tokenize", "no INPUT is given", "tokmill tokenize INPUT --out DIR"),
    ("tokenize x", "--out is missing", "tokmill tokenize x --out DIR"),
    ("convert x", "--out is missing", "tokmill convert x --out DIR --format raw"),
    ("tokenize x -o", "-o has no value", "tokmill tokenize x -o DIR"),
    ("tokenize x -o d --fresh=1", "--fresh does not take a value", "tokmill tokenize x -o d --fresh"),
    ("tokenize x -o d --seed many", "the value 'many' of --seed is not a whole number", "tokmill tokenize x -o d --seed 0"),
    ("tokenize x -o d --val-fraction=x", "'x' of --val-fraction is not a number", "tokmill tokenize x -o d --val-fraction 0.0005"),
    ("inspect a b", "too many arguments: b", "tokmill inspect a"),
    ("tokenize x -o d --eot between", "'between' is not a value of --eot", "tokmill tokenize x -o d --eot auto"),
    ("--nope", "there is no option --nope", "tokmill --help"),
    (
        "tokenize https%3A%2F%2Fhost.invalid%2Fa%20b.txt -o d",
        "this is not a path, and not quite a URL",
        "tokmill tokenize https://host.invalid/a%20b.txt -o d",
    ),
    (
        "tokenize ftp:host/x -o d",
        "URLs that begin with ftp:// cannot be read",
        "if s3:// was meant, write it so; else download it or pipe it in",
    ),
]


@pytest.mark.parametrize(("typed", "what", "fixed"), PARSER)
def test_what_cannot_be_parsed_is_four_parts_with_the_command_to_type(
    capsys: pytest.CaptureFixture[str], typed: str, what: str, fixed: str
) -> None:
    assert app.run(typed.split()) == 2
    parts = shown_parts(capsys.readouterr().err)
    assert what in parts["what"]
    assert parts["next"].strip() == fixed
    assert parts["where"]
    assert parts["allowed"]
    # What is proposed can be parsed itself: whatever is wrong with it then is about files, not about words.
    if fixed.startswith("tokmill") and "--help" not in fixed and "INPUT" not in fixed and "://" not in fixed:
        assert "there is no option" not in _complaint(shlex.split(fixed)[1:], capsys)


def _complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    app.run(arguments)
    return capsys.readouterr().err


def test_a_path_that_is_mistyped_is_proposed_with_the_whole_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(corpus(tmp_path).parent)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "texts.txt").touch()
    for typed, fixed in (
        ("tokenize corpsu.txt --out o", "tokmill tokenize corpus.txt --out o"),
        ("plan deep/text.txt", "tokmill plan deep/texts.txt"),
        ("inspect nothing/at/all", "ls ."),
    ):
        assert app.run(typed.split()) == 2
        assert shown_parts(capsys.readouterr().err)["next"].strip() == fixed


@pytest.mark.parametrize(
    ("typed", "fixed"),
    [
        (["help", "tokenize"], "tokmill tokenize --help"),
        (["help", "vocab", "fetch"], "tokmill vocab fetch --help"),
        (["help"], "tokmill --help"),
        (["corpus.txt"], "tokmill tokenize corpus.txt --out DIR"),
        (["corpus.txt", "-o", "x"], "tokmill tokenize corpus.txt -o x"),
        (["plan.txt"], "tokmill --help"),
        (["made"], "tokmill inspect made"),
        (["tokenize", "-dash.txt", "-o", "x"], "tokmill tokenize ./-dash.txt -o x"),
        (["tokenize", "--dash.txt", "-o", "x"], "tokmill tokenize ./--dash.txt -o x"),
        (["plan", "dash.txt"], "tokmill plan ./-dash.txt"),
        (["tokenize", "a\nb'c\x1b\\.txt"], "tokmill tokenize $'a\\nb\\'c\\x1b\\\\.txt' --out DIR"),
    ],
)
def test_the_next_step_has_what_was_typed_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: list[str], fixed: str
) -> None:
    monkeypatch.chdir(corpus(tmp_path).parent)
    for name in ("-dash.txt", "--dash.txt", "made/manifest.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert app.run(typed) == 2
    assert capsys.readouterr().err.splitlines()[-1].strip() == f"next:    {fixed}"


@given(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=9))
@settings(max_examples=15, deadline=None)
def test_a_quoted_word_is_one_line_that_the_shell_reads_as_the_word(word: str) -> None:
    word = os.fsdecode(word.encode("utf-8", "replace"))
    line = quoted(word)
    assert line == printable_line(line)
    bash = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True)
    assert os.fsdecode(bash.stdout) == word


@pytest.mark.parametrize(
    ("typed", "there", "meant"),
    [
        ("Corpus.TXT", ["corpus.txt"], "corpus.txt"),
        ("corpus.jsonl", ["corpus.txt", "other.txt"], "corpus.txt"),
        ("corpus", ["corpus.txt"], "corpus.txt"),
        ("a.txt", ["a.txt.gz"], "a.txt.gz"),
        ("crpus.txt", ["corpus.txt"], "corpus.txt"),
        ("corppus.txt", ["corpus.txt"], "corpus.txt"),
        ("data.jsonl", ["odd.jsonl"], None),
        ("corpus.01", ["corpus.02"], None),
        ("ot.txt", ["short.txt"], None),
        ("y.txt", ["ws.txt"], None),
        ("data.txt", ["date.txt"], None),
        ("corpus.jsonl", ["corpus.txt", "corpus.csv"], None),
        ("corpus-01.txt", ["corpus-02.txt", "corpus-011.txt", "corpus-10.txt"], None),
        ("training.txt", ["trainings_of_2024.txt"], None),
    ],
)
def test_a_missing_file_is_replaced_only_by_one_that_was_surely_meant(typed: str, there: list[str], meant: str | None) -> None:
    assert misspelt(typed, there) == meant


def test_a_bad_value_of_the_environment_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKMILL_SEED", "many")
    assert app.run(["tokenize", "x", "--out", "d"]) == 2
    parts: Any = shown_parts(capsys.readouterr().err)
    assert parts["where"].strip() == "the variable TOKMILL_SEED"
    assert parts["next"].strip() == "unset TOKMILL_SEED"
