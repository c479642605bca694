"""`merge`: runs put together are one run, whatever happens on the way, and nothing that does not fit is put together."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings, strategies as st
from support.corpora import some_documents
from support.failures import Died, dying_at
from support.oracle import plain_tokens
from support.outputs import rewrite_manifest, written
from support.runs import TINY, run_in_process, tokenize_documents

import tokmill
from tokmill.cli.app import run
from tokmill.core.errors import ChangedError, DamageError, DiskFullError, UsageError
from tokmill.core.events import AnyEvent, Finished, Notice, Started
from tokmill.core.manifest import load_manifest
from tokmill.core.system import durable
from tokmill.derive import engine


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    for i in range(3):
        tokenize_documents(tmp_path / f"r{i}", some_documents(12, 60, i))
    return [tmp_path / f"r{i}" for i in range(3)]


def all_documents() -> list[bytes]:
    return [document for i in range(3) for document in some_documents(12, 60, i)]


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    documents=st.lists(st.text(alphabet="ab é\n漢", max_size=30).map(str.encode), min_size=1, max_size=8),
    cuts=st.sets(st.integers(1, 7)),
    eot=st.sampled_from(["after", "before", "none"]),
    keep_empty=st.booleans(),
)
def test_any_partition_of_a_corpus_into_runs_is_one_run_when_merged(
    tmp_path_factory: pytest.TempPathFactory, documents: list[bytes], cuts: set[int], eot: str, keep_empty: bool
) -> None:
    base = tmp_path_factory.mktemp("runs")
    edges = [0, *sorted(cut for cut in cuts if cut < len(documents)), len(documents)]
    parts, corpora = [], []
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        parts.append(base / f"part{number}")
        corpora.append(tokenize_documents(parts[-1], documents[begin:end], eot=eot, keep_empty=keep_empty))
    run_in_process(corpora, base / "one", TINY, val_fraction=0.2, eot=eot, keep_empty=keep_empty)
    tokmill.merge(parts, base / "merged")
    assert written(base / "merged") == written(base / "one")
    assert written(base / "merged") == plain_tokens(documents, eot=eot, val_fraction=0.2, keep_empty=keep_empty)
    merged, one = load_manifest(base / "merged"), load_manifest(base / "one")
    assert (merged.fingerprint, merged.files) == (one.fingerprint, one.files)
    audits = {"audited_documents": 0, "audited_bytes": 0}
    assert msgspec.structs.replace(merged.counts, **audits) == msgspec.structs.replace(one.counts, **audits)
    assert tokmill.verify(base / "merged", sources=[str(corpus) for corpus in corpora]).ok


def test_with_one_segment_a_commit_cursors_counts_and_digests_are_those_of_the_runs(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "COMMIT_BYTES", 1)
    tokmill.merge(runs, tmp_path / "merged")
    merged, sources = load_manifest(tmp_path / "merged"), [load_manifest(path) for path in runs]
    segments = [segment for source in sources for segment in source.segments]
    assert len(merged.segments) == len(segments) >= 3
    digests = []
    for path, source in zip(runs, sources, strict=True):
        begins = dict.fromkeys(source.files, 0)
        for segment in source.segments:
            for name, span in sorted(segment.files.items()):
                digests.append(xxhash.xxh3_128_hexdigest((path / name).read_bytes()[begins[name] : span.end]))
                begins[name] = span.end
    assert [span.digest for s in merged.segments for _, span in sorted(s.files.items())] == digests
    assert merged.segments[-1].after.input_index == 3
    assert merged.segments[-1].counts == merged.counts


def test_the_manifest_says_what_was_merged(runs: list[Path], tmp_path: Path) -> None:
    tokmill.merge(runs[:2], tmp_path / "two")
    tokmill.merge([tmp_path / "two", runs[2]], tmp_path / "all")
    made_from = load_manifest(tmp_path / "all").made_from or ()
    assert [(p.how, p.path, p.n_inputs) for p in made_from] == [("merge", str(tmp_path / "two"), 2), ("merge", str(runs[2]), 1)]
    assert [p.fingerprint for p in made_from[0].made_from] == [load_manifest(path).fingerprint for path in runs[:2]]
    assert [Path(i.path).name for i in load_manifest(tmp_path / "all").content.inputs] == ["r0.txt", "r1.txt", "r2.txt"]


def test_a_run_that_is_merged_already_is_left_as_it_is(runs: list[Path], tmp_path: Path) -> None:
    assert not tokmill.merge(runs, tmp_path / "m").already_complete
    before = (tmp_path / "m" / "manifest.json").read_bytes()
    assert tokmill.merge(runs, tmp_path / "m").already_complete
    assert (tmp_path / "m" / "manifest.json").read_bytes() == before
    with pytest.raises(ChangedError):
        tokmill.merge(runs[:2], tmp_path / "m")
    tokmill.merge(runs[:2], tmp_path / "m", fresh=True)
    assert written(tmp_path / "m") == tuple(map(b"".join, zip(*map(written, runs[:2]), strict=True)))


def test_records_of_skipped_documents_are_kept(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tokenize_documents(tmp_path / name, [b"good", b"caf\xe9", b"more"], on_error="skip")
    tokmill.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    records = [json.loads(line)["path"] for line in (tmp_path / "m" / "skipped.jsonl").read_text().splitlines()]
    assert records == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert load_manifest(tmp_path / "m").counts.skipped == {"invalid_utf8": 2}
    assert tokmill.verify(tmp_path / "m").ok


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dtype": "uint32"}, "dtype is uint32, not uint16"),
        ({"eot": "before"}, "eot is before, not after"),
    ],
)
def test_outputs_that_do_not_fit_together_are_refused_by_name(
    tmp_path: Path, runs: list[Path], options: dict[str, Any], named: str
) -> None:
    tokenize_documents(tmp_path / "other", [b"text"], **options)
    with pytest.raises(UsageError, match=named) as caught:
        tokmill.merge([*runs, tmp_path / "other"], tmp_path / "m")
    assert caught.value.where == f"{tmp_path / 'other'}, compared with {runs[0]}"
    assert caught.value.allowed
    assert caught.value.next_step
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("changes", "named"), [({"sha256": "f" * 64}, "the tokenizer is gpt2 .*ffffffffffff"), ({"eot_id": 7}, "end-of-text id is 7")]
)
def test_another_tokenizer_is_refused_by_name(runs: list[Path], tmp_path: Path, changes: dict[str, object], named: str) -> None:
    manifest = load_manifest(runs[1])
    tokenizer = msgspec.structs.replace(manifest.content.tokenizer, **changes)
    content = msgspec.structs.replace(manifest.content, tokenizer=tokenizer)
    rewrite_manifest(runs[1], manifest, content=content, fingerprint=content.fingerprint())
    with pytest.raises(UsageError, match=named) as caught:
        tokmill.merge(runs, tmp_path / "m")
    assert str(runs[1]) in str(caught.value.where)


def test_what_will_not_fit_on_the_disk_is_refused_before_anything_is_written_and_force_overrides(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(len(data) for run_dir in runs for data in written(run_dir))
    real = os.statvfs

    def small(path: object) -> os.statvfs_result:
        found = list(real(path))  # type: ignore[arg-type]
        found[1:5] = [1, size * 2, size - 1, size - 1]
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", small)
    out = tmp_path / "m"
    makers: list[Callable[[], object]] = [
        lambda: tokmill.merge(runs, out),
        lambda: tokmill.convert(tmp_path / "all", out, format="megatron"),
        lambda: tokmill.reshard(tmp_path / "all", out, shard_tokens=900),
    ]
    tokmill.merge(runs, tmp_path / "all", force=True)
    for make in makers:
        with pytest.raises(DiskFullError, match="will not fit") as caught:
            make()
        assert caught.value.exit_code == 14
        assert not out.exists()
    assert not tokmill.merge(runs, out, force=True).already_complete
    assert tokmill.merge(runs, out).already_complete


def test_the_output_is_none_of_the_sources(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(runs[1])
    for out in (runs[1], tmp_path / "link", tmp_path / "r2" / ".." / "r1"):
        with pytest.raises(UsageError, match="one of the sources"):
            tokmill.merge(runs, out, fresh=True)
    with pytest.raises(UsageError, match="no complete tokmill output"):
        tokmill.merge([*runs, tmp_path], tmp_path / "m")


def test_an_output_inside_a_source_or_around_one_is_refused_and_leaves_it_as_it_is(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lies in a source"):
        tokmill.merge(runs, runs[1] / "deep" / "er")
    with pytest.raises(UsageError, match="a source lies in the output"):
        tokmill.merge(runs, tmp_path, fresh=True)
    assert not (runs[1] / "deep").exists()
    assert all(tokmill.verify(path).ok for path in runs)


@pytest.mark.parametrize("at", [0, 61, -1])
def test_a_flipped_bit_in_a_source_is_damage_that_names_it(
    runs: list[Path], tmp_path: Path, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray((runs[1] / "train.bin").read_bytes())
    data[at] ^= 4
    (runs[1] / "train.bin").write_bytes(data)
    assert run(["merge", *map(str, runs), "--out", str(tmp_path / "m")]) == 10
    assert str(runs[1] / "train.bin") in capsys.readouterr().err
    assert not (tmp_path / "m" / "manifest.json").exists()


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(9)


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_bytes(path.read_bytes() + b"xx")])
def test_a_missing_cut_or_longer_source_is_damage_that_names_it(runs: list[Path], tmp_path: Path, damage: object) -> None:
    damage(runs[2] / "val.bin")  # type: ignore[operator]
    with pytest.raises(DamageError) as caught:
        tokmill.merge(runs, tmp_path / "m")
    assert str(runs[2] / "val.bin") in str(caught.value.where)


def test_the_same_input_in_two_sources_is_a_notice(runs: list[Path], tmp_path: Path) -> None:
    events: list[AnyEvent] = []

    class Collector:
        def on_event(self, event: AnyEvent) -> None:
            events.append(event)

    outcome = tokmill.merge([runs[0], runs[1], runs[0]], tmp_path / "m", observers=[Collector()])
    notice, *others = outcome.notices
    assert all("nanoGPT's train.py needs" in each for each in others)
    assert "more than once in the output" in notice
    assert str(tmp_path / "r0.txt") in notice
    assert [type(event) for event in events if isinstance(event, Notice | Started | Finished)] == [Notice, Started, Finished]


def test_another_split_is_refused_unless_asked_for_and_the_manifest_is_then_no_single_run(tmp_path: Path) -> None:
    corpora = [tokenize_documents(tmp_path / "a", [b"text"], seed=1), tokenize_documents(tmp_path / "b", [b"more"], seed=2)]
    with pytest.raises(UsageError, match="--seed was 2, not 1") as caught:
        tokmill.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    assert "--allow-other-split" in str(caught.value.next_step)
    assert not (tmp_path / "m").exists()
    assert run(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "n"), "--allow-other-split"]) == 0
    outcome = tokmill.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m", allow_other_split=True)
    assert "--seed" in outcome.notices[0]
    assert tokmill.verify(tmp_path / "m").ok
    with pytest.raises(UsageError, match="different settings"):
        tokmill.verify(tmp_path / "m", sources=[str(corpus) for corpus in corpora])
    with pytest.raises(ChangedError):
        run_in_process(corpora, tmp_path / "m", seed=1, val_fraction=0.2)


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_died_before_any_call_that_changes_the_disk_the_next_merge_makes_the_same_bytes(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    monkeypatch.setattr(engine, "COMMIT_BYTES", 600)
    tokmill.merge(runs, tmp_path / "whole")
    n = 0
    for n in range(1, 500, stride):
        out = tmp_path / f"m{n}"
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                tokmill.merge(runs, out)
        if calls() < n:
            break
        tokmill.merge(runs, out)
        assert written(out) == written(tmp_path / "whole"), n
        assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "train.bin", "val.bin"], n
        assert tokmill.verify(out).ok, n
    assert n > 15


def test_copying_where_the_kernel_cannot_is_the_same(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokmill.merge(runs, tmp_path / "kernel")

    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    tokmill.merge(runs, tmp_path / "plain")
    assert written(tmp_path / "plain") == written(tmp_path / "kernel")


def test_a_kernel_that_copies_little_at_a_time_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)))
    (tmp_path / "b").write_bytes(b"xy")
    real = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda s, t, n, i, j: real(s, t, min(n, 7), i, j))
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("r+b") as target:
        durable.copy_range(source.fileno(), 10, target.fileno(), 2, 100)
    assert (tmp_path / "b").read_bytes() == b"xy" + bytes(range(10, 110))
