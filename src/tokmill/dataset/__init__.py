"""Complete outputs as training code reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.dataset.batches import Batches
    from tokmill.dataset.dataset import (
        SIDES,
        Dataset,
        find_tokenizer,
        open_dataset,
    )
    from tokmill.dataset.sharded_array import Ids, ShardedIds, TokenArray
    from tokmill.dataset.token_files import (
        ID_LAYOUTS,
        TokenFile,
        check_npy,
        check_size,
        files_of,
        read_npy_header,
        refuse_index,
        refuse_options,
    )

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "batches": ["Batches"],
        "dataset": ["Dataset", "SIDES", "find_tokenizer", "open_dataset"],
        "sharded_array": ["Ids", "ShardedIds", "TokenArray"],
        "token_files": [
            "ID_LAYOUTS",
            "TokenFile",
            "check_npy",
            "check_size",
            "files_of",
            "read_npy_header",
            "refuse_index",
            "refuse_options",
        ],
    },
)
