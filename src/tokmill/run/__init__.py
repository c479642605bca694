"""From options to a finished run: job, supervisor, coordinator, workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.run.advice import HOW_AGAIN
    from tokmill.run.audit import Auditor
    from tokmill.run.encode_batch import EncodeStage
    from tokmill.run.encoding import EncodingProcess, auditor_of, serve, watched
    from tokmill.run.estimate.forecast import (
        ARRANGED_BYTES_PER_S,
        InputPlan,
        Plan,
        check_disk,
        make_plan,
    )
    from tokmill.run.estimate.statistics import Estimate
    from tokmill.run.job import (
        NOWHERE,
        PlannedJob,
        details,
        divide_resources,
        make_job,
    )
    from tokmill.run.memory_guard import MemorySample, limit_growth, take_memory_sample
    from tokmill.run.parts.finalize import finalize
    from tokmill.run.parts.ray import RayRunner
    from tokmill.run.parts.tokenize import place_of_part, run_all_parts, run_one_part
    from tokmill.run.summary import Meter, Summary, notices_of, summarize
    from tokmill.run.supervisor import LocalRunner
    from tokmill.run.token_limits import TokenLimits

__getattr__, __all__ = lazy_names(__name__)
