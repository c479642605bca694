"""Outputs in an object store, as a user makes them: the bytes of a local run, whatever happens between the two machines."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.commands import called, clean_environment, wait_until
from support.corpora import SEP, some_documents
from support.in_process import workers_in_process
from support.oracle import plain_tokens
from support.s3 import Bucket, Fault, Start, failing, watch

import tokmill
from tokmill.core.errors import BadRecordError, ChangedError, DamageError, LockedError, UsageError
from tokmill.core.events import Started
from tokmill.core.manifest import encode_manifest, load_manifest
from tokmill.core.system.tree import beside
from tokmill.output.prefix import Prefix
from tokmill.store import download, transfer
from tokmill.store.s3 import S3Objects
from tokmill.store.transfer import Uploader, UploadState, outgoing

DOCUMENTS = some_documents(300, 600, 5)
PART = 16384
"""Of an object in the runs here: a corpus of some hundred kilobytes has a dozen parts."""
URL = "s3://bucket/sets/one"


@pytest.fixture
def bucket(server: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    monkeypatch.setattr(transfer, "PART_BYTES", PART)
    server.renew()
    return server


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_bytes(SEP.encode().join(DOCUMENTS))
    return path


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete output in a directory."""
    out = tmp_path_factory.mktemp("made") / "out"
    with workers_in_process():
        tokmill.tokenize(corpus, out, val_fraction=0.1)
    return out


def arguments(corpus: Path, stage: Path, *more: object) -> list[str]:
    usual = [] if "--val-fraction" in more else ["--val-fraction", "0.1"]
    return ["tokenize", str(corpus), "--out", URL, "--stage", str(stage), *usual, *map(str, more)]


def started(corpus: Path, stage: Path, *more: object, part: int = PART) -> subprocess.Popen[str]:
    """A run of its own that sends small parts."""
    program = f"""
import sys
from tokmill import cli
from tokmill.store import transfer
transfer.PART_BYTES = {part}
sys.argv[0] = "tokmill"
cli.main()
"""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments(corpus, stage, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )


def ended(run: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = run.communicate(timeout=100)
    return run.returncode, out, err


def run(corpus: Path, stage: Path, *more: object) -> tuple[int, str, str]:
    return ended(started(corpus, stage, *more))


def make(corpus: Path, stage: Path, **options: Any) -> tokmill.Summary:
    """A run of which this process is the one that was typed. Only one whose shards leave while it works needs another."""
    with nullcontext() if "stage_size" in options else workers_in_process():
        return tokmill.tokenize(corpus, URL, stage=stage, **{"val_fraction": 0.1, **options})


def fetched(bucket: Bucket, *, val_fraction: float = 0.1) -> None:
    """The prefix holds the reference's bytes, is sound, and nothing else is left."""
    assert (bucket.get("sets/one/train.bin"), bucket.get("sets/one/val.bin")) == plain_tokens(DOCUMENTS, val_fraction=val_fraction)
    assert tokmill.verify(URL).ok
    assert bucket.begun() == []


class Parts:
    """A fault that only watches: which parts were sent; and holds them up when asked to."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.sent: list[tuple[str, int]] = []
        self.pause_s = pause_s
        self.gate = threading.Event()
        self.gate.set()
        self.n_held = 0

    def __call__(self, request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if request["REQUEST_METHOD"] == "PUT" and "/train_" in request["PATH_INFO"]:
            time.sleep(self.pause_s)
        if "partNumber=" in request["QUERY_STRING"]:
            if not self.gate.is_set():
                self.n_held += 1
            self.gate.wait(60)
            time.sleep(self.pause_s)
            number = int(request["QUERY_STRING"].partition("partNumber=")[2].partition("&")[0])
            self.sent.append((request["PATH_INFO"], number))
        return None


def test_a_prefix_holds_the_bytes_of_a_local_run_when_the_command_ends(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    parts = Parts()
    watch(bucket, parts)
    code, out, err = run(corpus, tmp_path, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["out"] == URL
    assert summary["uploaded_bytes"] == sum(entry["size_bytes"] for entry in summary["files"].values())
    assert len(parts.sent) > 8
    watch(bucket, None)
    fetched(bucket)
    assert sorted(bucket.names()) == ["sets/one/manifest.json", "sets/one/train.bin", "sets/one/val.bin"]
    assert list(tmp_path.rglob("*")) == [], "what was staged is gone"
    assert "HIDDENSECRET" not in out + err
    assert b"HIDDENSECRET" not in bucket.get("sets/one/manifest.json")


def test_the_manifest_is_put_when_everything_else_is_there(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    make(corpus, tmp_path)
    paths = [path.removeprefix("/bucket/sets/one/") for method, path, _ in bucket.log if method in {"PUT", "POST"}]
    assert paths.index("manifest.json") == len(paths) - 1
    assert paths.count("manifest.json") == 1


def test_a_run_killed_while_it_sends_goes_on_with_the_parts_that_are_missing(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    parts = Parts(pause_s=0.03)
    watch(bucket, parts)
    first = started(corpus, tmp_path)
    wait_until(lambda: len(parts.sent) >= 5 or first.poll() is not None)
    os.kill(first.pid, signal.SIGKILL)
    ended(first)
    bucket.settle()
    assert "sets/one/manifest.json" not in bucket.names()
    assert "sets/one/train.bin" in bucket.begun()
    # What the store has whole: the last ones may have been cut off on their way.
    store = S3Objects(URL)
    before = {
        (f"/bucket/sets/one/{name}", number)
        for name, upload in store.list_multipart()
        for number, (n_bytes, _) in store.list_parts(name, upload).items()
        if n_bytes == PART
    }
    assert len(before) >= 2
    again = Parts()
    watch(bucket, again)
    code, _, err = run(corpus, tmp_path, "--json")
    assert code == 0, err
    assert again.sent
    assert before.isdisjoint(again.sent)
    watch(bucket, None)
    fetched(bucket)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--shard-tokens", 100_000, "--stage-size", 400_000]])
def test_runs_killed_at_random_moments_end_with_the_same_bytes(
    bucket: Bucket, long: Path, tmp_path: Path, options: list[object]
) -> None:
    random.seed(7)
    watch(bucket, Parts(pause_s=0.02))
    for _ in range(15):
        one = started(long, tmp_path, *options)
        time.sleep(random.uniform(1, 6))
        one.kill()
        if ended(one)[0] == 0:
            # It was complete before it was killed.
            bucket.empty()
            watch(bucket, Parts(pause_s=0.02))
    watch(bucket, None)
    code, _, err = run(long, tmp_path, *options)
    assert code == 0, err
    sides = [b"".join(bucket.get(key) for key in bucket.names(f"sets/one/{side}")) for side in ("train", "val")]
    assert tuple(sides) == long_tokens(val_fraction=0.1)
    assert tokmill.verify(URL).ok


def test_a_run_survives_a_store_that_is_stopped_and_started_again(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    parts = Parts(pause_s=0.02)
    watch(bucket, parts)
    one = started(corpus, tmp_path)
    wait_until(lambda: len(parts.sent) >= 3 or one.poll() is not None)
    bucket.stop()
    time.sleep(1)
    bucket.start()
    code, _, err = ended(one)
    assert code == 0, err
    watch(bucket, None)
    fetched(bucket)


def test_a_busy_store_is_asked_again(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    busy, broken = failing("503 Slow Down", "SlowDown", times=8), failing("500 Internal Error", "InternalError", times=8)
    n_asked = iter(range(10_000))

    def mostly(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        n = next(n_asked) % 3
        return None if n == 2 else (busy, broken)[n](request, start)

    watch(bucket, mostly)
    make(corpus, tmp_path)
    assert next(n_asked) > 24
    watch(bucket, None)
    fetched(bucket)


def test_a_store_that_stays_busy_ends_the_run_which_can_be_resumed(
    bucket: Bucket, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = download.RetryPolicy(attempts=3, first_s=0.01)
    monkeypatch.setattr(transfer, "WRITING", quick)
    monkeypatch.setattr("tokmill.output.prefix.WRITING", quick)
    busy = failing("503 Slow Down", "SlowDown", times=10_000)
    watch(bucket, lambda request, start: busy(request, start) if "partNumber" in request["QUERY_STRING"] else None)
    with pytest.raises(tokmill.TokmillError, match=r"cannot be written to: HTTP 503 SlowDown, 3 times") as caught:
        make(corpus, tmp_path)
    assert caught.value.exit_code == 1
    assert f"where: {URL}/" in str(caught.value)
    assert "sets/one/manifest.json" not in bucket.names()
    watch(bucket, None)
    make(corpus, tmp_path)
    fetched(bucket)


def lost(path_end: str, status: str = "500 Internal Server Error") -> Callable[[Bucket], Fault]:
    """The store does what it is asked, once, and says that it failed."""
    left = [1]

    def fault_of(bucket: Bucket) -> Fault:
        def fault(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
            is_meant = request["PATH_INFO"].endswith(path_end) and request["REQUEST_METHOD"] in {"PUT", "POST"}
            if not is_meant or not left[0] or "partNumber" in request["QUERY_STRING"] or request["QUERY_STRING"] == "uploads":
                return None
            left[0] -= 1
            list(bucket.real(request, lambda *_: None))
            return failing(status, "InternalError", times=1)(request, start)

        return fault

    return fault_of


@pytest.mark.parametrize("name", ["manifest.json", "train.bin", "val.bin"])
def test_an_answer_that_was_lost_is_no_failure(bucket: Bucket, made: Path, tmp_path: Path, name: str) -> None:
    watch(bucket, lost(name)(bucket))
    publish(made, tmp_path)
    watch(bucket, None)
    fetched(bucket)


def publish(made: Path, stage: Path) -> None:
    """Send a complete directory, with nothing of tokenize around it."""
    manifest = load_manifest(made)
    prefix, state = Prefix(URL), UploadState(beside(stage / "upload.json"), URL)
    prefix.commit(manifest, send(prefix, state, made))
    prefix.tidy(manifest.files)


def send(prefix: Prefix, ledger: UploadState, made: Path) -> dict[str, Any]:
    manifest = load_manifest(made)
    with Uploader(prefix.store, manifest.fingerprint, ledger, on_bytes=lambda n: None) as sender:
        return {file.name: sender.send(file).result() for file in outgoing(made, manifest)}


def test_a_second_run_of_other_settings_is_refused_before_it_begins(
    bucket: Bucket, corpus: Path, made: Path, tmp_path: Path
) -> None:
    """The first has sent its files, and not its manifest."""
    prefix, state = Prefix(URL), UploadState(beside(tmp_path / "a.json"), URL)
    sent = send(prefix, state, made)
    bucket.log.clear()
    with pytest.raises(LockedError, match="another run, of other inputs or settings"):
        make(corpus, tmp_path / "b", seed=1)
    assert {method for method, _, _ in bucket.log} <= {"GET", "HEAD"}
    assert not (tmp_path / "b").exists()
    prefix.commit(load_manifest(made), sent)
    fetched(bucket)


def test_a_second_run_of_other_settings_is_refused_when_the_first_sends_while_it_tokenizes(
    bucket: Bucket, corpus: Path, made: Path, tmp_path: Path
) -> None:
    prefix, state = Prefix(URL), UploadState(beside(tmp_path / "a.json"), URL)
    sent: dict[str, Any] = {}

    def meanwhile(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if "list-type" not in request["QUERY_STRING"]:
            return None
        bucket.fault = None
        empty = list(bucket.real(request, start))
        sent.update(send(prefix, state, made))
        return empty

    watch(bucket, meanwhile)
    with pytest.raises(LockedError, match="another run, of other inputs or settings"):
        make(corpus, tmp_path / "b", seed=1)
    prefix.commit(load_manifest(made), sent)
    fetched(bucket)


def test_two_runs_of_the_same_settings_make_one_output(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    watch(bucket, Parts(pause_s=0.02))
    runs = [started(corpus, tmp_path / name) for name in "ab"]
    results = [ended(one) for one in runs]
    assert [code for code, _, _ in results] == [0, 0], results
    watch(bucket, None)
    fetched(bucket)


def test_who_was_overtaken_cannot_complete_the_output(bucket: Bucket, made: Path, corpus: Path, tmp_path: Path) -> None:
    """The first run has sent everything when another one, told --fresh, takes its place."""
    prefix, ledger = Prefix(URL), UploadState(beside(tmp_path / "a.json"), URL)
    manifest = load_manifest(made)
    sent = send(prefix, ledger, made)
    make(corpus, tmp_path, fresh=True, val_fraction=0.2)
    with pytest.raises(LockedError, match="at the same time"):
        prefix.commit(manifest, sent)
    fetched(bucket, val_fraction=0.2)


def test_an_object_that_was_replaced_before_the_manifest_is_put_is_noticed(bucket: Bucket, made: Path, tmp_path: Path) -> None:
    prefix, ledger = Prefix(URL), UploadState(beside(tmp_path / "a.json"), URL)
    manifest = load_manifest(made)
    sent = send(prefix, ledger, made)
    bucket.put("sets/one/val.bin", bytes(len(bucket.get("sets/one/val.bin"))))
    with pytest.raises(LockedError, match="at the same time") as caught:
        prefix.commit(manifest, sent)
    assert caught.value.where == f"{URL}/val.bin"
    assert "sets/one/manifest.json" not in bucket.names()


def test_an_object_of_another_run_is_not_overwritten(bucket: Bucket, made: Path, tmp_path: Path) -> None:
    bucket.put("sets/one/val.bin", b"somebody's")
    prefix, ledger = Prefix(URL), UploadState(beside(tmp_path / "a.json"), URL)
    with pytest.raises(UsageError, match="no tokmill manifest lists"):
        send(prefix, ledger, made)
    assert bucket.get("sets/one/val.bin") == b"somebody's"


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "manifest.json"])
def test_what_appears_between_a_look_and_the_sending_stays(bucket: Bucket, made: Path, tmp_path: Path, name: str) -> None:
    def meanwhile(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        visible = request["REQUEST_METHOD"] == "PUT" or "uploadId" in request["QUERY_STRING"]
        if visible and request["PATH_INFO"].endswith(f"/{name}") and "partNumber" not in request["QUERY_STRING"]:
            bucket.fault = None
            bucket.put(f"sets/one/{name}", b"{}")
        return None

    watch(bucket, meanwhile)
    with pytest.raises((UsageError, LockedError, DamageError)):
        publish(made, tmp_path)
    assert bucket.get(f"sets/one/{name}") == b"{}"


def test_a_store_that_knows_no_conditions_is_looked_at_before(bucket: Bucket, made: Path, tmp_path: Path) -> None:
    refused = failing("501 Not Implemented", "NotImplemented", times=10_000)
    watch(bucket, lambda request, start: refused(request, start) if "HTTP_IF_NONE_MATCH" in request else None)
    publish(made, tmp_path)
    fetched(bucket)
    with pytest.raises(Exception, match=r"^$") as caught:
        S3Objects(URL).put("manifest.json", b"{}", only_new=True)
    assert type(caught.value).__name__ == "AlreadyExists"


def test_a_complete_output_is_left_as_it_is_and_another_takes_its_place_only_when_asked(
    bucket: Bucket, corpus: Path, made: Path, tmp_path: Path
) -> None:
    publish(made, tmp_path)
    bucket.put("sets/one/notes.md", b"mine")
    bucket.log.clear()
    assert make(corpus, tmp_path / "stage").already_complete
    with pytest.raises(ChangedError, match=r"--val-fraction was 0.1, is 0.2"):
        make(corpus, tmp_path / "stage", val_fraction=0.2)
    assert {method for method, _, _ in bucket.log} <= {"GET", "HEAD"}
    assert not make(corpus, tmp_path / "stage", fresh=True, val_fraction=0.2).already_complete
    changes = [(method, path.rpartition("/")[2]) for method, path, _ in bucket.log if method in {"DELETE", "PUT", "POST"}]
    assert changes[0] == ("DELETE", "manifest.json"), "first of all"
    assert bucket.get("sets/one/notes.md") == b"mine"
    bucket.delete("sets/one/notes.md")
    fetched(bucket, val_fraction=0.2)


def test_the_manifest_of_another_tool_is_not_replaced_at_a_prefix(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    bucket.put("sets/one/manifest.json", b'{"files": {"precious.bin": 1}}')
    with pytest.raises(UsageError, match="tokmill did not make"):
        make(corpus, tmp_path / "stage", fresh=True)
    assert bucket.get("sets/one/manifest.json") == b'{"files": {"precious.bin": 1}}'


def test_a_replacement_that_was_interrupted_goes_on_without_being_asked_again(
    bucket: Bucket, corpus: Path, made: Path, tmp_path: Path
) -> None:
    publish(made, tmp_path)
    parts = Parts(pause_s=0.05)
    watch(bucket, parts)
    one = started(corpus, tmp_path / "stage", "--fresh", "--val-fraction", 0.2)
    wait_until(lambda: parts.sent or one.poll() is not None)
    one.kill()
    ended(one)
    assert "sets/one/manifest.json" not in bucket.names()
    watch(bucket, None)
    make(corpus, tmp_path / "stage", val_fraction=0.2)
    fetched(bucket, val_fraction=0.2)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of several batches."""
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_bytes(SEP.encode().join(DOCUMENTS * TIMES))
    return path


def long_tokens(**options: Any) -> tuple[bytes, bytes]:
    train, val = plain_tokens(DOCUMENTS, **options)
    return train * TIMES, val * TIMES


TIMES = 60
WHOLE = 1 << 20
"""A part as large as any shard here."""
SHARDED = {"shard_tokens": 100_000, "stage_size": 400_000, "val_fraction": 0.0}


def joined(bucket: Bucket) -> bytes:
    return b"".join(bucket.get(key) for key in bucket.names("sets/one/train_"))


def staged_bytes(stage: Path) -> int:
    """0 where a file left while they were counted: its bytes and those that took their place were never here together."""
    try:
        sizes = {path: path.stat().st_size for path in stage.rglob("*.part") if "manifest" not in path.name}
    except FileNotFoundError:
        return 0
    return sum(sizes.values()) if all(path.exists() for path in sizes) else 0


@pytest.mark.parametrize("stage_size", [400_000, 4_500_000])
def test_shards_leave_the_disk_as_they_are_sent(
    bucket: Bucket, long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage_size: int
) -> None:
    """At most the limit is here, or a batch and the open shard where they are more; also when a commit has just been."""
    monkeypatch.setattr(transfer, "PART_BYTES", WHOLE)
    most, n_batch_bytes = [0], [0]
    is_done = threading.Event()

    class Watch:
        def on_event(self, event: object) -> None:
            if isinstance(event, Started):
                n_batch_bytes[0] = max(n_batch_bytes[0], event.batch_bytes)

    def look() -> None:
        while not is_done.wait(0.002):
            # A look takes a while in which files leave and grow: what was really there is there in the next one, too.
            most[0] = max(most[0], min(staged_bytes(tmp_path), staged_bytes(tmp_path)))

    watch(bucket, Parts(pause_s=0.03))
    looking = threading.Thread(target=look)
    looking.start()
    try:
        make(long, tmp_path, observers=[Watch()], **{**SHARDED, "stage_size": stage_size})
    finally:
        is_done.set()
        looking.join()
    watch(bucket, None)
    ids = long_tokens(val_fraction=0)[0]
    assert joined(bucket) == ids
    # Of every batch but for the place of its cut.
    batch_bytes = 1.05 * n_batch_bytes[0] * len(ids) / long.stat().st_size
    assert 0 < most[0] <= max(stage_size, batch_bytes + 2 * SHARDED["shard_tokens"]) < 0.7 * len(ids)
    assert tokmill.verify(URL).ok
    assert list(tmp_path.iterdir()) == []


def interrupted(bucket: Bucket, corpus: Path, stage: Path) -> list[str]:
    """A run that was killed when it had sent some shards; their names."""
    watch(bucket, Parts(pause_s=0.15))
    options = ["--shard-tokens", 100_000, "--stage-size", 400_000, "--val-fraction", 0]
    one = started(corpus, stage, *options, part=WHOLE)
    wait_until(lambda: len(list(stage.rglob(".tokmill.sent/*.json"))) >= 3 or one.poll() is not None)
    assert one.poll() is None, ended(one)
    one.kill()
    ended(one)
    watch(bucket, None)
    bucket.settle()
    return [path.name.removesuffix(".json") for path in stage.rglob(".tokmill.sent/*.json")]


@pytest.mark.slow
def test_a_run_killed_while_shards_leave_goes_on_with_those_that_are_missing(bucket: Bucket, long: Path, tmp_path: Path) -> None:
    gone = interrupted(bucket, long, tmp_path)
    assert "sets/one/manifest.json" not in bucket.names()
    bucket.log.clear()
    summary = make(long, tmp_path, **SHARDED)
    assert summary.resumed
    sent = {path.rpartition("/")[2] for method, path, _ in bucket.log if method == "PUT"}
    assert sent
    assert sent.isdisjoint(gone)
    assert joined(bucket) == long_tokens(val_fraction=0)[0]
    assert tokmill.verify(URL).ok


@pytest.mark.slow
def test_what_was_sent_and_is_gone_ends_the_next_attempt_at_once(bucket: Bucket, long: Path, tmp_path: Path) -> None:
    gone = interrupted(bucket, long, tmp_path)
    bucket.delete(f"sets/one/{gone[0]}")
    with pytest.raises(DamageError, match="an object that an earlier attempt had sent is gone") as caught:
        make(long, tmp_path, **SHARDED)
    assert caught.value.where == f"{URL}/{gone[0]}"
    make(long, tmp_path, fresh=True, **SHARDED)
    assert joined(bucket) == long_tokens(val_fraction=0)[0]


def test_verify_names_each_object_that_is_not_what_was_sent(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    make(corpus, tmp_path, shard_tokens=20_000)
    names = [key.rpartition("/")[2] for key in bucket.names("sets/one/train")]
    flipped, cut, missing = names[:3]
    data = bytearray(bucket.get(f"sets/one/{flipped}"))
    data[1000] ^= 1
    bucket.put(f"sets/one/{flipped}", bytes(data))
    bucket.put(f"sets/one/{cut}", bucket.get(f"sets/one/{cut}")[:-100])
    bucket.delete(f"sets/one/{missing}")
    bucket.put("sets/one/train_stray.bin", b"ids")
    done = called("verify", URL)
    assert done.returncode == 10
    for line in (
        f"{flipped}, bytes 0 to",
        f"{cut}, bytes 39,900 to 40,000: the file is cut",
        f"{missing}: the object is missing",
        "train_stray.bin: the manifest does not list this file",
    ):
        assert line in done.stderr
    assert "4 problems" in done.stderr
    with pytest.raises(DamageError, match="an object of the complete output has 39,900 bytes"):
        make(corpus, tmp_path, shard_tokens=20_000)


def test_a_staged_file_that_the_disk_has_damaged_is_not_sent(bucket: Bucket, made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in made.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / "train.bin").read_bytes())
    data[5000] ^= 4
    (copy / "train.bin").write_bytes(data)
    with pytest.raises(DamageError, match="a staged file is not what was written to it: bytes 0 to"):
        publish(copy, tmp_path)
    assert not any(key.endswith("train.bin") for key in bucket.names() + bucket.begun())


def test_inspect_shows_what_it_shows_of_the_directory(bucket: Bucket, made: Path, tmp_path: Path) -> None:
    publish(made, tmp_path)
    for side, number in (("train", 1), ("train", 200), ("val", 3)):
        local = tokmill.inspect(made, side=side, documents=[number], n_tokens=20)
        far = tokmill.inspect(URL, side=side, documents=[number], n_tokens=20)
        assert msgspec.structs.replace(far, path="") == msgspec.structs.replace(local, path="")


def test_a_directory_is_what_open_wants(bucket: Bucket) -> None:
    with pytest.raises(UsageError, match=r"aws s3 sync s3://bucket/sets/one DIR"):
        tokmill.open(URL)


def test_repair_refuses_a_url_and_makes_no_directory_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="works on local directories, not URLs"):
        tokmill.repair(URL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["gs://bucket/a", "https://example.org/a", "hf://datasets/a/b"])
def test_a_store_that_takes_no_output_is_refused_with_those_that_do(url: str, corpus: Path) -> None:
    with pytest.raises(UsageError, match=r"outputs are not written to .*\n.*\nallowed: a directory, or s3://"):
        tokmill.tokenize(corpus, url)


def test_nothing_is_appended_to_a_prefix(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing can be appended"):
        tokmill.tokenize(corpus, URL, append=True, stage=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_input_below_the_output_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("sets/one/raw/a.txt", b"text")
    with pytest.raises(UsageError, match="below the prefix of the output"):
        tokmill.tokenize("s3://bucket/sets/one/raw/a.txt", URL, stage=tmp_path)


def test_a_missing_extra_is_named(corpus: Path) -> None:
    program = "import sys; sys.modules['botocore'] = None; from tokmill.cli.app import run; sys.exit(run(sys.argv[1:]))"
    for typed in (["tokenize", str(corpus), "--out", URL], ["verify", URL], ["inspect", URL]):
        done = subprocess.run(
            [sys.executable, "-c", program, *typed], capture_output=True, text=True, check=False, env=clean_environment()
        )
        assert done.returncode == 2
        assert "next:    pip install 'botocore" in done.stderr


def test_who_may_not_write_is_told_so_without_a_key(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    watch(bucket, failing("403 Forbidden", "AccessDenied", times=10_000))
    code, out, err = run(corpus, tmp_path)
    assert code == 1
    assert "access denied: HTTP 403" in err
    assert "AWS_ACCESS_KEY_ID" in err
    assert "HIDDENSECRET" not in out + err
    assert "TESTINGKEYID" not in out + err


def test_a_run_that_came_to_nothing_leaves_nothing(bucket: Bucket, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": 7}\n')
    with pytest.raises(BadRecordError):
        make(bad, tmp_path / "stage")
    assert bucket.names() == []
    assert not (tmp_path / "stage").exists()


def test_local_outputs_load_nothing_of_a_store(corpus: Path, tmp_path: Path) -> None:
    program = """
import sys, tokmill
tokmill.tokenize(sys.argv[1], sys.argv[2])
tokmill.verify(sys.argv[2])
tokmill.inspect(sys.argv[2])
print([n for n in ("fsspec", "botocore", "aiohttp", "tokmill.output.prefix", "tokmill.store.transfer") if n in sys.modules])
"""
    typed = [sys.executable, "-c", program, str(corpus), str(tmp_path / "out")]
    done = subprocess.run(typed, capture_output=True, text=True, check=True, env=clean_environment(), timeout=60)
    assert done.stdout.split("\n")[0] == "[]"


def test_a_plan_counts_the_disk_of_the_stage(bucket: Bucket, corpus: Path, made: Path, tmp_path: Path) -> None:
    with workers_in_process():
        planned, there = (
            tokmill.plan(corpus, out, val_fraction=0.1, stage=stage) for out, stage in ((URL, tmp_path), (made, None))
        )
    assert planned.disk is not None
    assert planned.disk.path == str(tmp_path)
    assert not planned.is_complete
    assert planned.memory.parent_bytes > there.memory.parent_bytes
    publish(made, tmp_path)
    with workers_in_process():
        assert tokmill.plan(corpus, URL, val_fraction=0.1, stage=tmp_path).is_complete


def test_parts_are_as_large_as_their_number_demands() -> None:
    for size in (0, 1, 8 << 20, 80_000 << 20, (80_000 << 20) + 1, transfer.MOST_BYTES):
        part = transfer.part_bytes_of(size, transfer.PART_BYTES)
        assert part >= transfer.PART_BYTES
        assert -(-size // part) <= 10_000


def test_what_another_run_completed_and_gave_up_is_not_sent_any_further(bucket: Bucket, made: Path, tmp_path: Path) -> None:
    """The store calls parts of an object that was given up an error of its own, as this one does, for ever."""
    done: list[float] = []

    def meanwhile(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if "partNumber=3" in request["QUERY_STRING"] and not done:
            bucket.fault = None
            done.append(time.monotonic())
            publish(made, tmp_path / "other")
        return None

    prefix, ledger = Prefix(URL), UploadState(beside(tmp_path / "a.json"), URL)
    watch(bucket, meanwhile)
    sent = send(prefix, ledger, made)
    assert done
    assert time.monotonic() - done[0] < 10
    manifest = load_manifest(made)
    prefix.commit(manifest, sent)
    fetched(bucket)


def test_shards_of_a_run_that_was_replaced_do_not_stay(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    """A trainer that opens `train_*.bin` would read them."""
    dead = S3Objects(URL)
    for name in ("train_000001.bin", "val_000000.bin", "val.bin"):
        dead.put(name, b"ids", mark="dead digest")
    dead.create_multipart("train_000002.bin", "dead digest")
    bucket.put("sets/one/train/train.bin", b"a prefix of its own")
    bucket.put("sets/one/train/manifest.json", b"{}")
    with pytest.raises(LockedError, match="another run, of other inputs or settings"):
        make(corpus, tmp_path)
    make(corpus, tmp_path, fresh=True)
    left = {name.removeprefix("sets/one/") for name in bucket.names()}
    assert left == {"manifest.json", "train.bin", "val.bin", "train/train.bin", "train/manifest.json"}
    fetched(bucket)


def test_an_object_that_came_meanwhile_and_would_be_read_with_the_others_is_named(
    bucket: Bucket, corpus: Path, tmp_path: Path
) -> None:
    def meanwhile(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith("/val.bin"):
            bucket.fault = None
            bucket.put("sets/one/train_000001.bin", b"somebody's")
        return None

    watch(bucket, meanwhile)
    with pytest.raises(UsageError, match="no tokmill manifest lists") as caught:
        make(corpus, tmp_path)
    assert caught.value.where == f"{URL}/train_000001.bin"
    assert "sets/one/manifest.json" not in bucket.names()
    bucket.delete("sets/one/train_000001.bin")
    make(corpus, tmp_path)
    fetched(bucket)


def test_a_run_that_was_replaced_leaves_no_object_behind_and_ends(bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    """The other one, told --fresh, is complete while this one goes on sending shards."""
    parts = Parts()
    parts.gate.clear()
    watch(bucket, parts)
    one = started(corpus, tmp_path / "a", "--shard-tokens", 30_000)
    wait_until(lambda: parts.n_held or one.poll() is not None)
    watch(bucket, None)
    make(corpus, tmp_path / "b", fresh=True)
    parts.gate.set()
    code, _, err = ended(one)
    assert code == 11, err
    assert "another run" in err
    assert [name for name in bucket.names() if "/train_" in name or "/val_" in name] == []
    fetched(bucket)


def test_a_run_that_was_replaced_before_it_sent_anything_says_so(bucket: Bucket, corpus: Path, made: Path, tmp_path: Path) -> None:
    def meanwhile(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if "list-type" not in request["QUERY_STRING"]:
            return None
        bucket.fault = None
        empty = list(bucket.real(request, start))
        publish(made, tmp_path)
        return empty

    watch(bucket, meanwhile)
    with pytest.raises(LockedError, match="another run"):
        make(corpus, tmp_path / "one", shard_tokens=30_000)
    assert sorted(bucket.names()) == ["sets/one/manifest.json", "sets/one/train.bin", "sets/one/val.bin"]
    fetched(bucket)


def test_a_manifest_that_was_put_in_the_moment_another_run_took_its_place_is_taken_back(
    bucket: Bucket, made: Path, tmp_path: Path
) -> None:
    prefix, ledger = Prefix(URL), UploadState(beside(tmp_path / "a.json"), URL)
    manifest = load_manifest(made)
    sent = send(prefix, ledger, made)

    def meanwhile(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith("/manifest.json"):
            bucket.fault = None
            bucket.delete("sets/one/val.bin")
        return None

    watch(bucket, meanwhile)
    with pytest.raises(LockedError, match="at the same time"):
        prefix.commit(manifest, sent)
    assert "sets/one/manifest.json" not in bucket.names()


def test_a_manifest_that_another_run_put_in_place_of_ours_stays(bucket: Bucket, made: Path, tmp_path: Path) -> None:
    prefix, ledger = Prefix(URL), UploadState(beside(tmp_path / "a.json"), URL)
    manifest = load_manifest(made)
    sent = send(prefix, ledger, made)
    theirs = encode_manifest(msgspec.structs.replace(manifest, elapsed_s=manifest.elapsed_s + 1))
    is_put = False

    def meanwhile(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        nonlocal is_put
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith("/manifest.json"):
            is_put = True
        elif is_put:
            # The other run, told --fresh, has replaced everything by the time ours looks again.
            bucket.fault = None
            bucket.put("sets/one/val.bin", b"theirs")
            bucket.put("sets/one/manifest.json", theirs)
        return None

    watch(bucket, meanwhile)
    with pytest.raises(LockedError, match="at the same time"):
        prefix.commit(manifest, sent)
    assert bucket.get("sets/one/manifest.json") == theirs


def test_what_a_run_of_other_settings_sent_before_it_could_see_the_manifest_does_not_stay(
    bucket: Bucket, made: Path, tmp_path: Path
) -> None:
    prefix, ledger = Prefix(URL), UploadState(beside(tmp_path / "a.json"), URL)
    sent = send(prefix, ledger, made)

    def meanwhile(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith("/manifest.json"):
            bucket.fault = None
            Prefix(URL).store.put("train_000001.bin", b"ids", mark="another digest")
            bucket.put("sets/one/val_000001.bin", b"somebody's")
        return None

    watch(bucket, meanwhile)
    prefix.commit(load_manifest(made), sent)
    assert [name for name in bucket.names() if "_00" in name] == ["sets/one/val_000001.bin"], "only what tokmill made goes"


def test_parts_that_met_another_writer_are_begun_again(bucket: Bucket, made: Path, tmp_path: Path) -> None:
    """The store makes no object of them any more."""
    conflict = failing("409 Conflict", "ConditionalRequestConflict", times=10_000)
    refused: list[str] = []

    def of_the_first(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        query = request["QUERY_STRING"]
        if request["REQUEST_METHOD"] != "POST" or "uploadId" not in query:
            return None
        refused.append(query)
        return conflict(request, start) if query == refused[0] else None

    watch(bucket, of_the_first)
    publish(made, tmp_path)
    assert refused.count(refused[0]) == 1
    fetched(bucket)


def test_the_next_run_of_one_that_was_killed_behind_the_manifest_tidies_up(
    bucket: Bucket, corpus: Path, made: Path, tmp_path: Path
) -> None:
    publish(made, tmp_path)
    prefix = Prefix(URL)
    prefix.store.create_multipart("train.bin", "mark")
    assert make(corpus, tmp_path).already_complete
    fetched(bucket)


def test_verify_tells_a_bucket_that_is_not_there_from_an_output_that_is_not(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such bucket"):
        tokmill.verify("s3://no-such-bucket/sets/one")
    with pytest.raises(UsageError, match=r"no complete tokmill output here\n"):
        tokmill.verify(URL)
    Prefix(URL).store.put("train_000001.bin", b"ids", mark="a digest")
    with pytest.raises(UsageError, match="no complete tokmill output here, but a run that is under way or was interrupted"):
        tokmill.verify(URL)


@pytest.mark.parametrize("key", ["a b/ü%20+&=#1*[a]//x//", "/y"])
def test_a_prefix_may_have_any_name(key: str, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(f"{key.rstrip('/')}2/train.bin", b"another prefix")
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    url = f"s3://bucket/{key}"
    with workers_in_process():
        tokmill.tokenize(tmp_path / "a.txt", url, stage=tmp_path, val_fraction=0)
    assert tokmill.verify(url).ok
    assert f"{key.rstrip('/')}/train.bin" in bucket.names()
    assert tokmill.tokenize(tmp_path / "a.txt", url, stage=tmp_path, val_fraction=0).already_complete


@pytest.mark.parametrize("key", ["x?token=abc", "x?y=0123456789abcdefghijkl"])
def test_a_prefix_that_cannot_be_shown_as_it_is_is_refused(key: str, bucket: Bucket, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the prefix has a question mark"):
        tokmill.tokenize(corpus, f"s3://bucket/{key}", stage=tmp_path)


def test_what_a_dead_run_began_does_not_stop_the_same_settings_elsewhere(
    bucket: Bucket, corpus: Path, made: Path, tmp_path: Path
) -> None:
    dead = Prefix(URL)
    dead.store.put("val.bin", (made / "val.bin").read_bytes(), mark=f"{load_manifest(made).fingerprint} another digest")
    dead.store.create_multipart("train.bin", "mark")
    make(corpus, tmp_path)
    fetched(bucket)


def test_more_objects_than_a_listing_holds_are_all_seen(
    bucket: Bucket, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    make(corpus, tmp_path, shard_tokens=10_000)
    assert len(Prefix(URL).list()) == 11
    assert tokmill.verify(URL).ok
    assert make(corpus, tmp_path, shard_tokens=10_000).already_complete


def test_verify_says_that_a_store_does_not_answer(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokmill.output.prefix.WRITING", download.RetryPolicy(attempts=2, first_s=0.01))
    watch(bucket, failing("503 Slow Down", "SlowDown", times=10_000))
    with pytest.raises(tokmill.TokmillError, match="the store cannot be asked: HTTP 503"):
        tokmill.verify(URL)
