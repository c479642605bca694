"""How the memory budget is divided, and when an encoder thread drops its engine's caches.

The engine's caches grow with the number of distinct words, without a bound of their own. So they get what the rest of the budget
leaves, and when the worker has used that up, the encoder thread with the oldest caches drops them.
"""

from __future__ import annotations

import bisect
import time
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import MIB, BudgetTerms
from tokmill.core.errors import MemoryBudgetError
from tokmill.core.records import DIVIDE_ABOVE_BYTES, UNCUT_COST
from tokmill.core.system import memory
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.core.protocols import Encoder

REMOTE_BLOCK_BYTES = 8 << 20
"""One request to a remote object: at 30 ms for an answer, a few of them side by side fill 1 GB/s."""
REMOTE_BLOCKS_HELD = 5
"""Blocks of one object, at most: the one being read, and those fetched ahead of it."""
_PARENT_BYTES = 24 * MIB
"""Python, click, msgspec, psutil (20 MiB measured, each page counted once, as everywhere here)."""
COORDINATOR_BYTES = 70 * MIB
"""Python, numpy and libraries, shared with workers or not (62 MiB measured), and room."""
_WORKER_BYTES = 16 * MIB
"""What a worker has of that for itself after it has worked (13 MiB measured)."""
_TABLES_BYTES = 22 * MIB
"""pyarrow, shared likewise, where inputs are Parquet or Arrow."""
_INDEX_BYTES = 4 * MIB
"""For each worker, the index of a table that is open, whatever the budget."""
_LONG_DOCUMENTS = 2
"""Long documents that are held at the same time (`Worker.hold_large`), where there is memory for it."""
HELD_BATCHES = 4
"""A document of so many batches that does not fit one is not yet a long one."""
ARENA_BATCHES = 16
"""Size of a worker's arena in batches: half is for results of its ranges, a quarter for those of others, a quarter for batches that
it gives away.
"""
_REFERENCE_BYTES = 18 * MIB
"""tiktoken, without its ranks."""
_RANK_BYTES = 440
"""For each id: what tiktoken takes of its ranks (50,000 are 40 MiB in all, 200,000 are 100)."""
_ID_BYTES = 600
"""For each id: what the engine's vocabulary takes (50,000 are 28 MiB)."""
_STORE_BYTES = 56 * MIB
"""For each process: what reading from a store takes of Python (botocore 37 MiB, aiohttp 20, measured while it reads), and room."""
_SENT_BYTES = 112 * MIB
"""Parts of files on their way to a store, twice (`store/transfer.py`), and blocks of files being checked."""
_INPUT_BYTES = 2400
"""For each input: 1,350 in the parent (records, their JSON), 900 in the worker (250,000 small files)."""
_CACHE_FLOOR_BYTES = 50 * MIB
"""For each worker: what the cache takes at most between two resets (4 MiB of unique words: 50 MiB measured)."""
_COST_PER_TEXT_BYTE = 9
"""`Batch.cost_bytes` of a batch of documents of 128 bytes, per byte of text."""
_PIECE_COST = UNCUT_COST + 2
"""For each byte of one uncut piece: the engine's memory, and the text itself twice."""
RECORD_SHARE = 10
"""A record of up to a tenth of the budget is read: its line, its text and a copy are held at once, in what pieces may take."""
_GROWTH = 2.45
"""A full cache doubles its table inside one batch: from 361 MiB to 875 while both are held (measured on text of unique words; the
worst case). It must be dropped before that."""
_LOOK_S = 0.01
"""Between two looks at resident memory, which take 40 microseconds."""
_TRIM_S = 0.5
"""Between two trims, each of which costs some milliseconds and the page faults that follow."""
_BATCH_SIZES = (2 * MIB, MIB, MIB // 2, MIB // 4)


class BudgetShares(msgspec.Struct, frozen=True, kw_only=True):
    """How a budget is divided, term by term; the terms add up to at most the budget."""

    budget_bytes: int
    terms: BudgetTerms
    parent_bytes: int
    coordinator_bytes: int
    reference_bytes: int
    """In one of the workers."""
    inputs_bytes: int
    """The list of inputs, in parent and coordinator."""
    n_long: int
    """Long documents that may be held at the same time."""
    held_whole_bytes: int
    """Those documents, held until their side is known."""
    worker_bytes: int
    """Of each worker, without the next three."""
    reader_bytes: int
    """Of each worker: the chunk being read, the library that reads it, and blocks of a remote object read ahead."""
    in_flight_bytes: int
    """Of each worker: the batch that it encodes, and its arena."""
    caches_bytes: int
    """Caches of all workers: what is left."""
    batch_bytes: int

    @property
    def sum_bytes(self) -> int:
        """The terms added up."""
        once = self.parent_bytes + self.coordinator_bytes + self.reference_bytes + self.inputs_bytes + self.held_whole_bytes
        return once + self.terms.n_threads * (self.worker_bytes + self.reader_bytes + self.in_flight_bytes) + self.caches_bytes

    @property
    def arena_bytes(self) -> int:
        """Size of each worker's arena."""
        return ARENA_BATCHES * self.batch_bytes

    @property
    def max_piece_bytes(self) -> int:
        """Largest text encoded in one piece: it must fit beside caches that are as full as they may be."""
        return (self.in_flight_bytes + int(self.caches_bytes * (1 - 1 / _GROWTH))) // (_PIECE_COST * self.terms.piece_factor)

    @property
    def reset_above_bytes(self) -> int:
        """Memory of a worker's own, without the reference, above which it drops its caches, early enough to grow once more."""
        fixed = self.worker_bytes + self.reader_bytes + self.in_flight_bytes // 2
        return fixed + int(self.caches_bytes / self.terms.n_threads / _GROWTH)

    @property
    def spare_bytes(self) -> int:
        """What a worker's reader may hold of a file for as long as it is open, beside caches that grow until they are dropped."""
        own = self.in_flight_bytes // 2 + 2 * HELD_BATCHES * self.batch_bytes
        of_all = self.held_whole_bytes + int(self.caches_bytes * (1 - 1 / _GROWTH))
        return max(_INDEX_BYTES, own + of_all // self.terms.n_threads - _CACHE_FLOOR_BYTES)


def divide_budget(
    budget_bytes: int, terms: BudgetTerms, limit_bytes: int | None = None, *, is_lowered: bool = False
) -> BudgetShares:
    """Divide a budget.

    limit_bytes: the most that any budget may be here; is_lowered: whether more was asked for. Raises MemoryBudgetError, which names
    the smallest budget that works, or fewer threads, if it is too small.
    """
    shares = _divided(budget_bytes, terms)
    if shares is None:
        raise _too_small(budget_bytes, terms, limit_bytes, is_lowered=is_lowered)
    return shares


def most_threads(budget_bytes: int, terms: BudgetTerms) -> int:
    """Return how many threads, at most those of `terms`, a budget is enough for; 0 if it is too small for one."""
    enough = (
        n for n in range(terms.n_threads, 0, -1) if _least_mib(msgspec.structs.replace(terms, n_threads=n)) * MIB <= budget_bytes
    )
    return next(enough, 0)


def _divided(budget_bytes: int, terms: BudgetTerms) -> BudgetShares | None:
    """Return the shares with the largest batches that leave the caches enough; None if the budget is too small."""
    most = min(terms.n_threads, _LONG_DOCUMENTS)
    sizes = [*((most, batch_bytes) for batch_bytes in _BATCH_SIZES[:-1]), *((1, batch_bytes) for batch_bytes in _BATCH_SIZES)]
    found = (_with_batches(budget_bytes, batch_bytes, terms, n_long) for n_long, batch_bytes in sizes)
    return next((shares for shares in found if shares.caches_bytes >= terms.n_threads * _CACHE_FLOOR_BYTES), None)


def _least_mib(terms: BudgetTerms) -> int:
    """Return the smallest budget that can be divided, in MiB."""
    least = _with_batches(0, _BATCH_SIZES[-1], terms, 1)
    return -(-(terms.n_threads * _CACHE_FLOOR_BYTES - least.caches_bytes) // MIB)


def _too_small(budget_bytes: int, terms: BudgetTerms, limit_bytes: int | None, *, is_lowered: bool) -> MemoryBudgetError:
    threads, least = counted(terms.n_threads, "thread"), _least_mib(terms)
    what, allowed = f"a budget of {budget_bytes // MIB:,} MiB is too small for {threads}", f"at least {least} MiB for {threads}"
    if limit_bytes is None or least * MIB <= limit_bytes:
        n_threads = most_threads(budget_bytes, terms)
        fewer = f"or --threads {n_threads}" if n_threads else None
        return MemoryBudgetError(what, option="--memory", allowed=allowed, suggested=f"{least}MiB", next_step=fewer)
    allowed += f"; {limit_bytes // MIB:,} MiB is the most here, nine tenths of what the control group (container, Slurm job) allows"
    n_threads = most_threads(limit_bytes, terms)
    if n_threads:
        also = f"and --memory {limit_bytes // MIB}MiB"
        return MemoryBudgetError(what, allowed=allowed, option="--threads", suggested=str(n_threads), next_step=also)
    enough = _least_mib(msgspec.structs.replace(terms, n_threads=1)) * 10 // 9 + 1
    next_step = f"give the container (Slurm job) at least {enough} MiB" + (
        "; a larger --memory does not help" if is_lowered else ""
    )
    return MemoryBudgetError(what, allowed=allowed, where="--memory", next_step=next_step)


def store_bytes(*, is_read: bool, is_sent: bool) -> int:
    """Return what one process needs that reads objects of a store, one at a time, or sends files to one, or both."""
    reading, sending = REMOTE_BLOCKS_HELD * REMOTE_BLOCK_BYTES, _SENT_BYTES
    return _STORE_BYTES * (is_read or is_sent) + reading * is_read + sending * is_sent


def _with_batches(budget_bytes: int, batch_bytes: int, terms: BudgetTerms, n_long: int) -> BudgetShares:
    in_flight = (_COST_PER_TEXT_BYTE + ARENA_BATCHES) * batch_bytes
    # A bytearray that loses its front is copied: for a moment it is held one and a half times.
    held_whole = n_long * (DIVIDE_ABOVE_BYTES * 3 // 2)
    reader = 2 * HELD_BATCHES * batch_bytes + _INDEX_BYTES * terms.has_tables
    reader += REMOTE_BLOCKS_HELD * REMOTE_BLOCK_BYTES * terms.is_remote
    inputs = terms.n_inputs * _INPUT_BYTES
    parent, worker = (own + _STORE_BYTES * terms.is_remote for own in (_PARENT_BYTES, _WORKER_BYTES))
    parent += (_SENT_BYTES + _STORE_BYTES * (not terms.is_remote)) * terms.is_sent
    worker += terms.n_ids * _ID_BYTES
    coordinator = COORDINATOR_BYTES + _TABLES_BYTES * terms.has_tables
    reference = reference_bytes(terms)
    fixed = parent + coordinator + reference + inputs + held_whole + terms.n_threads * (worker + reader + in_flight)
    return BudgetShares(
        budget_bytes=budget_bytes,
        terms=terms,
        parent_bytes=parent,
        coordinator_bytes=coordinator,
        n_long=n_long,
        held_whole_bytes=held_whole,
        worker_bytes=worker,
        reference_bytes=reference,
        inputs_bytes=inputs,
        reader_bytes=reader,
        in_flight_bytes=in_flight,
        caches_bytes=budget_bytes - fixed,
        batch_bytes=batch_bytes,
    )


def reference_bytes(terms: BudgetTerms) -> int:
    """Return what the reference of the audit takes in the worker that has it."""
    return _REFERENCE_BYTES + terms.n_ids * _RANK_BYTES


def budget_for_piece(n_bytes: int, terms: BudgetTerms, *, is_record: bool = False) -> int:
    """Return the smallest budget, in whole 16 MiB, with which a text of `n_bytes` can be encoded in one piece.

    is_record: it is a record that need only be read in one piece.
    """
    most = 2 * n_bytes * _PIECE_COST * terms.piece_factor
    share = RECORD_SHARE if is_record else most
    return _least_budget(lambda shares: max(shares.max_piece_bytes, shares.budget_bytes // share) >= n_bytes, most, terms)


def _least_budget(fits: Callable[[BudgetShares], bool], most: int, terms: BudgetTerms) -> int:
    """Return the smallest budget, in whole 16 MiB, whose shares fit; `most` more than the smallest of all does."""
    step = 16 * MIB

    def is_enough(n_steps: int) -> bool:
        shares = _divided(n_steps * step, terms)
        return shares is not None and fits(shares)

    # What fits into a budget fits into a larger one.
    return step * bisect.bisect_left(range((most + _least_mib(terms) * MIB) // step + 2), True, key=is_enough)


def piece_too_long(
    what: str, where: str, most: int, terms: BudgetTerms | None, n_bytes: int | None, *, is_record: bool = False
) -> MemoryBudgetError:
    """Return the error for a text that must be held in one piece and does not fit.

    most: bytes that fit; n_bytes: its own; is_record: as in `budget_for_piece`.
    """
    is_known = n_bytes is not None and n_bytes > most
    # Of what was not read to its end, twice as much is tried next.
    needed = budget_for_piece(n_bytes if n_bytes and is_known else 2 * most, terms, is_record=is_record) if terms else None
    allowed = f"at most {most:,} bytes in one piece with this --memory" + (f"; this has {n_bytes:,}" if is_known else "")
    next_step = None if is_known and needed else "or more (how long it is was not seen), or divide it"
    if needed is None:
        next_step = "raise --memory, or divide it"
    elif needed > memory.usable_bytes():
        next_step, needed = f"divide it, or use a machine where --memory {needed // MIB}MiB is possible", None
    return MemoryBudgetError(
        f"{what} is longer than the {most:,} bytes that the memory budget allows in one piece",
        where=where,
        allowed=allowed,
        option="--memory",
        suggested=f"{needed // MIB}MiB" if needed else None,
        next_step=next_step,
    )


def index_too_large(what: str, where: str, terms: BudgetTerms | None, n_bytes: int, spare: int) -> MemoryBudgetError:
    """Return the error for what must be held for as long as a file is open, n_bytes, and is more than `spare_bytes`."""
    needed = _least_budget(lambda shares: shares.spare_bytes >= n_bytes, 4 * n_bytes * terms.n_threads, terms) if terms else None
    if needed and needed > memory.usable_bytes():
        needed = None
    other = "write the file again with fewer row groups, or with the column of texts alone"
    return MemoryBudgetError(
        f"{what} takes {n_bytes / MIB:,.0f} MiB when it is decoded, more than the memory budget leaves for it",
        where=where,
        allowed=f"at most {spare / MIB:,.0f} MiB with this --memory",
        option="--memory",
        suggested=f"{needed // MIB}MiB" if needed else None,
        next_step=f"or {other}" if needed else other,
    )


def memory_too_small(what: str, where: str, budget_bytes: int) -> MemoryBudgetError:
    """Return the error for an allocation that failed within the budget."""
    return MemoryBudgetError(
        what,
        where=where,
        allowed=f"what fits beside everything else into {budget_bytes // MIB} MiB",
        option="--memory",
        suggested=f"{2 * budget_bytes // MIB}MiB",
        next_step="or write the file again with smaller parts",
    )


def default_budget(n_threads: int, machine_bytes: int, cgroup_bytes: int | None) -> int:
    """Return 1 GiB, or 256 MiB a thread if that is more; at most a quarter of the machine or 3/4 of the cgroup's limit."""
    wanted = max(1024 * MIB, 256 * MIB * n_threads)
    return min(wanted, machine_bytes // 4, cgroup_bytes * 3 // 4 if cgroup_bytes else wanted)


class CacheReset:
    """The decision when an engine drops its caches."""

    _MIN_BYTES = 4 * MIB
    """Text between two resets; below this a reset would not help."""
    _LEAST_BYTES = 16 * MIB
    """Caches of less are not dropped: what is left takes more than they do."""

    def __init__(self, encoder: Encoder, above_bytes: int) -> None:
        """above_bytes: memory of this process's own, not shared with others of the run."""
        self._encoder = encoder
        self._wanted = above_bytes
        self._set_limit()
        self._since = 0
        self._next_look = 0.0
        self._next_trim = 0.0

    def after_batch(self, n_bytes: int, *, is_asked: bool = False) -> tuple[int, int] | None:
        """Drop the caches if memory is short, or if they are asked for and there are any.

        n_bytes: of the text that was encoded since the last call. Returns resident memory before and after, if they were dropped.
        """
        self._since += n_bytes
        now = time.monotonic()
        if self._since < self._MIN_BYTES or (now < self._next_look and not is_asked):
            return None
        self._next_look = now + _LOOK_S
        before = memory.rss_bytes()
        if before > self._above and now >= self._next_trim:
            # What the allocator keeps free costs less than the caches.
            self._next_trim = now + _TRIM_S
            memory.trim()
            before = memory.rss_bytes()
        if before <= self._above and not is_asked:
            return None
        self._since = 0
        self._encoder.reset_caches()
        memory.trim()
        return before, self._set_limit()

    def _set_limit(self) -> int:
        """Decide above which resident memory caches are dropped next, and return that of now."""
        now, own = memory.rss_bytes(), memory.own_bytes()
        self._above = now + max(self._wanted - own, self._LEAST_BYTES)
        return now
