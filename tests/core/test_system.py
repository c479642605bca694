"""What is asked of the system: the form for Linux and the plain one keep the same contract."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import clean_environment, is_alive, wait_until

from tokmill.core.errors import LockedError
from tokmill.core.system import durable
from tokmill.core.system.current import PLAIN_VARIABLE
from tokmill.core.system.linux import Linux
from tokmill.core.system.plain import System
from tokmill.core.system.tree import beside

FORMS = [pytest.param(form, id=form.name) for form in (System(), Linux())]


def test_linux_has_no_call_that_the_contract_has_not() -> None:
    public = {name for name in vars(Linux) if not name.startswith("_")}
    assert public <= {name for name in vars(System) if not name.startswith("_")}


@pytest.mark.parametrize(("value", "form"), [("1", "System"), ("", "Linux"), (None, "Linux")])
def test_the_variable_chooses_the_plain_form(value: str | None, form: str) -> None:
    program = "from tokmill.core.system.current import SYSTEM; print(type(SYSTEM).__name__)"
    environment = clean_environment(**({} if value is None else {PLAIN_VARIABLE: value}))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == form


@pytest.mark.parametrize("form", FORMS)
def test_memory_and_processors_are_plausible(form: System) -> None:
    mine = form.rss_bytes()
    assert 1 << 20 < form.own_bytes() <= 2 * mine
    assert 1 << 20 < form.share_bytes() <= 2 * mine
    assert mine <= 2 * form.peak_rss_bytes()
    assert mine < form.machine_bytes()
    assert (form.available_bytes() or 0) < form.machine_bytes()
    assert form.rss_bytes(1 << 30) == 0
    assert 1 <= form.usable_cores() <= (os.cpu_count() or 1)
    assert form.processor()[1] is not None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_bytes", [0, 1, 9_000_000])
def test_bytes_are_read_into_their_place(form: System, n_bytes: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content := os.urandom(n_bytes + 7))
    buffer, done = bytearray(n_bytes + 20), 0
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    while n := form.read_into(fd, memoryview(buffer)[done:], 7 + done):
        done += n
    os.close(fd)
    assert buffer == content[7:] + bytes(20)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_without_a_name_is_written_and_read(form: System) -> None:
    fd = form.scratch_file()
    os.write(fd, b"words")
    assert os.pread(fd, 9, 0) == b"words"
    os.close(fd)


@pytest.mark.parametrize("form", FORMS)
def test_files_are_reserved_and_copied(form: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "SYSTEM", form)
    (tmp_path / "source").write_bytes(content := os.urandom(5_000_001))
    durable.copy_file(beside(tmp_path / "source"), beside(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == content
    fd = os.open(tmp_path / "target", os.O_RDWR)
    durable.reserve(fd, 9_000_000)
    durable.reserve(fd, 1)
    os.close(fd)
    assert (tmp_path / "target").read_bytes() == content + bytes(9_000_000 - len(content))


@pytest.mark.parametrize("form", FORMS)
def test_hints_change_nothing_that_is_read(form: System, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content := os.urandom(3 << 20))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    form.read_ahead(fd)
    assert 0 <= form.resident_share(fd, 0, 3 << 20) <= 1
    form.drop_pages(fd, 0, 1 << 20)
    form.trim()
    form.name_process("pytest")
    assert os.read(fd, 4 << 20) == content
    os.close(fd)


@pytest.mark.parametrize("form", FORMS)
def test_a_directory_that_leads_to_another_is_opened(form: System, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    outer = os.open(tmp_path, form.passing_flags)
    os.close(os.open("inner", form.passing_flags | os.O_NOFOLLOW, dir_fd=outer))
    os.close(outer)


@pytest.mark.parametrize("form", FORMS)
def test_descriptors_have_paths(form: System) -> None:
    assert [form.descriptor_of(path) for path in ("/dev/fd/0", "/dev/fd/12", "/dev/fd/", "/dev/fd/x", "/dev/stdin", "a")] == [
        0,
        12,
        None,
        None,
        None,
        None,
    ]
    assert form.descriptor_of("/proc/self/fd/3") == (3 if isinstance(form, Linux) else None)


@pytest.mark.parametrize("form", FORMS)
def test_of_a_process_its_start_is_known_and_that_it_has_ended(
    form: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert form.start_of(os.getpid()) == form.start_of(os.getpid())
    assert form.place() == form.place() is not None
    monkeypatch.setattr(durable, "SYSTEM", form)
    mark = f"{durable._mark()} 0123456789abcdef"
    assert not durable._is_dead(mark.encode())
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        pid, node, *place, _, token = mark.split()
        began = form.start_of(sleeping.pid)
        other = " ".join([str(sleeping.pid), node, *place, str(began), token]).encode()
        assert not durable._is_dead(other)
        assert durable._is_dead(other.replace(str(began).encode(), b"1"))
        sleeping.kill()
        os.waitid(os.P_PID, sleeping.pid, os.WEXITED | os.WNOWAIT)
        assert form.start_of(sleeping.pid) == "ended"
        assert durable._is_dead(other)
    assert durable._is_dead(other)
    lock = durable.DirectoryLock(beside(tmp_path / "state" / "lock"))
    with pytest.raises(LockedError, match=f"process {pid}"):
        durable.DirectoryLock(beside(tmp_path / "state" / "lock"))
    lock.release(remove=True)


FORKS = """
import os, sys, time
from tokmill.core.system.process import end_with_parent
parent = os.getpid()
if pid := os.fork():
    print(pid, flush=True)
    time.sleep(60)
end_with_parent(parent)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("plain", ["0", "1"])
def test_a_process_ends_with_its_parent(plain: str) -> None:
    environment = clean_environment(**{PLAIN_VARIABLE: plain})
    with subprocess.Popen([sys.executable, "-c", FORKS], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        (child,) = (int(line) for line in (parent.stdout.readline(), parent.stdout.readline()) if line != "ready\n")
        try:
            parent.kill()
            parent.wait()
            wait_until(lambda: not is_alive(child))
        finally:
            if is_alive(child):
                os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_shared_stays_when_a_process_forgets_it(form: System) -> None:
    mapping = mmap.mmap(-1, 8 * mmap.PAGESIZE)
    mapping[:4] = b"text"
    form.forget(mapping, 0, 4 * mmap.PAGESIZE)
    assert mapping[:4] == b"text"
