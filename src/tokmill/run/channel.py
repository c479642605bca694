"""Messages between the coordinator and a worker, over a socket: Python objects, and descriptors of open files beside them.

Nothing here waits for the other side: what cannot be sent yet is kept, so that two processes that send much to each other at the
same time cannot stop each other for ever. Messages are pickled: both sides are forked from one process, and the sockets have no
name that anyone else could open.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from typing_extensions import Buffer

_HEADER = struct.Struct("<QI")
"""Bytes of the message, and how many descriptors come with it."""
_MOST_READ = 1 << 16
"""A buffer of so many bytes is made for each call: 1 MiB costs more than what is done with a message."""
_MOST_DESCRIPTORS = 16


class Channel:
    """One end. Not for several threads."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._unsent: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self.is_over = False
        """Whether the other side is gone."""

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether something is kept that could not be sent yet."""
        return bool(self._unsent)

    def send(self, message: tuple[Any, ...], descriptors: Sequence[int] = ()) -> None:
        """Send a message. descriptors: of files; the other side gets its own, as many as here, at the end of the message."""
        data = packed(message)
        self._unsent.append((memoryview(_HEADER.pack(len(data), len(descriptors)) + data), [os.dup(fd) for fd in descriptors]))
        self.flush()

    def flush(self) -> None:
        """Send what can be sent now."""
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                n = socket.send_fds(self._socket, [data], descriptors) if descriptors else self._socket.send(data)
            except BlockingIOError:
                return
            except OSError:
                # The other side is gone; what it sent before can still be received.
                for _, kept in self._unsent:
                    for fd in kept:
                        os.close(fd)
                self._unsent.clear()
                return
            for fd in descriptors:
                os.close(fd)
            self._unsent[0] = (data[n:], ())
            if n == len(data):
                self._unsent.popleft()

    def receive(self) -> Iterator[tuple[Any, ...]]:
        """Yield the messages that are here now."""
        while not self.is_over:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, _MOST_READ, _MOST_DESCRIPTORS)
            except BlockingIOError:
                break
            except OSError:
                data, descriptors = b"", []
            self._descriptors.extend(descriptors)
            self._received += data
            self.is_over = not data
            if len(data) < _MOST_READ:
                break
        done = 0
        while len(self._received) - done >= _HEADER.size:
            n_bytes, n_descriptors = _HEADER.unpack_from(self._received, done)
            if len(self._received) - done < _HEADER.size + n_bytes:
                break
            begin = done + _HEADER.size
            with memoryview(self._received) as view, view[begin : begin + n_bytes] as part:
                message = unpacked(part)
            done = begin + n_bytes
            yield (*message, *(self._descriptors.popleft() for _ in range(n_descriptors)))
        del self._received[:done]

    def close(self) -> None:
        """Close the socket: the other side sees that this one is gone."""
        self._socket.close()


def packed(value: Any) -> bytes:
    """Return a value as bytes that another process of this run can unpack."""
    return pickle.dumps(value, 5)


def unpacked(data: Buffer) -> Any:
    """Return the value that a process of this run packed."""
    return pickle.loads(data)  # noqa: S301


def wait_for_any(channels: Iterable[Channel], timeout_s: float | None) -> set[int]:
    """Wait until one of them has something to receive, can send what it kept, or the time is over. Return which, by descriptor."""
    waiting = select.poll()
    for channel in channels:
        if not channel.is_over:
            waiting.register(channel.fileno(), select.POLLIN | (select.POLLOUT if channel.has_unsent else 0))
    ready = {fd for fd, _ in waiting.poll(None if timeout_s is None else timeout_s * 1000)}
    for channel in channels:
        channel.flush()
    return ready
