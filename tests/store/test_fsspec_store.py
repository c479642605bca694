"""The store for file systems of fsspec that have none of their own, with the one that fsspec keeps in memory."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from tokmill.core.errors import ChangedError, DamagedInputError
from tokmill.core.records import Input
from tokmill.store import base
from tokmill.store.base import ObjectVersion, RangeBuffer, TransientError
from tokmill.store.download import RemoteStream, RetryPolicy
from tokmill.store.fsspec_store import FsspecStore


@pytest.fixture
def files() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name in ("/d/a.txt", "/d/sub/b.txt", "/e.txt"):
        system.pipe_file(name, name.encode() * 100)
    yield system
    system.store.clear()


def test_objects_prefixes_and_patterns(files: Any) -> None:
    store = FsspecStore("memory")
    found = store.head("memory://d/a.txt")
    assert found is not None
    assert (found.name, found.size_bytes) == ("memory://d/a.txt", 800)
    assert store.head("memory://d") is None
    assert store.head("memory://nothing") is None
    assert sorted(f.name for f in store.list("memory://d/")) == ["memory://d/a.txt", "memory://d/sub/b.txt"]
    objects, directories = store.glob("memory://d/*")
    assert [f.name for f in objects] == ["memory://d/a.txt"]
    assert directories == ["memory://d/sub/"]


def test_a_range_is_fetched_and_a_change_found(files: Any) -> None:
    store = FsspecStore("memory")
    pinned = ObjectVersion("memory://d/a.txt", 800, None)
    buffer = RangeBuffer(3, 10)
    store.fetch(pinned, buffer)
    assert bytes(buffer.data) == (b"/d/a.txt" * 100)[3:13]
    store.check(pinned)
    files.pipe_file("/d/a.txt", b"more")
    with pytest.raises(ChangedError):
        store.check(pinned)
    files.rm("/d/a.txt")
    with pytest.raises(ChangedError, match="gone"):
        store.fetch(pinned, RangeBuffer(0, 10))
    with pytest.raises(ChangedError, match="gone"):
        store.check(pinned)


def test_a_stream_compares_before_its_first_byte_and_behind_its_last(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base._KINDS, "memory", ("tokmill.store.fsspec_store:FsspecStore", "fsspec", "none"))
    whole = b"/d/a.txt" * 100

    def fresh() -> RemoteStream:
        files.pipe_file("/d/a.txt", whole)
        found = FsspecStore("memory").head("memory://d/a.txt")
        assert found is not None
        source = Input(path=found.name, format="text", compression="none", size_bytes=800, version="sha256 1")
        return RemoteStream(source, RetryPolicy(attempts=2, first_s=0.01))

    stream = fresh()
    stream.skip(5)
    assert stream.read(1000) == whole[5:]
    assert stream.read(1000) == b""
    for skip in (0, 5):
        stream = fresh()
        stream.skip(skip)
        files.pipe_file("/d/a.txt", whole + b"more")
        with pytest.raises(ChangedError):
            stream.read(10)
    stream = fresh()
    assert stream.read(1000) == whole
    files.pipe_file("/d/a.txt", whole + b"more")
    with pytest.raises(ChangedError):
        stream.read(10)


class Answer:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class LibraryError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("https://host/?token=HIDDEN")
        self.response = Answer(status)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (LibraryError(503), TransientError),
        (LibraryError(429), TransientError),
        (TimeoutError("https://host/?token=HIDDEN"), TransientError),
        (ConnectionResetError(104, "reset"), TransientError),
        (LibraryError(403), DamagedInputError),
        (LibraryError(400), DamagedInputError),
        (PermissionError("HIDDEN"), DamagedInputError),
        (RuntimeError("HIDDEN"), DamagedInputError),
    ],
    ids=repr,
)
def test_errors_of_libraries_are_told_apart_by_what_may_pass_and_never_quoted(error: Exception, meaning: type[Exception]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(meaning) as caught:
        FsspecStore("memory")._translated("gs://bucket/a", fail)
    assert "HIDDEN" not in str(caught.value)


def test_what_a_store_calls_a_version_is_its_content_before_its_time() -> None:
    from tokmill.store.fsspec_store import _version

    time = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
    assert _version({"lfs": {"sha256": "1"}, "blob_id": "2", "last_modified": time}) == "sha256 1"
    assert _version({"etag": "1", "generation": "2", "updated": time}) == "etag 1"
    assert _version({"updated": time}) == f"updated {time}"
    assert _version({"size": 3}) is None
