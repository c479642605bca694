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

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tokmill.api import finalize, plan, tokenize
    from tokmill.conversion import convert, reshard
    from tokmill.dataset import Dataset
    from tokmill.dataset import open_dataset as open  # noqa: A004  the word for it: tokmill.open
    from tokmill.errors import TokmillError
    from tokmill.forecast import Plan
    from tokmill.inspection import Inspection, inspect
    from tokmill.mending import repair
    from tokmill.merging import merge
    from tokmill.replay import Outcome
    from tokmill.reporting import ReportPage, report
    from tokmill.summary import Summary
    from tokmill.verification import Report, verify

__all__ = [
    "Dataset",
    "Inspection",
    "Outcome",
    "Plan",
    "Report",
    "ReportPage",
    "Summary",
    "TokmillError",
    "convert",
    "finalize",
    "inspect",
    "merge",
    "open",
    "plan",
    "repair",
    "report",
    "reshard",
    "tokenize",
    "verify",
]

_FROM = {
    "Dataset": "dataset:Dataset",
    "Inspection": "inspection:Inspection",
    "Outcome": "replay:Outcome",
    "Plan": "forecast:Plan",
    "Report": "verification:Report",
    "ReportPage": "reporting:ReportPage",
    "Summary": "summary:Summary",
    "TokmillError": "errors:TokmillError",
    "convert": "conversion:convert",
    "finalize": "api:finalize",
    "inspect": "inspection:inspect",
    "merge": "merging:merge",
    "open": "dataset:open_dataset",
    "plan": "api:plan",
    "repair": "mending:repair",
    "report": "reporting:report",
    "reshard": "conversion:reshard",
    "tokenize": "api:tokenize",
    "verify": "verification:verify",
}


def __getattr__(name: str) -> object:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = _FROM[name].partition(":")
    value = getattr(import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
