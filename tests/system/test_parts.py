"""An output made in parts: whoever made them, whenever they died, put together they are the output of one run."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.commands import PATIENCE_S, clean_environment, command, wait_until
from support.corpora import SEP, WITH_SKIPS, some_documents, some_text, write_every_kind
from support.failures import Died, do_damage, dying_at
from support.oracle import plain_tokens
from support.outputs import part_path, side_bytes, written
from support.runs import (
    SMALL,
    make_part,
    make_parts,
    plan_parts,
    repair_in_process,
    run_in_process,
    tokenize_in_small_segments,
)

import tokmill
from tokmill.check.verification import verify
from tokmill.cli.app import completed, run
from tokmill.core.errors import ChangedError, DamageError, LockedError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.options import PlanOptions
from tokmill.output.directory import Output
from tokmill.output.state_dir import acquire_lock, release_lock
from tokmill.run.job import make_job
from tokmill.run.parts import tokenize
from tokmill.run.parts.finalize import parts_store

pytestmark = pytest.mark.usefixtures("workers_in_process")


class Corpus:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs = write_every_kind(folder / "corpus")
        run_in_process(self.inputs, folder / "one", SMALL, **WITH_SKIPS)
        self.one = folder / "one"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def parts(corpus: Corpus) -> Path:
    """An output of seven parts that are all there and not put together."""
    make_parts(corpus.inputs, corpus.folder / "parts", 7, **WITH_SKIPS)
    return corpus.folder / "parts"


@pytest.fixture
def whole(parts: Path, tmp_path: Path) -> Path:
    """The same, put together."""
    out = shutil.copytree(parts, tmp_path / "whole")
    tokmill.finalize(out)
    return out


def same_as_one_run(out: Path, corpus: Corpus, scratch: Path) -> bool:
    tokmill.merge(out, scratch)
    names = ("train.bin", "val.bin", "skipped.jsonl")
    merged, one = load_manifest(scratch), load_manifest(corpus.one)
    assert (merged.fingerprint, merged.files) == (one.fingerprint, one.files)
    audits = {"audited_documents": 0, "audited_bytes": 0}
    assert msgspec.structs.replace(merged.counts, **audits) == msgspec.structs.replace(one.counts, **audits)
    return all((scratch / name).read_bytes() == (corpus.one / name).read_bytes() for name in names)


@pytest.mark.parametrize("count", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(23, marks=pytest.mark.slow)])
def test_merged_it_is_byte_for_byte_the_output_of_one_run(corpus: Corpus, tmp_path: Path, count: int) -> None:
    make_parts(corpus.inputs, tmp_path / "out", count, **WITH_SKIPS)
    tokmill.finalize(tmp_path / "out")
    assert same_as_one_run(tmp_path / "out", corpus, tmp_path / "merged")
    assert side_bytes(tmp_path / "out") == written(corpus.one)
    assert verify(tmp_path / "out", sources=[str(i) for i in corpus.inputs]).ok
    assert not (tmp_path / "out" / ".tokmill").exists()


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    documents=st.lists(st.text(alphabet="ab é\n漢", max_size=30).map(str.encode), min_size=1, max_size=12),
    count=st.integers(1, 9),
    eot=st.sampled_from(["after", "before", "none"]),
    keep_empty=st.booleans(),
    separator=st.sampled_from(["\\n\\n", "aa", "|"]),
)
def test_any_number_of_parts_is_one_run(
    tmp_path_factory: pytest.TempPathFactory, documents: list[bytes], count: int, eot: str, keep_empty: bool, separator: str
) -> None:
    base = tmp_path_factory.mktemp("any")
    mark = separator.replace("\\n", "\n").encode()
    (base / "a.txt").write_bytes(mark.join(documents))
    (base / "b.txt").write_bytes(mark.join(reversed(documents)))
    inputs = [base / "a.txt", base / "b.txt"]
    make_parts(
        inputs, base / "out", count, {"batch_bytes": 50}, separator=separator, val_fraction=0.2, eot=eot, keep_empty=keep_empty
    )
    tokmill.finalize(base / "out")
    texts = [d for path in inputs for d in path.read_bytes().split(mark)]
    assert side_bytes(base / "out") == plain_tokens(texts, eot=eot, val_fraction=0.2, keep_empty=keep_empty)
    assert verify(base / "out", sources=[str(i) for i in inputs]).ok


def test_the_next_step_after_a_part_is_a_part_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(SEP.encode().join(some_documents(50, 3000, 4)))
    told = []
    for part in ("0/3", "2/3", "1/3"):
        assert run(["tokenize", str(tmp_path / "a.txt"), "--out", str(tmp_path / "o"), "--part", part]) == 0
        told += [line for line in capsys.readouterr().out.splitlines() if line.startswith("  next ")]
    assert [line.split(maxsplit=1)[1] for line in told] == [
        "the same command with --part 1/3 (2 parts to go)",
        "the same command with --part 1/3 (1 part to go)",
        f"tokmill finalize {tmp_path / 'o'}",
    ]


def test_commands_make_parts_and_put_them_together(tmp_path: Path) -> None:
    documents = some_documents(50, 3000, 4)
    (tmp_path / "a.txt").write_bytes(SEP.encode().join(documents))
    out = tmp_path / "out"
    for i in (2, 0, 1):
        made = command("tokenize", tmp_path / "a.txt", "--out", out, "--part", f"{i}/3", "--json")
        assert made.returncode == 0, made.stderr
        assert f"tokmill finalize {out}" in json.loads(made.stdout)["notices"][0]
    finalized = command("finalize", out, "--json")
    assert finalized.returncode == 0, finalized.stderr
    assert sum(json.loads(finalized.stdout)[f"documents_{side}"] for side in ("train", "val")) == 50
    assert side_bytes(out) == plain_tokens(documents)


def test_parts_that_are_missing_are_named_with_the_command_that_makes_them(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = plan_parts(corpus.inputs, out, 4, **WITH_SKIPS)
    make_part(job, 2)
    with pytest.raises(UsageError, match="3 parts of 4 are missing: 0, 1, 3") as caught:
        tokmill.finalize(out)
    assert f"tokmill tokenize INPUT... --part 3/4 --out {out}" in str(caught.value)
    make_part(job, 0)
    make_part(job, 1)
    with pytest.raises(UsageError, match="1 part of 4 is missing: 3"):
        tokmill.finalize(out)
    make_part(job, 3)
    tokmill.finalize(out)


def test_nothing_is_put_together_where_nothing_was_made_in_parts(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was made in parts here"):
        tokmill.finalize(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="made in one run"):
        tokmill.finalize(corpus.one)


def test_put_together_again_nothing_happens(whole: Path) -> None:
    before = (whole / "manifest.json").read_bytes()
    assert tokmill.finalize(whole).already_complete
    assert (whole / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_died_before_any_call_that_changes_the_disk_it_is_put_together_the_next_time(
    parts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    for n in itertools.count(1, stride):
        out = shutil.copytree(parts, tmp_path / f"out{n}")
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                tokmill.finalize(out)
            if calls() < n:
                break
        if n % 2:
            with monkeypatch.context() as patch:
                dying_at(n // 2 + 1, patch)
                with contextlib.suppress(Died):
                    tokmill.finalize(out)
        tokmill.finalize(out)
        assert sorted(os.listdir(out)) == sorted(os.listdir(whole))
        assert all((out / p.name).read_bytes() == p.read_bytes() for p in whole.iterdir())
        shutil.rmtree(out)
    assert n > 20


def test_died_while_the_parts_are_removed_the_rest_of_them_is_removed_the_next_time(parts: Path, tmp_path: Path) -> None:
    out = shutil.copytree(parts, tmp_path / "out")
    plan = (out / ".tokmill" / "plan").read_bytes()
    tokmill.finalize(out)
    for i in (3, 6):
        (part_path(out, i)).mkdir(parents=True)
    (out / ".tokmill" / "plan").write_bytes(plan)
    assert tokmill.finalize(out).files
    assert not (out / ".tokmill").exists()


@pytest.mark.parametrize("stride", [19, pytest.param(1, marks=pytest.mark.slow)])
def test_a_part_that_died_anywhere_goes_on_and_is_the_same(
    corpus: Corpus, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    for n in itertools.count(1, stride):
        job = plan_parts(corpus.inputs, tmp_path / f"out{n}", 7, **WITH_SKIPS)
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                make_part(job, 3)
            if calls() < n:
                break
        make_part(job, 3)
        made, wanted = part_path(tmp_path / f"out{n}", 3), part_path(parts, 3)
        assert sorted(os.listdir(made)) == sorted(os.listdir(wanted))
        assert all((made / p.name).read_bytes() == p.read_bytes() for p in wanted.iterdir() if p.name != "manifest.json")
        assert load_manifest(made).files == load_manifest(wanted).files
    assert n > 20


FORMATS: list[Any] = [
    {"format": "raw"},
    pytest.param({"format": "raw", "shard_tokens": 1500, "eot": "before"}, marks=pytest.mark.slow),
    {"format": "llmc", "shard_tokens": 1500},
    pytest.param({"format": "megatron"}, marks=pytest.mark.slow),
    pytest.param({"format": "datatrove", "shard_tokens": 1500}, marks=pytest.mark.slow),
    pytest.param({"format": "olmo", "shard_tokens": 1500}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("layout", FORMATS, ids=lambda layout: "-".join(map(str, layout.values())))
def test_in_every_format_its_ids_are_those_of_one_run_and_what_is_damaged_is_made_again(
    corpus: Corpus, tmp_path: Path, layout: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    make_parts(corpus.inputs, out, 5, **WITH_SKIPS, **layout)
    tokmill.finalize(out)
    assert verify(out, sources=[str(i) for i in corpus.inputs]).ok
    run_in_process(corpus.inputs, tmp_path / "one", SMALL, **WITH_SKIPS, **layout)
    for made in ("out", "one"):
        tokmill.convert(tmp_path / made, tmp_path / f"{made}.raw", format="raw")
        tokmill.merge(tmp_path / made, tmp_path / f"{made}.merged")
    assert written(tmp_path / "out.raw") == written(tmp_path / "one.raw")
    assert load_manifest(tmp_path / "out.merged").files == load_manifest(tmp_path / "one.merged").files
    before = {name: (out / name).read_bytes() for name in load_manifest(out).files}
    for i, name in enumerate(before):
        do_damage(out, (name, ("flip", "cut", "missing")[i % 3], (0.0, 0.5, 1 - 1e-9)[i % 3], 3))
    assert not verify(out).ok
    assert {each.file for each in repair_in_process(out)} == set(before)
    assert {name: (out / name).read_bytes() for name in before} == before
    assert verify(out).ok


def test_what_is_damaged_in_one_part_is_made_again_and_no_other_file_is_touched(corpus: Corpus, whole: Path) -> None:
    names = list(load_manifest(whole).files)
    before = {name: (whole / name).read_bytes() for name in names}
    for i, name in enumerate(names[::4]):
        inodes = {other: (whole / other).stat().st_ino for other in names if other != name}
        do_damage(whole, (name, "flip", (0.0, 0.4, 1 - 1e-9)[i % 3], 1))
        assert {each.file for each in repair_in_process(whole)} == {name}
        assert (whole / name).read_bytes() == before[name]
        assert {other: (whole / other).stat().st_ino for other in inodes} == inodes


def test_dataset_reads_it_as_one(corpus: Corpus, whole: Path) -> None:
    with tokmill.open(whole) as parts, tokmill.open(corpus.one) as one:
        for side in ("train", "val"):
            assert parts.side(side)[:].tobytes() == one.side(side)[:].tobytes()
            assert parts.fingerprint(side) == one.fingerprint(side)
            assert parts.n_documents(side) == one.n_documents(side)


def test_nothing_is_appended_to_parts_until_they_are_merged(corpus: Corpus, whole: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_bytes(b"more text")
    options = {**WITH_SKIPS, "append": True}
    with pytest.raises(UsageError, match="made in 7 parts"):
        tokmill.tokenize(more, whole, **options)
    tokmill.merge(whole, tmp_path / "merged")
    tokmill.tokenize(more, tmp_path / "merged", **options)
    tokmill.tokenize([*map(str, corpus.inputs), str(more)], tmp_path / "all", **WITH_SKIPS)
    assert written(tmp_path / "merged") == written(tmp_path / "all")


def test_another_plan_is_refused_by_name(corpus: Corpus, tmp_path: Path) -> None:
    inputs, out = [*corpus.inputs], tmp_path / "out"
    job = plan_parts(inputs, out, 3, **WITH_SKIPS)
    make_part(job, 0)

    def refused(count: int, inputs: list[Path], **options: Any) -> str:
        with pytest.raises(ChangedError) as caught:
            plan_parts(inputs, out, count, **options)
        return caught.value.what

    assert "N of --part I/N was 3, is 4" in refused(4, inputs, **WITH_SKIPS)
    assert "--val-fraction was 0.3, is 0.1" in refused(3, inputs, **{**WITH_SKIPS, "val_fraction": 0.1})
    assert f"input {inputs[-1]} is gone" in refused(3, inputs[:-1], **WITH_SKIPS)
    other = shutil.copy(inputs[0], tmp_path / "a.txt")
    assert f"input {other} is new" in refused(3, [Path(other), *inputs], **WITH_SKIPS)
    for i in (1, 2):
        make_part(job, i)
    tokmill.finalize(out)
    assert "N of --part I/N was 3, is 4" in refused(4, inputs, **WITH_SKIPS)


def test_a_part_of_another_plan_is_not_put_together(corpus: Corpus, parts: Path, tmp_path: Path) -> None:
    out = shutil.copytree(parts, tmp_path / "out")
    job = plan_parts(corpus.inputs, tmp_path / "other", 7, **{**WITH_SKIPS, "seed": 1})
    make_part(job, 3)
    shutil.rmtree(part_path(out, 3))
    shutil.copytree(part_path(tmp_path / "other", 3), part_path(out, 3))
    with pytest.raises(ChangedError, match="--seed was 1, is 0"):
        tokmill.finalize(out)


def test_a_part_whose_file_is_cut_is_not_put_together(parts: Path, tmp_path: Path) -> None:
    out = shutil.copytree(parts, tmp_path / "out")
    (name, *_) = [n for n in load_manifest(part_path(out, 4)).files if n.startswith("train")]
    do_damage(part_path(out, 4), (name, "cut", 0.5, 0))
    with pytest.raises(DamageError, match="a file of a part has") as caught:
        tokmill.finalize(out)
    assert "make part 4 again with --fresh" in str(caught.value)


def test_a_list_of_what_was_skipped_that_was_changed_is_not_taken_over(parts: Path, tmp_path: Path) -> None:
    out = shutil.copytree(parts, tmp_path / "out")
    path = next(p for p in (out / ".tokmill" / "parts").glob("*/skipped.jsonl"))
    path.write_bytes(path.read_bytes().replace(b'"record":', b'"recxrd":', 1))
    with pytest.raises(DamageError, match="the list of skipped records"):
        tokmill.finalize(out)


def test_a_part_is_made_by_one_and_put_together_by_one(parts: Path, corpus: Corpus, tmp_path: Path) -> None:
    out = shutil.copytree(parts, tmp_path / "out")
    job = make_job([str(i) for i in corpus.inputs], PlanOptions(**WITH_SKIPS), out=str(out)).job
    job = tokenize.whole_job(job, 7, parts_store(str(out)))
    for directory, attempt in ((part_path(out, 3), lambda: make_part(job, 3)), (out, lambda: tokmill.finalize(out))):
        lock = acquire_lock(directory)
        with pytest.raises(LockedError):
            attempt()
        release_lock(directory, lock)
    tokmill.finalize(out)


def test_a_part_alone_is_not_taken_for_an_output(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="part 3/7 of an output"):
        tokmill.merge([part_path(parts, 3), part_path(parts, 4)], tmp_path / "merged")


def test_whoever_comes_late_finds_all_done(corpus: Corpus, parts: Path, tmp_path: Path) -> None:
    out = shutil.copytree(parts, tmp_path / "out")
    tokmill.finalize(out)
    summary = tokmill.tokenize([str(i) for i in corpus.inputs], out, part="3/7", **WITH_SKIPS)
    assert summary.already_complete
    assert not (out / ".tokmill").exists()


def test_fresh_begins_one_part_again_and_leaves_the_others(corpus: Corpus, parts: Path, tmp_path: Path) -> None:
    out = shutil.copytree(parts, tmp_path / "out")
    inodes = [p.stat().st_ino for p in sorted(out.glob(".tokmill/parts/*/*.bin")) if p.parent.name != "00003"]
    summary = tokmill.tokenize([str(i) for i in corpus.inputs], out, part="3/7", fresh=True, **WITH_SKIPS)
    assert not summary.already_complete
    assert [p.stat().st_ino for p in sorted(out.glob(".tokmill/parts/*/*.bin")) if p.parent.name != "00003"] == inodes
    tokmill.finalize(out)
    assert side_bytes(out) == written(corpus.one)


def test_runs_in_one_piece_and_in_parts_do_not_share_a_directory(corpus: Corpus, tmp_path: Path) -> None:
    inputs = [str(i) for i in corpus.inputs]
    plan_parts(inputs, tmp_path / "parts", 3, **WITH_SKIPS)
    with pytest.raises(UsageError, match="is being made in parts"):
        tokmill.tokenize(inputs, tmp_path / "parts", **WITH_SKIPS)
    with pytest.raises(UsageError, match="is being made in parts"):
        tokmill.tokenize(inputs, tmp_path / "parts", fresh=True, **WITH_SKIPS)
    with pytest.raises(ChangedError, match="N of --part I/N was not given, is 3"):
        tokmill.tokenize(inputs, corpus.one, part="0/3", **WITH_SKIPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "publish", _die)
        with pytest.raises(Died):
            tokenize_in_small_segments(corpus.inputs, tmp_path / "begun", SMALL, **WITH_SKIPS)
    with pytest.raises(UsageError, match="a run that is not in parts was begun"):
        tokmill.tokenize(inputs, tmp_path / "begun", part="0/3", **WITH_SKIPS)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "train.bin").write_bytes(b"mine")
    with pytest.raises(UsageError, match="no tokmill manifest lists"):
        tokmill.tokenize(inputs, tmp_path / "strange", part="0/3", **WITH_SKIPS)


def _die(*_: object) -> None:
    raise Died


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "mds"], "tokmill convert DIR --format mds"),
        (["--format", "llmc", "--drop-tail"], "tokmill reshard"),
        (["--append"], "do not go together"),
        (["--part", "3/3"], "I/N with I from 0"),
    ],
)
def test_what_cannot_be_in_parts_is_refused(
    corpus: Corpus, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    part = [] if "--part" in arguments else ["--part", "0/3"]
    assert run(["tokenize", str(corpus.inputs[0]), "--out", str(tmp_path / "out"), *part, *arguments]) == 2
    assert says in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="the extra ray is installed")
def test_without_the_extra_ray_it_says_what_to_install(corpus: Corpus, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenize", str(corpus.inputs[0]), "--out", str(tmp_path / "out"), "--ray"]) == 2
    assert "pip install 'tokmill[ray]'" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_address_may_follow_the_option_ray_and_inputs_the_option_source_or_not() -> None:
    for typed, meant in (
        (["--ray", "10.0.0.1:6379", "a.txt"], ["--ray", "10.0.0.1:6379", "a.txt"]),
        (["--ray", "a.txt"], ["--ray=here", "a.txt"]),
        (["a.txt", "--ray"], ["a.txt", "--ray=here"]),
        (["--ray", "--json"], ["--ray=here", "--json"]),
        (["--ray=local", "x"], ["--ray=local", "x"]),
        (["--ray", "--", "--ray"], ["--ray=here", "--", "--ray"]),
        (["verify", "o", "--source"], ["verify", "o", "--source=as recorded"]),
        (["verify", "o", "--source", "--json"], ["verify", "o", "--source=as recorded", "--json"]),
        (["verify", "o", "--source", "-", "b.txt"], ["verify", "o", "--source", "-", "b.txt"]),
    ):
        assert completed(typed) == meant


def test_what_comes_through_a_pipe_cannot_be_in_parts(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(tmp_path / "out"), "--part", "0/2"],
        input=b"text",
        capture_output=True,
        env=clean_environment(),
        check=False,
    )
    assert made.returncode == 2
    assert b"cannot be divided" in made.stderr


def test_parts_side_by_side_one_of_them_twice_and_one_killed_are_one_run(tmp_path: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_text(some_text(12_000_000, 5))
    out, environment = tmp_path / "out", clean_environment()

    def begin(index: int) -> subprocess.Popen[bytes]:
        arguments = ["tokenize", str(corpus), "--separator", "\\n\\n", "--out", str(out), "--part", f"{index}/3", "--threads", "1"]
        return subprocess.Popen(
            [sys.executable, "-m", "tokmill", *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    killed, other = begin(0), begin(1)
    journal = part_path(out, 0) / ".tokmill" / "journal"
    wait_until(journal.exists, killed)
    twice = begin(0)
    _, said = twice.communicate(timeout=PATIENCE_S)
    assert (twice.returncode, b"another run is writing" in said) in [(11, True), (0, False)]
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=PATIENCE_S)
    assert other.communicate(timeout=PATIENCE_S)
    assert other.returncode == 0
    for index in (2, 0):
        again = begin(index)
        _, said = again.communicate(timeout=PATIENCE_S)
        assert again.returncode == 0, said
    tokmill.finalize(out)
    tokmill.tokenize(corpus, tmp_path / "one", separator="\\n\\n")
    assert side_bytes(out) == written(tmp_path / "one")
