"""Names what differs between a run and what is given now: to resume it, or to compare its output with."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from tokmill.core.config import typed_separator
from tokmill.core.errors import ChangedError, TokmillError
from tokmill.core.manifest import load_manifest
from tokmill.core.output_spec import Shards
from tokmill.core.partition import Part
from tokmill.core.records import STDIN, text_to_path
from tokmill.core.text import counted, shortened
from tokmill.read import source_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokmill.core.arrangement import Arrangement
    from tokmill.core.config import Content
    from tokmill.core.deduplication import Deduplication
    from tokmill.core.manifest import Manifest
    from tokmill.core.packing import Packing
    from tokmill.core.records import Input
    from tokmill.core.system.tree import Directory

_OPTIONS = {"shards": ("--shard-tokens", "--shard-documents", "--drop-tail"), "n_parts": ("N of --part I/N",), "n_ids": ()}
"""Of settings that are not called as their option is."""
_TABLES = ("csv", "tsv")
_READ_WITH = {
    "separator": ("text",),
    "text_key": ("jsonl", *_TABLES, "parquet", "arrow", "tar"),
    "quoting": _TABLES,
    "delimiter": _TABLES,
}
"""The formats of inputs for which a setting matters: one that did not is no reason to read other inputs wrongly."""
_MOST = 5
"""Differences or inputs that are named."""
_ALLOWED = "the same inputs, unchanged, and the same settings"
_WAYS_OUT = "choose another --out, or start over with --fresh"


def changed_error(
    before: Content, now: Content, directory: Directory | str, *, is_complete: bool = False, can_append: bool = False
) -> ChangedError:
    """Return the error that names each setting and input that differs.

    Args:
        before: Content of the run that was begun, of the complete output in `directory`, or of an interrupted append to it.
        now: What is asked for.
        directory: Of the output, or its URL.
        is_complete: For a URL, whether `before` is of the complete output there.
        can_append: Whether the command that asks has `--append`.
    """
    complete: Manifest | None = None
    if not isinstance(directory, str):
        with contextlib.suppress(TokmillError, OSError):
            complete = load_manifest(directory)
    if complete is not None and _is_append(complete.content, before):
        return _pending_error(complete.content, before, directory)
    names = _differing(before, now)
    if complete is not None and complete.fingerprint == before.fingerprint():
        is_complete = True
        more = _more_inputs_error(before, now, directory, can_append=can_append) if not names else None
        if more is not None:
            return more
    place = "at this prefix" if isinstance(directory, str) else "in this directory"
    what = f"the complete output {place} was made" if is_complete else f"the run {place} was begun"
    differences = [_setting(name, before, now) for name in names]
    differences += _input_changes(
        before.inputs, now.inputs, lambda i: f"input {i.path}", ("is gone", "is new"), "their order is not"
    )
    return ChangedError(
        f"{what} differently: {'; '.join(_shortened(differences))}",
        where=str(directory),
        allowed=_ALLOWED,
        next_step=f"restore what changed, {_WAYS_OUT}",
    )


def change_of(before: Content, now: Content, directory: Directory) -> str:
    """Return why a run of `now` is refused where one of `before` was begun or is complete; empty if it is not."""
    is_same = before.fingerprint() == now.fingerprint() or is_only_more_lenient(before, now)
    return "" if is_same else changed_error(before, now, directory).what


def changed_settings_error(before: Content, now: Content, directory: Directory) -> ChangedError:
    """Return the error for inputs that are to be appended with other settings than the output was made with."""
    names = _differing(before, now)
    if "format" in names:
        # What follows from the format is not for the person to set.
        names = [name for name in names if name not in ("eot", "dtype", "shards")]
    unused = [name for name in names if not any(i.format in _READ_WITH.get(name, (i.format,)) for i in before.inputs)]
    # The new inputs may need what did not matter for the others.
    typed = {name: _typed(name, before, now) for name in names if name not in unused}
    options = " ".join(text for text in typed.values() if text)
    without = " ".join(option for name, text in typed.items() if not text for option in _OPTIONS.get(name, (_option(name),)))
    changes = [f" with {options}"] * bool(options) + [f" without {without}"] * bool(without)
    changed = " and".join(changes)
    return ChangedError(
        f"the output was made with other settings: {'; '.join(_setting(name, before, now) for name in names)}",
        where=str(directory),
        allowed="the settings that the output was made with",
        next_step="make a new output of all inputs with another --out"
        if "n_ids" in names
        else f"make an output of the new inputs alone{changed}{',' if changed else ''} with another --out, "
        "then join the two: tokmill merge DIR DIR --out NEW"
        if unused
        else f"the same command{changed}"
        + (f"; tokmill convert makes a copy in the format {now.format}" if "format" in names else ""),
    )


def changed_input_error(before: Input, now: Input, directory: Directory) -> ChangedError:
    """Return the error for an input that is to be appended to an output that has it as it was before."""
    return ChangedError(
        f"an input is in the output already and has changed since: {_input(before, now)}",
        where=str(directory),
        allowed="inputs that are not in the output yet, or unchanged (they are left out)",
        next_step="restore it, leave it out, or make a new output of all inputs with another --out",
    )


def source_error(before: tuple[Input, ...], now: tuple[Input, ...], directory: Directory, difference: str) -> ChangedError | None:
    """Return the error for sources that are not those that were tokenized; None when path, size and time say that they are.

    difference: the place where the output and the sources first differ.
    """
    words = ("was tokenized and is not given", "is given and was not tokenized")
    found = _input_changes(before, now, _named, words, "their order or number is not")
    if not found:
        unknown = [i for i in now if i.size_bytes is None or i.version is None]
        found = [f"{_named(i)} cannot be told from another by size and time" for i in unknown]
    if not found:
        return None
    in_order = f" ({len(before):,} inputs, in this order)" if len(before) > 1 else ""
    return ChangedError(
        "these sources are not those that were tokenized; the output itself is as it was written",
        where="\n".join([str(directory), *_shortened(found), difference]),
        allowed="\n".join([f"what was tokenized{in_order}:", *_shortened([_named(i) for i in before])]),
        next_step=_compare_again(before, now, directory),
    )


def is_only_more_lenient(before: Content, now: Content) -> bool:
    """Return whether the settings differ only in that bad records or bytes no longer stop the run.

    What was done so far met none, so it is the same.
    """
    if before.on_error != "stop" or before.encoding_errors not in ("strict", now.encoding_errors):
        return False
    lenient = msgspec.structs.replace(before, on_error=now.on_error, encoding_errors=now.encoding_errors)
    if isinstance(before.part, Part) and isinstance(now.part, Part):
        # The whole is more lenient, too, and has another fingerprint for that.
        lenient = msgspec.structs.replace(lenient, part=msgspec.structs.replace(before.part, plan=now.part.plan))
    return lenient.fingerprint() == now.fingerprint()


def is_made_of(complete: Manifest, now: Content) -> bool:
    """Return whether what is complete is what is asked for: a part that was complete before the whole became more lenient is."""
    return complete.fingerprint == now.fingerprint() or (bool(now.part) and is_only_more_lenient(complete.content, now))


def _is_append(complete: Content, begun: Content) -> bool:
    """Return whether a run that was begun adds inputs to what is complete."""
    n = len(complete.inputs)
    return len(begun.inputs) > n and begun.inputs[:n] == complete.inputs and not _differing(complete, begun)


def _pending_error(complete: Content, begun: Content, directory: Directory | str) -> ChangedError:
    """Return the error for anything else that is asked for while an append waits to be finished."""
    new = [_display_name(i) for i in begun.inputs[len(complete.inputs) :]]
    names = " ".join(shlex.quote(name) for name in new[:_MOST]) + (" ..." if len(new) > _MOST else "")
    return ChangedError(
        f"an append of {', '.join(_shortened(new))} to this output was interrupted",
        where=str(directory),
        allowed="to finish it, or to discard it; the output as it was before is complete",
        next_step=f"finish it: the tokmill tokenize command that was interrupted, with {names} --append; "
        "or discard it: your command with --append --fresh",
    )


def _more_inputs_error(before: Content, now: Content, directory: Directory | str, *, can_append: bool) -> ChangedError | None:
    """Return the error for inputs that are not in a complete output; None when there are none."""
    old = {i.path for i in before.inputs}
    new = [i for i in now.inputs if i.path not in old]
    if not new:
        return None
    what, where, wanted = f"this is a complete output of {counted(len(before.inputs), 'other input')}", str(directory), "these"
    if len(new) == len(now.inputs):
        where = "\n".join([where, "made of:", *_shortened([_named(i) for i in before.inputs])])
    else:
        verb = "is" if len(new) == 1 else "are"
        missing = ", ".join(_shortened([_named(i) for i in new]))
        what, wanted = (
            f"this is a complete output, and {counted(len(new), 'input')} of these {verb} not in it: {missing}",
            "what is new",
        )
    return ChangedError(
        what,
        where=where,
        allowed="the same inputs" + ", or others with --append" * can_append,
        next_step=f"to add {wanted}: the same command with --append; or {_WAYS_OUT}" if can_append else _WAYS_OUT,
    )


def _shortened(lines: list[str]) -> list[str]:
    return shortened(lines, _MOST)


def _named(source: Input) -> str:
    name = _display_name(source)
    return name if source.size_bytes is None else f"{name} ({counted(source.size_bytes, 'byte')})"


def _display_name(source: Input) -> str:
    return "standard input" if source.path == STDIN else source.path


def _compare_again(before: tuple[Input, ...], now: tuple[Input, ...], directory: Directory) -> str:
    """Return what to type to compare with the inputs of the run."""
    needed = source_options(before)
    option = "".join(f" {each}" for each in needed if each.startswith("--input-format"))
    if len(before) > _MOST:
        return f"give --source what tokenize was given, in that order, with {' '.join(needed) or 'the same --glob, if it had one'}"
    if any(i.path == STDIN for i in before):
        return f"pipe in what was tokenized: ... | tokmill verify {shlex.quote(str(directory))} --source -{option}"
    names = " ".join(shlex.quote(i.path if i.is_remote else text_to_path(i.path)) for i in before)
    command = f"tokmill verify {shlex.quote(str(directory))} --source {names}{option}"
    if [(i.path, i.format) for i in before] == [(i.path, i.format) for i in now]:
        # The right paths were given: what is there now is another version.
        return f"put back what was tokenized, with its size and time, then: {command}; or make the output again with --fresh"
    return command


def _differing(before: Content, now: Content) -> list[str]:
    """Return the fields of `Content` that differ, and `eot_token` or `n_ids` where only that part of the tokenizer differs."""
    names = [f for f in before.__struct_fields__ if f not in ("inputs", "tokenizer") and getattr(before, f) != getattr(now, f)]
    ours, theirs = before.tokenizer, now.tokenizer
    of_tokenizer = {
        "tokenizer": (ours.sha256, ours.encoding) != (theirs.sha256, theirs.encoding),
        "eot_token": ours.eot_id != theirs.eot_id,
        "n_ids": ours.n_ids != theirs.n_ids,
    }
    return names + [name for name, differs in of_tokenizer.items() if differs][:1]


def _setting(name: str, before: Content, now: Content) -> str:
    if name == "origin":
        return _origins(before, now)
    if name == "n_ids":
        # The same file, counted by a tokmill that left out special tokens.
        return f"the tokenizer had {before.tokenizer.n_ids:,} ids, has {now.tokenizer.n_ids:,}"
    option = _OPTIONS.get(name, (_option(name),))[0]
    return f"{option} was {_value(name, before)}, is {_value(name, now)}"


def _origins(before: Content, now: Content) -> str:
    """Return in words how the origins of two outputs differ."""
    once, again = (each.origin.deduplicated if each.origin else None for each in (before, now))
    if once != again:
        return _deduplications(once, again)
    if before.packing != now.packing:
        return _packings(before.packing, now.packing)
    return _arrangements(*(each.origin.arranged if each.origin else None for each in (before, now)))


def _arrangements(was: Arrangement | None, is_: Arrangement | None) -> str:
    if was is None and is_ is None:
        return "one of the two is made of runs with other settings, or of bare files, the other is not"
    if was is None or is_ is None:
        return "the documents of one of the two are in an order of a seed, those of the other are not"
    if was.seed != is_.seed:
        return f"--seed was {was.seed}, is {is_.seed}"
    if [each.fingerprint for each in was.sources] != [each.fingerprint for each in is_.sources]:
        return "it was made of other outputs, or of these before they were made again"
    return "the weights or the number of tokens were others"


def _packings(once: Packing | None, again: Packing | None) -> str:
    if once is None or again is None:
        return "the documents of one of the two are packed into sequences, those of the other are not"
    differing = [name for name in ("sequence", "seed", "pad_id", "drop") if getattr(once, name) != getattr(again, name)]
    words = [f"{_option(name)} was {getattr(once, name)}, is {getattr(again, name)}" for name in differing]
    return ", ".join(words) or "it was made of other outputs, or of these before they were made again"


def _deduplications(once: Deduplication | None, again: Deduplication | None) -> str:
    if once is None or again is None:
        return "copies were removed from one of the two, not from the other"
    if once.near != again.near:
        return f"near copies: {_near(once)}, now {_near(again)}"
    return "it was made of, or deduplicated against, other outputs, or these before they were made again"


def _near(rule: Deduplication) -> str:
    if rule.near is None:
        return "they were left"
    names = ("measure", "ngram", "bands", "rows", "shortest")
    return f"--near {rule.near.threshold:g} " + " ".join(f"--{name} {getattr(rule.near, name)}" for name in names)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _value(name: str, content: Content) -> object:
    """A setting as a person would type or read it."""
    if name == "n_ids":
        return content.tokenizer.n_ids
    if name == "tokenizer":
        return f"{content.tokenizer.name} (sha256 {content.tokenizer.sha256[:12]})"
    if name == "eot_token":
        return content.tokenizer.eot_id
    value = getattr(content, name)
    if name == "separator":
        return typed_separator(value)
    if name == "val_tail" and value is not msgspec.UNSET:
        # As a share, it may have been typed otherwise.
        return (content.inputs[0].size_bytes or 0) - value.begin
    return "not given" if value is msgspec.UNSET else value


def _typed(name: str, wanted: Content, now: Content) -> str:
    """What to type for a setting; empty where options are to be left out for it."""
    value = _value(name, wanted)
    if name == "val_tail" and not wanted.val_tail:
        return ""
    if isinstance(value, bool):
        return _option(name) if value else ""
    if name == "shards":
        if not isinstance(value, Shards):
            return ""
        before = now.shards if isinstance(now.shards, Shards) else None
        whole = " --shard-documents" if value.whole_documents and not (before and before.whole_documents) else ""
        return f"--shard-tokens {value.tokens}{whole}{' --drop-tail' if value.drop_tail else ''}"
    if name == "tokenizer":
        value = wanted.tokenizer.name
    return "" if name in ("origin", "n_ids") else f"{_option(name)} {shlex.quote(str(value))}"


def _input_changes(
    before: tuple[Input, ...], now: tuple[Input, ...], named: Callable[[Input], str], gone_new: tuple[str, str], if_moved: str
) -> list[str]:
    """Return what differs between two lists of inputs. gone_new: what to say of one that is only in the first, or the second."""
    old, new = ({i.path: i for i in inputs} for inputs in (before, now))
    n_old, n_new = (Counter(i.path for i in inputs) for inputs in (before, now))
    found = [f"{named(old[path])} {gone_new[0]}" for path in old if path not in new]
    found += [f"{named(new[path])} {gone_new[1]}" for path in new if path not in old]
    found += [_input(old[path], new[path]) for path in old if path in new and old[path] != new[path]]
    found += [
        f"{named(old[path])} was there {counted(n, 'time')}, is there {counted(n_new[path], 'time')}"
        for path, n in n_old.items()
        if path in new and n != n_new[path]
    ]
    return found or [f"the inputs are the same, {if_moved}"] * (before != now)


def _input(before: Input, now: Input) -> str:
    if before.size_bytes != now.size_bytes:
        return f"input {now.path} had {before.size_bytes:,} bytes, has {now.size_bytes:,}"
    if before.mtime_ns != now.mtime_ns:
        return f"input {now.path} was modified (same size, another modification time)"
    if before.version != now.version:
        return f"input {now.path} was replaced (same size; it was {before.version}, is {now.version})"
    if before.encoding != now.encoding:
        return f"input {now.path} was read as {before.encoding or 'UTF-8'}, is now {now.encoding or 'UTF-8'}"
    if before.side != now.side:
        return f"input {now.path} {'is one of --val-input, and was not' if now.side else 'was one of --val-input, and is not'}"
    return f"input {now.path} was read as {before.format}/{before.compression}, is now {now.format}/{now.compression}"
