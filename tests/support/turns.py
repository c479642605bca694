"""Properties of which an example takes long: the examples of the first turn are tried by default, those of the others are slow."""

from __future__ import annotations

import pytest


def in_turns(n: int) -> pytest.MarkDecorator:
    """Mark a property that takes the number of the turn, which changes nothing, as its first argument."""
    return pytest.mark.parametrize("turn", [pytest.param(turn, marks=[pytest.mark.slow] * (turn > 0)) for turn in range(n)])
