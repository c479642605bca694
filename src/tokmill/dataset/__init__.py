"""Complete outputs as training code reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.dataset.batches import Batches
    from tokmill.dataset.dataset import Dataset, find_tokenizer, open_dataset
    from tokmill.dataset.id_reader import IdReader
    from tokmill.dataset.packed_batches import PackedBatch, PackedBatches
    from tokmill.dataset.sharded_array import Ids, TokenArray
    from tokmill.dataset.starts import Starts
    from tokmill.dataset.token_files import (
        TokenFile,
        bare_file,
        check_size,
        extents_of,
        files_of,
        refuse_index,
        refuse_options,
    )

__getattr__, __all__ = lazy_names(__name__)
