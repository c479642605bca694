"""`tokmill doctor` and the completion of shells, in real processes and shells where these are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plain import clean_environment

from tokmill import cli, doctor
from tokmill.doctor import Diagnosis
from tokmill.machine import Check

GROUPS = {"tokmill", "packages", "machine", "memory", "disk", "engine", "vocabularies", "extras", "settings"}


def test_it_works_here_and_every_group_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["works"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert {check["group"] for check in found["checks"]} == GROUPS - ({"packages"} if "numpy" not in checks else set())
    assert "the same as the reference's" in checks["self-test"]["value"]
    assert checks["place"]["value"] == str(tmp_path)
    assert "ms for" in checks["fsync"]["value"]
    assert all(check["next_step"] for check in found["checks"] if check["status"] != "ok")
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tokmill: it works here\n")
    assert all(word in text for word in ("cores", "open files", "control group", "file system", "self-test", "cl100k_base"))


def test_a_package_that_is_missing_is_a_row_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("numpy", ">=2.4", ""), ("no-such-package", ">=1", ""), ("no-such-extra", ">=1", "s3")]
    monkeypatch.setattr(doctor, "_requirements", lambda: rows)
    assert cli.run(["doctor"]) == 1
    shown = capsys.readouterr()
    assert "IT WOULD NOT WORK HERE" in shown.out
    assert "BAD: not installed" in shown.out
    assert "note: no-such-extra not installed" in shown.out
    assert "next:    pip install 'no-such-package>=1'" in shown.err


def test_an_engine_that_ends_its_process_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tiktoken.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    code = "from tokmill.doctor import engine; c = engine(); print(c.status, c.value)"
    environment = clean_environment()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("bad the process ended (killed by SIGILL)")


@pytest.mark.parametrize(
    ("version", "wanted", "right"),
    [
        ("2.4.6", ">=2.4", True),
        ("2.3", ">=2.4", False),
        ("0.14.0", "<0.15,>=0.14", True),
        ("0.15.0", "<0.15,>=0.14", False),
        ("0.10", "==0.10.0", True),
        ("0.10.1", "==0.10.0", False),
        ("10.0", ">=9.2", True),
        ("1.0rc1", "", True),
    ],
)
def test_versions_are_numbers(version: str, wanted: str, right: bool) -> None:
    assert doctor.fits(version, wanted) is right


def test_a_variable_that_no_option_has_is_noted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TOKMILL_VAL_FRACTON", "0.1")
    monkeypatch.setenv("TOKMILL_SEED", "1")
    assert cli.run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "TOKMILL_VAL_FRACTON  note: no option has this variable  (export TOKMILL_VAL_FRACTION=..." in shown
    assert "TOKMILL_SEED  note" not in shown


def test_notes_alone_are_no_fault() -> None:
    Diagnosis((Check("a", "b", "c", "note", "d"),)).raise_for_faults()


def test_settings_that_every_command_would_refuse_are_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokmill.toml").write_text("nonsense = 1\n")
    assert cli.run(["doctor"]) == 1
    assert "tokmill.toml:1" in capsys.readouterr().out


def complete(line: str) -> list[str]:
    """What bash would offer at the end of a line."""
    words = line.split(" ")
    environment = {"_TOKMILL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "tokmill"], capture_output=True, text=True, env=clean_environment(**environment), check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_are_answered_as_their_scripts_ask(shell: str) -> None:
    asked = {"_TYPER_COMPLETE_ARGS": "tokmill tokenize x --format meg", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment = clean_environment(_TOKMILL_COMPLETE=f"complete_{shell}", **asked)
    done = subprocess.run([sys.executable, "-m", "tokmill"], capture_output=True, text=True, env=environment, check=True)
    assert "megatron" in done.stdout
    assert "olmo" not in done.stdout


def test_commands_options_and_values_are_completed() -> None:
    assert "tokenize" in complete("tokmill tok")
    assert {"--val-fraction", "--verbose"} <= {*complete("tokmill tokenize x --v")}
    assert complete("tokmill tokenize x --format m") == ["megatron", "mds"]
    assert complete("tokmill vocab f") == ["fetch"]


def test_a_shell_takes_the_script_and_completes(tmp_path: Path) -> None:
    binary = tmp_path / "tokmill"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -m tokmill "$@"\n')
    binary.chmod(0o755)
    asked = "COMP_WORDS=(tokmill insp); COMP_CWORD=1; _tokmill_completion tokmill"
    script = f'eval "$(tokmill completion bash)"; {asked}; echo "${{COMPREPLY[@]}}"'
    environment = clean_environment()
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "inspect"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_it_can_read(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_TOKMILL_COMPLETE=complete_{shell}" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", "/dev/stdin"], input=script.encode(), capture_output=True, check=False).returncode == 0


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", "tcsh"]) == 2
    assert "next:    tokmill completion bash" in capsys.readouterr().err
