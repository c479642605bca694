"""What a worker does beside its reading and encoding, in a thread: it writes results to the files of the output, and compares
samples with the reference.

The coordinator cannot commit before results are written, and does not let them be written before their samples are compared. Both
must go on while the worker waits for its input or encodes something long.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import xxhash

from tokmill.core.system import durable
from tokmill.core.system.process import failed_event
from tokmill.run.channel import wait_for_any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokmill.core.events import Failed
    from tokmill.core.records import Sample
    from tokmill.run.audit import Auditor
    from tokmill.run.channel import Channel
    from tokmill.run.shared_memory import SharedMemory

_LOCK = -1
"""In place of a file's number."""
Piece: TypeAlias = tuple[int, int, list[tuple[int, int]]]
"""What is to be written: the file's number, the offset in it, and stretches of the arena (begin, bytes), one after the other."""


def write_piece(view: memoryview, fd: int, offset: int, stretches: Iterable[tuple[int, int]]) -> bytes:
    """Write stretches of memory (begin, bytes) one after the other at `offset` of a file; return their digest. Raises OSError."""
    digest = xxhash.xxh3_128()
    for begin, n_bytes in stretches:
        data = view[begin : begin + n_bytes]
        digest.update(data)
        durable.write_all_at(fd, data, offset)
        offset += n_bytes
    return digest.digest()


class Attendant:
    """The work of the thread."""

    def __init__(self, auditor: Auditor) -> None:
        self._auditor = auditor
        self._files: dict[int, int] = {}
        self.released: deque[int] = deque()
        """Pieces of the arena that are no longer needed."""

    def serve(self, channel: Channel, shared: SharedMemory) -> None:
        """Work until the coordinator closes the channel."""
        self._channel, self._shared = channel, shared
        while not channel.is_over:
            wait_for_any([channel], None)
            for message in channel.receive():
                getattr(self, f"_take_{message[0]}")(*message[1:])
        for fd in self._files.values():
            os.close(fd)

    def _take_lock(self, fd: int) -> None:
        """Hold the lock of the output's directory until this process ends."""
        self._files[_LOCK] = fd

    def _take_file(self, key: int, fd: int) -> None:
        self._files[key] = fd

    def _take_close(self, key: int) -> None:
        os.close(self._files.pop(key))

    def _take_write(self, pieces: list[Piece], stored: list[int]) -> None:
        """Write pieces of files and tell their digests. stored: what is not needed afterwards."""
        digests = []
        for key, place, stretches in pieces:
            try:
                digests.append(write_piece(self._shared.view, self._files[key], place, stretches))
            except OSError as error:
                self._channel.send(("unwritten", key, error.errno))
                return
        self.released.extend(stored)
        self._channel.send(("written", digests))

    def _take_prepare(self) -> None:
        """Load the reference while the first batch is encoded."""
        # What it raises is raised again, and told of, when samples come.
        with suppress(BaseException):
            self._auditor.prepare()

    def _take_samples(self, token: int, samples: list[Sample]) -> None:
        """Compare samples with the reference."""
        failed: Failed | None = None
        try:
            for sample in samples:
                self._auditor.check(sample)
        except BaseException as error:  # noqa: BLE001  panics of engines too
            failed = failed_event(error)
        self._channel.send(("audited", token, failed))
