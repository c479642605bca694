"""The workers of a run, as the coordinator sees them: it starts them, hands out ranges, and takes their results in order.

No text and no ids pass through here. What the coordinator does for some megabytes of text is to take one message, to let the
writer of the format say where the ids go, and to send one message back.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import traceback
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tokmill.core.events import AnyEvent, CachesReset, Failed
from tokmill.core.local_struct import MutableStruct
from tokmill.core.partition import Numbering
from tokmill.core.records import STDIN, Cursor, EncodedBatch, Tokens, is_packed
from tokmill.core.system.durable import storage_errors
from tokmill.core.system.process import end_with_parent, error_of, name_process
from tokmill.core.text import counted
from tokmill.read import InputNotes
from tokmill.run.attendant import write_piece
from tokmill.run.channel import Channel, wait_for_any
from tokmill.run.ranges import Ranges
from tokmill.run.shared_memory import SharedMemory, Signal
from tokmill.run.worker import Range, Result, StoredRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokmill.core.config import Content
    from tokmill.core.records import Input
    from tokmill.core.system.durable import DirectoryLock
    from tokmill.output import GrowingFile
    from tokmill.run.worker import Worker

_TICK_S = 0.2
_AHEAD = 4
"""Ranges for each worker that may be handed out beyond the first one that is not over."""
_OTHERS_AHEAD = 2
"""Batches that may be given away for each worker that has nothing to read."""
_PATIENCE_S = 0.3
"""A worker that waits so long for its input when the run is to end is not waited for."""


class LostWorkerError(Exception):
    """A worker ended though nobody wanted it to."""

    def __init__(self, status: int, what: str) -> None:
        """status: as `os.waitpid` gives it. what: it was doing."""
        super().__init__(what)
        self.status = status


class _Piece(MutableStruct, eq=False):
    """Implements `output.WrittenPiece`."""

    key: int
    offset: int
    n_bytes: int
    stretches: list[tuple[int, int]]
    digest: bytes = b""


class _Process(MutableStruct, eq=False):
    """A worker."""

    pid: int
    channel: Channel
    attendant: Channel
    ranges: deque[_Reading] = msgspec.field(default_factory=deque)
    n_others: int = 0
    """Batches of others that it was given and has not told of."""
    is_full: bool = False
    """It has no room for what it reads, so it may work for others."""
    n_unwritten: deque[list[_Piece]] = msgspec.field(default_factory=deque)
    """What it was told to write and has not."""
    files: set[int] = msgspec.field(default_factory=set)
    """Of which it has descriptors."""
    lost: LostWorkerError | None = None
    """Why it is gone, if it is."""


class _Told(MutableStruct, eq=False):
    """A result, and whose arena it lies in."""

    process: int
    result: Result | Failed
    n_unaudited: int = 0


class _Reading(MutableStruct, eq=False):
    """A range that a worker reads, or that was read and is not yet written."""

    range: Range
    process: int
    told: dict[int, _Told] = msgspec.field(default_factory=dict)
    next_batch: int = 0
    n_batches: int | None = None
    """None: there may be more."""
    failed: Failed | None = None
    """What comes behind them."""
    n_helpers: int = 0
    numbering: Numbering | None = None
    notes: InputNotes = msgspec.field(default_factory=InputNotes)


class Pool:
    """Implements `output.Elsewhere`. Close it."""

    LEAST_WRITTEN_BYTES = 256 << 10
    """Ids of a result that its worker writes. Of each piece that a worker writes, the journal and the manifest keep the length: a
    source that gives little a second would make a million in a segment. So the coordinator writes less by itself."""

    def __init__(self, n_workers: int, arena_bytes: int, n_long: int, make: Callable[[int], Worker]) -> None:
        """Start the workers. This process must have one thread only: the workers are forked from it.

        n_long: long documents that may be held at the same time. make: called in a worker, with its number.
        """
        self._shared = SharedMemory(n_workers, arena_bytes, n_long)
        self._address = np.frombuffer(self._shared.mapping, np.uint8).ctypes.data
        self.on_event: Callable[[AnyEvent], None] = lambda _event: None
        """Told of what workers do."""
        self._is_closed = False
        self._lost: list[LostWorkerError] = []
        """Of each worker that died. From the first on, only what lies before its range is still done."""
        self.is_at_end = False
        """Whether `results` ended because the corpus did."""
        self._processes: list[_Process] = []
        self._began_s = time.monotonic()
        for number in range(n_workers):
            ours, its = zip(socket.socketpair(), socket.socketpair(), strict=True)
            try:
                pid = self._start(make, number, its, ours)
            except BaseException as error:
                for end in ours:
                    end.close()
                # A few are enough, if the system allows no more.
                if self._processes and isinstance(error, OSError):
                    break
                self.close()
                raise
            self._processes.append(_Process(pid, Channel(ours[0]), Channel(ours[1])))
        self._readings: deque[_Reading] = deque()
        """In the order of the corpus, the first not yet written whole."""
        self._by_number: dict[int, _Reading] = {}
        self._next_number = 0
        self._next_range: Range | None = None
        """That was not yet given to a worker."""
        self._given: dict[tuple[int, int], tuple[int, int, int]] = {}
        """By range and batch: whose batch another worker encodes, where it lies, and which worker that is."""
        self._samples: dict[int, _Told] = {}
        self._n_samples = 0
        self._keys: dict[GrowingFile, int] = {}
        self._n_keys = 0
        self._closed: deque[GrowingFile] = deque()
        """Files that are closed here, perhaps in another thread."""
        self._owner = 0
        """The worker that has the current result."""
        self._is_of_its_range = True
        """Whether it read that itself."""
        self._is_small = False
        self._pieces: list[_Piece] = []
        """Of the result that is being written, not yet sent."""
        self._unwritten: tuple[int, int] | None = None
        """File and error of a write that failed."""
        self.notes = InputNotes()
        """Of all inputs that were read."""

    def _start(
        self, make: Callable[[int], Worker], number: int, its: tuple[socket.socket, ...], ours: tuple[socket.socket, ...]
    ) -> int:
        """Start a worker and return its process. its, ours: the ends of its channels."""
        coordinator = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            for end in its:
                end.close()
            raise
        if pid:
            for end in its:
                end.close()
            return pid
        try:
            end_with_parent(coordinator)
            name_process(f"tokmill-work-{number}")
            for signum in (signal.SIGINT, signal.SIGTERM):
                # Both may go to all processes of a terminal or a job; the coordinator decides what they mean.
                signal.signal(signum, signal.SIG_IGN)
            # A channel must end with the coordinator.
            for end in ours:
                end.close()
            for process in self._processes:
                process.channel.close()
                process.attendant.close()
            worker, (channel, attendant) = make(number), map(Channel, its)
            thread = threading.Thread(target=_last, args=(worker.attendant.serve, attendant, self._shared), daemon=True)
            thread.start()
            _last(worker.serve, channel, self._shared)
        except BaseException as error:  # noqa: BLE001  it is the end
            traceback.print_exception(error)
        finally:
            os._exit(1)

    def share_lock(self, lock: DirectoryLock) -> None:
        """Let every worker hold the lock, too: nobody else has it before the last worker is gone and can write nothing more."""
        if lock.fd is not None:
            for process in self._processes:
                process.attendant.send(("lock",), [lock.fd])

    # For the guard; called in its thread.

    def pids(self) -> list[int]:
        """Return the processes."""
        return [process.pid for process in self._processes if process.pid]

    def pause(self, *, paused: bool) -> None:
        """Let workers read nothing more, or go on."""
        self._shared.signals[Signal.PAUSED] = paused

    def reset_caches(self) -> None:
        """Let the workers drop their engines' caches."""
        self._shared.signals[Signal.RESETS] += 1

    def end_validation(self) -> None:
        """Let workers take every document for training; what they made of those that follow may say otherwise still."""
        self._shared.signals[Signal.VAL_FULL] = 1

    def stop(self) -> None:
        """Let workers read nothing more; what they have read before is still written, as far as nothing is missing before it."""
        self._shared.signals[Signal.STOPPED] = 1

    @property
    def _is_stopped(self) -> bool:
        return bool(self._shared.signals[Signal.STOPPED])

    # Results.

    def results(
        self,
        content: Content,
        start: Cursor,
        range_bytes: int,
        on_tick: Callable[[], None],
        *,
        one_by_one: bool = False,
        n_left: int | None = None,
    ) -> Iterator[EncodedBatch]:
        """Yield what became of the corpus from `start` on, in order; the ids of each are valid until the next.

        Called again, workers leave what they were to read before.

        range_bytes: of what a worker reads at a time, about. on_tick: called a few times a second. one_by_one: of each record by
        itself, or of several while the output surely does not end with them. n_left: as of Range, at `start`. Raises the first
        error in the order of the corpus: LostWorkerError where a worker died, when all before that place was yielded.
        """
        self._drop_all()
        ranges = Ranges(content, start, range_bytes, self._next_number, one_by_one=one_by_one, n_left=n_left)
        self._ranges, self._todo, self._dtype = ranges, iter(ranges), np.dtype(content.dtype)
        reached, stopped_s = start, 0.0
        next_tick = time.monotonic() + _TICK_S
        while True:
            self._hand_out()
            if not self._readings:
                self._end()
                return
            front = self._readings[0]
            self._shared.signals[Signal.FRONT] = front.range.number
            told = front.told.get(front.next_batch)
            result = told.result if told is not None and not told.n_unaudited else None
            if isinstance(result, Failed):
                front.failed, front.n_batches = result, front.next_batch
            elif told is not None and result is not None:
                del front.told[front.next_batch]
                placed = self._placed(front, result, reached)
                reached = placed.after or reached
                self._owner, self._is_of_its_range = told.process, told.process == front.process
                self._is_small = sum(run.ids.nbytes for run in placed.runs) < self.LEAST_WRITTEN_BYTES
                yield placed
                self._send_pieces(result.stored)
                front.next_batch += result.n_batches
                continue
            if front.n_batches == front.next_batch:
                if front.failed is not None:
                    if not _numbering(front, reached).n_records:
                        raise error_of(front.failed)
                    # Its records were counted from where the range begins: the error is made again, with the right numbers.
                    self._drop_all()
                    ranges = Ranges(content, reached, ranges.wanted_bytes, self._next_number, one_by_one=one_by_one)
                    self._ranges, self._todo = ranges, iter(ranges)
                    continue
                self.notes.add(front.notes, front.range.first, _numbering(front, reached).n_records)
                self._readings.popleft()
                del self._by_number[front.range.number]
                if self._is_stopped:
                    return
                continue
            self._check_lost(front)
            if self._is_stopped:
                stopped_s = stopped_s or time.monotonic()
                waits = self._shared.is_reading(front.process) and time.monotonic() - stopped_s > _PATIENCE_S
                if waits and not front.told:
                    return
            self._pump(0.05 if self._is_stopped else _TICK_S)
            if time.monotonic() >= next_tick:
                on_tick()
                next_tick = time.monotonic() + _TICK_S

    def _end(self) -> None:
        """Note whether nothing is left. Raise LostWorkerError if something is, because a worker died."""
        self.is_at_end = not (self._is_stopped or self._lost) or (self._next_range or next(self._todo, None)) is None
        if self._lost and not self.is_at_end:
            raise self._lost[0]

    def _check_lost(self, front: _Reading) -> None:
        """Raise LostWorkerError if the next result of a range will never come, because a worker died that was to make it."""
        _, _, number = self._given.get((front.range.number, front.next_batch), (0, 0, front.process))
        # What is told and not compared waits for the first worker.
        lost = self._processes[0 if front.next_batch in front.told else number].lost
        if lost is not None:
            raise lost

    def _placed(self, reading: _Reading, result: Result, reached: Cursor) -> EncodedBatch:
        """Return a result with its ids, and with its places as places of the corpus."""
        numbering = _numbering(reading, reached)
        return EncodedBatch(
            runs=[self._tokens(run) for run in result.runs],
            counts=result.counts,
            skips=[numbering.skip(skip) for skip in result.skips],
            after=None if result.after is None else numbering.cursor(result.after),
            position_bytes=self._ranges.position(reading.range, result.position_bytes),
        )

    def _tokens(self, run: StoredRun | Tokens) -> Tokens:
        if isinstance(run, Tokens):
            return run
        ids = np.frombuffer(self._shared.view, self._dtype, run.n_ids, run.ids_at)
        return Tokens(run.is_val, ids, np.frombuffer(self._shared.view, np.int64, run.n_ends, run.ends_at))

    # What workers are told.

    def _hand_out(self) -> None:
        """Give ranges to workers that have none, or soon have none, and let others help the first that reads."""
        if not self._is_stopped and not self._lost:
            for n_ranges in (1, 2):
                for number, process in enumerate(self._processes):
                    has_room = len(process.ranges) < n_ranges and not process.is_full
                    if has_room and len(self._readings) < _AHEAD * len(self._processes) and not self._give_range(number):
                        break
        reading = next((each for each in self._readings if each.n_batches is None), None)
        if reading is None:
            return
        n_helpers = _OTHERS_AHEAD * len(self._idle(reading.process))
        if n_helpers != reading.n_helpers:
            reading.n_helpers = n_helpers
            self._processes[reading.process].channel.send(("helpers", reading.range.number, n_helpers))

    def _idle(self, owner: int) -> list[int]:
        """Return the workers that can encode batches of `owner`."""
        everyone = enumerate(self._processes)
        return [n for n, process in everyone if n != owner and not process.lost and (not process.ranges or process.is_full)]

    def _give_range(self, number: int) -> bool:
        """Give the next range to a worker; return whether there is one."""
        wanted, self._next_range = self._next_range or next(self._todo, None), None
        if wanted is None:
            return False
        if self._readings and any(map(_is_read_once, wanted.inputs)):
            # What is taken out of a pipe cannot be read again, should a range before it have to be.
            self._next_range = wanted
            return False
        if not self._next_number and any(source.size_bytes != 0 for source in wanted.inputs):
            self._processes[0].attendant.send(("prepare",))
        self._next_number = wanted.number + 1
        reading = _Reading(wanted, number)
        self._readings.append(reading)
        self._by_number[wanted.number] = reading
        self._processes[number].ranges.append(reading)
        self._processes[number].channel.send(("range", wanted))
        return True

    def _drop_all(self) -> None:
        """Let workers forget every range."""
        for reading in self._readings:
            self._processes[reading.process].channel.send(("drop", reading.range.number))
            for told in reading.told.values():
                self._give_back(told)
        self._readings.clear()
        self._by_number.clear()
        self._samples.clear()
        self._next_range = None
        for process in self._processes:
            process.ranges.clear()
            process.is_full = False

    def _give_back(self, told: _Told) -> None:
        if isinstance(told.result, Result):
            self._send_write(told.process, [], told.result.stored)

    def _send_pieces(self, stored: list[int]) -> None:
        """Let the owner of the current result write what was said to be written, and take back its memory."""
        pieces, self._pieces = self._pieces, []
        if self._is_of_its_range:
            # What it made of others' batches lies elsewhere.
            self._processes[self._owner].is_full = False
        self._send_write(self._owner, pieces, stored)

    def _send_write(self, number: int, pieces: list[_Piece], stored: list[int]) -> None:
        process = self._processes[number]
        if (pieces or stored) and not process.lost:
            process.n_unwritten.append(pieces)
            process.attendant.send(("write", [(piece.key, piece.offset, piece.stretches) for piece in pieces], stored))

    # As `output.Elsewhere`.

    def takes(self, view: memoryview) -> bool:
        """See Elsewhere."""
        is_shared = len(view) > 0 and 0 <= _address(view) - self._address < len(self._shared.view)
        return is_shared and not self._is_small and not self._processes[self._owner].lost

    def write(self, file: GrowingFile, view: memoryview, offset: int) -> _Piece:
        """See Elsewhere."""
        process = self._processes[self._owner]
        key = self._keys.setdefault(file, self._n_keys)
        self._n_keys = max(self._n_keys, key + 1)
        if key not in process.files:
            process.files.add(key)
            process.attendant.send(("file", key), [file.fd])
        begin, n_bytes = _address(view) - self._address, len(view)
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.key == key and last.offset + last.n_bytes == offset:
            last.stretches.append((begin, n_bytes))
            last.n_bytes += n_bytes
            return last
        self._pieces.append(_Piece(key, offset, n_bytes, [(begin, n_bytes)]))
        return self._pieces[-1]

    def wait(self) -> None:
        """See Elsewhere."""
        if self._pieces:
            self._send_pieces([])
        self._check_written()
        while any(process.n_unwritten for process in self._processes):
            self._pump(None)

    def _check_written(self) -> None:
        """Raise StorageError, DiskFullError, now and ever after, if something could not be written."""
        if self._unwritten is not None:
            key, number = self._unwritten
            path = next(file.path for file, its_key in self._keys.items() if its_key == key)
            with storage_errors(path):
                raise OSError(number, os.strerror(number))

    def close_file(self, file: GrowingFile) -> None:
        """See Elsewhere."""
        self._closed.append(file)

    # What workers say.

    def _pump(self, timeout_s: float | None) -> None:
        """Take what workers say; wait for it no longer than that. Raises StorageError, DiskFullError."""
        while self._closed:
            key = self._keys.pop(self._closed.popleft(), None)
            for process in self._processes:
                if key in process.files:
                    process.files.discard(key)
                    process.attendant.send(("close", key))
        alive = [(number, process) for number, process in enumerate(self._processes) if not process.lost]
        ready = wait_for_any([end for _, process in alive for end in (process.attendant, process.channel)], timeout_s)
        for number, process in alive:
            if ready.isdisjoint((process.attendant.fileno(), process.channel.fileno())):
                continue
            self._receive(number)
            if process.attendant.is_over or process.channel.is_over:
                self._lose(number)
        self._check_written()

    def _receive(self, number: int) -> None:
        for end in (self._processes[number].attendant, self._processes[number].channel):
            for message in end.receive():
                getattr(self, f"_take_{message[0]}")(number, *message[1:])

    def _take_result(self, number: int, of_range: int, index: int, result: Result | Failed) -> None:
        told = _Told(number, result)
        given = self._given.pop((of_range, index), None)
        if given is not None:
            owner, begin, _ = given
            self._processes[number].n_others -= 1
            n_ids = result.counts.tokens_train + result.counts.tokens_val if isinstance(result, Result) else 0
            self._processes[owner].channel.send(("freed", of_range, begin, index, n_ids))
        reading = self._by_number.get(of_range)
        if reading is None:
            self._give_back(told)
            return
        reading.told[index] = told
        if isinstance(result, Result) and result.samples:
            token, self._n_samples = self._n_samples, self._n_samples + 1
            told.n_unaudited = 1
            self._samples[token] = told
            self._processes[0].attendant.send(("samples", token, result.samples))

    def _take_audited(self, _number: int, token: int, failed: Failed | None) -> None:
        told = self._samples.pop(token, None)
        if told is None:
            # It was dropped.
            return
        told.n_unaudited = 0
        if failed is not None:
            self._give_back(told)
            told.result = failed

    def _take_batch(self, owner: int, of_range: int, index: int, begin: int, n_bytes: int, payload: bytes) -> None:
        if of_range not in self._by_number:
            self._processes[owner].channel.send(("freed", of_range, begin, index, 0))
            return
        number = min(self._idle(owner) or [owner], key=lambda n: self._processes[n].n_others)
        self._given[of_range, index] = owner, begin, number
        self._processes[number].n_others += 1
        self._processes[number].channel.send(("encode", of_range, index, owner, begin, n_bytes, payload))

    def _take_end(self, number: int, of_range: int, n_batches: int, notes: InputNotes, failed: Failed | None) -> None:
        reading = self._by_number.get(of_range)
        if reading is None:
            return
        reading.n_batches, reading.failed = n_batches, failed
        process = self._processes[number]
        process.ranges.remove(reading)
        process.is_full = False
        reading.notes = notes

    def _take_full(self, number: int, of_range: int) -> None:
        if of_range in self._by_number:
            self._processes[number].is_full = True

    def _take_written(self, number: int, digests: list[bytes]) -> None:
        for piece, digest in zip(self._processes[number].n_unwritten.popleft(), digests, strict=True):
            piece.digest = digest

    def _take_unwritten(self, number: int, key: int, error: int) -> None:
        self._processes[number].n_unwritten.popleft()
        self._unwritten = self._unwritten or (key, error)

    def _take_reset(self, _number: int, before: int, after: int) -> None:
        elapsed_s = time.monotonic() - self._began_s
        self.on_event(CachesReset(elapsed_s=elapsed_s, rss_before_bytes=before, rss_after_bytes=after))

    def _lose(self, number: int) -> None:
        """Take what a worker said before it died, and write what it was told to write: that lies in memory that all see."""
        process = self._processes[number]
        status = self._wait_for(process)
        while not (process.attendant.is_over and process.channel.is_over):
            self._receive(number)
        of_others = (self._by_number.get(of_range) for (of_range, _), given in self._given.items() if given[2] == number)
        reading = next((each for each in (*of_others, *process.ranges) if each is not None), None)
        what = f"while it worked on {_place(reading.range)}" if reading else "while it had nothing to do"
        process.lost = LostWorkerError(status, what)
        self._lost.append(process.lost)
        files = {key: file for file, key in self._keys.items()}
        for piece in (piece for pieces in process.n_unwritten for piece in pieces):
            file = files[piece.key]
            with storage_errors(file.path):
                piece.digest = write_piece(self._shared.view, file.fd, piece.offset, piece.stretches)
        process.n_unwritten.clear()

    def _wait_for(self, process: _Process) -> int:
        """Wait for the end of a process; return its status."""
        _, status = os.waitpid(process.pid, 0)
        process.pid = 0
        return status

    def close(self) -> None:
        """End the workers; can be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        for process in self._processes:
            process.channel.close()
            process.attendant.close()
            if process.pid:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                self._wait_for(process)
        self._shared.close()


def _last(serve: Callable[[Channel, SharedMemory], None], channel: Channel, shared: SharedMemory) -> None:
    """Serve a channel, and end this process with it, whatever other threads do or wait for: the coordinator is gone."""
    try:
        serve(channel, shared)
        os._exit(0)
    except BaseException as error:  # noqa: BLE001  it is the end
        import traceback

        traceback.print_exception(error)
        os._exit(1)


def _is_read_once(source: Input) -> bool:
    return source.size_bytes is None and not source.is_remote


def _numbering(reading: _Reading, reached: Cursor) -> Numbering:
    """Return how a range is numbered in the corpus. reached: where the range begins, or in it."""
    if reading.numbering is None:
        reading.numbering = Numbering.of(reading.range.part, reading.range.inputs, reading.range.first, reached)
    return reading.numbering


def _place(wanted: Range) -> str:
    """Return what a range is of the corpus, for a message."""
    first, n_more = wanted.inputs[0], len(wanted.inputs) - 1
    if n_more:
        return f"{first.path} and the {counted(n_more, 'input')} after it"
    if first.path == STDIN:
        return "standard input"
    if first.size_bytes is None or is_packed(first):
        return first.path
    return f"{first.path}, bytes {wanted.part.begin or wanted.start.offset:,} to {wanted.part.end or first.size_bytes:,}"


def _address(view: memoryview) -> int:
    address: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return address
