"""Commit, recovery and publishing of an output directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import xxhash
from support.records import a_content, a_tokenizer

from tokmill.core.config import Content
from tokmill.core.errors import (
    ChangedError,
    DamageError,
    DiskFullError,
    LinkError,
    LockedError,
    StorageError,
    TokmillError,
    UsageError,
)
from tokmill.core.manifest import FORMAT_VERSION, MANIFEST_NAME, STATE_NAME, FileSpan, Manifest, Segment, load_manifest
from tokmill.core.records import Counts, Cursor, FileEntry, Input
from tokmill.core.spans import Span, SpanChecker
from tokmill.core.system import durable
from tokmill.core.system.tree import TreePath
from tokmill.output.directory import GrowingFile, Output, open_output
from tokmill.output.journal import Commit
from tokmill.output.state_dir import acquire_lock
from tokmill.output.superseded import remove_state


def opened(directory: Path, content: Content | None = None, *, fresh: bool = False) -> Output:
    output = open_output(directory, content or a_content(), "0", fresh=fresh)
    assert isinstance(output, Output)
    return output


def commit(output: Output, data: bytes, offset: int, name: str = "train.bin") -> None:
    output.file(name).append(data)
    output.commit(Cursor(offset=offset), Counts(bytes_in=offset), {}, 1.0)
    output.settle()


def manifest_of(output: Output, content: Content) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        tokmill_version="0",
        fingerprint=content.fingerprint(),
        content=content,
        files={name: FileEntry(size_bytes=output.file(name).length) for name in output.names},
        segments=output.segments,
        counts=output.counts,
        elapsed_s=1.0,
        peak_rss_bytes=1,
    )


def complete(directory: Path, data: bytes = b"abcd", *, fresh: bool = False, content: Content | None = None) -> Manifest:
    content = content or a_content()
    output = opened(directory, content, fresh=fresh)
    commit(output, data, 1)
    output.publish(manifest_of(output, content))
    return load_manifest(directory)


def test_a_resumed_run_has_the_committed_bytes_and_no_others(tmp_path: Path) -> None:
    output = opened(tmp_path)
    commit(output, b"first", 5)
    output.file("train.bin").append(b" never committed")
    output.close()

    resumed = opened(tmp_path)
    assert resumed.cursor == Cursor(offset=5)
    assert resumed.file("train.bin").length == 5
    commit(resumed, b" second", 12)
    resumed.publish(manifest_of(resumed, a_content()))
    assert (tmp_path / "train.bin").read_bytes() == b"first second"
    assert os.listdir(tmp_path / STATE_NAME) == [] if (tmp_path / STATE_NAME).exists() else True


class _Others:
    """Implements Elsewhere: writes what is long, and says so late."""

    def __init__(self) -> None:
        self.pieces: list[tuple[_Piece, bytes]] = []

    def takes(self, view: memoryview) -> bool:
        return len(view) > 3

    def write(self, file: GrowingFile, view: memoryview, offset: int) -> _Piece:
        os.pwrite(file.fd, view, offset)
        self.pieces.append((_Piece(len(view)), bytes(view)))
        return self.pieces[-1][0]

    def wait(self) -> None:
        for piece, data in self.pieces:
            piece.digest = xxhash.xxh3_128_digest(data)

    def close_file(self, file: GrowingFile) -> None:
        pass


class _Piece:
    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.digest = b""


def test_what_is_written_here_between_what_others_write_is_in_the_digest(tmp_path: Path) -> None:
    output = opened(tmp_path)
    output.elsewhere = _Others()
    parts = [b"a", b"", b"bc", b"long", b"", b"d", b"ef", b"longer", b"longest", b""]
    for part in parts:
        output.file("train.bin").append(part)
    commit(output, b"", 1)
    output.settle()
    (span,) = output.segments[0].files.values()
    assert span.pieces == "3 4 3 6 7"
    data = (tmp_path / STATE_NAME / "train.bin.part").read_bytes()
    assert data == b"".join(parts)
    assert SpanChecker([Span(0, 0, len(data), span.digest, span.pieces)]).update(data) == []
    output.close()


def test_nothing_stands_under_a_final_name_before_publishing(tmp_path: Path) -> None:
    output = opened(tmp_path)
    commit(output, b"abc", 3)
    assert [p.name for p in tmp_path.iterdir()] == [STATE_NAME]
    output.close()


@pytest.mark.parametrize("name", ["history", "history.new", "journal.new", "old-0123456789abcdef/sub", "stray.part"])
def test_what_is_left_and_cannot_be_removed_is_no_error_of_a_run_that_is_complete(tmp_path: Path, name: str) -> None:
    content = a_content()
    output = opened(tmp_path, content)
    commit(output, b"abcd", 1)
    (tmp_path / STATE_NAME / name / "inner").mkdir(parents=True)
    output.publish(manifest_of(output, content))
    assert load_manifest(tmp_path).files["train.bin"].size_bytes == 4
    assert not (tmp_path / STATE_NAME / "journal").exists()
    assert open_output(tmp_path, content, "0", fresh=False) == load_manifest(tmp_path)


def test_what_the_next_run_would_go_on_with_and_cannot_be_removed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = opened(tmp_path)
    commit(output, b"abcd", 1)
    output.close()
    unlink = TreePath.unlink

    def sticking(path: TreePath, *, missing_ok: bool = False) -> None:
        if path.name in ("journal", "train.bin.part"):
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(TreePath, "unlink", sticking)
    with pytest.raises(StorageError, match="cannot write the output"):
        remove_state(tmp_path, acquire_lock(tmp_path))


def test_a_complete_directory_is_left_as_it_is(tmp_path: Path) -> None:
    made = complete(tmp_path)
    assert open_output(tmp_path, a_content(), "0", fresh=False) == made
    assert sorted(p.name for p in tmp_path.iterdir()) == [MANIFEST_NAME, "train.bin"]


@pytest.mark.parametrize("n_renamed", [0, 1, 2, 3])
def test_publishing_killed_between_any_two_renames_is_finished_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_renamed: int
) -> None:
    output = opened(tmp_path)
    commit(output, b"train", 5)
    commit(output, b"val", 8, "val.bin")
    real, calls = durable.replace, iter(range(99))

    def dying(source: TreePath, target: TreePath) -> None:
        if next(calls) == n_renamed:
            raise SystemExit
        real(source, target)

    monkeypatch.setattr(durable, "replace", dying)
    if n_renamed < 3:
        with pytest.raises(SystemExit):
            output.publish(manifest_of(output, a_content()))
        output.close()
    else:
        output.publish(manifest_of(output, a_content()))
    monkeypatch.undo()
    assert isinstance(open_output(tmp_path, a_content(), "0", fresh=False), Manifest)
    assert (tmp_path / "train.bin").read_bytes() == b"train"
    assert (tmp_path / "val.bin").read_bytes() == b"val"
    assert not (tmp_path / STATE_NAME).exists()


def test_fresh_keeps_the_old_output_until_the_new_one_is_complete(tmp_path: Path) -> None:
    complete(tmp_path, b"old")
    output = opened(tmp_path, fresh=True)
    commit(output, b"newer", 5)
    assert (tmp_path / "train.bin").read_bytes() == b"old"
    assert load_manifest(tmp_path).files["train.bin"].size_bytes == 3
    output.publish(manifest_of(output, a_content()))
    assert (tmp_path / "train.bin").read_bytes() == b"newer"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 7}, "--seed was 0, is 7"),
        ({"separator": None}, "--separator"),
        ({"tokenizer": a_tokenizer(sha256="f" * 64)}, "--tokenizer"),
        ({"inputs": (Input(path="/corpus.txt", format="text", compression="none", size_bytes=11, mtime_ns=1),)}, "had 10 bytes"),
        ({"inputs": (Input(path="/corpus.txt", format="text", compression="none", size_bytes=10, mtime_ns=2),)}, "was modified"),
        (
            {"inputs": (Input(path="/b.txt", format="text", compression="none", size_bytes=10, mtime_ns=1),)},
            "/b.txt is new|1 other input",
        ),
    ],
)
def test_a_run_that_was_begun_differently_is_refused_by_name(tmp_path: Path, change: dict[str, object], named: str) -> None:
    output = opened(tmp_path)
    commit(output, b"x", 1)
    output.close()
    with pytest.raises(ChangedError, match=named):
        opened(tmp_path, a_content(**change))
    done = tmp_path / "done"
    complete(done)
    with pytest.raises(ChangedError, match=named):
        opened(done, a_content(**change))


def test_a_second_writer_is_refused_and_a_dead_one_is_no_obstacle(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from support.records import a_content;"
        "from tokmill.output.directory import open_output;"
        "o = open_output(Path(sys.argv[1]), a_content(), '0', fresh=False); print('held', flush=True); sys.stdin.read()"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=str(holder.pid)):
            opened(tmp_path)
        holder.kill()
        holder.wait()
    opened(tmp_path).close()


def test_a_failed_fsync_is_never_believed_and_never_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = opened(tmp_path)
    commit(output, b"good", 4)
    syncs = []

    def failing(fd: int) -> None:
        syncs.append(fd)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "sync_file", failing)
    with pytest.raises(StorageError):
        commit(output, b"lost", 8)
    with pytest.raises(StorageError):
        output.commit(Cursor(offset=9), Counts(), {}, 1.0)
    assert len(syncs) == 1
    output.close()
    monkeypatch.undo()
    resumed = opened(tmp_path)
    assert resumed.cursor.offset == 4
    assert resumed.file("train.bin").length == 4
    resumed.close()


def test_a_full_disk_is_an_error_of_its_own(tmp_path: Path) -> None:
    output = opened(tmp_path)
    part = output.file("train.bin")
    os.close(part.fd)
    part.fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(DiskFullError):
        part.append(b"x")
    output.close()


def test_a_write_that_lies_is_found_at_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = opened(tmp_path)
    monkeypatch.setattr(durable, "write_all_at", lambda _fd, _data, _offset: None)
    with pytest.raises(StorageError, match="took 4 bytes"):
        commit(output, b"gone", 4)
    output.close()


def test_a_committed_part_that_was_cut_is_damage(tmp_path: Path) -> None:
    output = opened(tmp_path)
    commit(output, b"abcdef", 6)
    output.close()
    os.truncate(tmp_path / STATE_NAME / "train.bin.part", 3)
    with pytest.raises(DamageError, match="cut short"):
        opened(tmp_path)
    opened(tmp_path, fresh=True).close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_journal_line_that_was_cut_short_costs_that_segment_only(tmp_path: Path, cut: int) -> None:
    output = opened(tmp_path)
    commit(output, b"one", 3)
    commit(output, b"two", 6)
    output.close()
    journal = tmp_path / STATE_NAME / "journal"
    os.truncate(journal, journal.stat().st_size - cut)
    resumed = opened(tmp_path)
    assert resumed.cursor.offset == 3
    commit(resumed, b"TWO", 6)
    resumed.close()
    assert opened(tmp_path).cursor.offset == 6


def test_every_changed_byte_of_the_journal_is_found_or_costs_the_last_segment(tmp_path: Path) -> None:
    output = opened(tmp_path)
    commit(output, b"one", 3)
    commit(output, b"two", 6)
    output.close()
    journal = tmp_path / STATE_NAME / "journal"
    good = journal.read_bytes()
    for at in range(0, len(good), 3):
        journal.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        try:
            output = opened(tmp_path)
        except TokmillError:
            continue
        assert output.cursor.offset == 3, at
        output.close()


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/b", "..", "", ".hidden", "a\\b", "nul\0"])
def test_hostile_names_in_the_journal_are_refused(tmp_path: Path, name: str) -> None:
    output = opened(tmp_path)
    span = FileSpan(end=1, digest="0" * 32)
    segment = Segment(after=Cursor(offset=1), files={name: span}, counts=Counts())
    output._journal.append(Commit(segment=segment, elapsed_s=1.0))
    output.close()
    with pytest.raises(DamageError, match="leads out"):
        opened(tmp_path)


def test_symbolic_links_are_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    out = tmp_path / "out"
    (out / STATE_NAME).mkdir(parents=True)
    (out / STATE_NAME / "train.bin.part").symlink_to(victim)
    output = opened(out)
    with pytest.raises(LinkError):
        output.file("train.bin")
    output.close()
    other = tmp_path / "other"
    other.mkdir()
    (other / STATE_NAME).symlink_to(tmp_path)
    with pytest.raises(DamageError, match="symbolic link"):
        opened(other)
    assert victim.read_bytes() == b"precious"


def test_files_that_tokmill_did_not_make_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"somebody's")
    with pytest.raises(UsageError, match="no tokmill manifest"):
        opened(tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == b"somebody's"
    complete(tmp_path, b"new", fresh=True)
    assert (tmp_path / "train.bin").read_bytes() == b"new"


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        b'{"files": {"precious.bin": {"size": 9}}, "name": "other tool"}',
        b'{"env": {"format_version": 2, "tokmill_version": "1"}, "files": {"precious.bin": 1}}',
        b"notes, not JSON",
    ],
)
def test_the_manifest_of_another_tool_is_a_stranger(tmp_path: Path, data: bytes, fresh: bool) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(data)
    (tmp_path / "precious.bin").write_bytes(b"somebody's")
    with pytest.raises(UsageError, match="tokmill did not make"):
        opened(tmp_path, fresh=fresh)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {MANIFEST_NAME: data, "precious.bin": b"somebody's"}


def test_the_manifest_of_another_tool_that_comes_while_a_run_is_made_is_a_stranger(tmp_path: Path) -> None:
    output = opened(tmp_path, fresh=True)
    commit(output, b"abcd", 1)
    (tmp_path / MANIFEST_NAME).write_bytes(b'{"files": {"precious.bin": 1}}')
    (tmp_path / "precious.bin").write_bytes(b"somebody's")
    with pytest.raises(UsageError, match="tokmill did not make"):
        output.publish(manifest_of(output, a_content()))
    output.close()
    assert (tmp_path / "precious.bin").read_bytes() == b"somebody's"


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION, FORMAT_VERSION + 1])
def test_of_a_manifest_without_its_seal_only_files_that_tokmill_writes_are_removed(tmp_path: Path, version: int) -> None:
    complete(tmp_path)
    path = tmp_path / MANIFEST_NAME
    ours, others = ["train_000007.bin", "train/chunk-0-1.bin"], ["precious.bin", "train_notes.txt", "train/thesis.txt"]
    (tmp_path / "train").mkdir()
    for name in [*ours, *others]:
        (tmp_path / name).write_bytes(b"1234")
    fields = msgspec.json.decode(path.read_bytes())
    path.write_bytes(
        msgspec.json.encode(fields | {"format_version": version, "files": {"train.bin": 1, **dict.fromkeys([*ours, *others], 1)}})
    )
    complete(tmp_path, b"new", fresh=True)
    assert [(tmp_path / name).exists() for name in [*ours, *others]] == [False, False, True, True, True]


def test_of_a_manifest_of_which_nothing_is_left_nothing_is_removed(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(bytes(4096))
    (tmp_path / "other.bin").write_bytes(b"somebody's")
    complete(tmp_path, fresh=True)
    assert (tmp_path / "other.bin").exists()


def test_a_newer_manifest_is_refused_by_version(tmp_path: Path) -> None:
    complete(tmp_path)
    path = tmp_path / MANIFEST_NAME
    fields = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(fields | {"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(UsageError, match="newer"):
        load_manifest(tmp_path)


def test_an_edited_manifest_is_damage(tmp_path: Path) -> None:
    complete(tmp_path)
    path = tmp_path / MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b'"size_bytes": 4', b'"size_bytes": 5'))
    with pytest.raises(DamageError, match="checksum"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("when", ["commit", "publish"])
def test_a_run_whose_state_was_moved_away_publishes_nothing(tmp_path: Path, when: str) -> None:
    out, content = tmp_path / "out", a_content()
    lost = opened(out, content)
    commit(lost, b"lost", 4)
    (out / STATE_NAME).rename(tmp_path / "elsewhere")
    found = opened(out, content)
    commit(found, b"found", 5)
    with pytest.raises(LockedError, match="moved or removed"):
        commit(lost, b" too", 8) if when == "commit" else lost.publish(manifest_of(lost, content))
    lost.close()
    found.publish(manifest_of(found, content))
    found.close()
    assert (out / "train.bin").read_bytes() == b"found"
    assert load_manifest(out).segments == found.segments


def test_a_run_that_is_not_followed_by_another_is_stopped_too(tmp_path: Path) -> None:
    output = opened(tmp_path / "out")
    commit(output, b"first", 5)
    (tmp_path / "out" / STATE_NAME).rename(tmp_path / "elsewhere")
    with pytest.raises(LockedError):
        commit(output, b"second", 11)
    output.close()
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    (tmp_path / "elsewhere").rename(tmp_path / "out" / STATE_NAME)
    again = opened(tmp_path / "out")
    assert again.cursor == Cursor(offset=5)
    again.close()
