"""The real command with small batches and segments, so that a small corpus has many: `python small_run.py SIZE tokenize ...`.

Between the plan and the run three numbers are replaced; the worker is the real one, for these numbers are part of its job.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from tokmill import api
from tokmill.cli import app
from tokmill.run.job import PlannedJob, make_job


def small_jobs(segment_bytes: int) -> Callable[..., PlannedJob]:
    """What makes jobs of such segments."""

    def make_small_job(*inputs: Any, **options: Any) -> PlannedJob:
        planned = make_job(*inputs, **options)
        small = msgspec.structs.replace(
            planned.job.resources,
            batch_bytes=segment_bytes,
            arena_bytes=16 * segment_bytes,
            range_bytes=3 * segment_bytes,
            n_workers=planned.job.resources.n_threads,
            segment_bytes=segment_bytes,
        )
        return msgspec.structs.replace(planned, job=msgspec.structs.replace(planned.job, resources=small))

    return make_small_job


def main(segment_bytes: int) -> None:
    vars(api)["make_job"] = small_jobs(segment_bytes)
    app.main()


if __name__ == "__main__":
    size = int(sys.argv.pop(1))
    main(size)
