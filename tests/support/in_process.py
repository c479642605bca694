"""What a command starts as processes, in the process of the test, with engines that were loaded before.

A worker as a process takes 0.5 s of imports, an engine 0.05 s. Tests of what a run does need neither; tests of what becomes of
processes (killed, interrupted, out of memory) have the real command in `support.commands`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from importlib.resources import files
from typing import Any, ClassVar

import msgspec
import pytest
from support.direct_child import WHERE, DirectChild
from support.runs import UNWATCHED

from tokmill.core.protocols import Encoder
from tokmill.core.records import Tokenizer
from tokmill.core.system.process import failed_event
from tokmill.encode import disable_awkward, loading
from tokmill.run.estimate import sampler

_ASSETS = str(files("tokmill") / "assets")
_free: dict[tuple[Tokenizer, str], list[Encoder]] = {}


def _lent(load: Callable[[Tokenizer, str], Encoder], tokenizer: Tokenizer, engine: str) -> Encoder:
    """An engine that nobody has: a copy of one that was loaded, which is free again when the copy is gone."""
    if not tokenizer.path.startswith(_ASSETS):
        # Its file may change.
        return load(tokenizer, engine)
    free = _free.setdefault((tokenizer, engine), [])
    try:
        whole = free.pop()
    except IndexError:
        whole = load(tokenizer, engine)
    lent = copy(whole)
    weakref.finalize(lent, free.append, whole).atexit = False
    return lent


@contextmanager
def lent_engines() -> Iterator[None]:
    """Engines of the encoding that tokmill has with it are loaded once."""
    disable_awkward()
    load = loading._loaded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_loaded", lambda tokenizer, engine: _lent(load, tokenizer, engine))
        yield


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
