"""`shuffle` and `mix`: the bytes are those of a sort in memory, whatever the memory, the format and the deaths on the way."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shlex
import shutil
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, example, given, settings, strategies as st
from support.arranged import mixed, shuffled
from support.commands import command
from support.corpora import some_documents, write_corpus
from support.failures import Died, dying_at, flip, full_from
from support.oracle import EOT
from support.outputs import documents_of, files_in, ids_of, rewrite_manifest, written
from support.runs import make_parts, tokenize_documents
from support.small_arranging import tiny

import tokmill
from tokmill.cli.app import run
from tokmill.core.arrangement import ArrangedSource, Arrangement
from tokmill.core.document_order import choice_keys, copies, order_keys, sorted_keys
from tokmill.core.errors import ChangedError, DamageError, DiskFullError, LockedError, UsageError
from tokmill.core.events import AnyEvent, Committed
from tokmill.core.manifest import load_manifest
from tokmill.core.progress import ProgressReporter
from tokmill.core.records import Counts
from tokmill.core.system import durable
from tokmill.core.system.tree import TreePath
from tokmill.derive import arranging, bucket_run, buckets, choosing, mixing, packed_run, shuffling
from tokmill.derive.buckets import RECORD
from tokmill.derive.spread.portions import Portion
from tokmill.output import acquire_lock, directory
from tokmill.reports.reproduce import commands
from tokmill.run.parts.finalize import finalize

pytestmark = pytest.mark.usefixtures("workers_in_process")

QUICK = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
DOCUMENTS = st.lists(st.text(alphabet="ab é\n漢", max_size=40).map(str.encode), min_size=1, max_size=40)


@settings(max_examples=25, suppress_health_check=QUICK, deadline=None)
@given(
    documents=DOCUMENTS,
    seed=st.integers(0, (1 << 64) - 1),
    eot=st.sampled_from(["after", "before"]),
    bucket_bytes=st.sampled_from([70, 400, 1 << 20]),
    block_tokens=st.integers(3, 200),
)
def test_a_shuffle_is_a_sort_in_memory(
    tmp_path_factory: pytest.TempPathFactory, documents: list[bytes], seed: int, eot: str, bucket_bytes: int, block_tokens: int
) -> None:
    base = tmp_path_factory.mktemp("shuffle")
    tokenize_documents(base / "a", documents, eot=eot, keep_empty=True)
    with tiny(bucket_bytes, block_tokens):
        outcome = tokmill.shuffle(base / "a", base / "b", seed=seed)
    assert documents_of(base / "b") == shuffled(documents_of(base / "a"), seed)
    assert ids_of(base / "b")[1] == ids_of(base / "a")[1]
    assert outcome.documents_train == load_manifest(base / "a").counts.documents_train
    assert tokmill.verify(base / "b").ok


@settings(max_examples=25, suppress_health_check=QUICK, deadline=None)
@example(first=[b""], second=[b""], weights=(1, 1), share=0.25, seed=0)
@given(
    first=DOCUMENTS,
    second=DOCUMENTS,
    weights=st.tuples(st.sampled_from([0, 1e-6, 0.3, 1, 7]), st.sampled_from([0.1, 1, 2.5])),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
)
def test_a_mixture_is_a_sort_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[bytes],
    second: list[bytes],
    weights: tuple[float, float],
    share: float,
    seed: int,
) -> None:
    base = tmp_path_factory.mktemp("mix")
    for name, documents in (("a", first), ("b", second)):
        tokenize_documents(base / name, documents, keep_empty=True, val_fraction=0)
    lists = [documents_of(base / "a"), documents_of(base / "b")]
    pairs = [(base / "a", weights[0]), (base / "b", weights[1])]
    totals = [sum(map(len, each)) // 2 for each in lists]
    most = min(int(4 * n * sum(weights) / weight) for n, weight in zip(totals, weights, strict=True) if weight)
    tokens = max(1, int(most * share) - 1)
    with tiny():
        outcome = tokmill.mix(pairs, base / "m", seed=seed, tokens=tokens)
    wanted = mixed(lists, weights, tokens, seed, 2)
    assert documents_of(base / "m") == wanted
    assert outcome.tokens_train == sum(map(len, wanted)) // 2
    assert tokmill.verify(base / "m").ok
    assert [each.path for each in outcome.mixture] == [str(base / "a"), str(base / "b")]
    for each, documents in zip(outcome.mixture, lists, strict=True):
        wished = each.wished_share * sum(s.tokens for s in outcome.mixture)
        longest = max(map(len, documents)) // 2
        assert abs(each.tokens - each.wished_share * tokens) <= longest + 1, wished


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    for i, name in enumerate(("a", "b")):
        tokenize_documents(tmp_path / name, some_documents(60, 60, i))
    return [tmp_path / "a", tmp_path / "b"]


def test_outputs_that_are_shuffled_together_are_shuffled_as_their_merge_is(two: list[Path], tmp_path: Path) -> None:
    tokmill.merge(two, tmp_path / "ab")
    tokmill.shuffle(two, tmp_path / "s1", seed=3)
    tokmill.shuffle(tmp_path / "ab", tmp_path / "s2", seed=3, memory="128MiB")
    assert written(tmp_path / "s1") == written(tmp_path / "s2")
    assert documents_of(tmp_path / "s1") == shuffled([*documents_of(two[0]), *documents_of(two[1])], 3)


def test_the_merge_of_one_shuffled_output_is_a_copy_with_its_proof(two: list[Path], tmp_path: Path) -> None:
    tokmill.shuffle(two, tmp_path / "s", seed=3)
    tokmill.merge(tmp_path / "s", tmp_path / "copy")
    assert files_in(tmp_path / "copy") == files_in(tmp_path / "s")
    assert tokmill.verify(tmp_path / "copy").order_checked


@pytest.mark.parametrize("seed", ["a", None, True])
def test_a_seed_that_is_none_is_refused_without_a_value_that_is_none(seed: Any, two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        tokmill.shuffle(two, tmp_path / "s", seed=seed)
    assert "''" not in str(caught.value)
    assert "--seed 0" in str(caught.value)


def test_an_output_of_parts_is_shuffled_as_that_of_one_run(tmp_path: Path) -> None:
    corpus = tokenize_documents(tmp_path / "one", some_documents(80, 60, 1))
    make_parts([corpus], tmp_path / "parts", 3, val_fraction=0.2)
    finalize(tmp_path / "parts")
    tokmill.shuffle(tmp_path / "one", tmp_path / "s1", seed=9)
    tokmill.shuffle(tmp_path / "parts", tmp_path / "s2", seed=9)
    assert ids_of(tmp_path / "s1") == ids_of(tmp_path / "s2")


@pytest.mark.parametrize("trainer", ["llmc", "megatron", "datatrove", "olmo", "litdata", "mds"])
def test_from_any_format_through_any_other_the_ids_are_the_same(trainer: str, two: list[Path], tmp_path: Path) -> None:
    shards = {} if trainer in ("megatron", "datatrove", "olmo") else {"shard_tokens": 2048 if trainer == "mds" else 1000}
    tokmill.convert(two[0], tmp_path / "f", format=trainer, **shards)  # type: ignore[arg-type]
    tokmill.shuffle(tmp_path / "f", tmp_path / "fs", seed=4)
    assert tokmill.verify(tmp_path / "fs").ok
    tokmill.shuffle(two[0], tmp_path / "s", seed=4)
    tokmill.convert(tmp_path / "s", tmp_path / "sf", format=trainer, **shards)  # type: ignore[arg-type]
    assert tokmill.verify(tmp_path / "sf").order_checked
    assert tokmill.verify(tmp_path / "sf").ok
    if trainer not in ("litdata", "mds"):
        assert ids_of(tmp_path / "fs")[0] == ids_of(tmp_path / "sf")[0]


def make(command: str, two: list[Path], out: Path) -> None:
    with tiny(bucket_bytes=4000, commit_bytes=2500):
        if command == "shuffle":
            tokmill.shuffle(two, out, seed=1)
        else:
            tokmill.mix({str(two[0]): 0.6, str(two[1]): 0.4}, out, seed=1, tokens=1500)


@pytest.mark.parametrize("command", ["shuffle", "mix"])
def test_died_at_any_call_it_goes_on_to_the_same_bytes(
    command: str, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(command, two, tmp_path / "whole")
    n = 0
    for n in itertools.count(1, 7):
        out = tmp_path / f"out{n}"
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                make(command, two, out)
        if calls() < n:
            break
        make(command, two, out)
        assert written(out) == written(tmp_path / "whole"), n
        assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "train.bin", "val.bin"], n
        assert tokmill.verify(out).ok
    assert n > 50


@pytest.mark.parametrize("command", ["shuffle", "mix"])
def test_a_disk_that_is_full_in_any_pass_is_one_error_and_more_room_resumes(
    command: str, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(command, two, tmp_path / "whole")
    n = 0
    for n in itertools.count(1, 9):
        out = tmp_path / f"out{n}"
        with monkeypatch.context() as patch:
            calls = full_from(n, patch)
            with contextlib.suppress(DiskFullError):
                make(command, two, out)
        if calls() < n:
            break
        assert not (out / "manifest.json").exists(), n
        make(command, two, out)
        assert files_in(out) == files_in(tmp_path / "whole"), n
    assert n > 30


def test_many_tiny_documents_take_no_more_memory_than_a_few_long_ones(tmp_path: Path) -> None:
    """As objects of Python those of one block would take a hundred times their bytes."""
    ids = np.full(900_000, EOT, np.uint16)
    ids[::3] = ids[1::3] = 7
    ids.tofile(tmp_path / "ids.bin")
    options: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": EOT}
    tokmill.convert(tmp_path / "ids.bin", tmp_path / "a", format="raw", **options)
    done = command("shuffle", tmp_path / "a", "--seed", 1, "--out", tmp_path / "s", "--memory", "128MiB", "--json")
    assert json.loads(done.stdout)["peak_rss_bytes"] < 128 << 20, done.stderr
    assert tokmill.verify(tmp_path / "s").order_checked


def test_what_is_committed_is_not_done_again(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopping:
        n = 0

        def on_event(self, event: AnyEvent) -> None:
            self.n += isinstance(event, Committed)
            if self.n == 4:
                raise KeyboardInterrupt

    whole = tokmill.shuffle(two, tmp_path / "whole", seed=1)
    with tiny(bucket_bytes=1500):
        with pytest.raises(KeyboardInterrupt):
            tokmill.shuffle(two, tmp_path / "out", seed=1, observers=[Stopping()])
        with pytest.raises(ChangedError):
            tokmill.shuffle(two, tmp_path / "out", seed=2)
        outcome = tokmill.shuffle(two, tmp_path / "out", seed=1, memory="256MiB")
    assert outcome.resumed
    assert outcome.bytes_out == whole.bytes_out
    assert written(tmp_path / "out") == written(tmp_path / "whole")


@pytest.mark.parametrize("n_commits", [6, 9])
def test_a_run_that_goes_on_with_another_memory_writes_the_same_bytes(n_commits: int, two: list[Path], tmp_path: Path) -> None:
    """The first pass of a small corpus has no commit: the number of buckets must not come from the memory of the second run."""

    class Stopping:
        n = 0

        def on_event(self, event: AnyEvent) -> None:
            self.n += isinstance(event, Committed)
            if self.n == n_commits:
                raise KeyboardInterrupt

    tokmill.shuffle(two, tmp_path / "whole", seed=1)
    with tiny(bucket_bytes=1500), pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_run, "_SCATTERED_BYTES", 1 << 30)
        with pytest.raises(KeyboardInterrupt):
            tokmill.shuffle(two, tmp_path / "out", seed=1, observers=[Stopping()])
    for bucket_bytes in (900, 1 << 20):
        shutil.copytree(tmp_path / "out", out := tmp_path / f"out{bucket_bytes}")
        with tiny(bucket_bytes=bucket_bytes):
            assert tokmill.shuffle(two, out, seed=1).resumed
        assert written(out) == written(tmp_path / "whole")
        assert tokmill.verify(out).ok


@pytest.mark.parametrize("name", ["shuffle", "pack"])
def test_a_run_that_goes_on_with_too_little_memory_for_its_buckets_is_refused(name: str, two: list[Path], tmp_path: Path) -> None:
    def make(out: str) -> tokmill.Outcome:
        if name == "pack":
            return tokmill.pack(two, tmp_path / out, sequence=16, seed=1)
        return tokmill.shuffle(two, tmp_path / out, seed=1)

    make("whole")
    kind = packed_run.PackedRun if name == "pack" else arranging.Arranging
    with tiny(1 << 20), positions(kind, 0), contextlib.suppress(Died):
        make("out")
    with tiny(400), pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_run, "FIXED_BYTES", (1 << 30) - 8000)
        with pytest.raises(UsageError, match="1 bucket with") as caught:
            make("out")
    assert caught.value.option == "--memory"
    make("out")
    assert written(tmp_path / "out") == written(tmp_path / "whole")


@pytest.mark.parametrize("most_held", [7, 100, 1 << 20])
def test_sorted_keys_are_those_of_all_copies_whatever_is_held(most_held: int) -> None:
    times = [(50, 0, 1 << 63), (30, 3, None), (40, 1, 1 << 62), (20, 0, None)]
    sources = []
    for number, (n, whole, last) in enumerate(times):
        chosen = int(np.sum(choice_keys(5, number, np.arange(n, dtype=np.uint64)) <= np.uint64(last))) if last else 0
        taken = whole * n + chosen
        sources.append(
            ArrangedSource(
                fingerprint="", documents=n, tokens=n, times=whole, last_chosen=last, taken_documents=taken, taken_tokens=taken
            )
        )
    arrangement = Arrangement(seed=5, sources=tuple(sources))
    found = np.concatenate(list(sorted_keys(arrangement, most_held)))
    numbers = [copies(arrangement, number, 0, n)[1] for number, (n, _, _) in enumerate(times)]
    assert found.tolist() == sorted(order_keys(arrangement, np.concatenate(numbers)).tolist())
    assert len(found) == arrangement.n_documents


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.9, 0.999])
def test_documents_are_chosen_in_bounded_memory_though_a_few_have_most_of_the_tokens(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [b"a b" if i % 97 else b"a b " * 4000 for i in range(400)]
    tokenize_documents(tmp_path / "a", documents, val_fraction=0)
    most, wanted = 0, int(share * load_manifest(tmp_path / "a").counts.tokens_train)
    monkeypatch.setattr(choosing, "_MOST_MEASURED", 20)
    real = choosing.measured

    def measured(*arguments: Any) -> Any:
        nonlocal most
        found = real(*arguments)
        most = max(most, len(found.keys))
        return found

    monkeypatch.setattr(mixing, "measured", measured)
    tokmill.mix([(tmp_path / "a", 1)], tmp_path / "m", seed=3, tokens=wanted)
    assert documents_of(tmp_path / "m") == mixed([documents_of(tmp_path / "a")], [1], wanted, 3, 2)
    assert most < 60


def test_documents_that_are_not_kept_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 2000
    monkeypatch.setattr(choosing, "_lengths", lambda _source, _portion: (np.array([7]) for _ in range(n)))
    operand: Any = SimpleNamespace(number=0, source=None)
    whole = Portion(operand=0, token=0, end=7 * n, document=0, n_documents=n)
    tracemalloc.start()
    found = choosing._measured_portion(operand, 1, 0, 1, whole)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(found.keys), int(found.tokens.sum())) == (0, 7 * n)
    assert peak_bytes < 400_000


def test_a_mixture_may_reach_the_end_of_a_source(two: list[Path], tmp_path: Path) -> None:
    """Every document of the scarcer one as often as it may be taken, and not once more."""
    n_tokens = load_manifest(two[1]).counts.tokens_train
    for epochs in (1, 3):
        outcome = tokmill.mix([(two[0], 2), (two[1], 3)], tmp_path / f"m{epochs}", seed=1, max_epochs=epochs)
        _, second = outcome.mixture
        assert (second.least_times, second.most_times, second.tokens) == (epochs, epochs, epochs * n_tokens)
        assert tokmill.verify(tmp_path / f"m{epochs}").order_checked


def change(out: Path, edit: Any) -> None:
    """Change the ids of the training side, and all digests with them, as somebody would who knows how."""
    ids = np.fromfile(out / "train.bin", np.uint16)
    edit(ids).tofile(out / "train.bin")
    manifest = load_manifest(out)
    data = (out / "train.bin").read_bytes()
    segments, begin = [], 0
    for segment in manifest.segments:
        files = dict(segment.files)
        if "train.bin" in files:
            span = files["train.bin"]
            files["train.bin"] = msgspec.structs.replace(span, digest=xxhash.xxh3_128_hexdigest(data[begin : span.end]), pieces="")
            begin = span.end
        segments.append(msgspec.structs.replace(segment, files=files))
    rewrite_manifest(out, manifest, segments=segments)


def swap(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    ends = (np.flatnonzero(ids == EOT) + 1).tolist()
    return np.concatenate([ids[ends[0] : ends[1]], ids[: ends[0]], ids[ends[1] :]])


def alter(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    ids[np.flatnonzero(ids != EOT)[7]] ^= 1
    return ids


def move_mark(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    at = int(np.flatnonzero(ids == EOT)[3])
    ids[at], ids[at - 1] = ids[at - 1], ids[at]
    return ids


@pytest.mark.parametrize("edit", [swap, alter, move_mark])
def test_verify_finds_documents_that_are_changed_or_misplaced_though_all_digests_agree(
    edit: Any, two: list[Path], tmp_path: Path
) -> None:
    tokmill.shuffle(two, tmp_path / "s", seed=1)
    assert tokmill.verify(tmp_path / "s").ok
    change(tmp_path / "s", edit)
    report = tokmill.verify(tmp_path / "s")
    assert [p.what for p in report.problems] == ["the documents of train are not those of its sources in the order of the seed"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"taken_documents": 7}, "the seed takes [0-9]+ documents of source 1, but the manifest says [0-9]+"),
        ({"taken_tokens": 7}, "[0-9,]+ tokens of train, but [0-9,]+ of its sources together"),
    ],
    ids=["documents", "tokens"],
)
def test_verify_finds_figures_of_a_mixture_that_are_not_those_of_its_documents(
    changes: dict[str, int], what: str, two: list[Path], tmp_path: Path
) -> None:
    tokmill.mix([(two[0], 0.7), (two[1], 0.3)], out := tmp_path / "m", seed=1, tokens=3000)
    manifest = load_manifest(out)
    origin = manifest.content.origin
    assert origin
    assert origin.arranged
    first, second = origin.arranged.sources
    by = {name: [getattr(first, name) + n, getattr(second, name) - n * (name == "taken_documents")] for name, n in changes.items()}
    sources = tuple(
        msgspec.structs.replace(each, **{name: values[i] for name, values in by.items()}) for i, each in enumerate((first, second))
    )
    edited = msgspec.structs.replace(origin, arranged=msgspec.structs.replace(origin.arranged, sources=sources))
    content = msgspec.structs.replace(manifest.content, origin=edited)
    rewrite_manifest(out, manifest, content=content, fingerprint=content.fingerprint())
    (problem,) = tokmill.verify(out).problems
    assert re.fullmatch(what, problem.what)


def test_verify_of_an_order_takes_any_memory(two: list[Path], tmp_path: Path) -> None:
    tokmill.shuffle(two, tmp_path / "s", seed=1)
    assert tokmill.verify(tmp_path / "s", memory=1).ok


@contextlib.contextmanager
def positions(kind: type[Any], dies_at: int | None) -> Iterator[list[float]]:
    """Where a run is, in parts of the whole; it dies at a bucket."""
    found: list[float] = []
    real_write, real_note, real_started = kind._write_bucket, bucket_run.BucketRun._note, ProgressReporter.started
    total_bytes = 0

    def write(run: Any, number: int, *arguments: Any) -> None:
        if number == dies_at:
            raise Died
        real_write(run, number, *arguments)

    def note(run: Any, n_bytes: int) -> None:
        real_note(run, n_bytes)
        found.append(run._position_bytes / total_bytes)

    def started(reporter: ProgressReporter, n_bytes: int, *arguments: Any) -> None:
        nonlocal total_bytes
        total_bytes = n_bytes
        real_started(reporter, n_bytes, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "_write_bucket", write)
        patch.setattr(bucket_run.BucketRun, "_note", note)
        patch.setattr(ProgressReporter, "started", started)
        yield found


@pytest.mark.parametrize("name", ["shuffle", "tokenize", "pack"])
def test_the_position_ends_where_all_is_done_however_often_it_was_resumed(name: str, two: list[Path], tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "c.txt", [each.decode() for each in some_documents(60, 60, 1)]), tmp_path / "out"
    make: dict[str, Callable[[], object]] = {
        "shuffle": lambda: tokmill.shuffle(two, out, seed=1),
        "tokenize": lambda: tokmill.tokenize(corpus, out, shuffle=1),
        "pack": lambda: tokmill.pack(two, out, sequence=16, seed=1),
    }
    kind = packed_run.PackedRun if name == "pack" else arranging.Arranging
    before = 0.0
    for bucket in (2, 4, 5):
        with tiny(1000), positions(kind, bucket) as found, contextlib.suppress(Died):
            make[name]()
        assert before < max(found) < 1
        before = max(found)
    with tiny(1000), positions(kind, None) as found:
        make[name]()
    # Sequences have ids that fill them up.
    assert max(found) == pytest.approx(1, abs=0.02 if name == "pack" else 1e-9)


def test_documents_that_were_dropped_with_the_last_shard_are_no_damage(tmp_path: Path) -> None:
    """These formats cut shards where documents end: a shard that is dropped is a number of documents."""
    corpus = tmp_path / "a.txt"
    corpus.write_bytes(b"\n\n".join(some_documents(60, 60, 1)))
    options: dict[str, Any] = {"format": "datatrove", "separator": "\n\n", "shuffle": 1}
    tokmill.tokenize(corpus, tmp_path / "whole", **options)
    assert tokmill.verify(tmp_path / "whole").order_checked
    tokmill.tokenize(corpus, tmp_path / "short", shard_tokens=500, drop_tail=True, **options)
    report = tokmill.verify(tmp_path / "short")
    assert report.ok
    assert report.documents_train < tokmill.verify(tmp_path / "whole").documents_train
    assert not report.order_checked


def test_a_bucket_that_was_damaged_is_found_before_it_is_published(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = arranging.Arranging._write_val

    def damaging(self: arranging.Arranging) -> None:
        flip(max((tmp_path / "out" / ".tokmill").glob("bucket_*.ids.part"), key=lambda p: p.stat().st_size), 20)
        real(self)

    monkeypatch.setattr(arranging.Arranging, "_write_val", damaging)
    with pytest.raises(DamageError, match="work in progress is damaged"):
        tokmill.shuffle(two, tmp_path / "out", seed=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_source_that_is_damaged_is_named(two: list[Path], tmp_path: Path) -> None:
    flip(two[1] / "train.bin", 100)
    with pytest.raises(DamageError, match="a source is damaged") as caught:
        tokmill.shuffle(two, tmp_path / "out", seed=1)
    assert str(two[1] / "train.bin") in str(caught.value.where)


def test_what_thousands_of_buckets_hold_together_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "write_pieces", lambda _path, pieces, _offset: sum(map(len, pieces)))
    n, most_bytes = 5000, 1 << 19
    made = buckets.Buckets(TreePath(tmp_path), buckets.BucketState(fingerprint="", n_buckets=n), most_bytes)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(3 * n):
            made.add(i % n, bytes(200), bytes(12), 0)
        grown = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    made.flush(made.state)
    assert sum(made.state.ids) == 3 * n * 200
    # An empty list of each bucket, made anew, is not counted: there are 10,000.
    assert grown < most_bytes + n * 400


def test_positions_are_uniform(tmp_path: Path) -> None:
    """Kolmogorov-Smirnov over 100 seeds: where the first, the middle and the last document come to lie, and their neighbours."""
    n, seeds = 400, 100
    positions = np.empty((seeds, n))
    for seed in range(seeds):
        source = ArrangedSource(fingerprint="", documents=n, tokens=n, taken_documents=n, taken_tokens=n)
        arrangement = Arrangement(seed=seed, sources=(source,))
        order = np.argsort(order_keys(arrangement, copies(arrangement, 0, 0, n)[1]))
        positions[seed, order] = np.arange(n)
    for place in (0, 1, n // 2, n - 1):
        found = np.sort((positions[:, place] + 0.5) / n)
        distance = max(np.max(np.arange(1, seeds + 1) / seeds - found), np.max(found - np.arange(seeds) / seeds))
        # 1.95 / sqrt(100): exceeded once in a thousand times, and the seeds are fixed.
        assert distance < 0.195, place
    # Documents that were neighbours are no nearer to each other than any others: a third of the length, on average.
    assert abs(np.abs(np.diff(positions, axis=1)).mean() / n - 1 / 3) < 0.01


def refused(pairs: Sequence[tuple[Path, object]], out: Path, **options: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        tokmill.mix(pairs, out, seed=1, **options)  # type: ignore[arg-type]
    assert not out.exists()
    return caught.value


def test_a_mixture_that_cannot_be_is_refused_with_what_can(two: list[Path], tmp_path: Path) -> None:
    a, b = two
    most = 4 * load_manifest(a).counts.tokens_train
    error = refused([(a, 1), (b, 1e-6)], tmp_path / "m", tokens=10 * most)
    assert error.option == "--tokens"
    assert tokmill.mix([(a, 1), (b, 1e-6)], tmp_path / "ok", seed=1, tokens=error.suggested).tokens_train <= most + 1
    assert "--max-epochs" in str(error.next_step)
    assert "no weight" in refused([(a, "x"), (b, 1)], tmp_path / "m").what
    assert "no weight" in refused([(a, -1), (b, 1)], tmp_path / "m").what
    assert "no weight" in refused([(a, "nan"), (b, 1)], tmp_path / "m").what
    assert "no weight" in refused([(a, "1e999999999"), (b, 1)], tmp_path / "m").what
    assert "above 0" in refused([(a, "1e-999999999"), (b, 0)], tmp_path / "m").what
    assert "above 0" in refused([(a, 0), (b, 0)], tmp_path / "m").what
    assert "2 sources" in refused([(a, 1), (b, 1)], tmp_path / "m", max_epochs=[4]).what
    assert refused([(a, 1)], tmp_path / "m", max_epochs=0).option == "--max-epochs"
    assert refused([(a, 1)], tmp_path / "m", memory="1MiB").option == "--memory"


def test_each_weight_is_of_one_output_that_is_named_once(two: list[Path], tmp_path: Path) -> None:
    a, b = two
    # A weight for each of what a pattern matches would be a guess.
    pattern = tmp_path / "[ab]"
    assert "match this pattern" in refused([(pattern, 1)], tmp_path / "m").what
    assert "match this pattern" in refused([(pattern, 1), (a, 1)], tmp_path / "m").what
    shutil.copytree(a, tmp_path / "copy")
    for other in (a, tmp_path / "copy"):
        assert "the same output twice" in refused([(a, 1), (b, 1), (other, 1)], tmp_path / "m").what
    outcome = tokmill.shuffle([a, a], tmp_path / "s", seed=1)
    assert any("more than one of the sources" in notice for notice in outcome.notices)
    assert not any("more than one" in notice for notice in tokmill.shuffle([a, b], tmp_path / "t", seed=1).notices)


def test_what_can_be_known_before_the_sources_are_read_is(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, out = [(two[0], 0.6), (two[1], 0.4)], tmp_path / "out"
    whole = tokmill.mix(pairs, tmp_path / "whole", seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(directory.Output, "publish", _die)
        with pytest.raises(Died):
            tokmill.mix(pairs, out, seed=1)
    monkeypatch.setattr(mixing, "_all_arranged", _stop)
    assert tokmill.mix(pairs, out, seed=1).resumed
    assert files_in(out) == files_in(tmp_path / "whole")
    assert tokmill.mix(pairs, out, seed=1).already_complete
    assert tokmill.mix(pairs, out, seed=1).mixture == whole.mixture
    with pytest.raises(ChangedError, match="--seed was 1, is 2"):
        tokmill.mix(pairs, out, seed=2)
    with pytest.raises(ChangedError, match="weights"):
        tokmill.mix([(two[0], 0.5), (two[1], 0.5)], out, seed=1)
    with pytest.raises(UsageError, match="is not a value of --format"):
        tokmill.mix(pairs, tmp_path / "new", seed=1, format="x")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "train.bin").write_bytes(b"mine")
    with pytest.raises(UsageError, match="no tokmill manifest lists it"):
        tokmill.mix(pairs, tmp_path / "others", seed=1)


def test_the_disk_is_asked_for_the_output_and_what_lies_in_buckets_beside_it(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokmill.merge(two, tmp_path / "m")
    n_bytes = 2 * load_manifest(tmp_path / "m").counts.tokens_train
    monkeypatch.setattr("tokmill.output.disk_space._need", _asked := _Asked())
    with contextlib.suppress(DiskFullError, _StopError):
        tokmill.shuffle(two, tmp_path / "s", seed=1)
    assert 2 * n_bytes <= _asked.output < 2.6 * n_bytes
    # Of a large one, buckets are removed as the output grows.
    content, counts = load_manifest(tmp_path / "m").content, Counts(tokens_train=10**12, documents_train=10**9)
    asked = {
        how: shuffling._scratch_bytes(content, counts, 1 << 30, is_step=how == "step", is_spread=how == "spread")
        for how in ("step", "whole", "spread")
    }
    assert asked["step"] == RECORD.itemsize * 10**9
    assert asked["whole"] - asked["step"] == (1 << 30) + (256 << 20)
    assert asked["spread"] > 2 * 10**12 + RECORD.itemsize * 10**9


def test_tokenize_shuffle_into_an_output_in_the_order_of_its_inputs_says_what_differs(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.txt", ["one", "two"])
    tokmill.tokenize(corpus, tmp_path / "plain")
    with pytest.raises(ChangedError, match="in an order of a seed"):
        tokmill.tokenize(corpus, tmp_path / "plain", shuffle=1)


@pytest.mark.parametrize("options", [{"shuffle": 1}, {"dedup": True}])
def test_what_was_tokenized_for_another_output_is_named_and_goes_with_fresh(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Died

    corpus, out = write_corpus(tmp_path / "a.txt", ["one", "two"]), tmp_path / "out"
    with monkeypatch.context() as patch:
        for name in ("shuffle_into", "dedup_into"):
            patch.setattr(f"tokmill.derive.{name}", die)
        with pytest.raises(Died):
            tokmill.tokenize(corpus, out, **options)
    tokenized = out / ".tokmill" / "tokenized"
    with pytest.raises(ChangedError, match="begun with --shuffle or --dedup") as caught:
        tokmill.tokenize(corpus, out)
    assert caught.value.where == str(tokenized)
    assert (tokenized / "train.bin").exists()
    for busy in (out, tokenized):
        lock = acquire_lock(busy)
        with pytest.raises(LockedError):
            tokmill.tokenize(corpus, out, fresh=True)
        lock.release(remove=True)
        assert (tokenized / "train.bin").exists()
    tokmill.tokenize(corpus, out, fresh=True)
    assert not (out / ".tokmill").exists()
    assert tokmill.verify(out).ok


def test_tokenize_asks_at_once_for_the_disk_that_a_shuffle_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids twice, and a record for each document."""
    texts = [text.decode() for text in some_documents(60, 60, 1)]
    corpus = write_corpus(tmp_path / "a.txt", texts)
    monkeypatch.setattr("tokmill.output.disk_space._need", asked := _Asked())
    needs = []
    for options in ({}, {"shuffle": 1}):
        with pytest.raises(_StopError):
            tokmill.tokenize(corpus, tmp_path / "s", **options)  # type: ignore[arg-type]
        needs.append(asked.output)
    # Each byte may be a token, and each of those a document, before a sample was taken.
    assert needs[1] == needs[0] * 2 + RECORD.itemsize * needs[0] // 2 > 0


def bytes_of(out: Path) -> int:
    """Of ids and of what is on its way; files may be removed meanwhile."""
    n_bytes = 0
    for path in out.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            n_bytes += path.stat().st_size if path.suffix in (".bin", ".part") else 0
    return n_bytes


@pytest.mark.parametrize("bucket_bytes", [2000, 1 << 20])
def test_tokenize_shuffle_never_has_the_ids_on_the_disk_more_than_twice(
    bucket_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, documents = tmp_path / "out", some_documents(300, 200, 1)
    corpus = write_corpus(tmp_path / "a.txt", [text.decode() for text in documents])
    most = 0

    def looking(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal most
            done = real(*arguments)
            most = max(most, bytes_of(out))
            return done

        return call

    with tiny(bucket_bytes=bucket_bytes, block_tokens=500, commit_bytes=2000):
        for name in ("write_all", "write_all_at"):
            monkeypatch.setattr(durable, name, looking(getattr(durable, name)))
        made = tokmill.tokenize(corpus, out, shuffle=1, val_fraction=0.1)
    n_bytes = 2 * (made.tokens_train + made.tokens_val)
    records = RECORD.itemsize * made.documents_train
    # Beside them the journal's state of the buckets.
    assert 1.8 * n_bytes < most < 2 * n_bytes + records + 20_000


class _StopError(Exception):
    pass


class _Asked:
    output = 0

    def __call__(self, _out: Path, _content: object, _n: int, output: int, *_: object, **__: object) -> None:
        self.output = output
        raise _StopError


def test_a_plan_of_tokenize_shuffle_counts_its_passes_and_temporary_disk(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.txt", [text.decode() for text in some_documents(300, 200, 1)])
    plain, plan = (tokmill.plan(corpus, tmp_path / "out", shuffle=seed) for seed in (None, 1))
    assert plain.scratch_bytes is not None
    assert (plain.passes, plain.scratch_bytes.value, plan.passes) == (1, 0, 3)
    made = tokmill.tokenize(corpus, tmp_path / "out", shuffle=1)
    assert plan.scratch_bytes is not None
    n_documents = made.documents_train + made.documents_val
    assert plan.scratch_bytes.value == 2 * (made.tokens_train + made.tokens_val) + RECORD.itemsize * n_documents
    assert plan.disk is not None
    assert plain.disk is not None
    assert plan.disk.output_bytes - plain.disk.output_bytes == plan.scratch_bytes.value
    again, other = (tokmill.plan(corpus, tmp_path / "out", shuffle=seed) for seed in (1, 2))
    assert again.is_complete
    assert not [said for said in again.notices if "refuse" in said]
    assert not other.is_complete
    assert [said for said in other.notices if "refuse this --out" in said and "seed" in said]


def test_tokenized_and_shuffled_in_one_command_is_one_after_the_other(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt", [text.decode() for text in some_documents(200, 60, 1)])
    options: dict[str, Any] = {"val_fraction": 0.1, "format": "llmc", "shard_tokens": 2000}
    tokmill.tokenize(corpus, tmp_path / "t", **options)
    tokmill.shuffle(tmp_path / "t", tmp_path / "s", seed=7)
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arranging.Arranging, "_write_val", _stop)
        with pytest.raises(_StopError):
            tokmill.tokenize(corpus, out, shuffle=7, **options)
    assert not (out / "manifest.json").exists()
    summary = tokmill.tokenize(corpus, out, shuffle=7, **options)
    assert files_in(out) == files_in(tmp_path / "s")
    assert summary.tokens_train == load_manifest(out).counts.tokens_train
    assert tokmill.verify(out).order_checked
    assert not (out / ".tokmill").exists()
    assert tokmill.tokenize(corpus, out, shuffle=7, **options).already_complete
    for other in ({"shuffle": 8}, {}, {"shuffle": 7, "keep_empty": True}):
        with pytest.raises(ChangedError):
            tokmill.tokenize(corpus, out, **(options | other))
    tokmill.tokenize(corpus, out, shuffle=8, fresh=True, **options)
    assert files_in(out) != files_in(tmp_path / "s")


def test_after_the_tokenized_ids_are_gone_it_goes_on_starts_over_or_says_what_changed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt", [text.decode() for text in some_documents(100, 60, 1)])
    tokmill.tokenize(corpus, tmp_path / "whole", shuffle=7)
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arranging.Arranging, "_write_val", _stop)
        with pytest.raises(_StopError):
            tokmill.tokenize(corpus, out, shuffle=7)
    step = out / ".tokmill" / "tokenized"
    assert (step / "manifest.json").exists()
    assert not (step / "train.bin").exists()
    for name, options in (("on", {}), ("over", {"fresh": True})):
        shutil.copytree(out, tmp_path / name)
        tokmill.tokenize(corpus, tmp_path / name, shuffle=7, **options)  # type: ignore[arg-type]
        assert files_in(tmp_path / name) == files_in(tmp_path / "whole")
    with pytest.raises(ChangedError, match="seed"):
        tokmill.tokenize(corpus, out, shuffle=8)
    write_corpus(corpus, ["another text"])
    with pytest.raises(ChangedError) as caught:
        tokmill.tokenize(corpus, out, shuffle=7)
    assert "--fresh" in str(caught.value.next_step)
    tokmill.tokenize(corpus, out, shuffle=7, fresh=True)
    assert tokmill.verify(out).order_checked


def _die(*_: object) -> None:
    raise Died


def _stop(_self: object) -> None:
    raise _StopError


@pytest.mark.parametrize("trainer", ["raw", "llmc"])
def test_the_commands_that_a_report_shows_make_the_same_again(trainer: str, two: list[Path], tmp_path: Path) -> None:
    tokmill.shuffle(two, tmp_path / "s", seed=5, format=trainer)
    tokmill.mix([(two[0], 3), (two[1], 1)], tmp_path / "m", seed=5, format=trainer)
    tokmill.tokenize(tmp_path / "a.txt", tmp_path / "t", shuffle=5, format=trainer)
    for name in ("s", "m", "t"):
        manifest = load_manifest(tmp_path / name)
        shown = commands(manifest.content, manifest.made_from, str(tmp_path / f"{name}-again"))
        assert run(shlex.split(shown.replace("\\\n", " "))[1:]) == 0, shown
        assert files_in(tmp_path / f"{name}-again") == files_in(tmp_path / name)
