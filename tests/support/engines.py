"""Engines that were loaded before: loading one takes longer than most tests."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from importlib.resources import files

import pytest

from tokmill.core.protocols import Encoder
from tokmill.core.records import Tokenizer
from tokmill.encode import disable_awkward, loading

_ASSETS = str(files("tokmill.encode") / "assets")
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
