"""Ctrl-C at any moment is one message and exit code 130: while modules are loaded, at work, and again while it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import clean_environment, wait_until

# Sends the signal of Ctrl-C to itself when a module is about to be loaded.
_INTERRUPTING = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(finder)
            os.kill(os.getpid(), signal.SIGINT)

finder = Finder()
sys.meta_path.insert(0, finder)
sys.argv = ["tokmill", *{arguments!r}]
from tokmill.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "module",
    [
        "tokmill.cli.app",
        "click",
        "tokmill.core.errors",
        "tokmill.api",
        "msgspec",
        "tokmill.run.supervisor",
        "tokmill.cli.render",
    ],
)
def test_while_a_module_is_loaded_it_is_one_message(module: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("text")
    arguments = ["tokenize", str(tmp_path / "c.txt"), "--out", str(tmp_path / "o")]
    done = interrupted_at(module, arguments)
    assert_one_message(done)
    assert not (tmp_path / "o" / "manifest.json").exists()


@pytest.mark.parametrize("module", ["numpy", "numpy._core._multiarray_umath", "tokmill.dataset.dataset", "xxhash"])
def test_while_an_extension_is_loaded_it_is_one_message(module: str, tmp_path: Path) -> None:
    assert_one_message(interrupted_at(module, ["inspect", str(tmp_path)]))


def test_it_is_answered_before_anything_is_loaded_for_the_command() -> None:
    program = "import os, signal, tokmill.__main__\nos.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=clean_environment(), preexec_fn=heard
    )
    assert_one_message(done)


def test_before_it_is_answered_nothing_is_loaded_that_python_has_not_loaded_itself() -> None:
    program = (
        "import sys; import tokmill; before = {*sys.modules}; import tokmill.__main__; print(*sorted({*sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=clean_environment())
    assert done.stdout.split() == ["tokmill.__main__"]


def interrupted_at(module: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    program = _INTERRUPTING.format(module=module, arguments=arguments)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=clean_environment(), timeout=60,
        preexec_fn=heard,
    )  # fmt: skip


def heard() -> None:
    """A program started in the background of a shell that has no jobs ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def assert_one_message(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("tokmill: error: interrupted")
    assert done.stderr.count("interrupted") == 1


def test_ignored_as_behind_nohup_it_stays_ignored(tmp_path: Path) -> None:
    program = _INTERRUPTING.format(module="click", arguments=["--version"])
    ignoring = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{program}"
    done = subprocess.run([sys.executable, "-c", ignoring], capture_output=True, check=False, env=clean_environment(), timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_at_work_it_is_answered_at_once_and_what_is_done_is_committed(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("words and words <|endoftext|>" * 200)
    with subprocess.Popen(
        [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(tmp_path / "o"), "--input-format", "text"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
        preexec_fn=heard,  # noqa: PLW1509  no other thread runs here
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write((tmp_path / "c.txt").read_bytes())
        process.stdin.flush()
        wait_until((tmp_path / "o" / ".tokmill" / "journal").exists, process)
        os.kill(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert "stopping: what is done so far is committed first (Ctrl-C again ends at once)" in said
    assert "Traceback" not in said


def ignores(pid: int, signum: signal.Signals) -> bool:
    """Whether a process ignores a signal: the moment between its result and that is too short for a test."""
    (mask,) = (line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (signum - 1) & 1)


_SLOW_TO_END = """
import atexit, sys, time
atexit.register(time.sleep, 0.3)
sys.argv = ["tokmill", *{arguments!r}]
from tokmill.__main__ import main
main()
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["plan", "tokenize"])
def test_behind_the_result_it_changes_nothing(command: str, signum: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("text<|endoftext|>more")
    arguments = [command, str(tmp_path / "c.txt"), "--out", str(tmp_path / "o"), "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW_TO_END.format(arguments=arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
        preexec_fn=heard,  # noqa: PLW1509  no other thread runs here
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"{")
        wait_until(lambda: ignores(process.pid, signum), process)
        while process.poll() is None:
            os.kill(process.pid, signum)
            time.sleep(0.002)
        said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert "interrupted" not in said
