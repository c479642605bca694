"""Commands made of `core/options.py`: parsing, help by groups, settings, and `--show-config`.

Plain click, not typer: parameters are made from records, its errors carry fields, and it starts in two thirds of the time.

The command line wins over the environment, that over the files (`cli/settings.py`), these over the default; click finds the value.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from tokmill.cli.console import PROGRAM, Console
from tokmill.cli.examples import EXAMPLES
from tokmill.cli.settings import Origin, knobs, strange_variables
from tokmill.core.errors import UsageError
from tokmill.core.options import GROUPS, MESSAGES, OUTPUT, Option, TokenizeOptions, options_of
from tokmill.core.secrets import shown_in
from tokmill.core.text import joined
from tokmill.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SHOW = "--show-config"
_HELP = ("-h", "--help")
_CONTEXT = {"help_option_names": list(_HELP), "max_content_width": 110, "allow_extra_args": True}
_EPILOG = (
    "Options can also be set by environment variables, TOKMILL_ and the name (TOKMILL_VAL_FRACTION), or in tokmill.toml; "
    f"{_SHOW} prints where each value comes from."
)

JSON = Option(name="json", kind=bool, default=False, group=MESSAGES, help="Print the result as one JSON object.")
QUIET = Option(name="quiet", short="-q", kind=bool, default=False, group=MESSAGES, help="Print no progress and no summary.")
VERBOSE = Option(name="verbose", short="-v", kind=bool, default=False, group=MESSAGES, help="Print more; tracebacks of faults.")
EVENTS = Option(name="events", group=MESSAGES, metavar="FILE", help="Append what happens to FILE, as JSON lines.")
REPORTING = (EVENTS, JSON, QUIET, VERBOSE)
OUT = Option(name="out", short="-o", group=OUTPUT, metavar="DIR", is_required=True, help="Output directory.")


def named(*names: str) -> list[Option]:
    """Return options of tokenize, by name."""
    known = options_of(TokenizeOptions)
    return [known[name] for name in names]


class Parameter(click.Option):
    """An option of a command."""

    def __init__(self, about: Option) -> None:
        self.about = about
        shown = about.usual or ("" if about.default is None or about.kind is bool else str(about.default))
        super().__init__(
            [*([about.short] if about.short else []), about.flag, about.name],
            type=None if about.kind is bool else about.kind,
            is_flag=True if about.kind is bool else None,
            required=about.is_required,
            multiple=about.is_many,
            envvar=about.variable or None,
            metavar=about.metavar or "|".join(about.choices) or None,
            help=about.help + (f"  [default: {shown}]" if shown else ""),
            # None would be a value that click takes for given.
            **({} if about.default is None else {"default": about.default}),
        )

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """Return the value of the variable. Of an option that may be repeated it is one: a pattern or path may hold spaces."""
        value = self.resolve_envvar_value(ctx)
        return [value] if self.multiple and value is not None else super().value_from_envvar(ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the values that begin so."""
        values = self.about.choices or self.about.examples
        return [CompletionItem(each) for each in values if each.startswith(incomplete)] or super().shell_complete(ctx, incomplete)


class Argument(click.Argument):
    """An argument with a help text. values: what a shell completes."""

    def __init__(self, name: str, metavar: str, help: str = "", **about: Any) -> None:  # noqa: A002  click's word
        hidden = about.pop("hidden", False)
        self.values: Callable[[], Any] = about.pop("values", tuple)
        super().__init__([name], metavar=metavar, **about)
        self.help, self.hidden = help, hidden

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return nothing for a hidden argument."""
        return [] if self.hidden else super().get_usage_pieces(ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the values that begin so."""
        found = [CompletionItem(each) for each in self.values() if each.startswith(incomplete)]
        return found or super().shell_complete(ctx, incomplete)


class Command(click.Command):
    """A command with `--show-config`, which prints every option's value and where it comes from, and does nothing else."""

    needs_settings = True
    """False for commands that work whatever the files say."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with errors of our own where click's carry no fields."""
        console: Console = ctx.find_root().obj
        console.context = ctx
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        check_dashes(ctx, args)
        command = self
        if _SHOW in args[: args.index("--") if "--" in args else len(args)]:
            # Nothing that is required is asked for.
            console.is_config_asked = True
            command = copy.copy(self)
            command.params = [copy.copy(each) for each in self.params]
            for each in command.params:
                each.required = False
        typed = list(args)
        rest = super(Command, command).parse_args(ctx, args)
        check_once(ctx, command, typed)
        if rest:
            raise UsageError(
                f"too many arguments: {' '.join(rest)}",
                where=ctx.command_path,
                allowed=usage(ctx),
                next_step=joined([PROGRAM, *(each for each in console.arguments if each not in rest)]),
            )
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Carry the command out, or show its values."""
        console: Console = ctx.find_root().obj
        console.values.update(ctx.params)
        console.origins.update(_origins(ctx, console))
        if not console.is_config_asked:
            check_values(ctx)
            console.tell_origins(ctx.command_path)
            return super().invoke(ctx)
        rows = list(_effective(ctx, console))
        if ctx.params.get("json"):
            from tokmill.cli import render

            found = {name: {"value": value, "from": origin} for name, value, origin in rows}
            console.print_result(render.json_line({"command": ctx.command_path, "options": found}))
        else:
            console.print_result("\n".join(_lines(ctx.command_path, rows)))
        return None

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Do nothing: newer versions of click write arguments here, older ones not at all; `format_options` does."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write arguments, then options by group."""
        arguments = [(str(p.metavar), p.help or "") for p in self.params if isinstance(p, Argument) and not p.hidden]
        rows = {"Arguments": arguments} | {group: [] for group in GROUPS}
        for parameter in self.get_params(ctx):
            record = None if isinstance(parameter, Argument) else parameter.get_help_record(ctx)
            if record:
                rows[parameter.about.group if isinstance(parameter, Parameter) else MESSAGES].append(record)
        for title, found in rows.items():
            if found:
                with formatter.section(title):
                    formatter.write_dl(found)


class Group(click.Group):
    """Commands in the order in which they were made."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the command."""
        if not ctx.resilient_parsing:
            ctx.find_root().obj.context = ctx
            check_dashes(ctx, args[:1])
        return super().parse_args(ctx, args)


def _print_help(ctx: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:  # noqa: FBT001  click's signature
    if is_asked and not ctx.resilient_parsing:
        ctx.find_root().obj.print_result(ctx.get_help())
        ctx.exit()


def _print_version(ctx: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:  # noqa: FBT001  click's signature
    if is_asked and not ctx.resilient_parsing:
        ctx.find_root().obj.print_result(f"{PROGRAM} {__version__}")
        ctx.exit()


def _use_settings(ctx: click.Context, _parameter: click.Parameter, _is_asked: bool) -> None:  # noqa: FBT001  click's signature
    """Take values from files. Called after `--help`, which works whatever they say, and before the options they set."""
    if not ctx.resilient_parsing and getattr(ctx.command, "needs_settings", True):
        check_variables(ctx.find_root().command, ctx.find_root().obj)
        ctx.default_map = ctx.find_root().obj.settings.of_command(ctx.command_path.split()[1:])


def _eager(*names: str, callback: Callable[..., None], text: str) -> click.Option:
    return click.Option([*names], is_flag=True, is_eager=True, expose_value=False, callback=callback, help=text)


def _help() -> click.Option:
    return _eager(*_HELP, callback=_print_help, text="Show this message and exit.")


def make_group(name: str, *, help: str, short_help: str = "", is_root: bool = False) -> Group:  # noqa: A002  click's word
    """Return a group of commands."""
    params = [_eager("--version", callback=_print_version, text="Show the version and exit.")] if is_root else []
    settings: dict[str, Any] = {"add_help_option": False, "no_args_is_help": False, "context_settings": dict(_CONTEXT)}
    return Group(name, params=[*params, _help()], help=help, short_help=short_help, **settings)


root = make_group(
    PROGRAM,
    help="Text corpora of any size to token files for training: exact, fast, in bounded memory, safe against crashes.",
    is_root=True,
)


def command(
    group: Group, name: str, *parameters: Argument | Option | click.Option, short_help: str, needs_settings: bool = True
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Return a decorator that makes a function a command. The function gets the console first, and returns an exit code or None."""

    def decorate(function: Callable[..., int | None]) -> Callable[..., int | None]:
        params: list[click.Parameter] = [Parameter(each) if isinstance(each, Option) else each for each in parameters]
        # The order decides: first help, then the files, then what they set.
        show = _eager(_SHOW, callback=_use_settings, text="Print every value and where it comes from; do nothing else.")
        made = Command(
            name,
            params=[*params, _help(), show],
            callback=click.pass_obj(function),
            help=(function.__doc__ or "").strip(),
            short_help=short_help,
            epilog=_epilog(name if group is root else f"{group.name} {name}"),
            add_help_option=False,
            context_settings=dict(_CONTEXT),
        )
        made.needs_settings = needs_settings
        group.add_command(made)
        return function

    return decorate


def _epilog(name: str) -> str:
    r"""Return what the help of a command ends with. Lines after a `\b` are not joined."""
    arguments, page = EXAMPLES[name]
    return f"\b\nExample:  {PROGRAM} {name} {arguments}".rstrip() + f"\nPage:     {page}\n\n{_EPILOG}"


def check_dashes(ctx: click.Context, args: list[str]) -> None:
    """Raise UsageError for a long option with one dash: `-out pos` would be `-o ut`, and `pos` something else."""
    known = {name: parameter for parameter in ctx.command.params for name in parameter.opts}
    for at, word in enumerate(args[: args.index("--")] if "--" in args else args):
        name = word.partition("=")[0]
        meant, before = known.get(f"-{name}"), known.get(args[at - 1]) if at else None
        if not re.fullmatch(r"-[a-z][a-z-]+", name) or meant is None or takes_value(before):
            continue
        value = args[at + 1 : at + 2] if takes_value(meant) and "=" not in word else []
        raise UsageError(
            f"there is no option {name}; did you mean {joined([f'-{word}', *value])}?",
            where=ctx.command_path,
            allowed=f"-{name}, with two dashes",
            next_step=joined([*ctx.command_path.split(), *args[:at], f"-{word}", *args[at + 1 :]]),
        )


def check_once(ctx: click.Context, command: click.Command, args: list[str]) -> None:
    """Raise UsageError for an option that was typed with two values, of which the parser takes the last."""
    order = command.make_parser(ctx).parse_args(list(args))[2]
    for parameter in {each for each in order if takes_value(each) and not each.multiple and order.count(each) > 1}:
        values = _typed_values(parameter, args)
        if len({*values}) == 1 and len(values) == order.count(parameter):
            continue
        name = long_name(parameter)
        given = " and ".join(map(repr, values)) if len(values) > 1 else "twice"
        raise UsageError(
            f"{name} takes one value, and was given {given}",
            option=name,
            allowed=f"{name} once",
            suggested=values[-1] if values else str(ctx.params[str(parameter.name)]),
        )


def _typed_values(parameter: click.Parameter, args: list[str]) -> list[str]:
    """Return the values that were typed for an option, in their order."""
    values = []
    for at, word in enumerate(args[: args.index("--")] if "--" in args else args):
        name, equals, value = word.partition("=")
        if name in parameter.opts:
            values += [value] if equals else args[at + 1 : at + 2]
        elif any(len(each) == 2 and word.startswith(each) for each in parameter.opts):
            values.append(word[2:])
    return values


def check_variables(root: click.Command, console: Console) -> None:
    """Raise UsageError for a variable that is nearly that of an option; say of any other that nobody reads it."""
    for name, near in strange_variables({knob.variable for knob in knobs(root) if knob.variable}):
        if near is not None:
            raise UsageError(
                f"there is no variable {name}; did you mean {near}?",
                where=f"the variable {name}",
                allowed="TOKMILL_ and the name of an option, as --help says",
                next_step=f"export {near}=${name}; unset {name}",
            )
        if not console.has_flag("--quiet", short="q"):
            console.say(f"{PROGRAM}: the variable {name} is that of no option, and has no effect")


def check_values(ctx: click.Context) -> None:
    """Raise UsageError for values that the parser takes, and that cannot be meant.

    A number out of bounds, also where it is not needed; a path that was meant as a URL: it would be the name of a file, password
    and all.
    """
    from tokmill.core.config import local_path, path_text

    for parameter in ctx.command.params:
        if isinstance(parameter, Parameter) and parameter.about.least is not None:
            parameter.about.check(ctx.params.get(str(parameter.name)))
        if re.search("DIR|FILE|URL|INPUT", str(parameter.metavar)):
            value = ctx.params.get(str(parameter.name))
            for each in value if isinstance(value, tuple) else [value]:
                if isinstance(each, str):
                    # Of an argument, the command says what to do instead.
                    is_local = isinstance(parameter, click.Option) and not re.search("URL|NAME|INPUT", str(parameter.metavar))
                    (local_path if is_local else path_text)(each, long_name(parameter))


def takes_value(parameter: click.Parameter | None) -> bool:
    """Return whether it is an option with a value."""
    return isinstance(parameter, click.Option) and not parameter.is_flag


def long_name(parameter: click.Parameter) -> str:
    """Return the long name of an option; of an argument, what stands for it."""
    return next((name for name in parameter.opts if name.startswith("--")), str(parameter.metavar or parameter.name))


def usage(ctx: click.Context) -> str:
    """Return what a command cannot do without: `tokmill merge DIR... --out DIR`."""
    words = [ctx.command_path]
    for each in ctx.command.params:
        if each.required:
            words += [long_name(each), example(each)] if isinstance(each, click.Option) else [example(each)]
    return " ".join(words)


def example(parameter: click.Parameter) -> str:
    """Return a value that may be typed, or the word for it: `raw` of `raw|llmc`, `DIR` of `DIR|URL`."""
    first, *others = str(parameter.metavar or "VALUE").split("|")
    return first + "..." * (bool(others) and others[-1].endswith("..."))


def _effective(ctx: click.Context, console: Console) -> Iterator[tuple[str, Any, str]]:
    """Yield (option, value, where it comes from) for every option of the command; URLs without what is secret in them."""
    elsewhere = _origins(ctx, console)
    for parameter in _settable(ctx):
        # An option that may be repeated, and was not given, has an empty sequence.
        value = None if ctx.params.get(str(parameter.name)) == () else shown_in(ctx.params.get(str(parameter.name)))
        found = elsewhere.get(long_name(parameter))
        is_typed = ctx.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE
        unset = f"default: {parameter.about.usual}" if parameter.about.usual else "not set"
        origin = "command line" if is_typed else found.shown if found else "default"
        yield long_name(parameter), value, origin if value is not None else unset


def _origins(ctx: click.Context, console: Console) -> dict[str, Origin]:
    """Return by option where its value stands, if that is the environment or a file."""
    found = {}
    for parameter in _settable(ctx):
        origin = origin_of(ctx, parameter, console)
        if origin is not None:
            found[long_name(parameter)] = origin
    return found


def origin_of(ctx: click.Context, parameter: click.Parameter, console: Console) -> Origin | None:
    """Return where the value of an option stands, if that is the environment or a file."""
    source = ctx.get_parameter_source(str(parameter.name))
    if source is click.core.ParameterSource.ENVIRONMENT:
        return Origin(variable=str(parameter.envvar))
    if source is click.core.ParameterSource.DEFAULT_MAP:
        path = ctx.command_path.partition(" ")[2]
        return Origin(place=console.settings.places.get(f"{path}.{parameter.name}", "a file of settings"))
    return None


def _settable(ctx: click.Context) -> list[Parameter]:
    return [each for each in ctx.command.params if isinstance(each, Parameter)]


def _lines(path: str, rows: list[tuple[str, Any, str]]) -> list[str]:
    from tokmill.core.text import printable_line

    shown = [(name, "" if value is None else printable_line(_text(value)), origin) for name, value, origin in rows]
    wide = max((len(name) for name, _, _ in shown), default=0)
    middle = min(40, max((len(value) for _, value, _ in shown), default=0))
    lines = [f"{path}: every option, its value, where that comes from"]
    return [*lines, *(f"  {name:<{wide}}  {value:<{middle}}  {origin}".rstrip() for name, value, origin in shown)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
