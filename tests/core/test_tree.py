"""Paths below a named directory: no link is followed, whatever is done, wherever it is put, and whenever."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokmill.core.errors import DamageError, LinkError
from tokmill.core.system import durable
from tokmill.core.system.tree import TreePath, beside, tree_of
from tokmill.output.place import output_of, stage_of

ACTIONS: dict[str, Callable[[TreePath], Any]] = {
    "read": lambda path: path.read_bytes(),
    "list": lambda path: path.names(),
    "append": lambda path: durable.create(path, append=True),
    "write": lambda path: durable.write_file(path, b"ours"),
    "write at": lambda path: durable.write_at(path, b"ours", 0),
    "write aside": lambda path: durable.write_aside(path, b"ours"),
    "replace": lambda path: durable.replace_file(path, b"ours"),
    "cut": lambda path: durable.truncate(path, 0),
    "lock": durable.DirectoryLock,
    "unlink": lambda path: path.unlink(),
    "rmdir": lambda path: path.rmdir(),
    "remove": lambda path: path.remove_tree(),
    "mkdir": lambda path: path.mkdir(),
    "make directory": durable.make_directory,
    "link": lambda path: durable.link(path, path.with_name("second")),
    "rename": lambda path: durable.replace(path, path.with_name("second")),
    "sync": durable.sync_directory,
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    victim = tmp_path / "victim"
    (victim / "b").mkdir(parents=True)
    for name in ("a", "b/c", "b/second", "new.new"):
        (victim / name).write_bytes(b"precious")
    return victim


def seen(directory: Path) -> list[tuple[object, ...]]:
    """All that can be seen of a directory without touching it."""
    found = [(str(p), p.lstat().st_mtime_ns, p.lstat().st_nlink, p.is_file() and p.read_bytes()) for p in directory.rglob("*")]
    return sorted([*found, (str(directory), directory.stat().st_mtime_ns)])


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", ["directory", "file", "nowhere", "pipe", "second name", "zero"])
def test_nothing_is_done_outside_whatever_lies_at_any_depth(
    tmp_path: Path, victim: Path, action: str, depth: int, kind: str
) -> None:
    names = ["b", "c", "d"][:depth]
    for at in range(depth):
        root = tmp_path / f"root{at}"
        above = root.joinpath(*names[:at])
        above.mkdir(parents=True)
        foreign = above / names[at]
        if kind == "pipe":
            os.mkfifo(foreign)
        elif kind == "second name":
            foreign.hardlink_to(victim / "a")
        else:
            foreign.symlink_to(
                {"directory": victim, "file": victim / "a", "nowhere": victim / "x", "zero": Path("/dev/zero")}[kind]
            )
        before = seen(victim)
        try:
            ACTIONS[action](TreePath(root) / "/".join(names))
        except OSError:
            pass
        finally:
            if kind == "second name":
                # Its name in the tree may be given up, its bytes stay.
                foreign.unlink(missing_ok=True)
                for second in root.rglob("second"):
                    second.unlink()
        after = seen(victim)
        assert [row[:2] + row[3:] for row in after] == [row[:2] + row[3:] for row in before]


def test_a_link_above_is_named_in_the_error_and_what_the_user_named_may_be_one(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "named").symlink_to("real")
    named = TreePath(tmp_path / "named")
    durable.replace_file(named / "one/two", b"ours")
    assert (tmp_path / "real" / "one" / "two").read_bytes() == b"ours"
    (tmp_path / "real" / "link").symlink_to(victim)
    for name in ("link/b/c", "link/a", "link/b"):
        with pytest.raises(DamageError, match="link is a symbolic link") as caught:
            (named / name).lstat()
        assert caught.value.where == str(tmp_path / "named" / "link")
        assert isinstance(caught.value, OSError)
    with pytest.raises(LinkError):
        durable.replace(named / "one/two", named / "link/a")
    with pytest.raises(LinkError):
        durable.link(named / "one/two", named / "link/new")
    assert sorted(p.name for p in victim.iterdir()) == ["a", "b", "new.new"]


def test_a_link_is_there_but_is_neither_directory_nor_file(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "to-directory").symlink_to(victim)
    (tmp_path / "to-file").symlink_to(victim / "a")
    (tmp_path / "to-nothing").symlink_to(victim / "none")
    root = TreePath(tmp_path)
    for name in ("to-directory", "to-file", "to-nothing"):
        assert (root / name).exists()
        assert not (root / name).is_dir()
        assert not (root / name).is_file()
        (root / name).remove_tree()
        assert not (root / name).exists()
    assert (victim / "a").read_bytes() == b"precious"


def test_a_tree_is_removed_with_its_links_and_nothing_that_they_lead_to(tmp_path: Path, victim: Path) -> None:
    deep = tmp_path / "tree" / "one" / "two"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x")
    (deep / "link").symlink_to(victim)
    os.mkfifo(deep / "pipe")
    before = seen(victim)
    (TreePath(tmp_path) / "tree").remove_tree()
    assert not (tmp_path / "tree").exists()
    assert seen(victim) == before


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/etc", "a//b", "a/", "nul\0"])
def test_only_names_lead_below(name: str) -> None:
    with pytest.raises(ValueError, match="no names"):
        TreePath(Path("out")) / name


def test_neither_open_nor_os_takes_one(tmp_path: Path) -> None:
    path: Any = beside(tmp_path / "file")
    for touch in (open, os.unlink, os.listdir, os.stat, os.scandir, Path):
        with pytest.raises(TypeError):
            touch(path)


def test_of_the_output_of_a_part_what_lies_above_was_named(tmp_path: Path) -> None:
    assert tree_of(tmp_path / ".tokmill" / "parts" / "00003") == TreePath(tmp_path) / ".tokmill/parts/00003"
    assert tree_of(Path(".tokmill/parts/00003")) == TreePath(Path()) / ".tokmill/parts/00003"
    assert tree_of(tmp_path / ".tokmill" / "parts") == TreePath(tmp_path / ".tokmill" / "parts")
    assert str(tree_of(tmp_path / ".tokmill" / "parts" / "00003") / "a") == str(tmp_path / ".tokmill" / "parts" / "00003" / "a")


def test_a_directory_that_is_called_as_a_stage_was_named(tmp_path: Path) -> None:
    named = tmp_path / "run-0123456789abcdef" / "output"
    assert tree_of(named) == TreePath(named)
    staged = output_of(stage_of("s3://bucket/data", str(tmp_path)))
    assert staged.root == tmp_path
    assert len(staged.parts) == 2
