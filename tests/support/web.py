"""A web server on loopback.

`serving` has ranges, ETags, conditions, and faults on demand; `answering` gives fixed answers by path.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

Fault = Callable[["Handler"], bool]
"""Answers a request itself and returns true, or leaves it to the server."""


@dataclass
class Site:
    """What a server has, how it behaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    """By path; without one, only the time of modification is told."""
    ranges: bool = True
    conditions: bool = True
    """Whether If-Match is honoured."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with every file."""
    hidden: set[str] = field(default_factory=set)
    """Headers that are not sent."""
    password: str | None = None
    """What `Authorization` must be."""
    fault: Fault | None = None
    bytes_per_s: float | None = None
    is_broken: bool = False
    """Whether answers that are on their way break off."""
    log: list[tuple[str, str | None]] = field(default_factory=list)
    """Path with its query, and the range that was asked for."""
    sent_bytes: int = 0
    """In answer to what was asked since `forget`."""
    n_forgotten: int = 0
    port: int = 0

    def forget(self) -> None:
        """Begin to count anew. What is being sent already (a client may leave before the body) does not count."""
        self.n_forgotten += 1
        self.sent_bytes = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def put(self, path: str, data: bytes) -> str:
        self.files[path] = data
        self.etags[path] = f'"{hash(data):x}"'
        return self.url(path)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site = self.site
        self.asked_at = site.n_forgotten
        site.log.append((self.path, self.headers.get("Range")))
        if site.fault is not None and site.fault(self):
            return
        path = self.path.partition("?")[0]
        data = site.files.get(path)
        etag = site.etags.get(path)
        if site.password and self.headers.get("Authorization") != site.password:
            self.status(401)
        elif data is None:
            self.status(404)
        elif site.conditions and self.headers.get("If-Match", etag) != etag:
            self.status(412)
        else:
            self.answer(data, etag)

    def answer(self, data: bytes, etag: str | None, *, cut_after: int | None = None) -> None:
        """Send the file or the range of it; cut_after: end the connection behind so many bytes, behind none by a reset."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.site.ranges else None
        begin, end = (int(match[1]), min(int(match[2]) + 1, len(data))) if match else (0, len(data))
        if match and begin >= len(data):
            self.status(416, f"bytes */{len(data)}")
            return
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - begin))
        version = "ETag" if etag else "Last-Modified"
        if version not in self.site.hidden:
            self.send_header(version, etag or "Tue, 01 Jul 2025 00:00:00 GMT")
        for name, value in self.site.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.body(memoryview(data)[begin : min(end, begin + cut_after) if cut_after is not None else end])
        if cut_after is not None and cut_after < end - begin:
            self.close_connection = True
            if not cut_after:
                self.reset()

    def body(self, data: memoryview) -> None:
        rate = self.site.bytes_per_s
        step = 1 << 16 if rate is None else max(1, int(rate / 50))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for at in range(0, len(data), step):
                if self.site.is_broken:
                    self.reset()
                    return
                # Counted first: the client may look at the count as soon as it has the bytes.
                if self.asked_at == self.site.n_forgotten:
                    self.site.sent_bytes += len(data[at : at + step])
                self.wfile.write(data[at : at + step])
                if rate is not None:
                    time.sleep(step / rate)

    def status(self, code: int, content_range: str | None = None) -> bool:
        """Answer without a body; true, as a fault that has answered returns."""
        self.send_response(code)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def reset(self) -> bool:
        """End the connection as a machine that crashes does."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        return True

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Nothing: tests look at the log of the site."""


class Server(http.server.ThreadingHTTPServer):
    """Many connections; those that break are no news."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A connection that was reset on purpose."""


@contextlib.contextmanager
def serving(site: Site, port: int = 0) -> Iterator[Site]:
    """A server while the context lasts."""
    server = Server(("127.0.0.1", port), type("SiteHandler", (Handler,), {"site": site}))
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Answer(NamedTuple):
    """What the server says of a path."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None
    """Content-Length where it is another than that of the body."""


@contextlib.contextmanager
def answering(answers: dict[str, Answer], asked: list[str] | None = None) -> Iterator[str]:
    """The URL of a server with these answers by path; all else is 404. asked: is given the paths that were asked for."""

    class Fixed(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            answer = answers.get(self.path, Answer(b"not here", 404, (("X-Error-Code", "EntryNotFound"),)))
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(answer.body)

        do_HEAD = do_GET  # noqa: N815  the name that the base class looks for

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fixed)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
