"""A child process that is none: it answers in the process of the test, in a tenth of the time, its exceptions as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
from support.runs import TINY, UNWATCHED, carry_out

from tokmill.check.repairing.worker import RepairProcess
from tokmill.core.config import Job
from tokmill.core.events import AnyEvent, Failed
from tokmill.core.system.process import failed_event
from tokmill.core.system.refusals import explained
from tokmill.encode.selftest import try_engine
from tokmill.run.estimate import sampler

WHERE = ("tokmill.run.supervisor.Child", "tokmill.run.estimate.forecast.Child", "tokmill.core.system.child.Child")
"""Names to be patched."""
RESOURCES: dict[str, Any] = {name: value for name, value in TINY.items() if name != "terms"} | UNWATCHED


def is_foreseen(error: BaseException) -> bool:
    """Whether an exception is one that tokmill has words for."""
    return "unforeseen" not in explained(error, "", next_step="").what


class DirectChild:
    """Stands in for `core.system.child.Child`. A run has tiny batches and segments."""

    interrupts = 0
    last_words = ""
    resources: ClassVar[dict[str, Any]] = RESOURCES

    def __init__(self, module: str) -> None:
        self._module = module
        self._question = b""

    def ask(self, question: bytes) -> None:
        self._question = question

    def lines(self) -> Iterator[bytes]:
        answers: list[msgspec.Struct] = []
        try:
            self._answer(answers)
        except Exception as error:
            if not is_foreseen(error):
                raise
            answers.append(failed_event(error))
        yield from map(msgspec.json.encode, answers)

    def _answer(self, answers: list[msgspec.Struct]) -> None:
        if self._module.endswith("sampler"):
            answers.append(sampler._answer(self._question))
        elif self._module.endswith("selftest"):
            answers.append(try_engine())
        else:
            job = msgspec.json.decode(self._question, type=Job)
            job = msgspec.structs.replace(job, resources=msgspec.structs.replace(job.resources, **self.resources))
            events: list[AnyEvent] = []
            try:
                if "repairing" in self._module:
                    RepairProcess(job, events.append).run()
                else:
                    carry_out(job, events.append)
            finally:
                answers += [event for event in events if not isinstance(event, Failed)]

    def end(self) -> None:
        pass

    def cause(self) -> str:
        return "it is none"
