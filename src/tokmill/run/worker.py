"""A worker: one of the processes that do the work of a run, each from the bytes of the corpus to the bytes of the output.

It reads a range of the corpus, encodes it batch by batch, and tells the coordinator how many ids and documents each side got. The
ids stay here, in memory that all processes of the run see, until the coordinator says which file they go to, and where; then the
worker writes and hashes them itself (`run/attendant.py`).

A worker that has nothing to read, or no room for what it made, encodes batches that another one reads: of one large compressed
file, of a pipe, of the last ranges of a run. So it depends neither on formats nor on how a corpus is cut that all cores work.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections import deque
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec.structs import replace

from tokmill.core.documents import DocumentBuffer, text_bytes
from tokmill.core.local_struct import LocalStruct, MutableStruct
from tokmill.core.records import Counts, Cursor, EncodedBatch, Input, Sample, Skip, Tokens
from tokmill.core.system.budget import CacheReset, reference_bytes
from tokmill.core.system.memory import trim
from tokmill.core.system.process import failed_event
from tokmill.encode import most_ids
from tokmill.read import CorpusReader
from tokmill.run.attendant import Attendant
from tokmill.run.channel import packed, unpacked, wait_for_any
from tokmill.run.encode_batch import EncodeStage
from tokmill.run.memory_guard import limit_growth
from tokmill.run.shared_memory import Ring, Signal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokmill.core.config import Job
    from tokmill.core.events import Failed
    from tokmill.core.partition import Part
    from tokmill.core.protocols import Cutter, Encoder
    from tokmill.core.records import Batch
    from tokmill.run.audit import Auditor
    from tokmill.run.channel import Channel
    from tokmill.run.shared_memory import SharedMemory

_TOLD_BYTES = 16 << 20
"""Text whose results are told together: a message and what follows cost the coordinator some tenths of a millisecond."""
_LIMITED_BYTES = 2 << 20
"""The same where a result may be the last, and is then read again record by record."""
_TOLD_S = 0.2
_MOST_GIVEN_INPUTS = 16
"""A batch that is given away goes with the inputs of its range."""
_LOOK_S = 0.02
"""Between two looks at signals that no message comes with."""
_REPLACED = 3
"""Bytes of what replaces one that is no UTF-8."""
_SKIP_BYTES = 256
"""What a skipped record takes in the coordinator."""
_LIMIT_S = 0.1
"""Between two looks at the memory of this process."""


class Range(LocalStruct, frozen=True):
    """What a worker reads: some inputs, the first from a byte on and the last up to a byte, as of a part."""

    number: int
    first: int
    """Index in the corpus of the first input."""
    inputs: tuple[Input, ...]
    part: Part
    start: Cursor
    """Where to begin, in these inputs; `Cursor()`: where the part does."""
    is_first: bool
    """Whether the run begins here."""
    one_by_one: bool = False
    """Whether each record is a batch, and told by itself."""
    n_left: int | None = None
    """Ids that the output has room for where the range begins: as long as they surely do not fill it, records may be one batch.
    None: not known."""


class StoredRun(LocalStruct, frozen=True):
    """A run of tokens in an arena."""

    is_val: bool
    ids_at: int
    n_ids: int
    ends_at: int
    n_ends: int


class Result(MutableStruct):
    """What became of one batch, or of several that follow each other."""

    runs: list[StoredRun | Tokens] = msgspec.field(default_factory=list)
    stored: list[int] = msgspec.field(default_factory=list)
    """Pieces of the arena, to be given back."""
    counts: Counts = msgspec.field(default_factory=Counts)
    skips: list[Skip] = msgspec.field(default_factory=list)
    samples: list[Sample] = msgspec.field(default_factory=list)
    after: Cursor | None = None
    position_bytes: int = 0
    n_batches: int = 0

    def add(self, encoded: EncodedBatch, runs: Sequence[StoredRun | Tokens], stored: Sequence[int]) -> None:
        """Add what became of the next batch."""
        self.runs += runs
        self.stored += stored
        self.counts += encoded.counts
        self.skips += encoded.skips
        self.samples += encoded.samples
        self.after, self.position_bytes = encoded.after, encoded.position_bytes
        self.n_batches += 1


class _Reading(MutableStruct, eq=False):
    """A range that is being read."""

    range: Range
    reader: CorpusReader
    batches: Iterator[Batch]
    stage: EncodeStage
    n_read: int = 0
    result: Result = msgspec.field(default_factory=Result)
    """Not told yet."""
    first_index: int = 0
    """Of the first batch in it."""
    first_s: float = 0.0
    """When that was encoded."""
    is_piped: bool = False
    n_given: int = 0
    """Batches that others have."""
    n_ids: int = 0
    """Made of the batches that were encoded."""
    given_ids: dict[int, int] = msgspec.field(default_factory=dict)
    """How many ids each batch that others have becomes at most, by its index."""


class _Unstored(LocalStruct, frozen=True, eq=False):
    """A result for which the arena had no room."""

    encoded: EncodedBatch
    number: int
    index: int
    reading: _Reading | None
    """None: the batch was another worker's."""


class Worker:
    """The work of one process."""

    def __init__(
        self, number: int, job: Job, encoder: Encoder, auditor: Auditor, cutter: Cutter | None, unknown_id: int | None
    ) -> None:
        """number: from 0. job: without inputs; ranges come with theirs."""
        self._number = number
        self._job = job
        self._encoder = encoder
        self._auditor = auditor
        self.attendant = Attendant(auditor)
        self._cutter = cutter
        self._unknown_id = unknown_id
        self._ranges: deque[Range] = deque()
        self._reading: _Reading | None = None
        self._others: deque[tuple[int, int, int, int, int, bytes]] = deque()
        self._unstored: deque[_Unstored] = deque()
        # The first one compares samples with the reference.
        reference = 0 if number else reference_bytes(job.resources.terms)
        self._caches = CacheReset(encoder, job.resources.reset_above_bytes + reference)
        self._n_resets = 0
        self._helped, self._n_helpers = -1, 0
        """A range of which so many batches may be given away at a time."""
        self._has_token = False
        self._held_large = False
        """Whether a long document of this range was held."""
        self._waiting: int | None = None
        """A range of which a long document waits to be held."""
        self._next_look_s = 0.0

    def serve(self, channel: Channel, shared: SharedMemory) -> None:
        """Work until the coordinator closes the channel."""
        self._channel, self._shared = channel, shared
        begin, quarter = shared.begin(self._number), shared.arena_bytes // 4
        self._own = Ring(begin, 2 * quarter)
        self._of_others = Ring(begin + 2 * quarter, quarter)
        self._given = Ring(begin + 3 * quarter, quarter)
        while not channel.is_over:
            if self._held_large and self._reading is None:
                # What a long document took is for the next worker.
                self._held_large = False
                _trim()
            if not self._work() and not channel.is_over:
                # A pause and a stop come without a message.
                is_waiting = bool(self._unstored or self._ranges) or self._reading is not None
                wait_for_any([channel], _LOOK_S if is_waiting else None)

    def _work(self) -> bool:
        """Do one thing; return whether there was one."""
        if self._help():
            return True
        may_read = (self._reading or self._ranges) and not any(each.reading for each in self._unstored)
        if self._reading and self._reading.is_piped and self._channel.has_unsent:
            # A pipe that brings nothing for long must not keep back what it brought before.
            may_read = False
        return bool(may_read) and self._read_on()

    def _help(self) -> bool:
        """Take what the coordinator says, and do one thing that others wait for; return whether there was one."""
        for message in self._channel.receive():
            getattr(self, f"_take_{message[0]}")(*message[1:])
        if self._store_again():
            return True
        if self._others and not any(each.reading is None for each in self._unstored):
            self._encode_other(*self._others.popleft())
            return True
        return False

    # What the coordinator says.

    def _take_range(self, wanted: Range) -> None:
        self._ranges.append(wanted)

    def _take_drop(self, number: int) -> None:
        self._ranges = deque(each for each in self._ranges if each.number != number)
        self._unstored = deque(each for each in self._unstored if each.number != number)
        if self._waiting == number:
            # Its reader is in `hold_large`, which ends it.
            self._waiting = None
        elif self._reading and self._reading.range.number == number:
            self._give_back(self._reading.result.stored)
            self._close(self._reading)

    def _take_helpers(self, number: int, n_helpers: int) -> None:
        self._helped, self._n_helpers = number, n_helpers

    def _take_encode(self, number: int, index: int, owner: int, begin: int, n_bytes: int, batch: bytes) -> None:
        self._others.append((number, index, owner, begin, n_bytes, batch))

    def _take_freed(self, number: int, begin: int, index: int, n_ids: int) -> None:
        self._given.give_back(begin)
        if self._reading and self._reading.range.number == number:
            self._reading.n_given -= 1
            self._reading.n_ids += n_ids
            del self._reading.given_ids[index]

    # What is done.

    def _encode_other(self, number: int, index: int, owner: int, begin: int, n_bytes: int, payload: bytes) -> None:
        """Encode a batch that another worker read."""
        inputs, batch = _unpacked_batch(payload, self._shared.view[begin : begin + n_bytes])
        if owner != self._number:
            self._shared.forget(begin, n_bytes)
        try:
            encoded = self._encode(self._stage(replace(self._job.content, inputs=inputs)), batch)
        except BaseException as error:  # noqa: BLE001  panics of engines too
            self._channel.send(("result", number, index, failed_event(error)))
            return
        self._store(_Unstored(encoded, number, index, None))

    def _read_on(self) -> bool:
        """Read the next batch and encode it, or give it away; return whether that was possible."""
        is_stopped = bool(self._shared.signals[Signal.STOPPED])
        if self._shared.signals[Signal.PAUSED] and not is_stopped:
            return False
        reading = self._reading or self._begin(self._ranges.popleft())
        try:
            batch = None if is_stopped else self._next(reading)
        except BaseException as error:  # noqa: BLE001  panics of decoders too
            self._end(reading, reading.n_read, _failed(error, reading))
            return True
        if batch is None:
            self._end(reading, reading.n_read)
            return True
        index, is_first = reading.n_read, reading.range.is_first and reading.n_read == 0
        reading.n_read += 1
        n_helpers = self._n_helpers if self._helped == reading.range.number else 0
        if not is_first and reading.n_given < n_helpers and self._give(reading, batch, index):
            return True
        try:
            encoded = self._encode(reading.stage, replace(batch, index=0 if is_first else 1))
        except BaseException as error:  # noqa: BLE001  panics of engines too
            self._end(reading, index, _failed(error, reading))
            return True
        reading.n_ids += sum(len(run.ids) for run in encoded.runs)
        self._store(_Unstored(encoded, reading.range.number, index, reading))
        return True

    def _next(self, reading: _Reading) -> Batch | None:
        self._shared.tell_reading(self._number, is_reading=True)
        batch = next(reading.batches, None)
        self._shared.tell_reading(self._number, is_reading=False)
        # Between two blocks of a document that is divided, the rest of it is still held.
        if batch is None or (batch.after is not None and batch.after.document_offset is None):
            self._let_go()
        return batch

    def hold_large(self, number: int, *, alone: bool) -> None:
        """Wait until this worker may hold a long document: if alone when all wait for this range, else also when few others do."""
        self._waiting = number
        self._held_large = True
        if alone:
            self._let_go()
        while not self._has_token and self._shared.signals[Signal.FRONT] != number:
            if not self._help():
                self._has_token = not alone and self._shared.take_token()
                wait_for_any([self._channel], 0 if self._has_token else _LOOK_S)
            if self._waiting is None or self._channel.is_over:
                raise RuntimeError("nobody waits for this range any more")
        self._waiting = None

    def _give(self, reading: _Reading, batch: Batch, index: int) -> bool:
        """Let another worker encode a batch; return whether that is possible."""
        if len(reading.range.inputs) > _MOST_GIVEN_INPUTS:
            return False
        payload, parts = _packed_batch(reading.range.inputs, replace(batch, index=1))
        n_bytes = sum(map(len, parts))
        at = self._given.take(n_bytes)
        if at is None:
            return False
        end = at
        for part in parts:
            self._shared.view[end : end + len(part)] = part
            end += len(part)
        reading.n_given += 1
        reading.given_ids[index] = self._most_ids(text_bytes(batch.documents), len(batch.documents)) or 0
        self._channel.send(("batch", reading.range.number, index, at, n_bytes, payload))
        return True

    def _most_ids(self, n_bytes: int, n_documents: int) -> int | None:
        """Return how many ids so much text becomes at most, bytes that are no UTF-8 included; None: not known."""
        content = self._job.content
        most = most_ids(content.tokenizer)
        n_bytes *= _REPLACED if content.encoding_errors == "replace" else 1
        return None if most is None else most * (n_bytes + n_documents) + n_documents

    def _may_pack(self, n_bytes: int, n_documents: int) -> bool:
        """Return whether the output surely does not end with so much text, where it comes next."""
        reading = self._reading
        most = self._most_ids(n_bytes, n_documents)
        if reading is None or reading.range.n_left is None or most is None:
            return False
        return reading.n_ids + sum(reading.given_ids.values()) + most < reading.range.n_left

    def _begin(self, wanted: Range) -> _Reading:
        content = replace(self._job.content, inputs=wanted.inputs, part=wanted.part)
        reader = CorpusReader(
            content,
            self._job.resources,
            self._cutter,
            on_large=lambda alone: self.hold_large(wanted.number, alone=alone),
            one_by_one=wanted.one_by_one,
            may_pack=self._may_pack if wanted.one_by_one else None,
        )
        is_piped = any(source.size_bytes is None for source in wanted.inputs)
        self._reading = _Reading(wanted, reader, iter(reader.batches(wanted.start)), self._stage(content), is_piped=is_piped)
        return self._reading

    def _stage(self, content: Any) -> EncodeStage:
        return EncodeStage(content, self._encoder, self._auditor, self._unknown_id)

    def _encode(self, stage: EncodeStage, batch: Batch) -> EncodedBatch:
        encoded = stage.run(batch, is_val_full=bool(self._shared.signals[Signal.VAL_FULL]))
        n_asked = self._shared.signals[Signal.RESETS]
        dropped = self._caches.after_batch(text_bytes(batch.documents), is_asked=n_asked > self._n_resets)
        self._n_resets = n_asked
        if dropped:
            self._channel.send(("reset", *dropped))
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + _LIMIT_S
            limit_growth(self._job.resources.child_bytes)
        return encoded

    def _end(self, reading: _Reading, n_batches: int, failed: Failed | None = None) -> None:
        """Tell that nothing more is read of the range: it is over, the run is, or there is an error behind `n_batches`."""
        self._tell(reading)
        self._channel.send(("end", reading.range.number, n_batches, reading.reader.notes, failed))
        self._close(reading)

    def _let_go(self) -> None:
        """Let others hold a long document, if this worker could."""
        if self._has_token:
            self._has_token = False
            self._shared.return_token()

    def _close(self, reading: _Reading) -> None:
        self._reading = None
        self._let_go()
        close = getattr(reading.batches, "close", None)
        if close:
            close()

    # Results on their way to the coordinator.

    def _store(self, made: _Unstored) -> None:
        """Put what was encoded into the arena and tell of it, now or when there is room."""
        if self._unstored or not self._try_to_store(made):
            self._unstored.append(made)
            if made.reading:
                self._tell(made.reading)
                self._channel.send(("full", made.number))

    def _store_again(self) -> bool:
        """Store something for which there was no room; return whether there is room now."""
        while self.attendant.released:
            self._give_back([self.attendant.released.popleft()])
        for made in self._unstored:
            if self._try_to_store(made):
                self._unstored.remove(made)
                return True
        return False

    def _try_to_store(self, made: _Unstored) -> bool:
        ring = self._of_others if made.reading is None else self._own
        runs = made.encoded.runs
        sizes = [(_aligned(run.ids.nbytes), _aligned(run.ends.nbytes)) for run in runs]
        # What goes with the message is held by the coordinator as long as this piece is.
        n_bytes = sum(map(sum, sizes)) + _SKIP_BYTES * len(made.encoded.skips)
        if not ring.has_room_for(n_bytes):
            if self._shared.signals[Signal.FRONT] != made.number:
                return False
            # It goes with the message; the coordinator takes it at once, so that there is never more than one.
            self._tell_of(made, list(runs), [])
            return True
        if not n_bytes:
            self._tell_of(made, [], [])
            return True
        at = ring.take(n_bytes)
        if at is None:
            return False
        stored: list[StoredRun | Tokens] = []
        begin = at
        for run, (ids_bytes, ends_bytes) in zip(runs, sizes, strict=True):
            self._copy(run.ids, begin)
            self._copy(run.ends, begin + ids_bytes)
            stored.append(StoredRun(run.is_val, begin, len(run.ids), begin + ids_bytes, len(run.ends)))
            begin += ids_bytes + ends_bytes
        self._tell_of(made, stored, [at])
        return True

    def _copy(self, array: Any, begin: int) -> None:
        np.frombuffer(self._shared.view[begin : begin + array.nbytes], array.dtype)[:] = array

    def _tell_of(self, made: _Unstored, runs: Sequence[StoredRun | Tokens], stored: Sequence[int]) -> None:
        """Tell of a result that is stored, or whose ids go with the message; small ones that follow each other together."""
        reading = made.reading
        if reading is None:
            result = Result()
            result.add(made.encoded, runs, stored)
            self._channel.send(("result", made.number, made.index, result))
            return
        if reading.result.n_batches and made.index != reading.first_index + reading.result.n_batches:
            self._tell(reading)
        if not reading.result.n_batches:
            reading.first_index, reading.first_s = made.index, time.monotonic()
        reading.result.add(made.encoded, runs, stored)
        resources = self._job.resources
        # What is sent as it is made waits for room, result by result.
        most_bytes = 1 if resources.stage_bytes or reading.range.one_by_one else min(_TOLD_BYTES, resources.segment_bytes)
        if self._job.content.max_tokens:
            most_bytes = min(most_bytes, _LIMITED_BYTES)
        is_due = time.monotonic() - reading.first_s > _TOLD_S or reading.result.counts.bytes_in >= most_bytes
        if is_due or reading.is_piped or bool(runs) > bool(stored):
            self._tell(reading)

    def _tell(self, reading: _Reading) -> None:
        """Send the results that are gathered."""
        if reading.result.n_batches:
            self._channel.send(("result", reading.range.number, reading.first_index, reading.result))
            reading.result = Result()

    def _give_back(self, stored: Sequence[int]) -> None:
        for at in stored:
            (self._own if self._own.holds(at) else self._of_others).give_back(at)


def _trim() -> None:
    """Give back memory that allocators keep free."""
    trim()
    # Has a pool of its own, if anything was read with it.
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()


def _failed(error: BaseException, reading: _Reading) -> Failed:
    return failed_event(reading.reader.out_of_memory() if isinstance(error, MemoryError) else error)


def _aligned(n_bytes: int) -> int:
    """Return so many bytes, or some more: where they end, any array may begin."""
    return -(-n_bytes // 8) * 8


def _packed_batch(inputs: tuple[Input, ...], batch: Batch) -> tuple[bytes, list[memoryview]]:
    """Return a batch for another process: what is pickled, and what its texts and `raw` are in memory."""
    documents, raw = batch.documents, batch.raw
    layout: Any
    if isinstance(documents, DocumentBuffer):
        texts, layout = memoryview(documents.data), (documents.starts, documents.ends, documents.separator)
    else:
        texts, layout = memoryview(b"".join(documents)), array("q", map(len, documents))
    is_same = raw is not None and raw.obj is texts.obj and len(raw) == len(texts)
    parts = [texts] if raw is None or is_same else [texts, raw.cast("B")]
    payload = packed((inputs, replace(batch, documents=(), raw=None), len(texts), layout, raw is not None))
    return payload, parts


def _unpacked_batch(payload: bytes, data: memoryview) -> tuple[tuple[Input, ...], Batch]:
    """Return what `_packed_batch` took. data: the parts, one after the other."""
    inputs, batch, n_text, layout, has_raw = unpacked(payload)
    texts = bytes(data[:n_text])
    documents: Sequence[bytes]
    if isinstance(layout, tuple):
        starts, ends, separator = layout
        documents = DocumentBuffer(texts, starts, ends, separator)
    else:
        edges = [0, *accumulate(layout)]
        documents = [texts[a:b] for a, b in pairwise(edges)]
    raw = None if not has_raw else memoryview(texts if len(data) == n_text else bytes(data[n_text:]))
    return inputs, replace(batch, documents=documents, raw=raw)
