"""The command line: parse, call, render, exit code.

Results go to standard output, all else to standard error. What a command needs is imported inside it, so that `--help` is
there at once. Values are checked where Python callers are checked too (`run/job.py`), so both get the same errors.
"""

# ruff: noqa: FBT002  a flag of typer is a parameter whose default is False

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated

import typer

from tokmill.cli import check, configured, derive, options, settings, support, unused_options, usage_errors
from tokmill.cli.vocab import vocab_commands
from tokmill.core.errors import Interrupted, TokmillError
from tokmill.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERRUPTED = 130

app = typer.Typer(
    name="tokmill",
    help="Text corpora of any size to token files for training: exact, fast, in bounded memory, safe against crashes.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(value: bool) -> None:  # noqa: FBT001  typer calls it with the flag
    if value:
        _print_result(f"tokmill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Parent of the commands."""


@app.command(short_help="What will come out: tokens, disk, memory, time; writes nothing.")
def plan(
    inputs: options.Inputs,
    out: options.PlannedOut = None,
    tokenizer: options.Tokenizer = "gpt2",
    eot_token: options.EotToken = None,
    separator: options.Separator = "<|endoftext|>",
    text_key: options.TextKey = "text",
    glob: options.Glob = None,
    input_format: options.InputFormat = None,
    eot: options.Eot = "auto",
    val_fraction: options.ValFraction = 0.0005,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    format: options.Format = "raw",  # noqa: A002  the name of the option
    shard_tokens: options.ShardTokens = None,
    shard_documents: options.ShardDocuments = False,
    drop_tail: options.DropTail = False,
    keep_empty: options.KeepEmpty = False,
    memory: options.Memory = None,
    threads: options.Threads = None,
    nice: options.Nice = False,
    on_error: options.OnError = "stop",
    max_skipped: options.MaxSkipped = None,
    encoding_errors: options.EncodingErrors = "strict",
    engine: options.Engine = "gigatoken",
    fresh: options.Fresh = False,
    force: options.Force = False,
    stage: options.Stage = None,
    stage_size: options.StageSize = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,  # noqa: ARG001  read by `run`, which shows tracebacks
) -> None:
    """Estimate what tokenize with these options will do. Exit code 13: the budget is too small; 14: the disk is."""
    from tokmill import api
    from tokmill.cli import render
    from tokmill.core.errors import DiskFullError

    made = api.plan(
        inputs,
        out,
        tokenizer=tokenizer,
        eot_token=eot_token,
        separator=separator,
        text_key=text_key,
        glob=glob,
        input_format=input_format,
        eot=eot,
        val_fraction=val_fraction,
        seed=seed,
        dtype=dtype,
        format=format,
        shard_tokens=shard_tokens,
        shard_documents=shard_documents,
        drop_tail=drop_tail,
        keep_empty=keep_empty,
        memory=memory,
        threads=threads,
        nice=nice,
        on_error=on_error,
        max_skipped=max_skipped,
        encoding_errors=encoding_errors,
        engine=engine,
        fresh=fresh,
        stage=stage,
        stage_size=stage_size,
    )
    made = unused_options.with_notices(made, unused_options.unused_option_notices(_typed, out=out, on_error=on_error))
    _print_result(render.json_line(made) if json else "" if quiet else render.plan_lines(made))
    try:
        made.raise_for_disk()
    except DiskFullError as error:
        if not force:
            _print_error(error)
            raise typer.Exit(error.exit_code) from None


@app.command(short_help="Turn text into train.bin and val.bin; run again to resume.")
def tokenize(
    inputs: options.Inputs,
    out: options.OutOrUrl,
    tokenizer: options.Tokenizer = "gpt2",
    eot_token: options.EotToken = None,
    separator: options.Separator = "<|endoftext|>",
    text_key: options.TextKey = "text",
    glob: options.Glob = None,
    input_format: options.InputFormat = None,
    eot: options.Eot = "auto",
    val_fraction: options.ValFraction = 0.0005,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    format: options.Format = "raw",  # noqa: A002  the name of the option
    shard_tokens: options.ShardTokens = None,
    shard_documents: options.ShardDocuments = False,
    drop_tail: options.DropTail = False,
    keep_empty: options.KeepEmpty = False,
    memory: options.Memory = None,
    threads: options.Threads = None,
    nice: options.Nice = False,
    on_error: options.OnError = "stop",
    max_skipped: options.MaxSkipped = None,
    encoding_errors: options.EncodingErrors = "strict",
    engine: options.Engine = "gigatoken",
    fresh: options.Fresh = False,
    force: options.Force = False,
    append: options.Append = False,
    stage: options.Stage = None,
    stage_size: options.StageSize = None,
    part: options.Part = None,
    ray: options.Ray = None,
    part_bytes: options.PartBytes = "1GiB",
    events: options.Events = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Turn text into DIR/train.bin and DIR/val.bin. The same command again resumes an interrupted run.

    With --out s3://bucket/prefix the output is made in --stage and sent: shards one by one, a side that is one file when it is
    complete.

    Of a text file every byte counts, a byte order mark too; JSON lines lose theirs.
    """
    from msgspec.structs import replace

    from tokmill import api
    from tokmill.cli import render
    from tokmill.cli.event_log import observing
    from tokmill.cli.progress import not_yet_told

    with observing(verb="tokenizing", quiet=quiet, verbose=verbose, events=events, outputs=[out], inputs=inputs) as observers:
        summary = api.tokenize(
            inputs,
            out,
            tokenizer=tokenizer,
            eot_token=eot_token,
            separator=separator,
            text_key=text_key,
            glob=glob,
            input_format=input_format,
            eot=eot,
            val_fraction=val_fraction,
            seed=seed,
            dtype=dtype,
            format=format,
            shard_tokens=shard_tokens,
            shard_documents=shard_documents,
            drop_tail=drop_tail,
            keep_empty=keep_empty,
            memory=memory,
            threads=threads,
            nice=nice,
            on_error=on_error,
            max_skipped=max_skipped,
            encoding_errors=encoding_errors,
            engine=engine,
            fresh=fresh,
            force=force,
            append=append,
            stage=stage,
            stage_size=stage_size,
            part=part,
            ray=ray,
            part_bytes=part_bytes,
            observers=observers,
        )
    summary = unused_options.with_notices(
        summary, unused_options.unused_option_notices(_typed, out=out, on_error=on_error, ray=ray)
    )
    if json or quiet:
        _print_result(render.json_line(summary) if json else "")
    else:
        _print_result(render.summary_lines(replace(summary, notices=not_yet_told(summary.notices, observers))))


_arguments: Sequence[str] = ()
"""Of this call of `run`."""
_signalled = False
"""Whether somebody asked for the end."""
_session = configured.Session(settings.NONE, print)
"""Of this call of `run`."""


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line. Returns the exit code; never raises but for faults of Python itself."""
    global _arguments, _session  # noqa: PLW0603  typer hands its commands values only, not what was typed
    _arguments, _session = arguments, configured.Session(settings.NONE, _print_result)
    is_completing = bool(os.environ.get("_TOKMILL_COMPLETE"))
    if is_completing:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    try:
        # A group of commands alone asks what is in it.
        words = [*arguments, "--help"] if list(arguments) in ([], ["vocab"]) else options.with_address(arguments)
        is_help = not is_completing and usage_errors.asks_for_help(words, lambda: typer.main.get_command(app))
        if not is_completing:
            usage_errors.check_dashes(words, lambda: typer.main.get_command(app))
            is_optional = not usage_errors.needs_settings(words, is_help=is_help)
            _session = configured.Session(configured.load(app, is_optional=is_optional), _print_result)
        # The parser prints help by itself, and would not know what to say where that cannot be done.
        helping = io.StringIO()
        with contextlib.redirect_stdout(helping) if is_help else contextlib.nullcontext():
            defaults = _session.settings.defaults
            code = app(words, prog_name=usage_errors.PROGRAM, standalone_mode=False, default_map=defaults, obj=_session)
        _print_result(helping.getvalue().rstrip("\n"))
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except TokmillError as error:
        return _fail(error)
    except typer.TyperException as error:
        return _fail(usage_errors.usage_error(error, arguments, typer.main.get_command(app), _session.settings.places))
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_interrupted(arguments))
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say, and Python must not say it while closing.
        _silence()
        return 1
    except Exception as error:  # noqa: BLE001  the last resort of a program: one line instead of a traceback
        return _fail_unforeseen(error)


def main() -> None:
    """Entry point of the command."""
    # A termination asks for what Ctrl-C asks for: a checkpoint, then the end.
    signal.signal(signal.SIGTERM, _on_signal)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_signal)
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # Once more, while the first was being told of.
        code = _INTERRUPTED
    _be_deaf()
    sys.exit(code)


def _on_signal(_signum: int, _frame: object) -> None:
    global _signalled  # noqa: PLW0603  a signal has no other way to tell
    _signalled = True
    raise KeyboardInterrupt


def _be_deaf() -> None:
    """Nothing is left to be asked for once the result is told. Python would answer by dying while it takes itself apart."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is _on_signal:
            signal.signal(signum, signal.SIG_IGN)


def _interrupted(arguments: Sequence[str]) -> TokmillError:
    return Interrupted(
        "interrupted",
        where="tokmill",
        allowed="stopping at any time",
        next_step="run the same command again",
        resumes=bool(usage_errors.resuming(arguments)),
    )


def _fail(error: TokmillError) -> int:
    from tokmill.cli import render

    error = usage_errors.as_typed(error, _arguments, _session.origins)
    try:
        _print_error(error)
        if _session.has_flag("--json", _arguments):
            print(render.json_line(render.error_object(error)), flush=True)
    except OSError:
        # Nobody listens; the exit code still speaks.
        _silence()
    return error.exit_code


def _fail_unforeseen(error: Exception) -> int:
    from tokmill.core.errors import TokmillError

    if _signalled:
        # What came of it in the middle of a module that was being loaded (numpy says that it is broken).
        return _fail(_interrupted(_arguments))
    is_verbose = _session.has_flag("--verbose", _arguments, short="v")
    if is_verbose:
        traceback.print_exception(error, file=sys.stderr)
    message = f"unforeseen {type(error).__name__}: {error}"
    return _fail(
        TokmillError(
            message,
            where="tokmill",
            allowed="no error of this kind: it is a fault of tokmill",
            next_step="report it" if is_verbose else "run again with -v for the traceback, and report it",
        )
    )


def _print_result(text: str) -> None:
    """Print what a command ends with. Raises StorageError or DiskFullError when standard output does not take it."""
    if not text:
        return
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever read it has what was wanted, and what was to be done is done: the exit code says whether well.
        _silence()
    except OSError as error:
        _silence()
        raise _unprinted(error) from error
    _be_deaf()


def _silence() -> None:
    """Give standard output to nobody: what Python still holds of it, it would try to write while closing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unprinted(error: OSError) -> TokmillError:
    from tokmill.core.errors import DiskFullError, StorageError

    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return (DiskFullError if is_full else StorageError)(
        f"what was found or done cannot be printed: {error.strerror}",
        where="standard output",
        allowed="a terminal, a pipe, or a file on a disk that has room for it",
        next_step="send standard output elsewhere, or free disk space, then run the same command again",
    )


app.add_typer(vocab_commands(_print_result), name="vocab")


def _print_error(error: TokmillError) -> None:
    from tokmill.cli import render

    print(render.error_lines(error), file=sys.stderr, flush=True)


def _typed(*options: str) -> bool:
    return any(word.split("=")[0] in options for word in usage_errors.before_operands(_arguments))


check.register(app, _print_result, _print_error, _typed)
derive.register(app, _print_result, _typed)
support.register(app, _print_result)
configured.equip(app)
