"""What every command has: `--show-config`, and values from files, the environment and the command line, in that order.

The parser finds the value of an option: the command line wins over the environment, that over the files (`cli/settings.py`), these
over the default. Here is only what is said of it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tokmill.cli import settings
from tokmill.cli.settings import Knob, Settings
from tokmill.cli.usage_errors import PROGRAM, Origin, before_operands
from tokmill.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_SHOW = "--show-config"
_NO_SETTINGS = {"help", "version", "show_config"}


_YES = {"1", "true", "t", "yes", "y", "on"}
"""What the parser takes for a flag that is set, of the environment."""
_TAKES_VALUE = "o"
"""Behind the letter of an option that has a value, the rest of the word is the value."""


def _in_bundle(letter: str, word: str) -> bool:
    """Whether a word such as `-qv` holds the flag."""
    return word.startswith("-") and not word.startswith("--") and letter in word[1:].partition(_TAKES_VALUE)[0]


@dataclass(frozen=True, slots=True)
class Session:
    """What the commands of one call share; the parser hands it on as its `obj`."""

    settings: Settings
    show: Callable[[str], None]
    """Prints a result on standard output."""
    values: dict[str, Any] = field(default_factory=dict)
    """Of the command's options, by parameter, once they are parsed."""
    origins: dict[str, Origin] = field(default_factory=dict)
    """By option, of those whose value was not typed but stands elsewhere."""

    def has_flag(self, option: str, arguments: Sequence[str], *, short: str = "") -> bool:
        """Whether a flag of all commands is set, also where the command line could not be parsed."""
        name = option.removeprefix("--")
        if name in self.values:
            return bool(self.values[name])
        if any(word == option or (short and _in_bundle(short, word)) for word in before_operands(arguments)):
            return True
        if said := os.environ.get(f"{PROGRAM}_{name}".upper()):
            return said.lower() in _YES
        return bool(self._defaults_of(arguments).get(name))

    def _defaults_of(self, arguments: Sequence[str]) -> dict[str, Any]:
        """What files say of the command that the words lead to; what they say of all, where they lead to none."""
        inner: dict[str, Any] = self.settings.defaults
        for word in arguments:
            if not isinstance(inner.get(word), dict):
                break
            inner = inner[word]
        return self.settings.general | inner


class Configured(TyperCommand):
    """A command with `--show-config`, which prints every option's value and where it comes from, and does nothing else."""

    is_asked = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_flag())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See the parser: with `--show-config`, nothing that is required is asked for."""
        if _SHOW in args[: args.index("--") if "--" in args else len(args)]:
            self.is_asked = True
            for parameter in self.params:
                parameter.required = False
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """See the parser."""
        session = ctx.find_root().obj
        session.values.update(ctx.params)
        session.origins.update(_origins(ctx))
        if not self.is_asked:
            return super().invoke(ctx)
        rows = list(_effective(ctx))
        if ctx.params.get("json"):
            from tokmill.cli import render

            found = {name: {"value": value, "from": origin} for name, value, origin in rows}
            session.show(render.json_line({"command": ctx.command_path, "options": found}))
        else:
            session.show("\n".join(_lines(ctx.command_path, rows)))
        return None


def _flag() -> Any:
    """The option itself, made by the framework out of a command that has no other."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def made(
        *, show_config: bool = typer.Option(False, _SHOW, help="Print every value and where it comes from; do nothing.")
    ) -> None:
        """Lends its option."""

    option = next(p for p in typer.main.get_command(app).params if p.name == "show_config")
    option.expose_value = False
    return option


def _effective(ctx: Any) -> Iterator[tuple[str, Any, str]]:
    """(option, value, where it comes from) of every option of the command; URLs without what is secret in them."""
    elsewhere = _origins(ctx)
    for parameter in _options(ctx):
        # Of an option that may be repeated, and was not given, the parser makes an empty sequence.
        value = _public(ctx.params.get(parameter.name)) if ctx.params.get(parameter.name) != () else None
        typed = getattr(ctx.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
        long = _long_name(parameter)
        found = elsewhere.get(long)
        origin = "command line" if typed else found.shown if found else "default"
        yield long, value, origin if value is not None else _unset(parameter)


def _origins(ctx: Any) -> dict[str, Origin]:
    """By option, where its value stands if that is the environment or a file."""
    places = ctx.find_root().obj.settings.places
    command = ctx.command_path.partition(" ")[2]
    found = {}
    for parameter in _options(ctx):
        source = getattr(ctx.get_parameter_source(parameter.name), "name", "")
        if source == "ENVIRONMENT":
            found[_long_name(parameter)] = Origin(variable=parameter.envvar)
        elif source == "DEFAULT_MAP":
            found[_long_name(parameter)] = Origin(place=places.get(f"{command}.{parameter.name}", "a file of settings"))
    return found


def _options(ctx: Any) -> Iterator[Any]:
    return (p for p in ctx.command.params if p.name not in _NO_SETTINGS and p.opts[0].startswith("-"))


def _long_name(parameter: Any) -> str:
    return str(next(name for name in parameter.opts if name.startswith("--")))


def _public(value: Any) -> Any:
    """The value; URLs without what is secret in them."""
    from tokmill.core.records import is_url
    from tokmill.store import redacted

    if isinstance(value, list | tuple):
        return [_public(each) for each in value]
    return redacted(value) if isinstance(value, str) and is_url(value) else value


def _unset(parameter: Any) -> str:
    said = re.search(r"\[default: (.*)\]", parameter.help or "")
    return f"default: {said[1]}" if said else "not set"


def _lines(command: str, rows: list[tuple[str, Any, str]]) -> list[str]:
    from tokmill.core.text import printable_line

    shown = [(name, "" if value is None else printable_line(_text(value)), origin) for name, value, origin in rows]
    wide = max(len(name) for name, _, _ in shown)
    middle = min(40, max(len(value) for _, value, _ in shown))
    lines = [f"{command}: every option, its value, where that comes from"]
    return [*lines, *(f"  {name:<{wide}}  {value:<{middle}}  {origin}".rstrip() for name, value, origin in shown)]


def _text(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else " ".join(map(str, value))
        if isinstance(value, list | tuple)
        else str(value)
    )


def load(app: typer.Typer, *, is_optional: bool = False) -> Settings:
    """The settings of the working directory's files for the commands of `app`; none, where they are wrong and optional.

    Raises UsageError.
    """
    try:
        return settings.read_settings(knobs(app)) if settings.present() else settings.NONE
    except UsageError:
        if is_optional:
            return settings.NONE
        raise


def knobs(app: typer.Typer) -> list[Knob]:
    """Every option of every command that a file may set."""
    return list(_knobs_of(typer.main.get_command(app), ()))


def _knobs_of(command: Any, path: tuple[str, ...]) -> Iterator[Knob]:
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from _knobs_of(inner, (*path, name))
        return
    for parameter in command.params:
        long = next((name for name in parameter.opts if name.startswith("--")), None)
        if long is None or parameter.name in _NO_SETTINGS:
            continue
        yield Knob(
            command=path,
            key=long.removeprefix("--"),
            parameter=parameter.name,
            is_flag=bool(parameter.is_flag),
            is_many=bool(parameter.multiple),
            variable=parameter.envvar or None,
        )


def equip(app: typer.Typer) -> None:
    """Give every command that is registered so far what this module is about."""
    for info in app.registered_commands:
        info.cls = Configured
    for group in app.registered_groups:
        if group.typer_instance is not None:
            equip(group.typer_instance)
