"""While an append is published, and wherever it is killed then, tokmill reads all of the old output, or all of the new one."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.commands import clean_environment
from support.corpora import SEP, THREE_CORPORA
from support.failures import Died, dying_at
from support.outputs import files_in, ids_of
from support.runs import TINY, append_in_process, run_in_process, tokenize_directly

import tokmill
from tokmill.core.errors import ChangedError, UsageError
from tokmill.core.system import durable
from tokmill.output import directory, superseded
from tokmill.output.superseded import discard_append

LAYOUTS: list[dict[str, Any]] = [
    {"format": "raw"},
    {"format": "raw", "shard_tokens": 900},
    {"format": "llmc", "shard_tokens": 700},
    {"format": "megatron"},
    {"format": "datatrove", "shard_tokens": 500},
    {"format": "olmo"},
    {"format": "litdata", "shard_tokens": 700},
    {"format": "mds"},
]


class Case(NamedTuple):
    """An append that was killed when its manifest was written and no file had its name."""

    pending: Path
    old: Path
    new: Path
    corpora: list[Path]
    options: dict[str, Any]


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda options: "-".join(map(str, options.values())))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return killed_append(tmp_path_factory.mktemp("case"), request.param)


def killed_append(base: Path, options: dict[str, Any]) -> Case:
    corpora = [base / f"{i}.txt" for i in range(3)]
    for path, documents in zip(corpora, THREE_CORPORA, strict=True):
        path.write_bytes(SEP.encode().join(documents))
    run_in_process(corpora[:1], base / "old", TINY, val_fraction=0.2, **options)
    run_in_process(corpora, base / "new", TINY, val_fraction=0.2, **options)
    shutil.copytree(base / "old", base / "pending")

    def die(*_: object) -> None:
        raise Died

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Died):
        patch.setattr(directory, "publish_files", die)
        append_in_process(corpora[1:], base / "pending", **options)
    assert files_in(base / "old").items() < files_in(base / "pending").items()
    return Case(base / "pending", base / "old", base / "new", corpora, options)


def assert_is(out: Path, expected: Path, scratch: Path) -> None:
    """Every reader finds that output, whole: the arrays, the digests, and what is made from it."""
    assert ids_of(out) == ids_of(expected)
    report, sound = tokmill.verify(out), tokmill.verify(expected)
    assert report.problems == []
    assert (report.tokens_train, report.tokens_val, report.n_files) == (sound.tokens_train, sound.tokens_val, sound.n_files)
    assert tokmill.inspect(out).sides == tokmill.inspect(expected).sides
    tokmill.convert(out, scratch / "made", format="raw", fresh=True)
    tokmill.convert(expected, scratch / "truth", format="raw", fresh=True)
    tokmill.merge([out], scratch / "merged", fresh=True)
    assert files_in(scratch / "made") == files_in(scratch / "truth")
    assert ids_of(scratch / "merged") == ids_of(expected)


def publish(case: Case, out: Path) -> None:
    append_in_process(case.corpora[1:], out, **case.options)


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_between_any_two_renames_readers_see_the_old_output_until_its_manifest_is_replaced(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    old_manifest = (case.old / "manifest.json").read_bytes()
    seen = []
    for n in range(1, 500, stride):
        out = tmp_path / f"a{n}"
        shutil.copytree(case.pending, out)
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                publish(case, out)
        if calls() < n:
            break
        is_old = (out / "manifest.json").read_bytes() == old_manifest
        seen.append(is_old)
        assert_is(out, case.old if is_old else case.new, tmp_path)
        publish(case, out)
        assert files_in(out) == files_in(case.new), n
        assert sorted(out.rglob("*")) == sorted(out / p.relative_to(case.new) for p in case.new.rglob("*")), n
        assert tokmill.verify(out).ok
    assert seen == sorted(seen, reverse=True)
    assert True in seen
    assert stride > 1 or False in seen


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_discarded_when_all_of_its_files_have_their_names_the_old_output_is_whole_wherever_that_is_killed(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    half = tmp_path / "half"
    shutil.copytree(case.pending, half)
    with monkeypatch.context() as patch, contextlib.suppress(Died):
        patch.setattr(durable, "replace", dying_on_manifest(durable.replace))
        publish(case, half)
    assert len(files_in(half)) > len(files_in(case.old))
    for n in range(2, 500, stride):
        out = tmp_path / f"d{n}"
        shutil.copytree(half, out)
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                discard_append(out)
        assert_is(out, case.old, tmp_path)
        discard_append(out)
        assert files_in(out) == files_in(case.old), n
        assert sorted(out.rglob("*")) == sorted(out / p.relative_to(case.old) for p in case.old.rglob("*")), n
        if calls() < n:
            break
    append_in_process(case.corpora[1:], half, fresh=True, **case.options)
    assert files_in(half) == files_in(case.new)


def dying_on_manifest(real: Any) -> Any:
    def call(source: Path, target: Path) -> None:
        if target.name == "manifest.json":
            raise Died
        real(source, target)

    return call


@pytest.fixture
def mds(tmp_path: Path) -> Case:
    return killed_append(tmp_path, {"format": "mds"})


def test_where_files_have_one_name_only_the_old_ones_are_copied(mds: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with monkeypatch.context() as patch, contextlib.suppress(Died):
        patch.setattr(durable, "replace", dying_on_manifest(durable.replace))
        publish(mds, mds.pending)
    assert_is(mds.pending, mds.old, tmp_path)
    publish(mds, mds.pending)
    assert_is(mds.pending, mds.new, tmp_path)


def test_what_an_append_left_behind_when_it_was_complete_does_not_hinder_the_next(
    mds: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(mds.old, out)

    def die(*_: object) -> None:
        raise Died

    with monkeypatch.context() as patch, contextlib.suppress(Died):
        patch.setattr(directory, "remove_state", die)
        append_in_process(mds.corpora[1:2], out, **mds.options)
    assert list((out / ".tokmill").glob("old-*"))
    append_in_process(mds.corpora[2:], out, **mds.options)
    assert_is(out, mds.new, tmp_path)
    assert not (out / ".tokmill").exists()


def test_a_file_that_is_neither_the_appends_nor_the_outputs_is_damage_while_one_is_pending(mds: Case) -> None:
    (mds.pending / "train.bin").write_bytes(b"x")
    assert [str(problem) for problem in tokmill.verify(mds.pending).problems] == ["train.bin: the manifest does not list this file"]


def test_a_repair_while_an_append_is_pending_is_refused_and_names_the_option(mds: Case) -> None:
    with pytest.raises(UsageError, match="has begun to replace or extend") as caught:
        tokmill.repair(mds.pending)
    assert "--append" in str(caught.value.next_step)


def test_what_a_killed_run_had_from_a_pipe_is_not_appended_twice_when_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, corpus = tmp_path / "out", tmp_path / "a.txt"
    corpus.write_bytes(SEP.encode().join(THREE_CORPORA[0]))
    run_in_process([corpus], out, TINY, val_fraction=0.2)
    command = [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(out), "--val-fraction", "0.2", "-q", "--append"]
    more = SEP.encode().join(THREE_CORPORA[1])
    dying = "import sys, tokmill.output.directory as c, os\nc.publish_files = lambda *_: os._exit(9)\n"
    (tmp_path / "sitecustomize.py").write_text(dying)
    environment = clean_environment() | {"PYTHONPATH": str(tmp_path)}
    assert subprocess.run(command, input=more, check=False, env=environment, timeout=60, capture_output=True).returncode
    assert superseded.pending_manifest(out)
    subprocess.run(command, input=more, check=True, env=clean_environment(), timeout=60)
    tokenize_directly(tmp_path / "truth", tmp_path / "a.txt")
    assert tokmill.inspect(out).n_inputs == 2


@pytest.mark.parametrize("options", [LAYOUTS[1], LAYOUTS[6]], ids=["raw", "litdata"])
def test_threads_that_open_and_read_during_appends_see_one_output_or_the_other(tmp_path: Path, options: dict[str, Any]) -> None:
    corpora = [tmp_path / f"{i}.txt" for i in range(6)]
    for i, path in enumerate(corpora):
        path.write_bytes(SEP.encode().join(THREE_CORPORA[i % 3]))
    outs = [tmp_path / f"truth{i}" for i in range(6)]
    for i, out in enumerate(outs):
        run_in_process(corpora[: i + 1], out, TINY, val_fraction=0.2, **options)
    allowed = {ids_of(out) for out in outs}
    shutil.copytree(outs[0], tmp_path / "out")
    found: set[tuple[bytes, bytes]] = set()
    failures: list[BaseException] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            try:
                found.add(ids_of(tmp_path / "out"))
                assert tokmill.verify(tmp_path / "out").problems == []
            except BaseException as error:  # noqa: BLE001  told in the test's own thread
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(1, 6):
        append_in_process(corpora[i : i + 1], tmp_path / "out", **options)
    ended.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert found <= allowed
    assert len(found) > 1
    assert ids_of(tmp_path / "out") == ids_of(outs[-1])


@pytest.mark.parametrize("options", [LAYOUTS[2], LAYOUTS[6]], ids=["llmc", "litdata"])
def test_a_dataset_that_is_unpickled_after_an_append_has_the_ids_it_had_or_says_why_not(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    case = killed_append(tmp_path, options)
    for out in (case.old, case.pending):
        data = tokmill.open(out)
        pickled = pickle.dumps(data)
        append_in_process(case.corpora[1:], out, **options)
        if options["format"] == "litdata":
            with pytest.raises(ChangedError, match="the output was replaced"):
                pickle.loads(pickled)
        else:
            assert np.array_equal(pickle.loads(pickled).train, data.train)
