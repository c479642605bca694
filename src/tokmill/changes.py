"""Names what differs between a run and what is given now: to resume it, or to compare its output with."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import msgspec

from tokmill.errors import ChangedError
from tokmill.types import STDIN, text_to_path
from tokmill.words import counted

if TYPE_CHECKING:
    from pathlib import Path

    from tokmill.config import Content
    from tokmill.types import Input

_OPTIONS = {"shards": "--shard-tokens", "splits": "N of --split I/N"}
_SUFFIXES = {"none": "", "gzip": ".gz", "zstd": ".zst", "xz": ".xz", "bzip2": ".bz2", "lz4": ".lz4"}
_MOST = 5
"""Differences or inputs that are named."""


def changed_error(before: Content, now: Content, directory: Path) -> ChangedError:
    """The error that refuses to go on, naming each setting and input that differs."""
    differences = [*_settings(before, now), *_inputs(before.inputs, now.inputs)]
    return ChangedError(
        "the run in this directory was begun differently: " + "; ".join(_shortened(differences)),
        where=str(directory),
        allowed="the same inputs, unchanged, and the same settings",
        next_step="restore what changed, choose another --out, or start over with --fresh",
    )


def changed_input_error(before: Input, now: Input, directory: Path) -> ChangedError:
    """The error for an input that is to be appended to an output in which it stands as it was before."""
    return ChangedError(
        f"an input is in the output already and has changed since: {_input(before, now)}",
        where=str(directory),
        allowed="inputs that are not in the output yet, or unchanged (they are left out)",
        next_step="restore it, leave it out, or make a new output of all inputs with another --out",
    )


def source_error(before: tuple[Input, ...], now: tuple[Input, ...], directory: Path, difference: str) -> ChangedError | None:
    """The error for sources that are not those that were tokenized; None when path, size and time say that they are.

    difference: the place where the output and the sources first say different things.
    """
    found = _sources(before, now)
    if not found:
        return None
    in_order = f" ({len(before):,} inputs, in this order)" if len(before) > 1 else ""
    return ChangedError(
        "these sources are not those that were tokenized; the output itself is as it was written",
        where="\n".join([str(directory), *_shortened(found), difference]),
        allowed="\n".join([f"what was tokenized{in_order}:", *_shortened([_named(i) for i in before])]),
        next_step=_compare_again(before, now, directory),
    )


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _MOST else [*lines[:_MOST], f"and {len(lines) - _MOST:,} more"]


def _sources(before: tuple[Input, ...], now: tuple[Input, ...]) -> list[str]:
    old, new = ({i.path: i for i in inputs} for inputs in (before, now))
    found = [f"{_named(old[path])} was tokenized and is not given" for path in old if path not in new]
    found += [f"{_named(new[path])} is given and was not tokenized" for path in new if path not in old]
    found += [_input(old[path], new[path]) for path in old if path in new and old[path] != new[path]]
    if not found and before != now:
        found.append("the inputs are the same, their order or number is not")
    if not found:
        unknown = [i for i in now if i.size_bytes is None or i.version is None]
        found += [f"{_named(i)} cannot be told from another by size and time" for i in unknown]
    return found


def _named(source: Input) -> str:
    name = "standard input" if source.path == STDIN else source.path
    return name if source.size_bytes is None else f"{name} ({counted(source.size_bytes, 'byte')})"


def _compare_again(before: tuple[Input, ...], now: tuple[Input, ...], directory: Path) -> str:
    """What to type for a comparison with the inputs of the run."""
    kinds = {f"{i.format}{_SUFFIXES[i.compression]}" for i in before}
    option = f" --input-format {kinds.pop()}" if len(kinds) == 1 and any(i.format != j.format for i in before for j in now) else ""
    if len(before) > _MOST:
        return (
            f"give --source what tokenize was given, in that order, with the same --glob and --input-format{option and ':'}{option}"
        )
    if any(i.path == STDIN for i in before):
        return f"pipe in what was tokenized: ... | tokmill verify {shlex.quote(str(directory))} --source -{option}"
    again = [i.path for i in before] == [i.path for i in now] and not option
    names = " ".join(shlex.quote(i.path if i.is_remote else text_to_path(i.path)) for i in before)
    command = f"tokmill verify {shlex.quote(str(directory))} --source {names}{option}"
    # Those are the places that were given: what is there now is another version.
    return (
        f"put back what was tokenized, with its size and time, then: {command}; or make the output again with --fresh"
        if again
        else command
    )


def _settings(before: Content, now: Content) -> list[str]:
    names = [f for f in before.__struct_fields__ if f not in ("inputs", "tokenizer") and getattr(before, f) != getattr(now, f)]
    if before.tokenizer.sha256 != now.tokenizer.sha256 or before.tokenizer.encoding != now.tokenizer.encoding:
        names.append("tokenizer")
    elif before.tokenizer.eot_id != now.tokenizer.eot_id:
        return [*(_setting(n, getattr(before, n), getattr(now, n)) for n in names), _eot_token(before, now)]
    return [_setting(name, getattr(before, name), getattr(now, name)) for name in names]


def _eot_token(before: Content, now: Content) -> str:
    return f"--eot-token was {before.tokenizer.eot_id}, is {now.tokenizer.eot_id}"


def _setting(name: str, before: object, now: object) -> str:
    if name == "tokenizer":
        before, now = (f"{t.name} (sha256 {t.sha256[:12]})" for t in (before, now))  # type: ignore[attr-defined]
    if name == "origin":
        return "one of the two is put together from runs with other settings, or from a bare file, the other is not"
    option = _OPTIONS.get(name, "--" + name.replace("_", "-"))
    return f"{option} was {_value(before)}, is {_value(now)}"


def _value(value: object) -> object:
    return "not given" if value is msgspec.UNSET else value


def _inputs(before: tuple[Input, ...], now: tuple[Input, ...]) -> list[str]:
    old, new = ({i.path: i for i in inputs} for inputs in (before, now))
    found = [f"input {path} is gone" for path in old if path not in new]
    found += [f"input {path} is new" for path in new if path not in old]
    found += [_input(old[path], new[path]) for path in old if path in new and old[path] != new[path]]
    if not found and before != now:
        found.append("the inputs are the same, their order is not")
    return found


def _input(before: Input, now: Input) -> str:
    if before.size_bytes != now.size_bytes:
        return f"input {now.path} had {before.size_bytes:,} bytes, has {now.size_bytes:,}"
    if before.mtime_ns != now.mtime_ns:
        return f"input {now.path} was modified (same size, another modification time)"
    if before.version != now.version:
        return f"input {now.path} was replaced (same size; it was {before.version}, is {now.version})"
    return f"input {now.path} was read as {before.format}/{before.compression}, is now {now.format}/{now.compression}"
