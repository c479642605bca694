"""`pack`: each document once, whole where it fits, in as few sequences as plain best-fit decreasing needs; in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.commands import command
from support.corpora import some_documents, write_corpus
from support.failures import Died, dying_at, flip
from support.oracle import EOT
from support.outputs import collect_data, files_in, ids_of, reseal, rewrite_manifest, written
from support.packed import counted_pieces, n_bins, n_cut_by_windows, pieces_of, read_rows
from support.runs import tokenize_documents
from support.small_arranging import tiny
from support.turns import in_turns

import tokmill
from tokmill.cli.app import run
from tokmill.core.errors import ChangedError, DamageError, DiskFullError, UsageError
from tokmill.core.events import AnyEvent, Committed
from tokmill.core.manifest import load_manifest
from tokmill.derive import packed_run, pieces
from tokmill.derive.bins import Bins
from tokmill.derive.buckets import Buckets, BucketState
from tokmill.reports.reporting import make_page
from tokmill.reports.reproduce import commands

pytestmark = pytest.mark.usefixtures("workers_in_process")

QUICK = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
PAD = 187
"""GPT-2's token for the byte 0xFF, which no text has."""


def documents_of(out: Path, side: str = "train") -> list[bytes]:
    """The documents of a side, as the bytes of their ids."""
    with tokmill.open(out) as data:
        ids = np.asarray(data.side(side))
    is_before = load_manifest(out).content.eot == "before"
    marks = np.flatnonzero(ids == EOT)
    edges = [*marks.tolist(), len(ids)] if is_before else [0, *(marks + 1).tolist()]
    return [ids[a:b].tobytes() for a, b in itertools.pairwise(edges)]


@given(size=st.integers(1, 40), lengths=st.lists(st.integers(1, 40), max_size=200))
def test_bins_are_as_many_as_of_plain_best_fit_decreasing_and_none_is_too_full(size: int, lengths: list[int]) -> None:
    lengths = [min(length, size) for length in lengths]
    bins = Bins(np.bincount(lengths, minlength=size + 1).astype(np.int64) if lengths else np.zeros(size + 1, np.int64))
    assert bins.n_bins == n_bins(lengths, size)
    seen: Counter[int] = Counter()
    numbers = []
    for length in lengths:
        numbers.append(seen[length])
        seen[length] += 1
    if not lengths:
        return
    places = bins.places(bins.kinds(np.array(lengths)), np.array(numbers))
    used = np.bincount(places.bins, lengths, minlength=bins.n_bins)
    assert 0 < used.min() <= used.max() <= size
    n_items = np.bincount(places.bins, minlength=bins.n_bins)
    assert n_items[places.bins].tolist() == places.n_slots.tolist()
    expected = sorted((at, slot) for at, n in enumerate(n_items.tolist()) for slot in range(n))
    assert sorted(zip(places.bins.tolist(), places.slots.tolist(), strict=True)) == expected


@in_turns(2)
@settings(max_examples=8, suppress_health_check=QUICK, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab é\n漢", max_size=40).map(str.encode), min_size=1, max_size=40),
    sequence=st.sampled_from([1, 2, 5, 16, 300]),
    seed=st.integers(0, (1 << 64) - 1),
    eot=st.sampled_from(["after", "before"]),
    drop=st.sampled_from(["nothing", "nothing", "rests", "long"]),
    bucket_bytes=st.sampled_from([70, 400, 1 << 20]),
    block_tokens=st.integers(3, 200),
)
def test_each_document_is_there_once_whole_or_cut_as_said(
    turn: int,
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[bytes],
    sequence: int,
    seed: int,
    eot: str,
    drop: Any,
    bucket_bytes: int,
    block_tokens: int,
) -> None:
    base = tmp_path_factory.mktemp("pack")
    tokenize_documents(base / "a", texts, eot=eot, keep_empty=True, val_fraction=0.3)
    with tiny(bucket_bytes, block_tokens):
        outcome = tokmill.pack(base / "a", base / "p", sequence=sequence, seed=seed, drop=drop)
    for side in ("train", "val"):
        documents = documents_of(base / "a", side)
        if not documents:
            continue
        wanted, found = pieces_of(documents, sequence, drop=drop), outcome.packed[side]
        rows = read_rows(base / "p" / f"{side}.bin", sequence, PAD) if wanted else []
        assert counted_pieces(rows) == Counter(wanted)
        assert len(rows) == found.sequences == n_bins([len(piece) // 2 for piece in wanted], sequence)
        assert found.pieces == len(wanted)
        assert found.padding == len(rows) * sequence - sum(map(len, wanted)) // 2
        assert found.cut == sum(len(document) > 2 * sequence for document in documents)
        assert found.cut_by_windows == n_cut_by_windows(documents, sequence)
        assert found.dropped_tokens == (sum(map(len, documents)) - sum(map(len, wanted))) // 2
    report = tokmill.verify(base / "p")
    assert report.problems == []
    assert report.order_checked
    tokmill.pack(base / "a", base / "again", sequence=sequence, seed=seed, drop=drop, memory="128MiB")
    assert files_in(base / "again") == files_in(base / "p")


@pytest.mark.parametrize("lengths", [[1], [5], [6], [500], [5] * 30, [1] * 30, [3] * 31, [1, 5, 6, 500, 4]], ids=str)
def test_lengths_at_the_edges(lengths: list[int], tmp_path: Path) -> None:
    """A sequence of 5: documents of 1, 5, 6 and 500 tokens, one alone, all alike. A letter and a space are two tokens."""
    texts = [b"" if n == 1 else (b" a" * (n - 1)) for n in lengths]
    tokenize_documents(tmp_path / "a", texts, keep_empty=True, val_fraction=0)
    assert [len(document) // 2 for document in documents_of(tmp_path / "a")] == lengths
    tokmill.pack(tmp_path / "a", tmp_path / "p", sequence=5, seed=1)
    rows = read_rows(tmp_path / "p" / "train.bin", 5, PAD)
    assert counted_pieces(rows) == Counter(pieces_of(documents_of(tmp_path / "a"), 5))
    assert tokmill.verify(tmp_path / "p").ok


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    for i, name in enumerate(("a", "b")):
        tokenize_documents(tmp_path / name, some_documents(60, 60, i))
    return [tmp_path / "a", tmp_path / "b"]


def test_outputs_that_are_packed_together_are_packed_as_their_merge_is(two: list[Path], tmp_path: Path) -> None:
    tokmill.merge(two, tmp_path / "ab")
    with tiny():
        tokmill.pack(two, tmp_path / "p1", sequence=64, seed=3)
    tokmill.pack(tmp_path / "ab", tmp_path / "p2", sequence=64, seed=3)
    assert files_in(tmp_path / "p1") == files_in(tmp_path / "p2")
    tokmill.pack(tmp_path / "ab", tmp_path / "p3", sequence=64, seed=4)
    assert written(tmp_path / "p3") != written(tmp_path / "p2")


def test_what_lies_together_is_not_what_lay_together(tmp_path: Path) -> None:
    """The n-th document's sequence and place in it say nothing of n, though the plan goes by length: 400 documents of 4 tokens."""
    n = 400
    tokenize_documents(tmp_path / "a", [f" {chr(97 + i % 26)} {chr(97 + i // 26)} x".encode() for i in range(n)], val_fraction=0)
    documents = documents_of(tmp_path / "a")
    tokmill.pack(tmp_path / "a", tmp_path / "p", sequence=16, seed=5)
    rows = read_rows(tmp_path / "p" / "train.bin", 16, PAD)
    place = {piece: (i, j) for i, row in enumerate(rows) for j, piece in enumerate(row)}
    if len(place) == n:
        where = np.array([place[document] for document in documents])
        assert abs(np.corrcoef(np.arange(n), where[:, 0])[0, 1]) < 0.2
        assert abs(np.corrcoef(np.arange(n), where[:, 1])[0, 1]) < 0.2
        assert abs(np.abs(np.diff(where[:, 0])).mean() / len(rows) - 1 / 3) < 0.05


@pytest.mark.parametrize("trainer", ["llmc", "megatron", "litdata", "mds"])
def test_from_any_format_through_any_other_the_sequences_are_the_same(trainer: str, two: list[Path], tmp_path: Path) -> None:
    tokmill.pack(two, tmp_path / "raw", sequence=64, seed=4)
    shards: dict[str, Any] = {} if trainer == "megatron" else {"shard_tokens": 640}
    with tiny():
        tokmill.pack(two, tmp_path / "f", sequence=64, seed=4, format=trainer, **shards)
    report = tokmill.verify(tmp_path / "f")
    assert report.problems == []
    assert report.order_checked
    manifest = load_manifest(tmp_path / "f")
    if trainer == "megatron":
        index = (tmp_path / "f" / "train.idx").read_bytes()
        n = manifest.packed["train"].sequences if manifest.packed else 0
        assert np.frombuffer(index, "<i4", n, 34).tolist() == [64] * n
    if trainer == "mds":
        assert b"ndarray:uint16:64" in next((tmp_path / "f" / "train").glob("shard*.mds")).read_bytes()[:4000]
    if manifest.content.eot == "after":
        assert ids_of(tmp_path / "f") == ids_of(tmp_path / "raw")
    files = [(name, entry) for name, entry in manifest.files.items() if entry.side == "train"]
    assert len(files) > 3 or trainer == "megatron"
    for name, entry in files:
        starts = np.load(tmp_path / "f" / f"{name.rpartition('.')[0]}.starts.npy")
        assert starts.dtype == np.int64
        assert (starts[0], starts[-1]) == (0, entry.tokens)
        assert set(range(0, entry.tokens, 64)) <= set(starts.tolist())


def test_died_at_any_call_it_goes_on_to_the_same_bytes(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(out: Path) -> None:
        with tiny(bucket_bytes=4000, commit_bytes=2500):
            tokmill.pack(two, out, sequence=64, seed=1)

    make(tmp_path / "whole")
    n = 0
    for n in itertools.count(1, 29):
        out = tmp_path / f"out{n}"
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                make(out)
        if calls() < n:
            break
        make(out)
        assert files_in(out) == files_in(tmp_path / "whole"), n
        assert tokmill.verify(out).ok
    assert n > 100


def test_what_is_committed_is_not_done_again_whatever_the_memory(two: list[Path], tmp_path: Path) -> None:
    class Stopping:
        n = 0

        def on_event(self, event: AnyEvent) -> None:
            self.n += isinstance(event, Committed)
            if self.n == 4:
                raise KeyboardInterrupt

    whole = tokmill.pack(two, tmp_path / "whole", sequence=64, seed=1)
    with tiny(bucket_bytes=1500):
        with pytest.raises(KeyboardInterrupt):
            tokmill.pack(two, tmp_path / "out", sequence=64, seed=1, observers=[Stopping()])
        with pytest.raises(ChangedError):
            tokmill.pack(two, tmp_path / "out", sequence=64, seed=2)
    for bucket_bytes in (900, 1 << 20):
        shutil.copytree(tmp_path / "out", out := tmp_path / f"out{bucket_bytes}")
        with tiny(bucket_bytes=bucket_bytes):
            outcome = tokmill.pack(two, out, sequence=64, seed=1)
        assert outcome.resumed
        assert outcome.packed == whole.packed
        assert files_in(out) == files_in(tmp_path / "whole")


def test_a_commit_holds_the_lengths_that_there_are_not_those_that_there_could_be(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sequence of a million ids: as lists, these would be made and written again all the time."""
    real = Buckets.commit

    def commit(self: Buckets, after: BucketState) -> None:
        real(self, after)
        raise KeyboardInterrupt

    monkeypatch.setattr(Buckets, "commit", commit)
    with tiny(), pytest.raises(KeyboardInterrupt):
        tokmill.pack(two, tmp_path / "out", sequence=1 << 20, seed=1)
    states = [path.read_bytes() for path in (tmp_path / "out" / ".tokmill").iterdir()]
    for name in (b'"lengths":{"', b'"numbers":{"'):
        found = [state for state in states if name in state]
        assert found
        assert max(map(len, found)) < 100_000


def swap_documents(ids: Any, starts: Any) -> tuple[Any, Any]:
    """Two whole documents of one sequence in the other order."""
    row = next(i for i in range(len(ids) // 64) if np.count_nonzero(starts // 64 == i) > 2)
    a, b, c = starts[starts // 64 == row][:3].tolist()
    ids[a:c] = np.concatenate([ids[b:c], ids[a:b]])
    starts[np.flatnonzero(starts == b)] = a + c - b
    return ids, starts


def swap_sequences(ids: Any, starts: Any) -> tuple[Any, Any]:
    rows = ids.reshape(-1, 64).copy()
    rows[[0, 1]] = rows[[1, 0]]
    first, second = starts[starts < 64], starts[(starts >= 64) & (starts < 128)]
    return rows.reshape(-1), np.concatenate([second - 64, first + 64, starts[starts >= 128]])


def alter(ids: Any, starts: Any) -> tuple[Any, Any]:
    ids[np.flatnonzero((ids != EOT) & (ids != PAD))[7]] ^= 1
    return ids, starts


def move_start(ids: Any, starts: Any) -> tuple[Any, Any]:
    at = next(i for i in range(1, len(starts) - 1) if starts[i] % 64 and starts[i + 1] - starts[i] > 1)
    starts[at] += 1
    return ids, starts


@pytest.mark.parametrize("edit", [swap_documents, swap_sequences, alter, move_start])
def test_verify_finds_what_is_changed_or_misplaced_though_all_digests_agree(edit: Any, two: list[Path], tmp_path: Path) -> None:
    tokmill.pack(two, out := tmp_path / "p", sequence=64, seed=1)
    ids, starts = edit(np.fromfile(out / "train.bin", "<u2"), np.load(out / "train.starts.npy"))
    ids.tofile(out / "train.bin")
    np.save(out / "train.starts.npy", starts)
    reseal(out)
    assert [problem.file for problem in tokmill.verify(out).problems] == ["manifest.json"]


@pytest.mark.parametrize("drop", ["nothing", "rests"])
@pytest.mark.parametrize("eot", ["after", "before"])
def test_verify_finds_documents_that_are_cut_though_they_fit(
    eot: str, drop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a packing that cuts at 16 ids and is right in everything else."""
    tokenize_documents(tmp_path / "a", some_documents(60, 60, 1), eot=eot)
    real = pieces._cut
    monkeypatch.setattr(pieces, "_cut", lambda block, ends, _sequence, **options: real(block, ends, 16, **options))
    tokmill.pack(tmp_path / "a", tmp_path / "p", sequence=64, seed=1, drop=drop)
    assert [problem.file for problem in tokmill.verify(tmp_path / "p").problems] == ["manifest.json"]


@pytest.mark.parametrize("eot", ["after", "before"])
@pytest.mark.parametrize(
    "more",
    [{"cut": 1000}, {"cut": -1000}, {"documents": 1}, {"source_documents": 1}, {"cut_by_windows": -1000}, {"dropped_tokens": 1}],
    ids=str,
)
def test_verify_compares_what_the_manifest_says_of_documents(eot: str, more: dict[str, int], tmp_path: Path) -> None:
    tokenize_documents(tmp_path / "a", some_documents(60, 100, 1), eot=eot, val_fraction=0.2)
    tokmill.pack(tmp_path / "a", out := tmp_path / "p", sequence=64, seed=1)
    assert tokmill.verify(out).ok
    manifest = load_manifest(out)
    assert manifest.packed
    side = manifest.packed["train"]
    wrong = {name: max(0, getattr(side, name) + n) for name, n in more.items()}
    rewrite_manifest(out, manifest, packed=manifest.packed | {"train": msgspec.structs.replace(side, **wrong)})
    assert [problem.file for problem in tokmill.verify(out).problems] == ["manifest.json"]


def test_a_list_of_starts_that_is_gone_or_of_other_numbers_is_damage(two: list[Path], tmp_path: Path) -> None:
    tokmill.pack(two, out := tmp_path / "p", sequence=64, seed=1)
    flip(out / "train.starts.npy", 200)
    assert not tokmill.verify(out).ok
    (out / "train.starts.npy").unlink()
    assert not tokmill.verify(out).ok
    manifest = load_manifest(out)
    rewrite_manifest(out, manifest, files={n: e for n, e in manifest.files.items() if n != "train.starts.npy"})
    assert not tokmill.verify(out).ok


@pytest.mark.parametrize("trainer", ["raw", "megatron", "mds"])
def test_numbers_of_starts_that_are_out_of_bounds_are_damage_to_every_reader(
    trainer: str, two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokmill.pack(two, out := tmp_path / "p", sequence=64, seed=1, format=trainer)
    name = next(each for each in load_manifest(out).files if each.startswith("train") and each.endswith(".npy"))
    n_numbers = (len(data := (out / name).read_bytes()) - 128) // 8
    for at in (0, n_numbers // 2, n_numbers - 1):
        for value in (-5, 1 << 60, 3):
            damaged = bytearray(data)
            damaged[128 + 8 * at : 136 + 8 * at] = value.to_bytes(8, "little", signed=True)
            if damaged == data:
                continue
            (out / name).write_bytes(damaged)
            assert not tokmill.verify(out).ok
            assert run(["inspect", str(out)]) in (0, 10)
            with tokmill.open(out) as opened, contextlib.suppress(DamageError):
                for _ in opened.packed("train", batch=2, order="sequential", epochs=1):
                    pass
    assert "unforeseen" not in capsys.readouterr().err


def test_a_bucket_that_was_damaged_is_found_before_it_is_published(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = packed_run.PackedRun._scatter_all

    def damaging(self: packed_run.PackedRun) -> None:
        real(self)
        flip(max((tmp_path / "out" / ".tokmill").glob("bucket_*.ids.part"), key=lambda p: p.stat().st_size), 20)

    monkeypatch.setattr(packed_run.PackedRun, "_scatter_all", damaging)
    with pytest.raises(DamageError, match="work in progress is damaged"):
        tokmill.pack(two, tmp_path / "out", sequence=64, seed=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_source_whose_documents_are_others_after_they_were_counted_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their lengths have no places in the plan; the digest of a segment says so only at its end."""
    real = packed_run.PackedRun._plan

    def damaging(self: packed_run.PackedRun, measured: packed_run.Measured) -> None:
        real(self, measured)
        ids = np.memmap(tmp_path / "a" / "train.bin", "<u2", "r+")
        ids[np.flatnonzero(ids == EOT)[:4]] = 220

    tokenize_documents(tmp_path / "a", some_documents(200, 60, 1), {"batch_bytes": 4000, "segment_bytes": 4000})
    monkeypatch.setattr(packed_run.PackedRun, "_plan", damaging)
    with tiny(), pytest.raises(DamageError, match="a source is damaged"):
        tokmill.pack(tmp_path / "a", tmp_path / "out", sequence=1000, seed=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def refused(names: Sequence[Path], out: Path, **options: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        tokmill.pack(names, out, **{"sequence": 64, "seed": 1, **options})
    assert not (out / "manifest.json").exists()
    return caught.value


def test_padding_is_an_id_that_no_document_has(two: list[Path], tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    tokmill.pack(two, usual, sequence=64, seed=1)
    assert load_manifest(usual).content.origin.packed.pad_id == PAD  # type: ignore[union-attr]
    other = tokmill.pack(two, tmp_path / "other", sequence=64, seed=1, pad_id=188)
    ids = np.fromfile(tmp_path / "other" / "train.bin", "<u2")
    assert np.count_nonzero(ids == 188) == other.packed["train"].padding > 0
    assert (np.where(ids == 188, PAD, ids) == np.fromfile(usual / "train.bin", "<u2")).all()
    assert "in the documents" in refused(two, tmp_path / "n", pad_id=220).what
    assert "end-of-text" in refused(two, tmp_path / "n", pad_id=EOT).what
    assert "no embedding" in refused(two, tmp_path / "n", pad_id=50257).what


def test_what_cannot_be_packed_or_done_with_it_is_refused_by_name(two: list[Path], tmp_path: Path) -> None:
    assert refused(two, tmp_path / "n", sequence=0).option == "--sequence"
    assert refused(two, tmp_path / "n", sequence=1 << 21).option == "--sequence"
    assert "drop" in str(refused(two, tmp_path / "n", drop="all").option)
    assert refused(two, tmp_path / "n", format="olmo").option == "--format"
    assert refused(two, tmp_path / "n", format="datatrove").suggested == "raw"
    assert refused(two, tmp_path / "n", shard_tokens=100).suggested == "64"
    tokmill.pack(two, packed := tmp_path / "p", sequence=64, seed=1)
    for call in (
        lambda out: tokmill.pack(packed, out, sequence=64, seed=1),
        lambda out: tokmill.shuffle(packed, out, seed=1),
        lambda out: tokmill.mix({str(packed): 1.0}, out, seed=1),
        lambda out: tokmill.merge([packed, two[0]], out),
        lambda out: tokmill.convert(packed, out, format="llmc"),
        lambda out: tokmill.reshard(packed, out, shard_tokens=640),
        lambda _: tokmill.tokenize(tmp_path / "a.txt", packed, append=True),
    ):
        with pytest.raises(UsageError, match="this output is packed"):
            call(tmp_path / "n")


def test_the_disk_is_asked_for_the_ids_twice(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokmill.merge(two, tmp_path / "m")
    counts = load_manifest(tmp_path / "m").counts
    n_bytes = 2 * (counts.tokens_train + counts.tokens_val)

    class Asked:
        output = 0

        def __call__(self, _out: Path, _content: object, _n: int, output: int, *_: object, **__: object) -> None:
            self.output = output
            raise DiskFullError("no room", where="", allowed="", next_step="")

    monkeypatch.setattr("tokmill.output.disk_space._need", asked := Asked())
    with pytest.raises(DiskFullError):
        tokmill.pack(two, tmp_path / "s", sequence=64, seed=1)
    assert 2 * n_bytes < asked.output < 4 * n_bytes


@pytest.mark.parametrize("trainer", ["raw", "llmc"])
def test_the_commands_that_a_report_shows_make_the_same_again(trainer: str, two: list[Path], tmp_path: Path) -> None:
    tokmill.pack(two, tmp_path / "p", sequence=64, seed=5, format=trainer, drop="rests")
    manifest = load_manifest(tmp_path / "p")
    shown = commands(manifest.content, manifest.made_from, str(tmp_path / "again"))
    assert run(shlex.split(shown.replace("\\\n", " "))[1:]) == 0, shown
    assert files_in(tmp_path / "again") == files_in(tmp_path / "p")


def test_the_summary_says_what_was_cut_and_what_windows_would_have_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path / "a.txt", [text.decode() for text in some_documents(60, 60, 1)])
    tokmill.tokenize(corpus, tmp_path / "a")
    assert run(["pack", str(tmp_path / "a"), "--sequence", "64", "--seed", "1", "--out", str(tmp_path / "p")]) == 0
    shown = capsys.readouterr().out
    side = load_manifest(tmp_path / "p").packed["train"]  # type: ignore[index]
    assert f"{side.sequences} sequences of 64" in shown
    assert f"documents cut {side.cut}" in shown
    assert f"by windows end to end {side.cut_by_windows}" in shown


def test_an_open_packed_output_gives_its_pieces_and_inspect_and_report_speak_of_sequences(two: list[Path], tmp_path: Path) -> None:
    shards: dict[str, Any] = {"format": "llmc", "shard_tokens": 640}
    for name, options in (("p", {}), ("l", shards)):
        tokmill.pack(two, out := tmp_path / name, sequence=64, seed=1, **options)
        manifest = load_manifest(out)
        with tokmill.open(out) as data:
            found = [document.tobytes() for document in data.documents("train")]
            assert len(found) == data.n_documents("train")
            assert data.document("train", 7).tobytes() == found[7]
        text = [piece for path in two for piece in pieces_of(documents_of(path), 64)]
        mark = np.array([EOT], "<u2").tobytes()
        if not options:
            assert Counter(found) == Counter(piece.removesuffix(mark) for piece in text)
        inspection = tokmill.inspect(out)
        assert inspection.packed == manifest.packed
        assert inspection.sides[0].documents == manifest.counts.documents_train
        assert inspection.previews[0].ids == np.frombuffer(found[0], "<u2").tolist()
        assert run(["inspect", str(out)]) == 0
        data_of_report = collect_data(out)
        page = make_page(data_of_report)
        assert "documents cut" in page
        assert "sequences of 64" in page


def test_a_budget_that_is_too_small_is_refused_before_anything_is_there(two: list[Path], tmp_path: Path) -> None:
    assert refused(two, tmp_path / "n", memory="1MiB").option == "--memory"
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("sequence", [1, 2048, 1 << 20])
def test_many_tiny_documents_take_no_more_memory_than_a_few_long_ones(tmp_path: Path, sequence: int) -> None:
    """As objects of Python those of one block, or of one long sequence, would take a hundred times their bytes."""
    ids = np.full(900_000 if sequence > 1 else 300_000, EOT, np.uint16)
    ids[::3] = ids[1::3] = 7
    ids.tofile(tmp_path / "ids.bin")
    options: dict[str, Any] = {"from_format": "raw", "from_dtype": "uint16", "from_eot": "after", "from_eot_id": EOT}
    tokmill.convert(tmp_path / "ids.bin", tmp_path / "a", format="raw", from_tokenizer="gpt2", **options)
    done = command(
        "pack", tmp_path / "a", "--sequence", sequence, "--seed", 1, "--out", tmp_path / "p", "--memory", "128MiB", "--json"
    )
    assert json.loads(done.stdout)["peak_rss_bytes"] < 128 << 20, done.stderr
    assert tokmill.verify(tmp_path / "p").order_checked
