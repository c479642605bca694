"""Whole runs on remote inputs, as a user calls them: bytes, resuming, refusing, and what is kept secret."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import PATIENCE_S, clean_environment, command, wait_until
from support.corpora import SEP, some_documents
from support.oracle import plain_tokens
from support.outputs import written
from support.runs import run_in_process
from support.s3 import Bucket
from support.web import Handler, Site, serving

import tokmill
from tokmill.core.config import BudgetTerms
from tokmill.core.errors import ChangedError, DamagedInputError, UsageError
from tokmill.core.records import Input
from tokmill.core.system.budget import divide_budget
from tokmill.store import download

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SMALL = {"batch_bytes": 4000, "segment_bytes": 20_000, "terms": BudgetTerms(n_threads=1)}
DOCUMENTS = some_documents(300, 600, 77)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as site:
        yield site


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_BYTES", 4096)
    monkeypatch.setattr(download, "REMOTE_BLOCK_BYTES", 16384)


@pytest.fixture(scope="module")
def bucket(server: Bucket) -> Bucket:
    return server


def json_lines(documents: list[bytes]) -> bytes:
    return b"".join(json.dumps({"text": document.decode()}).encode() + b"\n" for document in documents)


def begins(site: Site) -> list[int]:
    """Where the ranges begin that were asked for, the byte that planning asks for left out."""
    return [int(r.removeprefix("bytes=").partition("-")[0]) for _, r in site.log if r and r != "bytes=0-0"]


def denied_behind(n_bytes: int) -> Callable[[Handler], bool]:
    """From some byte on, the server answers 403."""

    def fault(handler: Handler) -> bool:
        if int(handler.headers["Range"].removeprefix("bytes=").partition("-")[0]) < n_bytes:
            return False
        return handler.status(403)

    return fault


def test_a_bucket_gives_the_bytes_that_local_files_give(bucket: Bucket, tmp_path: Path) -> None:
    parts = DOCUMENTS[:100], DOCUMENTS[100:200], DOCUMENTS[200:]
    files = {
        "a.jsonl.zst": zstd.compress(json_lines(parts[0])),
        "b.txt": SEP.encode().join(parts[1]),
        "sub/c.jsonl.gz": gzip.compress(json_lines(parts[2])),
    }
    for name, data in files.items():
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        bucket.put(f"corpus/{name}", data)
    bucket.put("corpus/_SUCCESS", b"")
    done = command("tokenize", "s3://bucket/corpus/", "--out", tmp_path / "s3", "--val-fraction", "0.1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == len(DOCUMENTS)
    run_in_process([tmp_path / "corpus"], tmp_path / "local", val_fraction=0.1)
    assert written(tmp_path / "s3") == written(tmp_path / "local") == plain_tokens(DOCUMENTS, val_fraction=0.1)
    kept = b"".join(p.read_bytes() for p in (tmp_path / "s3").rglob("*") if p.is_file()) + (done.stdout + done.stderr).encode()
    assert b"HIDDENSECRET" not in kept
    assert b"TESTINGKEYID" not in kept
    report = tokmill.verify(tmp_path / "s3", sources="s3://bucket/corpus/")
    assert report.ok
    assert report.sources_compared


def test_tables_and_archives_in_a_bucket_give_the_bytes_that_local_files_give(bucket: Bucket, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    table = pa.table({"n": range(len(DOCUMENTS)), "text": [document.decode() for document in DOCUMENTS]})
    pq.write_table(table, corpus / "a.parquet", row_group_size=40)
    with pa.ipc.new_file(corpus / "b.arrow", table.schema) as sink:
        sink.write_table(table, max_chunksize=40)
    with tarfile.open(corpus / "c.txz", "w:xz") as archive:
        for i, document in enumerate(DOCUMENTS):
            member = tarfile.TarInfo(f"{i}.txt")
            member.size = len(document)
            archive.addfile(member, io.BytesIO(document))
    for path in corpus.iterdir():
        bucket.put(f"tables/{path.name}", path.read_bytes())
    planned = tokmill.plan("s3://bucket/tables/")
    assert [found.format for found in planned.inputs] == ["parquet", "arrow", "tar"]
    run_in_process(["s3://bucket/tables/"], tmp_path / "s3", SMALL)
    run_in_process([corpus], tmp_path / "local", SMALL)
    assert written(tmp_path / "s3") == written(tmp_path / "local") == plain_tokens(DOCUMENTS * 3)
    bucket.put("tables/a.parquet.gz", gzip.compress((corpus / "a.parquet").read_bytes()))
    with pytest.raises(UsageError, match="cannot be read from a compressed file"):
        tokmill.plan("s3://bucket/tables/")


def test_an_object_that_was_replaced_is_refused_by_name(bucket: Bucket, tmp_path: Path) -> None:
    text = SEP.encode().join(DOCUMENTS[:20])
    urls = [bucket.put(f"two/{name}.txt", text) for name in "ab"]
    run_in_process(urls, tmp_path / "out")
    bucket.put("two/b.txt", text.swapcase())
    with pytest.raises(ChangedError, match=r"input s3://bucket/two/b.txt was replaced \(same size; it was etag") as caught:
        run_in_process(urls, tmp_path / "out")
    assert "two/a.txt" not in str(caught.value)
    assert caught.value.exit_code == 12


@pytest.mark.usefixtures("small_blocks")
def test_a_run_is_resumed_with_the_bytes_from_its_cursor_on(site: Site, tmp_path: Path) -> None:
    text = SEP.encode().join(DOCUMENTS)
    url = site.put("/a.txt", text)
    site.fault = denied_behind(100_000)
    with pytest.raises(DamagedInputError, match="access denied"):
        run_in_process([url], tmp_path / "out", SMALL, input_format="text")
    journal = [
        json.loads(line.partition(b" ")[2]) for line in (tmp_path / "out" / ".tokmill" / "journal").read_bytes().splitlines()
    ]
    cursors = [c for line in journal for c in find_values(line, "offset")]
    assert max(cursors) > 60_000
    site.fault = None
    site.log.clear()
    run_in_process([url], tmp_path / "out", SMALL, input_format="text")
    assert min(begins(site)) == max(cursors)
    assert written(tmp_path / "out") == plain_tokens(DOCUMENTS)


def find_values(found: object, key: str) -> list[int]:
    """All values of a key, however deep."""
    if isinstance(found, dict):
        return [v for k, v in found.items() if k == key] + [w for v in found.values() for w in find_values(v, key)]
    return [w for v in found for w in find_values(v, key)] if isinstance(found, list) else []


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("ranges", [True, False])
def test_a_compressed_object_is_resumed_too(site: Site, tmp_path: Path, ranges: bool) -> None:
    packed = gzip.compress(json_lines(DOCUMENTS))
    url = site.put("/a.jsonl.gz", packed)
    site.fault = denied_behind(len(packed) // 2)
    with pytest.raises(DamagedInputError, match="access denied"):
        run_in_process([url], tmp_path / "out", SMALL)
    site.fault, site.ranges = None, ranges
    run_in_process([url], tmp_path / "out", SMALL)
    assert written(tmp_path / "out") == plain_tokens(DOCUMENTS)


@pytest.mark.usefixtures("small_blocks")
def test_an_object_that_is_replaced_under_the_run_ends_it(site: Site, tmp_path: Path) -> None:
    text = SEP.encode().join(DOCUMENTS)
    url = site.put("/a.txt", text)
    site.conditions = False

    def replace(handler: Handler) -> bool:
        if handler.headers["Range"] >= "bytes=4096-":
            site.put("/a.txt", text.swapcase())
        return False

    site.fault = replace
    with pytest.raises(ChangedError) as caught:
        run_in_process([url], tmp_path / "out", SMALL, input_format="text")
    assert caught.value.where == url
    assert not (tmp_path / "out" / "train.bin").exists()


def secrets_in(*places: bytes) -> list[str]:
    return [secret for secret in ("HIDDENUSER", "HIDDENWORD", "HIDDENSIGN") if any(secret.encode() in place for place in places)]


def test_user_password_and_signature_are_nowhere_to_be_seen(site: Site, tmp_path: Path) -> None:
    text = SEP.encode().join(DOCUMENTS)
    site.put("/a.txt", text)
    site.password = "Basic " + base64.b64encode(b"HIDDENUSER:HIDDENWORD").decode()
    signed = f"http://HIDDENUSER:HIDDENWORD@127.0.0.1:{site.port}/a.txt?id=7&X-Amz-Signature=HIDDENSIGN"
    out = tmp_path / "out"
    site.bytes_per_s = 300_000
    run = subprocess.Popen(
        [sys.executable, "-m", "tokmill", "tokenize", signed + "1", "--out", str(out), "-v", "--input-format", "text"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=clean_environment(),
    )
    arguments: list[bytes] = []
    wait_until((out / ".tokmill" / "journal").exists, run)
    for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            arguments.append(Path(f"/proc/{child}/cmdline").read_bytes())
    assert arguments, "the worker was seen"
    site.fault = lambda handler: handler.status(403)
    site.bytes_per_s = None
    said = run.communicate(timeout=60)[0]
    kept = [p.read_bytes() for p in out.rglob("*") if p.is_file()]
    assert secrets_in(said, *arguments, *kept) == []
    site.fault = None
    done = command("tokenize", signed + "2", "--out", out, "--json", "--input-format", "text")
    assert done.returncode == 0, done.stderr
    assert written(out) == plain_tokens(DOCUMENTS)
    kept = [p.read_bytes() for p in out.rglob("*") if p.is_file()]
    assert secrets_in(done.stdout.encode(), done.stderr.encode(), *kept) == []
    assert f'"http://127.0.0.1:{site.port}/a.txt?id=7"'.encode() in b"".join(kept)


@pytest.mark.parametrize("ranges", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_plan_looks_at_a_part_of_a_remote_object(site: Site, ranges: bool) -> None:
    some = json_lines(DOCUMENTS)
    text = some * (60_000_000 // len(some))
    site.ranges = ranges
    url = site.put("/a.jsonl", text)
    site.bytes_per_s = None if ranges else 20e6
    planned = tokmill.plan(url)
    assert planned.totals is not None
    n_tokens = len(plain_tokens(DOCUMENTS, val_fraction=0)[0]) // 2 * (len(text) // len(some))
    assert planned.totals.tokens.value == pytest.approx(n_tokens, rel=0.1)
    assert site.sent_bytes < len(text) * (0.4 if ranges else 0.9)
    assert planned.inputs[0].disk_bytes is None
    if not ranges:
        assert any("only the beginning was read" in notice for notice in planned.notices)


def test_a_plan_that_is_denied_speaks_of_no_commit(site: Site) -> None:
    some = json_lines(DOCUMENTS)
    url = site.put("/a.jsonl", some * (20_000_000 // len(some)))
    site.fault = denied_behind(1)
    with pytest.raises(DamagedInputError, match="access denied") as caught:
        tokmill.plan(url)
    assert "commit" not in str(caught.value)


def test_local_inputs_load_nothing_for_remote_ones(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"some text")
    program = """
import sys, tokmill
from tokmill.run.job import make_job
tokmill.plan(sys.argv[1])
print([name for name in ("fsspec", "aiohttp", "botocore", "asyncio") if name in sys.modules])
from tokmill.run.coordinator import Coordinator, start_workers
job = make_job([sys.argv[1]], out=sys.argv[2]).job
Coordinator(job, lambda event: None, start_workers(job)).run()
print([name for name in ("fsspec.asyn", "aiohttp", "botocore", "tokmill.store.download") if name in sys.modules])
"""
    arguments = [sys.executable, "-c", program, str(tmp_path / "a.txt"), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=clean_environment(), timeout=60)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_a_url_in_a_working_directory_that_is_gone_is_no_path(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = f"""
import os
os.chdir({str(gone)!r})
os.rmdir({str(gone)!r})
os.execv({sys.executable!r}, ["python", "-m", "tokmill", "plan", "s3://user:HIDDEN@bucket/a"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=clean_environment())
    assert done.returncode == 2
    assert "user and password" in done.stderr
    assert "HIDDEN" not in done.stderr


def test_blocks_and_libraries_of_remote_inputs_are_in_the_budget() -> None:
    local, far = (divide_budget(1 << 30, BudgetTerms(n_threads=2, is_remote=is_remote)) for is_remote in (False, True))
    assert far.reader_bytes - local.reader_bytes == 40 << 20
    assert far.parent_bytes > local.parent_bytes
    assert far.worker_bytes > local.worker_bytes
    assert far.reset_above_bytes < (1 << 30) - (40 << 20)


def test_a_record_of_a_local_input_is_what_it_was_before_there_were_remote_ones() -> None:
    before = b'{"path":"/a.txt","format":"text","compression":"none","size_bytes":1,"mtime_ns":2}'
    local = Input(path="/a.txt", format="text", compression="none", size_bytes=1, mtime_ns=2)
    assert msgspec.json.encode(local) == before
    assert msgspec.json.decode(before, type=Input) == local


def test_a_run_survives_a_server_that_is_started_again(tmp_path: Path) -> None:
    site = Site(bytes_per_s=40_000)
    text = SEP.encode().join(DOCUMENTS)
    with serving(site):
        url = site.put("/a.txt", text)
        run = subprocess.Popen(
            [sys.executable, "-m", "tokmill", "tokenize", url, "--out", str(tmp_path / "out"), "-q", "--input-format", "text"],
            env=clean_environment(),
        )
        wait_until(lambda: len(site.log) >= 2, run)
        n_asked = len(site.log)
        site.is_broken, site.fault = True, lambda handler: handler.reset()
        # The run asks again, while the server fails and then is gone.
        wait_until(lambda: len(site.log) > n_asked, run)
    site.is_broken, site.fault, site.bytes_per_s = False, None, None
    with serving(site, site.port):
        assert run.wait(PATIENCE_S) == 0
    assert written(tmp_path / "out") == plain_tokens(DOCUMENTS)
    assert os.path.exists(tmp_path / "out" / "manifest.json")
