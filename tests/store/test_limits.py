"""Stores that answer without an end: a byte at a time, or page after page; and answers that say that other bytes have arrived."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from support.s3 import Bucket, Start, watch
from support.web import Handler, Site, serving

from tokmill.core.errors import DamagedInputError, MemoryBudgetError, UsageError
from tokmill.core.records import Input
from tokmill.read.inputs import find_inputs
from tokmill.store import base, download, s3
from tokmill.store.base import ObjectVersion, RangeBuffer, TransientError
from tokmill.store.download import RemoteStream, RetryPolicy
from tokmill.store.fsspec_store import FsspecStore
from tokmill.store.s3 import S3Objects, S3Store

QUICK = RetryPolicy(attempts=2, first_s=0.001, most_s=0.001)
TEXT = b"a text of some length " * 100


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set at the end: what still answers stops."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "REQUEST_S", 0.3)
    monkeypatch.setattr(base, "LISTING_S", 0.3)
    monkeypatch.setattr(base, "LEAST_BYTES_PER_S", 1 << 20)
    monkeypatch.setattr(download, "PLANNING", QUICK)


def read(source: Input) -> bytes:
    stream = RemoteStream(source, QUICK)
    try:
        return b"".join(iter(lambda: stream.read(1 << 16), b""))
    finally:
        stream.close()


def find(url: str) -> Input:
    (source,) = find_inputs([url], glob=None, input_format=None).inputs
    return source


def dripping(over: threading.Event) -> Iterator[bytes]:
    while not over.wait(0.02):
        yield b"a"


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_web_server_that_drips_is_not_waited_for(has_ranges: bool, impatient: None, over: threading.Event) -> None:
    def drip(handler: Handler) -> bool:
        handler.send_response(206 if has_ranges else 200)
        if has_ranges:
            begin = (handler.headers["Range"] or "").removeprefix("bytes=").partition("-")[0]
            handler.send_header("Content-Range", f"bytes {begin}-{len(TEXT) - 1}/{len(TEXT)}")
        handler.send_header("Content-Length", str(len(TEXT)))
        handler.end_headers()
        for piece in dripping(over):
            handler.wfile.write(piece)
        return True

    with serving(Site()) as site:
        source = find(site.put("/a.txt", TEXT))
        assert read(source) == TEXT
        site.fault, site.etags = drip, {}
        with pytest.raises(DamagedInputError, match="no answer in time"):
            read(source)


def test_headers_that_drip_are_not_waited_for(impatient: None, over: threading.Event) -> None:
    def drip(handler: Handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 206 Partial\r\nX-Long: ")
        for piece in dripping(over):
            handler.wfile.write(piece)
        return True

    with serving(Site()) as site:
        source = find(site.put("/a.txt", TEXT))
        site.fault = drip
        with pytest.raises(DamagedInputError, match="no answer in time"):
            read(source)


def answered_slowly(over: threading.Event, query: str = "") -> Any:
    def fault(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if query not in request["QUERY_STRING"]:
            return None
        place = f"bytes 0-{len(TEXT) - 1}/{len(TEXT)}"
        start("206 Partial Content", [("Content-Length", str(len(TEXT))), ("Content-Range", place)])
        return dripping(over)

    return fault


def test_a_bucket_that_drips_is_not_waited_for(bucket: Bucket, impatient: None, over: threading.Event) -> None:
    source = find(bucket.put("a.txt", TEXT))
    assert read(source) == TEXT
    source = Input(**{f: getattr(source, f) for f in source.__struct_fields__} | {"version": None})
    bucket.fault = answered_slowly(over)
    with pytest.raises(DamagedInputError, match="not answered in full"):
        read(source)


def test_a_listing_that_drips_is_not_waited_for(bucket: Bucket, impatient: None, over: threading.Event) -> None:
    bucket.fault = answered_slowly(over, "list-type")
    with pytest.raises(TransientError, match="not answered in full"):
        S3Store("s3").list("s3://bucket/prefix")


def test_an_upload_that_is_answered_slowly_is_not_waited_for(bucket: Bucket, impatient: None, over: threading.Event) -> None:
    store = S3Objects("s3://bucket/prefix")
    watch(bucket, answered_slowly(over))
    with pytest.raises(TransientError, match="not answered in full"):
        store.put("a", TEXT)


def test_a_library_that_goes_on_for_ever_is_not_waited_for(
    impatient: None, over: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FsspecStore("memory")
    for call in ("cat_file", "find"):
        monkeypatch.setattr(store._fs, call, lambda *_, **__: list(dripping(over)), raising=False)
    with pytest.raises(TransientError, match="not answered in full"):
        store.fetch(ObjectVersion("memory://a", 100, None), RangeBuffer(0, 100))
    with pytest.raises(TransientError, match="not answered in full"):
        store.list("memory://a")


def listing(n_entries: int, token: str | None) -> bytes:
    entries = "".join(f"<Contents><Key>prefix/{i}</Key><Size>1</Size></Contents>" for i in range(n_entries))
    following = f"<NextContinuationToken>{token}</NextContinuationToken>" if token is not None else ""
    return f"<ListBucketResult><IsTruncated>true</IsTruncated>{following}{entries}</ListBucketResult>".encode()


@pytest.mark.parametrize("kind", ["the same page", "empty pages", "full pages", "two pages", "no next page"])
def test_a_listing_without_an_end_is_refused(kind: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_MOST_SAME", 50)
    asked = [0]

    def fault(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        asked[0] += 1
        token = {"the same page": "again", "no next page": None}.get(kind, str(asked[0]))
        body = listing(0 if kind == "empty pages" else 100 + (kind == "two pages" and asked[0] % 2), token)
        start("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    bucket.fault = fault
    with pytest.raises(UsageError, match="no end"):
        S3Store("s3").list("s3://bucket/prefix")
    with pytest.raises(UsageError, match="no end"):
        S3Objects("s3://bucket/prefix").list()
    assert asked[0] < 110


@pytest.mark.parametrize("limit", ["memory", "time"])
def test_a_listing_of_ever_new_objects_is_refused(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next levels of a pattern count with those before."""
    pages = itertools.count()
    n_pages = 0

    def answer(*_: object, **arguments: Any) -> dict[str, Any]:
        nonlocal n_pages
        n_pages += 1
        more = [{"Prefix": f"{arguments['Prefix']}{next(pages)}/"} for _ in range(100)]
        return {"CommonPrefixes": more, "IsTruncated": n_pages % 5 > 0, "NextContinuationToken": str(n_pages)}

    if limit == "memory":
        monkeypatch.setattr(s3, "usable_bytes", lambda: 8_000_000)
    else:
        monkeypatch.setattr(s3, "_LONGEST_S", -1)
    store = S3Store("s3")
    monkeypatch.setattr(store._client, "ask", answer)
    with pytest.raises(MemoryBudgetError if limit == "memory" else UsageError, match="no end"):
        store.glob("s3://bucket/*/*/*.txt")
    assert n_pages == 1 if limit == "time" else 60 < n_pages < 200


@pytest.mark.parametrize("n_pages", [3, 2_200])
def test_a_listing_may_have_any_length(n_pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than two million objects; pages without any, and pages alike, among them."""
    pages = iter(range(n_pages))

    def answer(*_: object, **arguments: Any) -> dict[str, Any]:
        n = next(pages)
        assert arguments.get("ContinuationToken", "0") == str(n)
        entries = [] if n % 7 == 0 else [{"Key": f"{n // 3}", "Size": 1}]
        return {"Contents": entries * 1_000, "IsTruncated": n + 1 < n_pages, "NextContinuationToken": str(n + 1)}

    client = s3._Client()
    monkeypatch.setattr(client, "ask", answer)
    found = list(client.pages(lambda error: error, "list_objects_v2", Bucket="bucket"))
    assert len(found) == n_pages


@pytest.mark.parametrize("body", [b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>", b"<", b"", b"{}"])
def test_an_answer_that_lacks_something_is_a_failed_connection(body: bytes, bucket: Bucket) -> None:
    def fault(request: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    watch(bucket, fault)
    store = S3Objects("s3://bucket/prefix")
    if b"Key" in body:
        with pytest.raises(TransientError):
            store.list()
    with pytest.raises(TransientError):
        store.create_multipart("a", "mark")
    with pytest.raises(TransientError):
        store.upload_part("a", "upload", 1, TEXT)


def saying(etag: str | None, bucket: Bucket, *headers: tuple[str, str]) -> Any:
    """The store's answer with another ETag."""

    def fault(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if request["REQUEST_METHOD"] != "PUT":
            return None

        def changed(status: str, found: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [(name, value) for name, value in found if name.lower() != "etag"]
            return start(status, [*kept, *([("ETag", etag)] if etag is not None else []), *headers], *rest)

        return bucket.real(request, changed)

    return fault


OTHER = f'"{hashlib.md5(b"other").hexdigest()}"'


@pytest.mark.parametrize("only_new", [True, False])
def test_an_etag_of_other_bytes_is_an_error_and_the_object_is_not_left(only_new: bool, bucket: Bucket) -> None:
    store = S3Objects("s3://bucket/prefix")
    watch(bucket, saying(OTHER, bucket))
    with pytest.raises(TransientError, match="other bytes"):
        store.put("a", TEXT, only_new=only_new)
    bucket.fault = None
    assert store.head("a") is None
    upload = store.create_multipart("b", "mark")
    watch(bucket, saying(OTHER, bucket))
    with pytest.raises(TransientError, match="other bytes"):
        store.upload_part("b", upload, 1, TEXT)


@pytest.mark.parametrize(
    ("etag", "headers"),
    [
        (OTHER, [("x-amz-server-side-encryption", "aws:kms")]),
        (OTHER, [("x-amz-server-side-encryption", "aws:kms:dsse")]),
        (OTHER, [("x-amz-server-side-encryption-customer-algorithm", "AES256")]),
        ('"not-an-md5"', []),
        (f'"{"0" * 32}-2"', []),
        (None, []),
    ],
)
def test_an_etag_that_is_no_md5_does_not_count(etag: str | None, headers: list[tuple[str, str]], bucket: Bucket) -> None:
    store = S3Objects("s3://bucket/prefix")
    watch(bucket, saying(etag, bucket, *headers))
    store.put("a", TEXT)
    bucket.fault = None
    assert re.fullmatch(r"etag .*", str(getattr(store.head("a"), "version", "")))
