"""What a command starts as processes, in the process of the test.

A worker as a process takes 0.5 s of imports. Tests of what a run does do not need it; tests of what becomes of
processes (killed, interrupted, out of memory) have the real command in `support.commands`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import msgspec
import pytest
from support.direct_child import WHERE, DirectChild
from support.engines import lent_engines
from support.runs import UNWATCHED

from tokmill.core.system.process import failed_event
from tokmill.run.estimate import sampler


class _Child(DirectChild):
    """A child whose run is that of a process: nothing is smaller, and every exception is an event."""

    resources: ClassVar[dict[str, Any]] = UNWATCHED

    def lines(self) -> Iterator[bytes]:
        answers: list[msgspec.Struct] = []
        try:
            self._answer(answers)
        except Exception as error:  # noqa: BLE001  as the process does
            answers.append(failed_event(error))
        yield from map(msgspec.json.encode, answers)


@contextmanager
def workers_in_process() -> Iterator[None]:
    """What is called in this process starts no other one."""
    with pytest.MonkeyPatch.context() as patch, lent_engines():
        patch.setattr(sampler, "_RESOURCES", msgspec.structs.replace(sampler._RESOURCES, **UNWATCHED))
        for name in WHERE:
            patch.setattr(name, _Child)
        yield
