"""One run at a time, also where the state directory moves or the file system has no `flock`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokmill.core.errors import DiskFullError, LockedError
from tokmill.core.system import durable
from tokmill.core.system.durable import DirectoryLock
from tokmill.core.system.tree import TreePath, beside


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "out" / ".tokmill"


def without_flock(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSYS) -> None:
    def flock(_fd: int, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("how", ["renamed", "removed", "replaced"])
def test_a_lock_that_is_no_longer_there_is_not_held_and_does_not_remove_another(state: Path, how: str) -> None:
    lock = DirectoryLock(beside(state / "lock"))
    lock.check()
    if how == "removed":
        (state / "lock").unlink()
    else:
        state.rename(state.with_name("elsewhere"))
    other = DirectoryLock(beside(state / "lock")) if how == "replaced" else None
    with pytest.raises(LockedError, match="moved or removed, or another run"):
        lock.check()
    lock.release(remove=True)
    if other is not None:
        other.check()
        other.release(remove=True)
        assert not (state / "lock").exists()


@pytest.mark.parametrize("code", sorted(durable._NO_FLOCK))
def test_without_flock_there_is_one_run_at_a_time(state: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    without_flock(monkeypatch, code)
    lock = DirectoryLock(beside(state / "lock"))
    lock.check()
    with pytest.raises(LockedError, match=f"process {os.getpid()}") as raised:
        DirectoryLock(beside(state / "lock"))
    assert f"remove {state / 'held'}" in (raised.value.next_step or "")
    lock.release(remove=True)
    assert os.listdir(state) == []
    DirectoryLock(beside(state / "lock")).release(remove=True)


def mark(**other: str) -> str:
    """A mark of this process, or one that differs from it in what is given."""
    fields = dict(zip(("pid", "node", "boot", "namespace", "start"), durable._mark().split(), strict=True))
    return " ".join([*(fields | other).values(), "0123456789abcdef"])


def ended_pid() -> str:
    return subprocess.run(["/bin/sh", "-c", "echo $$"], capture_output=True, check=True, text=True).stdout.strip()


DEAD: dict[str, Callable[[], str]] = {
    "the process has ended": lambda: mark(pid=ended_pid()),
    "the container was started again and gave the same ids": lambda: mark(start="1"),
    "the machine has another name now": lambda: mark(start="1", node="renamed"),
}
UNKNOWN: dict[str, Callable[[], str]] = {
    "before the machine was started": lambda: mark(start="1", boot="another"),
    "another container": lambda: mark(pid=ended_pid(), namespace="pid:[1]"),
    "another machine": lambda: mark(pid=ended_pid(), node="node7", boot="another"),
    "this process": mark,
    "an empty mark": lambda: "",
    "not a mark": lambda: "\0 \x1b[31m \xff\n",
    "a mark of an older version": lambda: f"{ended_pid()} node/boot 0123\n",
    "where the system says nothing": lambda: mark(pid=ended_pid(), boot="-", namespace="-"),
}


@pytest.mark.parametrize("who", [*DEAD, *UNKNOWN])
def test_without_flock_only_a_run_that_has_surely_ended_is_no_obstacle(
    state: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    without_flock(monkeypatch)
    state.mkdir(parents=True)
    (state / "held").write_text((DEAD | UNKNOWN)[who](), encoding="latin-1")
    (state / "held.of-one-that-died").touch()
    if who in DEAD:
        lock = DirectoryLock(beside(state / "lock"))
        lock.check()
        assert os.listdir(state) == ["held"]
        lock.release(remove=True)
        return
    before = (state / "held").read_bytes()
    with pytest.raises(LockedError) as raised:
        DirectoryLock(beside(state / "lock"))
    assert f"remove {state / 'held'}" in (raised.value.next_step or "")
    assert (state / "held").read_bytes() == before
    (state / "held").unlink()
    DirectoryLock(beside(state / "lock")).check()


def no_links(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "no links")


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("has_dead", [True, False])
@pytest.mark.parametrize("call", ["open", "link", "replace", "names", "unlink"])
def test_without_flock_one_of_two_has_the_lock_whenever_the_second_comes(
    state: Path, monkeypatch: pytest.MonkeyPatch, call: str, *, has_dead: bool, has_links: bool
) -> None:
    without_flock(monkeypatch)
    if not has_links:
        monkeypatch.setattr(TreePath, "link", no_links)
    real = getattr(TreePath, call)
    for at in range(12):
        got: list[DirectoryLock] = []
        pending = list(range(at))
        state.mkdir(parents=True)
        if has_dead:
            (state / "held").write_text(mark(start="1"))

        def take(got: list[DirectoryLock] = got) -> None:
            with contextlib.suppress(LockedError):
                got.append(DirectoryLock(beside(state / "lock")))

        def touch(path: TreePath, *args: Any, pending: list[int] = pending, take: Callable[[], None] = take, **more: Any) -> Any:
            """Let the second one come before this call, or after it."""
            if len(pending) == 1:
                pending.clear()
                take()
            try:
                return real(path, *args, **more)
            finally:
                if len(pending) == 2:
                    pending.clear()
                    take()
                del pending[-2:]

        with monkeypatch.context() as patch:
            patch.setattr(TreePath, call, touch)
            take()
        (lock,) = got
        lock.check()
        lock.release(remove=True)
        assert os.listdir(state) == []
        state.rmdir()


def test_a_lock_with_a_second_name_is_made_again_unless_somebody_has_it(state: Path, tmp_path: Path) -> None:
    lock = DirectoryLock(beside(state / "lock"))
    backup = tmp_path / "backup"
    backup.hardlink_to(state / "lock")
    with pytest.raises(LockedError):
        DirectoryLock(beside(state / "lock"))
    lock.check()
    before = backup.read_bytes()
    lock.release()
    DirectoryLock(beside(state / "lock")).check()
    assert backup.read_bytes() == before


def test_a_full_disk_is_no_obstacle_to_a_lock_of_the_kernel(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    lock = DirectoryLock(beside(state / "lock"))
    lock.check()
    with pytest.raises(LockedError):
        DirectoryLock(beside(state / "lock"))
    lock.release(remove=True)
    without_flock(monkeypatch)
    with pytest.raises(DiskFullError):
        DirectoryLock(beside(state / "lock"))


def test_where_flock_lets_everybody_in_the_first_is_stopped(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda _fd, _operation: None)
    first, second = DirectoryLock(beside(state / "lock")), DirectoryLock(beside(state / "lock"))
    second.check()
    with pytest.raises(LockedError):
        first.check()
    first.release(remove=True)
    second.check()
    second.release(remove=True)


HOLDER = """
import os, subprocess, sys
from pathlib import Path
from tokmill.core.system.durable import DirectoryLock
from tokmill.core.system.tree import beside
lock = DirectoryLock(beside(Path(sys.argv[1])))
other = subprocess.Popen(["cat"], stdin=0, pass_fds=[lock.fd])
print(other.pid, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("ends", [True, False])
def test_a_lock_is_free_when_the_last_process_that_shares_it_is_gone(
    state: Path, monkeypatch: pytest.MonkeyPatch, *, ends: bool
) -> None:
    state.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, state / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert int(holder.stdout.readline()) > 0
        assert holder.wait() == 0
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if ends and holder.stdin is not None:
                holder.stdin.close()
            select.select([], [], [], seconds)

        monkeypatch.setattr(time, "sleep", wait)
        monkeypatch.setattr(durable, "_PATIENCE_S", 60.0 if ends else 0.05)
        if ends:
            DirectoryLock(beside(state / "lock")).check()
        else:
            with pytest.raises(LockedError):
                DirectoryLock(beside(state / "lock"))
        assert waits


def test_a_process_whose_parent_is_dead_before_the_kernel_knows_ends() -> None:
    code = "import os; from tokmill.core.system.process import end_with_parent; end_with_parent({}); print('goes on')"
    for parent, said in (("os.getppid()", b"goes on\n"), ("1 << 30", b"")):
        ended = subprocess.run([sys.executable, "-c", code.format(parent)], capture_output=True, check=False)
        assert (ended.stdout, ended.returncode) == (said, 0 if said else 1)
