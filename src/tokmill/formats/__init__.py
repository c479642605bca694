"""All that is known of a trainer's format: one file a format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.formats.base import FormatSpec
    from tokmill.formats.choose import (
        Choice,
        check_name,
        choose_output,
        dropped_notices,
        dropped_tokens,
        parse_tokens,
        short_notices,
    )
    from tokmill.formats.header_checks import header_problem, n_padding_ids
    from tokmill.formats.numbers import offsets_name, starts_name
    from tokmill.formats.registry import FORMATS, is_read_by_trainer, is_written
    from tokmill.formats.sharding import make_writer, spec_of

__getattr__, __all__ = lazy_names(__name__)
