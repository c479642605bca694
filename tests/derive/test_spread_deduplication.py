"""`dedup` in tasks: the files are those of one machine, whichever task dies, is done twice or in another order."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support import tasks_here
from support.commands import clean_environment
from support.corpora import some_documents
from support.deduplicated import audit_of, tiny
from support.failures import Died, dying_at, flip
from support.oracle import EOT
from support.outputs import files_in
from support.runs import tokenize_documents
from support.tasks_here import FUNCTIONS, DeadError, Here, dying_after

import tokmill
from tokmill.core.errors import ChangedError, DamageError, LockedError, MemoryBudgetError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.system import durable
from tokmill.derive.deduplication import copying, marking, running, spread as spreading, spread_tasks
from tokmill.derive.deduplication.comparison import Comparison
from tokmill.derive.deduplication.shared import Files, SharedRecords, SharedState
from tokmill.derive.spread import portions, run_files
from tokmill.output import disk_space

QUICK = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
WORDS = st.lists(st.sampled_from(["aa", "bb", "cc", "dd", " ee"]), max_size=14).map(lambda words: "\n".join(words).encode())
DOCUMENTS = st.lists(WORDS, min_size=1, max_size=25)
NEAR: dict[str, Any] = {"near": 0.6, "shortest": 5}
WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    "compare": {"compare": True},
    "near": NEAR,
    "near_compare": {**NEAR, "compare": True},
}


@contextlib.contextmanager
def spread(
    tasks: Here | None = None, *, portion_bytes: int = 3000, held: int = 4000, bucket_bytes: int = 20_000, most_files: int = 7
) -> Iterator[Here]:
    """Tasks in this process, and portions, runs and buckets so small that a small corpus has many."""
    tasks = tasks or Here()
    with pytest.MonkeyPatch.context() as patch, tiny(bucket_bytes, 700, 9000):
        patch.setattr(running, "cluster", lambda _address: tasks)
        patch.setattr(spreading, "_LEAST_BYTES", portion_bytes)
        patch.setattr(spreading, "_PORTION_BYTES", portion_bytes)
        patch.setattr(spreading, "_MOST_FILES", most_files)
        patch.setattr(spreading, "least_file_bytes", lambda _n_buckets, _n_kinds: 1)
        patch.setattr(spread_tasks, "RunWriter", lambda a, b, c, d, e, _: run_files.RunWriter(a, b, c, d, e, held))
        yield tasks


def in_segments(out: Path, documents: list[bytes], n: int = 4, **options: Any) -> Path:
    """An output of as many segments as there are parts of the documents, so that portions can end there."""
    size = -(-len(documents) // n)
    parts = [out.with_name(f"{out.name}-{i}") for i in range(n) if documents[i * size : (i + 1) * size]]
    for i, part in enumerate(parts):
        tokenize_documents(part, documents[i * size : (i + 1) * size], **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokmill.derive.engine.COMMIT_BYTES", 1)
        tokmill.merge(parts, out)
    return out


def changed(document: bytes, every: int, by: bytes = b"zq") -> bytes:
    """A document in which every n-th word is another one."""
    words = document.split(b" ")
    words[::every] = [by] * len(words[::every])
    return b" ".join(words)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Outputs with copies and near copies of their own documents and of each other's, one of them longer than a block."""
    base = tmp_path_factory.mktemp("two")
    documents = some_documents(30, 400, 1)
    long = b"word other " * 500
    a = [*documents, *(changed(each, 60) for each in documents[:10]), long]
    more = [*documents[5:15], *(changed(each, 45) for each in documents[10:25]), *some_documents(9, 400, 2), long]
    return [in_segments(base / "a", a, val_fraction=0.1), in_segments(base / "b", more, val_fraction=0.1)]


@pytest.fixture(scope="module")
def made(two: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What one machine makes of them, in each way."""
    base = tmp_path_factory.mktemp("one")
    # What is longer than a block is no near copy.
    with tiny(20_000, 700, 9000):
        for name, options in WAYS.items():
            tokmill.dedup(two, base / name, shard_tokens=3000, **options)
    return {name: base / name for name in WAYS}


def by_tasks(two: Any, out: Path, **options: Any) -> tokmill.Outcome:
    return tokmill.dedup(two, out, shard_tokens=3000, ray="", **options)


def same(out: Path, one: Path) -> bool:
    """Whether two outputs have the same files, and manifests but for times and where was committed."""
    apart = {"elapsed_s": 0.0, "peak_rss_bytes": 0, "segments": [], "history": None, "checksum": ""}
    ours, theirs = (msgspec.structs.replace(load_manifest(each), **apart) for each in (out, one))
    return files_in(out) == files_in(one) and ours == theirs


@pytest.mark.parametrize("way", WAYS)
def test_tasks_make_the_output_of_one_machine(way: str, two: list[Path], made: dict[str, Path], tmp_path: Path) -> None:
    with spread(Here(3)) as tasks:
        by_tasks(two, tmp_path / "out", **WAYS[way])
    assert same(tmp_path / "out", made[way])
    kinds = {line["kind"] for line in audit_of(tmp_path / "out")}
    assert kinds == ({"copy", "near"} if "near" in WAYS[way] else {"copy"})
    assert tokmill.verify(tmp_path / "out").ok
    assert len({number for function, number in tasks.asked if function == "mark"}) > 6
    assert not (tmp_path / "out" / ".tokmill").exists()


@settings(max_examples=10, suppress_health_check=QUICK, deadline=None)
@given(
    documents=DOCUMENTS,
    against=DOCUMENTS,
    eot=st.sampled_from(["after", "before"]),
    near=st.sampled_from([None, 0.01, 0.5, 1.0]),
    compare=st.booleans(),
    seed=st.integers(0, 99),
    held=st.sampled_from([1, 300, 1 << 20]),
    bucket_bytes=st.sampled_from([1000, 1 << 20]),
)
def test_whatever_the_documents_are_tasks_make_the_output_of_one_machine(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[bytes],
    against: list[bytes],
    eot: str,
    near: float | None,
    compare: bool,
    seed: int,
    held: int,
    bucket_bytes: int,
) -> None:
    base = tmp_path_factory.mktemp("spread")
    in_segments(base / "a", documents, eot=eot, keep_empty=True, val_fraction=0.2)
    tokenize_documents(base / "b", against, keep_empty=True, val_fraction=0.5)
    options: dict[str, Any] = {"against": base / "b", "compare": compare}
    if near:
        options |= {"near": near, "ngram": 2, "bands": 4, "rows": 1, "shortest": 2}
    tokmill.dedup(base / "a", base / "one", shard_tokens=3000, **options)
    with spread(Here(seed), portion_bytes=40, held=held, bucket_bytes=bucket_bytes):
        by_tasks(base / "a", base / "many", **options)
    assert same(base / "many", base / "one")


@pytest.mark.parametrize("trainer", ["llmc", "megatron", "olmo", "mds"])
def test_tasks_make_the_files_of_one_machine_in_any_format(trainer: str, two: list[Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"format": trainer, "shard_tokens": 2048 if trainer == "mds" else 300, "offsets": True}
    tokmill.dedup(two, tmp_path / "one", **options)
    with spread():
        tokmill.dedup(two, tmp_path / "many", ray="", **options)
    assert same(tmp_path / "many", tmp_path / "one")


@pytest.mark.parametrize(("way", "step"), [("compare", 97), ("near", 149)])
def test_tasks_and_process_may_die_at_any_call(way: str, step: int, two: list[Path], made: dict[str, Path], tmp_path: Path) -> None:
    n = 1
    for n in itertools.count(1, step):
        out = tmp_path / f"out{n}"
        with spread(Here(n)), pytest.MonkeyPatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                by_tasks(two, out, **WAYS[way])
        if calls() < n:
            break
        with spread(Here(n + 1)):
            by_tasks(two, out, **WAYS[way])
        assert same(out, made[way]), n
        assert not (out / ".tokmill").exists()
        shutil.rmtree(out)
    assert n > 200


def test_a_task_that_is_done_twice_writes_the_same(two: list[Path], made: dict[str, Path], tmp_path: Path) -> None:
    def twice(function: str, question: bytes) -> None:
        FUNCTIONS[function](question)
        files = {path: path.read_bytes() for path in (tmp_path / "out" / ".tokmill").glob("task_*.part")}
        new = [path for path in files if path not in seen]
        seen.update(files)
        for path in new:
            # As if its name had come too late for the second one.
            path.unlink()
            FUNCTIONS[function](question)
            assert path.read_bytes() == files[path]

    seen: set[Path] = set()
    with spread(Here(before=twice)):
        by_tasks(two, tmp_path / "out", **NEAR)
    assert same(tmp_path / "out", made["near"])


@pytest.mark.parametrize("n", [3, 20, 40])
def test_what_is_done_is_not_done_again(n: int, two: list[Path], made: dict[str, Path], tmp_path: Path) -> None:
    with spread(dying_after(n)), pytest.raises(DeadError):
        by_tasks(two, tmp_path / "out", **NEAR)
    there = {path: path.stat().st_ino for path in (tmp_path / "out" / ".tokmill").glob("task_*_??????.part")}
    assert there

    def look(_function: str, _question: bytes) -> None:
        for path, number in list(there.items()):
            if path.exists():
                assert path.stat().st_ino == number
            else:
                del there[path]

    with spread(Here(before=look), portion_bytes=100, bucket_bytes=9000):
        assert by_tasks(two, tmp_path / "out", memory="2GiB", **NEAR).resumed
    assert same(tmp_path / "out", made["near"])


def test_what_is_committed_of_the_output_is_not_written_again(two: list[Path], made: dict[str, Path], tmp_path: Path) -> None:
    with spread() as tasks:
        by_tasks(two, tmp_path / "whole")
    n_copied = sum(function == "copy_portion" for function, _ in tasks.asked)
    with spread(dying_after(len(tasks.asked) - 2)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(spreading, "TASKS_A_SLOT", 1)
        with pytest.raises(DeadError):
            by_tasks(two, tmp_path / "out")
    with spread() as tasks:
        by_tasks(two, tmp_path / "out")
    assert {function for function, _ in tasks.asked} == {"copy_portion"}
    assert 0 < len(tasks.asked) < n_copied
    assert same(tmp_path / "out", made["exact"])


@pytest.mark.parametrize(("stage_bytes", "most"), [(0, 12), (20_000, 3)])
def test_no_more_is_written_between_commits_than_may_wait_for_a_store(
    stage_bytes: int, most: int, two: list[Path], made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = spreading.SpreadCopying._copy_group

    def noting(self: Any, at: int, section: Any, portions: Any) -> None:
        sizes.append(len(portions))
        real(self, at, section, portions)

    def staged(self: Any, *given: Any) -> None:
        self._output.stage_bytes = stage_bytes
        copied(self, *given)

    copied = spreading.SpreadCopying._copy
    monkeypatch.setattr(spreading.SpreadCopying, "_copy_group", noting)
    monkeypatch.setattr(spreading.SpreadCopying, "_copy", staged)
    monkeypatch.setattr(copying, "wait_for_stage", lambda *_: None)
    with spread(portion_bytes=1000):
        by_tasks(two, tmp_path / "out")
    assert same(tmp_path / "out", made["exact"])
    assert 1 < max(sizes) <= most
    assert (len(sizes) > 2) == bool(stage_bytes)


@pytest.mark.parametrize("first", ["", None], ids=["begun_with", "begun_without"])
def test_what_was_begun_in_tasks_goes_on_in_tasks(first: str | None, two: list[Path], tmp_path: Path) -> None:
    second = None if first is not None else ""
    with spread():
        tokmill.dedup(two, tmp_path / "out", dry_run=True, ray=first)
        with pytest.raises(ChangedError, match=f"begun with{'out' if first is None else ''} --ray") as caught:
            tokmill.dedup(two, tmp_path / "out", ray=second)
        assert caught.value.option == "--ray"
        tokmill.dedup(two, tmp_path / "out", ray=second, fresh=True)
    assert tokmill.verify(tmp_path / "out").ok


@pytest.mark.parametrize("way", ["exact", "near"])
def test_a_dry_run_says_what_would_go(way: str, two: list[Path], made: dict[str, Path], tmp_path: Path) -> None:
    with spread() as tasks:
        found = tokmill.dedup(two, tmp_path / "out", dry_run=True, audit=tmp_path / "lines", ray="", shard_tokens=3000, **WAYS[way])
        assert (tmp_path / "lines").read_bytes() == (made[way] / "removed.jsonl").read_bytes()
        tasks.asked.clear()
        outcome = by_tasks(two, tmp_path / "out", **WAYS[way])
    assert {function for function, _ in tasks.asked} == {"copy_portion"}
    assert outcome.removal == found.removal
    assert same(tmp_path / "out", made[way])


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
    for name in ("mark", "copy_portion"):
        key = f"tokmill.derive.deduplication.spread_tasks:{name}"
        monkeypatch.setitem(FUNCTIONS, key, watched(FUNCTIONS[key]))
    with spread():
        by_tasks(two, tmp_path / "out", **NEAR)


def test_a_file_of_a_task_that_was_damaged_is_found(two: list[Path], tmp_path: Path) -> None:
    def damage(function: str, _question: bytes) -> None:
        paths = sorted((tmp_path / "out" / ".tokmill").glob("task_take_bands_*.part"))
        if len(paths) > 5 and not done:
            done.append(paths[0])
            flip(paths[0], paths[0].stat().st_size - 3)

    done: list[Path] = []
    with spread(Here(before=damage)), pytest.raises(DamageError, match="work in progress is damaged"):
        by_tasks(two, tmp_path / "out", **NEAR)
    assert done
    with spread():
        by_tasks(two, tmp_path / "out", fresh=True, **NEAR)


def test_a_source_that_is_damaged_is_named_by_the_task_that_reads_it(two: list[Path], tmp_path: Path) -> None:
    damaged = shutil.copytree(two[1], tmp_path / "damaged")
    flip(damaged / "train.bin", 100)
    with spread(), pytest.raises(DamageError, match="a source is damaged") as caught:
        by_tasks([two[0], damaged], tmp_path / "out")
    assert str(damaged / "train.bin") in str(caught.value.where)


def test_a_portion_that_has_not_the_documents_that_the_manifest_says_is_damage(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = portions.cut_side

    def wrong(*given: Any) -> Any:
        first, *others = real(*given)
        return [msgspec.structs.replace(first, n_documents=first.n_documents + 1), *others]

    monkeypatch.setattr(spreading, "cut_side", wrong)
    with spread(), pytest.raises(DamageError, match="a source is damaged"):
        by_tasks(two, tmp_path / "out")


def test_a_node_that_does_not_share_the_directory_and_a_run_that_was_replaced_are_told(two: list[Path], tmp_path: Path) -> None:
    def apart(_function: str, _question: bytes) -> None:
        (tmp_path / "out" / ".tokmill" / "work.part").unlink()

    def replaced(_function: str, _question: bytes) -> None:
        (tmp_path / "out" / ".tokmill" / "work.part").write_bytes(b"{}")

    with spread(Here(before=apart)), pytest.raises(UsageError, match="does not see the directory"):
        by_tasks(two, tmp_path / "out")
    with spread(Here(before=replaced)), pytest.raises(LockedError, match="another run has taken the place"):
        by_tasks(two, tmp_path / "out")


def test_a_source_that_was_replaced_while_it_was_read_is_named(two: list[Path], tmp_path: Path) -> None:
    source = shutil.copytree(two[1], tmp_path / "source")

    def replace(_function: str, _question: bytes) -> None:
        shutil.rmtree(source)
        shutil.copytree(two[0], source)

    with spread(Here(before=replace)), pytest.raises(UsageError, match="replaced while it was read"):
        by_tasks(source, tmp_path / "out")


def test_a_group_that_does_not_fit_is_refused_and_more_memory_goes_on(
    two: list[Path], made: dict[str, Path], tmp_path: Path
) -> None:
    with spread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(marking, "Comparison", _with_little_memory(Comparison))
        with pytest.raises(MemoryBudgetError, match="bands connect"):
            by_tasks(two, tmp_path / "out", **NEAR)
    with spread():
        by_tasks(two, tmp_path / "out", memory="2GiB", **NEAR)
    assert same(tmp_path / "out", made["near"])


def _with_little_memory(real: Any) -> Callable[..., Any]:
    return lambda gathered, rule, n, ngrams, _cluster, where: real(gathered, rule, n, ngrams, 1000, where)


def test_tasks_and_the_command_stay_within_the_least_memory(tmp_path: Path) -> None:
    """In a fresh process, which does both. With every tenth document a copy of another."""
    ids = np.random.default_rng(0).integers(0, EOT, 450_000, dtype=np.uint16)
    ids[2::3] = EOT
    ids[::30], ids[1::30] = 7, np.arange(15_000) % 500
    ids.tofile(tmp_path / "ids.bin")
    given: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": EOT}
    tokmill.convert(tmp_path / "ids.bin", tmp_path / "a", format="raw", **given)
    near = ["--near", "0.5", "--ngram", "1", "--shortest", "0"]
    arguments = [
        "dedup",
        str(tmp_path / "a"),
        "--out",
        str(tmp_path / "u"),
        "--memory",
        "128MiB",
        "--json",
        "--ray",
        "local",
        *near,
    ]
    done = subprocess.run(
        [sys.executable, tasks_here.__file__, *arguments], capture_output=True, env=clean_environment(), check=True
    )
    made = json.loads(done.stdout)
    assert made["peak_rss_bytes"] < 128 << 20, done.stderr
    (source,) = made["removal"]["sources"]
    assert source["copies"] >= 14_000


@pytest.mark.parametrize("way", ["exact", "compare", "near"])
def test_the_disk_is_asked_for_what_is_used(way: str, tmp_path: Path) -> None:
    """Where every document has a copy, or is near another one."""
    documents = [b"some words that all of them have, and one number %d" % (i if way == "near" else i % 3) for i in range(600)]
    in_segments(tmp_path / "c", documents, val_fraction=0)
    options = {"near": 0.3, "ngram": 1, "bands": 14, "rows": 1, "shortest": 0} if way == "near" else WAYS[way]
    asked: list[int] = []
    used = [0]

    def need(*given: Any, scratch_bytes: int, **options: Any) -> disk_space.DiskNeed:
        asked.append(scratch_bytes)
        return disk_space.rewriting_need(*given, scratch_bytes=scratch_bytes, **options)

    def look(_function: str, _question: bytes) -> None:
        used.append(sum(path.stat().st_size for path in (tmp_path / "out" / ".tokmill").glob("task_*.part")))

    with spread(Here(before=look), portion_bytes=20_000, held=1 << 20, bucket_bytes=1 << 20), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokmill.derive.engine.rewriting_need", need)
        if way == "near":
            # They come when most of the rest is gone.
            patch.setattr(running, "_LINE_BYTES", 0)
        tokmill.dedup(tmp_path / "c", tmp_path / "out", ray="", **options)
    assert 0 < max(used) <= asked[0]


def test_records_of_several_passes_are_read_as_one(tmp_path: Path) -> None:
    (tmp_path / ".tokmill").mkdir()
    state = SharedState(fingerprint="", compare=False, completed=[], n_buckets={"numbers": 3})
    for name, n_files in (("_first", 2), ("_second", 1)):
        files = Files(name=name, n_files=n_files, kinds=("others", "numbers"), n_buckets=4, identity="00" * 16)
        for number in range(n_files):
            with run_files.RunWriter(tmp_path, files.file_name(number), bytes(16), files.kinds, 4, 300) as writer:
                records = SharedRecords(tmp_path, "numbers", np.dtype("<u8"), state, writer)
                for i in range(50):
                    writer.put("others", 3, b"x" * i)
                    records.add(np.array([i % 3]), np.array([1000 * len(state.files) + 100 * number + i], np.uint64))
                writer.complete(b"answer")
        state.files.setdefault("numbers", []).append(files)
    records = SharedRecords(tmp_path, "numbers", np.dtype("<u8"), state, None)
    wanted = [begin + i for begin in (0, 100, 1000) for i in range(1, 50, 3)]
    assert records.read(1).tolist() == wanted
    with tiny():
        assert np.concatenate(list(records.blocks(1))).tolist() == wanted
    assert [records.read(1, begin, 1).tolist() for begin in range(len(wanted))] == [[each] for each in wanted]
