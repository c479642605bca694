"""A notice is shown once to a person who sees both standard streams, and is in what only one of them gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import clean_environment

import tokmill

pytestmark = pytest.mark.usefixtures("workers_in_process")

NOTICE = b"llm.c and modded-nanogpt expect the end-of-text id before each document"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "c.txt").write_text("one<|endoftext|>two")
    tokmill.tokenize(tmp_path / "c.txt", tmp_path / "o", val_fraction=0.0)
    return tmp_path


COMMANDS = {
    "tokenize": ["tokenize", "c.txt", "--format", "llmc", "--eot", "after", "--val-fraction", "0", "--out", "made"],
    "convert": ["convert", "o", "--format", "llmc", "--to-eot", "after", "--out", "made"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_in_a_terminal_a_notice_is_shown_once(command: str, made: Path) -> None:
    ours, theirs = os.openpty()
    arguments = [sys.executable, "-m", "tokmill", *COMMANDS[command]]
    environment = clean_environment(TERM="xterm")
    with subprocess.Popen(arguments, cwd=made, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = read_all(ours)
    assert process.returncode == 0
    assert shown.replace(b"\r\n", b"").count(NOTICE) == 1


def read_all(terminal: int) -> bytes:
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 1 << 16)
        except OSError:
            # The last process that had it open is gone.
            chunk = b""
        if not chunk:
            os.close(terminal)
            return shown
        shown += chunk


def test_a_result_in_a_file_has_every_notice(made: Path) -> None:
    arguments = [sys.executable, "-m", "tokmill", *COMMANDS["convert"]]
    done = subprocess.run(arguments, cwd=made, capture_output=True, env=clean_environment(), check=True)
    assert (done.stdout.count(NOTICE), done.stderr.count(NOTICE)) == (1, 1)
