"""The guard: what follows from a reading, and in which order it is done."""

from __future__ import annotations

import pytest

from tokmill.core.config import MIB
from tokmill.run.memory_guard import Guard, Limits, MemorySample, Step, decide, reserve_bytes, take_memory_sample

LIMITS = Limits(child_bytes=1000 * MIB, reserve_bytes=100 * MIB)
CALM = MemorySample(own_bytes=100 * MIB, available_bytes=4000 * MIB)


def reading(**changes: object) -> MemorySample:
    return MemorySample(**({"own_bytes": 100 * MIB, "available_bytes": 4000 * MIB} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, Step.CALM),
        ({"own_bytes": 949 * MIB}, Step.CALM),
        ({"own_bytes": 950 * MIB}, Step.RESET_CACHES),
        ({"own_bytes": 1000 * MIB}, Step.PAUSE),
        ({"own_bytes": 1050 * MIB}, Step.LEAVE),
        ({"available_bytes": 200 * MIB}, Step.RESET_CACHES),
        ({"available_bytes": 100 * MIB}, Step.PAUSE),
        ({"available_bytes": 50 * MIB}, Step.LEAVE),
        ({"available_bytes": 0}, Step.LEAVE),
        ({"available_bytes": None}, Step.CALM),
        ({"cgroup_bytes": 140 * MIB}, Step.RESET_CACHES),
        ({"cgroup_bytes": 40 * MIB}, Step.LEAVE),
        ({"stalled_percent": 19.0}, Step.CALM),
        ({"stalled_percent": 20.0}, Step.PAUSE),
        ({"stalled_percent": 50.0, "cgroup_bytes": 10 * MIB}, Step.LEAVE),
    ],
)
def test_the_step_that_a_reading_asks_for(changes: dict[str, object], step: Step) -> None:
    judged, why = decide(reading(**changes), LIMITS)
    assert judged == step
    assert why


class Recorded:
    """Remembers what it was asked to do."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def reset_caches(self) -> None:
        self.done.append("reset caches")

    def pause(self, *, paused: bool) -> None:
        self.done.append("pause" if paused else "go on")

    def leave(self, why: str) -> None:
        self.done.append(f"leave: {why}")


def test_steps_are_taken_one_after_the_other_and_taken_back() -> None:
    actions = Recorded()
    guard = Guard(LIMITS, actions)
    for now, step in enumerate((Step.CALM, Step.RESET_CACHES, Step.RESET_CACHES, Step.PAUSE, Step.CALM, Step.CALM)):
        guard.act(step, "why", now)
    assert actions.done == ["reset caches", "reset caches", "reset caches", "pause", "go on"]


def test_it_leaves_only_when_pausing_did_not_help() -> None:
    actions = Recorded()
    guard = Guard(LIMITS, actions)
    guard.act(Step.PAUSE, "short", 0.0)
    guard.act(Step.PAUSE, "short", 9.9)
    assert "leave: short" not in actions.done
    guard.act(Step.PAUSE, "short", 10.0)
    assert actions.done[-1] == "leave: short"
    sudden = Recorded()
    guard = Guard(LIMITS, sudden)
    guard.act(Step.LEAVE, "gone", 0.0)
    assert "leave: gone" not in sudden.done
    guard.act(Step.LEAVE, "gone", 1.0)
    assert sudden.done[-1] == "leave: gone"


def test_the_thread_looks_and_acts() -> None:
    actions = Recorded()
    readings = iter([CALM, reading(own_bytes=1000 * MIB)])
    guard = Guard(LIMITS, actions, lambda: next(readings, CALM))
    guard.start()
    for _ in range(100):
        if "go on" in actions.done:
            break
        guard._over.wait(0.05)
    guard.stop()
    assert actions.done == ["reset caches", "pause", "go on"]


def test_a_reading_of_this_machine() -> None:
    now = take_memory_sample()
    assert now.own_bytes > 5 * MIB
    assert now.available_bytes is None or now.available_bytes > 0


@pytest.mark.parametrize(("machine", "reserve"), [(256 * MIB, 24 * MIB), (8192 * MIB, 256 * MIB), (1 << 40, 512 * MIB)])
def test_the_reserve_grows_with_the_machine_within_bounds(machine: int, reserve: int) -> None:
    assert reserve_bytes(machine) == reserve
