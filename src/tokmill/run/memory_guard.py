"""The guard: watches memory while a run goes on, and gives way step by step before the machine has to.

Four things are watched: the worker's own resident memory, the machine's available memory, the cgroup's (v1 and v2), and, where the
kernel has it, memory pressure (PSI). What follows from them is a pure function, `decide`; what is done about it goes through
`Actions`. Reading is paused before anything is given up, because the batches on their way free memory by being written; only when
that does not help for some seconds does the run checkpoint and leave with exit code 13, so that it can be resumed.
"""

from __future__ import annotations

import threading
import time
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from tokmill.core.config import MIB
from tokmill.core.system import memory

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_S = 0.1
_PAUSE_S = 10.0
"""Reading that was paused this long without relief: the run leaves."""
_RESERVE_SHARE = 32
"""The machine keeps one part in so many of its memory free, within the bounds below."""
_LEAST_RESERVE_BYTES = 24 * MIB
_MOST_RESERVE_BYTES = 512 * MIB
_STALLED_PERCENT = 20.0
"""PSI `full`, 10 s average: every task of the machine waited for memory this share of the time."""


class Step(IntEnum):
    """What the guard asks for, each including those before."""

    CALM = 0
    RESET_CACHES = 1
    SHRINK = 2
    PAUSE = 3
    LEAVE = 4


class MemorySample(msgspec.Struct, frozen=True, kw_only=True):
    """One look at memory, in bytes; None where the system does not say."""

    worker_bytes: int
    available_bytes: int | None = None
    """Of the machine."""
    cgroup_bytes: int | None = None
    """Left below the smallest limit of the cgroup and those above it."""
    stalled_percent: float | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What is allowed."""

    worker_bytes: int
    """Resident memory of the worker: the budget without the parent's share."""
    reserve_bytes: int
    """What the machine, or the cgroup, is to keep available."""


class Actions(Protocol):
    """What the guard can do; implemented by the worker. Called in the guard's thread."""

    def reset_caches(self) -> None:
        """Let the encoder threads give back their caches at the next batch."""

    def shrink(self) -> None:
        """Halve what is on its way between reader and writer."""

    def pause(self, *, paused: bool) -> None:
        """Stop reading, or go on."""

    def leave(self, why: str) -> None:
        """Checkpoint and end."""


def decide(reading: MemorySample, limits: Limits) -> tuple[Step, str]:
    """The step that a reading asks for, and why."""
    own = _first((1.05, Step.LEAVE), (1.0, Step.PAUSE), (0.95, Step.SHRINK), (0.9, Step.RESET_CACHES))(
        reading.worker_bytes / limits.worker_bytes
    )
    steps = [(own, f"the worker holds {reading.worker_bytes // MIB} MiB of {limits.worker_bytes // MIB} MiB")]
    for left, name in ((reading.available_bytes, "machine"), (reading.cgroup_bytes, "cgroup")):
        if left is not None:
            short = _first((2.0, Step.LEAVE), (1.0, Step.PAUSE), (0.67, Step.SHRINK), (0.5, Step.RESET_CACHES))
            steps.append((short(limits.reserve_bytes / max(left, 1)), f"the {name} has only {left // MIB} MiB left"))
    if reading.stalled_percent is not None and reading.stalled_percent >= _STALLED_PERCENT:
        steps.append((Step.PAUSE, f"the machine waits for memory {reading.stalled_percent:.0f} % of the time"))
    return max(steps, key=lambda step: step[0])


def reserve_bytes(machine_bytes: int) -> int:
    """What a machine of this size is to keep available."""
    return min(max(machine_bytes // _RESERVE_SHARE, _LEAST_RESERVE_BYTES), _MOST_RESERVE_BYTES)


class Guard:
    """Looks ten times a second, in a thread of its own, from `start` to `stop`."""

    def __init__(self, limits: Limits, actions: Actions, look: Callable[[], MemorySample] | None = None) -> None:
        self._limits = limits
        self._actions = actions
        self._look = look or take_memory_sample
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        self._paused_since: float | None = None
        self._shrunk = False

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_LOOK_S):
            self.act(*decide(self._look(), self._limits), time.monotonic())

    def act(self, step: Step, why: str, now_s: float) -> None:
        """Carry out one judgement."""
        if step >= Step.RESET_CACHES:
            self._actions.reset_caches()
        if step >= Step.SHRINK and not self._shrunk:
            self._shrunk = True
            self._actions.shrink()
        if step < Step.PAUSE:
            if self._paused_since is not None:
                self._paused_since = None
                self._actions.pause(paused=False)
            return
        if self._paused_since is None:
            self._paused_since = now_s
            self._actions.pause(paused=True)
        # What is on its way may still grow for a moment after reading has stopped.
        patience = _PAUSE_S if step == Step.PAUSE else 1.0
        if now_s - self._paused_since >= patience:
            self._actions.leave(why)
            self._over.set()


def take_memory_sample() -> MemorySample:
    """Look at this process and this machine now."""
    return MemorySample(
        worker_bytes=memory.rss_bytes(),
        available_bytes=memory.available_bytes(),
        cgroup_bytes=memory.cgroup_left_bytes(),
        stalled_percent=memory.stalled_percent(),
    )


def _first(*steps: tuple[float, Step]) -> Callable[[float], Step]:
    """The step of the first threshold, highest first, that a ratio reaches."""
    return lambda ratio: next((step for threshold, step in steps if ratio >= threshold), Step.CALM)
