"""Notices of options that were typed and have no effect with the others. Settings and environment are for all runs: not meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.run import Plan, Summary

_Made = TypeVar("_Made", "Plan", "Summary")


def unused_option_notices(is_typed: Callable[..., bool], *, out: str | None, on_error: str, ray: str | None = None) -> list[str]:
    """Return the notices. is_typed: whether one of these options was typed."""
    from tokmill.core.records import is_url

    needs = {
        "--stage": "" if out and is_url(out) else "without an s3:// output",
        "--stage-size": "" if out and is_url(out) else "without an s3:// output",
        "--max-skipped": "" if on_error == "skip" else "without --on-error skip",
        "--part-bytes": "" if ray is not None else "without --ray",
    }
    return [f"{option} has no effect {lacking}" for option, lacking in needs.items() if lacking and is_typed(option)]


def with_notices(made: _Made, notices: Sequence[str]) -> _Made:
    """Return the result with these notices too."""
    from msgspec.structs import replace

    return replace(made, notices=[*made.notices, *notices])
