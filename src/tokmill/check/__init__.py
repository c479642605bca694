"""Whether an output is what it claims to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.check.findings import Problem, Report
    from tokmill.check.inspection import Inspection, Preview, inspect
    from tokmill.check.repairing.start import repair
    from tokmill.check.verification import verify

__getattr__, __all__ = lazy_names(__name__)
