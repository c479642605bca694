"""Names what differs between the run that is to be resumed and the command that was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.errors import ChangedError

if TYPE_CHECKING:
    from pathlib import Path

    from tokmill.config import Content
    from tokmill.types import Input

_OPTIONS = {"encoding_errors": "--encoding-errors", "text_key": "--text-key", "val_fraction": "--val-fraction"}
_MOST = 5


def changed_error(before: Content, now: Content, directory: Path) -> ChangedError:
    """The error that refuses to go on, naming each setting and input that differs."""
    differences = [*_settings(before, now), *_inputs(before.inputs, now.inputs)]
    shown = differences[:_MOST]
    if len(differences) > _MOST:
        shown.append(f"and {len(differences) - _MOST} more")
    return ChangedError(
        "the run in this directory was begun differently: " + "; ".join(shown),
        where=str(directory),
        allowed="the same inputs, unchanged, and the same settings",
        next_step="restore what changed, choose another --out, or start over with --fresh",
    )


def _settings(before: Content, now: Content) -> list[str]:
    names = [f for f in before.__struct_fields__ if f not in ("inputs", "tokenizer") and getattr(before, f) != getattr(now, f)]
    if before.tokenizer.sha256 != now.tokenizer.sha256:
        names.append("tokenizer")
    return [_setting(name, getattr(before, name), getattr(now, name)) for name in names]


def _setting(name: str, before: object, now: object) -> str:
    if name == "tokenizer":
        before, now = (f"{t.name} (sha256 {t.sha256[:12]})" for t in (before, now))  # type: ignore[attr-defined]
    option = _OPTIONS.get(name, "--" + name.replace("_", "-"))
    return f"{option} was {before}, is {now}"


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
    return f"input {now.path} was read as {before.format}/{before.compression}, is now {now.format}/{now.compression}"
