"""`shuffle` and `mix` in tasks: the files are those of one machine, whichever task dies, is done twice or in another order."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.arranged import shuffled
from support.corpora import some_documents
from support.failures import Died, dying_at, flip
from support.outputs import documents_of, files_in
from support.runs import make_parts, tokenize_documents
from support.small_arranging import tiny
from support.tasks_here import FUNCTIONS, DeadError, Here, dying_after
from support.turns import in_turns

import tokmill
from tokmill.core.errors import DamageError, LockedError, UsageError
from tokmill.core.events import AnyEvent, Committed
from tokmill.core.system import durable
from tokmill.derive import arranging, bucket_run, choosing, mixing, shuffling
from tokmill.derive.buckets import RECORD, Buckets
from tokmill.derive.spread import arranging as spreading, portions
from tokmill.output import disk_space
from tokmill.run.parts.finalize import finalize

QUICK = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
DOCUMENTS = st.lists(st.text(alphabet="ab é\n漢", max_size=40).map(str.encode), min_size=1, max_size=40)


@contextlib.contextmanager
def spread(tasks: Here | None = None, *, portion_bytes: int = 600, held: int = 700, records: int = 50) -> Iterator[Here]:
    """Tasks in this process, and portions, runs and groups so small that a small corpus has many."""
    tasks = tasks or Here()
    with pytest.MonkeyPatch.context() as patch:
        for module in (shuffling, mixing):
            patch.setattr(module, "cluster", lambda _address: tasks)
        patch.setattr(spreading, "_LEAST_BYTES", 300)
        patch.setattr(spreading, "_PORTION_BYTES", portion_bytes)
        patch.setattr(spreading, "least_portion_bytes", lambda _n_buckets: 1)
        patch.setattr(spreading, "_HELD_SHARE", (1 << 30) // (12 * records))
        patch.setattr(spreading, "PortionWriter", lambda a, b, c, d, _: portions.PortionWriter(a, b, c, d, held))
        yield tasks


def in_segments(out: Path, documents: list[bytes], n: int = 5, **options: Any) -> None:
    """An output of as many segments as there are parts of the documents, so that portions can end there."""
    size = -(-len(documents) // n)
    parts = [out.with_name(f"{out.name}-{i}") for i in range(n) if documents[i * size : (i + 1) * size]]
    for i, part in enumerate(parts):
        tokenize_documents(part, documents[i * size : (i + 1) * size], **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokmill.derive.engine.COMMIT_BYTES", 1)
        tokmill.merge(parts, out)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("two")
    for i, name in enumerate(("a", "b")):
        in_segments(base / name, some_documents(60, 60, i))
    return [base / "a", base / "b"]


def shuffle(sources: Any, out: Path, **options: Any) -> tokmill.Outcome:
    return tokmill.shuffle(sources, out, seed=4, **options)


@in_turns(3)
@settings(max_examples=7, suppress_health_check=QUICK, deadline=None)
@given(
    documents=DOCUMENTS,
    seed=st.integers(0, (1 << 64) - 1),
    eot=st.sampled_from(["after", "before"]),
    portion_bytes=st.sampled_from([1, 100, 600]),
    held=st.sampled_from([1, 200, 1 << 20]),
    block_tokens=st.integers(3, 200),
)
def test_tasks_make_a_sort_in_memory(
    turn: int,
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[bytes],
    seed: int,
    eot: str,
    portion_bytes: int,
    held: int,
    block_tokens: int,
) -> None:
    base = tmp_path_factory.mktemp("spread")
    in_segments(base / "a", documents, eot=eot, keep_empty=True)
    with spread(Here(seed), portion_bytes=portion_bytes, held=held), tiny(400, block_tokens):
        tokmill.shuffle(base / "a", base / "b", seed=seed, ray="")
    assert documents_of(base / "b") == shuffled(documents_of(base / "a"), seed)
    assert tokmill.verify(base / "b").ok


@pytest.mark.parametrize("trainer", ["raw", "llmc", "megatron", "datatrove", "olmo", "litdata", "mds"])
def test_tasks_make_the_files_of_one_machine_in_any_format(trainer: str, two: list[Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"format": trainer, "shard_tokens": 2048 if trainer == "mds" else 30}
    options["offsets"] = True
    shuffle(two, tmp_path / "one", **options)
    with spread() as tasks:
        shuffle(two, tmp_path / "many", ray="", **options)
    assert files_in(tmp_path / "many") == files_in(tmp_path / "one")
    assert len({number for function, number in tasks.asked if function == "scatter_portion"}) > 4
    assert tokmill.verify(tmp_path / "many").ok


@pytest.mark.parametrize("measured", [1 << 18, 20])
def test_a_mixture_made_by_tasks_is_that_of_one_machine(measured: int, two: list[Path], tmp_path: Path) -> None:
    weights = [(two[0], 0.8), (two[1], 0.2)]
    tokmill.mix(weights, tmp_path / "one", seed=4, tokens=6000)
    with spread() as tasks, pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "_PORTION_TOKENS", 100)
        patch.setattr(choosing, "_MOST_MEASURED", measured)
        tokmill.mix(weights, tmp_path / "many", seed=4, tokens=6000, ray="")
    assert [asked for asked in tasks.asked if asked == ("measure_portion", 4)][1:], "both sources are read by tasks"
    assert files_in(tmp_path / "many") == files_in(tmp_path / "one")


def test_whatever_made_the_source_its_manifest_says_where_portions_begin(two: list[Path], tmp_path: Path) -> None:
    corpus = tokenize_documents(tmp_path / "c", some_documents(80, 60, 1))
    make_parts([corpus], tmp_path / "parts", 3, val_fraction=0.2)
    finalize(tmp_path / "parts")
    with tiny(1500), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokmill.derive.engine.COMMIT_BYTES", 1)
        shuffle(two, tmp_path / "shuffled")
        tokmill.convert(two[0], tmp_path / "llmc", format="llmc", shard_tokens=100)
    for name in ("parts", "shuffled", "llmc"):
        shuffle(tmp_path / name, tmp_path / f"{name}-one")
        with spread() as tasks:
            shuffle(tmp_path / name, tmp_path / f"{name}-many", ray="")
        assert files_in(tmp_path / f"{name}-many") == files_in(tmp_path / f"{name}-one")
        assert ("scatter_portion", 2) in tasks.asked


def test_tasks_and_process_may_die_at_any_call(two: list[Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_tokens": 200}
    shuffle(two, tmp_path / "one", **options)
    for n in itertools.count(1, 23):
        out = tmp_path / f"out{n}"
        with spread(Here(n)), pytest.MonkeyPatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                shuffle(two, out, ray="", **options)
        if calls() < n:
            break
        with spread(Here(n + 1)):
            shuffle(two, out, ray="", **options)
        assert files_in(out) == files_in(tmp_path / "one"), n
        assert not (out / ".tokmill").exists()
    assert n > 100


def test_a_task_that_is_done_twice_writes_the_same(two: list[Path], tmp_path: Path) -> None:
    def twice(function: str, question: bytes) -> None:
        FUNCTIONS[function](question)

    shuffle(two, tmp_path / "one")
    with spread(Here(before=twice)):
        shuffle(two, tmp_path / "many", ray="")
    assert files_in(tmp_path / "many") == files_in(tmp_path / "one")


def test_what_a_task_says_it_wrote_is_on_the_disk(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the node that wrote it: no other can make that sure."""
    written, synced = set(), set()
    real_write, real_sync = durable.write_all_at, durable.sync_file

    def write(fd: int, data: Any, offset: int) -> None:
        written.add(os.fstat(fd).st_ino)
        real_write(fd, data, offset)

    def sync(fd: int) -> None:
        synced.add(os.fstat(fd).st_ino)
        real_sync(fd)

    def watched(function: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        def call(question: bytes) -> bytes:
            written.clear()
            synced.clear()
            answer = function(question)
            assert written <= synced
            return answer

        return call

    monkeypatch.setattr(durable, "write_all_at", write)
    monkeypatch.setattr(durable, "sync_file", sync)
    for name in ("scatter_portion", "write_bucket"):
        key = f"tokmill.derive.spread.arranging:{name}"
        monkeypatch.setitem(FUNCTIONS, key, watched(FUNCTIONS[key]))
    with spread():
        shuffle(two, tmp_path / "out", ray="", shard_tokens=200)


def test_a_portion_that_has_not_the_documents_that_the_manifest_says_is_damage(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any) -> list[portions.Portion]:
        first, second, *others = portions.cut_portions(*arguments)
        fewer = msgspec.structs.replace(first, n_documents=first.n_documents - 1)
        return [fewer, msgspec.structs.replace(second, document=second.document - 1, n_documents=second.n_documents + 1), *others]

    monkeypatch.setattr(spreading, "cut_portions", wrong)
    with spread(), pytest.raises(DamageError, match="a source is damaged"):
        shuffle(two, tmp_path / "out", ray="")


@pytest.mark.parametrize("n", [3, 20])
def test_what_is_done_is_not_done_again_and_one_machine_may_go_on(n: int, two: list[Path], tmp_path: Path) -> None:
    shuffle(two, tmp_path / "one")
    for name in ("ray", "local"):
        with spread(dying_after(n)), pytest.raises(DeadError):
            shuffle(two, tmp_path / name, ray="")
    made = {path: path.stat().st_ino for path in (tmp_path / "ray" / ".tokmill").glob("portion_??????.part")}
    assert made
    with spread(Here(before=lambda *_: assert_kept(made)), portion_bytes=100) as tasks:
        assert shuffle(two, tmp_path / "ray", ray="", memory="2GiB").resumed
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "one")
    if n > 10:
        assert ("write_bucket", 0) not in tasks.asked, "that is committed"
    with tiny(1500):
        assert shuffle(two, tmp_path / "local").resumed
    assert files_in(tmp_path / "local") == files_in(tmp_path / "one")


def assert_kept(made: dict[Path, int]) -> None:
    assert {path: path.stat().st_ino for path in made} == made


def test_what_one_machine_began_tasks_may_go_on_with(two: list[Path], tmp_path: Path) -> None:
    class Stopping:
        n = 0

        def on_event(self, event: AnyEvent) -> None:
            self.n += isinstance(event, Committed)
            if self.n == 6:
                raise DeadError

    shuffle(two, tmp_path / "one")
    with tiny(1500), pytest.raises(DeadError):
        shuffle(two, tmp_path / "many", observers=[Stopping()])
    with spread():
        assert shuffle(two, tmp_path / "many", ray="").resumed
    assert files_in(tmp_path / "many") == files_in(tmp_path / "one")


@pytest.mark.parametrize(("offset", "what"), [(3, "not those that were written"), (-3, "not a file of this work")])
def test_a_portion_that_was_damaged_is_found_before_anything_is_published(
    offset: int, what: str, two: list[Path], tmp_path: Path
) -> None:
    def damage(function: str, _question: bytes) -> None:
        paths = sorted((tmp_path / "out" / ".tokmill").glob("portion_??????.part"))
        if function.endswith("write_bucket") and not done:
            done.append(paths[0])
            flip(paths[0], offset % paths[0].stat().st_size)

    done: list[Path] = []
    with spread(Here(before=damage)), pytest.raises(DamageError, match="work in progress is damaged") as caught:
        shuffle(two, tmp_path / "out", ray="")
    assert what in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_source_that_is_damaged_is_named_by_the_task_that_reads_it(two: list[Path], tmp_path: Path) -> None:
    damaged = shutil.copytree(two[1], tmp_path / "damaged")
    flip(damaged / "train.bin", 100)
    with spread(), pytest.raises(DamageError, match="a source is damaged") as caught:
        shuffle([two[0], damaged], tmp_path / "out", ray="")
    assert str(damaged / "train.bin") in str(caught.value.where)


def test_a_node_that_does_not_share_the_directory_and_a_run_that_was_replaced_are_told(two: list[Path], tmp_path: Path) -> None:
    def apart(_function: str, _question: bytes) -> None:
        (tmp_path / "out" / ".tokmill" / "work.part").unlink()

    def replaced(_function: str, _question: bytes) -> None:
        (tmp_path / "out" / ".tokmill" / "work.part").write_bytes(b"{}")

    with spread(Here(before=apart)), pytest.raises(UsageError, match="does not see the directory"):
        shuffle(two, tmp_path / "out", ray="")
    with spread(Here(before=replaced)), pytest.raises(LockedError, match="another run has taken the place"):
        shuffle(two, tmp_path / "out", ray="")
    with spread():
        shuffle(two, tmp_path / "out", ray="")
    assert tokmill.verify(tmp_path / "out").ok


def test_a_bucket_and_a_document_larger_than_the_memory_of_a_task(two: list[Path], tmp_path: Path) -> None:
    documents = [*some_documents(30, 40, 1), b"word " * 20_000, *some_documents(30, 40, 2)]
    tokenize_documents(tmp_path / "c", documents, val_fraction=0)
    shuffle(tmp_path / "c", tmp_path / "one")
    with spread(), tiny(400, 50), pytest.MonkeyPatch.context() as patch:
        patch.setattr(spreading, "FIXED_BYTES", (1 << 30) - 600)
        shuffle(tmp_path / "c", tmp_path / "many", ray="")
    assert files_in(tmp_path / "many") == files_in(tmp_path / "one")


def scratch_of(out: Path) -> set[str]:
    return {path.name.partition("_")[0] for path in (out / ".tokmill").glob("*_*") if path.name.startswith(("bucket_", "portion_"))}


def test_the_scratch_of_one_machine_makes_room_for_that_of_tasks_and_the_other_way_round(two: list[Path], tmp_path: Path) -> None:
    seen: list[set[str]] = []
    shuffle(two, tmp_path / "one")
    with tiny(1500), pytest.MonkeyPatch.context() as patch:
        patch.setattr(arranging.Arranging, "_write_val", raising(DeadError))
        with pytest.raises(DeadError):
            shuffle(two, tmp_path / "out")
    assert scratch_of(tmp_path / "out") == {"bucket"}
    with spread(Here(before=lambda *_: seen.append(scratch_of(tmp_path / "out")))) as tasks, pytest.MonkeyPatch.context() as patch:
        patch.setattr(spreading.Spread, "_write_val", raising(DeadError))
        with pytest.raises(DeadError):
            shuffle(two, tmp_path / "out", ray="")
    assert tasks.asked
    assert all(each <= {"portion"} for each in seen)
    assert scratch_of(tmp_path / "out") == {"portion"}
    with tiny(1500), pytest.MonkeyPatch.context() as patch:
        patch.setattr(arranging.Arranging, "_write_val", looking(seen, tmp_path / "out", arranging.Arranging._write_val))
        shuffle(two, tmp_path / "out")
    assert seen[-1] == {"bucket"}
    assert files_in(tmp_path / "out") == files_in(tmp_path / "one")


def raising(error: type[Exception]) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def looking(seen: list[set[str]], out: Path, real: Callable[[Any], None]) -> Callable[[Any], None]:
    def look(self: object) -> None:
        seen.append(scratch_of(out))
        real(self)

    return look


def killed(made: Path, left: Path) -> None:
    shutil.copytree(made, left)
    raise DeadError


def spread_asked(sources: list[Path], out: Path) -> list[tuple[str, int]]:
    with spread() as tasks:
        shuffle(sources, out, ray="")
    return tasks.asked


def test_one_machine_then_tasks_then_one_machine(two: list[Path], tmp_path: Path) -> None:
    shuffle(two, tmp_path / "one")
    with tiny(1500), pytest.MonkeyPatch.context() as patch:
        # As SIGKILL leaves it: the state of the buckets is there, the first commit of the output is not.
        patch.setattr(arranging.Arranging, "_commit", lambda _run: killed(tmp_path / "made", tmp_path / "out"))
        with pytest.raises(DeadError):
            shuffle(two, tmp_path / "made")
    asked = spread_asked(two, tmp_path / "reference")
    with spread(dying_after(len(asked) - 3)) as tasks, pytest.raises(DeadError):
        shuffle(two, tmp_path / "out", ray="")
    assert ("write_bucket", 1) in tasks.asked
    with tiny(1500):
        assert shuffle(two, tmp_path / "out").resumed
    assert files_in(tmp_path / "out") == files_in(tmp_path / "one")


@pytest.mark.parametrize("is_fixed", [False, True])
def test_buckets_of_another_number_than_that_of_the_journal_are_of_no_use(is_fixed: bool, tmp_path: Path) -> None:
    (tmp_path / ".tokmill").mkdir()
    begun = Buckets.open(tmp_path, "f", 5, 1000, is_fixed=False)
    begun.add(2, b"12", b"", 1)
    begun.commit(begun.state)
    begun.close()
    found = Buckets.open(tmp_path, "f", 3, 1000, is_fixed=is_fixed)
    found.close()
    assert (found.state.n_buckets, sum(found.state.ids)) == ((3, 0) if is_fixed else (5, 2))


@pytest.mark.parametrize("n_documents", [30_000, 0])
def test_what_a_portion_holds_does_not_grow_with_buckets_times_runs(n_documents: int, tmp_path: Path) -> None:
    (tmp_path / ".tokmill").mkdir()
    n_buckets, random_of = 2000, random.Random(1)
    put = [(random_of.randrange(n_buckets), random_of.randbytes(random_of.randrange(20)), i) for i in range(n_documents)]
    tracemalloc.start()
    with portions.PortionWriter(tmp_path, b"w" * 16, 0, n_buckets, 40_000) as writer:
        for bucket, ids, number in put:
            writer.add(bucket, ids, np.array([(number, len(ids))], RECORD).tobytes(), number)
        assert writer.finish() == sum(range(n_documents))
    found = portions.PortionBuckets(tmp_path, b"w" * 16, 1, n_buckets)
    assert found.sum_of(0) == sum(range(n_documents))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20, "the indexes have 8 MB"
    for bucket in (0, 1, 777, n_buckets - 1):
        records, data = found.records(bucket), bytearray(found.ids_bytes(bucket))
        found.read_ids(bucket, 0, memoryview(data))
        wanted = [(number, ids) for other, ids, number in put if other == bucket]
        assert records["copy"].tolist() == [number for number, _ in wanted]
        assert bytes(data) == b"".join(ids for _, ids in wanted)
        assert records.tolist() == found.records_of(bucket, bucket + 1)[0].tolist()
        found.check(bucket, sum(number for number, _ in wanted))


def test_tasks_with_too_little_memory_for_so_much_are_refused_by_name(two: list[Path], tmp_path: Path) -> None:
    with spread() as tasks, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_run, "FIXED_BYTES", (1 << 30) - 3000)
        with pytest.raises(UsageError, match=r"into [0-9]+ buckets") as caught:
            shuffle(two, tmp_path / "out", ray="")
        assert caught.value.option == "--memory"
        assert not tasks.asked
        shuffle(two, tmp_path / "out", ray="", memory=caught.value.suggested)
    assert tokmill.verify(tmp_path / "out").ok


def test_the_indexes_of_portions_are_part_of_what_the_disk_is_asked_for(two: list[Path], tmp_path: Path) -> None:
    asked: list[int] = []

    def need(*arguments: Any, scratch_bytes: int, **options: Any) -> disk_space.DiskNeed:
        asked.append(scratch_bytes)
        return disk_space.rewriting_need(*arguments, scratch_bytes=scratch_bytes, **options)

    def killed(self: object) -> None:
        asked.append(sum(path.stat().st_size for path in (tmp_path / "many" / ".tokmill").glob("portion_*")))
        raise DeadError

    with pytest.MonkeyPatch.context() as patch, spread(held=1 << 20):
        patch.setattr("tokmill.derive.engine.rewriting_need", need)
        shuffle(two, tmp_path / "one")
        patch.setattr(spreading, "least_portion_bytes", portions.least_portion_bytes)
        patch.setattr(spreading.Spread, "_write_val", killed)
        with pytest.raises(DeadError):
            shuffle(two, tmp_path / "many", ray="")
    local, many, used = asked
    assert local < used <= many
