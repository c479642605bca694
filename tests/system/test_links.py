"""Links, pipes and other kinds of files in the place of anything below an output, before a command or while it works.

Nothing outside changes, no command waits for ever, and each ends as it should or in an error of its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, seed, settings, strategies as st
from support.commands import ends_in_time
from support.corpora import SEP, THREE_CORPORA
from support.failures import Died, flip
from support.outputs import files_in, part_path
from support.runs import TINY, append_in_process, make_part, plan_parts, repair_in_process, run_in_process

import tokmill
from tokmill.core.errors import TokmillError
from tokmill.core.system import durable
from tokmill.output import parts
from tokmill.output.place import output_of, stage_of
from tokmill.output.superseded import discard_append
from tokmill.run.parts.finalize import parts_store
from tokmill.run.segment_writer import SegmentWriter

KINDS = ("directory", "file", "nowhere", "zero", "pipe", "empty", "full", "bytes", "second name")
PLANTED = (
    *(".tokmill", ".tokmill.sent", "train", "val", "train.bin", "val.bin", "manifest.json", "skipped.jsonl", "report.html"),
    *("report.html.new", "train/shard.00000.mds", "val/index.json"),
    *(f".tokmill/{name}" for name in ("old-x", "lock", "journal", "journal.new", "history", "history.new", "plan", "parts")),
    *(f".tokmill/{name}.part" for name in ("train.bin", "val.bin", "manifest.json", "skipped.jsonl", "train%shard.00000.mds")),
    *(f".tokmill/parts/{name}" for name in ("00000", "00001/.tokmill", "00002/manifest.json", "foreign")),
)
"""Names that a scene need not have."""
_PATIENCE_S = 60


class Scene(NamedTuple):
    """A directory, and the options it was made with."""

    directory: Path
    options: dict[str, Any]


def tokenized(out: Path, corpora: list[Path], **options: Any) -> None:
    run_in_process(corpora[:1], out, TINY, **({"val_fraction": 0.2} | options))


def part_made(out: Path, corpora: list[Path], index: int) -> None:
    if parts_store(str(out)).complete(pending=True) is None:
        make_part(plan_parts(corpora, out, 3, val_fraction=0.2), index)


def killed(patched: object, name: str, work: Callable[[], object]) -> None:
    def die(*_: object, **__: object) -> None:
        raise Died

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Died):
        patch.setattr(patched, name, die)
        work()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("corpora")
    paths = [base / f"{i}.txt" for i in range(3)]
    for path, documents in zip(paths, THREE_CORPORA, strict=True):
        path.write_bytes(SEP.encode().join(documents))
    return paths


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, corpora: list[Path]) -> dict[str, Scene]:
    base = tmp_path_factory.mktemp("scenes")
    made = {name: Scene(base / name, options) for name, options in SCENES.items()}
    for name, (out, options) in made.items():
        if name.startswith("interrupted"):
            killed(SegmentWriter, "finish", lambda out=out, options=options: tokenized(out, corpora, **options))  # type: ignore[misc]
        elif name.startswith("parts"):
            job = plan_parts(corpora, out, 3, val_fraction=0.2)
            for index in range(3 if name == "parts being joined" else 2):
                make_part(job, index)
        else:
            tokenized(out, corpora, **options)
        if name.startswith("append"):
            killed(durable, "replace", lambda out=out, options=options: append_in_process(corpora[1:], out, **options))  # type: ignore[misc]
        elif name == "parts being joined":
            killed(parts, "publish_files", lambda out=out: tokmill.finalize(out))  # type: ignore[misc]
    return made


SCENES: dict[str, dict[str, Any]] = {
    "complete": {},
    "complete with subdirectories": {"format": "mds"},
    "interrupted": {},
    "interrupted with subdirectories": {"format": "litdata"},
    "append": {},
    "append with subdirectories": {"format": "mds"},
    "parts": {},
    "parts being joined": {},
}

COMMANDS: dict[str, Callable[[Path, list[Path], dict[str, Any]], object]] = {
    "tokenize": lambda out, corpora, options: tokenized(out, corpora, **options),
    "fresh": lambda out, corpora, options: tokenized(out, corpora, fresh=True, **options),
    "fresh, another format": lambda out, corpora, _options: tokenized(out, corpora, fresh=True, format="megatron"),
    "append": lambda out, corpora, options: append_in_process(corpora[1:], out, **options),
    "append, fresh": lambda out, corpora, options: append_in_process(corpora[1:], out, fresh=True, **options),
    "discard": lambda out, _corpora, _options: discard_append(out),
    "part": lambda out, corpora, _options: part_made(out, corpora, 2),
    "first part": lambda out, corpora, _options: part_made(out, corpora, 0),
    "finalize": lambda out, _corpora, _options: tokmill.finalize(out),
    "merge": lambda out, _corpora, _options: tokmill.merge([out], out.parent / "other", fresh=True),
    "merge into it": lambda out, _corpora, _options: tokmill.merge([out.parent / "sound"], out, fresh=True),
    "convert": lambda out, _corpora, _options: tokmill.convert(out, out.parent / "other", format="mds", fresh=True),
    "convert into it": lambda out, _corpora, _options: tokmill.convert(out.parent / "sound", out, format="mds", fresh=True),
    "reshard": lambda out, _corpora, _options: tokmill.reshard(out, out.parent / "other", shard_tokens=100, fresh=True),
    "verify": lambda out, _corpora, _options: tokmill.verify(out),
    "repair": lambda out, _corpora, _options: repair_in_process(out),
    "inspect": lambda out, _corpora, _options: tokmill.inspect(out),
    "report": lambda out, _corpora, _options: tokmill.report(out, force=True),
    "open": lambda out, _corpora, _options: tokmill.open(out).train[:5],
}


def put(path: Path, kind: str, victim: Path) -> None:
    """Put something else in the place of whatever is there; what was there lies beside the output then."""
    held = victim.parent / "held"
    shutil.rmtree(held, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.rename(path, held)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        targets = {"directory": victim, "file": victim / "thesis.txt", "nowhere": victim / "new", "zero": Path("/dev/zero")}
        if kind in targets:
            path.symlink_to(targets[kind])
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "bytes":
            path.write_bytes(b"of somebody")
        elif kind == "second name":
            path.hardlink_to(victim / "thesis.txt")
        else:
            path.mkdir()
            if kind == "full":
                (path / "link").symlink_to(victim)
                (path / "train.bin").symlink_to(victim / "thesis.txt")


def make_victim(victim: Path) -> None:
    """A directory with files of every name that a run may write or remove."""
    for name in ("thesis.txt", "train.bin", "journal", "lock", "manifest.json", "00000/manifest.json", "train/a", "index.json"):
        (victim / name).parent.mkdir(parents=True, exist_ok=True)
        (victim / name).write_bytes(b"precious")


def seen(victim: Path) -> list[tuple[str, int, bytes | None]]:
    paths = sorted([victim, *victim.rglob("*")])
    return [(str(p), p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in paths]


@contextlib.contextmanager
def swapped_at(call: int, path: Path, kind: str, victim: Path) -> Iterator[None]:
    """Put something else in the place of `path` just before the n-th call that looks below a directory."""
    calls = 0

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                patch.undo()
                put(path, kind, victim)
            return real(*arguments, **named)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "stat", "unlink", "replace", "link", "mkdir", "rmdir", "listdir"):
            patch.setattr(os, name, counting(getattr(os, name)))
        yield


def attempt(scene: Scene, corpora: list[Path], top: Path, command: str, entry: str, kind: str, call: int = 0) -> None:
    """Carry out a command with an entry of the scene replaced, at once or (call) during it; nothing outside may change."""
    out, victim = top / "out", top / "victim"
    for path in (out, victim, top / "other"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(scene.directory, out, symlinks=True)
    make_victim(victim)
    before = seen(victim)
    swap = swapped_at(call, out / entry, kind, victim) if call else contextlib.nullcontext()
    if not call:
        put(out / entry, kind, victim)
    # What was there is sound; a repair has something to do.
    if command == "repair":
        for name in ("train.bin", "train/shard.00000.mds"):
            if (out / name).is_file() and not (out / name).is_symlink() and (out / name).stat().st_nlink == 1:
                flip(out / name, (out / name).stat().st_size // 2) if (out / name).stat().st_size else None
    with ends_in_time(_PATIENCE_S), swap, contextlib.suppress(TokmillError):
        COMMANDS[command](out, corpora, scene.options)
    assert seen(victim) == before, (command, entry, kind, call)


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory, scenes: dict[str, Scene]) -> Path:
    top = tmp_path_factory.mktemp("top")
    shutil.copytree(scenes["complete"].directory, top / "sound")
    return top


def entries(scene: Scene) -> list[str]:
    """Every name below a scene, and those that it need not have."""
    return sorted({*PLANTED, *(str(path.relative_to(scene.directory)) for path in scene.directory.rglob("*"))})


def tried(data: st.DataObject, scenes: dict[str, Scene], corpora: list[Path], top: Path, *, during: bool) -> None:
    scene = scenes[data.draw(st.sampled_from(sorted(SCENES)))]
    command = data.draw(st.sampled_from(sorted(COMMANDS)))
    entry = data.draw(st.sampled_from(entries(scene)))
    kind = data.draw(st.sampled_from(KINDS if not during else ("directory", "file", "nowhere", "pipe", "second name")))
    attempt(scene, corpora, top, command, entry, kind, data.draw(st.integers(1, 400)) if during else 0)


FEW = settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=300)


@FEW
@given(st.data())
def test_whatever_lies_in_an_output_before_a_command_nothing_outside_changes(
    scenes: dict[str, Scene], corpora: list[Path], top: Path, data: st.DataObject
) -> None:
    tried(data, scenes, corpora, top, during=False)


@FEW
@given(st.data())
def test_whatever_is_put_into_an_output_during_a_command_nothing_outside_changes(
    scenes: dict[str, Scene], corpora: list[Path], top: Path, data: st.DataObject
) -> None:
    tried(data, scenes, corpora, top, during=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("during", [False, True])
def test_links_by_the_thousand(scenes: dict[str, Scene], corpora: list[Path], top: Path, during: bool, number: int) -> None:
    @seed(number)
    @MANY
    @given(st.data())
    def every(data: st.DataObject) -> None:
        tried(data, scenes, corpora, top, during=during)

    every()


@pytest.mark.parametrize(
    ("scene", "command", "entry"),
    [
        ("complete", "tokenize", ".tokmill/old-x"),
        ("complete", "repair", ".tokmill/old-x"),
        ("complete", "append", ".tokmill/old-x"),
        ("complete", "fresh", ".tokmill.sent"),
        ("complete with subdirectories", "fresh", "train"),
        ("complete with subdirectories", "repair", "train"),
        ("complete with subdirectories", "append", "train"),
        ("parts", "part", ".tokmill/parts"),
        ("parts", "part", ".tokmill/parts/00002"),
        ("parts", "finalize", ".tokmill/parts/00001"),
        ("parts being joined", "finalize", ".tokmill/parts/00001/.tokmill"),
        ("interrupted", "tokenize", ".tokmill"),
    ],
)
def test_a_link_to_a_directory_is_removed_or_named_but_never_followed(
    scenes: dict[str, Scene], corpora: list[Path], top: Path, scene: str, command: str, entry: str
) -> None:
    attempt(scenes[scene], corpora, top, command, entry, "directory")


@pytest.mark.parametrize(("flock", "fresh"), [("present", False), ("missing", True)])
def test_a_run_is_resumed_beside_a_backup_made_of_hard_links_and_in_it(
    scenes: dict[str, Scene], corpora: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: str, *, fresh: bool
) -> None:
    if flock == "missing":
        monkeypatch.setattr(fcntl, "flock", refused_flock)
    out, backup = tmp_path / "out", tmp_path / "backup"
    shutil.copytree(scenes["interrupted"].directory, out)
    # As a run that was killed leaves it, in the middle of a line of the journal.
    (out / ".tokmill" / "lock").write_bytes(b"of a dead run\n")
    with (out / ".tokmill" / "journal").open("ab") as journal:
        journal.write(b"torn")
    shutil.copytree(out, backup, copy_function=os.link)
    before = seen(backup)
    assert any(path.stat().st_nlink > 1 for path in backup.rglob("*.part"))
    tokenized(out, corpora, fresh=fresh)
    assert seen(backup) == before
    third = tmp_path / "third"
    shutil.copytree(backup, third, copy_function=os.link)
    tokenized(backup, corpora, fresh=fresh)
    assert seen(third) == [(path.replace("/backup", "/third", 1), *rest) for path, *rest in before]
    assert files_in(out) == files_in(backup) == files_in(scenes["complete"].directory)


def refused_flock(_fd: int, _operation: int) -> None:
    raise OSError(errno.ENOLCK, "no locks")


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("call", [0, 40])
def test_a_stage_that_becomes_a_link_is_not_followed(corpora: list[Path], tmp_path: Path, call: int, depth: int) -> None:
    staged = output_of(stage_of("s3://bucket/data", str(tmp_path / "stage")))
    out, victim = Path(str(staged)), tmp_path / "victim"
    make_victim(victim)
    make_victim(victim / "output")
    tokenized(out, corpora, destination="s3://bucket/data")
    before = seen(victim)
    swapped = out if depth == 2 else out.parent
    if not call:
        put(swapped, "directory", victim)
    with swapped_at(call, swapped, "directory", victim) if call else contextlib.nullcontext(), pytest.raises(TokmillError):
        tokenized(out, corpora, fresh=True, destination="s3://bucket/data")
    assert seen(victim) == before


def test_an_output_that_is_called_as_a_stage_may_be_a_link(corpora: list[Path], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    out = tmp_path / "run-0123456789abcdef" / "output"
    out.parent.mkdir()
    out.symlink_to(tmp_path / "disk")
    tokenized(out, corpora)
    assert tokmill.verify(out).problems == []
    with tokmill.open(out) as data:
        assert len(data.train)


def test_the_output_itself_may_be_a_link(corpora: list[Path], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    tokenized(tmp_path / "out", corpora)
    append_in_process(corpora[1:], tmp_path / "out")
    assert tokmill.verify(tmp_path / "out").problems == []
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["manifest.json", "train.bin", "val.bin"]
    make_part(plan_parts(corpora, tmp_path / "out" / "parts", 3, val_fraction=0.2), 1)
    assert (part_path(tmp_path / "disk" / "parts", 1) / "manifest.json").exists()
