"""Every call that tokmill makes itself fails as manual pages say it may, in this process: it does without, or says one thing.

The worker's calls fail in a run in this process, the parent's in commands that need no worker. `make faults` fails the real ones.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, strategies as st
from support.corpora import SEP
from support.runs import TINY, make_parts, run_in_process

import tokmill
from tokmill.check.verification import verify
from tokmill.cli import app
from tokmill.core.errors import TokmillError
from tokmill.core.system import child, durable, linux, memory, refusals
from tokmill.core.system.tree import beside
from tokmill.run import memory_guard

DOCUMENTS = SEP.join(f"document {i} " + "of some words " * 40 for i in range(60))

ADVANTAGES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "posix_fadvise": (os, ("EINVAL", "ENOSYS", "EPERM", "EBADF", "ESPIPE")),
    "memfd_create": (os, ("ENOSYS", "EPERM", "EMFILE", "ENOMEM", "EINVAL")),
    "statvfs": (os, ("ENOSYS", "EPERM", "EACCES", "EIO", "EOVERFLOW")),
    "sched_getaffinity": (os, ("ENOSYS", "EPERM", "EINVAL")),
    "sched_setscheduler": (os, ("ENOSYS", "EPERM", "EINVAL")),
    "setpriority": (os, ("ENOSYS", "EPERM", "EACCES")),
    "copy_file_range": (
        os,
        ("ENOSYS", "EPERM", "EINVAL", "EXDEV", "EOPNOTSUPP", "EACCES", "EIO", "ETXTBSY", "ENOMEM", "EOVERFLOW"),
    ),
    "link": (os, ("EPERM", "EACCES", "ENOSYS", "EOPNOTSUPP", "EXDEV", "EMLINK")),
    "setrlimit": (resource, ("EPERM", "EINVAL", "ENOSYS")),
    "getrlimit": (resource, ("EPERM", "ENOSYS")),
    "mmap": (mmap, ("ENODEV", "EPERM", "ENOMEM", "EAGAIN")),
    "CDLL": (ctypes, ("ENOSYS",)),
    "Process": (psutil, ("ENOSYS", "EPERM")),
}
NEEDED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "flock": (fcntl, ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL", "EPERM", "EIO")),
    "pipe": (os, ("EMFILE", "ENFILE", "EPERM")),
    "fsync": (os, ("EIO", "ENOSPC", "EROFS", "EDQUOT")),
    "replace": (os, ("EBUSY", "EPERM", "EXDEV", "EIO", "ENOSPC")),
    "ftruncate": (os, ("EPERM", "EIO", "EINVAL")),
    "scandir": (os, ("EACCES", "EIO", "EMFILE", "ENOMEM")),
    "write": (os, ("EIO", "ENOSPC", "EPERM", "EFBIG")),
    "pread": (os, ("EIO", "EISDIR", "EPERM")),
    "preadv": (os, ("EIO", "ENOSYS", "EPERM")),
    "fstat": (os, ("EIO", "ENOMEM", "EOVERFLOW", "ENOSYS")),
}


def refusing(module: Any, call: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call fail always."""
    code, real = getattr(errno, error), getattr(module, call)

    def refuse(*arguments: Any, **_: object) -> Any:
        if call == "mmap" and arguments[0] < 0:
            # Memory, not a file.
            return real(*arguments)
        if module is resource:
            # What `resource` makes of these two.
            raise (
                ValueError("not allowed to raise maximum limit")
                if error in {"EPERM", "EINVAL"}
                else OSError(code, os.strerror(code))
            )
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, call, refuse)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than a MiB: smaller files are not worth a hint to the system."""
    path = tmp_path_factory.mktemp("large") / "corpus.txt"
    path.write_text(DOCUMENTS * 22)
    return path


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("complete")
    (top / "corpus.txt").write_text(DOCUMENTS)
    run_in_process([top / "corpus.txt"], top / "out", TINY, val_fraction=0.2)
    return top


@pytest.mark.parametrize("call", ADVANTAGES)
def test_a_run_does_without_what_is_only_an_advantage(
    call: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, errors = ADVANTAGES[call]
    for error in errors:
        refusing(module, call, error, monkeypatch)
        memory.give_way()
        memory.mark_for_oom_killer()
        memory.trim()
        assert memory.usable_cores() >= 1
        assert memory.machine_bytes() > 0
        os.close(child._for_last_words())
        memory_guard.limit_growth(1 << 40)
        _copied(tmp_path)
    run_in_process([large], tmp_path / "out", {"segment_bytes": 1_000_000}, val_fraction=0.2)
    assert verify(str(tmp_path / "out")).ok


def _copied(top: Path) -> None:
    (top / "source").write_bytes(b"whole")
    durable.link(beside(top / "source"), beside(top / "target"))
    assert (top / "target").read_bytes() == b"whole"
    (top / "target").unlink()


@pytest.mark.parametrize("call", NEEDED)
def test_a_run_that_lacks_what_it_needs_says_one_thing_and_resumes(
    call: str, tmp_path: Path, complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = complete / "corpus.txt", tmp_path / "out"
    module, errors = NEEDED[call]
    for error in errors:
        with monkeypatch.context() as patch:
            refusing(module, call, error, patch)
            try:
                run_in_process([corpus], out, TINY, val_fraction=0.2)
            except (TokmillError, OSError) as raised:
                said = refusals.explained(raised, "the process that works", next_step="")
                assert "unforeseen" not in said.what
                assert all((said.where, said.allowed, said.next_step))
    run_in_process([corpus], out, TINY, val_fraction=0.2)
    assert (out / "train.bin").read_bytes() == (complete / "out" / "train.bin").read_bytes()


@pytest.mark.parametrize("call", ["flock", "pipe", "fsync", "replace", "write", "pread", "scandir", "memfd_create"])
def test_a_command_that_lacks_what_it_needs_says_one_thing(
    call: str, tmp_path: Path, complete: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, made = str(tmp_path / "made"), str(complete / "out")
    module, (error, *_) = (NEEDED | ADVANTAGES)[call]
    for arguments in (
        ["tokenize", str(complete / "corpus.txt"), "--out", out, "--memory", "1K"],
        ["verify", made],
        ["report", made, "--out", f"{out}.html"],
        ["merge", made, made, "--out", out],
        ["doctor", str(tmp_path)],
    ):
        with monkeypatch.context() as patch:
            refusing(module, call, error, patch)
            code = app.run(arguments)
        said = capsys.readouterr().err
        assert code in {0, 1, 2, 10, 11, 13, 14}
        assert "unforeseen" not in said
        assert "Traceback" not in said
        assert code == 0 or said.count("tokmill: error:") == 1


def test_a_process_that_cannot_be_started_is_one_message(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing(os, "posix_spawn", "EAGAIN", monkeypatch)
    assert app.run(["tokenize", str(complete / "corpus.txt"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "Resource temporarily unavailable" in said
    assert "ulimit -u" in said
    assert "unforeseen" not in said


@pytest.mark.parametrize("n_allowed", range(5))
def test_with_fewer_threads_a_run_waits_for_each_commit_or_says_one_thing(
    n_allowed: int, complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, real = [0], threading.Thread.start

    def start(thread: threading.Thread) -> None:
        started[0] += 1
        if started[0] > n_allowed:
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        # A guard, and two for a worker are needed; what commits is none where there can be no more.
        with nullcontext() if n_allowed >= 3 else pytest.raises(RuntimeError) as raised:
            run_in_process([complete / "corpus.txt"], tmp_path / "out", TINY, val_fraction=0.2)
    if raised is not None:
        assert "ulimit -u" in str(refusals.explained(raised.value, "the process that works", next_step=""))
    run_in_process([complete / "corpus.txt"], tmp_path / "out", TINY, val_fraction=0.2)
    assert (tmp_path / "out" / "train.bin").read_bytes() == (complete / "out" / "train.bin").read_bytes()


def test_without_proc_memory_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch, complete: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(linux, "read_text", lambda _path: "")
    monkeypatch.setattr(psutil, "Process", lambda: (_ for _ in ()).throw(psutil.NoSuchProcess(1)))
    assert memory.rss_bytes() > 1 << 20
    assert memory.data_bytes() is None
    assert memory.machine_bytes() > 1 << 20
    run_in_process([complete / "corpus.txt"], tmp_path / "out", TINY, val_fraction=0.2)


@given(
    st.text(st.characters(codec="utf-8"), max_size=200)
    | st.lists(st.sampled_from(["0::/", "full avg10=", "MemTotal:", "max", "1", " ", "\n", ":"])).map("".join)
)
def test_any_text_in_files_of_the_system_is_read(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linux, "read_text", lambda _path: text)
        memory.machine_bytes()
        memory.rss_bytes()
        memory.share_bytes()
        memory.own_bytes()
        memory.data_bytes()
        memory.cgroup_limit_bytes()
        memory.cgroup_left_bytes()
        memory.cgroup_cores()
        memory.stalled_percent()
        memory.available_bytes()


def test_what_cannot_be_removed_at_the_end_is_told(complete: Path, tmp_path: Path) -> None:
    for name in ("out", "merged", "converted", "parts"):
        (tmp_path / name / ".tokmill").mkdir(parents=True)
        (tmp_path / name / ".tokmill" / ".nfs0001").touch()
    make_parts([complete / "corpus.txt"], tmp_path / "parts", 2)
    for done in (
        tokmill.tokenize([str(complete / "corpus.txt")], out=str(tmp_path / "out")),
        tokmill.merge([complete / "out"], tmp_path / "merged"),
        tokmill.convert(complete / "out", tmp_path / "converted", format="mds"),
        tokmill.finalize(tmp_path / "parts"),
    ):
        (notice,) = (notice for notice in done.notices if "could not be removed" in notice)
        assert notice.startswith(f"{done.out}/.tokmill ")
        assert os.listdir(f"{done.out}/.tokmill") == [".nfs0001"]
