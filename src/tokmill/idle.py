"""Options that were typed and do nothing beside the others. What settings and the environment say is for all runs, so not meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokmill.forecast import Plan
    from tokmill.protocols import Observer


def idle_notices(is_typed: Callable[..., bool], *, out: str | None, on_error: str, ray: str | None = None) -> list[str]:
    """What to say of them. is_typed: whether one of these options was."""
    from tokmill.types import is_url

    needs = {
        "--stage": "" if out and is_url(out) else "without an s3:// output",
        "--stage-size": "" if out and is_url(out) else "without an s3:// output",
        "--max-skipped": "" if on_error == "skip" else "without --on-error skip",
        "--split-bytes": "" if ray is not None else "without --ray",
    }
    return [f"{option} has no effect {lacking}" for option, lacking in needs.items() if lacking and is_typed(option)]


def tell(notices: Sequence[str], observers: Sequence[Observer]) -> None:
    """Say it behind the run: a command that is refused says only why."""
    from tokmill.types import Notice

    for notice in notices:
        for observer in observers:
            observer.on_event(Notice(text=notice))


def with_notices(plan: Plan, notices: Sequence[str]) -> Plan:
    """The plan that says it too."""
    from msgspec.structs import replace

    return replace(plan, notices=[*plan.notices, *notices])
