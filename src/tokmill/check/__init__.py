"""Whether an output is what it claims to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.check.inspection import Inspection, Preview, inspect
    from tokmill.check.repairing.damage import Repair, open_repair
    from tokmill.check.repairing.start import repair
    from tokmill.check.repairing.worker import GapReader, Mender, check_sources
    from tokmill.check.verification import Problem, Report, verify

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "inspection": ["Inspection", "Preview", "inspect"],
        "repairing.damage": ["Repair", "open_repair"],
        "repairing.start": ["repair"],
        "repairing.worker": ["GapReader", "Mender", "check_sources"],
        "verification": ["Problem", "Report", "verify"],
    },
)
