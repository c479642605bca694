"""Inputs: what was named is found, in an order that never varies, whatever the names hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tokmill.core.errors import TokmillError, UsageError
from tokmill.core.records import text_to_path
from tokmill.read.inputs import FoundInputs, find_inputs
from tokmill.read.stream import open_stream


def find(*names: object, glob: str | None = None, input_format: str | None = None) -> FoundInputs:
    return find_inputs([str(name) for name in names], glob=glob, input_format=input_format)


def paths(found: FoundInputs, top: Path) -> list[str]:
    return [os.path.relpath(text_to_path(i.path), top) for i in found.inputs]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = [
        "b.txt",
        "a/z.md",
        "a.txt",
        "B.TXT",
        "a/deep/x.jsonl.gz",
        "n.ndjson",
        "p.py",
        "image.png",
        ".hidden.txt",
        ".git/x.txt",
        "j.JSON.zst",
        "x.tar.gz.part",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_directory_gives_its_known_files_sorted_by_bytes(tree: Path) -> None:
    found = find(tree)
    assert paths(found, tree) == ["B.TXT", "a.txt", "a/deep/x.jsonl.gz", "a/z.md", "b.txt", "j.JSON.zst", "n.ndjson"]
    assert [(i.format, i.compression) for i in found.inputs[2:]] == [
        ("jsonl", "gzip"),
        ("text", "none"),
        ("text", "none"),
        ("jsonl", "zstd"),
        ("jsonl", "none"),
    ]
    assert found.n_passed_over == 3
    assert "3 files" in found.notices()[0]
    (tree / "p.py").unlink()
    (tree / "x.tar.gz.part").unlink()
    assert "1 file " in find(tree).notices()[0]


@pytest.mark.parametrize(("glob", "expected"), [("*.py", ["p.py"]), ("a/*", ["a/deep/x.jsonl.gz", "a/z.md"]), ("*.TXT", ["B.TXT"])])
def test_glob_chooses_by_name_or_by_relative_path(tree: Path, glob: str, expected: list[str]) -> None:
    assert paths(find(tree, glob=glob), tree) == expected


def test_names_keep_their_order_and_may_repeat(tree: Path) -> None:
    found = find(tree / "b.txt", tree / "a.txt", tree / "b.txt")
    assert paths(found, tree) == ["b.txt", "a.txt", "b.txt"]


def test_a_quoted_pattern_is_expanded_and_sorted(tree: Path) -> None:
    assert paths(find(tree / "*.txt"), tree) == ["a.txt", "b.txt"]
    assert paths(find(tree / "**" / "*.md"), tree) == ["a/z.md"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("text", ("text", "gzip")), ("jsonl", ("jsonl", "gzip")), ("text.zst", ("text", "zstd")), (None, ("jsonl", "gzip"))],
)
def test_the_format_may_be_given(tree: Path, given: str | None, expected: tuple[str, str]) -> None:
    (source,) = find(tree / "a" / "deep" / "x.jsonl.gz", input_format=given).inputs
    assert (source.format, source.compression) == expected


@pytest.mark.parametrize(
    "name",
    [b"with space.txt", b"new\nline.txt", "emoji \U0001f600.txt".encode(), b"not\xffutf8.txt", b"100%41.txt", b"[a]*.txt"],
)
def test_any_name_that_a_file_can_have_works(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).write_bytes(b"content")
    for found in (find(os.fsdecode(path)), find(tmp_path)):
        (source,) = found.inputs
        source.path.encode()
        stream = open_stream(source)
        assert stream.read(100) == b"content"
        stream.close()


def test_links_to_files_count_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x")
    (tmp_path / "link.txt").symlink_to("a.txt")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "self").symlink_to("self")
    assert paths(find(tmp_path), tmp_path) == ["a.txt", "link.txt"]


def test_standard_input(tmp_path: Path) -> None:
    (source,) = find("-", input_format="jsonl.gz").inputs
    assert (source.path, source.format, source.compression, source.size_bytes) == ("-", "jsonl", "gzip", None)


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ([], {}),
        (["-", "-"], {}),
        (["missing.txt"], {}),
        (["*.nothing"], {}),
        (["empty"], {}),
        (["dangling.txt"], {}),
        (["/dev/null"], {}),
        (["x.zip"], {}),
        (["x.npy.gz"], {}),
        (["a.txt"], {"input_format": "xml"}),
        ([""], {}),
        (["a\0b"], {}),
        (["a" * 5000], {}),
        (["links"], {}),
        (["full"], {"glob": "*.c"}),
    ],
)
def test_what_cannot_be_an_input_is_refused_in_four_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in ("empty", "links", "full"):
        Path(directory).mkdir()
    for name in ("x.zip", "x.npy.gz", "a.txt", "full/a.txt"):
        Path(name).write_bytes(b"x")
    Path("dangling.txt").symlink_to("nowhere")
    Path("links/dangling.txt").symlink_to("nowhere")
    with pytest.raises(UsageError) as caught:
        find(*names, **options)
    error: TokmillError = caught.value
    assert all((error.what, error.where is not None, error.allowed, error.next_step))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.csv", ("csv", "none")),
        ("a.TSV.xz", ("tsv", "xz")),
        ("a.parquet", ("parquet", "none")),
        ("a.feather", ("arrow", "none")),
        ("a.arrows", ("arrow", "none")),
        ("a.tar", ("tar", "none")),
        ("a.tgz", ("tar", "gzip")),
        ("a.tar.zst", ("tar", "zstd")),
        ("a.tbz2", ("tar", "bzip2")),
        ("a.txt.lz4", ("text", "lz4")),
        ("a.json.bz2", ("jsonl", "bzip2")),
    ],
)
def test_the_suffix_says_format_and_compression(tmp_path: Path, name: str, expected: tuple[str, str]) -> None:
    (tmp_path / name).write_bytes(b"x")
    for named in (tmp_path / name, tmp_path):
        (source,) = find(named).inputs
        assert (source.format, source.compression) == expected


@pytest.mark.parametrize("input_format", ["csv", "tsv.lz4", "tar.zst", "parquet", "arrow", "text.bz2", "jsonl.xz"])
def test_every_format_can_be_named(tmp_path: Path, input_format: str) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (source,) = find_inputs([str(tmp_path / "a")], glob=None, input_format=input_format).inputs
    assert source.format == input_format.partition(".")[0]
