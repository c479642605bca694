"""The real command as a process: start it, wait for what it does, kill it."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tokmill.cli import app

PATIENCE_S = 120
"""How long a condition may take. Only a failure waits so long: a busy machine is slow, and no test measures that."""


def clean_environment(**more: str) -> dict[str, str]:
    """Environment of a subprocess that finds this tokmill and no settings of the caller."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TOKMILL_")}
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path)} | more


def command(*arguments: object, timeout_s: float = PATIENCE_S, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run tokmill to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tokmill", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=clean_environment(**environment),
        check=False,
        timeout=timeout_s,
    )


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait for a condition; a process that ends before it is a failure."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if process is not None and process.poll() is not None:
            said = process.stderr.read() if process.stderr else ""
            assert condition(), f"the process ended with {process.returncode} before it came to this: {said!r}"
            return
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.005)


@contextmanager
def started(command: Sequence[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a session of its own, gone at the end."""
    whole = clean_environment(**environment)
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=whole, start_new_session=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def ends_in_time(seconds: int) -> Iterator[None]:
    """Raise AssertionError in what this process does if it takes longer."""

    def late(*_: object) -> None:
        raise AssertionError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def children_of(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The workers of a run: the children of its coordinator."""
    return [worker for coordinator in children_of(process.pid) for worker in children_of(coordinator)]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def n_committed(out: Path) -> int:
    """Segments in the journal."""
    try:
        return max(0, (out / ".tokmill" / "journal").read_bytes().count(b"\n") - 1)
    except FileNotFoundError:
        return 0


def wait_for_commit(process: subprocess.Popen[Any], out: Path, more_than: int = 0) -> None:
    """Wait until the journal has more segments than that."""
    wait_until(lambda: n_committed(out) > more_than, process)


def killed_worker(arguments: Sequence[object], out: Path, stdin: int | None = None) -> subprocess.CompletedProcess[bytes]:
    """A run whose worker is aborted as soon as it holds the output."""
    whole = [sys.executable, "-m", "tokmill", "tokenize", *map(str, arguments), "--out", str(out), "-q", "--json"]
    with subprocess.Popen(whole, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()) as process:
        wait_until((out / ".tokmill" / "journal").exists, process)
        os.kill(workers_of(process)[0], signal.SIGABRT)
        shown, said = process.communicate(timeout=PATIENCE_S)
    return subprocess.CompletedProcess(whole, process.returncode, shown, said)


def called(*arguments: object, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run tokmill to its end in this process, which takes a tenth of the time of `command`.

    stdin: what comes through a pipe, which has to hold it.
    """
    words = [*map(str, arguments)]
    written, said = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, _piped(stdin):
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdout", written)
        patch.setattr(sys, "stderr", said)
        code = app.run(words)
    return subprocess.CompletedProcess(words, code, _text(written), _text(said))


@contextmanager
def _piped(data: bytes) -> Iterator[None]:
    """A pipe with these bytes is standard input."""
    assert len(data) <= 1 << 16
    before, (reading, writing) = os.dup(0), os.pipe()
    os.write(writing, data)
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def words_of(text: str) -> list[list[str]] | None:
    """The words of the commands of tokmill that a text shows, one a line; None where a shell does more than split them."""
    found = []
    for line in re.sub(r"(?:^|(?<=\s))#.*", "", text.replace("\\\n", " "), flags=re.MULTILINE).splitlines():
        if not line.strip():
            continue
        if not line.startswith("tokmill ") or re.search(r"[$`~*?\[{}<>|&;()\\!\"]", re.sub(r"'[^']*'", "", line)):
            return None
        try:
            found.append(shlex.split(line)[1:])
        except ValueError:
            return None
    return found


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()
