"""An output in an object store made in parts that share nothing else: put together there, it is the output of one run."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from support.commands import clean_environment, wait_until
from support.corpora import WITH_SKIPS, write_every_kind
from support.failures import Died
from support.in_process import workers_in_process
from support.outputs import written
from support.runs import SMALL, run_in_process
from support.s3 import NAME, Bucket, Fault, Start, failing, watch

import tokmill
from tokmill.core.errors import ChangedError, DamageError, LockedError, UsageError
from tokmill.core.manifest import PLAN_NAME, decode_manifest, load_manifest
from tokmill.output.prefix import Prefix
from tokmill.output.remote_parts import RemoteParts
from tokmill.store import download, transfer
from tokmill.store.s3 import S3Objects
from tokmill.store.transfer import Copier, CopyTask

URL = "s3://bucket/sets/one"
KEY = "sets/one/"
PARTS = f"{KEY}.tokmill/parts/"
Objects = dict[str, tuple[bytes, dict[str, str]]]


@pytest.fixture
def bucket(server: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """As S3 is: copies are made on condition."""
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    server.renew()
    watch(server, conditions(server))
    return server


def head(bucket: Bucket, key: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = bucket._boto().head_object(Bucket=NAME, Key=key)
    except bucket._boto().exceptions.ClientError:
        return None
    return found


def conditions(bucket: Bucket, then: Fault | None = None) -> Fault:
    """What moto does not do: a copy is refused where there is an object, or when its source is another one now."""
    refused = failing("412 Precondition Failed", "PreconditionFailed", times=1_000_000)
    asking = threading.local()

    def fault(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if "HTTP_X_AMZ_COPY_SOURCE" in request and not getattr(asking, "is_nested", False):
            asking.is_nested = True
            key = request["PATH_INFO"].removeprefix(f"/{NAME}/")
            source = head(bucket, unquote(request["HTTP_X_AMZ_COPY_SOURCE"]).lstrip("/").removeprefix(f"{NAME}/"))
            wanted = request.get("HTTP_X_AMZ_COPY_SOURCE_IF_MATCH")
            is_taken = request.get("HTTP_IF_NONE_MATCH") == "*" and head(bucket, key) is not None
            asking.is_nested = False
            assert wanted, "every copy names the version that was seen"
            if is_taken or (source is not None and source["ETag"] != wanted):
                return refused(request, start)
        return then(request, start) if then is not None else None

    return fault


class Corpus:
    """Files of every kind, and what one run makes of them."""

    def __init__(self, folder: Path) -> None:
        self.inputs = [str(path) for path in write_every_kind(folder / "corpus")]
        self.one = folder / "one"
        run_in_process(self.inputs, self.one, SMALL, **WITH_SKIPS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def make_part(corpus: Corpus, stage: Path, part: str, **options: Any) -> tokmill.Summary:
    with workers_in_process():
        return tokmill.tokenize(corpus.inputs, URL, part=part, stage=stage, **{**WITH_SKIPS, **options})


@pytest.fixture(scope="module")
def three(server: Bucket, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """The objects of three parts of several files each, before they are put together."""
    server.renew()
    stage = tmp_path_factory.mktemp("stage")
    for index in (2, 0, 1):
        make_part(corpus, stage / str(index), f"{index}/3", shard_tokens=2500)
        assert not (stage / str(index)).exists(), "what was staged is gone"
    found = {name: (server.get(name), (head(server, name) or {})["Metadata"]) for name in server.names()}
    server.empty()
    return found


@pytest.fixture(scope="module")
def whole(three: Objects, server: Bucket, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What becomes of them."""
    server.renew()
    put_back(server, three)
    tokmill.finalize(URL, stage=tmp_path_factory.mktemp("stage"))
    found = contents(server)
    server.empty()
    return found


def put_back(bucket: Bucket, objects: Objects) -> None:
    before, bucket.fault = bucket.fault, None
    for name, (data, metadata) in objects.items():
        bucket._boto().put_object(Bucket=NAME, Key=name, Body=data, Metadata=metadata)
    bucket.fault = before
    bucket.log.clear()


def contents(bucket: Bucket) -> dict[str, bytes]:
    return {name: bucket.get(name) for name in bucket.names()}


def sides(bucket: Bucket) -> tuple[bytes, ...]:
    return tuple(b"".join(bucket.get(name) for name in bucket.names(f"{KEY}{side}")) for side in ("train", "val"))


def is_whole(bucket: Bucket, whole: dict[str, bytes]) -> bool:
    """What was put together is there, byte for byte, and nothing else; also nothing that was begun."""
    watch(bucket, None)
    name = f"{KEY}manifest.json"
    found = contents(bucket)
    said, wanted = (decode_manifest(each.pop(name), URL) for each in (found, dict(whole)))
    return found == {n: data for n, data in whole.items() if n != name} and said.files == wanted.files and bucket.begun() == []


def test_what_is_put_together_is_byte_for_byte_the_output_of_one_run(
    corpus: Corpus, three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path
) -> None:
    put_back(bucket, three)
    names = [name for name in three if name.endswith(".bin")]
    assert len(names) > 8
    outcome = tokmill.finalize(URL, stage=tmp_path)
    assert (outcome.out, outcome.already_complete) == (URL, False)
    assert list(tmp_path.iterdir()) == []
    fetched = {path for method, path, _ in bucket.log if method == "GET" and path.endswith(".bin")}
    assert fetched == set(), "no ids come through this machine"
    assert is_whole(bucket, whole)
    assert sides(bucket) == written(corpus.one)
    assert bucket.get(f"{KEY}skipped.jsonl") == (corpus.one / "skipped.jsonl").read_bytes()
    assert tokmill.verify(URL).ok
    assert tokmill.inspect(URL, side="train", documents=[2], n_tokens=9).path == URL
    for name, data in whole.items():
        (tmp_path / name.removeprefix(KEY)).write_bytes(data)
    assert tokmill.verify(tmp_path, sources=corpus.inputs).ok, "a copy of it is an output as others are"


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_its_files_are_those_of_parts_that_were_made_in_a_directory(
    corpus: Corpus, bucket: Bucket, tmp_path: Path, count: int
) -> None:
    for index in range(count):
        make_part(corpus, tmp_path / "stage", f"{index}/{count}")
        with workers_in_process():
            tokmill.tokenize(corpus.inputs, tmp_path / "out", part=f"{index}/{count}", **WITH_SKIPS)
    tokmill.finalize(URL, stage=tmp_path / "stage")
    tokmill.finalize(tmp_path / "out")
    manifest = decode_manifest(bucket.get(f"{KEY}manifest.json"), URL)
    there = load_manifest(tmp_path / "out")
    assert (manifest.fingerprint, manifest.files) == (there.fingerprint, there.files)
    assert {name: bucket.get(KEY + name) for name in manifest.files} == {
        name: (tmp_path / "out" / name).read_bytes() for name in there.files
    }
    assert sides(bucket) == written(corpus.one)
    assert sorted(bucket.names()) == sorted(KEY + name for name in ["manifest.json", *manifest.files])
    assert tokmill.verify(URL).ok


@pytest.mark.slow
def test_commands_make_parts_and_put_them_together(bucket: Bucket, corpus: Corpus, tmp_path: Path) -> None:
    def command(*arguments: object) -> dict[str, Any]:
        typed = [sys.executable, "-m", "tokmill", *map(str, arguments), "--stage", str(tmp_path), "--json"]
        done = subprocess.run(typed, capture_output=True, text=True, env=clean_environment(), check=False, timeout=100)
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    options = ["--val-fraction", 0.3, "--on-error", "skip"]
    for index in (1, 0):
        made = command("tokenize", *corpus.inputs, "--out", URL, "--part", f"{index}/2", *options)
        assert made["out"] == URL
        assert made["uploaded_bytes"] > 0
        assert f"tokmill finalize {URL}" in made["notices"][0]
    assert command("finalize", URL)["files"].keys() >= {"train_00000.bin", "train_00001.bin", "skipped.jsonl"}
    assert sides(bucket) == written(corpus.one)
    assert command("finalize", URL)["already_complete"]


@pytest.mark.slow
def test_objects_too_large_for_one_request_are_copied_in_pieces(
    three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PIECE_BYTES", 1000)
    put_back(bucket, three)
    pieces: list[str] = []

    def note(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        pieces.extend([request["HTTP_X_AMZ_COPY_SOURCE_RANGE"]] if "HTTP_X_AMZ_COPY_SOURCE_RANGE" in request else [])
        return None

    watch(bucket, conditions(bucket, note))
    tokmill.finalize(URL, stage=tmp_path)
    assert {"bytes=0-999", "bytes=1000-1999"} <= set(pieces)
    assert is_whole(bucket, whole)


def test_pieces_are_as_large_as_their_number_demands() -> None:
    for size in (0, 1, 512 << 20, 5 << 40, transfer.MOST_BYTES):
        piece = transfer.part_bytes_of(size, transfer.PIECE_BYTES)
        assert transfer.PIECE_BYTES <= piece <= 5_000_000_000
        assert -(-size // piece) <= 10_000


class Dying:
    """Lets the n-th request that changes the store die, before it is made or behind it; counts them."""

    def __init__(self, n: int, *, before: bool) -> None:
        self.n, self.before, self.count = n, before, 0
        self.lock = threading.Lock()

    def ask(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def asked(store: S3Objects, method: str, **arguments: Any) -> Any:
            if method.startswith(("head", "get", "list")):
                return real(store, method, **arguments)
            with self.lock:
                self.count += 1
                number = self.count
            if self.before and number >= self.n:
                raise Died
            answer = real(store, method, **arguments)
            if number >= self.n:
                raise Died
            return answer

        return asked


def finalize_dying(n: int, stage: Path, *, before: bool) -> bool:
    """Whether it died."""
    dying = Dying(n, before=before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Objects, "_ask", dying.ask(S3Objects._ask))
        with contextlib.suppress(Died):
            tokmill.finalize(URL, stage=stage)
    return dying.count >= n


@pytest.mark.parametrize("piece_bytes", [pytest.param(transfer.PIECE_BYTES, marks=pytest.mark.slow), 5000])
@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_died_around_any_request_that_changes_the_store_it_is_put_together_the_next_time(
    three: Objects,
    bucket: Bucket,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stride: int,
    piece_bytes: int,
) -> None:
    monkeypatch.setattr(transfer, "PIECE_BYTES", piece_bytes)
    for n in itertools.count(1, stride):
        watch(bucket, None)
        bucket.empty()
        put_back(bucket, three)
        watch(bucket, conditions(bucket))
        if not finalize_dying(n, tmp_path, before=bool(n % 2)):
            break
        if f"{KEY}manifest.json" in bucket.names():
            assert {name: bucket.get(name) for name in whole} == whole, "complete when the manifest is there"
        if n % 3 == 0:
            finalize_dying(n // 2 + 1, tmp_path, before=False)
        tokmill.finalize(URL, stage=tmp_path)
        assert is_whole(bucket, whole)
    assert n > 28


def program(body: str) -> subprocess.Popen[str]:
    """A process of its own that can be killed."""
    imports = "import sys\nfrom tokmill import cli\nfrom tokmill.store import transfer"
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{imports}\n{body}\nsys.argv[0] = 'tokmill'\ncli.main()",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )


def finalizing(stage: Path) -> subprocess.Popen[str]:
    return program(f"sys.argv[1:] = {['finalize', URL, '--stage', str(stage), '--json']}")


def making(part: str, corpus: Corpus, stage: Path) -> subprocess.Popen[str]:
    shards = ["--part", part, "--shard-tokens", "2500", "--stage", str(stage)]
    options = [*shards, "--val-fraction", "0.3", "--on-error", "skip"]
    return program(f"sys.argv[1:] = {['tokenize', *corpus.inputs, '--out', URL, *options]}")


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


class Changes:
    """A fault that only watches: which requests that change the store were made; and makes each take longer."""

    def __init__(self, pause_s: float = 0.0, only: str = "") -> None:
        self.made: list[str] = []
        self.pause_s = pause_s
        self.only = only
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if request["REQUEST_METHOD"] in {"PUT", "POST", "DELETE"} and self.only in request["PATH_INFO"]:
            time.sleep(self.pause_s)
            self.made.append(request["PATH_INFO"].removeprefix(f"/{NAME}/"))
            self.gate.wait(60)
        return None


@pytest.mark.parametrize(
    "n_changes",
    [
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(9, marks=pytest.mark.slow),
        pytest.param(30, marks=pytest.mark.slow),
        pytest.param(15, marks=pytest.mark.slow),
    ],
)
def test_killed_it_goes_on_when_it_is_run_again(
    three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path, n_changes: int
) -> None:
    put_back(bucket, three)
    changes = Changes(pause_s=0.05)
    watch(bucket, conditions(bucket, changes))
    one = finalizing(tmp_path)
    wait_until(lambda: len(changes.made) >= n_changes or one.poll() is not None)
    one.kill()
    assert ended(one)[0] == -9
    watch(bucket, conditions(bucket))
    bucket.settle()
    code, _, err = ended(finalizing(tmp_path))
    assert code == 0, err
    assert is_whole(bucket, whole)


@pytest.mark.slow
def test_it_survives_a_store_that_is_stopped_and_started_again(
    three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path
) -> None:
    put_back(bucket, three)
    changes = Changes(pause_s=0.1)
    watch(bucket, conditions(bucket, changes))
    one = finalizing(tmp_path)
    wait_until(lambda: len(changes.made) >= 3 or one.poll() is not None)
    bucket.stop()
    time.sleep(1)
    bucket.start()
    code, _, err = ended(one)
    assert code == 0, err
    assert is_whole(bucket, whole)


def test_two_at_once_make_one_output(three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path) -> None:
    put_back(bucket, three)
    watch(bucket, conditions(bucket, Changes(pause_s=0.05)))
    both = [finalizing(tmp_path / name) for name in "ab"]
    results = [ended(one) for one in both]
    assert [code for code, _, _ in results] == [0, 0], results
    assert is_whole(bucket, whole)


@pytest.mark.parametrize("method", ["GET", pytest.param("PUT", marks=pytest.mark.slow)])
def test_who_comes_last_finds_the_parts_gone_and_the_whole_there(
    three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path, method: str
) -> None:
    """The other one ends between the look at the parts and the reading of their manifests, or the copies."""
    put_back(bucket, three)
    first = [True]

    def meanwhile(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        is_of_part = "HTTP_X_AMZ_COPY_SOURCE" in request or request["PATH_INFO"].endswith("/00001/manifest.json")
        if request["REQUEST_METHOD"] == method and is_of_part and first:
            first.clear()
            code, _, err = ended(finalizing(tmp_path / "b"))
            assert code == 0, err
        return None

    watch(bucket, conditions(bucket, meanwhile))
    tokmill.finalize(URL, stage=tmp_path / "a")
    assert not first
    assert is_whole(bucket, whole)


@pytest.mark.slow
def test_on_one_machine_the_second_is_refused(three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path) -> None:
    put_back(bucket, three)
    changes = Changes(only="train_")
    changes.gate.clear()
    watch(bucket, conditions(bucket, changes))
    one = finalizing(tmp_path)
    wait_until(lambda: changes.made or one.poll() is not None)
    with pytest.raises(LockedError, match="another run is writing"):
        tokmill.finalize(URL, stage=tmp_path)
    changes.gate.set()
    assert ended(one)[0] == 0
    assert is_whole(bucket, whole)


def test_parts_that_are_missing_are_named_with_the_command_that_makes_them(
    three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path
) -> None:
    put_back(bucket, three)
    bucket.delete(f"{PARTS}00001/manifest.json")
    for name in bucket.names(f"{PARTS}00002/"):
        bucket.delete(name)
    with pytest.raises(UsageError, match=r"2 parts of 3 are missing: 1 \(begun\), 2") as caught:
        tokmill.finalize(URL, stage=tmp_path)
    assert f"tokmill tokenize INPUT... --part 2/3 --out {URL}" in str(caught.value)
    assert not any(name.startswith((f"{KEY}train", f"{KEY}val")) for name in bucket.names())
    assert list(tmp_path.iterdir()) == []
    put_back(bucket, three)
    tokmill.finalize(URL, stage=tmp_path)
    assert is_whole(bucket, whole)


@pytest.mark.parametrize("is_elsewhere", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_part_that_was_killed_is_not_complete_and_goes_on_or_starts_again_elsewhere(
    corpus: Corpus, three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path, is_elsewhere: bool
) -> None:
    put_back(bucket, three)
    for name in bucket.names(f"{PARTS}00001/"):
        bucket.delete(name)
    changes = Changes(pause_s=0.1)
    watch(bucket, conditions(bucket, changes))
    one = making("1/3", corpus, tmp_path / "a")
    wait_until(lambda: sum(name.endswith(".bin") for name in changes.made) >= 3 or one.poll() is not None)
    one.kill()
    assert ended(one)[0] == -9
    watch(bucket, conditions(bucket))
    bucket.settle()
    with pytest.raises(UsageError, match=r"1 part of 3 is missing: 1 \(begun\)"):
        tokmill.finalize(URL, stage=tmp_path / "f")
    sent = [name for name in bucket.names(f"{PARTS}00001/") if name.endswith(".bin")]
    assert sent
    bucket.log.clear()
    make_part(corpus, tmp_path / ("b" if is_elsewhere else "a"), "1/3", shard_tokens=2500)
    assert {path for method, path, _ in bucket.log if method == "PUT"}.isdisjoint(f"/{NAME}/{name}" for name in sent)
    tokmill.finalize(URL, stage=tmp_path / "f")
    assert is_whole(bucket, whole)


def test_a_part_that_comes_late_takes_itself_away(
    corpus: Corpus, three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path
) -> None:
    put_back(bucket, three)
    for name in bucket.names(f"{PARTS}00001/"):
        bucket.delete(name)
    changes = Changes(only="00001/train")
    changes.gate.clear()
    watch(bucket, conditions(bucket, changes))
    late = making("1/3", corpus, tmp_path / "late")
    wait_until(lambda: changes.made or late.poll() is not None)
    watch(bucket, conditions(bucket))
    put_back(bucket, three)
    tokmill.finalize(URL, stage=tmp_path)
    assert contents(bucket) == whole
    changes.gate.set()
    code, _, err = ended(late)
    assert code == 0, err
    assert not (tmp_path / "late").exists()
    assert is_whole(bucket, whole)
    assert make_part(corpus, tmp_path, "2/3", shard_tokens=2500).already_complete
    assert is_whole(bucket, whole)


@pytest.mark.slow
def test_another_plan_is_refused_by_name(corpus: Corpus, three: Objects, bucket: Bucket, tmp_path: Path) -> None:
    put_back(bucket, three)
    for part, options, says in (
        ("0/4", {}, "N of --part I/N was 3, is 4"),
        ("0/3", {"val_fraction": 0.1}, "--val-fraction was 0.3, is 0.1"),
        ("0/3", {"seed": 3, "fresh": True}, "--seed was 0, is 3"),
    ):
        with pytest.raises(ChangedError, match=says):
            make_part(corpus, tmp_path, part, shard_tokens=2500, **options)
    with pytest.raises(ChangedError, match="is gone"):
        tokmill.tokenize(corpus.inputs[1:], URL, part="0/3", stage=tmp_path, shard_tokens=2500, **WITH_SKIPS)
    watch(bucket, None)
    assert contents(bucket) == {name: data for name, (data, _) in three.items()}
    tokmill.finalize(URL, stage=tmp_path)
    with pytest.raises(ChangedError, match="N of --part I/N was 3, is 4"):
        make_part(corpus, tmp_path, "0/4", shard_tokens=2500)
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_to_which_a_single_run_has_sent_is_refused(corpus: Corpus, bucket: Bucket, tmp_path: Path) -> None:
    Prefix(URL).store.put("train_00000.bin", b"ids", mark="another digest")
    with pytest.raises(LockedError, match="another run, of other inputs or settings"):
        make_part(corpus, tmp_path, "0/2")
    assert bucket.names() == [f"{KEY}train_00000.bin"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fresh", [False, True])
def test_a_single_run_is_refused_where_parts_are_made(
    fresh: bool, corpus: Corpus, three: Objects, bucket: Bucket, tmp_path: Path
) -> None:
    put_back(bucket, three)
    with pytest.raises(UsageError, match="an output is being made in parts at this prefix"):
        tokmill.tokenize(corpus.inputs, URL, stage=tmp_path, fresh=fresh, **WITH_SKIPS)
    assert KEY + PLAN_NAME in bucket.names()


def test_overtaken_by_a_single_run_the_parts_are_not_joined(
    three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path
) -> None:
    put_back(bucket, three)
    name = next(name for name in whole if name.endswith(".bin"))
    Prefix(URL).store.put(name.removeprefix(KEY), b"ids", mark="another digest")
    with pytest.raises(LockedError, match="another run, of other inputs or settings"):
        tokmill.finalize(URL, stage=tmp_path)
    assert f"{KEY}manifest.json" not in bucket.names()


def test_a_complete_output_of_one_run_and_strange_objects_are_refused(corpus: Corpus, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(f"{KEY}train_00000.bin", b"somebody's")
    with pytest.raises(UsageError, match="no tokmill manifest lists"):
        make_part(corpus, tmp_path, "0/2")
    bucket.delete(f"{KEY}train_00000.bin")
    bucket.put(f"{KEY}manifest.json", (corpus.one / "manifest.json").read_bytes())
    with pytest.raises(ChangedError, match="N of --part I/N was not given, is 2"):
        make_part(corpus, tmp_path, "0/2")
    with pytest.raises(UsageError, match="made in one run"):
        tokmill.finalize(URL)
    bucket.empty()
    with pytest.raises(UsageError, match="nothing was made in parts here"):
        tokmill.finalize(URL)


def test_an_object_that_is_in_the_way_stays(three: Objects, bucket: Bucket, tmp_path: Path) -> None:
    put_back(bucket, three)
    bucket.put(f"{KEY}val_00002_00000.bin", b"somebody's")
    name = next(name for name in sorted(three) if "/train_" in name).rpartition("/")[2]
    bucket.put(KEY + name, b"somebody's")
    with pytest.raises(UsageError, match="no tokmill manifest lists"):
        tokmill.finalize(URL, stage=tmp_path)
    assert bucket.get(KEY + name) == b"somebody's"
    assert f"{KEY}manifest.json" not in bucket.names()


def a_file(three: Objects) -> str:
    return next(name for name in sorted(three) if "00001/train_" in name)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda bucket, name: bucket.delete(name), "a file of a part is missing"),
        (lambda bucket, name: bucket.put(name, bucket.get(name)[:-2]), "a file of a part has 4,998 bytes"),
        (lambda bucket, name: bucket.put(name, bytes(len(bucket.get(name)))), "a file of a part is not the one that was sent"),
    ],
)
def test_a_part_whose_object_is_not_what_was_sent_is_not_put_together(
    three: Objects, bucket: Bucket, tmp_path: Path, damage: Callable[[Bucket, str], Any], says: str
) -> None:
    put_back(bucket, three)
    damage(bucket, a_file(three))
    with pytest.raises(DamageError, match=says) as caught:
        tokmill.finalize(URL, stage=tmp_path)
    assert caught.value.where == f"s3://bucket/{a_file(three)}"
    assert "make part 1 again with --fresh" in str(caught.value)
    assert f"{KEY}manifest.json" not in bucket.names()


@pytest.mark.slow
def test_a_part_made_again_takes_the_place_of_the_damaged_one_and_the_others_stay(
    corpus: Corpus, three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path
) -> None:
    put_back(bucket, three)
    bucket.put(a_file(three), bucket.get(a_file(three))[:-2])
    with pytest.raises(DamageError):
        tokmill.finalize(URL, stage=tmp_path)
    bucket.log.clear()
    make_part(corpus, tmp_path, "1/3", shard_tokens=2500, fresh=True)
    changed = [path for method, path, _ in bucket.log if method in {"PUT", "POST", "DELETE"}]
    assert not [path for path in changed if "/parts/" in path and "/parts/00001/" not in path]
    tokmill.finalize(URL, stage=tmp_path)
    watch(bucket, None)
    assert sides(bucket) == written(corpus.one)
    assert bucket.names() == sorted(whole)


def test_a_list_of_what_was_skipped_that_was_changed_is_not_taken_over(three: Objects, bucket: Bucket, tmp_path: Path) -> None:
    put_back(bucket, three)
    name = next(name for name in three if name.endswith("skipped.jsonl"))
    bucket.put(name, bucket.get(name).replace(b'"record":', b'"recxrd":', 1))
    with pytest.raises(DamageError, match="the list of skipped records") as caught:
        tokmill.finalize(URL, stage=tmp_path)
    assert caught.value.where == f"s3://bucket/{name}"


def test_a_source_that_is_replaced_between_the_look_and_the_copy_is_not_copied(
    three: Objects, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back(bucket, three)
    name = a_file(three)

    def meanwhile(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if "HTTP_X_AMZ_COPY_SOURCE" in request:
            bucket.put(name, bytes(len(three[name][0])))
        return None

    replaced = conditions(bucket)
    watch(bucket, lambda request, start: meanwhile(request, start) or replaced(request, start))
    run = three[name][1]["tokmill"].partition(" ")[0]
    move = CopyTask(source=name.removeprefix(KEY), name="train_x.bin", size_bytes=len(three[name][0]), run=run, part=1)
    with Copier(S3Objects(URL), "whole") as copier, pytest.raises(DamageError, match="not the one that was sent"):
        copier.copy(move).result()
    assert f"{KEY}train_x.bin" not in bucket.names()


@pytest.mark.slow
def test_an_answer_that_was_lost_is_no_failure(three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Every request that changes the store is carried out, and each first answer says that it was not."""
    put_back(bucket, three)
    seen: set[tuple[str, str, str]] = set()

    def lost(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        asked = request["REQUEST_METHOD"], request["PATH_INFO"], request["QUERY_STRING"]
        if asked[0] in {"GET", "HEAD"} or asked in seen:
            return None
        seen.add(asked)
        list(bucket.real(request, lambda *_: None))
        return failing("500 Internal Server Error", "InternalError", times=1)(request, start)

    watch(bucket, conditions(bucket, lost))
    tokmill.finalize(URL, stage=tmp_path)
    assert len(seen) > 25
    assert is_whole(bucket, whole)


def test_a_store_that_knows_no_conditions_for_copies_is_looked_at_before(
    three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path
) -> None:
    put_back(bucket, three)
    refused = failing("501 Not Implemented", "NotImplemented", times=10_000)

    def unknown(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        is_asked = "HTTP_IF_NONE_MATCH" in request and "HTTP_X_AMZ_COPY_SOURCE" in request
        return refused(request, start) if is_asked else None

    watch(bucket, unknown)
    tokmill.finalize(URL, stage=tmp_path)
    assert is_whole(bucket, whole)


@pytest.mark.slow
def test_a_store_that_stays_busy_ends_it_and_it_can_be_run_again(
    three: Objects, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = download.RetryPolicy(attempts=3, first_s=0.01)
    for module in ("output.prefix", "output.remote_parts", "store.transfer"):
        monkeypatch.setattr(f"tokmill.{module}.WRITING", quick)
    put_back(bucket, three)
    busy = failing("503 Slow Down", "SlowDown", times=10_000)
    watch(bucket, lambda request, start: busy(request, start) if "HTTP_X_AMZ_COPY_SOURCE" in request else None)
    with pytest.raises(tokmill.TokmillError, match=r"cannot be written to: HTTP 503 SlowDown, 3 times"):
        tokmill.finalize(URL, stage=tmp_path)
    watch(bucket, conditions(bucket))
    tokmill.finalize(URL, stage=tmp_path)
    assert is_whole(bucket, whole)


def test_an_input_below_the_output_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(f"{KEY}raw/a.txt", b"text")
    with pytest.raises(UsageError, match="below the prefix of the output"):
        tokmill.tokenize(f"{URL}/raw/a.txt", URL, part="0/2", stage=tmp_path)
    assert bucket.names() == [f"{KEY}raw/a.txt"]


def test_begun_again_nothing_is_left_of_parts_and_copies_of_another_plan(three: Objects, bucket: Bucket, tmp_path: Path) -> None:
    put_back(bucket, three)
    assert finalize_dying(9, tmp_path, before=True)
    bucket.put(f"{KEY}notes.md", b"mine")
    bucket.put(f"{KEY}train_mine.bin", b"mine")
    RemoteParts(URL).discard()
    assert bucket.names() == [f"{KEY}notes.md", f"{KEY}train_mine.bin"]
