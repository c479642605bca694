"""Settings in files: `tokmill.toml`, and `[tool.tokmill]` of `pyproject.toml`, both in the working directory.

A key is an option without its dashes. At the top it is for every command that also takes the option from the environment; in a
table named after a command (`[verify]`, `[vocab.fetch]`), for that command alone. Directories above are not read: a run must not
depend on where its directory was put. A key that no command knows is an error with its line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import UsageError
from tokmill.core.secrets import learn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from tokmill.core.options import Option

FILES = (("tokmill.toml", ()), ("pyproject.toml", ("tool", "tokmill")))
"""Files of settings and the table that holds them; a later one wins."""
_MOST_BYTES = 1 << 20
_SPEAKS = re.compile(r"""^\s*(?:\[\s*)?(["']?)tool\1\s*\.\s*(["']?)tokmill\2\s*[]=.]""", re.MULTILINE)
"""What pyproject.toml must hold for a fault in it to be an error."""


@dataclass(frozen=True, slots=True, repr=False)
class Knob:
    """An option of a command, as far as a file can set it."""

    command: tuple[str, ...]
    """`("vocab", "fetch")`."""
    option: Option
    variable: str | None
    """Environment variable; one that is not of the option's name is for this command alone (`--out` of report)."""

    @property
    def key(self) -> str:
        """The option without its dashes."""
        return self.option.flag.removeprefix("--")

    @property
    def is_shared(self) -> bool:
        """Whether a key at the top of a file sets it."""
        return self.option.has_variable


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """What the files say, for the parser of the command line."""

    defaults: dict[tuple[str, ...], dict[str, Any]]
    """By command, by parameter."""
    places: dict[str, str]
    """`tokmill.toml:3` by `command.parameter`."""
    general: dict[str, Any]
    """What is for all commands, by key: for a command line from which no command can be told."""

    def of_command(self, words: Sequence[str], *, is_loose: bool = False) -> dict[str, Any]:
        """Return the values of a command. is_loose: other words may follow, and what is for all commands counts if none does."""
        if not is_loose:
            return self.defaults.get(tuple(words), {})
        return self.general | self.defaults.get(tuple(words[:1]), self.defaults.get(tuple(words[:2]), {}))


NONE = Settings({}, {}, {})


@dataclass(frozen=True, slots=True, repr=False)
class Origin:
    """Where a value stands that was not typed: one of the two."""

    place: str = ""
    """`tokmill.toml:3`."""
    variable: str = ""
    """Environment variable."""

    @property
    def shown(self) -> str:
        """For `--show-config`."""
        return self.place or f"environment, {self.variable}"

    @property
    def named(self) -> str:
        """As the place of an error."""
        return self.place or f"the variable {self.variable}"

    def repaired(self, option: str, value: str) -> str:
        """Return what to do about a bad value. value: a right one, if one is known."""
        if not value:
            return f"correct {self.place}, and run the command again" if self.place else f"unset {self.variable}"
        if self.place:
            written = value if re.fullmatch(r"[+-]?\d+(\.\d+)?", value) else json.dumps(value)
            return f"write {option.removeprefix('--')} = {written} in {self.place}, and run the command again"
        return f"export {self.variable}={shlex.quote(value)}"


def load(root: Any) -> Settings:
    """Return the settings in the working directory's files. root: the parser's group of all commands. Raises UsageError."""
    return read_settings(list(knobs(root))) if present() else NONE


def knobs(command: Any, path: tuple[str, ...] = ()) -> Iterator[Knob]:
    """Yield every option of every command that a file may set."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from knobs(inner, (*path, name))
    for parameter in command.params if path and not hasattr(command, "commands") else ():
        if hasattr(parameter, "about"):
            yield Knob(path, parameter.about, parameter.envvar)


def strange_variables(known: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the variables of the environment that are named like those of options and are none, each with the nearest that is."""
    import difflib

    from tokmill.core.system.current import PLAIN_VARIABLE

    plain = {_bare(name): name for name in known}
    for name in sorted(each for each in os.environ if each.startswith("TOKMILL_") and each not in {*known, PLAIN_VARIABLE}):
        near = difflib.get_close_matches(_bare(name), plain, 1, 0.75)
        yield name, plain[near[0]] if near else None


def _bare(variable: str) -> str:
    return variable.removeprefix("TOKMILL_").replace("_", "").upper()


def present(directory: str = ".") -> list[str]:
    """Return the files of that name in a directory, whether or not they have settings."""
    return [name for name, _ in FILES if os.path.isfile(os.path.join(directory, name))]


def read_settings(knobs: list[Knob], directory: str = ".") -> Settings:
    """Return the settings of a directory. Raises UsageError, with file and line, for a key or a value that no command takes."""
    defaults: dict[tuple[str, ...], dict[str, Any]] = {}
    places: dict[str, str] = {}
    general: dict[str, Any] = {}
    for name in present(directory):
        prefix = dict(FILES)[name]
        text = _text(directory, name, is_shared=bool(prefix))
        table = _parsed(text, name, is_shared=bool(prefix))
        for key in prefix:
            table = table.get(key, {}) if isinstance(table, dict) else {}
        spelled: dict[tuple[tuple[str, ...], str], str] = {}
        # What is for one command wins over what is for all: tables come after plain keys.
        for path, key, value in sorted(_entries(table, ()), key=lambda entry: len(entry[0])):
            learn(value if isinstance(value, list) else [value])
            line, head = (_line_of(text, (*prefix, *path), each) for each in (key, ""))
            _check_table(knobs, path, f"{name}:{head}")
            _check_once(spelled, path, key, f"{name}:{line}")
            for knob in _meant(knobs, path, key, f"{name}:{line}"):
                defaults.setdefault(knob.command, {})[knob.option.name] = _checked(knob, value, f"{name}:{line}")
                places[f"{' '.join(knob.command)}.{knob.option.name}"] = f"{name}:{line}"
            if not path:
                general[_plain(key)] = value
    return Settings(defaults, places, general)


def _text(directory: str, name: str, *, is_shared: bool) -> str:
    """Return the text of a file, without a byte order mark. is_shared: it is about other things too."""
    path = os.path.join(directory, name)
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise UsageError(
                "the file of settings is too large",
                where=name,
                allowed="at most a megabyte",
                next_step=f"keep only settings in {name}",
            )
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        if is_shared and isinstance(error, UnicodeDecodeError) and not _SPEAKS.search(data.decode(errors="replace")):
            return ""
        raise UsageError(
            f"the settings cannot be read: {error}",
            where=name,
            allowed="a readable file in UTF-8",
            next_step=f"correct {name}, or move it away, and run the command again",
        ) from None


def _parsed(text: str, name: str, *, is_shared: bool) -> Any:
    """Return the tables of a file. One without settings need not even be TOML."""
    import tomllib

    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if is_shared and not _SPEAKS.search(text):
            return {}
        found = re.search(r"at line (\d+)", str(error))
        raise UsageError(
            f"the settings are not TOML: {error}",
            where=f"{name}:{found[1]}" if found else name,
            allowed='lines such as: val-fraction = 0.01, or tokenizer = "gpt2"',
            next_step=f"correct {name}, and run the command again",
        ) from None


def _entries(table: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Yield (tables above, key, value) of everything that is no table; an empty table counts as a value, so that it is checked."""
    for key, value in table.items() if isinstance(table, dict) else ():
        if isinstance(value, dict) and value:
            yield from _entries(value, (*path, key))
        else:
            yield path, key, value


def _check_table(knobs: list[Knob], path: tuple[str, ...], place: str) -> None:
    commands = {knob.command for knob in knobs}
    known = {command[: len(path)] for command in commands}
    if path and path not in known:
        _raise_unknown(".".join(path), [".".join(command) for command in sorted(commands | known)], place, "table")


def _check_once(spelled: dict[tuple[tuple[str, ...], str], str], path: tuple[str, ...], key: str, place: str) -> None:
    """Remember how a setting is spelled. Raises UsageError if the file has it in another spelling too."""
    other = spelled.setdefault((path, _plain(key)), key)
    if other != key:
        raise UsageError(
            f"{other} and {key} are the same setting",
            where=place,
            allowed=f"one of them: {_plain(key)}",
            next_step=f"take it out of {place}, and run again",
        )


def _plain(key: str) -> str:
    return key.replace("_", "-")


def _meant(knobs: list[Knob], path: tuple[str, ...], key: str, place: str) -> list[Knob]:
    plain = _plain(key)
    found = [k for k in knobs if k.key == plain and (k.command[: len(path)] == path if path else k.is_shared)]
    if not found:
        usable = {k.key for k in knobs if (k.command[: len(path)] == path if path else k.is_shared)}
        _raise_unknown(key, sorted(usable), place, "setting")
    return found


def _raise_unknown(name: str, known: list[str], place: str, noun: str) -> None:
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    raise UsageError(
        f"there is no {noun} {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        where=place,
        allowed=", ".join(known),
        next_step=f"write {near[0]} in {place}, and run the command again" if near else f"take it out of {place}, and run again",
    )


def _checked(knob: Knob, value: Any, place: str) -> Any:
    """Return the value as the parser takes it: text, a flag, or a list of texts."""
    is_flag, is_many = knob.option.kind is bool, knob.option.is_many
    one = value if isinstance(value, list) and is_many else [value]
    if not all(isinstance(each, bool) if is_flag else type(each) in (str, int, float) for each in one):
        allowed = "true or false" if is_flag else "a list of texts" if is_many else "text or a number"
        raise UsageError(
            f"{knob.key} = {value!r} is not a value of --{knob.key}",
            where=place,
            allowed=f"{knob.key} = {allowed}",
            next_step=f"correct {place}, and run the command again",
        )
    return value if is_flag else [str(each) for each in one] if is_many else str(value)


def _line_of(text: str, path: tuple[str, ...], key: str) -> int:
    """Return the line of a key, from 1; if it is not written one a line, the line of its table."""
    table: tuple[str, ...] = ()
    head = 1
    for number, line in enumerate(text.split("\n"), 1):
        opened = re.match(r"\s*\[([^\[\]]+)\]", line)
        if opened:
            table = tuple(word.strip().strip("\"'") for word in opened[1].split("."))
            head = number if table == path else head
        elif words := re.match(r"\s*([\w\"'.-]+)\s*=", line):
            dotted = tuple(word.strip("\"'") for word in words[1].split("."))
            if (*table, *dotted) == (*path, key):
                return number
    return head
