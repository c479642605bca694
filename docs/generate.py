"""The reference, written from the code: commands and options, exit codes, the manifest, the Python API. `make docs` runs it.

What it writes (`docs/reference/*.md`) is made each time and not kept; a sentence that is wrong there is wrong in the code.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import tokmill
from tokmill.cli import (
    app,  # noqa: F401  adds the commands
    settings,
)
from tokmill.cli.command import Argument, Parameter, root
from tokmill.cli.console import Console
from tokmill.cli.examples import EXAMPLES
from tokmill.core import errors, manifest, output_spec, records as types
from tokmill.core.config import Content, Provenance

MADE = {"commands.md", "settings.md", "exit-codes.md", "manifest.md", "python.md"}


def write_all(directory: Path) -> None:
    """Write every page of the reference."""
    directory.mkdir(exist_ok=True)
    pages = {
        "commands.md": commands(),
        "settings.md": settings_page(),
        "exit-codes.md": exit_codes(),
        "manifest.md": manifest_page(),
        "python.md": python_page(),
    }
    for name, text in pages.items():
        (directory / name).write_text(text, encoding="utf-8")


def commands() -> str:
    """Every command with each of its options."""
    lines = [
        "# Commands",
        "",
        "The word in capitals is the environment variable. Settings files may hold every option: [Settings](settings.md).",
        "",
    ]
    for path, command in leaves(root, ()):
        context = command.make_context(path[-1], [], resilient_parsing=True, obj=Console([], lambda: settings.load(root)))
        pieces = [piece for piece in command.collect_usage_pieces(context) if piece]
        lines += [f"## tokmill {' '.join(path)}", "", "```text", f"tokmill {' '.join([*path, *pieces])}", "```", ""]
        lines += [textwrap.dedent(line) for line in escaped(command.help or "").split("\n")] + [""]
        example, page = EXAMPLES[" ".join(path)]
        lines += [
            "```sh",
            f"tokmill {' '.join(path)} {example}".rstrip(),
            "```",
            "",
            f"More: [{page}](../{page.removeprefix('docs/')})",
            "",
        ]
        lines += ["| argument or option | what |", "|---|---|"]
        lines += [row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)] + [""]
    return "\n".join(lines)


def leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The commands that do something, groups left out."""
    for name, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from leaves(inner, (*path, name))
        else:
            yield (*path, name), inner


def row(parameter: Any) -> str:
    """Return one line of the table of a command."""
    if isinstance(parameter, Argument):
        return cells(f"`{parameter.metavar}`", f"{escaped(parameter.help or '')} {'**Required.**' if parameter.required else ''}")
    value = "" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}"
    names = ", ".join(f"`{name}{value}`" for name in parameter.opts)
    if not isinstance(parameter, Parameter):
        return cells(names, escaped(parameter.help or ""))
    about = parameter.about
    default = about.usual or ("" if about.default is None or about.kind is bool else f"`{about.default}`")
    words = "**Required.**" if about.is_required else f"Default: {default}." if default else ""
    return cells(names, " ".join(filter(None, (escaped(about.help), words, f"`{parameter.envvar}`" if parameter.envvar else ""))))


def settings_page() -> str:
    """Which key of which table is which option."""
    files = ", then ".join(f"`{name}`" + (f" (`[{'.'.join(table)}]`)" if table else "") for name, table in settings.FILES)
    lines = [
        "# Settings",
        "",
        f"The value of an option comes from, in rising priority: the default; {files}, both of the working directory;",
        "the variable of the environment; the command line. `--show-config` prints each value and where it comes from, as JSON",
        "with `--json`.",
        "",
        "A key at the top is for every command that has the option with a variable; one in a table called like a command is",
        "for that command alone and wins. What no command takes is refused with file and line.",
        "",
        "| table | keys |",
        "|---|---|",
    ]
    knobs = list(settings.knobs(root))
    shared = sorted({knob.key for knob in knobs if knob.is_shared})
    lines.append(cells("(top)", ", ".join(f"`{key}`" for key in shared)))
    for command in dict.fromkeys(knob.command for knob in knobs):
        keys = ", ".join(f"`{knob.key}`" for knob in knobs if knob.command == command)
        lines.append(cells(f"`[{'.'.join(command)}]`", keys))
    return "\n".join([*lines, ""])


def exit_codes() -> str:
    """The tree of errors, and the code of each."""
    tree = (errors.__doc__ or "").split("\n\n")[1]
    lines = ["# Exit codes", "", "0 is done. Any other comes with what happened, where, what is allowed, and what to do next.", ""]
    lines += ["A reader of standard output that ends first (`| head -1`) changes nothing: the code is that of the work.", ""]
    lines += ["| code | error | meaning |", "|---:|---|---|"]
    found = sorted(errors.error_classes().items(), key=lambda item: (item[1].exit_code, item[0]))
    lines += [cells(str(cls.exit_code), f"`{name}`", escaped(first_line(cls))) for name, cls in found]
    return "\n".join([*lines, "", "In Python all are `tokmill.TokmillError`:", "", "```text", textwrap.dedent(tree), "```", ""])


def manifest_page() -> str:
    """Every field of manifest.json."""
    lines = [
        "# manifest.json",
        "",
        "Written last: a directory that has it is complete. One JSON object; a newer version is refused.",
        "",
    ]
    records = (
        manifest.Manifest,
        types.FileEntry,
        manifest.Segment,
        manifest.FileSpan,
        types.Counts,
        Content,
        types.Input,
        types.Tokenizer,
        output_spec.Shards,
        Provenance,
    )
    for record in records:
        lines += [f"## {record.__name__}", "", escaped(first_line(record)), "", *fields(record), ""]
    return "\n".join(lines)


def python_page() -> str:
    """Every public name."""
    lines = ["# Python", "", "Silent; errors are `tokmill.TokmillError`. Importing it loads nothing else.", ""]
    for name in tokmill.__all__:
        value = getattr(tokmill, name)
        if inspect.isclass(value):
            lines += [f"## tokmill.{name}", "", *prose(value.__doc__), ""]
            if issubclass(value, msgspec.Struct):
                lines += [*fields(value), ""]
            lines += methods(value)
        else:
            lines += [f"## tokmill.{name}()", "", *signature(f"tokmill.{name}", value), "", *prose(value.__doc__), ""]
    return "\n".join(lines)


def methods(cls: Any) -> list[str]:
    """The public methods and properties that a class itself has."""
    lines: list[str] = []
    for name, value in vars(cls).items():
        if name.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
            continue
        if inspect.isfunction(value):
            lines += [f"### {cls.__name__}.{name}()", "", *signature(name, value)]
        else:
            lines += [f"### {cls.__name__}.{name}"]
        lines += ["", *prose(value.__doc__), ""]
    return lines


def signature(name: str, function: Any) -> list[str]:
    """The call, an argument a line where it is long."""
    text = f"{name}{inspect.signature(function)}"
    if len(text) > 100:
        arguments = [f"    {parameter}," for parameter in inspect.signature(function).parameters.values()]
        text = "\n".join([f"{name}(", *arguments, ")"])
    return ["```python", text.replace("'", ""), "```"]


def fields(record: Any) -> list[str]:
    """A table of a record's fields: those that the code documents with what it says."""
    lines = ["| field | type | meaning |", "|---|---|---|"]
    node = ast.parse(textwrap.dedent(inspect.getsource(record))).body[0]
    assert isinstance(node, ast.ClassDef)
    for at, item in enumerate(node.body):
        if not isinstance(item, ast.AnnAssign):
            continue
        after = node.body[at + 1] if at + 1 < len(node.body) else None
        said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        kind = ast.unparse(item.annotation).replace(" | msgspec.UnsetType", ", or absent")
        kind = re.sub(r"\b(Natural|Positive|Whole)\b", "int", kind).replace("Seconds", "float")
        lines.append(cells(f"`{ast.unparse(item.target)}`", f"`{kind}`", escaped(" ".join(str(said).split()))))
    return lines


def prose(text: str | None) -> list[str]:
    """A docstring as paragraphs."""
    return escaped(inspect.cleandoc(text or "")).split("\n")


def first_line(cls: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def escaped(text: str) -> str:
    """What is no markup to be shown as it is; code in backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<>*_\[\]])", r"\\\1", part) for part in parts)


def cells(*texts: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
