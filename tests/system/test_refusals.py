"""A command that is refused leaves everything as it was: no directory, no state, no file more or less."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from support.corpora import write_corpus

import tokmill
from tokmill.cli import app
from tokmill.core.errors import DiskFullError, InputError, TokmillError, UsageError

pytestmark = pytest.mark.usefixtures("workers_in_process")

TEXTS = [f"Document {i}. " + "Some words, then more. " * (i % 9) for i in range(60)]


def tree(top: Path) -> dict[str, str]:
    """Return all that lies in a directory: of files the digest, of links where they lead."""
    found = {}
    for directory, names, files in os.walk(top):
        for name in [*names, *files]:
            path = Path(directory, name)
            what = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else hashlib.md5(path.read_bytes()).hexdigest()
            found[str(path.relative_to(top))] = what
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with corpora, good and bad, and outputs."""
    top = tmp_path_factory.mktemp("refusals")
    write_corpus(top / "a.txt", TEXTS)
    write_corpus(top / "b.txt", TEXTS[:9])
    (top / "bad.jsonl").write_text("no json\n")
    (top / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (top / "cut.txt.gz").write_bytes(b"\x1f\x8b\x08\x00")
    (top / "empty").mkdir()
    (top / "full" / "train").mkdir(parents=True)
    (top / "full" / "train.bin").write_bytes(b"mine")
    (top / "sided" / "train").mkdir(parents=True)
    (top / "sided" / "train" / "x.ds").write_bytes(b"mine")
    (top / "listed").mkdir()
    (top / "listed" / "skipped.jsonl").write_bytes(b"mine")
    tokmill.tokenize(top / "a.txt", top / "raw", threads=1, val_fraction=0.2)
    tokmill.tokenize(top / "b.txt", top / "llmc", threads=1, format="llmc", val_fraction=0)
    tokmill.tokenize(top / "a.txt", top / "parts", threads=1, part="0/2")
    return top


@pytest.mark.parametrize(
    "command",
    [
        "tokenize missing.txt --out new",
        "tokenize a.txt --out new/deep/er --val-fraction 2",
        "tokenize a.txt --out new --tokenizer nosuch",
        "tokenize a.txt --out new --glob {a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}",
        "tokenize . --glob *.xyz --out new",
        "tokenize empty --out new",
        "tokenize bad.jsonl --out new/deep",
        "tokenize bad.jsonl a.txt --out new",
        "tokenize latin.txt --out new",
        "tokenize cut.txt.gz --out new/deep/er",
        "tokenize a.txt --out new --shard-tokens 1 --format mds",
        "tokenize a.txt --out new --append",
        "tokenize a.txt --out new --part 2/2",
        "tokenize a.txt --out new --part 0/2 --append",
        "tokenize a.txt --out new --memory 1MiB",
        "tokenize a.txt --out a.txt",
        "tokenize a.txt --out a.txt/new",
        "tokenize a.txt --out full",
        "tokenize a.txt --out full --part 0/2",
        "tokenize a.txt --out listed",
        "tokenize a.txt --out sided --format datatrove",
        "tokenize b.txt --out raw",
        "tokenize a.txt --out raw --seed 9",
        "tokenize b.txt --out raw --append --format llmc",
        "tokenize b.txt --out raw --append --val-fraction 0.5",
        "tokenize a.txt --out parts",
        "tokenize a.txt --out parts --part 1/3",
        "tokenize b.txt --out parts --part 1/2",
        "tokenize b.txt --out parts --append",
        "finalize parts",
        "finalize raw",
        "finalize new",
        "merge raw --out raw",
        "merge raw llmc --out new/deep",
        "merge raw missing --out new",
        "merge raw --out full",
        "merge raw parts --out new",
        "convert raw --format llmc --out raw/new",
        "convert raw --format olmo --to-eot before --out new",
        "convert raw/train.bin --out new",
        "convert raw --format raw --out llmc",
        "convert raw --format datatrove --out sided",
        "reshard raw --shard-tokens 0 --out new",
        "reshard missing --out new",
        "verify new",
        "verify raw --source b.txt",
        "verify raw --repair --source b.txt",
        "inspect missing",
        "inspect raw --document 1000",
        "report new",
        "report raw --out a.txt",
        "report raw --out raw/train.bin",
        "vocab fetch nosuch --to new",
    ],
)
def test_a_refusal_leaves_nothing_behind(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(made)
    before = tree(made)
    assert app.run(command.split()) not in (0, 130), command
    assert "error:" in capsys.readouterr().err
    assert tree(made) == before


def test_a_refusal_leaves_no_stage_of_an_output_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("botocore")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for options in ({}, {"stage": tmp_path / "stage" / "deep"}):
        with pytest.raises(UsageError, match="no such file"):
            tokmill.tokenize(tmp_path / "missing.txt", "s3://bucket/x", **options)  # type: ignore[arg-type]
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("b.txt", "the output is a file"),
        ("b.txt/x/y", "a file is in the way of the output"),
        ("lost", "the output is a link that leads nowhere"),
        ("lost/x", "a link that leads nowhere is in the way of the output"),
        ("new/" + "n" * 256, "the name of the output is too long: 256 bytes"),
        ("/".join(["n" * 200] * 25), "the name of the output is too long: 5,"),
    ],
)
def test_where_no_directory_can_be_the_error_says_why(made: Path, name: str, words: str) -> None:
    lost = made / "lost"
    lost.symlink_to("nowhere")
    before = tree(made)
    try:
        for call in (
            lambda out: tokmill.tokenize(made / "a.txt", out),
            lambda out: tokmill.plan(made / "a.txt", out=out),
            lambda out: tokmill.merge([made / "raw"], out),
            lambda out: tokmill.convert(made / "raw", out, format="mds"),
            lambda out: tokmill.tokenize(made / "a.txt", "s3://bucket/x", stage=out),
        ):
            with pytest.raises(UsageError) as caught:
                call(made / name)
            assert caught.value.what.replace("stage", "output").startswith(words)
            assert caught.value.suggested
        assert tree(made) == before
    finally:
        lost.unlink()


@pytest.mark.parametrize("command", ["inspect", "report"])
def test_a_path_that_no_file_can_have_is_to_be_checked(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run([command, "n" * 300]) == 1
    assert "next:    check the path" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_file_system_without_any_room_is_perhaps_no_disk(made: Path) -> None:
    with pytest.raises(DiskFullError, match=r"no room at all.*\(as /proc\)"):
        tokmill.tokenize(made / "a.txt", "/proc/out")


def test_what_was_committed_or_skipped_before_an_error_stays(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\nbad\nbad\n')
    with pytest.raises(TokmillError) as caught:
        tokmill.tokenize(tmp_path / "a.jsonl", tmp_path / "o", on_error="skip", max_skipped=1, threads=1)
    assert Path(str(caught.value.where)).read_text().count("\n") >= 1
    assert "2 bad records (2 invalid_json)" in caught.value.what
    assert f"see which: head {caught.value.where}; then" in str(caught.value.next_step)
    with pytest.raises(UsageError, match="but a run that is under way or was interrupted"):
        tokmill.verify(tmp_path / "o")
    write_corpus(tmp_path / "a.txt", TEXTS)
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(InputError):
        tokmill.tokenize([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "p", threads=1)
    assert (tmp_path / "p").exists() is (tmp_path / "p" / ".tokmill" / "journal").exists()


def test_a_refusal_says_what_is_there(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(made)
    assert app.run(["tokenize", "b.txt", "--out", "raw", "--append", "--format", "llmc", "--val-fraction", "0.2"]) == 12
    said = capsys.readouterr().err
    assert "the output was made with other settings: --format was raw, is llmc" in said
    assert "next:    the same command with --format raw; tokmill convert makes a copy in the format llmc" in said
    merged = made / "merged"
    tokmill.merge([made / "raw"], merged)
    path = merged / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert app.run(["verify", str(merged)]) == 10
    assert "run the tokmill command that made the output again" in capsys.readouterr().err


def test_nanogpt_keeps_its_own_files_beside_those_of_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data" / "shakespeare"
    data.mkdir(parents=True)
    for name in ("prepare.py", "readme.md", "meta.pkl", "train.txt"):
        (data / name).write_text("x")
    write_corpus(data / "input.txt", TEXTS)
    assert app.run(["tokenize", str(data / "input.txt"), "--out", str(data), "-q"]) == 0
    assert app.run(["verify", str(data)]) == 0
    told = "note: not of the output, and read by no trainer: input.txt, meta.pkl, prepare.py, readme.md, train.txt"
    assert told in capsys.readouterr().out
    assert app.run(["tokenize", str(data / "input.txt"), "--out", str(data / "sub"), "-q"]) == 0
    (data / "page.html").write_text("x")
    assert tokmill.verify(data).others == ["input.txt", "meta.pkl", "page.html", "prepare.py", "readme.md", "sub", "train.txt"]
    (data / "train_1.bin").write_text("x")
    assert [problem.file for problem in tokmill.verify(data).problems] == ["train_1.bin"]


@pytest.mark.parametrize(
    ("name", "stray", "is_read"),
    [
        ("raw", "more.bin", True),
        ("raw", "train_000000.bin", True),
        ("raw", "train.idx", True),
        ("raw", "val.npy", True),
        ("raw", "x.npy", False),
        ("llmc", "x.bin", True),
        ("megatron", "x.idx", True),
        ("datatrove", "train/x.ds", True),
        ("datatrove", "train/x.txt", False),
        ("olmo", "val/x.csv.gz", True),
        ("litdata", "train/chunk-9.bin", True),
        ("litdata", "deep/index.json", False),
        ("mds", "train/x.mds", True),
        ("mds", "README.md", False),
    ],
)
def test_what_a_trainer_reads_is_refused_before_and_damage_after(tmp_path: Path, name: str, stray: str, is_read: bool) -> None:
    path, out = write_corpus(tmp_path / "a.txt", TEXTS), tmp_path / "o"
    (out / stray).parent.mkdir(parents=True)
    (out / stray).write_text("x")
    arguments = ["tokenize", str(path), "--out", str(out), "--format", name, "--val-fraction", "0.4", "-q"]
    if is_read:
        assert app.run(arguments) == 2
        assert tree(out).keys() == {stray, os.path.dirname(stray)} - {""}
        (out / stray).unlink()
    assert app.run(arguments) == 0
    if not (out / stray).exists():
        (out / stray).write_text("x")
    report = tokmill.verify(out)
    assert report.ok is (not is_read)
    assert is_read or os.path.dirname(stray) in {"", "train"} or report.others == [os.path.dirname(stray)]
