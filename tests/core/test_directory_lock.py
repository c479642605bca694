"""One run at a time, also where the state directory moves or the file system has no `flock`."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokmill.core.errors import LockedError
from tokmill.core.system import durable
from tokmill.core.system.durable import DirectoryLock
from tokmill.core.system.tree import beside


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


@pytest.mark.parametrize("who", ["ended", "before the machine was started", "on another machine", "nobody can say"])
def test_without_flock_a_run_that_has_surely_ended_is_no_obstacle(state: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    without_flock(monkeypatch)
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    pid, machine = int(done.stdout), durable._machine()
    name = machine.partition(b"/")[0]
    mark = {
        "ended": b"%d %s 1\n" % (pid, machine),
        "before the machine was started": b"%d %s/other 1\n" % (os.getpid(), name),
        "on another machine": b"%d other/1 1\n" % pid,
        "nobody can say": b"",
    }[who]
    state.mkdir(parents=True)
    (state / "held").write_bytes(mark)
    if who in ("ended", "before the machine was started"):
        DirectoryLock(beside(state / "lock")).check()
    else:
        with pytest.raises(LockedError):
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
