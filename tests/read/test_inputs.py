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


def find(*names: object, glob: str | list[str] | None = None, input_format: str | None = None) -> FoundInputs:
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
    (notice,) = found.notices()
    files = "1 .part, 1 .png, 1 .py; --glob PATTERN, once for each kind, chooses others"
    assert notice == f"passed over in directories: 3 files ({files}), 2 hidden"


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.py", ["p.py"]),
        ("a/*", ["a/deep/x.jsonl.gz", "a/z.md"]),
        ("*.TXT", ["B.TXT"]),
        (["*.py", "*.md"], ["a/z.md", "p.py"]),
        ("*.{py,md}", ["a/z.md", "p.py"]),
        ("*.{p{y,ng},{TXT,md}}", ["B.TXT", "a/z.md", "image.png", "p.py"]),
        ("**/*.txt", ["a.txt", "b.txt"]),
        ("a/**/*", ["a/deep/x.jsonl.gz", "a/z.md"]),
        ("./*.txt", ["a.txt", "b.txt"]),
        (["*.txt", "a/*", "!a.txt"], ["a/deep/x.jsonl.gz", "a/z.md", "b.txt"]),
        (["*", "!*.{gz,zst,part}", "!deep"], ["B.TXT", "a.txt", "a/z.md", "b.txt", "image.png", "n.ndjson", "p.py"]),
        (["!deep/", "!*.ndjson"], ["B.TXT", "a.txt", "a/deep/x.jsonl.gz", "a/z.md", "b.txt", "j.JSON.zst"]),
        (["!a/deep/", "!*.ndjson"], ["B.TXT", "a.txt", "a/z.md", "b.txt", "j.JSON.zst"]),
    ],
)
def test_globs_choose_by_name_or_by_relative_path(tree: Path, glob: str | list[str], expected: list[str]) -> None:
    assert paths(find(tree, glob=glob), tree) == expected


def test_a_pattern_of_too_many_alternatives_is_refused(tree: Path) -> None:
    for names, glob in (((tree,), "{a,b}" * 40), ((tree / ("{a,b}" * 40),), None)):
        with pytest.raises(UsageError, match="too many alternatives"):
            find(*names, glob=glob)


def test_a_directory_without_an_input_proposes_the_pattern_that_takes_what_it_has(tmp_path: Path) -> None:
    for name in ("a.py", "b.py", "deep/c.py", "d.rs", "image.png", "image2.png", "image3.png", "image4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"passed over: 8 files: 4 \.png, 3 \.py, 1 \.rs") as caught:
        find(tmp_path)
    assert (caught.value.option, caught.value.suggested) == ("--glob", "*.py")
    assert len(find(tmp_path, glob="*.py").inputs) == 3
    for path in tmp_path.rglob("*.[pr][ys]"):
        path.unlink()
    with pytest.raises(UsageError, match=r"4 \.png") as caught:
        find(tmp_path)
    assert caught.value.suggested is None


def test_what_is_passed_over_is_told_with_what_would_take_it(tree: Path) -> None:
    for n in range(3):
        (tree / f"m{n}.rs").write_bytes(b"x")
    (only,) = find(tree, glob="*.txt").notices()
    assert only == (
        "passed over in directories: 11 files (3 .rs, 1 .TXT, 1 .gz, 1 .md, 1 .ndjson, and 4 more; not what --glob takes), 2 hidden"
    )
    for name in ("B.TXT", "j.JSON.zst", "n.ndjson", "a/deep/x.jsonl.gz"):
        (tree / name).unlink()
    (notice,) = find(tree).notices()
    advised = notice.partition("to take .rs too: ")[2].partition(")")[0]
    assert advised == "--glob '*.md' --glob '*.txt' --glob '*.rs'"
    taken = paths(find(tree, glob=[word.strip("'") for word in advised.split("--glob ")[1:] for word in word.split()]), tree)
    assert taken == ["a.txt", "a/z.md", "b.txt", "m0.rs", "m1.rs", "m2.rs"]


@pytest.mark.parametrize(
    "names",
    [
        ["a.txt", "a.txt"],
        ["a.txt", "./a.txt", "sub/../a.txt"],
        ["a.txt", "link.txt"],
        ["a.txt", "hard.txt"],
        ["sub", "sub"],
        ["sub", "sub/"],
        ["sub", "sub/b.txt"],
        ["sub", "door"],
        ["sub/*.txt", "sub/b*"],
        ["sub/{b,*}.txt"],
        ["a.txt", "*"],
        [".", "*", "**/*", "*.txt", "sub", "a.txt"],
    ],
)
def test_a_file_is_taken_once_where_it_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "sub/b.txt"):
        (tmp_path / name).write_bytes(name.encode())
    if names[0] != ".":
        (tmp_path / "link.txt").symlink_to("a.txt")
        (tmp_path / "door").symlink_to("sub")
        (tmp_path / "hard.txt").hardlink_to("a.txt")
    found = find(*names)
    taken = [os.stat(each.path) for each in found.inputs]
    assert len({(each.st_dev, each.st_ino) for each in taken}) == len(taken)
    told = [notice for notice in found.notices() if "more than once, taken once" in notice]
    assert bool(told) == (names != ["sub/{b,*}.txt"])
    if names[0] == ".":
        assert paths(found, tmp_path) == ["a.txt", "sub/b.txt"]
        assert "a.txt (5 times)" in told[0]
        assert "sub/b.txt (4 times)" in told[0]


def test_names_keep_their_order(tree: Path) -> None:
    assert paths(find(tree / "b.txt", tree / "a.txt"), tree) == ["b.txt", "a.txt"]


def test_files_of_one_content_are_not_one_file(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"same")
        os.utime(tmp_path / name, (1, 1))
    found = find(tmp_path, tmp_path / "a.txt", tmp_path / "b.txt")
    assert [n for _, n in found.repeated] == [2, 2]
    assert paths(found, tmp_path) == ["a.txt", "b.txt"]


def test_a_quoted_pattern_is_expanded_and_sorted(tree: Path) -> None:
    assert paths(find(tree / "*.txt"), tree) == ["a.txt", "b.txt"]
    assert paths(find(tree / "**" / "*.md"), tree) == ["a/z.md"]
    assert paths(find(tree / "**" / "*.{md,py}"), tree) == ["a/z.md", "p.py"]
    (tree / "{a,b}.txt").write_bytes(b"x")
    assert paths(find(tree / "{a,b}.txt"), tree) == ["{a,b}.txt"]


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
    (tmp_path / "in").mkdir()
    (tmp_path / "else.txt").write_bytes(b"x")
    (tmp_path / "in" / "a.txt").write_bytes(b"x")
    (tmp_path / "in" / "link.txt").symlink_to("../else.txt")
    (tmp_path / "in" / "loop").symlink_to(".")
    (tmp_path / "in" / "self.txt").symlink_to("self.txt")
    found = find(tmp_path / "in")
    assert paths(found, tmp_path / "in") == ["a.txt", "link.txt"]
    assert found.notices() == [
        "passed over in directories: 1 link that leads nowhere, 1 link to a directory that is read anyway",
    ]


@pytest.mark.parametrize("first", ["aa", "zz"])
def test_a_directory_is_walked_once_by_its_own_path(tmp_path: Path, first: str) -> None:
    for name in ("mm/x.txt", "mm/deep/y.txt", "far/z.txt", "top/t.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    (tmp_path / "in" / "far").rename(tmp_path / "far")
    (tmp_path / "in" / first).symlink_to("mm")
    (tmp_path / "in" / f"{first}2").symlink_to("mm/deep")
    (tmp_path / "in" / "out1").symlink_to("../far")
    (tmp_path / "in" / "out2").symlink_to("../far")
    found = find(tmp_path / "in")
    assert paths(found, tmp_path / "in") == ["mm/deep/y.txt", "mm/x.txt", "out1/z.txt", "top/t.txt"]
    assert found.notices() == ["passed over in directories: 3 links to directories that are read anyway"]


def test_a_link_to_a_directory_elsewhere_is_nothing_to_tell_of(tmp_path: Path) -> None:
    for name in ("in", "far"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_bytes(name.encode())
    (tmp_path / "in" / "out").symlink_to("../far")
    assert find(tmp_path / "in").notices() == []


def test_all_inputs_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(UsageError, match="2 inputs are not there") as caught:
        find(tmp_path / "a.txt", tmp_path / "b.txt", "s3://bucket/a", tmp_path / "c.txt")
    assert caught.value.where == f"{tmp_path / 'b.txt'}\n{tmp_path / 'c.txt'}"
    assert caught.value.path is None, "another path for one of them would not do"


def test_links_that_lead_nowhere_are_counted_unless_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "round.txt").symlink_to("round.txt")
    assert find(tmp_path).notices() == ["passed over in directories: 3 links that lead nowhere"]
    assert find(tmp_path / "*").notices() == ["passed over in directories: 3 links that lead nowhere"]
    for name in ("gone.txt", "round.txt"):
        with pytest.raises(UsageError, match="a symbolic link leads nowhere"):
            find(tmp_path / name)


def test_what_is_passed_over_is_counted_once_for_a_directory_that_is_named_twice(tree: Path) -> None:
    assert find(tree, tree).notices()[0] == find(tree).notices()[0]


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
        (["dangling*"], {}),
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
