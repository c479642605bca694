"""Outputs made of outputs in an object store, and sent to one: the bytes are those of directories, whatever happens on the way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.corpora import some_documents
from support.failures import Died, dying_at, flip
from support.outputs import files_in
from support.runs import tokenize_documents
from support.s3 import Bucket, Start, failing, watch
from support.tasks_here import Here

import tokmill
from tokmill.cli.app import run
from tokmill.core.errors import DamageError, StorageError, UsageError
from tokmill.core.events import AnyEvent, Committed
from tokmill.derive import bucket_run, engine, remote_source
from tokmill.derive.deduplication import running
from tokmill.output import directory

OUT = "s3://bucket/sets/made"
Make = Callable[..., tokmill.Outcome]


def _shuffle(sources: list[Any], out: Any, **options: Any) -> tokmill.Outcome:
    return tokmill.shuffle(sources, out, seed=3, **options)


def _mix(sources: list[Any], out: Any, **options: Any) -> tokmill.Outcome:
    return tokmill.mix([(sources[0], 0.7), (sources[1], 0.3)], out, seed=3, tokens=1500, **options)


def _convert(sources: list[Any], out: Any, **options: Any) -> tokmill.Outcome:
    return tokmill.convert(sources[0], out, format="megatron", **options)


def _reshard(sources: list[Any], out: Any, **options: Any) -> tokmill.Outcome:
    return tokmill.reshard(sources[0], out, shard_tokens=500, **options)


def _dedup(sources: list[Any], out: Any, **options: Any) -> tokmill.Outcome:
    return tokmill.dedup(sources, out, near=0.9, shortest=5, **options)


def _pack(sources: list[Any], out: Any, **options: Any) -> tokmill.Outcome:
    return tokmill.pack(sources, out, sequence=64, seed=3, format="llmc", shard_tokens=640, **options)


MAKERS: dict[str, Make] = {
    "pack": _pack,
    "shuffle": _shuffle,
    "mix": _mix,
    "merge": tokmill.merge,
    "dedup": _dedup,
    "convert": _convert,
    "reshard": _reshard,
}


@pytest.fixture
def bucket(server: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bucket:
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.renew()
    return server


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    first = some_documents(60, 60, 0)
    tokenize_documents(tmp_path / "a", first)
    # With copies.
    tokenize_documents(tmp_path / "b", some_documents(60, 60, 1) + first[:20])
    return [tmp_path / "a", tmp_path / "b"]


def put(bucket: Bucket, directory: Path) -> str:
    """A complete output at a prefix, as somebody would copy it."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            bucket.put(f"sets/{directory.name}/{path.relative_to(directory)}", path.read_bytes())
    return f"s3://bucket/sets/{directory.name}"


def fetched(bucket: Bucket, prefix: str = "sets/made") -> dict[str, bytes]:
    """All files of an output at a prefix but its manifest."""
    names = [name.removeprefix(f"{prefix}/") for name in bucket.names(f"{prefix}/")]
    return {name: bucket.get(f"{prefix}/{name}") for name in names if name != "manifest.json"}


@pytest.mark.parametrize("command", list(MAKERS))
def test_from_a_store_and_into_one_the_bytes_are_those_of_directories(
    command: str, bucket: Bucket, two: list[Path], tmp_path: Path
) -> None:
    make, urls = MAKERS[command], [put(bucket, each) for each in two]
    made = make(two, tmp_path / "made")
    there = make(urls, OUT, stage=tmp_path / "stage")
    wanted = {name: data for name, data in files_in(tmp_path / "made").items() if name != "manifest.json"}
    assert fetched(bucket) == wanted
    assert there.out == OUT
    assert (there.tokens_train, there.files) == (made.tokens_train, made.files)
    assert not there.already_complete
    assert [path for path in (tmp_path / "stage").rglob("*") if path.is_file()] == [], "what was staged is gone"
    report = tokmill.verify(OUT)
    assert report.ok
    assert report.order_checked == tokmill.verify(tmp_path / "made").order_checked
    assert run(["inspect", OUT, "--json"]) == 0
    assert make(urls, OUT, stage=tmp_path / "stage").already_complete


def test_tasks_that_deduplicate_read_from_a_store_and_the_command_sends_there(
    bucket: Bucket, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _dedup(two, tmp_path / "made")
    urls, tasks = [put(bucket, each) for each in two], Here()
    monkeypatch.setattr(running, "cluster", lambda _address: tasks)
    _dedup(urls, OUT, stage=tmp_path / "stage", ray="")
    assert ("copy_portion", 2) in tasks.asked
    assert fetched(bucket) == files_in(tmp_path / "made")
    assert tokmill.verify(OUT).ok


@pytest.mark.parametrize("command", ["shuffle", "merge", "dedup"])
def test_killed_while_it_is_made_or_sent_it_goes_on_to_the_same_bytes(
    command: str, bucket: Bucket, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "COMMIT_BYTES", 300)
    monkeypatch.setattr(bucket_run, "COMMIT_BYTES", 300)
    urls, make = [put(bucket, each) for each in two], MAKERS[command]
    options: dict[str, Any] = {"shard_tokens": 200} if command == "shuffle" else {}
    make(two, tmp_path / "made", **options)
    for n in (4, 30, 90, 175):
        with monkeypatch.context() as patch:
            dying_at(n, patch)
            with contextlib.suppress(Died):
                make(urls, OUT, stage=tmp_path / "stage", stage_size=1000, **options)
    make(urls, OUT, stage=tmp_path / "stage", stage_size=1000, **options)
    assert fetched(bucket) == files_in(tmp_path / "made")
    assert tokmill.verify(OUT).ok
    assert bucket.begun() == []
    assert [path for path in (tmp_path / "stage").rglob("*") if path.is_file()] == []


def test_killed_behind_its_last_rename_it_sends_what_is_complete(
    bucket: Bucket, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that were sent and removed are marked then, and the journal is still there."""
    monkeypatch.setattr(bucket_run, "COMMIT_BYTES", 300)
    _shuffle(two, tmp_path / "made", shard_tokens=200)
    options: dict[str, Any] = {"stage": tmp_path / "stage", "stage_size": 1000, "shard_tokens": 200}

    def die(*_: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(directory, "remove_state", die)
        with pytest.raises(Died):
            _shuffle(two, OUT, **options)
    assert list((tmp_path / "stage").rglob("train_*.json")), "some are sent"
    assert list((tmp_path / "stage").rglob("journal"))
    _shuffle(two, OUT, **options)
    assert fetched(bucket) == files_in(tmp_path / "made")
    assert [path for path in (tmp_path / "stage").rglob("*") if path.is_file()] == []


def test_complete_shards_leave_while_the_output_is_made(
    bucket: Bucket, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_run, "COMMIT_BYTES", 300)
    monkeypatch.setattr(bucket_run, "_BUCKET_BYTES", 1500)
    held: list[int] = []

    class Watching:
        def on_event(self, event: AnyEvent) -> None:
            if isinstance(event, Committed):
                held.append(sum(p.stat().st_size for p in (tmp_path / "stage").rglob("train_*.part")))

    def slowly(request: dict[str, Any], _start: Start) -> None:
        time.sleep(0.08 if "/train_" in request["PATH_INFO"] else 0)

    watch(bucket, slowly)
    _shuffle(two, OUT, stage=tmp_path / "stage", stage_size=1000, shard_tokens=200, observers=[Watching()])
    watch(bucket, None)
    total = sum(len(data) for name, data in fetched(bucket).items() if name.startswith("train_"))
    assert total > 6000
    assert max(held) < 3500


def test_a_source_that_is_damaged_in_the_store_is_named(bucket: Bucket, two: list[Path], tmp_path: Path) -> None:
    flip(two[1] / "train.bin", 100)
    urls = [put(bucket, each) for each in two]
    with pytest.raises(DamageError, match="a source is damaged") as caught:
        _shuffle(urls, tmp_path / "out")
    assert "s3://bucket/sets/b/train.bin" in str(caught.value.where)
    bucket.delete("sets/b/train.bin")
    with pytest.raises(DamageError, match="an object is missing"):
        _shuffle(urls, tmp_path / "out")


@pytest.mark.parametrize("command", ["shuffle", "merge"])
def test_a_source_that_changes_meanwhile_is_noticed(
    command: str, bucket: Bucket, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls, real = [put(bucket, each) for each in two], remote_source.RemoteSource._open

    def changing(self: remote_source.RemoteSource, name: str, size_bytes: int) -> Any:
        bucket.put("sets/b/train.bin", (two[0] / "train.bin").read_bytes()[:size_bytes].ljust(size_bytes, b"x"))
        return real(self, name, size_bytes)

    monkeypatch.setattr(remote_source.RemoteSource, "_open", changing)
    with pytest.raises(StorageError, match="was replaced or deleted while it was read"):
        MAKERS[command](urls, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_store_that_breaks_off_is_asked_again(bucket: Bucket, two: list[Path], tmp_path: Path) -> None:
    urls = [put(bucket, each) for each in two]
    watch(bucket, failing("503 Slow Down", "SlowDown", times=3))
    _shuffle(urls, tmp_path / "there")
    watch(bucket, None)
    _shuffle(two, tmp_path / "here")
    assert files_in(tmp_path / "there") == files_in(tmp_path / "here")


def test_what_cannot_work_with_a_store_is_refused_by_name(bucket: Bucket, two: list[Path], tmp_path: Path) -> None:
    url = put(bucket, two[0])
    for out in (url, f"{url}/below", "s3://bucket/sets"):
        with pytest.raises(UsageError, match=r"output is one of the sources|lies in the other"):
            _shuffle([url], out)
    with pytest.raises(UsageError, match="not read from hf://"):
        _shuffle(["hf://datasets/a/b"], tmp_path / "out")
    with pytest.raises(UsageError, match="not written to hf://"):
        _shuffle(two, "hf://datasets/a/b")
    with pytest.raises(UsageError, match="for bare files"):
        tokmill.convert("s3://bucket/a.bin", tmp_path / "out", format="raw", from_format="raw")
    with pytest.raises(UsageError, match="convert takes one"):
        tokmill.convert([url, url], tmp_path / "out", format="raw")
    with pytest.raises(UsageError, match="no complete tokmill output here"):
        _shuffle(["s3://bucket/sets/nothing"], tmp_path / "out")
    with pytest.raises(UsageError, match="a budget of 128 MiB is too small"):
        _shuffle([url], tmp_path / "out", memory="128MiB")
    assert not (tmp_path / "out").exists()
