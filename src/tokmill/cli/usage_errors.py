"""Turns click's errors into ours: four parts, the last of which is the command to type instead.

The nearest spelling is proposed where one is near.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING

import click

from tokmill.cli.command import Argument, Parameter, example, long_name, origin_of, takes_value, usage
from tokmill.cli.console import PROGRAM
from tokmill.core.errors import UsageError
from tokmill.core.manifest import MANIFEST_NAME
from tokmill.core.text import joined, misspelt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokmill.cli.console import Console
    from tokmill.cli.settings import Origin
    from tokmill.core.errors import TokmillError
    from tokmill.core.options import Option

_MEANT = {
    "--text-key": ("--column", "--field", "--key"),
    "--out": ("--output", "--output-dir", "--out-dir"),
    "--tokenizer": ("--vocab", "--model"),
    "--shard-tokens": ("--shard-size",),
    "--memory": ("--ram", "--mem", "--max-memory"),
    "--threads": ("--jobs", "--workers", "--cores", "--num-workers", "--num-threads", "--processes"),
    "--format": ("--trainer", "--output-format", "--to", "--target"),
    "--input-format": ("--type",),
    "--glob": ("--include", "--pattern", "--ext", "--extension"),
    "--events": ("--log",),
    "--val-fraction 0": ("--no-val",),
    "--eot after": ("--append-eod", "--append-eos"),
    "--on-error skip": ("--skip-errors",),
    "": ("--resume", "--continue", "--input", "--inputs"),
}
"""What people type for an option, as other tools call it; for nothing: the same command resumes, and inputs need no option."""
_NEVER_MEANT = {"--fresh", "--force", "--append"}
"""Options that discard or change what is there are proposed to nobody."""
_COMMANDS_MEANT = {"version": ["--version"], "help": ["--help"]}
_VALUES = {"integer": "a whole number", "float": "a number", "boolean": "true or false"}


def usage_error(error: click.UsageError, console: Console) -> UsageError:
    """Return our error for what the parser raised."""
    context: click.Context = error.ctx or console.context
    if isinstance(error, click.NoSuchOption):
        return _unknown_option(error.option_name, context, console)
    if isinstance(error, click.BadOptionUsage):
        return _misused_option(error.option_name, context, console)
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return _missing(error.param, context, console)
    if isinstance(error, click.BadParameter) and error.param is not None:
        return _bad_value(error.param, context, console)
    if isinstance(context.command, click.Group):
        return _unknown_command(getattr(error, "command_name", ""), context, console)
    what = error.format_message().rstrip(".")
    return UsageError(what, where=context.command_path, allowed=usage(context), next_step=f"{context.command_path} --help")


def _unknown_option(option: str, context: click.Context, console: Console) -> UsageError:
    """Return the error for an option that the command does not have; others may."""
    where, known = context.command_path, _options(context)
    named = _file_named_like(option, context, console)
    if named:
        return UsageError(
            f"there is no option {option}",
            where=where,
            allowed=f"an input whose name begins with a dash as ./{named}",
            next_step=_command(console.arguments, {named: [f"./{named}"]}),
        )
    long = ", ".join(sorted(name for name in known if name.startswith("--")))
    others = _commands_with(option, context.find_root().command)
    if others:
        without = [each for each in console.arguments if each != option]
        return UsageError(
            f"{where} has no {option}, which is an option of {', '.join(f'{PROGRAM} {name}' for name in others)}",
            where=where,
            allowed=long,
            next_step=f"{where} --help"
            if any(map(takes_value, others.values()))
            else _command([next(iter(others)), option] if isinstance(context.command, click.Group) else without),
        )
    at = next((i for i, each in enumerate(console.arguments) if each.partition("=")[0] == option), -1)
    typed = console.arguments[at] if at >= 0 else option
    is_alone = at < 0 or at == len(console.arguments) - 1 or console.arguments[at + 1].startswith("-")
    meant = _meant(option, known, has_value="=" in typed or not is_alone, is_joined="=" in typed)
    if meant is None:
        return UsageError(f"there is no option {option}", where=where, allowed=long, next_step=f"{where} --help")
    hint = f"did you mean {' '.join(meant)}?" if meant else "inputs need no option, and the same command resumes"
    return UsageError(
        f"there is no option {option}; {hint}",
        where=where,
        allowed=f"{' '.join(meant) or 'the command without it'}, or another of {where} --help",
        next_step=_command(console.arguments, _all_meant(known, console.arguments)),
    )


def _file_named_like(option: str, context: click.Context, console: Console) -> str:
    """Return the file for which a word was meant that was read as options, this unknown one among them; empty if there is none."""
    end = console.arguments.index("--") if "--" in console.arguments else len(console.arguments)
    words = [] if isinstance(context.command, click.Group) else console.arguments[:end]
    is_short = not option.startswith("--")
    found = (each for each in words if each.startswith(option) or (is_short and re.match("-[^-]", each) and option[1:] in each))
    return next(filter(os.path.exists, found), "")


def _all_meant(known: dict[str, click.Parameter], arguments: Sequence[str]) -> dict[str, list[str]]:
    """Return what was meant by each unknown option of a command, so that one proposal corrects all of them."""
    found = {}
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for at, typed in enumerate(arguments[:end]):
        option, equals, value = typed.partition("=")
        if option.startswith("--") and option not in known:
            is_alone = at == end - 1 or arguments[at + 1].startswith("-")
            meant = _meant(option, known, has_value=bool(equals) or not is_alone, is_joined=bool(equals))
            if meant is not None:
                # Without an option, its value is an input.
                found[typed] = [*meant[:-1], meant[-1] + equals + value] if meant else [value] if value else []
    return found


def _meant(option: str, known: dict[str, click.Parameter], *, has_value: bool, is_joined: bool) -> list[str] | None:
    """Return the words that were meant by an unknown option; none of them if it is to be left out; None where nobody can say.

    has_value: whether a value may follow it; is_joined: whether one does, after `=`.
    """
    for words, names in _MEANT.items():
        if option in names and (not words or words.split()[0] in known):
            return words.split()
    near = difflib.get_close_matches(option, known.keys() - _NEVER_MEANT, 1, 0.75)
    # A value is not moved to an option that takes none, nor an option without one to one that needs it.
    fits = near and (has_value if takes_value(known[near[0]]) else not is_joined)
    return near if fits else None


def _misused_option(option: str, context: click.Context, console: Console) -> UsageError:
    """Return the error for an option that lacks its value, or that takes none."""
    where, parameter = context.command_path, _options(context).get(option)
    if parameter is not None and takes_value(parameter):
        fixed = [option, example(parameter)]
        what, allowed, replaced = f"{option} has no value", " ".join(fixed), {option: fixed}
    else:
        typed = next((each for each in console.arguments if each.startswith(option + "=")), option)
        what, allowed, replaced = f"{option} does not take a value", f"{option} alone", {typed: [option]}
    return UsageError(what, where=where, allowed=allowed, next_step=_command(console.arguments, replaced))


def _commands_with(option: str, root: click.Command) -> dict[str, click.Parameter]:
    """Return the commands that have a long option, and the option."""
    commands = getattr(root, "commands", {})
    return {
        name: parameter
        for name, command in commands.items()
        for parameter in command.params
        if option in parameter.opts and option.startswith("--")
    }


def _missing(parameter: click.Parameter, context: click.Context, console: Console) -> UsageError:
    name = long_name(parameter)
    word = example(parameter).rstrip(".") if example(parameter)[:1].isupper() else parameter.name
    lacking = f"{name} is missing" if name.startswith("-") else f"no {word} is given"
    end = console.arguments.index("--") if "--" in console.arguments else len(console.arguments)
    before, rest = console.arguments[:end], console.arguments[end:]
    typed = {each.partition("=")[0] for each in before}
    words: list[str] = []
    params = context.command.params
    for each in params[params.index(parameter) :]:
        if each.required and not typed & {*each.opts} and not os.environ.get(str(each.envvar or "")):
            words += [long_name(each), example(each)] if isinstance(each, click.Option) else [example(each).rstrip(".")]
    fixed = " ".join([_command(before), *words, *([joined(rest)] if rest else [])])
    at = before.index("--source") + 1 if "--source" in before[:-1] else 0
    if at and os.path.exists(os.path.join(before[at], MANIFEST_NAME)):
        # The output was taken for the corpus, which need not be named.
        fixed = _command([*before[: at - 1], before[at], "--source", *before[at + 1 :]])
    return UsageError(lacking, where=context.command_path, allowed=usage(context), next_step=fixed)


def _bad_value(parameter: click.Parameter, context: click.Context, console: Console) -> UsageError:
    """Return the error for a value of another type."""
    name, kind = long_name(parameter), _VALUES.get(parameter.type.name, "what the help says")
    origin = origin_of(context, parameter, console)
    value, where, fixed = "", f"{context.command_path} {name}", f"{context.command_path} --help"
    if origin is not None:
        where, fixed = origin.named, origin.repaired(name, "")
        value = f"{os.environ.get(origin.variable, '')!r} " if origin.variable else ""
    elif isinstance(parameter, Parameter):
        about = parameter.about
        # Of what is usual where nothing is given, the first word may be a number.
        usual = about.usual.partition(";")[0] if about.default is None else str(about.default)
        default = usual if about.default is not None or _number(about, usual) else example(parameter)
        for at, each in enumerate(console.arguments):
            option, equals, text = each.partition("=")
            if option in parameter.opts and (equals or at + 1 < len(console.arguments)):
                value = f"{text if equals else console.arguments[at + 1]!r} " if not equals else f"{text!r} "
                rest = console.arguments[at + 1 if equals else at + 2 :]
                meant = _number(about, text if equals else console.arguments[at + 1]) or default
                fixed = _command([*console.arguments[:at], option, meant, *rest])
    elif isinstance(parameter, Argument):
        name = example(parameter)
    return UsageError(f"the value {value}of {name} is not {kind}", where=where, allowed=f"{name} takes {kind}", next_step=fixed)


def _number(about: Option, text: str) -> str | None:
    """Return the number that was meant by `10%`, `0,1`, `1_000` or `2e3`, if the option takes it."""
    match = re.fullmatch(r"\s*([+-]?[0-9_]+(?:[.,][0-9]+)?(?:e[0-9]{1,2})?)\s*(%?)\s*", text, re.IGNORECASE)
    try:
        number = float(match[1].replace(",", ".")) / (100 if match[2] else 1) if match else None
        if number is None or (about.kind is int and number != int(number)):
            return None
        about.check(about.kind(number))
    except (ValueError, OverflowError, UsageError):
        return None
    return f"{about.kind(number)}"


def _unknown_command(typed: str, context: click.Context, console: Console) -> UsageError:
    """Return the error for a command, or one of a group, that does not exist."""
    where, commands = context.command_path, list(getattr(context.command, "commands", {}))
    allowed = ", ".join(commands)
    if not typed:
        return UsageError("no command is given", where=where, allowed=allowed, next_step=f"{where} {commands[0]} --help")
    fixed = _whole_command(typed, commands, console)
    if fixed:
        return UsageError(f"there is no command {typed!r}", where=f"{where} {typed}", allowed=allowed, next_step=fixed)
    near = _COMMANDS_MEANT.get(typed) or ([] if re.search(r"[./]", typed) else difflib.get_close_matches(typed, commands, 1))
    meant = f"; did you mean {near[0]}?" if near else ""
    fixed = _command(console.arguments, {typed: near}) if near else f"{where} --help"
    return UsageError(f"there is no command {typed!r}{meant}", where=f"{where} {typed}", allowed=allowed, next_step=fixed)


def _whole_command(typed: str, commands: Sequence[str], console: Console) -> str:
    """Return what was meant by `help COMMAND`, or by a file or an output without a command; nothing for anything else."""
    arguments = console.arguments
    if arguments[:1] == ["help"] and {*arguments[1:2]} & {*commands}:
        return _command([*arguments[1:], "--help"])
    if arguments[:1] != [typed] or not os.path.exists(typed):
        return ""
    if os.path.isfile(os.path.join(typed, MANIFEST_NAME)):
        return _command(["inspect", *arguments])
    has_out = any(each.startswith(("--out", "-o")) for each in arguments) or "TOKMILL_OUT" in os.environ
    return _command(["tokenize", *arguments, *([] if has_out else ["--out", "DIR"])])


RESUMING = ("tokenize", "merge", "convert", "reshard", "dedup", "shuffle", "mix", "pack")
"""Commands that continue from the last commit of an earlier run."""


def resumes(arguments: Sequence[str]) -> bool:
    """Return whether the command that was typed continues from the last commit of an earlier run."""
    return next((each for each in arguments if not each.startswith("-")), "") in RESUMING


def _options(context: click.Context) -> dict[str, click.Parameter]:
    """Return the options of a command by each of their names."""
    return {name: each for each in context.command.params if isinstance(each, click.Option) for name in each.opts}


def as_typed(error: TokmillError, arguments: Sequence[str], origins: dict[str, Origin]) -> TokmillError:
    """Return the error with what to do next as a whole command, or as what to change where the value stands.

    Args:
        error: The error.
        arguments: The words of the command line.
        origins: By option, where its value stands if it was not typed.
    """
    error.resumes = error.resumes and resumes(arguments)
    origin = origins.get(error.option or "")
    if origin is not None and error.option:
        is_told = (error.where or "").startswith(error.option)
        error.where = f"{origin.named} ({error.where if is_told else error.option})"
        error.next_step = origin.repaired(error.option, error.suggested or "")
    elif error.path is not None and error.suggested is not None and not error.option:
        error.next_step = _with_word(error.path, error.suggested, arguments)
    elif error.path is not None and error.path in arguments:
        error.next_step = _with_path_there(error.path, arguments)
    elif error.option and error.suggested is not None and arguments:
        error.next_step = _with_option(error.option, error.suggested, arguments)
    return error


def _with_option(option: str, value: str, arguments: Sequence[str]) -> str:
    """Return the command with this value of the option instead of another."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    # The only option with a value that has a short name.
    names, joined = ([option, "-o"], "-o") if option == "--out" else ([option], f"{option}=")
    kept, is_value = [], False
    for each in arguments[:end]:
        if is_value or each in names or each.startswith((f"{option}=", joined)):
            is_value = not is_value and each in names
        else:
            kept.append(each)
    return _command([*kept, option, value, *arguments[end:]])


def _with_word(path: str, meant: str, arguments: Sequence[str]) -> str | None:
    """Return the command with another word for a path, which may stand in one word with its option."""
    return _command(arguments, {each: [each.removesuffix(path) + meant] for each in arguments if each.endswith(path)})


def _with_path_there(path: str, arguments: Sequence[str]) -> str:
    """Return the command with the nearest existing path instead; if there is none, the command that lists what exists."""
    directory, name = os.path.split(path.rstrip("/"))
    while directory and not os.path.isdir(directory):
        directory, name = os.path.split(directory)
    try:
        near = misspelt(name, os.listdir(directory or "."))
    except OSError:
        near = None
    if near and os.path.join(directory, name) == path.rstrip("/"):
        there = os.path.join(directory, near)
        return _command(arguments, {path: [f"./{there}" if there.startswith("-") else there]})
    return joined(["ls", directory or "."])


def _command(arguments: Sequence[str], replaced: dict[str, list[str]] | None = None) -> str:
    words = [word for each in arguments for word in (replaced or {}).get(each, [each])]
    return joined([PROGRAM, *words])
