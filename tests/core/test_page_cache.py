"""The page cache is left as it was found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokmill.core.system.current import SYSTEM
from tokmill.core.system.page_cache import ReadOnce, drop

SIZE = 40 << 20


def read_through(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    once, offset = ReadOnce(fd, SIZE), 0
    once.before(0)
    while data := os.read(fd, 1 << 20):
        offset += len(data)
        once.before(offset)
    once.finish()
    os.close(fd)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    with path.open("wb") as out:
        for _ in range(SIZE >> 20):
            out.write(os.urandom(1 << 20))
        out.flush()
        os.fdatasync(out.fileno())
        drop(out.fileno(), 0, 0)
    if resident(path) > 0.1:
        pytest.skip("this file system does not let go of pages")
    return path


def resident(path: Path) -> float:
    fd = os.open(path, os.O_RDONLY)
    try:
        return SYSTEM.resident_share(fd, 0, SIZE)
    finally:
        os.close(fd)


def test_what_was_not_in_memory_is_not_left_there(file: Path) -> None:
    read_through(file)
    assert resident(file) < 0.1


def test_what_was_in_memory_stays(file: Path) -> None:
    file.read_bytes()
    assert resident(file) > 0.9
    read_through(file)
    assert resident(file) > 0.9
