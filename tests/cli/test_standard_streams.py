"""Standard streams as a command may find them: closed, or with a reader that is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import clean_environment


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed_are_nobodys(closing: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("one<|endoftext|>two")
    for arguments in ("tokenize c.txt --out o --val-fraction 0", "plan c.txt", "--version"):
        command = f"{sys.executable} -m tokmill {arguments} {closing}"
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False, env=clean_environment(), timeout=60
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "o" / "train.bin").stat().st_size == 2 * 4
    nobody = f"{sys.executable} -m tokmill tokenize c.txt --out o --val-fraction 0.5 {closing}"
    assert subprocess.run(["bash", "-c", nobody], cwd=tmp_path, check=False, env=clean_environment()).returncode == 12


@pytest.mark.parametrize(("arguments", "code"), [("tokenize c.txt --out o", 0), ("plan c.txt", 0), ("verify damaged", 10)])
def test_a_reader_of_the_result_that_is_gone_changes_no_exit_code(arguments: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("one<|endoftext|>two")
    made = [sys.executable, "-m", "tokmill", "tokenize", "c.txt", "--out", "damaged", "--quiet"]
    subprocess.run(made, cwd=tmp_path, check=True, env=clean_environment())
    (tmp_path / "damaged" / "train.bin").write_bytes(b"")
    command = f"set -o pipefail; {sys.executable} -m tokmill {arguments} --json | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False, env=clean_environment(), timeout=60
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
