"""The HTML page about an output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.reports.charts import check_extra
    from tokmill.reports.reporting import ReportPage, report

__getattr__, __all__ = lazy_names(__name__)
