"""The project around the code: what starts fast, what is said about it, and what must not be in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from support.commands import clean_environment

import tokmill

ROOT = Path(__file__).parents[1]
HEAVY = {"matplotlib", "jinja2", "gigatoken", "pyarrow", "numpy", "ray", "tiktoken", "awkward", "fsspec", "aiohttp", "s3fs"}
COMMANDS = (
    "plan",
    "tokenize",
    "verify",
    "inspect",
    "merge",
    "shuffle",
    "dedup",
    "mix",
    "pack",
    "build",
    "convert",
    "reshard",
    "report",
    "vocab",
    "doctor",
    "completion",
    "finalize",
)
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "docs/training.md",
    "docs/report.md",
    "docs/events.md",
)
# In two parts, so that this file does not hold what it looks for.
FORBIDDEN = re.compile(
    "|".join(("/work" + "/", "sha" + "red/", r"https?://(?:[\w.-]*\.)?(?:pypi|python" + r"hosted)\b", "index" + "-url"))
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def output(*arguments: str) -> str:
    """Standard output of a fresh Python, 80 columns wide."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=clean_environment(COLUMNS="80"),
        timeout=60,
    )
    return done.stdout


def files_of_the_project() -> list[Path]:
    """What git would have in its next commit; where there is no git, everything that was not made by a run."""
    try:
        listing = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        made = {
            ".venv",
            ".git",
            "build",
            "dist",
            "demo",
            "__pycache__",
            ".mypy_cache",
            ".ruff_cache",
            ".pytest_cache",
            ".hypothesis",
        }
        return [p for p in ROOT.rglob("*") if p.is_file() and not made & set(p.relative_to(ROOT).parts)]
    return [p for name in listing.stdout.decode().split("\0") if name and (p := ROOT / name).is_file()]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import json, sys
from tokmill.cli.app import run
code = run({arguments!r})
print(json.dumps([code, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""
    code, loaded = json.loads(output("-c", program).splitlines()[-1])
    assert code == 0
    assert HEAVY & set(loaded) == set()


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = json.loads(output("-c", "import json, sys, tokmill; print(json.dumps(sorted(sys.modules)))"))
    assert HEAVY & set(loaded) == set()


def test_the_adapter_for_torch_says_how_to_get_torch() -> None:
    program = """
import sys
sys.modules["torch"] = None
from tokmill.core.errors import UsageError
try:
    import tokmill.torch
except UsageError as error:
    print(error)
"""
    assert "pip install 'torch>=" in output("-c", program)


def test_the_version_is_the_same_everywhere() -> None:
    assert output("-m", "tokmill", "--version").split() == ["tokmill", tokmill.__version__]
    assert f"## [{tokmill.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert "version" in PROJECT["dynamic"]


def test_the_installed_version_is_this_one() -> None:
    try:
        installed = metadata.version("tokmill")
    except metadata.PackageNotFoundError:
        pytest.skip("tokmill is not installed here, only on the path")
    assert installed == tokmill.__version__


def test_every_public_name_is_there() -> None:
    assert {name for name in tokmill.__all__ if getattr(tokmill, name, None) is None} == set()


def test_what_is_public_is_not_hidden_by_a_module_of_its_name() -> None:
    program = """
import importlib, pkgutil, tokmill
for found in pkgutil.walk_packages(tokmill.__path__, "tokmill."):
    # Two need torch and ray, which are not for `import tokmill` to find.
    if not found.name.endswith(("__main__", ".torch", ".parts.ray")):
        importlib.import_module(found.name)
print([name for name in tokmill.__all__ if not callable(getattr(tokmill, name))])
"""
    assert output("-c", program) == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_shows_every_command(command: str) -> None:
    assert re.search(rf"tokmill {command}\b", (ROOT / "README.md").read_text())


def test_the_readme_promises_no_command_that_does_not_exist() -> None:
    shown = set(re.findall(r"^tokmill ([a-z]+)|`tokmill ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {one or other for one, other in shown} == set(COMMANDS)


def test_the_readme_names_no_option_that_does_not_exist() -> None:
    helped = " ".join(
        output("-m", "tokmill", *arguments)
        for arguments in (["--help"], ["vocab", "fetch", "--help"], *([c, "--help"] for c in COMMANDS))
    )
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / "README.md").read_text()))
    assert {option for option in shown if not re.search(rf"{option}(?![\w-])", helped)} == set()


def test_the_readme_is_read_in_four_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_proof_of_a_promise_is_a_test() -> None:
    cited = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/explanation/promises.md").read_text())
    assert len(cited) > 5
    for path, name in cited:
        assert (ROOT / path).is_file(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text() or f"class {name}" in (ROOT / path).read_text(), name


def test_links_between_documents_lead_somewhere() -> None:
    for name in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text()):
            assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_nothing_speaks_of_the_place_where_it_was_made() -> None:
    found = {
        str(p.relative_to(ROOT)): m[0] for p in files_of_the_project() if (m := FORBIDDEN.search(p.read_text(errors="replace")))
    }
    assert found == {}


# Turns of phrase that were hard to read and must not come back.
TICS = re.compile(r"[Tt]he hard one|[Pp]ut together|\banew\b|process that was typed|\bheld against\b")


def test_code_and_docs_are_free_of_the_old_turns_of_phrase() -> None:
    written = {"src", "docs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "Makefile"}
    paths = [p for p in files_of_the_project() if p.relative_to(ROOT).parts[0] in written and p.suffix in {".py", ".md", ""}]
    found = {f"{path.relative_to(ROOT)}: {match[0]}" for path in paths for match in TICS.finditer(path.read_text())}
    assert found == set()
