"""A command line that cannot be parsed, as an error in four parts whose last is the command to type instead.

The parser's own exceptions are known by what they carry (the option, the parameter, the context), not by their words alone: a
class of the parser that is not public is imported nowhere. The nearest spelling is proposed where one is near.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokmill.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.core.errors import TokmillError

PROGRAM = "tokmill"
_VALUES = {"int": "a whole number", "float": "a number", "bool": "true or false"}
_FROM_ENVIRONMENT, _FROM_FILE = "ENVIRONMENT", "DEFAULT_MAP"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value stands that was not typed: one of the two."""

    place: str = ""
    """`tokmill.toml:3`."""
    variable: str = ""
    """Of the environment."""

    @property
    def shown(self) -> str:
        """For `--show-config`."""
        return self.place or f"environment, {self.variable}"

    @property
    def named(self) -> str:
        """As the place of an error."""
        return self.place or f"the variable {self.variable}"

    def mended(self, option: str, value: str) -> str:
        """What to do about a bad value. value: a right one, if one is known."""
        if not value:
            return f"mend {self.place}, and run the command again" if self.place else f"unset {self.variable}"
        if self.place:
            return f"write {option.removeprefix('--')} = {_toml(value)} in {self.place}, and run the command again"
        return f"export {self.variable}={shlex.quote(value)}"


def _toml(value: str) -> str:
    return value if re.fullmatch(r"[+-]?\d+(\.\d+)?", value) else json.dumps(value)


@dataclass(frozen=True, slots=True)
class _Context:
    """What is needed of the parser's context, for errors that come without one."""

    command: Any
    command_path: str
    help_option_names: Sequence[str]


def usage_error(error: Exception, arguments: Sequence[str], root: Any, files: dict[str, str]) -> UsageError:
    """The error for what the parser raised.

    arguments: as typed, without the program. root: the parser's command of the program. files: where settings of files stand.
    """
    what = error.format_message().rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None) or _context_of(root, arguments)
    where = context.command_path
    option, parameter = getattr(error, "option_name", None), getattr(error, "param", None)
    if option is not None:
        of_others = {} if option in _options(context) else _commands_with(option, root)
        if of_others:
            return _of_another(option, where, of_others, context, arguments)
        return _about_option(what, option, where, _options(context), arguments)
    if parameter is not None:
        return _about_parameter(what, parameter, context, arguments, files)
    commands = _commands(context)
    if commands:
        return _about_command(where, commands, arguments)
    surplus = re.fullmatch(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)", what)
    if surplus:
        words = surplus[1].split()
        kept = [each for each in arguments if each not in words]
        return UsageError(f"too many arguments: {surplus[1]}", where=where, allowed=_usage(context), next_step=_command(kept))
    return UsageError(what, where=where, allowed=_usage(context), next_step=f"{where} --help")


def check_dashes(arguments: Sequence[str], root: Callable[[], Any]) -> None:
    """Raises UsageError for a long option with one dash: `-out pos` would be `-o ut`, and `pos` something else.

    root: the parser's command of the program, asked for where there is such a word.
    """
    for at, word in enumerate(before_operands(arguments)):
        name = word.partition("=")[0]
        if not re.fullmatch(r"-[a-z][a-z-]+", name):
            continue
        context = _context_of(root(), arguments)
        known = _options(context)
        if f"-{name}" not in known or (at and known.get(arguments[at - 1])):
            continue
        value = arguments[at + 1 : at + 2] if known[f"-{name}"] and "=" not in word else []
        meant = shlex.join([f"-{word}", *value])
        raise UsageError(
            f"there is no option {name}; did you mean {meant}?",
            where=context.command_path,
            allowed=f"-{name}, with two dashes",
            next_step=_command([*arguments[:at], f"-{word}", *arguments[at + 1 :]]),
        )


def _context_of(root: Any, arguments: Sequence[str]) -> _Context:
    """The command that the words typed lead to."""
    command, path = root, [PROGRAM]
    for word in arguments:
        inner = getattr(command, "commands", {}).get(word)
        if inner is None:
            break
        command = inner
        path.append(word)
    return _Context(command, " ".join(path), ("-h", "--help"))


def _about_option(what: str, option: str, where: str, known: dict[str, str], arguments: Sequence[str]) -> UsageError:
    """An option that is not one, that lacks its value, or that takes none."""
    if option in known:
        if "not take a value" in what:
            typed = next((each for each in arguments if each.startswith(option + "=")), option)
            return UsageError(what, where=where, allowed=f"{option} alone", next_step=_command(arguments, {typed: [option]}))
        value = known[option]
        fixed = _command(arguments, {option: [option, value]})
        return UsageError(f"{option} has no value", where=where, allowed=f"{option} {value}", next_step=fixed)
    near = difflib.get_close_matches(option, known, 1, 0.6)
    allowed = f"{near[0]}, or another of {where} --help" if near else ", ".join(sorted(o for o in known if o.startswith("--")))
    typed = next((each for each in arguments if each.split("=")[0] == option), option)
    replacement = [near[0] + typed[len(option) :]] if near else []
    meant = f"; did you mean {near[0]}?" if near else ""
    next_step = _command(arguments, {typed: replacement}) if near else f"{where} --help"
    return UsageError(f"there is no option {option}{meant}", where=where, allowed=allowed, next_step=next_step)


def _commands_with(option: str, root: Any) -> dict[str, bool]:
    """The commands that have an option, and whether it is one without a value."""
    found = {}
    for name, command in getattr(root, "commands", {}).items():
        for parameter in command.params:
            if option in parameter.opts and option.startswith("--") and not getattr(parameter, "hidden", False):
                found[name] = bool(getattr(parameter, "is_flag", False))
    return found


def _of_another(option: str, where: str, others: dict[str, bool], context: Any, arguments: Sequence[str]) -> UsageError:
    """An option of other commands: what is near to it in this one is not what was meant."""
    names = ", ".join(f"tokmill {name}" for name in others)
    without = [each for each in arguments if each != option]
    known = ", ".join(sorted(each for each in _options(context) if each.startswith("--")))
    return UsageError(
        f"{where} has no {option}, which is an option of {names}",
        where=where,
        allowed=known,
        next_step=_command(without) if all(others.values()) else f"{where} --help",
    )


def _about_parameter(what: str, parameter: Any, context: Any, arguments: Sequence[str], files: dict[str, str]) -> UsageError:
    """An argument or an option that is missing, or whose value is of another kind."""
    name = _shown(parameter)
    if what.startswith("Missing"):
        lacking = f"{name} is missing" if name.startswith("-") else f"no {name} is given"
        fixed = " ".join([_command(arguments), *_lacking(parameter, context, arguments)])
        return UsageError(lacking, where=context.command_path, allowed=_usage(context), next_step=fixed)
    where, value, fixed = _origin(parameter, context, arguments, files)
    kind = next((words for key, words in _VALUES.items() if key in str(parameter.type_descriptor.annotation)), None)
    what = f"the value {value}of {name} is not {kind}" if kind else what
    return UsageError(what, where=where, allowed=f"{name} takes {kind or 'what the help says'}", next_step=fixed)


def _lacking(first: Any, context: Any, arguments: Sequence[str]) -> list[str]:
    """What is still to be typed: the parameter that was missed, and those behind it that would be next."""
    at = context.command.params.index(first)
    typed = {each.split("=")[0] for each in arguments}
    words: list[str] = []
    for each in context.command.params[at:]:
        if each.required and not typed & {*each.opts} and not os.environ.get(each.envvar or ""):
            words += [_shown(each), _example(each)] if each.opts[0].startswith("-") else [_shown(each)]
    return words


def _origin(parameter: Any, context: Any, arguments: Sequence[str], files: dict[str, str]) -> tuple[str, str, str]:
    """Where a bad value stands, the value with a blank behind it or nothing, and what to type."""
    source = getattr(context.get_parameter_source(parameter.name), "name", "")
    name = _shown(parameter)
    if source == _FROM_ENVIRONMENT:
        origin = Origin(variable=parameter.envvar)
        return origin.named, f"{os.environ.get(origin.variable, '')!r} ", origin.mended(name, "")
    if source == _FROM_FILE:
        origin = Origin(place=files.get(f"{context.command_path.partition(' ')[2]}.{parameter.name}", "a file of settings"))
        return origin.named, "", origin.mended(name, "")
    default = parameter.metavar if parameter.default is None else parameter.default
    where = f"{context.command_path} {name}"
    for at, each in enumerate(arguments):
        if each in parameter.opts and at + 1 < len(arguments):
            return where, f"{arguments[at + 1]!r} ", _command([*arguments[: at + 1], str(default), *arguments[at + 2 :]])
        option, equals, value = each.partition("=")
        if equals and option in parameter.opts:
            return where, f"{value!r} ", _command(arguments, {each: [name, str(default)]})
    return where, "", f"{context.command_path} --help"


def _about_command(where: str, commands: list[str], arguments: Sequence[str]) -> UsageError:
    """A command, or one of a group, that is not there."""
    depth = len(where.split()) - 1
    typed = next((each for each in arguments[depth:] if not each.startswith("-")), "")
    if not typed:
        return UsageError(
            "no command is given", where=where, allowed=", ".join(commands), next_step=f"{where} {commands[0]} --help"
        )
    near = difflib.get_close_matches(typed, commands, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    fixed = _command(arguments, {typed: near}) if near else f"{where} --help"
    return UsageError(
        f"there is no command {typed!r}{meant}", where=f"{where} {typed}", allowed=", ".join(commands), next_step=fixed
    )


_WITHOUT = ("doctor", "completion", "--version")
"""First words of what is there whatever the files say, beside help: doctor says what is wrong with them."""


def needs_settings(arguments: Sequence[str], *, is_help: bool) -> bool:
    """Whether what was typed must not be done where the settings of files are wrong."""
    return bool(arguments) and not is_help and arguments[0] not in _WITHOUT


def asks_for_help(arguments: Sequence[str], root: Callable[[], Any]) -> bool:
    """Whether help is among what was typed, and not as the value of an option. root: makes the parser's command of the program."""
    if not {"--help", "-h"} & {*before_operands(arguments)}:
        return False
    with_value = {name for name, value in _options(_context_of(root(), arguments)).items() if value}
    words = iter(arguments)
    for word in words:
        if word in ("--help", "-h", "--"):
            return word != "--"
        if word in with_value:
            next(words, None)
    return False


def before_operands(arguments: Sequence[str]) -> Sequence[str]:
    """The words before `--`, behind which nothing is an option."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


_RESUMING = ("tokenize", "merge", "convert", "reshard")


def resuming(arguments: Sequence[str]) -> str:
    """The command, if it goes on where an earlier run of it ended; else nothing."""
    command = next((each for each in arguments if not each.startswith("-")), "")
    return command if command in _RESUMING else ""


def as_typed(error: TokmillError, arguments: Sequence[str], origins: dict[str, Origin]) -> TokmillError:
    """Return the error with what to do next as a whole command, or as what to change where the value stands.

    Args:
        error: The error.
        arguments: The words of the command line.
        origins: By option, where its value stands if it was not typed.
    """
    error.resumes = error.resumes and bool(resuming(arguments))
    origin = origins.get(error.option or "")
    if origin is not None and error.option:
        is_told = (error.where or "").startswith(error.option)
        error.where = f"{origin.named} ({error.where if is_told else error.option})"
        error.next_step = origin.mended(error.option, error.suggested or "")
    elif error.path is not None and error.path in arguments:
        error.next_step = _with_path_there(error.path, arguments)
    elif error.option and error.suggested is not None and arguments:
        error.next_step = _with_option(error.option, error.suggested, arguments)
    return error


def _with_option(option: str, value: str, arguments: Sequence[str]) -> str:
    """Return the command with this value of the option instead of another."""
    kept, is_value = [], False
    for each in arguments:
        if is_value or each.startswith(option + "=") or each == option:
            is_value = each == option
        else:
            kept.append(each)
    return f"{_command(kept)} {option} {shlex.quote(value)}"


def _with_path_there(path: str, arguments: Sequence[str]) -> str:
    """The command with the path that is there and nearest to the one typed; without one, the command that shows what is there."""
    directory, name = os.path.split(path.rstrip("/"))
    while directory and not os.path.isdir(directory):
        directory, name = os.path.split(directory)
    try:
        near = difflib.get_close_matches(name, os.listdir(directory or "."), 1, 0.7)
    except OSError:
        near = []
    if near and os.path.join(directory, name) == path.rstrip("/"):
        return _command(arguments, {path: [os.path.join(directory, near[0])]})
    return shlex.join(["ls", directory or "."])


def _command(arguments: Sequence[str], replaced: dict[str, list[str]] | None = None) -> str:
    words = [word for each in arguments for word in (replaced or {}).get(each, [each])]
    return shlex.join([PROGRAM, *words])


def _options(context: Any) -> dict[str, str]:
    """The options of a command and what their values are called; of one without value, nothing."""
    return {
        name: "" if getattr(parameter, "is_flag", False) else _example(parameter)
        for parameter in context.command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("-") and not getattr(parameter, "hidden", False)
    } | dict.fromkeys(context.help_option_names, "")


def _commands(context: Any) -> list[str]:
    return [*getattr(context.command, "commands", {})]


def _usage(context: Any) -> str:
    """`tokmill merge DIR... --out DIR`: what a command cannot do without."""
    words = [context.command_path]
    for parameter in context.command.params:
        if getattr(parameter, "hidden", False) or not parameter.required:
            continue
        metavar = (parameter.metavar or parameter.name.upper()).partition("|")[0]
        words.append(
            f"{_shown(parameter)} {metavar}" if parameter.opts[0].startswith("-") else metavar + "..." * (parameter.nargs == -1)
        )
    return " ".join(words)


def _example(parameter: Any) -> str:
    """A value that may be typed, or the word for it: `raw` of `raw|llmc`, `DIR` of `DIR|URL`."""
    return str(parameter.metavar or "VALUE").partition("|")[0]


def _shown(parameter: Any) -> str:
    """The long name of an option; of an argument, what stands for it."""
    long = [name for name in parameter.opts if name.startswith("--")]
    return str(long[0] if long else parameter.metavar or parameter.name)
