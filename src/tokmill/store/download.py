"""Remote objects as streams: read ahead, retried, pinned to the version that the run began with.

Some threads fetch blocks ahead of the reader, to hide the latency of a store; what they hold is bounded and part of the budget. The
first request of an object is a small one, and nothing is read ahead before it is used up: reading the first line of a thousand
objects does not download them. A transient failure is retried from the first missing byte, a limited number of times, with growing
pauses; any other failure is an error at once; and bytes of two versions of an object never mix.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import deque
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tokmill.core.errors import DamagedInputError
from tokmill.core.system.budget import REMOTE_BLOCK_BYTES, REMOTE_BLOCKS_HELD
from tokmill.core.system.refusals import in_thread
from tokmill.store.base import ObjectVersion, RangeBuffer, TransientError, changed, store_for
from tokmill.store.urls import scheme_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from tokmill.core.records import Input
    from tokmill.store.base import Store

T = TypeVar("T")

FIRST_BYTES = 256 << 10
"""Of the first request."""
_PROGRESS_BYTES = 64 << 10
"""An attempt that brought more than this does not count as failed."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often an attempt is made, and the pauses between attempts."""

    attempts: int = 9
    first_s: float = 0.25
    """Before the second attempt; doubled each time, and shortened by up to a half at random to spread many clients."""
    most_s: float = 16.0

    def pause_s(self, n_failed: int, after_s: float) -> float:
        """Return seconds to wait. n_failed: attempts so far, from 1; after_s: what the store asks for."""
        wait_s = min(self.most_s, self.first_s * 2 ** (n_failed - 1)) * random.uniform(0.5, 1)  # noqa: S311  no secret
        return float(max(wait_s, min(after_s, self.most_s)))


READING = RetryPolicy()
"""About half a minute: a store that is started again is waited for."""
PLANNING = RetryPolicy(attempts=4)
"""Shorter: a person waits, and a mistyped host fails like a store that is down."""


class Closed(Exception):  # noqa: N818  not an error
    """The end of a wait for bytes that nobody wants any more."""


def unreadable(where: Callable[[], str], policy: RetryPolicy) -> Callable[[str], DamagedInputError]:
    """Return what makes the error for an input when retries end. where: URL and byte."""

    def error(how: str) -> DamagedInputError:
        return DamagedInputError(
            f"cannot be read: {how}",
            where=where(),
            allowed="a store that answers",
            next_step="check the URL, the connection and the store, then run the same command again",
            resumes=policy is not PLANNING,
        )

    return error


def retry(
    attempt: Callable[[], T],
    policy: RetryPolicy,
    give_up: Callable[[str], Exception],
    closed: threading.Event | None = None,
    on_wait: Callable[[str], None] = lambda _: None,
) -> T:
    """Return what an attempt returns; retry it after each TransientError.

    Args:
        attempt: Makes one attempt.
        policy: How often and after which pauses.
        give_up: Makes the error to raise when the attempts are used up.
        closed: Ends the waiting when it is set.
        on_wait: Called before each pause with what happened.

    Raises:
        Closed: `closed` was set.
    """
    began_s = time.monotonic()
    for n_failed in range(1, policy.attempts + 1):
        try:
            return attempt()
        except TransientError as error:
            last = error
            if n_failed == policy.attempts:
                break
            pause_s = policy.pause_s(n_failed, error.after_s)
            on_wait(error.what)
        if closed is None:
            time.sleep(pause_s)
        elif closed.wait(pause_s):
            raise Closed
    raise give_up(f"{last.what}, {policy.attempts} times in {time.monotonic() - began_s:.0f} s") from None


class Fetcher:
    """Fetches ranges of one object, with retries. Used by any number of threads."""

    def __init__(self, source: Input, policy: RetryPolicy = READING) -> None:
        """Raises UsageError for a store that cannot be used here."""
        self.pinned = ObjectVersion(source.path, source.size_bytes or 0, source.version or None)
        self.store: Store = store_for(self.pinned.url)
        self.closed = threading.Event()
        self._policy = policy
        self._is_checked = False

    def fetch(self, begin: int, end: int) -> memoryview:
        """Return bytes begin to end of the object, all of them. Raises DamagedInputError, ChangedError."""
        if not self._is_checked:
            self._is_checked = True
            self.check()
        buffer = RangeBuffer(begin, end - begin)
        while buffer.at < buffer.end:
            n_before = buffer.n_bytes

            def attempt(n_before: int = n_before) -> None:
                try:
                    self.store.fetch(self.pinned, buffer)
                except TransientError:
                    if buffer.n_bytes - n_before < _PROGRESS_BYTES:
                        raise

            error = unreadable(lambda: f"{self.pinned.name}, byte {buffer.at:,}", self._policy)
            retry(attempt, self._policy, error, self.closed)
            if buffer.n_bytes == n_before and buffer.at < buffer.end:
                raise changed(self.pinned.name, f"it ends at byte {buffer.at:,}")
        return memoryview(buffer.data)

    def check(self) -> None:
        """Raise ChangedError if the object is another by now; for stores where only this tells."""
        error = unreadable(lambda: self.pinned.name, self._policy)
        retry(lambda: self.store.check(self.pinned), self._policy, error, self.closed)

    def close(self) -> None:
        """End all waiting."""
        self.closed.set()
        self.store.release(self.pinned)


class _Ahead:
    """The blocks of an object in order, a few of them fetched ahead of the reader, each by a thread that does not delay an exit."""

    def __init__(self, fetcher: Fetcher, begin: int, end: int, n_ahead: int) -> None:
        self._fetcher = fetcher
        self._begins = iter(range(begin, end, REMOTE_BLOCK_BYTES))
        self._end = end
        self._pending: deque[Future[memoryview]] = deque()
        for _ in range(n_ahead):
            self._start_next()

    def take(self) -> memoryview:
        """Return the next block. Raises what went wrong with it."""
        block = self._pending[0].result()
        self._pending.popleft()
        self._start_next()
        return block

    def close(self) -> None:
        """Wake the reader; what was begun is not waited for."""
        for block in self._pending:
            with contextlib.suppress(InvalidStateError):
                block.set_exception(Closed())

    def _start_next(self) -> None:
        first = next(self._begins, None)
        if first is not None:
            end = min(first + REMOTE_BLOCK_BYTES, self._end)
            self._pending.append(in_thread(self._fetcher.fetch, first, end, name=f"fetch-{first}"))


class RemoteStream:
    """A remote object from front to back. Implements `protocols.ByteStream`."""

    def __init__(self, source: Input, policy: RetryPolicy = READING) -> None:
        """Nothing is asked of the store yet. Raises UsageError."""
        self.offset = 0
        self._fetcher = Fetcher(source, policy)
        self._size = self._fetcher.pinned.size_bytes
        self._block = memoryview(b"")
        self._ahead: _Ahead | None = None
        self._n_requested = 0
        """Where the next block begins."""
        self._first_end = -1
        """Where the first, small block ended; what follows it is read ahead."""

    def read(self, n_bytes: int) -> bytes:
        """See ByteStream."""
        if not self._block:
            if self.offset >= self._size:
                if self._size:
                    self._fetcher.check()
                return b""
            self._block = self._next_block()
        data = bytes(self._block[:n_bytes])
        self._block = self._block[n_bytes:]
        self.offset += len(data)
        return data

    def skip(self, n_bytes: int) -> None:
        """See ByteStream. Skipped bytes are not requested, except those on their way."""
        if self.offset + n_bytes > self._size:
            raise changed(self._fetcher.pinned.name, f"it ends at byte {self._size:,}, before the place where the run was to go on")
        self.offset += n_bytes
        if n_bytes < len(self._block):
            self._block = self._block[n_bytes:]
            return
        self._block = memoryview(b"")
        self._stop_ahead()
        self._n_requested = self.offset

    def raw_position(self) -> int:
        """See ByteStream."""
        return self.offset

    def close(self) -> None:
        """See ByteStream."""
        self._block = memoryview(b"")
        self._stop_ahead()
        self._fetcher.close()

    def _stop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def _next_block(self) -> memoryview:
        begin = self._n_requested
        if self._ahead is None and begin == self._first_end:
            n_ahead = 1 if self._fetcher.store.is_streamed(self._fetcher.pinned) else REMOTE_BLOCKS_HELD - 1
            self._ahead = _Ahead(self._fetcher, begin, self._size, n_ahead)
        if self._ahead is not None:
            block = self._ahead.take()
        else:
            block = self._fetcher.fetch(begin, min(begin + FIRST_BYTES, self._size))
            self._first_end = begin + len(block)
        self._n_requested = begin + len(block)
        return block


def read_range(source: Input, begin: int, end: int) -> bytes:
    """Return bytes of a remote object. Raises DamagedInputError, ChangedError."""
    with contextlib.closing(Fetcher(source, PLANNING)) as fetcher:
        return bytes(fetcher.fetch(begin, end))


def serves_ranges(source: Input) -> bool:
    """Return whether the middle of an object can be read without all that lies before. Requests one byte of it."""
    if scheme_of(source.path) not in {"http", "https"} or not source.size_bytes:
        return True
    with contextlib.closing(Fetcher(source, PLANNING)) as fetcher:
        fetcher.fetch(0, 1)
        return not fetcher.store.is_streamed(fetcher.pinned)
