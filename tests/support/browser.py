"""A headless Chromium, driven through its own pipe: no driver, no package, no port of the network."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-quic",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe", "about:blank",
)  # fmt: skip


def find() -> str | None:
    """The browser that is named in the environment or installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of one browser; what happened in it is in `events`."""

    def __init__(self, path: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        devnull = os.open(os.devnull, os.O_RDWR)
        # It reads commands from descriptor 3 and answers on 4.
        actions = [
            (os.POSIX_SPAWN_DUP2, devnull, 1),
            (os.POSIX_SPAWN_DUP2, devnull, 2),
            (os.POSIX_SPAWN_DUP2, to_read, 103),
            (os.POSIX_SPAWN_DUP2, to_write, 104),
            (os.POSIX_SPAWN_DUP2, 103, 3),
            (os.POSIX_SPAWN_DUP2, 104, 4),
        ]
        argv = [path, f"--user-data-dir={profile}", *_FLAGS]
        self._pid = os.posix_spawn(path, argv, dict(os.environ), file_actions=actions, setsid=True)
        for fd in (to_read, to_write, devnull):
            os.close(fd)
        self._tail = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a command of its protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                found: dict[str, Any] = answer["result"]
                return found
            self.events.append(answer)

    def open(self, url: str, settle_s: float = 1.0) -> None:
        """Load a page, and give what it may do late the time to happen."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        self._wait("Page.loadEventFired")
        deadline_s = time.monotonic() + settle_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if select.select([self._read], [], [], left_s)[0]:
                self.events.append(self._next(5))

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(shot))

    def named(self, method: str) -> list[dict[str, Any]]:
        """Parameters of the events of one kind."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def _wait(self, method: str) -> None:
        while not self.named(method):
            self.events.append(self._next(60))

    def _next(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._tail:
            assert select.select([self._read], [], [], seconds)[0], "the browser is silent"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser has ended"
            self._tail += data
        line, _, self._tail = self._tail.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        os.close(self._read)
        # With its renderers, which are a group of their own.
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
