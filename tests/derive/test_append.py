"""`tokenize --append`: old and new inputs are one run, and until the new manifest has its name, readers see the old one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from support.commands import clean_environment
from support.corpora import SEP, THREE_CORPORA, some_documents
from support.failures import Died, dying_at
from support.oracle import plain_tokens
from support.outputs import files_in, ids_of, written
from support.runs import TINY, UNWATCHED, append_in_process, run_in_process

import tokmill
from tokmill import api
from tokmill.cli.app import run
from tokmill.core.config import Job
from tokmill.core.errors import ChangedError, DamageError, LockedError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.options import PlanOptions
from tokmill.core.system import durable
from tokmill.derive import appending
from tokmill.formats.registry import FORMATS
from tokmill.output import directory as output_directory
from tokmill.output.directory import Output
from tokmill.output.disk_space import disk_need
from tokmill.run.coordinator import Coordinator
from tokmill.run.job import make_job

pytestmark = pytest.mark.usefixtures("workers_in_process")


@pytest.fixture
def corpora(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.txt" for i in range(3)]
    for path, documents in zip(paths, THREE_CORPORA, strict=True):
        path.write_bytes(SEP.encode().join(documents))
    return paths


def small(job: Job) -> Job:
    return msgspec.structs.replace(job, resources=msgspec.structs.replace(job.resources, **TINY, **UNWATCHED))


def truth(n_parts: int) -> tuple[bytes, bytes]:
    return plain_tokens([document for part in THREE_CORPORA[:n_parts] for document in part], val_fraction=0.2)


def begin(out: Path, corpora: Sequence[Path], **options: Any) -> None:
    run_in_process(corpora, out, TINY, **({"val_fraction": 0.2} | options))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_old_and_new_inputs_are_one_run(corpora: list[Path], tmp_path: Path, name: str) -> None:
    begin(tmp_path / "out", corpora[:1], format=name)
    append_in_process(corpora[1:2], tmp_path / "out", format=name)
    append_in_process(corpora[2:], tmp_path / "out", format=name)
    begin(tmp_path / "one", corpora, format=name)
    assert files_in(tmp_path / "out") == files_in(tmp_path / "one")
    out, one = load_manifest(tmp_path / "out"), load_manifest(tmp_path / "one")
    assert (out.fingerprint, out.files) == (one.fingerprint, one.files)
    audits = {"audited_documents": 0, "audited_bytes": 0}
    assert msgspec.structs.replace(out.counts, **audits) == msgspec.structs.replace(one.counts, **audits)
    assert [(p.how, p.n_inputs) for p in out.made_from or ()] == [("append", 1), ("append", 2)]


def test_an_appended_output_is_sound_and_is_what_its_sources_say(corpora: list[Path], tmp_path: Path) -> None:
    begin(tmp_path / "out", corpora[:1])
    append_in_process(corpora[1:], tmp_path / "out")
    assert written(tmp_path / "out") == truth(3)
    assert tokmill.verify(tmp_path / "out", sources=[str(path) for path in corpora]).ok
    begin(tmp_path / "out", corpora)
    assert written(tmp_path / "out") == truth(3)


def test_the_command_appends_and_says_so(corpora: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert run(["tokenize", str(corpora[0]), "--out", out, "--val-fraction", "0.2", "-q"]) == 0
    assert run(["tokenize", *map(str, corpora), "--out", out, "--val-fraction", "0.2", "--append"]) == 0
    shown = capsys.readouterr()
    assert f"in the output already, left out: 1 input: {corpora[0]}" in shown.err
    assert "of the complete output are copied into the new one" in shown.err
    assert written(tmp_path / "out") == truth(3)
    manifest = load_manifest(tmp_path / "out")
    assert isinstance(manifest.made_from, tuple)
    (old,), now = manifest.made_from, manifest.counts
    said = f"of it added  {now.documents_train + now.documents_val - old.documents_train - old.documents_val} documents (train "
    assert said in shown.out
    assert f"{now.tokens_train + now.tokens_val - old.tokens_train - old.tokens_val:,} tokens (train " in shown.out
    assert "earlier run" not in shown.out + shown.err
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    assert run(["tokenize", *map(str, corpora), "--out", out, "--val-fraction", "0.2", "--append"]) == 0
    assert "complete already, nothing to do" in capsys.readouterr().out
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"val_fraction": 0.1}, "--val-fraction was 0.2, is 0.1"),
        ({"eot": "none"}, "--eot was after"),
        ({"dtype": "uint32"}, "--dtype"),
    ],
)
def test_other_settings_are_refused_by_name(corpora: list[Path], tmp_path: Path, options: dict[str, Any], named: str) -> None:
    begin(tmp_path / "out", corpora[:1])
    with pytest.raises(ChangedError, match=named) as caught:
        append_in_process(corpora[1:], tmp_path / "out", **options)
    assert caught.value.exit_code == 12
    assert written(tmp_path / "out") == truth(1)


def test_an_input_that_has_changed_since_is_refused_by_name(corpora: list[Path], tmp_path: Path) -> None:
    begin(tmp_path / "out", corpora[:1])
    with corpora[0].open("ab") as file:
        file.write(b" and more")
    with pytest.raises(ChangedError, match=r"has changed since: input .*0\.txt had"):
        append_in_process(corpora, tmp_path / "out")
    assert written(tmp_path / "out") == truth(1)


def test_where_nothing_is_complete_nothing_is_appended(corpora: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no complete output to append to"):
        append_in_process(corpora, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_of_several_settings_is_not_appended_to(corpora: list[Path], tmp_path: Path) -> None:
    begin(tmp_path / "a", corpora[:1], seed=1)
    begin(tmp_path / "b", corpora[1:2], seed=2)
    tokmill.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m", allow_other_split=True)
    with pytest.raises(UsageError, match="with different settings"):
        append_in_process(corpora[2:], tmp_path / "m", seed=1)


@pytest.mark.parametrize("made_of", ["a.txt", "a.jsonl"])
def test_a_setting_that_did_not_matter_is_not_proposed_where_it_does(tmp_path: Path, made_of: str) -> None:
    """Text that is divided otherwise would be appended as one document."""
    (tmp_path / "a.txt").write_bytes(b"one<|endoftext|>two")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n')
    (tmp_path / "b.txt").write_bytes(b"one|two")
    begin(tmp_path / "out", [tmp_path / made_of])
    with pytest.raises(ChangedError, match="--separator was") as caught:
        append_in_process([tmp_path / "b.txt"], tmp_path / "out", separator="|")
    assert ("tokmill merge" in str(caught.value.next_step)) == (made_of == "a.jsonl")
    assert ("--separator" in str(caught.value.next_step)) == (made_of == "a.txt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "megatron", "eot": "none"}, "cannot be told apart"),
        ({"shard_tokens": 900, "eot": "none"}, "cannot be told apart"),
        ({"shard_tokens": 300, "drop_tail": True}, "its last shard was dropped"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_before_anything_is_written(
    corpora: list[Path], tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    begin(tmp_path / "out", corpora[:1], **options)
    before = files_in(tmp_path / "out")
    planned = make_job([str(corpora[1])], PlanOptions(val_fraction=0.2, **options), out=str(tmp_path / "out"))
    with pytest.raises(UsageError, match=words):
        appending.extend(planned)
    assert files_in(tmp_path / "out") == before


def test_the_disk_must_have_room_for_the_copy_of_the_old_output_too(
    corpora: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path / "out", corpora[:1])
    size = sum(len(data) for data in written(tmp_path / "out"))
    asked: list[int] = []
    monkeypatch.setattr(api, "check_disk", lambda _job, carried_bytes: asked.append(carried_bytes))
    for _ in range(2):
        tokmill.tokenize(corpora[1], tmp_path / "out", val_fraction=0.2, append=True)
    assert asked == [size]
    job = make_job([str(corpora[1])], PlanOptions(val_fraction=0.2), out=str(tmp_path / "other")).job
    assert disk_need(job, 1000, 1000, size).output_bytes == disk_need(job, 1000, 1000).output_bytes + size


def test_leftovers_that_fresh_removes_count_as_free(corpora: list[Path], tmp_path: Path) -> None:
    state = tmp_path / "out" / ".tokmill"
    state.mkdir(parents=True)
    (state / "train.bin.part").write_bytes(bytes(1 << 20))
    job = make_job([str(corpora[0])], out=str(tmp_path / "out")).job
    fresh = disk_need(msgspec.structs.replace(job, fresh=True), 1000, 1000)
    assert disk_need(job, 1000, 1000).written_bytes >= 1 << 20
    assert fresh.written_bytes == 0
    assert fresh.needed_bytes > fresh.output_bytes


def test_merged_runs_can_be_appended_to(corpora: list[Path], tmp_path: Path) -> None:
    for i in range(2):
        begin(tmp_path / f"r{i}", corpora[i : i + 1])
    tokmill.merge([tmp_path / "r0", tmp_path / "r1"], tmp_path / "m")
    append_in_process(corpora[2:], tmp_path / "m")
    assert written(tmp_path / "m") == truth(3)
    assert [p.how for p in load_manifest(tmp_path / "m").made_from or ()] == ["merge", "merge", "append"]


def test_damage_in_the_old_output_is_not_carried_on(corpora: list[Path], tmp_path: Path) -> None:
    begin(tmp_path / "out", corpora[:1])
    path = tmp_path / "out" / "train.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"\0\0")
    with pytest.raises(DamageError, match="not those written"):
        append_in_process(corpora[1:], tmp_path / "out")


@pytest.mark.parametrize("name", ["raw", "llmc"])
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_died_before_any_call_the_old_output_is_there_or_the_new_and_the_next_append_makes_the_same_bytes(
    corpora: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stride: int
) -> None:
    begin(tmp_path / "old", corpora[:1], format=name)
    begin(tmp_path / "one", corpora, format=name)
    n = 0
    for n in range(1, 500, stride):
        out = tmp_path / f"a{n}"
        begin(out, corpora[:1], format=name)
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with contextlib.suppress(Died):
                append_in_process(corpora[1:], out, format=name)
        if calls() < n:
            break
        assert_old_or_new(out, tmp_path / "old", tmp_path / "one")
        append_in_process(corpora[1:], out, format=name)
        assert files_in(out) == files_in(tmp_path / "one"), n
        assert load_manifest(out).files == load_manifest(tmp_path / "one").files, n
    assert n > 15


def assert_old_or_new(out: Path, old: Path, new: Path) -> None:
    """What tokmill reads is all of the one or all of the other; each file that is there is one of the one or of the other."""
    assert ids_of(out) in (ids_of(old), ids_of(new))
    for name, data in files_in(out).items():
        if not name.startswith(".tokmill"):
            assert data in (files_in(old).get(name), files_in(new).get(name)), name


def test_whoever_has_mapped_the_old_files_keeps_them(corpora: list[Path], tmp_path: Path) -> None:
    begin(tmp_path / "out", corpora[:1])
    held, mapped = tokmill.open(tmp_path / "out"), np.memmap(tmp_path / "out" / "train.bin", np.uint16, mode="r")
    append_in_process(corpora[1:], tmp_path / "out")
    assert (np.asarray(held.train).tobytes(), np.asarray(held.val).tobytes()) == truth(1)
    assert mapped.tobytes() == truth(1)[0]
    with tokmill.open(tmp_path / "out") as data:
        assert np.asarray(data.train).tobytes() == truth(3)[0]


def test_what_is_longer_without_an_append_is_damage(corpora: list[Path], tmp_path: Path) -> None:
    begin(tmp_path / "out", corpora[:1])
    with (tmp_path / "out" / "train.bin").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(DamageError):
        tokmill.open(tmp_path / "out")


def test_an_interrupted_append_goes_on_and_another_one_is_refused_until_it_is_discarded(
    corpora: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path / "out", corpora[:1])
    with monkeypatch.context() as patch, contextlib.suppress(Died):
        patch.setattr(durable, "write_file", dying_on("manifest.json.part", durable.write_file))
        append_in_process(corpora[1:2], tmp_path / "out")
    assert written(tmp_path / "out") == truth(1)
    with pytest.raises(ChangedError, match=r"an append of .*1\.txt to this output was interrupted"):
        append_in_process(corpora[2:], tmp_path / "out")
    append_in_process(corpora[1:], tmp_path / "out", fresh=True)
    assert written(tmp_path / "out") == truth(3)


@pytest.mark.parametrize("flock", ["present", "missing"])
@pytest.mark.parametrize(
    ("owner", "name", "done", "error"),
    [
        (appending, "copy_old_output", 2, ChangedError),
        (Coordinator, "run", 1, ChangedError),
        (Output, "commit", 1, LockedError),
        (output_directory, "publish_files", 1, LockedError),
    ],
)
def test_of_two_appends_at_once_one_is_refused_and_can_be_made_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, done: int, error: type[Exception], flock: str
) -> None:
    """The second one comes when the first one has planned, has copied the old output, commits, and publishes."""
    if flock == "missing":
        monkeypatch.setattr(fcntl, "flock", refused_flock)
    documents = [[b"%d of corpus %d, and more" % (n, i) for n in range(20)] for i in range(3)]
    corpora, out, refused = [tmp_path / f"{i}.txt" for i in range(3)], tmp_path / "out", []
    for path, texts in zip(corpora, documents, strict=True):
        path.write_bytes(SEP.encode().join(texts))
    begin(out, corpora[:1])

    def append(i: int) -> None:
        try:
            append_in_process(corpora[i : i + 1], out)
        except (LockedError, ChangedError) as caught:
            refused.append((i, type(caught)))

    real = getattr(owner, name)

    def interrupted(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        append(2)
        return real(*args, **named)

    monkeypatch.setattr(owner, name, interrupted)
    append(1)
    assert refused == [(3 - done, error)]
    assert written(out) == plain_tokens([*documents[0], *documents[done]], val_fraction=0.2)
    append(3 - done)
    assert written(out) == plain_tokens([*documents[0], *documents[done], *documents[3 - done]], val_fraction=0.2)


def refused_flock(_fd: int, _operation: int) -> None:
    raise OSError(errno.ENOSYS, "no locks")


def dying_on(name: str, real: Any) -> Any:
    def call(path: Path, data: bytes) -> None:
        if path.name == name:
            raise Died
        real(path, data)

    return call


def test_what_comes_through_a_pipe_is_appended_each_time(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(tmp_path / "out"), "--val-fraction", "0.2", "-q"]
    for documents, more in ((THREE_CORPORA[0], []), (THREE_CORPORA[1], ["--append"]), (THREE_CORPORA[2], ["--append"])):
        data = SEP.encode().join(documents)
        subprocess.run([*command, *more], input=data, check=True, env=clean_environment(), timeout=60)
    assert written(tmp_path / "out") == truth(3)


@pytest.mark.slow
def test_killed_at_random_moments_the_old_output_stays_and_the_append_resumes(tmp_path: Path) -> None:
    documents = some_documents(3000, 3000, 4)
    for name, part in (("a.txt", documents[:1000]), ("b.txt", documents[1000:])):
        (tmp_path / name).write_bytes(SEP.encode().join(part))
    tokmill.tokenize(tmp_path / "a.txt", tmp_path / "old")
    tokmill.tokenize([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "one")
    command = [sys.executable, "-m", "tokmill", "tokenize", str(tmp_path / "b.txt"), "--append", "-q", "--out"]
    rng, n_killed = random.Random(3), 0
    for attempt in itertools.count():
        out = tmp_path / f"out{attempt}"
        tokmill.tokenize(tmp_path / "a.txt", out)
        for _ in range(5):
            with subprocess.Popen([*command, str(out)], env=clean_environment()) as process:
                time.sleep(rng.uniform(0.2, 3.0))
                process.send_signal(signal.SIGKILL)
                n_killed += process.wait() == -signal.SIGKILL
            assert_old_or_new(out, tmp_path / "old", tmp_path / "one")
        subprocess.run([*command, str(out)], check=True, env=clean_environment())
        assert written(out) == written(tmp_path / "one")
        if attempt > 4:
            break
    assert n_killed > 5
