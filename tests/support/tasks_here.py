"""Tasks of several machines, done in this process.

As a script the real command, which asks for them and does them: `python tasks_here.py dedup ... --ray local`.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterable
from typing import Self

from tokmill.derive.choosing import measure_portion
from tokmill.derive.deduplication.spread_tasks import copy_portion, mark
from tokmill.derive.spread.arranging import scatter_portion, write_bucket

FUNCTIONS = {
    f"{each.__module__}:{each.__name__}": each for each in (scatter_portion, write_bucket, measure_portion, mark, copy_portion)
}


class Here:
    """Tasks done in this process, several questions asked before the first is answered, in random order."""

    def __init__(self, seed: int = 0, *, before: Callable[[str, bytes], None] = lambda _function, _question: None) -> None:
        self.asked: list[tuple[str, int]] = []
        self._random = random.Random(seed)
        self._before = before

    def n_slots(self, budget_bytes: int) -> int:
        return 3

    def do(
        self, function: str, questions: Iterable[tuple[int, bytes]], collect: Callable[[int, bytes], None], *, budget_bytes: int
    ) -> None:
        waiting: list[tuple[int, bytes]] = []
        left = iter(questions)
        while True:
            waiting += itertools.islice(left, 5 - len(waiting))
            if not waiting:
                return
            number, question = waiting.pop(self._random.randrange(len(waiting)))
            self.asked.append((function.partition(":")[2], number))
            self._before(function, question)
            collect(number, FUNCTIONS[function](question))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is connected."""


class DeadError(Exception):
    """The driver dies."""


def dying_after(n: int) -> Here:
    """Tasks whose driver dies when it asks for one more."""

    def count(_function: str, _question: bytes) -> None:
        if len(tasks.asked) > n:
            raise DeadError

    tasks = Here(before=count)
    return tasks


if __name__ == "__main__":
    from tokmill.cli.app import run
    from tokmill.derive import mixing, shuffling
    from tokmill.derive.deduplication import running

    for module in (shuffling, mixing, running):
        module.cluster = lambda _address: Here()  # type: ignore[attr-defined]
    sys.exit(run(sys.argv[1:]))
