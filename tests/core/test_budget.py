"""How a budget is divided, and when caches are dropped."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given, strategies as st
from support.records import ByteEncoder

from tokmill.core.config import MIB, BudgetTerms
from tokmill.core.errors import MemoryBudgetError, UsageError
from tokmill.core.system import memory
from tokmill.core.system.budget import RECORD_SHARE, CacheReset, default_budget, divide_budget, piece_too_long
from tokmill.run import job

ALL_TERMS = st.builds(
    BudgetTerms,
    n_threads=st.integers(1, 256),
    n_inputs=st.integers(1, 100_000),
    is_remote=st.booleans(),
    is_sent=st.booleans(),
    has_tables=st.booleans(),
    n_ids=st.sampled_from([50_257, 200_000]),
    piece_factor=st.sampled_from([1, 7]),
)


@given(st.integers(1, 1 << 40), ALL_TERMS)
def test_the_terms_add_up_to_the_budget_or_the_error_names_a_budget_that_works(budget: int, terms: BudgetTerms) -> None:
    try:
        shares = divide_budget(budget, terms)
    except MemoryBudgetError as error:
        smallest = int(str(error.suggested).removesuffix("MiB")) * MIB
        assert smallest > budget
        shares = divide_budget(smallest, terms)
        with pytest.raises(MemoryBudgetError):
            divide_budget(smallest - 2 * MIB, terms)
        budget = smallest
    assert shares.sum_bytes == budget
    assert shares.reset_above_bytes > shares.worker_bytes
    assert shares.spare_bytes > 0


@given(st.integers(1, 1 << 27), ALL_TERMS)
def test_the_budget_proposed_for_a_long_text_is_enough_and_not_much_more(n_bytes: int, terms: BudgetTerms) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "usable_bytes", lambda: 1 << 60)
        error = piece_too_long("a line", "a.jsonl", n_bytes - 1, terms, n_bytes)
    assert error.suggested
    proposed = int(error.suggested.removesuffix("MiB")) * MIB
    assert divide_budget(proposed, terms).max_piece_bytes >= n_bytes
    try:
        assert divide_budget(proposed - 16 * MIB, terms).max_piece_bytes < n_bytes
    except MemoryBudgetError:
        assert proposed % (16 * MIB) == 0


@given(st.integers(1, 1 << 27), ALL_TERMS, st.booleans())
def test_for_a_text_whose_length_is_not_known_twice_as_much_is_proposed(most: int, terms: BudgetTerms, is_record: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "usable_bytes", lambda: 1 << 60)
        error = piece_too_long("a line", "a.jsonl", most, terms, None, is_record=is_record)
    proposed = int(str(error.suggested).removesuffix("MiB")) * MIB
    assert max(divide_budget(proposed, terms).max_piece_bytes, is_record * proposed // RECORD_SHARE) >= 2 * most
    assert "or divide it" in str(error.next_step)


def test_no_budget_is_proposed_that_the_machine_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "usable_bytes", lambda: 1 << 30)
    error = piece_too_long("a line", "a.jsonl", 10, BudgetTerms(n_threads=2), 1 << 27)
    assert error.suggested is None
    assert "divide it, or use a machine" in str(error.next_step)


@given(st.integers(1, 1 << 31), st.integers(MIB, 1 << 31), ALL_TERMS)
def test_in_a_control_group_the_next_step_works_there(budget: int, limit: int, terms: BudgetTerms) -> None:
    budget = min(budget, limit)
    try:
        divide_budget(budget, terms, limit)
    except MemoryBudgetError as error:
        if error.option == "--memory":
            divide_budget(min(limit, int(str(error.suggested).removesuffix("MiB")) * MIB), terms, limit)
        elif error.option == "--threads":
            fewer = msgspec.structs.replace(terms, n_threads=int(str(error.suggested)))
            divide_budget(limit // MIB * MIB, fewer, limit)
        else:
            needed = int(re.findall(r"at least (\d+) MiB", str(error.next_step))[0]) * MIB * 9 // 10
            divide_budget(needed, msgspec.structs.replace(terms, n_threads=1))


@pytest.mark.parametrize(
    ("n_threads", "machine_gib", "expected_mib"), [(2, 24, 1024), (2, 2, 512), (16, 128, 4096), (64, 32, 8192), (1, 0.5, 128)]
)
def test_the_default_is_a_gibibyte_or_a_quarter_a_thread_and_never_over_a_quarter_of_the_machine(
    n_threads: int, machine_gib: float, expected_mib: int
) -> None:
    assert default_budget(n_threads, int(machine_gib * 1024 * MIB), None) == expected_mib * MIB
    assert default_budget(n_threads, 1 << 40, 512 * MIB) == 384 * MIB


def test_an_engine_drops_its_caches_when_memory_is_short_or_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    rss = [50]
    monkeypatch.setattr(memory, "rss_bytes", lambda: rss[0] * MIB)
    monkeypatch.setattr(memory, "own_bytes", lambda: (rss[0] - 40) * MIB)
    monkeypatch.setattr(memory, "trim", lambda: None)
    monkeypatch.setattr("tokmill.core.system.budget.time.monotonic", iter(range(1000)).__next__)
    encoder = ByteEncoder()
    caches = CacheReset(encoder, 60 * MIB)
    assert caches.after_batch(9 * MIB) is None
    rss[0] = 99
    assert caches.after_batch(9 * MIB) is None, "of this, 40 MiB are others', too"
    rss[0] = 200
    assert caches.after_batch(9 * MIB) == (200 * MIB, 200 * MIB)
    assert caches.after_batch(1) is None, "nothing can have grown again"
    rss[0] = 50
    assert caches.after_batch(9 * MIB) is None
    assert caches.after_batch(9 * MIB, is_asked=True) == (50 * MIB, 50 * MIB)
    assert encoder.n_resets == 2


def test_caches_that_are_small_beside_the_rest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rss = [100]
    monkeypatch.setattr(memory, "rss_bytes", lambda: rss[0] * MIB)
    monkeypatch.setattr(memory, "own_bytes", lambda: rss[0] * MIB)
    caches = CacheReset(ByteEncoder(), 60 * MIB)
    rss[0] = 110
    assert caches.after_batch(9 * MIB) is None


def test_the_probe_sees_memory_come_and_go() -> None:
    before = memory.rss_bytes()
    block = bytearray(64 * MIB)
    assert memory.rss_bytes() - before > 60 * MIB
    del block
    assert memory.rss_bytes() - before < 32 * MIB
    assert memory.peak_rss_bytes() >= memory.rss_bytes()


def test_a_number_without_a_unit_is_asked_about() -> None:
    with pytest.raises(UsageError, match="did you mean 512MiB") as caught:
        job._choose_budget("512", BudgetTerms(n_threads=2), None)
    assert caught.value.next_step == "--memory 512MiB"
    assert job._choose_budget(str(1 << 30), BudgetTerms(n_threads=2), None)[0] == 1 << 30


def test_without_threads_a_small_control_group_gets_as_many_as_fit_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "cgroup_limit_bytes", lambda: 405 * MIB)
    monkeypatch.setattr(job, "cgroup_limit_bytes", lambda: 405 * MIB)
    monkeypatch.setattr(job, "usable_cores", lambda: 16)
    resources, notices = job.divide_resources(None, None, "gigatoken", ())
    assert resources.n_threads == 1
    assert any("1 thread on 16 cores" in notice for notice in notices)
    with pytest.raises(MemoryBudgetError) as asked:
        job.divide_resources("437MiB", 16, "gigatoken", ())
    assert (asked.value.option, asked.value.suggested) == ("--threads", "1")
