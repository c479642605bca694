"""Options that were typed and do nothing beside the others. What settings and the environment say is for all runs, so not meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.run import Plan, Summary

_Made = TypeVar("_Made", "Plan", "Summary")


def unused_option_notices(is_typed: Callable[..., bool], *, out: str | None, on_error: str, ray: str | None = None) -> list[str]:
    """What to say of them. is_typed: whether one of these options was."""
    from tokmill.core.records import is_url

    needs = {
        "--stage": "" if out and is_url(out) else "without an s3:// output",
        "--stage-size": "" if out and is_url(out) else "without an s3:// output",
        "--max-skipped": "" if on_error == "skip" else "without --on-error skip",
        "--part-bytes": "" if ray is not None else "without --ray",
    }
    return [f"{option} has no effect {lacking}" for option, lacking in needs.items() if lacking and is_typed(option)]


def with_notices(made: _Made, notices: Sequence[str]) -> _Made:
    """The result that says it too."""
    from msgspec.structs import replace

    return replace(made, notices=[*made.notices, *notices])
