"""Outputs made of complete outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.derive.appending import bytes_to_copy, copy_old_output, extend
    from tokmill.derive.blending import RECIPES, mix_recipe
    from tokmill.derive.conversion import convert, reshard
    from tokmill.derive.deduplication.running import (
        dedup,
        dedup_each,
        dedup_into,
        load_against,
        n_passes,
        near_rule,
        work_bytes,
    )
    from tokmill.derive.merging import check_agreement, merge
    from tokmill.derive.mixing import mix
    from tokmill.derive.packing import pack
    from tokmill.derive.shuffling import shuffle, shuffle_into
    from tokmill.derive.source import Source

__getattr__, __all__ = lazy_names(__name__)
