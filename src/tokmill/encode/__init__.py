"""From a tokenizer's name to ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.encode.loading import (
        ENGINES,
        cutter_of,
        disable_awkward,
        eot_notice,
        is_lossless,
        load_decoder,
        load_encoder,
        load_fastest,
        most_ids,
        text_lengths,
        unknown_id,
    )
    from tokmill.encode.padding import padding_id
    from tokmill.encode.published import (
        ENCODINGS,
        Fetched,
        Vocabulary,
        fetch_vocabulary,
        list_vocabularies,
        tiktoken_cache_paths,
    )
    from tokmill.encode.resolve import (
        engine_notice,
        engine_of,
        reference_of,
        resolve_tokenizer,
        resolve_with,
    )
    from tokmill.encode.selftest import TEXTS, Tried

__getattr__, __all__ = lazy_names(__name__)
