"""Makes docs/progress.svg: a real run of tokmill in a terminal of its own, as an animated picture.

    python benchmarks/picture.py docs/progress.svg texts/

The command runs where the texts are, under a pseudo-terminal; what it writes is kept with its time. tokmill draws its bar in one
line and goes no further back than to the beginning of that line, so a list of lines is terminal enough to play it back.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import struct
import sys
import tempfile
import termios
import time
from fcntl import ioctl
from html import escape
from pathlib import Path

COLUMNS, ROWS = 102, 18
CELL, LINE, MARGIN = 7.8, 17.0, 14.0
MOST_FRAMES = 24
HOLD_S = 6.0
"""The end is shown for so long before it begins again."""
INK = {"": "#d5dae1", "32": "#57c27d", "2": "#5b6672", "1": "#ffffff"}


def record(command: list[str], directory: Path) -> list[tuple[float, str]]:
    """What the command writes to a terminal, each piece with the seconds since its start."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(directory)
        os.environ["TERM"] = "xterm-256color"
        os.environ.pop("NO_COLOR", None)
        os.execvp(command[0], command)
    ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    began_s, pieces, data = time.monotonic(), [], b""
    while True:
        select.select([fd], [], [])
        try:
            data += os.read(fd, 1 << 16)
        except OSError:
            break
        text = data.decode("utf-8", "ignore")
        pieces.append((time.monotonic() - began_s, text))
        data = b""
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit("the command failed")
    return pieces


def screens(prompt: str, pieces: list[tuple[float, str]]) -> list[tuple[float, list[str]]]:
    """What stands on the screen after each piece, with its time; colours stay in the lines as they were written."""
    lines, found = [prompt, ""], [(0.0, [prompt])]
    for at_s, text in pieces:
        for piece in re.findall(r"\x1b\[J|\x1b\[[0-9;]*m|[\r\n]|[^\x1b\r\n]+", text):
            if piece == "\x1b[J":
                lines[-1] = ""
            elif piece == "\n":
                lines.append("")
            elif piece != "\r":
                lines[-1] += piece
        found.append((at_s, list(lines)))
    return found


def chosen(found: list[tuple[float, list[str]]]) -> list[tuple[float, list[str]]]:
    """Some of the screens, evenly in time, the first and the last among them."""
    step_s = found[-1][0] / (MOST_FRAMES - 1)
    frames = found[:1]
    for at_s, lines in found[1:-1]:
        if at_s - frames[-1][0] >= step_s and lines != frames[-1][1]:
            frames.append((at_s, lines))
    return [*frames, found[-1]]


def drawn(lines: list[str]) -> str:
    """One screen."""
    rows = []
    for i, line in enumerate(lines):
        column, ink, spans = 0, "", []
        for piece in re.findall(r"\x1b\[[0-9;]*m|[^\x1b]+", line):
            if piece.startswith("\x1b"):
                ink = piece[2:-1].split(";")[-1].replace("0", "")
                continue
            # Each run has a place of its own and a length, so that any monospaced letters fit.
            fill = f' fill="{INK[ink]}"' if ink else ""
            place = f'x="{MARGIN + CELL * column:.1f}" textLength="{CELL * len(piece):.1f}"'
            spans.append(f"<tspan {place}{fill}>{escape(piece)}</tspan>")
            column += len(piece)
        if spans:
            rows.append(f'<text y="{MARGIN + LINE * (i + 1):.1f}">{"".join(spans)}</text>')
    return "".join(rows)


def picture(frames: list[tuple[float, list[str]]]) -> str:
    """All frames one over the other, each visible in its time; without animation, the last."""
    total_s = frames[-1][0] + HOLD_S
    height = 2 * MARGIN + LINE * (max(len(lines) for _, lines in frames) + 0.5)
    width = 2 * MARGIN + CELL * COLUMNS
    rules, groups = [], []
    for i, (at_s, lines) in enumerate(frames):
        begin = 100 * at_s / total_s
        end = 100 * frames[i + 1][0] / total_s if i + 1 < len(frames) else 100
        before = f"0%,{begin - 0.001:.3f}%{{opacity:0}}" if i else ""
        after = f"{end:.3f}%,100%{{opacity:0}}" if i + 1 < len(frames) else ""
        rules.append(f"@keyframes f{i}{{{before}{begin:.3f}%,{end - 0.002:.3f}%{{opacity:1}}{after}}}")
        rules.append(f"#f{i}{{animation:f{i} {total_s:.2f}s step-end infinite}}")
        hidden = "" if i + 1 == len(frames) else ' opacity="0"'
        groups.append(f'<g id="f{i}"{hidden}>{drawn(lines)}</g>')
    style = f"text{{font:13px ui-monospace,Menlo,Consolas,monospace;fill:{INK['']};white-space:pre}}"
    moving = f"@media (prefers-reduced-motion:no-preference){{{''.join(rules)}}}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        'aria-labelledby="title"><title id="title">tokmill tokenize in a terminal: a bar with share, speed, time left and memory, '
        f"then the summary of the run</title><style>{style}{moving}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="#14181d"/>{"".join(groups)}</svg>\n'
    )


def main() -> None:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(description="An animated picture of tokmill at work.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("texts", type=Path, help="a directory of texts that takes some seconds")
    given = parser.parse_args()
    texts, target = given.texts.resolve(), given.picture.resolve()
    with tempfile.TemporaryDirectory(dir=texts.parent) as scratch:
        (Path(scratch) / texts.name).symlink_to(texts)
        typed = ["tokmill", "tokenize", f"{texts.name}/", "--out", "data"]
        command = [str(Path(sys.executable).with_name("tokmill")), *typed[1:]]
        pieces = [(at_s, text.replace(f"{scratch}/", "")) for at_s, text in record(command, Path(scratch))]
    target.write_text(picture(chosen(screens(f"\x1b[1m$ {' '.join(typed)}\x1b[0m", pieces))))


if __name__ == "__main__":
    main()
