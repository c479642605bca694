"""How the memory budget is divided, and when an encoder thread drops its engine's caches.

The engine's caches grow with the number of distinct words, without a bound of their own. So they get what the rest of the budget
leaves, and when the worker has used that up, the encoder thread with the oldest caches drops them.
"""

from __future__ import annotations

import bisect
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import MIB, BudgetTerms
from tokmill.core.documents import text_bytes
from tokmill.core.errors import MemoryBudgetError
from tokmill.core.records import DIVIDE_ABOVE_BYTES, UNCUT_COST
from tokmill.core.system import memory
from tokmill.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.core.config import Resources
    from tokmill.core.protocols import Encoder
    from tokmill.core.records import Batch

REMOTE_BLOCK_BYTES = 8 << 20
"""One request to a remote object: at 30 ms for an answer, a few of them side by side fill 1 GB/s."""
REMOTE_BLOCKS_HELD = 5
"""Blocks of one object, at most: the one being read, and those fetched ahead of it."""
_PARENT_BYTES = 40 * MIB
"""Python, click, msgspec, psutil (34 MiB measured), and room."""
_WORKER_BYTES = 104 * MIB
"""Python, numpy, awkward, pyarrow and the engine's library, without caches (86 MiB measured), and room."""
_REFERENCE_BYTES = 40 * MIB
"""A tiktoken encoding of 50,000 ranks (o200k takes 60 MiB more, out of the caches' share)."""
_STORE_BYTES = 56 * MIB
"""For each process: what reading from a store takes of Python (botocore 37 MiB, aiohttp 20, measured while it reads), and room."""
_SENT_BYTES = 112 * MIB
"""Parts of files on their way to a store, twice (`store/transfer.py`), and blocks of files being checked."""
_INPUT_BYTES = 2400
"""For each input: 1,350 in the parent (records, their JSON), 900 in the worker (250,000 small files)."""
_CACHE_FLOOR_BYTES = 72 * MIB
"""For each thread: what the cache takes at most between two resets (4 MiB of unique words: 73 MB measured)."""
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
    worker_bytes: int
    reference_bytes: int
    inputs_bytes: int
    """The list of inputs, in both processes."""
    reader_bytes: int
    """A document held until its side is known, the chunk being read, and blocks of a remote object read ahead."""
    in_flight_bytes: int
    """Batches between reader and writer."""
    caches_bytes: int
    """Caches of all encoder threads: what is left."""
    batch_bytes: int

    @property
    def sum_bytes(self) -> int:
        """The terms added up."""
        processes = self.parent_bytes + self.worker_bytes + self.reference_bytes + self.inputs_bytes
        return processes + self.reader_bytes + self.in_flight_bytes + self.caches_bytes

    @property
    def max_piece_bytes(self) -> int:
        """Largest text encoded in one piece: it must fit beside caches that are as full as they may be."""
        return (self.in_flight_bytes + int(self.caches_bytes * (1 - 1 / _GROWTH))) // (_PIECE_COST * self.terms.piece_factor)

    @property
    def reset_above_bytes(self) -> int:
        """Resident memory of the worker above which caches are dropped, early enough for all of them to grow once more."""
        fixed = self.worker_bytes + self.reference_bytes + self.inputs_bytes // 2 + self.in_flight_bytes // 2
        return fixed + int(self.caches_bytes / _GROWTH)


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
    found = (_with_batches(budget_bytes, batch_bytes, terms) for batch_bytes in _BATCH_SIZES)
    return next((shares for shares in found if shares.caches_bytes >= terms.n_threads * _CACHE_FLOOR_BYTES), None)


def _least_mib(terms: BudgetTerms) -> int:
    """Return the smallest budget that can be divided, in MiB."""
    least = _with_batches(0, _BATCH_SIZES[-1], terms)
    return -(-(terms.n_threads * _CACHE_FLOOR_BYTES - least.caches_bytes) // MIB)


def _too_small(budget_bytes: int, terms: BudgetTerms, limit_bytes: int | None, *, is_lowered: bool) -> MemoryBudgetError:
    threads, least = counted(terms.n_threads, "thread"), _least_mib(terms)
    what, allowed = f"a budget of {budget_bytes // MIB:,} MiB is too small for {threads}", f"at least {least} MiB for {threads}"
    if limit_bytes is None or least * MIB <= limit_bytes:
        fewer = "or fewer --threads" if terms.n_threads > 1 else None
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


def _with_batches(budget_bytes: int, batch_bytes: int, terms: BudgetTerms) -> BudgetShares:
    in_flight = (2 * terms.n_threads + 1) * batch_bytes * _COST_PER_TEXT_BYTE
    # A bytearray that loses its front is copied: for a moment it is held one and a half times.
    reader = DIVIDE_ABOVE_BYTES * 3 // 2 + 4 * batch_bytes
    reader += REMOTE_BLOCKS_HELD * REMOTE_BLOCK_BYTES * terms.is_remote
    inputs = terms.n_inputs * _INPUT_BYTES
    parent, worker = (own + _STORE_BYTES * terms.is_remote for own in (_PARENT_BYTES, _WORKER_BYTES))
    parent += (_SENT_BYTES + _STORE_BYTES * (not terms.is_remote)) * terms.is_sent
    fixed = parent + worker + _REFERENCE_BYTES + inputs
    return BudgetShares(
        budget_bytes=budget_bytes,
        terms=terms,
        parent_bytes=parent,
        worker_bytes=worker,
        reference_bytes=_REFERENCE_BYTES,
        inputs_bytes=inputs,
        reader_bytes=reader,
        in_flight_bytes=in_flight,
        caches_bytes=budget_bytes - fixed - reader - in_flight,
        batch_bytes=batch_bytes,
    )


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


def spare_bytes(resources: Resources) -> int:
    """Return the memory that a reader may hold for as long as a file is open."""
    return _spare(resources.worker_bytes, resources.reset_above_bytes, resources.terms)


def _spare(worker_bytes: int, reset_above_bytes: int, terms: BudgetTerms) -> int:
    """Return what is left above where caches are dropped, beside what they grow by until they are dropped again."""
    return max(0, worker_bytes - reset_above_bytes - terms.n_threads * _CACHE_FLOOR_BYTES)


def index_too_large(what: str, where: str, terms: BudgetTerms | None, n_bytes: int, spare: int) -> MemoryBudgetError:
    """Return the error for what must be held for as long as a file is open, n_bytes, and is more than `spare_bytes`."""

    def fits(shares: BudgetShares) -> bool:
        worker_bytes = shares.budget_bytes - shares.parent_bytes - shares.inputs_bytes // 2
        return _spare(worker_bytes, shares.reset_above_bytes, shares.terms) >= n_bytes

    needed = _least_budget(fits, 4 * n_bytes, terms) if terms else None
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
    """The decision which encoder thread drops its caches, and when. Shared by the encoder threads."""

    _MIN_BYTES = 4 * MIB
    """Text between two resets of one thread; below this a reset would not help."""

    def __init__(self, above_bytes: int, on_reset: Callable[[int, int], None]) -> None:
        """above_bytes: resident memory of this process; on_reset(before, after) is called in the encoder thread."""
        self._above = above_bytes
        self._on_caches_reset = on_reset
        self._since: dict[int, int] = {}
        self._asked: set[int] = set()
        self._lock = threading.Lock()
        self._next_look = 0.0
        self._next_trim = 0.0

    def ask(self) -> None:
        """Make every encoder thread drop its caches after its next batch, unless it did so just now."""
        with self._lock:
            self._asked = {me for me, n_bytes in self._since.items() if n_bytes >= self._MIN_BYTES}

    def after_batch(self, encoder: Encoder, batch: Batch) -> None:
        """Drop the caches of `encoder` if memory is short and they are the oldest. Called by an encoder thread after each batch."""
        with self._lock:
            me = id(encoder)
            self._since[me] = self._since.get(me, 0) + text_bytes(batch.documents)
            before = self._rss_after_trim() if me in self._asked or self._is_its_turn(me) else 0
            if before <= self._above and me not in self._asked:
                return
            self._asked.discard(me)
            self._since[me] = 0
            encoder.reset_caches()
            memory.trim()
        self._on_caches_reset(before, memory.rss_bytes())

    def _rss_after_trim(self) -> int:
        """Return resident memory, after giving back what the allocator keeps free, which costs less than the caches."""
        now = time.monotonic()
        if memory.rss_bytes() > self._above and now >= self._next_trim:
            self._next_trim = now + _TRIM_S
            memory.trim()
        return memory.rss_bytes()

    def _is_its_turn(self, me: int) -> bool:
        """Return whether to look at memory: these caches are the oldest, and the last look is a moment ago."""
        now = time.monotonic()
        if self._since[me] < max(self._MIN_BYTES, *self._since.values()) or now < self._next_look:
            return False
        self._next_look = now + _LOOK_S
        return True
