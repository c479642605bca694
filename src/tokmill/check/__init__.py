"""Whether an output is what it claims to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.check.inspection import Inspection, Preview, inspect
    from tokmill.check.repairing.start import repair
    from tokmill.check.verification import Problem, Report, verify

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "inspection": ["Inspection", "Preview", "inspect"],
        "repairing.start": ["repair"],
        "verification": ["Problem", "Report", "verify"],
    },
)
