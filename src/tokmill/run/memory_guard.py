"""The memory guard: watches memory during a run and reacts step by step before the machine runs out.

It watches the resident memory of the run's processes, the machine's available memory, the cgroup's (v1 and v2) and, where the
kernel has it, memory pressure (PSI). `decide`, a pure function, says which step these ask for; `Actions` carries it out. Reading is
paused first, because batches free memory when they are written. Only if that does not help for some seconds does the run checkpoint
and end with exit code 13, so that it can be resumed.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from bisect import bisect_right
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from tokmill.core.config import MIB
from tokmill.core.system import memory
from tokmill.core.system.refusals import optional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ROOM_BYTES = 12 * MIB
"""How far data may grow beyond the budget before the next sample: stacks of threads."""
_LOOK_S = 0.1
_LOOKS_PER_TURN = 10
_PAUSE_S = 10.0
"""When reading was paused for so long without relief, the run ends."""
_RESERVE_SHARE = 32
"""The machine keeps one such part of its memory free, within the bounds below."""
_LEAST_RESERVE_BYTES = 24 * MIB
_MOST_RESERVE_BYTES = 512 * MIB
_STALLED_PERCENT = 20.0
"""PSI `full`, 10 s average: every task of the machine waited for memory this share of the time."""


_OWN_STEPS = (0.95, 1.0, 1.05)
"""Memory of the run's processes by what they may hold, from which on each step but CALM is taken."""
_RESERVE_STEPS = (0.5, 1.0, 2.0)
"""Memory to keep free by what is free, from which on each step is taken."""


class Step(IntEnum):
    """What the guard asks for; each step includes those before."""

    CALM = 0
    RESET_CACHES = 1
    PAUSE = 2
    LEAVE = 3


class MemorySample(msgspec.Struct, frozen=True, kw_only=True):
    """One look at memory, in bytes; None where the system does not say."""

    own_bytes: int
    """Memory of the coordinator and its workers; what they share, once."""
    available_bytes: int | None = None
    """Available memory of the machine."""
    cgroup_bytes: int | None = None
    """Left below the smallest limit of the cgroup and those above it."""
    stalled_percent: float | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a run."""

    child_bytes: int
    """Memory of the coordinator and its workers: the budget less the parent's share."""
    reserve_bytes: int
    """What the machine, or the cgroup, has to keep available."""


class Actions(Protocol):
    """What the guard can do; `EncodingProcess` does it. Called in the guard's thread."""

    def reset_caches(self) -> None: ...
    def pause(self, *, paused: bool) -> None: ...
    def leave(self, why: str) -> None: ...


def decide(sample: MemorySample, limits: Limits) -> tuple[Step, str]:
    """Return the step that a sample asks for, and why."""
    own = Step(bisect_right(_OWN_STEPS, sample.own_bytes / limits.child_bytes))
    steps = [(own, f"the run holds {sample.own_bytes // MIB} MiB of {limits.child_bytes // MIB} MiB")]
    for left, name in ((sample.available_bytes, "machine"), (sample.cgroup_bytes, "cgroup")):
        if left is not None:
            short = Step(bisect_right(_RESERVE_STEPS, limits.reserve_bytes / max(left, 1)))
            steps.append((short, f"the {name} has only {left // MIB} MiB left"))
    if sample.stalled_percent is not None and sample.stalled_percent >= _STALLED_PERCENT:
        steps.append((Step.PAUSE, f"the machine waits for memory {sample.stalled_percent:.0f} % of the time"))
    return max(steps, key=lambda step: step[0])


def reserve_bytes(machine_bytes: int) -> int:
    """Return what a machine of this size has to keep available, in bytes."""
    return min(max(machine_bytes // _RESERVE_SHARE, _LEAST_RESERVE_BYTES), _MOST_RESERVE_BYTES)


class Guard:
    """A thread that takes a sample ten times a second, from `start` to `stop`."""

    def __init__(self, limits: Limits, actions: Actions, look: Callable[[], MemorySample] | None = None) -> None:
        self._limits = limits
        self._actions = actions
        self._look = look or take_memory_sample
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        self._paused_since: float | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_LOOK_S):
            self.act(*decide(self._look(), self._limits), time.monotonic())

    def act(self, step: Step, why: str, now_s: float) -> None:
        """Carry out one decision."""
        if step >= Step.RESET_CACHES:
            self._actions.reset_caches()
        if step < Step.PAUSE:
            if self._paused_since is not None:
                self._paused_since = None
                self._actions.pause(paused=False)
            return
        if self._paused_since is None:
            self._paused_since = now_s
            self._actions.pause(paused=True)
        # Batches under way may still grow for a moment after reading has stopped.
        patience = _PAUSE_S if step == Step.PAUSE else 1.0
        if now_s - self._paused_since >= patience:
            self._actions.leave(why)
            self._over.set()


class SharedPages:
    """How much of the resident memory of some processes is others', too.

    The system adds that up page by page, 4 ms for a process of 150 MiB: so one process is looked at each second.
    """

    def __init__(self) -> None:
        self._shared: dict[int, int] = {}
        self._n_looks = 0

    def own_bytes(self, pids: Sequence[int]) -> int:
        """Return the memory of this process and of others; what they share, once, about."""
        resident = {pid: memory.rss_bytes(pid) for pid in (os.getpid(), *pids)}
        n_turns, is_none = divmod(self._n_looks, _LOOKS_PER_TURN)
        turn = 0 if is_none else list(resident)[n_turns % len(resident)]
        self._n_looks += 1
        for pid, n_bytes in resident.items():
            if pid == turn or pid not in self._shared:
                self._shared[pid] = n_bytes - min(n_bytes, memory.share_bytes(pid))
        return sum(max(0, n_bytes - self._shared[pid]) for pid, n_bytes in resident.items())


def take_memory_sample(own_bytes: int | None = None) -> MemorySample:
    """Return a sample of this machine, and of this process. own_bytes: of all its processes, where there are several."""
    return MemorySample(
        own_bytes=memory.rss_bytes() if own_bytes is None else own_bytes,
        available_bytes=memory.available_bytes(),
        cgroup_bytes=memory.cgroup_left_bytes(),
        stalled_percent=memory.stalled_percent(),
    )


def limit_growth(budget_bytes: int) -> None:
    """Let an allocation beyond the budget fail here, in a process that can be resumed, before the machine runs out of memory.

    The system limits data, touched or not, and memory that was given back to it may still count (up to 400 MiB measured): so the
    limit is what counts now and what resident memory may still grow by, and is set again with every sample of the guard.
    """
    resident, data = memory.rss_bytes(), memory.data_bytes()
    if data is None:
        return
    most = data + max(0, budget_bytes - resident) + _ROOM_BYTES
    with optional():
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
