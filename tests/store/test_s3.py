"""Remote inputs from a server that speaks the S3 protocol, faults in the middle included."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from support.s3 import Bucket, Start, failing
from urllib3.exceptions import SSLError

from tokmill.core.errors import ChangedError, DamagedInputError, StorageError, TokmillError, UsageError
from tokmill.core.extras import install_hint
from tokmill.core.records import Input
from tokmill.read.inputs import FoundInputs, find_inputs
from tokmill.store import base, download
from tokmill.store.download import RemoteStream, RetryPolicy
from tokmill.store.s3 import S3Objects, S3Store, _output_errors, translated

FIRST, BLOCK = 4 << 10, 64 << 10
DATA = random.Random(0).randbytes(FIRST + 5 * BLOCK + 77)
QUICK = RetryPolicy(attempts=4, first_s=0.01, most_s=0.05)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_BYTES", FIRST)
    monkeypatch.setattr(download, "REMOTE_BLOCK_BYTES", BLOCK)


def found(url: str, glob: str | None = None) -> FoundInputs:
    return find_inputs([url], glob=glob, input_format=None)


def find(url: str) -> Input:
    (source,) = found(url).inputs
    return source


def read(source: Input, skip: int = 0) -> bytes:
    stream = RemoteStream(source, QUICK)
    try:
        stream.skip(skip)
        return b"".join(iter(lambda: stream.read(10_000), b""))
    finally:
        stream.close()


def drain(stream: RemoteStream) -> None:
    while stream.read(1000):
        pass


NAMES = [
    "d/b.txt",
    "d/a.jsonl.gz",
    "d/B.txt",
    "d/sub/é é.txt",
    "d/sub/.hidden.txt",
    "d/_SUCCESS",
    "d/.git/x.txt",
    "dd/x.txt",
    "d.txt",
]
BELOW = ["d/B.txt", "d/a.jsonl.gz", "d/b.txt", "d/sub/é é.txt"]
WAYS: dict[str, list[str]] = {
    "d/": BELOW,
    "d": BELOW,
    "d.txt": ["d.txt"],
    "d/*.txt": ["d/B.txt", "d/b.txt"],
    "d/**/*.txt": ["d/B.txt", "d/b.txt", "d/sub/é é.txt"],
    "d/[a-z]*.txt": ["d/b.txt"],
    "d*/?.txt": ["d/B.txt", "d/b.txt", "dd/x.txt"],
    "d/.git/*": ["d/.git/x.txt"],
    "*": ["d.txt", "d/B.txt", "d/a.jsonl.gz", "d/b.txt", "d/sub/é é.txt", "dd/x.txt"],
    "": ["d.txt", "d/B.txt", "d/a.jsonl.gz", "d/b.txt", "d/sub/é é.txt", "dd/x.txt"],
}


def test_objects_prefixes_and_patterns_are_found_in_one_order(bucket: Bucket) -> None:
    for name in NAMES:
        bucket.put(name, name.encode())
    for way, expected in WAYS.items():
        inputs = found(f"s3://bucket/{way}").inputs
        assert [i.path for i in inputs] == [f"s3://bucket/{name}" for name in expected], way
        assert all(i.size_bytes == len(i.path) - len("s3://bucket/") + i.path.count("é") for i in inputs)
        assert all(i.version and i.version.startswith("etag ") for i in inputs)
    assert found("s3://bucket/d/").n_passed_over == 1
    assert [i.path for i in found("s3://bucket/d/", glob="_*").inputs] == ["s3://bucket/d/_SUCCESS"]
    assert find("s3://bucket/d/a.jsonl.gz").compression == "gzip"


@pytest.mark.parametrize("pattern", ["d*/", "*/", "**/", "d/**/", "d/*/", "**/sub/", "d/.git/**/", "*/sub/"])
def test_patterns_of_directories_mean_in_a_store_what_they_mean_on_a_disk(bucket: Bucket, pattern: str, tmp_path: Path) -> None:
    for name in NAMES:
        bucket.put(name, name.encode())
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    on_disk = find_inputs([f"{tmp_path}/{pattern}"], glob=None, input_format=None).inputs
    in_store = [i.path.removeprefix("s3://bucket/") for i in found(f"s3://bucket/{pattern}").inputs]
    assert in_store == sorted(i.path.removeprefix(f"{tmp_path}/") for i in on_disk)
    assert len(in_store) == len(set(in_store))


@pytest.mark.parametrize("key", ["a b.txt", "50%25 é?#[x].txt", "a+b=&c.txt", "//x//y.txt"])
def test_a_key_is_taken_to_the_letter(bucket: Bucket, key: str) -> None:
    url = bucket.put(key, DATA)
    assert find(url).path == url
    assert read(find(url)) == DATA


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("s3://bucket/nothing", "no such object"),
        ("s3://bucket/*.txt", "no object matches"),
        ("s3://bucket/**x", "stands with something else"),
        ("s3://other-bucket/a.txt", "no such object"),
        ("s3://user:HIDDEN@bucket/a.txt", "are not read"),
        ("s3://", "no bucket"),
        ("s3://Not_possible!/a.txt", "not a possible one"),
        ("s4://bucket/a.txt", "cannot be read"),
    ],
)
def test_what_is_not_there_is_an_error_in_four_parts(bucket: Bucket, url: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        find(url)
    assert caught.value.where
    assert caught.value.allowed
    assert caught.value.next_step
    assert "HIDDEN" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, FIRST, FIRST + 1, FIRST + BLOCK, len(DATA)])
def test_the_bytes_are_those_of_the_object(bucket: Bucket, size: int) -> None:
    assert read(find(bucket.put("a.txt", DATA[:size]))) == DATA[:size]


def test_what_is_skipped_is_not_asked_for(bucket: Bucket) -> None:
    source = find(bucket.put("a.txt", DATA))
    assert read(source, skip=FIRST + BLOCK) == DATA[FIRST + BLOCK :]
    assert min(bucket.ranges("a.txt")) == FIRST + BLOCK


@pytest.mark.parametrize(("status", "code"), [("500 x", "InternalError"), ("503 x", "SlowDown"), ("400 x", "RequestTimeout")])
def test_a_busy_store_is_asked_again(bucket: Bucket, status: str, code: str) -> None:
    source = find(bucket.put("a.txt", DATA))
    bucket.fault = failing(status, code, times=3)
    assert read(source) == DATA


def test_a_store_that_fails_for_ever_is_one_error_with_url_and_byte(bucket: Bucket) -> None:
    source = find(bucket.put("a.txt", DATA))
    bucket.log.clear()
    bucket.fault = failing("500 x", "InternalError", times=1000)
    with pytest.raises(DamagedInputError, match="HTTP 500 InternalError, 4 times") as caught:
        read(source)
    assert caught.value.where == f"{source.path}, byte 0"
    assert len(bucket.log) == QUICK.attempts, "who retries is one, not two"


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        ("403 x", "AccessDenied", DamagedInputError),
        ("403 x", "SignatureDoesNotMatch", DamagedInputError),
        ("404 x", "NoSuchKey", ChangedError),
        ("412 x", "PreconditionFailed", ChangedError),
        ("405 x", "MethodNotAllowed", DamagedInputError),
    ],
)
def test_what_will_not_pass_is_an_error_at_once(bucket: Bucket, status: str, code: str, error: type[TokmillError]) -> None:
    source = find(bucket.put("a.txt", DATA))
    bucket.log.clear()
    bucket.fault = failing(status, code, times=1000)
    with pytest.raises(error) as caught:
        read(source)
    assert len(bucket.log) == 1
    assert source.path in (caught.value.where or "")
    assert "HIDDEN" not in str(caught.value)


def test_access_denied_is_found_before_the_run(bucket: Bucket) -> None:
    bucket.fault = failing("403 x", "AccessDenied", times=1)
    with pytest.raises(DamagedInputError, match="access denied") as caught:
        find("s3://bucket/a.txt")
    assert "AWS_ACCESS_KEY_ID" in (caught.value.next_step or "")
    assert not caught.value.resumes


def test_a_connection_that_is_cut_is_taken_up_again(bucket: Bucket) -> None:
    source = find(bucket.put("a.txt", DATA))
    left = [3]

    def cut(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if not left[0]:
            return None
        left[0] -= 1
        body = b"".join(bucket.real(request, start))
        return [body[: len(body) // 3]]

    bucket.fault = cut
    assert read(source) == DATA


def test_an_object_that_is_replaced_while_it_is_read_is_refused(bucket: Bucket) -> None:
    stream = RemoteStream(find(bucket.put("a.txt", DATA)), QUICK)
    assert stream.read(FIRST) == DATA[:FIRST]
    bucket.put("a.txt", DATA[::-1])
    with pytest.raises(ChangedError) as caught:
        drain(stream)
    stream.close()
    assert caught.value.where == "s3://bucket/a.txt"


def test_an_object_that_is_removed_while_it_is_read_is_refused(bucket: Bucket) -> None:
    stream = RemoteStream(find(bucket.put("a.txt", DATA)), QUICK)
    assert stream.read(FIRST) == DATA[:FIRST]
    bucket.delete("a.txt")
    with pytest.raises(ChangedError, match="gone"):
        drain(stream)
    stream.close()


def test_a_store_that_does_not_compare_is_compared_with_here(bucket: Bucket) -> None:
    source = find(bucket.put("a.txt", DATA))
    bucket.put("a.txt", DATA[::-1])

    def careless(request: dict[str, Any], start: Start) -> Iterable[bytes]:
        request.pop("HTTP_IF_MATCH", None)
        return bucket.real(request, start)

    bucket.fault = careless
    with pytest.raises(ChangedError, match="it was etag"):
        read(source)


def test_the_same_content_put_again_is_the_same_object(bucket: Bucket) -> None:
    source = find(bucket.put("a.txt", DATA))
    bucket.put("a.txt", DATA)
    assert read(source) == DATA


def test_a_server_that_is_killed_and_started_again_is_waited_for(bucket: Bucket) -> None:
    failed = threading.Event()

    class Noted(RetryPolicy):
        def pause_s(self, n_failed: int, after_s: float) -> float:
            failed.set()
            return super().pause_s(n_failed, after_s)

    def again() -> None:
        assert failed.wait(20)
        bucket.start()

    stream = RemoteStream(find(bucket.put("a.txt", DATA)), Noted(attempts=9, first_s=0.1, most_s=0.5))
    text = stream.read(FIRST)
    bucket.stop()
    thread = threading.Thread(target=again)
    thread.start()
    assert text + b"".join(iter(lambda: stream.read(BLOCK), b"")) == DATA
    stream.close()
    thread.join()


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [("s3", "botocore", "s3"), ("https", "aiohttp", "http"), ("hf", "huggingface_hub", "hf"), ("gs", "gcsfs", "gcs")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    scheme: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    base._store.cache_clear()
    with pytest.raises(UsageError, match=f"needs the package {package}") as caught:
        find(f"{scheme}://bucket/a.txt")
    base._store.cache_clear()
    assert caught.value.next_step == install_hint(extra)
    assert f"pip install '{package}>=" in install_hint(extra) or extra == "hf"


def test_a_broken_record_of_tls_while_a_body_is_read_is_tried_again() -> None:
    with pytest.raises(base.TransientError, match="SSLError"), translated(lambda error: error):
        raise SSLError("decryption failed or bad record mac")


def test_settings_of_fsspec_count_and_a_key_that_cannot_be_used_is_named(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = bucket.environment["AWS_ENDPOINT_URL"]
    settings = {"client_kwargs": {"endpoint_url": endpoint}, "s3_additional_kwargs": {"ServerSideEncryption": "AES256"}}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    objects = S3Objects("s3://bucket/encrypted")
    objects.put("a", b"text")
    assert objects._client.ask(lambda error: error, "head_object", Bucket="bucket", Key="encrypted/a")["ServerSideEncryption"]
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"no_such_key": 1}})
    with pytest.raises(UsageError, match="no_such_key"):
        S3Objects("s3://bucket/encrypted").head("a")


def test_an_endpoint_that_is_no_url_is_a_usage_error_without_its_password(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:SECRET@[::1")
    with pytest.raises(UsageError, match="endpoint") as caught:
        S3Objects("s3://bucket/a").head("a")
    assert "SECRET" not in str(caught.value)


def test_a_region_that_cannot_be_one_is_a_usage_error_at_once(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "not a region")
    bucket.log.clear()
    with pytest.raises(UsageError, match="region"):
        S3Objects("s3://bucket/a").head("a")
    with pytest.raises(UsageError, match="region"):
        S3Store("s3").head("s3://bucket/a")
    assert not bucket.log


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (boto.EndpointConnectionError(endpoint_url="x", error=None), base.TransientError),
        (boto.ReadTimeoutError(endpoint_url="x", error=None), base.TransientError),
        (boto.ConnectionClosedError(endpoint_url="x", error=None), base.TransientError),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), base.TransientError),
        (ResponseParserError("x"), base.TransientError),
        (ConnectionResetError(), base.TransientError),
        (boto.DataNotFoundError(data_path="x"), StorageError),
        (boto.UnknownSignatureVersionError(signature_version="x"), StorageError),
        (boto.MetadataRetrievalError(error_msg="x"), StorageError),
    ],
)
def test_only_errors_of_a_connection_are_tried_again(error: Exception, meaning: type[Exception]) -> None:
    with pytest.raises(meaning), translated(_output_errors("s3://bucket/a", "head_object")):
        raise error
