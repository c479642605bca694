"""The shape of the code, held by reading it: rooms and their faces, lengths, who may do what. import-linter holds the arrows."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokmill.encode.loading import ENGINES
from tokmill.formats.registry import FORMATS
from tokmill.read.corpus import READERS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tokmill"
MODULES = {
    ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")
}
TREES = {name: ast.parse(path.read_bytes()) for name, path in MODULES.items()}

SIBLINGS = {target.partition(":")[0] for table in (READERS, ENGINES) for target in table.values()}
SIBLINGS |= {spec.shard.__module__ for spec in FORMATS.values()}
"""The files that never meet, as the product's own tables name them; what else is in their directories is there to help."""
MAKES_DURABLE = {"tokmill.core.system.plain", "tokmill.core.system.tree"}
PRINTS = {"tokmill.cli.console", "tokmill.cli.progress"}


def imports(name: str) -> Iterator[str]:
    """The modules of tokmill that a module imports, in functions and for types too."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                yield target if target in MODULES else node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
GRAPH = {name: {target for target in imports(name) if target.split(".")[0] == "tokmill"} for name in MODULES}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def called(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What is called, as written, with its line."""
    return ((ast.unparse(n.func), n.lineno) for n in ast.walk(tree) if isinstance(n, ast.Call))


def test_the_package_has_at_most_18_entries() -> None:
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 18


def test_every_room_has_its_row_in_the_table_of_rooms() -> None:
    rows = re.findall(r"^\| `(\w+)/` \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(ROOMS)


@pytest.mark.parametrize("room", sorted(ROOMS - {"core"}))
def test_the_face_of_a_room_is_what_type_checkers_see_and_hides_no_module(room: str) -> None:
    tree = TREES[f"tokmill.{room}"]
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    face = importlib.import_module(f"tokmill.{room}")
    assert sorted(typed) == face.__all__
    assert [name for name, module in typed.items() if name not in defined(TREES[module])] == []
    assert [name for name in typed if f"tokmill.{room}.{name}" in MODULES] == []


def defined(tree: ast.Module) -> set[str]:
    """The names that a module defines."""
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return names | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def test_there_is_no_cycle_of_imports() -> None:
    finished: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in finished:
            for target in GRAPH[name]:
                visit(target, (*above, name))
            finished.add(name)

    for name in MODULES:
        visit(name, ())


def test_the_contracts_of_the_linter_name_every_room_and_every_format() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    protected = {c["protected_modules"][0].split(".")[1] for c in contracts if c["type"] == "protected"}
    assert protected == ROOMS - {"core"}
    layered = {name for c in contracts if c["type"] == "layers" for row in c["layers"] for name in re.findall(r"\w+\.(\w+)", row)}
    assert layered == ROOMS | {"api"}
    independent = {name for c in contracts if c["type"] == "independence" for name in c["modules"]}
    assert independent == SIBLINGS


def test_only_the_durable_part_renames_and_syncs() -> None:
    forbidden = {f"os.{f}" for f in ("replace", "rename", "renames", "fsync", "fdatasync", "sync", "link")} | {"shutil.move"}
    found = {name for name, tree in TREES.items() if any(f in forbidden for f, _ in called(tree))}
    assert found == MAKES_DURABLE


OF_LINUX = {
    "os": r"sched_\w+|SCHED_\w+|memfd_create|MFD_\w+|copy_file_range|posix_f(adv|all)\w+|POSIX_FADV_\w+|p(read|write)v2?"
    r"|fdatasync|pipe2|eventfd\w*|pidfd_\w+|P_PIDFD|splice|sendfile|setns|unshare|getrandom|\w+xattr|timerfd_\w+|O_(PATH|TMPFILE|DIRECT|NOATIME)",
    "mmap": r"madvise|MADV_\w+|MAP_(POPULATE|NORESERVE|STACK|DENYWRITE|EXECUTABLE)",
    "select": r"epoll|EPOLL\w+",
    "signal": r"sigtimedwait|sigwaitinfo|SIGRT\w+|SIGPWR|SIGSTKFLT|pidfd_\w+",
    "resource": r"prlimit|RLIMIT_(NICE|RTPRIO|RTTIME|SIGPENDING|MSGQUEUE)",
    "fcntl": r"F_(SETPIPE|GETPIPE|OFD|ADD_SEAL|GET_SEAL|NOTIFY)\w*",
    "socket": r"AF_(NETLINK|PACKET|ALG|VSOCK)|SO_PEERCRED|SOCK_CLOEXEC|SOCK_NONBLOCK",
    "time": r"CLOCK_(BOOTTIME|TAI|REALTIME_COARSE|MONOTONIC_RAW)",
    "ctypes": r"CDLL|PyDLL|util",
}
"""Names in modules of Python that macOS, or POSIX, has not."""
SEES_LINUX = "tokmill.core.system.linux"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name != SEES_LINUX))
def test_what_only_linux_has_is_named_in_one_module(name: str) -> None:
    nodes = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Attribute | ast.Constant)]
    assert [f"{ast.unparse(node)}, line {node.lineno}" for node in nodes if of_linux(node)] == []


def test_the_module_for_linux_is_loaded_in_one_place() -> None:
    assert [name for name in MODULES if SEES_LINUX in GRAPH[name]] == ["tokmill.core.system.current"]


def of_linux(node: ast.Attribute | ast.Constant) -> bool:
    """Whether a name, or a string that is a path, is there on Linux alone."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and bool(re.match(r"/(proc|sys|dev/shm)(/|$)", node.value))
    module = node.value.id if isinstance(node.value, ast.Name) else ""
    return bool(re.fullmatch(OF_LINUX.get(module, r"madvise"), node.attr))


WRITES_OUTPUTS = ("output", "derive", "run", "check")
"""Rooms that touch what lies below an output through `TreePath` alone; mypy knows that `open` and `os` do not take one."""
TOUCHES = {"open", "unlink", "remove", "rmdir", "removedirs", "mkdir", "makedirs", "truncate", "symlink", "chmod", "utime"}
OF_PATHS = {"write_bytes", "write_text", "touch", "symlink_to", "hardlink_to", "chmod", "iterdir", "glob", "rglob", "is_symlink"}
OF_PATHS |= {"read_text", "hardlink_to", "rename", "walk"}
"""What a `Path` has and a `TreePath` has not."""


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.split(".")[1:2] and name.split(".")[1] in WRITES_OUTPUTS))
def test_below_an_output_nothing_is_touched_but_through_its_tree(name: str) -> None:
    forbidden = {f"os.{f}" for f in TOUCHES | {"listdir", "scandir"}} | {"shutil.rmtree", "shutil.copy", "shutil.copyfile"}
    found = [(f, line) for f, line in called(TREES[name]) if f in forbidden or f.rpartition(".")[2] in OF_PATHS]
    assert [(f, line) for f, line in found if f != "glob.glob"] == []


def test_only_the_command_line_and_progress_print() -> None:
    writers = {"print", "sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write", "sys.stderr.buffer.write"}
    found = {name for name, tree in TREES.items() if any(f in writers for f, _ in called(tree))}
    assert found <= PRINTS


@pytest.mark.parametrize("name", sorted(MODULES))
def test_functions_have_at_most_60_lines(name: str) -> None:
    lengths = {f.name: body_lines(f) for f in functions(TREES[name])}
    assert {f: n for f, n in lengths.items() if n > 60} == {}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines behind the signature, which is a table: the docstring and the code."""
    return (function.end_lineno or 0) - function.body[0].lineno + 1


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_have_at_most_700_lines(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= 700


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_say_what_they_do(name: str) -> None:
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("name", sorted(MODULES))
def test_errors_are_not_caught_wholesale(name: str) -> None:
    lines = MODULES[name].read_text().splitlines()
    broad = [h for n in ast.walk(TREES[name]) if isinstance(n, ast.Try) for h in n.handlers if is_broad(h)]
    unreasoned = [h.lineno for h in broad if not ends_by_raising(h) and not re.search(r"noqa: BLE001  \w", lines[h.lineno - 1])]
    assert unreasoned == []


def is_broad(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or bool({"Exception", "BaseException"} & set(re.findall(r"\w+", ast.unparse(handler.type))))


def ends_by_raising(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_is_evaluated_and_only_messages_of_the_same_run_are_unpickled(name: str) -> None:
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "marshal.loads"}
    allowed = ["pickle.loads"] if name == "tokmill.run.channel" else []
    assert [f for f, _ in called(TREES[name]) if f in forbidden] == allowed


TESTS = ROOT / "tests"


def test_the_tests_have_a_directory_a_room_one_for_whole_runs_one_for_faults_and_one_for_what_they_share() -> None:
    directories = {path.name for path in TESTS.iterdir() if any(path.rglob("*.py"))}
    assert directories <= ROOMS | {"system", "faults", "support"}


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_tests_share_by_support_alone(path: Path) -> None:
    tree = ast.parse(path.read_bytes())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    parts = [part for name in names for part in name.split(".")]
    assert [part for part in parts if part.startswith("test_")] == []
    assert {name.split(".")[0] for name in names} & ({"tests", "faults", "system"} | ROOMS) == set()


def test_checks_of_headers_share_nothing_with_the_writers() -> None:
    assert not [target for target in GRAPH["tokmill.formats.header_checks"] if target.startswith("tokmill.formats")]


def test_choosing_a_format_loads_no_numpy() -> None:
    code = "import sys, tokmill.formats as f; f.FORMATS, f.choose_output; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "False\n"
