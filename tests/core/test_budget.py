"""How a budget is divided, and when caches are dropped."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from support.records import ByteEncoder, a_batch

from tokmill.core.config import MIB
from tokmill.core.errors import MemoryBudgetError, UsageError
from tokmill.core.system import memory
from tokmill.core.system.budget import CacheReset, default_budget, divide_budget
from tokmill.run import job

TERMS = ("parent_bytes", "inputs_bytes", "worker_bytes", "reference_bytes", "reader_bytes", "in_flight_bytes", "caches_bytes")


@given(st.integers(1, 1 << 40), st.integers(1, 256))
def test_the_terms_add_up_to_the_budget_or_the_error_names_a_budget_that_works(budget: int, n_threads: int) -> None:
    try:
        shares = divide_budget(budget, n_threads)
    except MemoryBudgetError as error:
        smallest = int(str(error.next_step).split("--memory ")[1].split("MiB")[0]) * MIB
        assert smallest > budget
        shares = divide_budget(smallest, n_threads)
        with pytest.raises(MemoryBudgetError):
            divide_budget(smallest - 2 * MIB, n_threads)
        budget = smallest
    assert sum(getattr(shares, term) for term in TERMS) == budget
    assert shares.reset_above_bytes > shares.worker_bytes + shares.reference_bytes


@pytest.mark.parametrize(
    ("n_threads", "machine_gib", "expected_mib"), [(2, 24, 1024), (2, 2, 512), (16, 128, 4096), (64, 32, 8192), (1, 0.5, 128)]
)
def test_the_default_is_a_gibibyte_or_a_quarter_a_thread_and_never_over_a_quarter_of_the_machine(
    n_threads: int, machine_gib: float, expected_mib: int
) -> None:
    assert default_budget(n_threads, int(machine_gib * 1024 * MIB), None) == expected_mib * MIB
    assert default_budget(n_threads, 1 << 40, 512 * MIB) == 384 * MIB


def test_one_encoder_at_a_time_drops_its_caches_the_one_with_the_oldest_caches_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rss = [200]
    monkeypatch.setattr(memory, "rss_bytes", lambda: rss[0])
    monkeypatch.setattr(memory, "trim", lambda: None)
    monkeypatch.setattr("tokmill.core.system.budget.time.monotonic", iter(range(1000)).__next__)
    seen = []
    cache_reset = CacheReset(100, lambda before, _after: seen.append(before))
    old, young = ByteEncoder(), ByteEncoder()
    batch = a_batch([b"x" * (9 * MIB)])
    rss[0] = 50
    cache_reset.after_batch(old, batch)
    cache_reset.after_batch(old, batch)
    cache_reset.after_batch(young, batch)
    assert (old.n_resets, young.n_resets) == (0, 0)
    rss[0] = 200
    cache_reset.after_batch(young, batch)
    assert (old.n_resets, young.n_resets) == (0, 1)
    cache_reset.after_batch(old, batch)
    assert (old.n_resets, young.n_resets) == (1, 1)
    cache_reset.after_batch(old, a_batch([b"x"]))
    assert (old.n_resets, young.n_resets) == (1, 1)
    assert seen == [200, 200]


def test_the_probe_sees_memory_come_and_go() -> None:
    before = memory.rss_bytes()
    block = bytearray(64 * MIB)
    assert memory.rss_bytes() - before > 60 * MIB
    del block
    assert memory.rss_bytes() - before < 32 * MIB
    assert memory.peak_rss_bytes() >= memory.rss_bytes()


def test_a_number_without_a_unit_is_asked_about() -> None:
    with pytest.raises(UsageError, match="did you mean 512MiB") as caught:
        job._choose_budget("512", 2, None)
    assert caught.value.next_step == "--memory 512MiB"
    assert job._choose_budget(str(1 << 30), 2, None)[0] == 1 << 30
