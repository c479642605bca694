"""Failures on purpose: a death at the n-th call that changes the disk, damaged files, a disk that is nearly full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tokmill.core.system import durable
from tokmill.core.system.tree import TreePath


class Died(BaseException):
    """Stands for a kill: nothing in the product catches it."""


def dying_at(n: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the n-th call that changes the disk die; returns how many there were."""
    calls = 0

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls == n:
                raise Died
            return real(*arguments, **named)

        return call

    for name in ("replace", "link", "sync_file", "sync_directory", "write_all", "write_file", "create"):
        monkeypatch.setattr(durable, name, dying(getattr(durable, name)))
    monkeypatch.setattr(TreePath, "unlink", dying(TreePath.unlink))
    monkeypatch.setattr(TreePath, "rmdir", dying(TreePath.rmdir))
    return lambda: calls


def full_from(n: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the disk be full from the n-th write of an output's bytes on; returns how many there were."""
    calls = 0

    def writing(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls >= n:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        return call

    for name in ("write_all", "write_all_at"):
        monkeypatch.setattr(durable, name, writing(getattr(durable, name)))
    return lambda: calls


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def do_damage(out: Path, damage: tuple[str, str, float, int]) -> None:
    name, kind, where, bit = damage
    path = out / name
    if not path.exists():
        return
    at = int(where * path.stat().st_size)
    if kind == "flip" and path.stat().st_size:
        flip(path, at, bit)
    elif kind == "cut":
        os.truncate(path, at)
    elif kind == "missing":
        path.unlink()
    elif kind == "longer":
        path.write_bytes(path.read_bytes() + bytes([bit]))
    elif kind == "linked":
        path.rename(out.parent / f"elsewhere-{name}")
        path.symlink_to(out.parent / f"elsewhere-{name}")


def limit_disk(monkeypatch: pytest.MonkeyPatch, free_bytes: int, free_files: int = 10**6) -> None:
    """A disk of 100 MB with so much free, as far as anyone asks."""
    _answer(monkeypatch, lambda: free_bytes, free_files)


def fill_disk(monkeypatch: pytest.MonkeyPatch, n_bytes: int, *directories: Path) -> None:
    """A disk on which these directories have so much room together, as far as anyone asks."""

    def free() -> int:
        files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
        return max(0, n_bytes - sum(path.stat().st_blocks * 512 for path in files))

    _answer(monkeypatch, free, 10**6)


def _answer(monkeypatch: pytest.MonkeyPatch, free_bytes: Callable[[], int], free_files: int) -> None:
    real = os.statvfs("/")
    fields = dict(f_frsize=1, f_bsize=1, f_blocks=10**8, f_files=10**6, f_favail=free_files)

    class Status:
        def __getattr__(self, name: str) -> int:
            if name in ("f_bfree", "f_bavail"):
                return free_bytes()
            return int(fields[name] if name in fields else getattr(real, name))

    monkeypatch.setattr(os, "statvfs", lambda _path: Status())
