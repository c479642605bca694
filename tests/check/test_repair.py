"""`verify --repair`: whatever is damaged is byte for byte what it was, whatever stops it on the way does no harm."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.commands import PATIENCE_S, clean_environment, command, wait_until
from support.corpora import SEP, some_documents, some_text
from support.failures import Died, do_damage, dying_at, flip
from support.runs import SMALL, repair_in_process, tokenize_in_small_segments

import tokmill
from tokmill.check.verification import verify
from tokmill.core.config import BudgetTerms
from tokmill.core.errors import ChangedError, DamageError, LockedError, StorageError, UsageError
from tokmill.core.manifest import load_manifest
from tokmill.core.records import Counts, Cursor
from tokmill.output.directory import Output, open_output

FILES = ("skipped.jsonl", "train.bin", "val.bin")


class Made:
    """A complete output of many segments, made from files of every kind, and how to damage a copy of it."""

    def __init__(self, folder: Path, **options: object) -> None:
        documents = [*some_documents(60, 300, 8), b"", b"\n", *some_documents(2, 6000, 9)]
        self.corpus = folder / "corpus"
        self.corpus.mkdir()
        (self.corpus / "a.txt").write_bytes(SEP.encode().join(documents) + SEP.encode())
        lines = [json.dumps({"text": d.decode()}) if i % 4 else "not JSON" for i, d in enumerate(some_documents(40, 300, 11))]
        (self.corpus / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
        for i in range(9):
            (self.corpus / f"c{i}.txt").write_bytes(b"caf\xe9" if i % 3 else b"tiny")
        (self.corpus / "d.txt").write_bytes(SEP.encode().join(some_documents(30, 300, 10)))
        self.out = folder / "out"
        tokenize_in_small_segments([self.corpus], self.out, SMALL, on_error="skip", val_fraction=0.3, **options)
        self.bytes = {name: (self.out / name).read_bytes() for name in FILES}

    def copy(self, to: Path) -> Path:
        return shutil.copytree(self.out, to)

    def is_whole(self, out: Path) -> bool:
        names = sorted(p.name for p in out.iterdir())
        same = all((out / name).read_bytes() == data for name, data in self.bytes.items())
        return same and names == sorted([*FILES, "manifest.json"]) and verify(out).ok


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = Made(tmp_path_factory.mktemp("made"))
    assert len(load_manifest(made.out).segments) > 15
    return made


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, str, float, int]:
    """A file, what befalls it, where (0 to 1), and which bit."""
    kind = draw(st.sampled_from(["flip", "flip", "cut", "missing", "longer", "linked"]))
    return draw(st.sampled_from(FILES)), kind, draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(damages(), min_size=1, max_size=3), batch_bytes=st.integers(64, 20_000), n_threads=st.integers(1, 3))
def test_any_damage_is_found_and_made_good(
    made: Made,
    tmp_path_factory: pytest.TempPathFactory,
    damage: list[tuple[str, str, float, int]],
    batch_bytes: int,
    n_threads: int,
) -> None:
    out = made.copy(tmp_path_factory.mktemp("damaged") / "out")
    for each in damage:
        do_damage(out, each)
    is_damaged = any((out / n).is_symlink() or not (out / n).exists() or (out / n).read_bytes() != made.bytes[n] for n in FILES)
    assert verify(out).ok == (not is_damaged)
    mended = repair_in_process(out, {"batch_bytes": batch_bytes, "terms": BudgetTerms(n_threads=n_threads)})
    assert bool(mended) == is_damaged
    assert made.is_whole(out)


def test_one_bit_of_any_segment_costs_that_segment_and_no_other_file(made: Made, tmp_path: Path) -> None:
    out = made.copy(tmp_path / "out")
    ends = dict.fromkeys(FILES, 0)
    for segment in load_manifest(out).segments:
        for name, span in segment.files.items():
            untouched = {n: (out / n).stat().st_ino for n in FILES if n != name}
            flip(out / name, (ends[name] + span.end) // 2)
            (repaired,) = repair_in_process(out)
            assert (repaired.file, repaired.begin_byte, repaired.end_byte) == (name, ends[name], span.end)
            assert {n: (out / n).stat().st_ino for n in untouched} == untouched
            ends[name] = span.end
    assert made.is_whole(out)


@pytest.mark.parametrize("options", [{"eot": "before"}, {"eot": "none"}, {"keep_empty": True, "dtype": "uint32"}], ids=str)
def test_every_setting_gives_its_bytes_again(tmp_path: Path, options: dict[str, object]) -> None:
    made = Made(tmp_path, **options)
    for i in range(0, len(made.bytes["train.bin"]), len(made.bytes["train.bin"]) // 7):
        flip(made.out / "train.bin", i)
    (made.out / "val.bin").unlink()
    repair_in_process(made.out)
    assert made.is_whole(made.out)


def test_a_gap_in_the_middle_of_a_divided_document(tmp_path: Path) -> None:
    path, out = tmp_path / "one.txt", tmp_path / "out"
    block = some_text(1 << 20, 3)
    path.write_text("".join(f"{i} {block}" for i in range(70)), encoding="utf-8")
    tokenize_in_small_segments([path], out, {"segment_bytes": 3 << 20}, separator="none", val_fraction=0.3)
    manifest = load_manifest(out)
    inside = [s.after for s in manifest.segments if s.after.document_offset is not None]
    assert len(inside) > 10
    good = {name: (out / name).read_bytes() for name in manifest.files}
    for name, data in good.items():
        flip(out / name, len(data) // 2)
    assert len(repair_in_process(out, {"batch_bytes": 300_000})) == 2
    assert {name: (out / name).read_bytes() for name in manifest.files} == good


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_died_before_any_call_that_changes_the_disk_nothing_is_worse_and_the_next_repair_is_whole(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    for n in range(1, 300, stride):
        out = made.copy(tmp_path / f"out{n}")
        flip(out / "train.bin", 1000)
        (out / "val.bin").unlink()
        damaged = (out / "train.bin").read_bytes()
        with monkeypatch.context() as patch:
            calls = dying_at(n, patch)
            with suppress(Died):
                repair_in_process(out)
        assert (out / "train.bin").read_bytes() in (damaged, made.bytes["train.bin"])
        assert not (out / "val.bin").exists() or (out / "val.bin").read_bytes() == made.bytes["val.bin"]
        repair_in_process(out)
        assert made.is_whole(out), n
        if calls() < n:
            break
    assert n > 10


def test_killed_at_any_moment_and_repaired_again_the_output_is_whole(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(SEP.encode().join(some_documents(3000, 4000, 5)))
    out = tmp_path / "out"
    assert command("tokenize", corpus, "--out", out, "-q").returncode == 0
    good = (out / "train.bin").read_bytes()
    rng, n_killed = random.Random(3), 0
    for i in range(6):
        (out / "train.bin").unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-m", "tokmill", "verify", str(out), "--repair", "-q"],
            env=clean_environment(),
            start_new_session=True,
        ) as process:
            try:
                process.wait(rng.uniform(0.2, 1.0))
            except subprocess.TimeoutExpired:
                # The parent alone, too: the worker must not go on without it.
                (os.killpg if i % 2 else os.kill)(process.pid, signal.SIGKILL)
                n_killed += 1
        assert not (out / "train.bin").exists() or (out / "train.bin").read_bytes() == good
    # The worker of a killed parent holds the lock until it notices.
    code = 11

    def repaired() -> bool:
        nonlocal code
        code = command("verify", out, "--repair", "-q").returncode
        return code != 11

    wait_until(repaired)
    assert (code, n_killed >= 2) == (0, True)
    assert (out / "train.bin").read_bytes() == good
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "train.bin", "val.bin"]


def test_the_worker_that_is_lost_is_started_again(made: Made, tmp_path: Path) -> None:
    out = made.copy(tmp_path / "out")
    (out / "train.bin").unlink()
    with subprocess.Popen(
        [sys.executable, "-m", "tokmill", "verify", str(out), "--repair"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    ) as process:
        wait_until((out / ".tokmill" / "lock").exists, process)
        (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGABRT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert b"a process of the run was lost" in said
    assert made.is_whole(out)


def touch(made: Made) -> None:
    os.utime(made.corpus / "a.txt", ns=(1, 1))


def rewrite(made: Made) -> None:
    """Other text of the same size and as many tokens, dated back."""
    path, status = made.corpus / "a.txt", (made.corpus / "a.txt").stat()
    path.write_bytes(path.read_bytes().replace(b" sat", b" hat"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (touch, "was modified"),
        (rewrite, r"no longer gives the bytes of segment \d"),  # where segments end depends on time, too
        (lambda made: (made.corpus / "a.txt").unlink(), "cannot be read: No such file"),
        (lambda made: (made.corpus / "a.txt").write_bytes(b"x"), "has 1"),
    ],
)
def test_another_corpus_is_refused_and_nothing_is_replaced(tmp_path: Path, change: Callable[[Made], object], words: str) -> None:
    made = Made(tmp_path)
    flip(made.out / "train.bin", 3)
    (made.out / "val.bin").unlink()
    before = (made.out / "train.bin").read_bytes()
    change(made)
    with pytest.raises(ChangedError, match=words) as caught:
        repair_in_process(made.out)
    assert "--source" in str(caught.value.next_step)
    assert (made.out / "train.bin").read_bytes() == before
    assert sorted(p.name for p in made.out.iterdir()) == ["manifest.json", "skipped.jsonl", "train.bin"]


def test_inputs_that_are_not_needed_may_be_gone(tmp_path: Path) -> None:
    made = Made(tmp_path)
    flip(made.out / "train.bin", 3)
    for name in ("b.jsonl.gz", "d.txt"):
        (made.corpus / name).unlink()
    repair_in_process(made.out)
    assert made.is_whole(made.out)


def test_a_corpus_that_moved_is_given_with_source_and_what_was_skipped_keeps_its_path(tmp_path: Path) -> None:
    made = Made(tmp_path)
    for name in FILES:
        (made.out / name).unlink()
    moved = made.corpus.rename(tmp_path / "elsewhere")
    with pytest.raises(ChangedError, match="cannot be read"):
        repair_in_process(made.out)
    with pytest.raises(ChangedError, match="1 input found"):
        repair_in_process(made.out, sources=[str(moved / "d.txt")])
    other = tmp_path / "other.txt"
    other.write_text("another text")
    with pytest.raises(ChangedError, match=r"has [\d,]+ bytes; .* had"):
        repair_in_process(made.out, sources=[str(other), *sorted(map(str, moved.iterdir()))[1:]])
    for path in moved.iterdir():
        os.utime(path)
    repair_in_process(made.out, sources=[str(moved)])
    assert made.is_whole(made.out)


def test_what_came_through_standard_input_needs_a_file_in_its_place(tmp_path: Path) -> None:
    text, out = SEP.encode().join(some_documents(50, 400)), tmp_path / "out"
    arguments = [sys.executable, "-m", "tokmill", "tokenize", "-", "--out", str(out), "-q"]
    subprocess.run(arguments, input=text, env=clean_environment(), check=True)
    assert repair_in_process(out) == []
    good = (out / "train.bin").read_bytes()
    flip(out / "train.bin", 100)
    with pytest.raises(DamageError, match="cannot be read again"):
        repair_in_process(out)
    (tmp_path / "kept.txt").write_bytes(text)
    repair_in_process(out, sources=[str(tmp_path / "kept.txt")])
    assert (out / "train.bin").read_bytes() == good


def test_a_run_that_writes_there_is_not_disturbed(made: Made, tmp_path: Path) -> None:
    out = made.copy(tmp_path / "out")
    (out / "val.bin").unlink()
    content = load_manifest(out).content
    held = open_output(out, content, "0", fresh=True)
    assert isinstance(held, Output)
    with pytest.raises(LockedError):
        repair_in_process(out)
    held.file("train.bin").append(b"begun")
    held.commit(Cursor(offset=1), Counts(), {}, 0.0)
    held.settle()
    held.close()
    with pytest.raises(UsageError, match="begun to replace"):
        repair_in_process(out)
    assert (out / ".tokmill" / "train.bin.part").read_bytes() == b"begun"


CANNOT_COPY = ["EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP", "EPERM", "EBADF", "ETXTBSY"]


@pytest.mark.parametrize("name", [*CANNOT_COPY, None])
def test_without_a_kernel_that_copies_it_copies_itself(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(getattr(errno, name or ""), "refused")

    if name is None:
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    out = made.copy(tmp_path / "out")
    flip(out / "train.bin", len(made.bytes["train.bin"]) // 2)
    repair_in_process(out)
    assert made.is_whole(out)


def test_a_disk_that_fails_while_it_copies_is_an_error_and_nothing_is_replaced(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "copy_file_range", fail)
    monkeypatch.setattr(os, "pwrite", fail)
    out = made.copy(tmp_path / "out")
    flip(out / "train.bin", len(made.bytes["train.bin"]) // 2)
    damaged = (out / "train.bin").read_bytes()
    with pytest.raises(StorageError, match="Input/output error"):
        repair_in_process(out)
    assert (out / "train.bin").read_bytes() == damaged
    assert {*FILES, "manifest.json"} == {p.name for p in out.iterdir()} - {".tokmill"}


def test_what_the_disk_refuses_to_give_is_made_again(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = made.copy(tmp_path / "out")
    bad, real = (out / "train.bin").stat().st_ino, os.pread

    def pread(fd: int, n: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == bad and offset <= 3000 < offset + n:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, n, offset)

    monkeypatch.setattr(os, "pread", pread)
    (repaired,) = repair_in_process(out)
    assert repaired.begin_byte <= 3000 < repaired.end_byte
    assert made.is_whole(out)


def test_a_disk_that_gives_back_something_else_is_not_believed(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = made.copy(tmp_path / "out")
    flip(out / "train.bin", 3)
    real = os.pread

    def pread(fd: int, n: int, offset: int) -> bytes:
        data = real(fd, n, offset)
        is_part = os.readlink(f"/proc/self/fd/{fd}").endswith(".part")
        return data[:-1] + bytes([data[-1] ^ 1]) if is_part else data

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(StorageError, match="does not give back"):
        repair_in_process(out)
    monkeypatch.undo()
    assert not verify(out).ok
    repair_in_process(out)
    assert made.is_whole(out)


def test_the_command_repairs_reports_and_leaves_foreign_files_alone(made: Made, tmp_path: Path) -> None:
    out = made.copy(tmp_path / "out")
    flip(out / "train.bin", 1000)
    done = command("verify", out, "--json")
    assert done.returncode == 10
    assert "--repair" in done.stderr
    assert json.loads(done.stdout)["repaired"] is None
    done = command("verify", out, "--repair", "--json")
    assert done.returncode == 0, done.stderr
    (repaired,) = json.loads(done.stdout)["repaired"]
    assert repaired["file"] == "train.bin"
    assert repaired["begin_byte"] <= 1000 < repaired["end_byte"]
    (out / "foreign.bin").write_bytes(b"x")
    flip(out / "val.bin", 1)
    done = command("verify", out, "--repair")
    assert done.returncode == 10
    assert "foreign.bin" in done.stderr
    assert "val.bin" not in done.stderr.partition("error:")[2]
    (out / "foreign.bin").unlink()
    done = command("verify", out, "--repair")
    assert (done.returncode, "nothing was damaged" in done.stdout) == (0, True)
    assert made.is_whole(out)


def test_a_damaged_manifest_cannot_be_repaired(made: Made, tmp_path: Path) -> None:
    out = made.copy(tmp_path / "out")
    flip(out / "manifest.json", 100)
    with pytest.raises(DamageError) as caught:
        tokmill.repair(out)
    assert "--fresh" in str(caught.value.next_step)
    with pytest.raises(UsageError):
        tokmill.repair(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_full_disk_is_exit_14_and_leaves_nothing_behind(made: Made, tmp_path: Path) -> None:
    out = made.copy(tmp_path / "out")
    flip(out / "train.bin", 1000)
    done = subprocess.run(
        [sys.executable, "-m", "tokmill", "verify", str(out), "--repair", "-q"],
        # Or Python would keep bytecode that the limit cut, for all tests after this one.
        env=clean_environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
    )
    assert done.returncode == 14, done.stderr
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, "manifest.json"])
    assert command("verify", out, "--repair", "-q").returncode == 0
    assert made.is_whole(out)


def test_interrupted_it_replaces_nothing(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus.txt", tmp_path / "out"
    corpus.write_bytes(SEP.encode().join(some_documents(3000, 4000, 5)))
    assert command("tokenize", corpus, "--out", out, "-q").returncode == 0
    (out / "train.bin").unlink()
    with subprocess.Popen(
        [sys.executable, "-m", "tokmill", "verify", str(out), "--repair"], stderr=subprocess.PIPE, env=clean_environment()
    ) as process:
        wait_until((out / ".tokmill" / "train.bin.part").exists, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert b"nothing was replaced" in said
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "val.bin"]


def test_a_process_that_tokenizes_loads_nothing_of_repair() -> None:
    probe = "import sys, tokmill.run.coordinator; print([name for name in sys.modules if name.startswith('tokmill.check')])"
    done = subprocess.run([sys.executable, "-c", probe], env=clean_environment(), capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
