"""Standard streams as a command may find them: closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from plain import clean_environment


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
