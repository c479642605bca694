"""A real S3 protocol server for tests: moto's, on loopback, with faults when they are asked for and a log of what was asked."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from support.commands import wait_until

from tokmill.store import base

NAME = "bucket"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "TESTINGKEYID",
    "AWS_SECRET_ACCESS_KEY": "HIDDENSECRET",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
Start = Callable[..., Any]
Fault = Callable[[dict[str, Any], Start], "Iterable[bytes] | None"]
_numbers = itertools.count()
"""Of the buckets of this process: moto has one memory for all servers, and the system gives a port out again."""


class Bucket:
    """One bucket on a server that can be stopped and started again."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self.fault: Fault | None = None
        self.faulty = {"GET", "HEAD"}
        """Methods that the fault is for."""
        self.log: list[tuple[str, str, str | None]] = []
        """Method, path, range."""
        self.port = 0
        self._own = f"{NAME}-{next(_numbers)}"
        """What moto calls the bucket."""
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server: Any = None
        self._client: Any = None
        self._active: list[Any] = []
        """Requests that are being answered."""

    def renew(self) -> None:
        """Begin again, empty and at another port. What killed clients of earlier tests still send goes to their buckets."""
        self.stop()
        self.port, self._client, self._own = 0, None, f"{NAME}-{next(_numbers)}"
        self.fault, self.faulty = None, {"GET", "HEAD"}
        self.start()
        os.environ.update(self.environment)
        base._store.cache_clear()
        self.names()
        self.log.clear()

    def start(self) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: object, **__: object) -> None:
                """Nothing."""

        answer = functools.partial(self._answer, self._own)
        self._server = make_server("127.0.0.1", self.port, answer, threaded=True, request_handler=Quiet)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def put(self, key: str, data: bytes) -> str:
        self._boto().put_object(Bucket=NAME, Key=key, Body=data)
        return f"s3://{NAME}/{key}"

    def get(self, key: str) -> bytes:
        data: bytes = self._boto().get_object(Bucket=NAME, Key=key)["Body"].read()
        return data

    def names(self, prefix: str = "") -> list[str]:
        return [found["Key"] for found in self._boto().list_objects_v2(Bucket=NAME, Prefix=prefix).get("Contents", [])]

    def begun(self) -> list[str]:
        """Keys of objects that were begun in parts and are neither finished nor given up."""
        return [upload["Key"] for upload in self._boto().list_multipart_uploads(Bucket=NAME).get("Uploads", [])]

    def delete(self, key: str) -> None:
        self._boto().delete_object(Bucket=NAME, Key=key)

    def empty(self) -> None:
        """As it was in the beginning."""
        self.fault, self.faulty = None, {"GET", "HEAD"}
        for found in self._boto().list_objects_v2(Bucket=NAME).get("Contents", []):
            self.delete(found["Key"])
        self.log.clear()

    def ranges(self, key: str) -> list[int]:
        """Where the ranges begin that were asked for."""
        return [int(r.removeprefix("bytes=").partition("-")[0]) for _, path, r in self.log if r and path.endswith(f"/{key}")]

    def _boto(self) -> Any:
        import boto3

        if self._client is None:
            keys = {"aws_access_key_id": "TESTINGKEYID", "aws_secret_access_key": "HIDDENSECRET"}
            endpoint = f"http://127.0.0.1:{self.port}"
            self._client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
            self._client.create_bucket(Bucket=NAME)
        return self._client

    def _answer(self, own: str, request: dict[str, Any], start: Start) -> Iterable[bytes]:
        """Answer a request to the server that was started for the bucket `own`."""
        method, path = request["REQUEST_METHOD"], request["PATH_INFO"]
        if own != self._own:
            return self._moto(own, request, start)
        self.log.append((method, path, request.get("HTTP_RANGE")))
        self._active.append(request)
        try:
            answer = self.fault(request, start) if self.fault is not None and method in self.faulty else None
            return self.real(request, start) if answer is None else answer
        finally:
            self._active.pop()

    def settle(self) -> None:
        """Wait for the requests that a killed client has left."""
        wait_until(lambda: not self._active)

    def real(self, request: dict[str, Any], start: Start) -> Iterable[bytes]:
        """What the server answers without a fault."""
        return self._moto(self._own, request, start)

    def _moto(self, own: str, request: dict[str, Any], start: Start) -> Iterable[bytes]:
        changed = {"PATH_INFO": _in_bucket(request["PATH_INFO"], own)}
        for name in ("REQUEST_URI", "RAW_URI", "HTTP_X_AMZ_COPY_SOURCE"):
            if name in request:
                changed[name] = _in_bucket(request[name], own)
        answer: Iterable[bytes] = self._app({**request, **changed}, start)
        return answer


def _in_bucket(path: str, own: str) -> str:
    return re.sub(rf"^(/?){NAME}(?=[/?]|$)", lambda match: match[1] + own, path)


def failing(status: str, code: str, *, times: int) -> Fault:
    """An answer with an error of S3, so many times."""
    left = [times]

    def fault(request: dict[str, Any], start: Start) -> Iterable[bytes] | None:
        if not left[0]:
            return None
        left[0] -= 1
        body = f"<Error><Code>{code}</Code><Message>as asked for</Message></Error>".encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [b"" if request["REQUEST_METHOD"] == "HEAD" else body]

    return fault


@contextlib.contextmanager
def s3_server() -> Iterator[Bucket]:
    """A server on a free port, and an environment of this process that leads to it."""
    base._store.cache_clear()
    bucket = Bucket()
    bucket.start()
    before = {name: os.environ.get(name) for name in bucket.environment}
    os.environ.update(bucket.environment)
    try:
        yield bucket
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        bucket.stop()
        base._store.cache_clear()


def watch(bucket: Bucket, fault: Fault | None) -> None:
    """Ask the fault for its answer to a request of any method."""
    bucket.fault, bucket.faulty = fault, {"PUT", "POST", "GET", "HEAD", "DELETE"}
