"""tokmill: text corpora of any size to token files for training, exactly right, fast, in bounded memory, safe against crashes.

    import tokmill

    tokmill.tokenize("corpus.txt", "data")
    with tokmill.open("data") as data:
        data.train  # np.memmap of uint16, shape (n_tokens,)
        x, y = next(data.batches(batch=12, block=1024))  # int64, shape (12, 1024)

Everything is imported when it is first used, so that importing tokmill costs nothing.
"""

from __future__ import annotations

# As typing's, which nobody should wait for: until the command is loaded, Ctrl-C is Python's.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from tokmill.api import finalize, plan, tokenize
    from tokmill.check import Inspection, Report, inspect, repair, verify
    from tokmill.core.errors import TokmillError
    from tokmill.core.events import Committed, Finished, Notice, Progress, Restarted, Started
    from tokmill.core.outcome import Outcome
    from tokmill.core.progress import on_progress
    from tokmill.core.version import __version__ as __version__
    from tokmill.dataset import (
        Dataset,
        open_dataset as open,  # noqa: A004  the word for it: tokmill.open
    )
    from tokmill.derive import convert, dedup, merge, mix, mix_recipe, pack, reshard, shuffle
    from tokmill.recipe import BuildPlan, build, plan_build
    from tokmill.reports import ReportPage, report
    from tokmill.run import Plan, Summary

__all__ = [
    "BuildPlan",
    "Committed",
    "Dataset",
    "Finished",
    "Inspection",
    "Notice",
    "Outcome",
    "Plan",
    "Progress",
    "Report",
    "ReportPage",
    "Restarted",
    "Started",
    "Summary",
    "TokmillError",
    "build",
    "convert",
    "dedup",
    "finalize",
    "inspect",
    "merge",
    "mix",
    "mix_recipe",
    "on_progress",
    "open",
    "pack",
    "plan",
    "plan_build",
    "repair",
    "report",
    "reshard",
    "shuffle",
    "tokenize",
    "verify",
]


def __getattr__(name: str) -> object:
    from tokmill.core.lazy import load

    return load(__name__, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
