"""Everything that a terminal sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.cli.app import main

__getattr__, __all__ = lazy_names(__name__)
