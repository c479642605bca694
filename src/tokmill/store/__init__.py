"""Object stores and URLs: reading with retries, listing, sending, copying."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.store.base import Found
    from tokmill.store.copy import Copier, Move
    from tokmill.store.download import (
        Fetcher,
        RemoteStream,
        insist,
        read_range,
        serves_ranges,
    )
    from tokmill.store.listing import find_remote
    from tokmill.store.objects import ObjectStore, Stored, Taken, objects_at
    from tokmill.store.upload import (
        WRITING,
        Outgoing,
        Sender,
        not_written,
        outgoing,
        spans_of,
        stranger,
    )
    from tokmill.store.upload_state import Ledger
    from tokmill.store.urls import (
        named,
        path_of,
        remember,
        restore,
        typed_urls,
    )

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "base": ["Found"],
        "copy": ["Copier", "Move"],
        "download": ["Fetcher", "RemoteStream", "insist", "read_range", "serves_ranges"],
        "listing": ["find_remote"],
        "objects": ["ObjectStore", "Stored", "Taken", "objects_at"],
        "upload": ["Outgoing", "Sender", "WRITING", "not_written", "outgoing", "spans_of", "stranger"],
        "upload_state": ["Ledger"],
        "urls": ["named", "path_of", "remember", "restore", "typed_urls"],
    },
)
