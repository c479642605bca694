"""Recipes: a file that says which texts become which training set, and the making of it, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.recipe.building import BuildPlan, build, plan_build, plan_text
    from tokmill.recipe.parsing import EXAMPLE

__getattr__, __all__ = lazy_names(__name__)
