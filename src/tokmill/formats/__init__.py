"""All that is known of a trainer's format: one file a format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.formats.choose import (
        TRAINERS,
        Choice,
        choose_output,
        dropped_notices,
        dropped_tokens,
        tail_notices,
    )
    from tokmill.formats.header_checks import n_filling, wrong_header
    from tokmill.formats.writers import WRITERS, make_writer, spec_of

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "choose": ["Choice", "TRAINERS", "choose_output", "dropped_notices", "dropped_tokens", "tail_notices"],
        "header_checks": ["n_filling", "wrong_header"],
        "writers": ["WRITERS", "spec_of", "make_writer"],
    },
)
