"""Object stores and URLs: reading with retries, listing, sending, copying."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.store.base import AlreadyExists, ObjectInfo
    from tokmill.store.download import (
        Fetcher,
        RemoteStream,
        read_range,
        retry,
        serves_ranges,
    )
    from tokmill.store.listing import find_remote
    from tokmill.store.s3 import S3Objects, objects_at
    from tokmill.store.transfer import (
        WRITING,
        Copier,
        CopyTask,
        FileToSend,
        Uploader,
        UploadState,
        foreign_object,
        outgoing,
    )
    from tokmill.store.urls import (
        full_urls,
        one_spelling,
        path_of,
        redacted,
        register_url,
        register_urls,
    )

__getattr__, __all__ = lazy_names(__name__)
