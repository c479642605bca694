"""The bar in a real terminal that is resized: nothing stale stays, and the cursor stands where it should."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import PATIENCE_S, wait_until

TMUX = shutil.which("tmux")
pytestmark = pytest.mark.skipif(TMUX is None, reason="no tmux is installed")

_PROGRAM = """
import sys, time
from pathlib import Path
from tokmill.cli.progress import Bar, Phrase

bar, here = Bar(sys.stderr), Path(sys.argv[1])
parts = [Phrase("25.0 MB of 100.0 MB", 3), Phrase("25 MB/s", 2), Phrase("6.2 Mtokens/s", 6), Phrase("about 0:03 left", 1)]
parts += [Phrase("512 MiB", 5)]
deadline_s = time.monotonic() + 60
while not (here / "end").exists() and time.monotonic() < deadline_s:
    bar.update(parts, 25, 100)
    if (here / "say").exists():
        bar.message((here / "say").read_text())
        (here / "say").unlink()
    time.sleep(0.05)
bar.close()
print("the end", flush=True)
time.sleep(60)
"""


class Terminal:
    """A bar in a window of a tmux server of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = str(directory / "socket")
        command = [sys.executable, "-c", _PROGRAM, str(directory)]
        self.tmux("new-session", "-d", "-x", "100", "-y", "20", *command)

    def tmux(self, *arguments: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k not in {"TMUX", "NO_COLOR"}}
        done = subprocess.run(
            [TMUX or "tmux", "-f", "/dev/null", "-S", self._socket, *arguments],
            capture_output=True, text=True, check=True, timeout=PATIENCE_S, env=environment,
        )  # fmt: skip
        return done.stdout

    def wait_for(self, text: str) -> list[str]:
        """Filled lines of the screen when `text` is among them."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            lines = [line.rstrip() for line in self.tmux("capture-pane", "-p").splitlines() if line.strip()]
            if any(text in line for line in lines):
                return lines
            time.sleep(0.05)
        raise AssertionError(f"{text!r} never came: {lines}")

    def wait_for_one_line(self, text: str) -> None:
        """Wait until the screen has one filled line, with the text in it."""

        def shows_it() -> bool:
            lines = self.wait_for("")
            return len(lines) == 1 and text in lines[0]

        wait_until(shows_it)

    def resize(self, columns: int) -> None:
        self.tmux("resize-window", "-x", str(columns))

    def say(self, text: str) -> None:
        (self._directory / "new").write_text(text)
        (self._directory / "new").rename(self._directory / "say")

    def end(self) -> None:
        (self._directory / "end").touch()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    made.tmux("kill-server")


def test_a_terminal_that_is_made_narrow_and_wide_again_keeps_nothing_stale(terminal: Terminal) -> None:
    assert terminal.wait_for("512 MiB")[-1].startswith("  ━━━─────── 25 % · 25.0 MB/100.0 MB")
    for columns, shown in (
        (40, "  25 % · 25 MB/s · about 0:03 left"),
        (25, "  25 % · about 0:03 left"),
        (100, "512 MiB"),
        (12, "  25 %"),
    ):
        # tmux tells a program of its new size four times a second at most.
        time.sleep(0.3)
        terminal.resize(columns)
        terminal.wait_for_one_line(shown)
    terminal.resize(60)
    terminal.say("a message")
    lines = terminal.wait_for("a message")
    assert (len(lines), lines[0]) == (2, "tokmill: a message")
    terminal.end()
    assert terminal.wait_for("the end") == ["tokmill: a message", "the end"]
