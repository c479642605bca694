"""The command line: what it prints where, its exit codes, its errors; where it can tell, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import PATIENCE_S, called, wait_until
from support.corpora import write_corpus
from support.oracle import EOT, gpt2

import tokmill
from tokmill.cli import app
from tokmill.core.errors import error_classes
from tokmill.core.manifest import load_manifest

pytestmark = pytest.mark.usefixtures("workers_in_process")

SOURCE = Path(tokmill.__file__).parents[1]
TEXTS = [f"Document {i}. {'Some words, then more. ' * (i % 9)}Ünïcödé\n" for i in range(200)]


def tokmill_command(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TOKMILL_")} | {"PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, "-m", "tokmill", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env=env,
        timeout=120,
        check=False,
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.txt", TEXTS)


@pytest.fixture
def out(tmp_path: Path, corpus: Path) -> Path:
    done = called("tokenize", corpus, "--out", tmp_path / "out", "--val-fraction", "0.2", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return tmp_path / "out"


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tokmill.cli import app as cli\nassert cli.run(['--help']) == 0 == cli.run(['tokenize', '--help'])\n"
        "print([m for m in ('numpy', 'gigatoken', 'pyarrow', 'tiktoken', 'rich', 'msgspec') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONPATH": str(SOURCE)}, check=True
    )
    text = done.stdout.decode()
    assert all(command in text for command in ("tokenize", "verify", "inspect"))
    assert text.splitlines()[-1] == "[]"
    assert text.count("quoted glob patterns") == 1


def test_version() -> None:
    done = tokmill_command("--version")
    assert done.stdout.decode() == f"tokmill {tokmill.__version__}\n"


def test_times_and_rates_say_of_what_they_are_and_that_of_the_work_is_the_manifests(tmp_path: Path, corpus: Path) -> None:
    done = called("tokenize", corpus, "--out", tmp_path / "out")
    said = re.search(r"time +([\d.]+) s of the command, .*\n +([\d.]+) s of it reading, encoding and writing, ", done.stdout)
    assert said
    assert float(said[2]) <= float(said[1])
    assert abs(float(said[2]) - load_manifest(tmp_path / "out").elapsed_s) <= 0.1


def test_tokenize_writes_the_tokens_and_json_is_one_object_on_standard_output(tmp_path: Path, corpus: Path) -> None:
    done = tokmill_command("tokenize", corpus, "--out", tmp_path / "out", "--json", "--val-fraction", "0")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    expected = [i for text in TEXTS for i in [*gpt2().encode_ordinary(text), EOT]]
    assert np.fromfile(tmp_path / "out" / "train.bin", np.uint16).tolist() == expected
    assert (found["documents"], found["tokens_train"], found["tokens_val"]) == (len(TEXTS), len(expected), 0)
    assert found["bytes_in"] == corpus.stat().st_size
    assert found["out"] == str(tmp_path / "out")
    names = ["elapsed_s", "bytes_per_s", "tokens_per_s", "peak_rss_bytes", "resumed", "skipped", "audited_documents"]
    assert all(name in found for name in names)
    assert 30 << 20 < found["peak_rss_bytes"] < 1 << 30


def test_the_summary_goes_to_standard_output_and_everything_else_to_standard_error(tmp_path: Path, corpus: Path) -> None:
    done = tokmill_command("tokenize", corpus, "--out", tmp_path / "out")
    summary = done.stdout.decode()
    assert all(word in summary for word in ("documents", "tokens", "bytes per token", "B/s", "memory", "skipped", "tokmill verify"))
    assert "\x1b" not in summary + done.stderr.decode()
    assert done.stderr.decode().startswith("tokmill: tokenizing")


def test_the_same_command_again_finds_it_complete(out: Path, corpus: Path) -> None:
    before = (out / "train.bin").stat().st_mtime_ns
    done = called("tokenize", corpus, "--out", out, "--val-fraction", "0.2")
    assert done.returncode == 0
    assert "complete already" in done.stdout
    assert (out / "train.bin").stat().st_mtime_ns == before


def test_python_and_command_line_make_the_same_bytes(out: Path, corpus: Path, tmp_path: Path) -> None:
    summary = tokmill.tokenize(corpus, tmp_path / "api", val_fraction=0.2)
    for name in ("train.bin", "val.bin"):
        assert (tmp_path / "api" / name).read_bytes() == (out / name).read_bytes()
    assert summary.documents == len(TEXTS)
    assert not summary.resumed


def test_verify_and_inspect_follow_tokenize(out: Path, corpus: Path) -> None:
    done = called("verify", out, "--source", corpus)
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout
    assert json.loads(called("verify", out, "--json").stdout)["ok"] is True
    done = called("inspect", out, "--document", "0", "--side", "val", "--tokens", "5")
    assert "val, document 0" in done.stdout
    assert json.loads(called("inspect", out, "--json").stdout)["tokenizer"] == "gpt2"


def test_several_sources_follow_one_option(tmp_path: Path, corpus: Path) -> None:
    other = write_corpus(tmp_path / "other.txt", TEXTS[:3])
    assert called("tokenize", corpus, other, "-o", tmp_path / "o").returncode == 0
    assert called("verify", tmp_path / "o", "--source", corpus, other).returncode == 0
    assert called("verify", tmp_path / "o", "--source", other, corpus).returncode == 12
    assert called("verify", tmp_path / "o", corpus).returncode == 2


def test_damage_is_exit_code_10_with_the_place(out: Path) -> None:
    data = bytearray((out / "train.bin").read_bytes())
    data[100] ^= 1
    (out / "train.bin").write_bytes(data)
    done = called("verify", out, "--json")
    assert done.returncode == 10
    assert json.loads(done.stdout)["problems"][0]["file"] == "train.bin"
    assert "next:" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--val-fraction", "1"], "0 <= fraction < 1"),
        (["--val-fraction", "many"], "--val-fraction"),
        (["--eot", "between"], "after, "),
        (["--dtype", "uint8"], "uint16"),
        (["--seed", "-1"], "2**64"),
        (["--memory", "lots"], "GiB"),
        (["--threads", "0"], "1 or more"),
        (["--on-error", "ignore"], "stop, skip"),
        (["--encoding-errors", "x"], "strict"),
        (["--engine", "x"], "gigatoken"),
        (["--max-skipped", "-1"], "0 or more"),
        (["--separator", ""], "none"),
        (["--tokenizer", "nobody-knows"], "nobody-knows"),
        (["--input-format", "docx"], "docx"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_wrong_value_is_exit_code_2_with_four_parts_and_writes_nothing(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    assert app.run(["tokenize", str(corpus), "--out", str(tmp_path / "o"), *arguments, "--json"]) == 2
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert lines[0].startswith("tokmill: error: ")
    assert [line.split(":")[0].strip() for line in lines if line.startswith("  ") and line[2] != " "] == [
        "where",
        "allowed",
        "next",
    ]
    assert word in shown.err
    found = json.loads(shown.out)
    assert found["exit_code"] == 2
    assert all(found["error"][part] for part in ("what", "where", "allowed", "next"))
    assert not (tmp_path / "o").exists()


def test_missing_arguments_and_unknown_commands_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["tokenize"],
        ["tokenize", "x"],
        ["nonsense"],
        ["verify"],
        ["inspect", "/nonexistent"],
        ["verify", "/nonexistent"],
    ):
        assert app.run(arguments) == 2, arguments
        assert "next:" in capsys.readouterr().err


def test_every_error_class_ends_with_its_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:

    for error_class in error_classes().values():

        def fail(*_: object, error_class: type[Exception] = error_class, **__: object) -> None:
            raise error_class("what \x1b[2J", where="a\nb", allowed="c", next_step="d")  # type: ignore[call-arg]

        monkeypatch.setattr(tokmill.check, "inspect", fail)
        assert app.run(["inspect", "x"]) == error_class.exit_code
        assert capsys.readouterr().err == (
            "tokmill: error: what \\x1b[2J\n  where:   a\n           b\n  allowed: c\n  next:    d\n"
        )


def test_the_unforeseen_is_one_line_and_a_traceback_only_when_verbose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr(tokmill.check, "inspect", fail)
    assert app.run(["inspect", "x"]) == 1
    shown = capsys.readouterr().err
    assert "unforeseen RuntimeError: surprise" in shown
    assert "Traceback" not in shown
    assert app.run(["inspect", "x", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_every_option_of_tokenize_can_come_from_the_environment(tmp_path: Path, corpus: Path) -> None:
    environment: dict[str, Any] = {
        "TOKMILL_OUT": str(tmp_path / "env"),
        "TOKMILL_VAL_FRACTION": "0",
        "TOKMILL_EOT": "before",
        "TOKMILL_JSON": "1",
    }
    done = called("tokenize", corpus, **environment)
    assert json.loads(done.stdout)["tokens_val"] == 0
    assert np.fromfile(tmp_path / "env" / "train.bin", np.uint16)[0] == EOT
    done = called("tokenize", corpus, TOKMILL_OUT="x", TOKMILL_EOT="sideways", TOKMILL_JSON="1")
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (2, 2)


def test_options_meant_for_tokenize_do_not_disturb_inspect_of_a_directory(out: Path) -> None:
    assert called("inspect", out, TOKMILL_TOKENIZER="gpt2", TOKMILL_DTYPE="auto").returncode == 0
    assert called("inspect", out, "--dtype", "uint16").returncode == 2


def test_standard_input_is_an_input(tmp_path: Path) -> None:
    done = tokmill_command("tokenize", "-", "-o", tmp_path / "o", "--val-fraction", "0", "--json", stdin=b"one<|endoftext|>two")
    assert json.loads(done.stdout)["documents"] == 2
    assert np.fromfile(tmp_path / "o" / "train.bin", np.uint16).tolist() == [505, EOT, 11545, EOT]


def test_a_reader_that_goes_away_is_no_traceback(out: Path) -> None:
    command = f"{sys.executable} -m tokmill inspect {out} --tokens 1000 --document 0 --document 1 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=os.environ | {"PYTHONPATH": str(SOURCE)}, check=False)
    assert done.stderr == b""
    assert done.returncode in (0, 1)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_exit_code_130_and_resumes_to_the_same_bytes(tmp_path: Path, which: signal.Signals) -> None:
    text = "<|endoftext|>".join(TEXTS * 40).encode()
    tokmill.tokenize(write_corpus(tmp_path / "corpus.txt", TEXTS * 40), tmp_path / "whole")
    command = [sys.executable, "-m", "tokmill", "tokenize", "-", "-o", str(tmp_path / "o"), "--json"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    assert process.stdin is not None
    process.stdin.write(text[: len(text) // 2])
    process.stdin.flush()
    wait_until((tmp_path / "o" / ".tokmill" / "journal").exists, process)
    process.send_signal(which)
    # The pipe stays open until the signal has been answered: its end is not what ends the run.
    process.wait(PATIENCE_S)
    shown, _ = process.communicate()
    assert process.returncode == 130
    assert json.loads(shown)["exit_code"] == 130
    assert not (tmp_path / "o" / "manifest.json").exists()
    again = tokmill_command("tokenize", "-", "-o", tmp_path / "o", stdin=text)
    assert again.returncode == 0, again.stderr
    for name in ("train.bin", "val.bin"):
        assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_no_file_of_the_working_directory_is_run(tmp_path: Path) -> None:
    for name in ("tokenize.py", "random.py", "queue.py", "inspect.py", "numpy.py"):
        (tmp_path / name).write_text(f"open('{name}-was-run', 'w').close()\nraise SystemExit('boo')\n")
    write_corpus(tmp_path / "corpus.txt", ["hi", "you"])
    command = Path(sys.executable).with_name("tokmill")
    arguments = ["tokenize", "corpus.txt", "--out", "out", "-q"]
    done = subprocess.run([command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*-was-run")) == []


@pytest.mark.parametrize("options", [["--input-format", "jsonl"], ["--input-format", "text", "--format", "llmc"]])
def test_what_is_piped_in_after_a_complete_run_is_compared(tmp_path: Path, options: list[str]) -> None:
    first = b'{"text": "one"}\n{"text": "two"}\n'
    arguments: list[str | Path] = ["tokenize", "-", tmp_path / "in.txt", "-o", tmp_path / "o", *options, "-q"]
    (tmp_path / "in.txt").write_bytes(b'{"text": "three"}\n')
    for stdin, code in (
        (first, 0),
        (first, 0),
        (first.replace(b"two", b"too"), 12),
        (first + first, 12),
        (b"", 12),
        (first, 0),
    ):
        done = called(*arguments, stdin=stdin)
        assert done.returncode == code, done.stderr
        assert ("the piped input is not the one that the complete output was made from" in done.stderr) is (code == 12)
    assert called(*arguments, "--fresh", stdin=first + first).returncode == 0
    assert called(*arguments, stdin=first + first).returncode == 0
