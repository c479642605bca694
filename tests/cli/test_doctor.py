"""`tokmill doctor` and the completion of shells, in real processes and shells where these are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import clean_environment
from support.corpora import write_corpus
from support.outputs import write_output

from tokmill.cli import app, doctor
from tokmill.cli.doctor import Diagnosis
from tokmill.cli.machine import Check
from tokmill.core import extras
from tokmill.core.extras import install_hint
from tokmill.core.system import linux, memory
from tokmill.core.system.tree import TreePath

GROUPS = {"tokmill", "packages", "machine", "memory", "disk", "engine", "vocabularies", "extras", "settings"}


def test_it_works_here_and_every_group_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["doctor", str(tmp_path), "--json"]) == 0
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
    assert app.run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tokmill: it works here\n")
    assert all(word in text for word in ("cores", "open files", "control group", "file system", "self-test", "cl100k_base"))


def test_where_nothing_can_be_written_the_first_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["doctor", "/proc"]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("tokmill: IT WOULD NOT WORK HERE: no output can be made in /proc\n")
    assert "next:    choose a directory that can be written: tokmill doctor DIR" in shown.err
    assert app.run(["doctor", "/proc", "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[0])["works"] is False


@pytest.mark.parametrize(
    ("before", "row", "step"),
    [
        ("mkdir gone; cd gone; rmdir ../gone", "place .* BAD: not possible: .*No such file", "cd to a directory"),
        ("ulimit -n 7", "self-test .* BAD: not possible: .*Too many open files", "ulimit -n 1024"),
    ],
    ids=["directory", "files"],
)
def test_what_cannot_even_be_looked_at_is_a_row(before: str, row: str, step: str, tmp_path: Path) -> None:
    command = ["bash", "-c", f"{before}; exec {sys.executable} -m tokmill doctor"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=clean_environment(), check=False)
    assert done.returncode == 1, done.stderr
    assert re.search(row, done.stdout)
    assert f"next:    {step}" in done.stderr
    assert "  extras\n" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["vocab", "list"], ["doctor"], ["--help"], ["tokenize", "--help"], ["--version"]], ids=" ".join
)
def test_a_full_standard_output_speaks_of_no_run_that_resumes(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "tokmill", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=clean_environment(), check=False)
    assert done.returncode == 14
    assert "to continue" not in done.stderr
    assert "next:    send standard output elsewhere" in done.stderr


def test_what_goes_on_with_nothing_speaks_of_no_run_that_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["vocab", "fetch", "gpt2", "--to", "/proc/nowhere"]) == 1
    assert "next:    repair the cause, then run the same command again\n" in capsys.readouterr().err


def test_a_state_that_cannot_be_read_is_not_called_unwritable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_output(tmp_path / "o", write_corpus(tmp_path / "c.txt", ["one", "two"]))

    def refusing(path: TreePath) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(TreePath, "names", refusing)
    assert app.run(["inspect", str(tmp_path / "o")]) == 1
    shown = capsys.readouterr().err
    assert "cannot read the output: Permission denied" in shown
    assert "to continue" not in shown


def test_the_quota_of_its_own_control_group_or_of_one_above_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "user" / "job"
    group.mkdir(parents=True)
    (tmp_path / "cpu" / "user" / "job").mkdir(parents=True)
    monkeypatch.setattr(linux, "_CGROUPS", tmp_path)
    read = linux.read_text
    told = {"/proc/self/cgroup": "4:cpu,cpuacct:/user/job\n0::/user/job\n"}
    monkeypatch.setattr(linux, "read_text", lambda path: told.get(str(path)) or read(path))
    (group / "cpu.max").write_text("max 100000\n")
    assert memory.cgroup_cores() is None
    (group.parent / "cpu.max").write_text("250000 100000\n")
    assert memory.cgroup_cores() == 2.5
    (tmp_path / "cpu" / "user" / "job" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "user" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    assert memory.cgroup_cores() == 1.5
    (group / "cpu.max").write_text("50000 100000\n")
    assert memory.cgroup_cores() == 0.5


def test_a_package_that_is_missing_is_a_row_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("numpy", ">=2.4", ""), ("no-such-package", ">=1", ""), ("no-such-extra", ">=1", "s3")]
    monkeypatch.setattr(doctor, "requirements", lambda: rows)
    assert app.run(["doctor"]) == 1
    shown = capsys.readouterr()
    assert "IT WOULD NOT WORK HERE" in shown.out
    assert "BAD: not installed" in shown.out
    assert "note: no-such-extra not installed" in shown.out
    assert "next:    pip install 'no-such-package>=1'" in shown.err


def test_an_engine_that_ends_its_process_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tiktoken.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    code = "from tokmill.cli.doctor import engine; c = engine(); print(c.status, c.value)"
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
    assert app.run(["doctor"]) == 0
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
    assert app.run(["doctor"]) == 1
    assert "tokmill.toml:1" in capsys.readouterr().out


def complete(line: str) -> list[str]:
    """What bash would offer at the end of a line."""
    words = line.split(" ")
    environment = {"_TOKMILL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "tokmill"], capture_output=True, text=True, env=clean_environment(**environment), check=True
    )
    # One a line: its kind, a comma, the word.
    return [word.partition(",")[2] for word in done.stdout.split()]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_are_answered_as_their_scripts_ask(shell: str) -> None:
    words = "tokmill tokenize x --format meg"
    asked = {"COMP_WORDS": words, "COMP_CWORD": "meg" if shell == "fish" else "4"}
    environment = clean_environment(_TOKMILL_COMPLETE=f"{shell}_complete", **asked)
    done = subprocess.run([sys.executable, "-m", "tokmill"], capture_output=True, text=True, env=environment, check=True)
    assert "megatron" in done.stdout
    assert "olmo" not in done.stdout


def test_commands_options_and_values_are_completed() -> None:
    assert "tokenize" in complete("tokmill tok")
    assert {"--val-fraction", "--verbose"} <= {*complete("tokmill tokenize x --v")}
    assert complete("tokmill tokenize x --format m") == ["megatron", "mds"]
    assert complete("tokmill vocab f") == ["fetch"]
    assert complete("tokmill vocab fetch o") == ["o200k_base"]
    assert complete("tokmill convert x --format m") == ["megatron", "mds"]
    assert complete("tokmill convert x --to-dtype u") == ["uint16", "uint32"]
    assert complete("tokmill inspect x --side v") == ["val"]


def test_a_broken_file_of_settings_does_not_disturb_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokmill.toml").write_text("nonsense = \n")
    assert complete("tokmill vocab f") == ["fetch"]


def test_a_shell_takes_the_script_and_completes(tmp_path: Path) -> None:
    binary = tmp_path / "tokmill"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -m tokmill "$@"\n')
    binary.chmod(0o755)
    asked = "COMP_WORDS=(tokmill insp); COMP_CWORD=1; _tokmill_completion tokmill insp"
    script = f'eval "$(tokmill completion bash)"; {asked}; echo "${{COMPREPLY[@]}}"'
    environment = clean_environment()
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "inspect"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_it_can_read(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_TOKMILL_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", "/dev/stdin"], input=script.encode(), capture_output=True, check=False).returncode == 0


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["completion", "tcsh"]) == 2
    assert "next:    tokmill completion bash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "command"),
    [("s3", r"pip install '[a-z3]+>=[\d.]+'"), ("hf", r"pip install 'huggingface[-_]hub>=\d+' 'tokenizers[\d.,<>=]+'")],
)
def test_what_an_extra_needs_is_installed_by_the_names_of_its_packages(extra: str, command: str) -> None:
    assert re.fullmatch(command, install_hint(extra))


def test_without_metadata_of_an_installation_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "requirements", list)
    assert install_hint("s3") == "pip install 'tokmill[s3]'"
