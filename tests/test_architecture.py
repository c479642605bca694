"""The shape of the code, held by reading it: layers, siblings, lengths, and who may do what."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokmill.encode import ENGINES
from tokmill.read.corpus import READERS
from tokmill.write import WRITERS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tokmill"
MODULES = {
    ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")
}
TREES = {name: ast.parse(path.read_bytes()) for name, path in MODULES.items()}

FORMATS = {
    "read": {target.partition(":")[0] for target in READERS.values()},
    "encode": {target.partition(":")[0] for target in ENGINES.values()},
    "write": {target.partition(":")[0] for target in WRITERS.values()},
}
"""The siblings that never meet, as the product's own tables name them; what else is in their directories is there to help."""
MAKES_DURABLE = "tokmill.durable"
PRINTS = {"tokmill.cli", "tokmill.progress"}


def imports(name: str) -> Iterator[str]:
    """The modules of tokmill that a module imports, in functions and for types too."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                # The version is a constant of the package itself, which is there before any of its modules.
                if target != "tokmill.__version__":
                    yield target if target in MODULES else node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


GRAPH = {name: {target for target in imports(name) if target.split(".")[0] == "tokmill"} for name in MODULES}


def layers() -> dict[str, int]:
    """Row of the table in ARCHITECTURE.md by module or directory; 0 is the top."""
    rows = [line.split("|")[1] for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if line.startswith("| `")]
    return {name.rstrip("/").removesuffix(".py"): i for i, row in enumerate(rows) for name in re.findall(r"`([\w/.]+)`", row)}


LAYERS = layers()


def layer(name: str) -> int:
    """Row of a module; the package itself is `__init__`."""
    top = name.split(".")[1] if "." in name else "__init__"
    assert top in LAYERS, f"{name} has no place in the table of ARCHITECTURE.md"
    return LAYERS[top]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def called(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What is called, as written, with its line."""
    return ((ast.unparse(n.func), n.lineno) for n in ast.walk(tree) if isinstance(n, ast.Call))


def test_the_table_of_layers_names_nothing_that_is_not_there() -> None:
    assert len(LAYERS) > 10
    assert {name for name in LAYERS if not (PACKAGE / name).is_dir() and not (PACKAGE / f"{name}.py").is_file()} == set()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_arrows_point_down(name: str) -> None:
    assert [target for target in GRAPH[name] if layer(target) < layer(name)] == []


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


@pytest.mark.parametrize("directory", sorted(FORMATS))
def test_formats_never_meet(directory: str) -> None:
    formats = FORMATS[directory]
    assert formats
    assert formats <= set(MODULES)
    assert {name for name in MODULES if GRAPH[name] & formats} == set()


def test_only_the_durable_part_renames_and_syncs() -> None:
    forbidden = {f"os.{f}" for f in ("replace", "rename", "renames", "fsync", "fdatasync", "sync", "link")} | {"shutil.move"}
    found = {name for name, tree in TREES.items() if any(f in forbidden for f, _ in called(tree))}
    assert found == {MAKES_DURABLE}


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
def test_files_have_at_most_400_lines(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= 400


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
def test_nothing_is_unpickled_or_evaluated(name: str) -> None:
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "marshal.loads"}
    assert [(f, line) for f, line in called(TREES[name]) if f in forbidden] == []
